"""`mmserver demo`: something real to look at, on a machine that has no artifacts yet."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mmserver.cli.options import with_settings
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.catalog.store import Store
    from mmserver.demo.directory import DemoResult

MODEL_NAME = "demo"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--retrain", is_flag=True, help="Train on the next window, over the files there: a new version.")
@click.option(
    "--register", "is_registered", is_flag=True, help=f"Serve it as model {MODEL_NAME}, with its venue files."
)
@with_settings("plugins_dir")
def demo(settings: Settings, directory: Path, retrain: bool, is_registered: bool) -> None:
    """Train small models on real daily market data and write their artifacts into DIRECTORY.

    S&P 500, NASDAQ, WTI crude and VIX come with the package `arch`; nothing is downloaded. What is there already
    stays as it is, and files that the demo did not write are never touched. The thresholds in venues/ are examples: real
    turnover, scaled down by an invented share. In requests/ are bodies and rows to predict with. Needs:
    pip install 'mmserver[demo]'.
    """
    result = _write(directory.absolute(), retrain=retrain)
    _print_result(result)
    if is_registered:
        _register(settings, result.directory)
    else:
        click.echo(f"To serve it:  mmserver models add {MODEL_NAME} {directory}")


def _write(directory: Path, *, retrain: bool) -> "DemoResult":
    from rich.progress import Progress

    from mmserver.demo.directory import write_demo

    with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("reading the market data", total=None)

        def report(step: str, n_done: int, n_all: int) -> None:
            progress.update(task, description=step, completed=n_done, total=n_all)

        return write_demo(directory, retrain=retrain, report=report)


def _print_result(result: "DemoResult") -> None:
    if not result.written:
        click.echo(f"{result.directory} has the demo already, trained up to {result.last_year}; --retrain goes on")
        return
    for group in result.groups:
        info, metrics = group.info, group.info["metrics"]
        click.echo(
            f"{group.group_key:<15} {info['dim']} factors, trained {info['train_start']} to {info['train_end']};"
            f" in the {info['test_samples']} days after that: IC {metrics['ic']:+.3f}, hit rate {metrics['hit_rate']:.1%}"
        )
    if result.starts_over:
        click.echo(f"there is no later window: this is the first one again, up to {result.last_year}")
    click.echo(f"written to {result.directory}; the thresholds in venues/ are examples, not market facts;")
    click.echo("requests/ has the factors of each symbol's last days, to predict with")


def _register(settings: Settings, directory: Path) -> None:
    from mmserver.catalog.opening import open_store

    with open_store(settings, owns_data_dir=False) as store:
        _register_model(store, directory)
        _set_venues(store, directory)


def _register_model(store: "Store", directory: Path) -> None:
    """Register the model, or refresh it where it is this directory already."""
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.refreshing import refresh_model
    from mmserver.catalog.registering import register_model

    known = store.catalog.models.get(MODEL_NAME)
    if known is not None and known.root_path == str(directory):
        version = refresh_model(store, MODEL_NAME, Actor("demo")).version
    else:
        version = register_model(store, MODEL_NAME, str(directory), Actor("demo")).serving.label
    click.echo(f"model {MODEL_NAME} is at {version}")


def _set_venues(store: "Store", directory: Path) -> None:
    """Set the example thresholds, but never over somebody's own."""
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.venues import set_quantiles
    from mmserver.demo.directory import venue_files

    for venue, path in venue_files(directory).items():
        known = store.catalog.venues.get(venue)
        if known is None or known.pkl_path == str(path):
            set_quantiles(store, venue, str(path), Actor("demo"))
            click.echo(f"venue {venue} has example thresholds")
        else:
            click.echo(f"venue {venue} keeps its thresholds from {known.pkl_path}")
