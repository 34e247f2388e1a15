"""`mmserver registry`: versions that are registered one by one, and stages; works beside a running server, which follows."""

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows, shown
from mmserver.cli.registry_transfer import import_, import_mlflow, sync
from mmserver.cli.registry_values import (
    JSON_OBJECT,
    NAMED_VALUE,
    SHA256,
    check_sha256,
    factors_from_file,
    numbers,
    once,
)
from mmserver.errors import RequestInvalid
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.catalog.store import Store
    from mmserver.registry.versions import StagedVersion

MODEL_COLUMNS = ("name", "versions", "latest_version", "production_version", "staging_version", "updated_at")
VERSION_COLUMNS = ("version", "stage", "model_type", "metrics", "size_mb", "created_at", "description")
METRIC_COLUMNS = ("metric", "version1", "version2", "diff", "diff_pct")
_ALL = 1_000_000_000


@click.group()
def registry() -> None:
    """Versions that are registered one by one, put into stages, compared and retired."""


for command in (sync, import_, import_mlflow):
    registry.add_command(command)


@registry.command(name="list")
@with_settings()
@json_option
def list_(settings: Settings, as_json: bool) -> None:
    """Show every registered model."""
    from mmserver.catalog.opening import open_store
    from mmserver.registry.versions import list_models
    from mmserver.web.registry_bodies import item_from_model

    with open_store(settings, owns_data_dir=False) as store:
        items = [item_from_model(model) for model in list_models(store, _ALL)]
    print_rows(items, MODEL_COLUMNS, as_json=as_json)


@registry.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--stage", help="Only versions in this stage: Production, Staging, Archived or None.")
@with_settings()
@json_option
def show(settings: Settings, name: str, version: str | None, stage: str | None, as_json: bool) -> None:
    """Show the versions of a model, newest first, or all about one VERSION: its label, a stage or latest."""
    from mmserver.catalog.opening import open_store
    from mmserver.registry.stages import stage_from_text
    from mmserver.registry.versions import get_version, list_versions
    from mmserver.web.registry_bodies import item_from_version

    wanted = None if stage is None else stage_from_text(stage)
    with open_store(settings, owns_data_dir=False) as store:
        if version is not None:
            _print_version(get_version(store, name, version), as_json=as_json)
            return
        found = [v for v in list_versions(store, name) if stage is None or v.stage == wanted]
    if as_json:
        print_json({"items": [item_from_version(one) for one in found]})
    else:
        rows = [{**msgspec.structs.asdict(item_from_version(one)), "metrics": _shown(one.metrics)} for one in found]
        print_rows(rows, VERSION_COLUMNS, as_json=False)


