"""`mmserver models`: watched models from the command line; works beside a running server, which follows within a second."""

import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows, shown
from mmserver.settings import Settings

MODEL_COLUMNS = (
    "model_name", "version", "status", "symbol_count", "group_count", "factor_count", "refreshed_at", "root_path", "error",
)  # fmt: skip
VERSION_COLUMNS = ("version", "created_at", "reason", "added", "removed", "updated", "is_serving")


@click.group()
def models() -> None:
    """Watched models: directories of artifacts that are parsed, versioned and served."""


@models.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@with_settings("plugins_dir")
@json_option
def add(settings: Settings, name: str, directory: Path, as_json: bool) -> None:
    """Read DIRECTORY and serve what is in it as NAME, from now on watched."""
    from mmserver.catalog.opening import open_store
    from mmserver.catalog.registering import register_model

    with open_store(settings, owns_data_dir=False) as store, _Progress(f"reading {directory}") as progress:
        model = register_model(store, name, str(directory.absolute()), _actor(), progress=progress)
        _print_models([model], as_json=as_json)


@models.command(name="list")
@with_settings()
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """Show every model."""
    from mmserver.catalog.opening import open_store

    with open_store(settings, owns_data_dir=False) as store:
        _print_models(store.catalog.models.values(), as_json=as_json)


@models.command()
@click.argument("name")
@click.option("--accept-vanished", is_flag=True, help="Files that are missing are meant to be gone.")
@with_settings("plugins_dir")
@json_option
def refresh(settings: Settings, name: str, accept_vanished: bool, as_json: bool) -> None:
    """Look at the directory now and serve what changed."""
    from mmserver.catalog.opening import open_store
    from mmserver.catalog.refreshing import refresh_model

    with open_store(settings, owns_data_dir=False) as store:
        result = refresh_model(store, name, _actor(), accept_vanished=accept_vanished)
    if as_json:
        print_json(result)
    elif result.changed:
        click.echo(f"{name}: {result.previous_version} -> {result.version}")
        for what in ("added", "removed", "updated"):
            if keys := getattr(result, what):
                click.echo(f"  {what}: {shown(keys)}")
    else:
        click.echo(f"{name}: unchanged at {result.version}")


@models.command()
@click.argument("name")
@click.option("--limit", default=50, show_default=True, help="How many, newest first.")
@with_settings()
@json_option
def versions(settings: Settings, name: str, limit: int, as_json: bool) -> None:
    """Show the history of a model."""
    from mmserver.catalog.history import list_versions
    from mmserver.catalog.opening import open_store

    with open_store(settings, owns_data_dir=False) as store:
        records = list_versions(store, name, limit)
    rows = [
        {**msgspec.to_builtins(record), "version": record.label, "created_at": record.created_at} for record in records
    ]
    print_rows(rows, VERSION_COLUMNS, as_json=as_json)


@models.command()
@click.argument("name")
@click.argument("version")
@with_settings()
@json_option
def rollback(settings: Settings, name: str, version: str, as_json: bool) -> None:
    """Serve VERSION until the files change again."""
    from mmserver.catalog.history import rollback_model
    from mmserver.catalog.opening import open_store

    with open_store(settings, owns_data_dir=False) as store:
        _print_models([rollback_model(store, name, version, _actor())], as_json=as_json)


@models.command()
@click.argument("name")
@click.argument("from_version")
@click.argument("to_version", default="latest")
@with_settings()
@json_option
def diff(settings: Settings, name: str, from_version: str, to_version: str, as_json: bool) -> None:
    """Show what differs between two versions; exit code 1 when something does."""
    from mmserver.catalog.diffing import diff_versions
    from mmserver.catalog.history import resolve_version
    from mmserver.catalog.opening import open_store

    with open_store(settings, owns_data_dir=False) as store:
        old, new = (resolve_version(store, name, reference) for reference in (from_version, to_version))
        found = diff_versions(store, old, new)
    if as_json:
        print_json(found)
    else:
        rows = [
            {
                "group_key": group.group_key,
                "change": group.change,
                "factors_added": len(group.factors_added),
                "factors_removed": len(group.factors_removed),
                "factors_moved": len(group.factors_moved),
                "ic_shifts": len(group.ic_shifts),
                "info_changes": len(group.info_changes),
                "model_changed": group.model_changed,
            }
            for group in found.groups
        ]
        print_rows(rows, tuple(rows[0]) if rows else ("group_key", "change"), as_json=False)
    sys.exit(1 if found.groups else 0)


@models.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_settings()
def remove(settings: Settings, name: str, yes: bool) -> None:
    """Forget a model and its versions; its directory is not touched."""
    from mmserver.catalog.opening import open_store
    from mmserver.registry.removing import delete_model

    with open_store(settings, owns_data_dir=False) as store:
        store.model(name)
        if not yes:
            click.confirm(f"Forget {name} with all its versions?", abort=True)
        delete_model(store, name, _actor())


def _actor() -> Any:
    from mmserver.catalog.catalog import Actor

    return Actor("command line")


def _print_models(found: Any, *, as_json: bool) -> None:
    rows = [
        {
            "model_name": model.name,
            "version": model.serving.label,
            "status": model.status,
            "symbol_count": len(model.serving.group_keys_by_symbol),
            "group_count": len(model.serving.groups),
            "factor_count": len(model.serving.factors),
            "refreshed_at": model.refreshed_at,
            "root_path": model.root_path,
            "error": model.trouble,
        }
        for model in found
    ]
    print_rows(rows, MODEL_COLUMNS, as_json=as_json)


class _Progress:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, label: str) -> None:
        from rich.progress import Progress

        self._progress = Progress(disable=not sys.stderr.isatty(), transient=True)
        self._label = label
        self._task: Any = None

    def __enter__(self) -> "_Progress":
        self._progress.start()
        self._task = self._progress.add_task(self._label, total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, n_done: int, n_all: int) -> None:
        self._progress.update(self._task, completed=n_done, total=n_all)
