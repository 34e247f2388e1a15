"""Snapshots: consistent, verified, never in the way of a good one; and the restore, which loses nothing either."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, text

from mmserver.errors import (
    DatabaseCorrupt,
    DataDirLocked,
    DiskFull,
    ReadOnly,
    SchemaTooNew,
    SnapshotInvalid,
    SnapshotNotFound,
)
from mmserver.storage.audit import list_audit
from mmserver.storage.blobs import put_blob
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import check_schema, upgrade_database
from mmserver.storage.snapshots import (
    SnapshotInfo,
    create_snapshot,
    list_snapshots,
    restore_snapshot,
    rotate_snapshots,
    verify_snapshot,
)
from mmserver.storage.sqlite import connect
from mmserver.storage.tables import MetaRow, Row


def put(database: Database, key: str, value: str = "") -> None:
    with database.write() as connection:
        connection.execute(insert(MetaRow).values(key=key, value=value))


def keys(database: Database) -> set[str]:
    with database.read() as connection:
        facts = {"generation_id", "created_at", "snapshot_created_at", "audit_head"}
        return set(connection.scalars(select(MetaRow.key))) - facts


def keys_at(path: Path) -> set[str]:
    database = open_database(path)
    try:
        check_schema(database)
        database.quick_check()
        return keys(database)
    finally:
        database.close()


@pytest.fixture
def full(database: Database, fill_every_table: Callable[[Connection], None]) -> Database:
    with database.write() as connection:
        fill_every_table(connection)
    return database


@pytest.fixture
def snapshot(full: Database, data_dir: DataDir, now: datetime) -> SnapshotInfo:
    return create_snapshot(full, data_dir.snapshots_dir, now)


def test_a_snapshot_is_one_file_with_every_row(full: Database, snapshot: SnapshotInfo, now: datetime) -> None:
    assert list(snapshot.path.parent.iterdir()) == [snapshot.path]
    assert verify_snapshot(snapshot.path) == snapshot
    assert (snapshot.created_at, snapshot.generation_id) == (now, full.generation_id)
    assert set(snapshot.row_counts) == set(Row.metadata.tables)
    assert all(count >= 3 for count in snapshot.row_counts.values())


def test_a_snapshot_is_served_read_only_from_a_directory_that_cannot_be_written(
    snapshot: SnapshotInfo, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "renamed" / "backup.bin"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(snapshot.path.read_bytes())
    elsewhere.parent.chmod(0o500)
    database = open_database(elsewhere, read_only=True)
    check_schema(database)
    assert keys(database) == {"key 0", "key 1", "key 2"}
    with pytest.raises(ReadOnly):
        put(database, "no")
    assert list(elsewhere.parent.iterdir()) == [elsewhere]
    database.close()
    elsewhere.parent.chmod(0o700)
    assert verify_snapshot(elsewhere).sha256 == snapshot.sha256
    assert verify_snapshot(elsewhere).created_at == snapshot.created_at


def test_a_snapshot_taken_under_writes_is_one_state(full: Database, data_dir: DataDir, now: datetime) -> None:
    """Each write moves one row from one key to the next: whatever the moment, exactly one is there."""
    put(full, "moving 0")
    stop = threading.Event()
    moves = threading.Semaphore(0)

    def move() -> None:
        i = 0
        while not stop.is_set():
            with full.write() as connection:
                connection.execute(
                    text("UPDATE meta SET key = :new WHERE key = :old"),
                    {"old": f"moving {i}", "new": f"moving {i + 1}"},
                )
            i += 1
            moves.release()

    def snapshot_after_a_move(hours: int) -> SnapshotInfo:
        while moves.acquire(blocking=False):
            pass
        assert moves.acquire(timeout=60)
        return create_snapshot(full, data_dir.snapshots_dir, now + timedelta(hours=hours))

    writer = threading.Thread(target=move)
    writer.start()
    try:
        snapshots = [snapshot_after_a_move(i) for i in range(3)]
    finally:
        stop.set()
        writer.join()
    moved = []
    for info in snapshots:
        database = open_database(info.path, read_only=True)
        moved.append([key for key in keys(database) if key.startswith("moving")])
        database.close()
    assert [len(found) for found in moved] == [1, 1, 1]
    assert len({found[0] for found in moved}) == 3


def test_the_newest_snapshots_are_kept_and_damaged_ones_do_not_count(
    full: Database, data_dir: DataDir, now: datetime
) -> None:
    made = [create_snapshot(full, data_dir.snapshots_dir, now + timedelta(hours=i)).path for i in range(4)]
    made[3].write_bytes(b"")
    (data_dir.snapshots_dir / "notes.txt").write_text("mine")
    listed = list_snapshots(data_dir.snapshots_dir)
    assert [info.path for info in listed] == made[::-1]
    assert [info.damage is None for info in listed] == [False, True, True, True]
    assert rotate_snapshots(data_dir.snapshots_dir, keep=2) == [made[0]]
    assert rotate_snapshots(data_dir.snapshots_dir, keep=0) == [made[1]]
    assert rotate_snapshots(data_dir.snapshots_dir, keep=5) == []
    assert {path.name for path in data_dir.snapshots_dir.iterdir()} == {made[2].name, made[3].name, "notes.txt"}


# --- what is no snapshot --------------------------------------------------------------------------------------------------


def change(path: Path, statement: str) -> None:
    raw = connect(path, "alone")
    raw.execute("PRAGMA foreign_keys=OFF")
    raw.execute(statement)
    raw.close()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


DAMAGES = [
    pytest.param(lambda path: path.write_bytes(b""), "empty", id="empty"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-4096]), "malformed", id="cut-off"),
    pytest.param(lambda path: path.write_bytes(b"PK" + path.read_bytes()), "not a database", id="another-kind-of-file"),
    pytest.param(
        lambda path: change(path, "DELETE FROM blobs WHERE sha256 = (SELECT min(sha256) FROM blobs)"),
        "is not there",
        id="blob-missing",
    ),
    pytest.param(
        lambda path: change(path, "UPDATE blobs SET codec = 'raw', content = zeroblob(size_bytes)"),
        "SHA-256",
        id="blob-changed",
    ),
    pytest.param(
        lambda path: change(path, "UPDATE blobs SET codec = 'raw', content = 'text'"),
        "damaged",
        id="blob-of-another-type",
    ),
    pytest.param(
        lambda path: change(path, "UPDATE blobs SET size_bytes = 1 << 50"), "decode", id="blob-claims-a-petabyte"
    ),
    pytest.param(
        lambda path: change(path, "DELETE FROM meta WHERE key = 'generation_id'"), "which database", id="no-generation"
    ),
    pytest.param(lambda path: change(path, "DROP TABLE alembic_version"), "alembic_version", id="no-schema"),
    pytest.param(lambda path: change(path, "PRAGMA application_id = 1"), "not a database of mmserver", id="not-ours"),
    pytest.param(
        lambda path: change(path, "CREATE TRIGGER t AFTER INSERT ON audit BEGIN DELETE FROM models; END"),
        "'t'",
        id="trigger",
    ),
    pytest.param(
        lambda path: (
            change(path, "DROP TRIGGER audit_no_delete;")
            or change(path, "CREATE TRIGGER audit_no_delete AFTER INSERT ON audit BEGIN DELETE FROM models; END")
        ),
        "'audit_no_delete'",
        id="trigger-under-our-name",
    ),
    pytest.param(lambda path: Path(f"{path}-wal").write_bytes(b"x"), "write-ahead log", id="log-beside-it"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_what_is_no_whole_snapshot_is_refused_and_the_database_stays(
    snapshot: SnapshotInfo,
    data_dir: DataDir,
    full: Database,
    tmp_path: Path,
    *,
    damage: Callable[[Path], None],
    reason: str,
    now: datetime,
) -> None:
    file = tmp_path / "copy"
    file.write_bytes(snapshot.path.read_bytes())
    damage(file)
    full.close()
    bytes_before = full.path.read_bytes()
    with pytest.raises(SnapshotInvalid, match=reason):
        restore_snapshot(file, data_dir, now)
    assert full.path.read_bytes() == bytes_before
    assert sorted(path.name for path in data_dir.path.iterdir()) == ["snapshots", "state.db"]


def test_a_flipped_bit_anywhere_is_seen_in_a_file_that_has_its_name(snapshot: SnapshotInfo) -> None:
    flip(snapshot.path, snapshot.size_bytes - 1)
    with pytest.raises(SnapshotInvalid):
        verify_snapshot(snapshot.path)


def test_no_such_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFound):
        verify_snapshot(tmp_path / "nothing")


def test_a_damaged_database_gives_no_snapshot_and_keeps_the_good_one(
    full: Database, snapshot: SnapshotInfo, data_dir: DataDir, now: datetime
) -> None:
    with full.write() as connection:
        connection.execute(text("UPDATE blobs SET codec = 'raw', content = zeroblob(size_bytes)"))
    with pytest.raises(SnapshotInvalid, match="SHA-256"):
        create_snapshot(full, data_dir.snapshots_dir, now + timedelta(hours=1))
    assert list(data_dir.snapshots_dir.iterdir()) == [snapshot.path]
    assert verify_snapshot(snapshot.path) == snapshot


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk, where the kernel lets it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_snapshot_disk_leaves_the_good_snapshot_alone_and_nothing_else(
    full: Database, small_disk: Path, now: datetime
) -> None:
    (small_disk / "ballast").write_bytes(b"")
    with full.write() as connection:
        for i in range(10):
            put_blob(connection, os.urandom(20_000) + bytes([i]))
    with pytest.raises(DiskFull):
        create_snapshot(full, small_disk, now)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
    put(full, "the database goes on")


def test_a_restore_without_space_changes_nothing(
    full: Database, snapshot: SnapshotInfo, small_disk: Path, now: datetime
) -> None:
    target = DataDir(small_disk / "data")
    target.create()
    (small_disk / "ballast").write_bytes(b"x" * 100_000)
    with pytest.raises(DiskFull):
        restore_snapshot(snapshot.path, target, now)
    assert [path.name for path in target.path.iterdir()] == ["snapshots"]


# --- restore --------------------------------------------------------------------------------------------------------------


def test_a_restore_brings_the_state_back_as_a_new_generation_and_keeps_what_was_there(
    full: Database, snapshot: SnapshotInfo, data_dir: DataDir, now: datetime
) -> None:
    put(full, "later")
    full.close()
    bytes_before = full.path.read_bytes()
    restored = restore_snapshot(snapshot.path, data_dir, now)
    assert keys_at(full.path) == {"key 0", "key 1", "key 2"}
    database = open_database(full.path)
    assert database.generation_id == restored.generation_id != snapshot.generation_id
    with database.read() as connection:
        assert [entry.action for entry in list_audit(connection, 1)] == ["database.restored"]
        assert connection.execute(text("SELECT max(expires_at), min(epoch) FROM leases")).one() == (0.0, 1)
        assert connection.scalar(select(MetaRow.value).where(MetaRow.key == "snapshot_created_at")) is None
    database.close()
    assert restored.broken_path is not None
    assert restored.broken_path.read_bytes() == bytes_before
    assert upgrade_database(full.path, data_dir.snapshots_dir).snapshot is None


def test_a_restore_into_an_empty_data_directory_works(snapshot: SnapshotInfo, tmp_path: Path, now: datetime) -> None:
    fresh = DataDir(tmp_path / "fresh")
    fresh.create()
    restored = restore_snapshot(snapshot.path, fresh, now)
    assert restored.broken_path is None
    assert keys_at(fresh.database_path) == {"key 0", "key 1", "key 2"}


def test_a_log_left_by_a_killed_server_is_not_replayed_into_the_restored_database(
    snapshot: SnapshotInfo,
    full: Database,
    data_dir: DataDir,
    now: datetime,
    start_script: Callable[..., subprocess.Popen[str]],
) -> None:
    full.close()
    killed = start_script(
        """
