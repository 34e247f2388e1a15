"""`mmserver observations`: outcomes of any predictions, exports, and how each model did outside experiments; beside a server too."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from mmserver.cli.experiments_results import OUTCOME_COLUMNS, outcomes_of, say_refused
from mmserver.cli.experiments_values import opened
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.experiments.observations.model_sums import ModelTotals

_TOTALS = (
    "n_predictions",
    "n_errors",
    "average_latency_ms",
    "n_labelled",
    "accuracy",
    "n_returns",
    "average_return",
)
COLUMNS = ("model_name", "version", *_TOTALS)
DAY_COLUMNS = ("model_name", "version", "day", *_TOTALS)


@click.group()
def observations() -> None:
    """What was predicted and what came of it, in experiments and outside them; works beside a running server."""


@observations.command()
@click.argument("file")
@with_settings()
@json_option
def outcomes(settings: Settings, file: str, as_json: bool) -> None:
    """Add what came of any predictions: FILE is CSV or Parquet, or - for CSV on the standard input.

    Its columns: prediction_id, realized_return or label or both, and perhaps at. A return without a label gets one by the dead band
    of its model. Each that is refused is named; the others are added, and the exit code is 2.
    """
    from mmserver.experiments.dead_bands import dead_bands_of

    found = outcomes_of(file)
    with opened(settings) as (store, log):
        store.check_writable()
        report = log.add_outcomes(found, dead_bands=dead_bands_of(store))
    if as_json:
        print_json(report)
    else:
        print_rows([report], OUTCOME_COLUMNS, as_json=False)
    say_refused(file, report)


@observations.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--experiment", "experiment_id", metavar="ID", help="Only predictions of this experiment.")
@with_settings()
@json_option
def export(settings: Settings, file: Path, experiment_id: str | None, as_json: bool) -> None:
    """Write all predictions that are kept, with their features and outcomes, to the Parquet file FILE."""
    from mmserver.experiments.experiments import get_experiment

    with opened(settings) as (store, log):
        key = None if experiment_id is None else get_experiment(store, experiment_id).log_key
        n_rows = log.export(file, experiment_key=key)
    print_rows([{"file": str(file), "n_rows": n_rows}], ("file", "n_rows"), as_json=as_json)


@observations.command()
@click.argument("model_name", metavar="MODEL", required=False)
@click.option("--by-day", is_flag=True, help="A row for each day (UTC) on which predictions were made.")
@with_settings()
@json_option
def models(settings: Settings, model_name: str | None, by_day: bool, as_json: bool) -> None:
    """Show what came of the predictions that were observed outside experiments, of each version; as quick at any number of them."""
    from mmserver.experiments.observations.model_sums import whole_totals

    with opened(settings) as (store, log):
        if not store.read_only:
            log.flush()
        days = log.read_model_days(model_name)
    if by_day:
        named: Iterable[tuple[dict[str, Any], ModelTotals]] = (
            ({"model_name": one.model_name, "version": one.version, "day": one.day}, one.totals) for one in days
        )
    else:
        named = (({"model_name": name, "version": version}, one) for (name, version), one in whole_totals(days).items())
    rows = [{**key, **{column: getattr(totals, column) for column in _TOTALS}} for key, totals in named]
    if as_json:
        print_json({"items": msgspec.to_builtins(rows)})
    else:
        print_rows(rows, DAY_COLUMNS if by_day else COLUMNS, as_json=False)
