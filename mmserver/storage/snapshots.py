"""Snapshots: the whole state as one file that counts only after another process has checked all of it; and the way back.

A snapshot is a database without side files. Its name holds its time and its SHA-256; renamed, it is still whole, but then
only its own content can be checked. The live database is never opened here: SQLite makes the copy.
"""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, update

from mmserver.errors import SchemaOutdated, SnapshotInvalid, SnapshotNotFound
from mmserver.storage.audit import record_audit
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import Database, open_database
from mmserver.storage.files import disk_errors, fsync_directory, fsync_file, sha256_of_file
from mmserver.storage.revision import check_revision
from mmserver.storage.sqlite import connect, error_from_sqlite, sqlite_module
from mmserver.storage.tables import LeaseRow, MetaRow
from mmserver.storage.times import datetime_from_text, text_from_datetime
from mmserver.storage.verify import facts_of_database

_NAME = re.compile(r"(\d{8}T\d{12}Z)-([0-9a-f]{64})\.snapshot", re.ASCII)
_STAMP = "%Y%m%dT%H%M%S%fZ"


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What is in a snapshot file. `damage`: why it cannot be used, as far as a listing sees that; the rest is then empty."""

    path: Path
    created_at: datetime
    size_bytes: int
    sha256: str
    generation_id: str
    schema_revision: str
    row_counts: dict[str, int]
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that is done; `broken_path` is where the database is that was there before."""

    snapshot: SnapshotInfo
    generation_id: str
    broken_path: Path | None


def _go_on(step: str) -> None:
    """The hook of the tests that kill the process between two steps."""