import os, sys
from pathlib import Path
from sqlalchemy import text
from mmserver.storage.database import open_database
database = open_database(Path(sys.argv[1]))
for i in range(100):
    with database.write() as connection:
        connection.execute(text("INSERT INTO meta VALUES (:key, '')"), {"key": f"late {i}"})
os.kill(os.getpid(), 9)
""",
        full.path,
    )
    killed.wait()
    assert Path(f"{full.path}-wal").stat().st_size > 0
    restored = restore_snapshot(snapshot.path, data_dir, now)
    assert keys_at(full.path) == {"key 0", "key 1", "key 2"}
    assert restored.broken_path is not None
    assert "late 99" in keys_at(restored.broken_path)


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 500])
def test_a_restore_replaces_a_database_that_cannot_be_opened(
    full: Database, snapshot: SnapshotInfo, data_dir: DataDir, now: datetime, damage: bytes
) -> None:
    full.close()
    full.path.write_bytes(damage)
    with pytest.raises(DatabaseCorrupt):
        open_database(full.path)
    restored = restore_snapshot(snapshot.path, data_dir, now)
    assert restored.broken_path is not None
    assert restored.broken_path.read_bytes() == damage
    assert keys_at(full.path) == {"key 0", "key 1", "key 2"}


def test_a_snapshot_of_a_newer_schema_is_not_restored(
    full: Database, snapshot: SnapshotInfo, data_dir: DataDir, tmp_path: Path, now: datetime
) -> None:
    newer = tmp_path / "newer"
    newer.write_bytes(snapshot.path.read_bytes())
    change(newer, "UPDATE alembic_version SET version_num = '9999'")
    full.close()
    bytes_before = full.path.read_bytes()
    with pytest.raises(SchemaTooNew):
        restore_snapshot(newer, data_dir, now)
    assert full.path.read_bytes() == bytes_before


def test_nothing_is_restored_under_a_running_server(snapshot: SnapshotInfo, data_dir: DataDir, now: datetime) -> None:
    with data_dir.lock(), pytest.raises(DataDirLocked):
        restore_snapshot(snapshot.path, data_dir, now)


# --- kill -9 between two steps --------------------------------------------------------------------------------------------

DIE_AT = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import open_database
from mmserver.storage.snapshots import create_snapshot, restore_snapshot

def die(step):
    if step == sys.argv[1]:
        os.kill(os.getpid(), 9)

data_dir = DataDir(Path(sys.argv[2]))
now = datetime(2026, 11, 21, tzinfo=UTC)
if len(sys.argv) == 4:
    restore_snapshot(Path(sys.argv[3]), data_dir, now, at=die)
else:
    create_snapshot(open_database(data_dir.database_path), data_dir.snapshots_dir, now, at=die)
"""


