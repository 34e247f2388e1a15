"""`mmserver snapshot`: backups of the whole state, each checked by another process before it counts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mmserver.cli.db import existing_database
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows
from mmserver.settings import Settings
from mmserver.storage.data_dir import DataDir

COLUMNS = ("path", "created_at", "size_bytes", "schema_revision", "n_models", "n_versions", "damage")

_directory = click.option(
    "--directory", type=click.Path(path_type=Path), help="Instead of `snapshots` in the data directory."
)
_file = click.argument("file", type=click.Path(path_type=Path))


@click.group()
def snapshot() -> None:
    """Backups of the whole state: create, list, verify, restore."""


@snapshot.command()
@_directory
@json_option
@with_settings()
def create(settings: Settings, directory: Path | None, as_json: bool) -> None:
    """Write a snapshot, check all of it, and print its path; also while a server runs."""
    from mmserver.storage.database import open_database
    from mmserver.storage.snapshots import create_snapshot

    data_dir = existing_database(settings)
    database = open_database(data_dir.database_path, read_only=True, n_readers=1)
    try:
        made = create_snapshot(database, directory or data_dir.snapshots_dir, datetime.now(UTC))
    finally:
        database.close()
    _print_one(made, as_json, str(made.path))


@snapshot.command(name="list")
@_directory
@json_option
@with_settings()
def list_command(settings: Settings, directory: Path | None, as_json: bool) -> None:
    """List the snapshots, newest first; each is looked at, `verify` checks it."""
    from mmserver.storage.snapshots import list_snapshots

    found = list_snapshots(directory or DataDir(settings.data_dir).snapshots_dir)
    print_rows(map(_row, found), COLUMNS, as_json=as_json)


@snapshot.command()
@_file
@json_option
@with_settings()
def verify(settings: Settings, file: Path, as_json: bool) -> None:
    """Check a snapshot from end to end, every blob's hash included."""
    from mmserver.storage.snapshots import verify_snapshot

    found = verify_snapshot(file)
    _print_one(found, as_json, f"{file} is whole: {found.size_bytes} bytes of {found.created_at:%Y-%m-%d %H:%M:%S} UTC")


@snapshot.command()
@_file
@json_option
@with_settings()
def restore(settings: Settings, file: Path, as_json: bool) -> None:
    """Put a snapshot in the place of the database, which is kept beside it; no server may be running."""
    from mmserver.storage.snapshots import restore_snapshot

    data_dir = DataDir(settings.data_dir)
    data_dir.create()
    done = restore_snapshot(file, data_dir, datetime.now(UTC))
    if as_json:
        print_json({**_row(done.snapshot), "generation_id": done.generation_id, "broken_path": done.broken_path})
        return
    click.echo(f"restored {data_dir.database_path} from {file}")
    if done.broken_path is not None:
        click.echo(f"the database that was there is {done.broken_path}")


def _print_one(info: Any, as_json: bool, line: str) -> None:
    if as_json:
        print_json(_row(info))
    else:
        click.echo(line)


def _row(info: Any) -> dict[str, Any]:
    counts = {"n_models": info.row_counts.get("models"), "n_versions": info.row_counts.get("versions")}
    return {**{name: getattr(info, name) for name in COLUMNS if not name.startswith("n_")}, **counts}
