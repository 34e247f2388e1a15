"""The schema: made, migrated and refused without losing a row."""

import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, StaticPool, create_engine, inspect, select, text

from mmserver.errors import DatabaseCorrupt, SchemaOutdated, SchemaTooNew, SnapshotInvalid
from mmserver.storage import revision, schema
from mmserver.storage.audit import record_audit, verify_audit
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import alembic_config, check_schema, migrate, upgrade_database
from mmserver.storage.snapshots import list_snapshots, verify_snapshot
from mmserver.storage.sqlite import connect, sqlite_module
from mmserver.storage.tables import Row


def objects(path: Path) -> dict[str, tuple[str, ...]]:
    """The DDL of each table and index; constraints in any order."""
    raw = connect(path, "ro")
    try:
        rows = raw.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    finally:
        raw.close()
    statements = {name: " ".join(sql.split()).removesuffix(" )").replace(f'"{name}"', name) for name, sql in rows}
    pieces = {name: sql.replace(" ,", ",").split(", CONSTRAINT ") for name, sql in statements.items()}
    return {name: (first, *sorted(rest)) for name, (first, *rest) in pieces.items()}


@pytest.fixture
def migrated_path(tmp_path: Path) -> Path:
    """A database whose tables were made by the migrations alone."""
    path = tmp_path / "migrated.db"
    raw = sqlite_module().connect(path)
    config = alembic_config()
    engine = create_engine("sqlite://", creator=lambda: raw, module=sqlite_module(), poolclass=StaticPool)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    engine.dispose()
    return path


def test_the_migrations_make_exactly_the_tables_of_a_new_database(migrated_path: Path, database_path: Path) -> None:
    assert objects(migrated_path) == objects(database_path)


def test_a_new_database_is_what_the_table_classes_say(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Row.metadata) == []


def test_the_head_constant_is_the_head_of_the_migrations() -> None:
    script = ScriptDirectory.from_config(alembic_config())
    assert script.get_heads() == [revision.HEAD]
    assert all(len(found.revision) == 4 and found.revision.isdecimal() for found in script.walk_revisions())


