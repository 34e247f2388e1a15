"""Creating, checking and upgrading the schema. Alembic is loaded only when there is something to migrate."""

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, inspect
from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from mmserver.errors import DatabaseCorrupt, SchemaOutdated
from mmserver.storage.audit_chain import FIRST_HEAD, HEAD_KEY, TRIGGERS
from mmserver.storage.database import Database, open_database
from mmserver.storage.files import disk_errors, fsync_directory
from mmserver.storage.revision import HEAD, check_revision
from mmserver.storage.snapshots import SnapshotInfo, create_snapshot, snapshot_paths
from mmserver.storage.sqlite import APPLICATION_ID, connect, error_from_sqlite, sqlite_module
from mmserver.storage.tables import Row
from mmserver.storage.times import text_from_datetime

if TYPE_CHECKING:
    from alembic.config import Config


@dataclass(frozen=True, slots=True)
class SchemaState:
    """What schema a database has; `generation_id` is new in every database that was created or restored."""

    revision: str
    generation_id: str


@dataclass(frozen=True, slots=True)
class SchemaUpgrade:
    """What `upgrade_database` did: `found` is None for a database that it created, `snapshot` is from before a migration."""

    found: str | None
    revision: str
    snapshot: SnapshotInfo | None


def check_schema(database: Database) -> SchemaState:
    """The schema, if it is the one that this mmserver works with.

    Raises:
        SchemaTooNew, SchemaOutdated: it is not.
        DatabaseCorrupt: tables are missing.
    """
    with database.read() as connection:
        tables = set(inspect(connection).get_table_names())
        revision = _revision(connection) if "alembic_version" in tables else None
    if revision is None:
        raise DatabaseCorrupt(path=str(database.path), reason="it does not say which schema it has")
    check_revision(revision)
    missing = sorted(set(Row.metadata.tables) - tables)
    if missing:
        raise DatabaseCorrupt(path=str(database.path), reason=f"tables are missing: {', '.join(missing)}")
    return SchemaState(revision, database.generation_id)


def upgrade_database(
    database_or_path: Database | Path, snapshots_dir: Path, *, now: datetime | None = None
) -> SchemaUpgrade:
    """Bring a database to this mmserver's schema: create it where there is none, migrate an older one, else do nothing.

    A migration is one transaction, and a verified snapshot of what was there before comes first.

    Raises:
        SchemaTooNew: a newer mmserver wrote it; nothing was changed.
        DatabaseCorrupt: the file is damaged, or missing where there was one; nothing was changed.
        DiskFull, DatabaseBusy, SnapshotInvalid: nothing was changed.
    """
    now = now or datetime.now(UTC)
    if isinstance(database_or_path, Database):
        return _upgrade_open_database(database_or_path, snapshots_dir, now)
    path = database_or_path
    if not path.exists():
        _check_that_none_was_lost(path, snapshots_dir)
        create_database(path, now)
        return SchemaUpgrade(found=None, revision=HEAD, snapshot=None)
    database = open_database(path)
    try:
        return _upgrade_open_database(database, snapshots_dir, now)
    finally:
        database.close()


def create_database(path: Path, now: datetime) -> None:
    """Make an empty database that is whole from the moment when it has its name; one that is there already stays.

    The tables come from `tables.py`, not from the migrations (a test proves them equal): this needs no Alembic.
    """
    building = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with disk_errors():
            os.close(os.open(building, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            _fill(building, now)
            with suppress(FileExistsError):  # another process was quicker
                os.link(building, path)
            fsync_directory(path.parent)
    finally:
        for leftover in path.parent.glob(f"{building.name}*"):
            leftover.unlink()


def migrate(
    database: Database, run: Callable[["Config"], None] | None = None, version_dirs: Sequence[Path] = ()
) -> None:
    """Run Alembic in one transaction, and check all foreign keys before its commit. Whatever is raised, nothing was changed.

    Args:
        run: the Alembic command; an upgrade to the head if not given
        version_dirs: further directories with revisions, beside mmserver's own
    """
    from alembic import command

    config = alembic_config(version_dirs)
    with database.rebuild() as connection:
        config.attributes["connection"] = connection
        if run is None:
            command.upgrade(config, "head")
        else:
            run(config)


def alembic_config(version_dirs: Sequence[Path] = ()) -> "Config":
    """What Alembic needs to know; there is no alembic.ini, so that it works from an installed package."""
    from alembic.config import Config

    scripts = Path(import_module("mmserver.migrations").__path__[0])
    config = Config()
    config.set_main_option("script_location", _escaped(scripts))
    if version_dirs:
        config.set_main_option("path_separator", "newline")
        locations = (scripts / "versions", *version_dirs)
        config.set_main_option("version_locations", "\n".join(_escaped(path) for path in locations))
    return config


def _upgrade_open_database(database: Database, snapshots_dir: Path, now: datetime) -> SchemaUpgrade:
    try:
        return SchemaUpgrade(found=HEAD, revision=check_schema(database).revision, snapshot=None)
    except SchemaOutdated as outdated:
        found = str(outdated.values["found"])
    snapshot = create_snapshot(database, snapshots_dir, now)
    migrate(database)
    return SchemaUpgrade(found=found, revision=check_schema(database).revision, snapshot=snapshot)


def _check_that_none_was_lost(path: Path, snapshots_dir: Path) -> None:
    """A database that is gone must not come back as an empty one that looks healthy."""
    if path.with_name(path.name + "-wal").exists():
        raise DatabaseCorrupt(path=str(path), reason="the file is missing, but its write-ahead log is there")
    if next(path.parent.glob(f"{path.name}.broken-*"), None) or snapshot_paths(snapshots_dir):
        raise DatabaseCorrupt(path=str(path), reason="the file is missing, but there are copies of it")


def _fill(path: Path, now: datetime) -> None:
    """Make everything in an empty file; all of it is in the file itself afterwards, not in a write-ahead log."""
    facts = {
        "generation_id": secrets.token_hex(16),
        "created_at": text_from_datetime(now),
        HEAD_KEY: FIRST_HEAD.text(),
    }
    connection = None
    try:
        connection = connect(path, "rw")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _creating_statements():
            connection.execute(statement)
        connection.execute("INSERT INTO alembic_version VALUES (?)", (HEAD,))
        connection.executemany("INSERT INTO meta (key, value) VALUES (?, ?)", facts.items())
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite_module().Error as error:
        raise (error_from_sqlite(error, path) or error) from error
    finally:
        if connection is not None:
            connection.close()


def _creating_statements() -> Iterator[str]:
    sqlite = dialect()
    for table in (*Row.metadata.sorted_tables, _alembic_version()):
        yield str(CreateTable(table).compile(dialect=sqlite))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            yield str(CreateIndex(index).compile(dialect=sqlite))
    yield from TRIGGERS.values()


def _alembic_version() -> Table:
    """The table in which Alembic keeps the revision, as Alembic itself would make it."""
    column = Column("version_num", String(32), nullable=False)
    return Table("alembic_version", MetaData(), column, PrimaryKeyConstraint("version_num", name="alembic_version_pkc"))


def _revision(connection: Connection) -> str | None:
    rows = connection.exec_driver_sql("SELECT version_num FROM alembic_version").fetchall()
    return str(rows[0][0]) if len(rows) == 1 else None


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")
