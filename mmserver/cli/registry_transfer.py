"""`mmserver registry sync`, `import` and `import-mlflow`: registered models as files, and from where others keep them."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, shown
from mmserver.errors import RequestInvalid
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.store import Store
    from mmserver.conversion.reading import ModelReader
    from mmserver.registry.model_directory import Synced
    from mmserver.registry.taking_over import TakenOver


@click.command()
@click.option("--verify", is_flag=True, help="Compare each file with its hash, not only with its size.")
@click.option("--take-over", is_flag=True, help="After a restore: what was written for another database is ours, too.")
@with_settings("registry_dir")
@json_option
def sync(settings: Settings, verify: bool, take_over: bool, as_json: bool) -> None:
    """Make the directory of registered models what the database says."""
    from mmserver.catalog.opening import open_store
    from mmserver.registry.layout import sync_directory
    from mmserver.storage.audit import record_audit_alone
    from mmserver.storage.times import text_from_datetime

    with open_store(settings, owns_data_dir=False) as store:
        done = sync_directory(store, verifies=verify, takes_over=take_over)
        record_audit_alone(store.database, at=text_from_datetime(store.now()), actor=_actor().name,
                           action="registry.synced", target=str(settings.registry_dir),
                           detail={"take_over": take_over, "verify": verify}, request_id=None)  # fmt: skip
        _print_outcome(done, as_json=as_json)


@click.command(name="import")
@click.argument("directory", type=click.Path(path_type=Path))
@with_settings("plugins_dir")
@json_option
def import_(settings: Settings, directory: Path, as_json: bool) -> None:
    """Register what is in DIRECTORY as {name}/v{version}/model.*, with stages where they are empty here."""
    from mmserver.registry.importing import import_directory

    if not directory.is_dir():
        raise RequestInvalid(f"{directory}: there is no such directory")
    _import(settings, lambda store, reader: import_directory(store, reader, directory, _actor()), as_json=as_json)


@click.command(name="import-mlflow")
@click.argument("tracking_uri")
@click.argument("name")
@click.option("--as", "model_name", metavar="NAME", help="The name to register it under; that of MLflow by default.")
@with_settings("plugins_dir")
@json_option
def import_mlflow(settings: Settings, tracking_uri: str, name: str, model_name: str | None, as_json: bool) -> None:
    """Register the versions of the model NAME in an MLflow registry; version 3 becomes 3.0.0."""
    from mmserver.registry.mlflow_models import import_mlflow_model

    _import(
        settings,
        lambda store, reader: import_mlflow_model(store, reader, tracking_uri, name, _actor(), model_name=model_name),
        as_json=as_json,
    )


def _import(settings: Settings, importing: "Callable[[Store, ModelReader], TakenOver]", *, as_json: bool) -> None:
    from mmserver.catalog.opening import open_store
    from mmserver.conversion.reading import ModelReader

    with (
        open_store(settings, owns_data_dir=False) as store,
        closing(ModelReader(settings, store.plugins)) as reader,
    ):
        _print_outcome(importing(store, reader), as_json=as_json)


def _print_outcome(done: "Synced | TakenOver", *, as_json: bool) -> None:
    """A line for each thing that was done or could not be; exit code 1 for the latter."""
    import dataclasses

    found: dict[str, list[str]] = dataclasses.asdict(done)
    if as_json:
        print_json(found)
    else:
        for outcome, things in found.items():
            for thing in things:
                click.echo(f"{outcome}: {shown(thing)}")
        if not any(found.values()):
            click.echo("nothing to do")
    if found.get("problems") or found.get("skipped"):
        raise click.exceptions.Exit(1)


def _actor() -> "Actor":
    from mmserver.catalog.catalog import Actor

    return Actor("command line")