def test_a_start_with_a_current_schema_does_not_import_alembic(database_path: Path, data_dir: DataDir) -> None:
    script = """
import sys
from pathlib import Path
from mmserver.storage.database import open_database
from mmserver.storage.schema import check_schema, upgrade_database
upgrade_database(Path(sys.argv[1]), Path(sys.argv[2]))
database = open_database(Path(sys.argv[1]))
check_schema(database)
database.close()
heavy = {"alembic", "numpy", "xgboost", "pandas", "scipy", "sklearn", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script, database_path, data_dir.snapshots_dir], check=True)


def test_a_new_database_is_made_whole(data_dir: DataDir, now: datetime) -> None:
    done = upgrade_database(data_dir.database_path, data_dir.snapshots_dir, now=now)
    assert (done.found, done.revision, done.snapshot) == (None, revision.HEAD, None)
    assert sorted(path.name for path in data_dir.path.iterdir()) == ["snapshots", "state.db"]
    assert data_dir.database_path.stat().st_mode & 0o077 == 0


def test_two_new_databases_have_different_generations(tmp_path: Path, now: datetime) -> None:
    generations = set()
    for name in ("a.db", "b.db"):
        upgrade_database(tmp_path / name, tmp_path, now=now)
        database = open_database(tmp_path / name)
        generations.add(check_schema(database).generation_id)
        database.close()
    assert len(generations) == 2


def test_making_a_database_does_not_replace_one_that_another_process_made_first(
    database_path: Path, now: datetime
) -> None:
    bytes_before = database_path.read_bytes()
    schema.create_database(database_path, now)
    assert database_path.read_bytes() == bytes_before


def test_a_log_without_its_database_is_not_replaced_by_an_empty_database(data_dir: DataDir) -> None:
    Path(f"{data_dir.database_path}-wal").write_bytes(b"commits")
    with pytest.raises(DatabaseCorrupt):
        upgrade_database(data_dir.database_path, data_dir.snapshots_dir)
    assert not data_dir.database_path.exists()


@pytest.mark.parametrize("found", ["0008", "9999", "abc", "00001"])
def test_a_newer_schema_is_refused_and_not_a_byte_is_changed(
    database_path: Path, data_dir: DataDir, found: str
) -> None:
    raw = connect(database_path, "rw")
    raw.execute("UPDATE alembic_version SET version_num = ?", (found,))
    raw.close()
    bytes_before = database_path.read_bytes()
    with pytest.raises(SchemaTooNew, match=found):
        upgrade_database(database_path, data_dir.snapshots_dir)
    assert database_path.read_bytes() == bytes_before
    assert list(data_dir.snapshots_dir.iterdir()) == []


def test_groups_of_the_first_schema_keep_their_rows_and_never_share_an_id(full: Database) -> None:
    with full.write() as connection:
        connection.execute(text("UPDATE groups SET model_sha256 = NULL"))
    before = content(full)
    migrate(full, lambda config: command.downgrade(config, "0001"))
    with full.write() as connection:
        connection.execute(text("INSERT INTO groups SELECT 99, 'gone', group_key, symbol, return_name, dim, train_samples,"
                                " ic_mean, factors_sha256, detail_sha256, payload_sha256, manifest_sha256,"
                                " no_model_reason, integrity FROM groups WHERE id = 1"))  # fmt: skip
        connection.execute(text("DELETE FROM groups WHERE id = 99"))
    migrate(full)
    made_since = ("registered_versions", "stages", "promotions", "optimizations", "used_labels", "experiments",
                  "experiment_phases", "experiment_evaluations", "api_keys")  # fmt: skip
    assert content(full) == {**before, **{name: [] for name in made_since}}
    with full.write() as connection:
        row = dict(connection.execute(text("SELECT * FROM groups WHERE id = 1")).one()._mapping)
        del row["id"]
        table = Row.metadata.tables["groups"]
        new_id = connection.execute(table.insert().values(**{**row, "sha256": "new"}).returning(table.c.id)).scalar()
    assert new_id == 100


def test_labels_that_were_registered_before_are_taken_over_as_used(full: Database) -> None:
    migrate(full, lambda config: command.downgrade(config, "0003"))
    migrate(full)
    assert content(full)["used_labels"] == [(f"name {i}", f"label {i}", f"content_sha256 {i}") for i in range(3)]


def test_rows_from_before_the_chain_are_chained_as_they_are_and_new_ones_follow(full: Database) -> None:
    before = content(full)["audit"]
    migrate(full, lambda config: command.downgrade(config, "0006"))
    with full.write() as connection:
        assert "hash" not in {column["name"] for column in inspect(connection).get_columns("audit")}
        # rows of that time could be deleted; what is left is what there is to chain
        connection.execute(text("DELETE FROM audit WHERE id = 2"))
        connection.execute(text("INSERT INTO audit VALUES (9, 'at', 'é\n', 'action', 'target', '{}', NULL)"))
        connection.execute(text("DELETE FROM audit WHERE id = 9"))
    migrate(full)
    assert [row[:-1] for row in content(full)["audit"]] == [before[0][:-1], before[2][:-1]]
    assert (verify_audit(full).reason, verify_audit(full).n_rows) == (None, 2)
    with full.write() as connection:
        record_audit(connection, at="at", actor="a", action="b", target="c", detail={}, request_id=None)
    assert (verify_audit(full).reason, verify_audit(full).n_rows) == (None, 3)


# --- a later migration ----------------------------------------------------------------------------------------------------

REBUILD_MODELS = '''
"""Rebuild a table that others refer to with ON DELETE CASCADE: the batch mode drops the old one."""
import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

def upgrade():
    with op.batch_alter_table("models", recreate="always") as batch:
        batch.add_column(sa.Column("note", sa.Text(), nullable=True))
    {then}

def downgrade():
    with op.batch_alter_table("models", recreate="always") as batch:
        batch.drop_column("note")
'''


@pytest.fixture
def later(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a directory with a second migration, which ends with the statement given."""

    def make(then: str = "pass") -> Path:
        directory = tmp_path / "later 100%"
        directory.mkdir()
        (directory / "0008_later.py").write_text(REBUILD_MODELS.format(then=then))
        return directory

    return make