@registry.command()
@click.argument("name")
@click.argument("version")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("other_files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model-type", help="The format, where the file's name does not say it.")
@click.option("--description", default="", help="What it is, in words.")
@click.option("--metric", "metric", type=NAMED_VALUE, multiple=True, help="A number by name, such as ic=0.03.")
@click.option("--metrics", type=JSON_OBJECT, default="{}", help="The same as JSON, or @FILE.")
@click.option("--params", type=JSON_OBJECT, default="{}", help="How it was trained, as JSON, or @FILE.")
@click.option("--tag", "tags", type=NAMED_VALUE, multiple=True, help="A text by name, such as desk=equity.")
@click.option("--factors", type=click.Path(path_type=Path), help="A file with the names of the inputs, one a line.")
@click.option("--info", type=JSON_OBJECT, default="{}", help="What else is known of the training, as JSON, or @FILE.")
@click.option("--options", type=JSON_OBJECT, default="{}", help="What the format asks for, as JSON, or @FILE.")
@click.option("--derived-from", metavar="VERSION", help="The version that it is another form of.")
@click.option("--sha256", type=SHA256, help="Of FILE; another content is refused before it is read.")
@with_settings("plugins_dir")
@json_option
def register(settings: Settings, name: str, version: str, file: Path, as_json: bool, **said: Any) -> None:
    """Register FILE, with the OTHER_FILES that belong to it, as VERSION of NAME.

    In what is printed, file_sha256 is that of FILE, and sha256 that of all that decides how it predicts: the files, the format,
    its options, factors and info.
    """
    from mmserver.catalog.opening import open_store
    from mmserver.conversion.reading import ModelReader
    from mmserver.registry.registering import NewVersion, register_version
    from mmserver.web.registry_uploads import source_from_paths

    paths = [str(path.absolute()) for path in (file, *said["other_files"])]
    with open_store(settings, owns_data_dir=False) as store:
        source = msgspec.structs.replace(source_from_paths(paths, settings), options=said["options"])
        check_sha256(source.file_name, source.content, said["sha256"])
        new = NewVersion(
            model_name=name,
            label=version,
            source=source,
            model_type=said["model_type"],
            description=said["description"],
            metrics={**said["metrics"], **numbers(once(said["metric"], "metrics"))},
            training_params=said["params"],
            tags=once(said["tags"], "tags"),
            factors=factors_from_file(said["factors"]),
            info=said["info"],
            derived_from=said["derived_from"],
        )
        with closing(ModelReader(settings, store.plugins)) as reader:
            registered = register_version(store, reader, new, _actor())
        file_sha256 = hashlib.sha256(source.content).hexdigest()
        _print_version(registered.version, as_json=as_json, file_sha256=file_sha256)


@registry.command()
@click.argument("name")
@click.argument("version")
@with_settings()
@json_option
def promote(settings: Settings, name: str, version: str, as_json: bool) -> None:
    """Put VERSION into production; the one that was there is archived."""
    from mmserver.registry import stages

    _change(settings, lambda store: stages.promote(store, name, version, _actor()), as_json=as_json)


@registry.command()
@click.argument("name")
@click.argument("version")
@click.argument("stage", default="Staging")
@with_settings()
@json_option
def stage(settings: Settings, name: str, version: str, stage: str, as_json: bool) -> None:
    """Put VERSION into STAGE: Production, Staging (if none is named), Archived or None."""
    from mmserver.registry import stages

    wanted = stages.stage_from_text(stage)
    _change(settings, lambda store: stages.set_stage(store, name, version, wanted, _actor()), as_json=as_json)


@registry.command()
@click.argument("name")
@click.argument("version")
@with_settings()
@json_option
def retire(settings: Settings, name: str, version: str, as_json: bool) -> None:
    """Archive VERSION: it answers to its own label only."""
    from mmserver.registry import stages

    _change(settings, lambda store: stages.retire(store, name, version, _actor()), as_json=as_json)


@registry.command()
@click.argument("name")
@click.option("--from", "from_label", metavar="VERSION", help="Only from this version: sent twice, it goes back once.")
@with_settings()
@json_option
def rollback(settings: Settings, name: str, from_label: str | None, as_json: bool) -> None:
    """Put back into production what was there before the last promotion; two rollbacks go back two."""
    from mmserver.catalog.opening import open_store
    from mmserver.errors import NotInProduction
    from mmserver.registry import stages
    from mmserver.registry.standing import find_standing

    with open_store(settings, owns_data_dir=False) as store:
        seen = find_standing(store, name).production if from_label is None else from_label
        if seen is None:
            raise NotInProduction(model_name=name)
        version = stages.rollback(store, name, _actor(), from_label=seen)
        if as_json:
            _print_version(version, as_json=True)
        else:
            click.echo(f"{name}: {shown(seen)} -> {version.label}")


@registry.command()
@click.argument("name")
@click.argument("version")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_settings()
def delete(settings: Settings, name: str, version: str, yes: bool) -> None:
    """Forget VERSION; with the last one the model is forgotten."""
    from mmserver.catalog.opening import open_store
    from mmserver.registry.removing import delete_version
    from mmserver.registry.versions import get_version

    with open_store(settings, owns_data_dir=False) as store:
        found = get_version(store, name, version)
        if not yes:
            click.confirm(f"Forget {name} {found.label}?", abort=True)
        delete_version(store, name, found.label, _actor())