@pytest.mark.parametrize("step", ["created", "copied", "synced", "checked", "renamed"])
def test_a_snapshot_killed_at_any_step_leaves_good_ones_only(
    full: Database,
    snapshot: SnapshotInfo,
    data_dir: DataDir,
    step: str,
    start_script: Callable[..., subprocess.Popen[str]],
) -> None:
    put(full, "kept")
    assert start_script(DIE_AT, step, data_dir.path).wait() == -9
    full.close()
    removed = data_dir.remove_leftovers()
    assert bool(removed) == (step != "renamed")
    left = list_snapshots(data_dir.snapshots_dir)
    assert sorted(data_dir.snapshots_dir.iterdir()) == sorted(info.path for info in left)
    assert len(left) == (2 if step == "renamed" else 1)
    assert [verify_snapshot(info.path) for info in left] == left
    assert "kept" in keys_at(full.path)


@pytest.mark.parametrize("step", ["copied", "built", "moved_aside", "replaced"])
def test_a_restore_killed_at_any_step_is_done_or_undone(
    full: Database,
    snapshot: SnapshotInfo,
    data_dir: DataDir,
    step: str,
    start_script: Callable[..., subprocess.Popen[str]],
) -> None:
    put(full, "in the log only")
    aside = {suffix: Path(f"{full.path}{suffix}") for suffix in ("", "-wal")}
    as_if_killed = {path: path.read_bytes() for path in aside.values()}
    full.close()
    for path, content in as_if_killed.items():
        path.write_bytes(content)  # as a killed server leaves it: the last commit is in the log
    assert start_script(DIE_AT, step, data_dir.path, snapshot.path).wait() == -9
    if step == "moved_aside":
        with pytest.raises(DatabaseCorrupt):  # never an empty one in the place of the one that was moved
            upgrade_database(data_dir.database_path, data_dir.snapshots_dir)
    with data_dir.lock():
        data_dir.remove_leftovers()
    assert ("in the log only" in keys_at(full.path)) == (step != "replaced")
    assert len(list(data_dir.path.glob("*.broken-*"))) == (2 if step == "replaced" else 0)
    assert not list(data_dir.path.glob("*.tmp*"))
    assert verify_snapshot(snapshot.path) == snapshot