def create_snapshot(
    database: Database, directory: Path, now: datetime, *, at: Callable[[str], None] = _go_on
) -> SnapshotInfo:
    """Copy the state while it is used, have the copy checked by another process, and only then give it a snapshot's name.

    Raises:
        SnapshotInvalid: the copy did not pass its check (the database has damage that was not seen before), or the directory
            cannot be written to.
        DiskFull, DatabaseCorrupt, DatabaseBusy: there is no new snapshot; older ones were not touched.
    """
    stamp = now.astimezone(UTC).strftime(_STAMP)
    building = directory / f"{stamp}-{secrets.token_hex(8)}.tmp"
    try:
        with disk_errors():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(building, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            at("created")
            database.vacuum_into(building)
            at("copied")
            _mark_as_snapshot(building, now)
            fsync_file(building)
            at("synced")
            info = _info_from_facts(building, _facts_by_another_process(building))
            path = directory / f"{stamp}-{info.sha256}.snapshot"
            at("checked")
            building.rename(path)
            at("renamed")
            fsync_directory(directory)
    except OSError as error:
        raise SnapshotInvalid(path=str(directory), reason=error.strerror or str(error)) from error
    finally:
        for leftover in directory.glob(f"{building.name}*"):
            leftover.unlink()
    return replace(info, path=path)


def verify_snapshot(path: Path) -> SnapshotInfo:
    """Check a snapshot from end to end, every blob's hash included, in another process.

    Raises:
        SnapshotNotFound: there is no such file.
        SnapshotInvalid: what is wrong with it.
    """
    if not path.is_file():
        raise SnapshotNotFound(path=str(path))
    wal = Path(f"{path}-wal")
    if wal.exists() and wal.stat().st_size > 0:
        raise SnapshotInvalid(
            path=str(path), reason="a write-ahead log is beside it: this is a database, not a snapshot"
        )
    info = _info_from_facts(path, _facts_by_another_process(path))
    named = _NAME.fullmatch(path.name)
    if named and named[2] != info.sha256:
        raise SnapshotInvalid(path=str(path), reason="its bytes are not the ones that it was made with")
    return info


def snapshot_paths(directory: Path) -> list[Path]:
    """The files in a directory that have a snapshot's name, newest first."""
    return sorted((path for path in directory.glob("*.snapshot") if _NAME.fullmatch(path.name)), reverse=True)


def list_snapshots(directory: Path) -> list[SnapshotInfo]:
    """The snapshots in a directory, newest first; each is looked at, not checked: that is `verify_snapshot`."""
    return [_glance(path) for path in snapshot_paths(directory)]


def rotate_snapshots(directory: Path, keep: int) -> list[Path]:
    """Delete what is older than the newest `keep` snapshots that are not visibly damaged; at least one stays.

    Returns:
        the files deleted
    """
    usable = [info.path for info in list_snapshots(directory) if info.damage is None]
    if len(usable) < max(keep, 1):
        return []
    oldest_kept = usable[max(keep, 1) - 1]
    outdated = [path for path in snapshot_paths(directory) if path.name < oldest_kept.name]
    for path in outdated:
        path.unlink()
    return outdated


def restore_snapshot(file: Path, data_dir: DataDir, now: datetime, *, at: Callable[[str], None] = _go_on) -> Restored:
    """Put a snapshot in the place of the database, which is kept beside it with its side files, bit for bit.

    Takes the data directory's lock itself. Killed half-way, it is as if it had not begun, after `remove_leftovers`.

    Raises:
        SnapshotNotFound, SnapshotInvalid, SchemaTooNew: the file cannot be used; nothing was changed.
        DataDirLocked: a server is running; nothing was changed.
        DiskFull: there is no space for a second copy; nothing was changed.
    """
    stamp = now.astimezone(UTC).strftime(_STAMP)
    building, broken = data_dir.restore_paths(stamp)
    with data_dir.lock(), disk_errors():
        data_dir.remove_leftovers()
        snapshot = verify_snapshot(file)
        with suppress(SchemaOutdated):  # the next start upgrades it
            check_revision(snapshot.schema_revision)
        try:
            generation_id = _build_from(snapshot, building, now, at)
            data_dir.move_database(data_dir.database_path, broken)
            at("moved_aside")
            building.rename(data_dir.database_path)
            at("replaced")
            fsync_directory(data_dir.path)
        finally:
            data_dir.remove_leftovers()
    return Restored(snapshot, generation_id, broken if broken.exists() else None)


def _build_from(snapshot: SnapshotInfo, building: Path, now: datetime, at: Callable[[str], None]) -> str:
    """Make the restored database: a new generation of the snapshot's, with what belonged to other processes taken out."""
    shutil.copyfile(snapshot.path, building)
    building.chmod(0o600)
    at("copied")
    if sha256_of_file(building) != snapshot.sha256:
        raise SnapshotInvalid(path=str(snapshot.path), reason="its bytes changed while they were copied")
    generation_id = secrets.token_hex(16)
    database = open_database(building)
    try:
        with database.write() as connection:
            connection.execute(delete(MetaRow).where(MetaRow.key == "snapshot_created_at"))
            connection.execute(update(MetaRow).where(MetaRow.key == "generation_id").values(value=generation_id))
            connection.execute(update(LeaseRow).values(expires_at=0.0))  # by the clock of another boot or machine
            record_audit(
                connection,
                at=text_from_datetime(now),
                actor="mmserver",
                action="database.restored",
                target=snapshot.path.name,
                detail={"sha256": snapshot.sha256, "created_at": text_from_datetime(snapshot.created_at)},
                request_id=None,
            )
        database.checkpoint()
    finally:
        database.close()
    fsync_file(building)
    at("built")
    return generation_id


def _mark_as_snapshot(building: Path, now: datetime) -> None:
    try:
        connection = connect(building, "alone")
        try:
            row = ("snapshot_created_at", text_from_datetime(now))
            connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", row)
        finally:
            connection.close()
    except sqlite_module().Error as error:
        raise (error_from_sqlite(error, building) or error) from error


def _facts_by_another_process(path: Path) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "mmserver.storage.verify", str(path.absolute())]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603 (our own module)
    try:
        facts: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise SnapshotInvalid(path=str(path), reason=f"the process that checks it died ({how})") from error
    if "reason" in facts:
        raise SnapshotInvalid(path=str(path), reason=facts["reason"])
    return facts


def _glance(path: Path) -> SnapshotInfo:
    stamp, sha256 = path.stem.split("-")
    size_bytes = path.stat().st_size
    created_at = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
    try:
        connection = connect(path, "immutable")
        try:
            facts = facts_of_database(path, connection)
        finally:
            connection.close()
    except (SnapshotInvalid, sqlite_module().Error) as error:
        return SnapshotInfo(path, created_at, size_bytes, sha256, "", "", {}, damage=str(error))
    return replace(_info_from_facts(path, facts | {"sha256": sha256, "size_bytes": size_bytes}), created_at=created_at)


def _info_from_facts(path: Path, facts: dict[str, Any]) -> SnapshotInfo:
    created_at = facts["created_at"]
    return SnapshotInfo(
        path=path,
        created_at=datetime_from_text(created_at) if created_at else datetime.fromtimestamp(path.stat().st_mtime, UTC),
        size_bytes=facts["size_bytes"],
        sha256=facts["sha256"],
        generation_id=facts["generation_id"],
        schema_revision=facts["schema_revision"],
        row_counts=facts["row_counts"],
    )
