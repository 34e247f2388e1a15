"""`mmserver db`: bring the database to this mmserver's schema, and check that it is whole."""

from datetime import UTC, datetime

import click

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json
from mmserver.errors import DatabaseNotFound
from mmserver.settings import Settings
from mmserver.storage.data_dir import DataDir


@click.group()
def db() -> None:
    """The database: upgrade, check."""


@db.command()
@json_option
@with_settings()
def upgrade(settings: Settings, as_json: bool) -> None:
    """Create the database, or migrate an older one after a snapshot of it; no server may be running.

    A server does the same when it starts.
    """
    from mmserver.storage.schema import upgrade_database

    data_dir = DataDir(settings.data_dir)
    data_dir.create()
    with data_dir.lock():
        data_dir.remove_leftovers()
        done = upgrade_database(data_dir.database_path, data_dir.snapshots_dir, now=datetime.now(UTC))
    snapshot = done.snapshot.path if done.snapshot else None
    if as_json:
        print_json({"found": done.found, "revision": done.revision, "snapshot": snapshot})
    elif done.found is None:
        click.echo(f"created {data_dir.database_path} with schema {done.revision}")
    elif done.found == done.revision:
        click.echo(f"schema {done.revision} is up to date")
    else:
        click.echo(f"upgraded from schema {done.found} to {done.revision}; before that: {snapshot}")


@db.command()
@json_option
@with_settings()
def check(settings: Settings, as_json: bool) -> None:
    """Read every page of the database and check its schema; also while a server runs."""
    from mmserver.storage.database import open_database
    from mmserver.storage.schema import check_schema

    path = existing_database(settings).database_path
    database = open_database(path, read_only=True, n_readers=1)
    try:
        database.quick_check()
        state = check_schema(database)
    finally:
        database.close()
    if as_json:
        print_json({"path": path, "revision": state.revision, "generation_id": state.generation_id})
    else:
        click.echo(f"{path} is whole and has schema {state.revision}")


def existing_database(settings: Settings) -> DataDir:
    """The data directory, which has a database.

    Raises:
        DatabaseNotFound: it has none.
    """
    data_dir = DataDir(settings.data_dir)
    if not data_dir.database_path.exists():
        raise DatabaseNotFound(data_dir=str(data_dir.path))
    return data_dir
