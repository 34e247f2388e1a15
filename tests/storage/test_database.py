"""Transactions, pragmas, what errors mean, and damage that must not be taken for a healthy database."""

import os
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from mmserver.errors import DatabaseBusy, DatabaseCorrupt, DiskFull, ReadOnly, WritesStopped
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import check_schema, upgrade_database
from mmserver.storage.sqlite import connect, sqlite_module
from mmserver.storage.tables import FactorListRow, GroupFileRow, GroupRow, MetaRow


def put(database: Database, key: str, value: str = "") -> None:
    with database.write() as connection:
        connection.execute(insert(MetaRow).values(key=key, value=value))


def keys(database: Database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(select(MetaRow.key))) - {"generation_id", "created_at", "audit_head"}


def pragma(connection: Connection, name: str) -> Any:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


PRAGMAS = {  # as PRAGMA says them back
    "journal_mode": "wal",
    "synchronous": 2,
    "foreign_keys": 1,
    "trusted_schema": 0,
    "cell_size_check": 1,
    "mmap_size": 0,
    "wal_autocheckpoint": 0,
    "busy_timeout": 300,
}


def test_every_connection_has_its_pragmas_also_after_checkpoints_and_rebuilds(database: Database) -> None:
    for _ in range(2):
        with database.write() as writer:
            assert {name: pragma(writer, name) for name in PRAGMAS} == PRAGMAS
            assert pragma(writer, "query_only") == 0
            assert writer.connection.driver_connection.isolation_level is None
        with database.read() as reader:
            assert {name: pragma(reader, name) for name in PRAGMAS} == PRAGMAS
            assert pragma(reader, "query_only") == 1
        assert database.checkpoint()
        with database.rebuild() as rebuilding:
            assert pragma(rebuilding, "foreign_keys") == 0


def test_a_read_sees_one_state_while_another_thread_commits(database: Database) -> None:
    put(database, "before")
    with database.read() as connection:
        first = set(connection.scalars(select(MetaRow.key)))
        other = threading.Thread(target=put, args=(database, "during"))
        other.start()
        other.join()
        assert set(connection.scalars(select(MetaRow.key))) == first
    assert keys(database) == {"before", "during"}