@registry.command()
@click.argument("name")
@click.argument("version1")
@click.argument("version2", default="latest")
@with_settings()
@json_option
def compare(settings: Settings, name: str, version1: str, version2: str, as_json: bool) -> None:
    """Show two versions side by side."""
    from mmserver.catalog.opening import open_store
    from mmserver.registry import comparing

    with open_store(settings, owns_data_dir=False) as store:
        found = comparing.compare(store, name, version1, version2)
    if as_json:
        print_json(found)
        return
    rows = [{"metric": metric, **msgspec.structs.asdict(one)} for metric, one in found.metrics_comparison.items()]
    sizes = found.size_comparison
    rows.append({"metric": "size_mb", "version1": sizes.version1_mb, "version2": sizes.version2_mb,
                 "diff": sizes.diff_mb, "diff_pct": None})  # fmt: skip
    print_rows(rows, METRIC_COLUMNS, as_json=False)


@registry.command()
@click.argument("name")
@click.argument("version")
@click.argument("values", type=NAMED_VALUE, nargs=-1, required=True)
@with_settings()
@json_option
def metrics(settings: Settings, name: str, version: str, values: tuple[tuple[str, str], ...], as_json: bool) -> None:
    """Set metrics of VERSION: ic=0.03 sharpe=1.4; one without a number (ic=) is removed."""
    from mmserver.registry.annotating import update_metrics

    texts = once(values, "metrics")
    given = {**dict.fromkeys(texts), **numbers({metric: text for metric, text in texts.items() if text})}
    _change(settings, lambda store: update_metrics(store, name, version, given, _actor()), as_json=as_json)


@registry.command()
@click.argument("name")
@click.argument("version")
@click.option("--description", help="What it is, in words.")
@click.option(
    "--tag", "tags", type=NAMED_VALUE, multiple=True, help="A text by name, such as desk=equity; the others stay."
)
@click.option("--remove-tag", "removed", metavar="NAME", multiple=True, help="A tag that is not true any more.")
@with_settings()
@json_option
def annotate(settings: Settings, name: str, version: str, as_json: bool, **said: Any) -> None:
    """Say something else of VERSION; what it predicts never changes."""
    from mmserver.registry.annotating import annotate_version

    description, tags, removed = said["description"], once(said["tags"], "tags"), said["removed"]
    if description is None and not tags and not removed:
        raise click.UsageError("nothing to say: give --description, --tag or --remove-tag")
    if both := tags.keys() & removed:
        raise RequestInvalid(f"tags.{min(both)}: both set and removed")
    changes = {**tags, **dict.fromkeys(removed)}
    _change(
        settings,
        lambda store: annotate_version(store, name, version, _actor(), description=description, tags=changes),
        as_json=as_json,
    )


def _change(settings: Settings, change: "Callable[[Store], StagedVersion]", *, as_json: bool) -> None:
    from mmserver.catalog.opening import open_store

    with open_store(settings, owns_data_dir=False) as store:
        _print_version(change(store), as_json=as_json)


def _print_version(version: "StagedVersion", *, as_json: bool, **more: str) -> None:
    """As the API gives it, with what else there is to say, or one line for each of its fields."""
    from mmserver.web.registry_bodies import item_from_version

    item = {**msgspec.structs.asdict(item_from_version(version)), **more}
    if as_json:
        print_json(item)
        return
    print_rows(
        [{"field": name, "value": _shown(value)} for name, value in item.items()], ("field", "value"), as_json=False
    )


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_shown(part)}" for name, part in value.items()) or None
    return value


def _actor() -> Any:
    from mmserver.catalog.catalog import Actor

    return Actor("command line")