@pytest.fixture
def full(database: Database, fill_every_table: Callable[[Connection], None]) -> Database:
    with database.write() as connection:
        fill_every_table(connection)
    return database


def content(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.read() as connection:
        return {
            name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for name, table in Row.metadata.tables.items()
        }


def test_up_down_and_up_again_keeps_every_row_of_every_table(full: Database, later: Callable[[], Path]) -> None:
    version_dirs = [later()]
    before, objects_before = content(full), objects(full.path)
    assert all(len(rows) >= 3 for rows in before.values())
    for _ in range(2):
        migrate(full, version_dirs=version_dirs)
        assert content(full) == before
        with full.read() as connection:
            assert connection.execute(text("SELECT count(note) FROM models")).scalar() == 0
        migrate(full, lambda config: command.downgrade(config, "0007"), version_dirs)
        assert content(full) == before
    assert check_schema(full).revision == "0007"
    assert set(objects(full.path)) == set(objects_before)


def test_with_foreign_keys_enforced_the_same_migration_would_delete_rows(
    full: Database, later: Callable[[], Path]
) -> None:
    """The trap that `rebuild` is there for: if this fails, it is needed no longer."""
    config = alembic_config([later()])
    with full.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    assert content(full)["versions"] == []


@pytest.mark.parametrize(
    ("then", "error"),
    [
        pytest.param('raise RuntimeError("half-way")', RuntimeError, id="raises"),
        pytest.param('op.execute("DELETE FROM blobs")', DatabaseCorrupt, id="leaves-references-to-nothing"),
    ],
)
def test_a_migration_that_fails_changes_nothing(
    full: Database,
    later: Callable[[str], Path],
    dump: Callable[[Path], list[str]],
    then: str,
    error: type[Exception],
) -> None:
    before = dump(full.path)
    with pytest.raises(error):
        migrate(full, version_dirs=[later(then)])
    assert dump(full.path) == before
    with full.write() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@pytest.fixture
def a_later_release(monkeypatch: pytest.MonkeyPatch, later: Callable[[], Path], full: Database) -> Database:
    """This mmserver, one migration later, and a database that the earlier one left full."""
    directory = later()
    monkeypatch.setattr(revision, "HEAD", "0008")
    monkeypatch.setattr(schema, "HEAD", "0008")
    monkeypatch.setattr(schema, "migrate", lambda database: migrate(database, version_dirs=[directory]))
    return full


def test_an_upgrade_of_an_older_database_takes_a_verified_snapshot_first(
    a_later_release: Database, data_dir: DataDir, now: datetime
) -> None:
    full = a_later_release
    before = content(full)
    with pytest.raises(SchemaOutdated, match="mmserver db upgrade"):
        check_schema(full)
    done = upgrade_database(full, data_dir.snapshots_dir, now=now)
    assert (done.found, done.revision) == ("0007", "0008")
    assert done.snapshot is not None
    assert [done.snapshot] == list_snapshots(data_dir.snapshots_dir)
    assert verify_snapshot(done.snapshot.path).schema_revision == "0007"
    assert content(full) == before
    assert upgrade_database(full, data_dir.snapshots_dir, now=now).snapshot is None


def test_no_upgrade_without_a_snapshot(
    a_later_release: Database, tmp_path: Path, dump: Callable[[Path], list[str]]
) -> None:
    full = a_later_release
    before = dump(full.path)
    not_a_directory = tmp_path / "file"
    not_a_directory.write_bytes(b"")
    with pytest.raises(SnapshotInvalid):
        upgrade_database(full, not_a_directory)
    assert dump(full.path) == before