def test_an_error_in_a_write_undoes_its_rows_and_its_tables(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(insert(MetaRow).values(key="half", value=""))
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise ZeroDivisionError
    assert keys(database) == set()
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM sqlite_master WHERE name = 'half'")).scalar() == 0
    put(database, "after")


def test_a_savepoint_undoes_only_its_part(database: Database) -> None:
    with database.write() as connection:
        connection.execute(insert(MetaRow).values(key="kept", value=""))
        with pytest.raises(IntegrityError), connection.begin_nested():
            connection.execute(insert(MetaRow).values(key="undone", value=""))
            connection.execute(insert(MetaRow).values(key="kept", value="again"))
    assert keys(database) == {"kept"}


def test_writing_in_a_read_is_a_bug_and_not_a_full_disk(database: Database) -> None:
    with pytest.raises(OperationalError), database.read() as connection:
        connection.execute(insert(MetaRow).values(key="no", value=""))
    put(database, "yes")


HOLD_THE_LOCK = """
import sys
from pathlib import Path
from mmserver.storage.database import open_database
database = open_database(Path(sys.argv[1]))
with database.write():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_write_lock_of_another_process_is_busy_and_reads_go_on(
    database: Database, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    put(database, "before")
    other = start_script(HOLD_THE_LOCK, database.path)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(DatabaseBusy):
        put(database, "during")
    assert keys(database) == {"before"}
    other.communicate("")
    put(database, "after")
    assert keys(database) == {"before", "after"}


def test_the_write_lock_of_another_thread_is_busy(database: Database) -> None:
    with database.write(), pytest.raises(DatabaseBusy):
        put(database, "during")


def test_more_readers_than_connections_are_busy_instead_of_waiting_for_ever(database_path: Path) -> None:
    database = open_database(database_path, n_readers=1, busy_timeout_ms=50)
    with database.read(), pytest.raises(DatabaseBusy):
        keys(database)
    assert keys(database) == set()
    database.close()


COUNT_UP = """
import sys
from pathlib import Path
from sqlalchemy import text
from mmserver.storage.database import open_database
database = open_database(Path(sys.argv[1]), busy_timeout_ms=20000)
database.checkpoint()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    with database.write() as connection:
        value = connection.execute(text("SELECT value FROM meta WHERE key = 'n'")).scalar()
        connection.execute(text("UPDATE meta SET value = :value WHERE key = 'n'"), {"value": str(int(value) + 1)})
database.close()
"""


def test_two_processes_that_read_and_then_write_lose_no_update(
    database: Database, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    put(database, "n", "0")
    version = database.data_version()
    others = [start_script(COUNT_UP, database.path, 100) for _ in range(2)]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    for other in others:
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
    for other in others:
        assert other.communicate()[1] == ""
    with database.read() as connection:
        assert connection.scalar(select(MetaRow.value).where(MetaRow.key == "n")) == "200"
    assert database.data_version() != version


def test_the_data_version_stays_while_nothing_is_committed(database: Database) -> None:
    before = database.data_version()
    keys(database)
    with pytest.raises(ZeroDivisionError), database.write() as connection:
        connection.execute(insert(MetaRow).values(key="no", value=""))
        raise ZeroDivisionError
    assert database.data_version() == before
    put(database, "yes")
    assert database.data_version() != before


def test_the_log_is_checkpointed_when_it_is_large_and_no_reader_needs_it(database_path: Path) -> None:
    database = open_database(database_path, wal_limit_bytes=100_000)
    with database.read() as reader:
        reader.execute(select(MetaRow.key)).all()
        for i in range(30):
            put(database, f"blocked {i}", "x" * 10_000)
        assert not database.checkpoint()
        assert database.wal_size_bytes() > 300_000
    for i in range(30):
        put(database, f"free {i}", "x" * 10_000)
    assert database.wal_size_bytes() < 200_000
    assert database.checkpoint()
    assert database.wal_size_bytes() == 0
    assert len(keys(database)) == 60
    database.close()


def test_ten_thousand_groups_are_written_within_a_second(database: Database, benchmark_s: Callable[..., float]) -> None:
    rows = [
        {
            "sha256": f"{i:064x}",
            "group_key": f"SYM{i}_mid_chg_1m",
            "symbol": f"SYM{i}",
            "return_name": "mid_chg_1m",
            "dim": 10,
            "factors_sha256": "f",
            "detail_sha256": "d",
            "integrity": "unverified",
        }
        for i in range(10_000)
    ]
    with database.write() as connection:
        connection.execute(insert(FactorListRow).values(sha256="f", factors="[]"))
        connection.execute(text("INSERT INTO blobs VALUES ('d', 'raw', 0, '')"))

    def write() -> None:
        with database.write() as connection:
            connection.execute(insert(GroupRow), rows)

    assert benchmark_s(write) < 1.0


@pytest.fixture
def benchmark_s() -> Callable[..., float]:
    """CPU seconds of one call: the machine's other work does not count."""

    def measure(call: Callable[[], None]) -> float:
        before = resource.getrusage(resource.RUSAGE_SELF)
        call()
        after = resource.getrusage(resource.RUSAGE_SELF)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return measure


# --- a full disk ----------------------------------------------------------------------------------------------------------


def fill_up(database: Database) -> set[str]:
    """Write until there is no more space; what was acknowledged."""
    acknowledged: set[str] = set()
    with pytest.raises(DiskFull):
        for i in range(10_000):
            put(database, f"{i}", "x" * 20_000)
            acknowledged.add(f"{i}")
    return acknowledged


def test_a_full_database_keeps_what_it_has_and_recovers_by_itself(database: Database) -> None:
    with database.write() as connection:
        pragma(connection, "max_page_count=300")
    acknowledged = fill_up(database)
    assert acknowledged
    assert keys(database) == acknowledged
    with database.write() as connection:
        pragma(connection, "max_page_count=100000")
    put(database, "after", "x" * 20_000)
    assert keys(database) == acknowledged | {"after"}


def test_a_file_that_may_not_grow_is_a_full_disk(
    database: Database, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    other = start_script(
        """
import resource, sys
from pathlib import Path
from sqlalchemy import text
from mmserver.errors import DiskFull
from mmserver.storage.database import open_database
database = open_database(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
acknowledged = 0
def put():
    global acknowledged
    with database.write() as connection:
        connection.execute(text("INSERT INTO meta VALUES (:key, :value)"), {"key": str(acknowledged), "value": "x" * 20_000})
    acknowledged += 1
try:
    while True:
        put()
except DiskFull:
    print(acknowledged)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
put()
print(acknowledged)
""",
        database.path,
    )
    out, err = other.communicate()
    assert err == ""
    first, second = map(int, out.split())
    assert 5 < first < 30
    assert second == first + 1
    assert keys(database) == {str(i) for i in range(second)}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk, where the kernel lets it")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing_that_was_acknowledged(small_disk: Path, tmp_path: Path) -> None:
    path = small_disk / "state.db"
    upgrade_database(path, tmp_path)
    database = open_database(path)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    acknowledged = fill_up(database)
    assert acknowledged
    assert keys(database) == acknowledged
    ballast.unlink()
    put(database, "after", "x" * 20_000)
    assert keys(database) == acknowledged | {"after"}
    database.close()


def test_a_disk_without_space_for_a_database_is_said_and_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "ballast").write_bytes(b"x" * (1 << 20))
    with pytest.raises(DiskFull):
        upgrade_database(small_disk / "state.db", tmp_path)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


# --- damage ---------------------------------------------------------------------------------------------------------------


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def truncate(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size_bytes)


def use_all_of(path: Path) -> None:
    """What a start does, and the check that is run from time to time."""
    database = open_database(path)
    try:
        check_schema(database)
        database.quick_check()
    finally:
        database.close()


@pytest.fixture
def full_database_path(database_path: Path, fill_every_table: Callable[[Connection], None]) -> Path:
    database = open_database(database_path)
    with database.write() as connection:
        fill_every_table(connection)
        rows = [{"group_id": 1, "name": f"{i}", "role": "x", "size_bytes": 1} for i in range(2000)]
        sha256 = connection.execute(text("SELECT min(sha256) FROM blobs")).scalar()
        connection.execute(insert(GroupFileRow), [row | {"sha256": sha256} for row in rows])
    database.close()
    return database_path


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: truncate(path, 0), id="truncated-to-nothing"),
        pytest.param(lambda path: truncate(path, 10), id="truncated-in-its-header"),
        pytest.param(lambda path: truncate(path, path.stat().st_size // 2), id="truncated-to-half"),
        pytest.param(lambda path: truncate(path, path.stat().st_size - 4096), id="last-page-missing"),
        pytest.param(lambda path: overwrite(path, 0, b"not a database at all"), id="header-overwritten"),
        pytest.param(lambda path: overwrite(path, 100, b"\xff" * 400), id="schema-page-overwritten"),
        pytest.param(lambda path: overwrite(path, path.stat().st_size // 8192 * 4096, bytes(4096)), id="page-zeroed"),
        pytest.param(lambda path: path.unlink(), id="deleted"),
    ],
)
def test_damage_is_found_and_nothing_is_written_over_it(
    full_database_path: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = full_database_path
    snapshots_dir = tmp_path / "data" / "snapshots"
    (snapshots_dir / f"20261120T140322123456Z-{'0' * 64}.snapshot").write_bytes(b"")
    damage(path)
    bytes_before = path.read_bytes() if path.exists() else None
    with pytest.raises(DatabaseCorrupt):
        use_all_of(path)
    if bytes_before is None:
        with pytest.raises(DatabaseCorrupt):
            upgrade_database(path, snapshots_dir)
    assert (path.read_bytes() if path.exists() else None) == bytes_before


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE meta",
        "DELETE FROM meta WHERE key = 'generation_id'",
        "DROP TABLE servings",
        "DROP TABLE alembic_version",
        "PRAGMA application_id = 0",
    ],
)
def test_a_database_without_its_marks_or_tables_is_not_taken_for_a_new_one(database_path: Path, statement: str) -> None:
    raw = connect(database_path, "rw")
    raw.execute(statement)
    raw.close()
    bytes_before = database_path.read_bytes()
    with pytest.raises(DatabaseCorrupt):
        use_all_of(database_path)
    with pytest.raises(DatabaseCorrupt):
        upgrade_database(database_path, database_path.parent / "snapshots")
    assert database_path.read_bytes() == bytes_before


def test_the_database_of_another_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    raw = sqlite_module().connect(path)
    raw.execute("CREATE TABLE notes (text)")
    raw.close()
    bytes_before = path.read_bytes()
    with pytest.raises(DatabaseCorrupt, match="not a database of mmserver"):
        open_database(path)
    assert path.read_bytes() == bytes_before
    assert list(tmp_path.iterdir()) == [path]


def test_after_damage_was_met_nothing_more_is_written(full_database_path: Path) -> None:
    # The root page of one table: the rest of the database goes on answering.
    raw = connect(full_database_path, "rw")
    root = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'refusals'").fetchone()[0]
    raw.close()
    overwrite(full_database_path, (root - 1) * 4096, b"\x77" * 4096)
    database = open_database(full_database_path)
    put(database, "before")
    with pytest.raises(DatabaseCorrupt), database.read() as connection:
        connection.execute(text("SELECT * FROM refusals")).all()
    with pytest.raises(WritesStopped):
        put(database, "after")
    assert "before" in keys(database)
    database.close()


# --- read-only ------------------------------------------------------------------------------------------------------------


def test_a_read_only_database_follows_the_live_one_and_refuses_to_write(database: Database) -> None:
    reading = open_database(database.path, read_only=True)
    put(database, "seen")
    assert keys(reading) == {"seen"}
    with pytest.raises(ReadOnly):
        put(reading, "no")
    version = reading.data_version()
    put(database, "seen too")
    assert reading.data_version() != version
    assert keys(reading) == {"seen", "seen too"}
    reading.close()
