"""`mmserver experiments show`, `analysis`, `outcomes`, `evaluations` and `replay`: what came of an experiment, and why."""

import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmserver.cli.experiments_values import opened
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows, shown
from mmserver.errors import RequestInvalid
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.experiments.analysing import Analysis
    from mmserver.experiments.arms import ArmReport
    from mmserver.experiments.experiments import Evaluation, Experiment
    from mmserver.experiments.observations.reports import OutcomeReport
    from mmserver.experiments.observations.values import Outcome

COLUMNS = ("number", "control", "treatment", "difference", "relative", "lower", "upper")
COUNTS = ("n_units", "n_predictions", "n_matured")
OUTCOME_COLUMNS = (
    "n_accepted",
    "n_duplicates",
    "n_conflicts",
    "n_unknown",
    "n_premature",
    "n_in_future",
    "n_invalid",
    "n_late",
)
EVALUATION_COLUMNS = ("id", "at", "reason", "verdict", "reasons", "code_version")
REPLAY_COLUMNS = ("id", "at", "verdict", "again", "is_same", "has_same_rules")
STDIN = "-"
FOUND_WRONG, WRONG_INPUT, NO_SUCH_THING = 1, 2, 4
"""Exit codes, as `mmserver --help` has them."""
_PARQUET_MAGIC = b"PAR1"
_ALL = 1_000_000_000


@click.command()
@click.argument("experiment_id", metavar="ID")
@with_settings()
@json_option
def show(settings: Settings, experiment_id: str, as_json: bool) -> None:
    """Show what is recommended now and why, whether the data are sound, and both arms side by side; as often as you like."""
    from mmserver.experiments.evaluating import analyse_experiment
    from mmserver.experiments.experiments import get_experiment

    with opened(settings) as (store, observations):
        experiment = get_experiment(store, experiment_id)
        found = analyse_experiment(store, observations, experiment)
        print_report(experiment, found, store.now(), as_json=as_json)


@click.command()
@click.argument("experiment_id", metavar="ID")
@with_settings()
@json_option
def analysis(settings: Settings, experiment_id: str, as_json: bool) -> None:
    """Show both arms side by side; as JSON all that is known: tests, health, symbols, days and the recommendation."""
    from mmserver.experiments.evaluating import analyse_experiment
    from mmserver.experiments.experiments import get_experiment

    with opened(settings) as (store, observations):
        experiment = get_experiment(store, experiment_id)
        found = analyse_experiment(store, observations, experiment)
        if as_json:
            print_report(experiment, found, store.now(), as_json=True)
        else:
            print_rows(_numbers(found), COLUMNS, as_json=False)


@click.command()
@click.argument("experiment_id", metavar="ID")
@click.argument("file")
@click.option(
    "--dead-band",
    type=click.FloatRange(min=0.0),
    help="A return without a label is HOLD up to it, up and down [the settings'].",
)
@with_settings()
@json_option
def outcomes(settings: Settings, experiment_id: str, file: str, dead_band: float | None, as_json: bool) -> None:
    """Add what came of predictions: FILE is CSV or Parquet, or - for CSV on the standard input.

    Its columns: prediction_id, realized_return or label or both, and perhaps at. The first outcome of a prediction stays, and the
    same again changes nothing. Each that is refused is named; the others are added, and the exit code is 2.
    """
    from mmserver.experiments.dead_bands import dead_bands_of
    from mmserver.experiments.experiments import get_experiment
    from mmserver.experiments.observations.dead_bands import DeadBands

    found = outcomes_of(file)
    with opened(settings) as (store, observations):
        store.check_writable()
        experiment = get_experiment(store, experiment_id)
        dead_bands = dead_bands_of(store) if dead_band is None else DeadBands(dead_band)
        report = observations.add_outcomes(found, experiment_key=experiment.log_key, dead_bands=dead_bands)
    if as_json:
        print_json(report)
    else:
        print_rows([report], OUTCOME_COLUMNS, as_json=False)
    say_refused(file, report)


@click.command()
@click.argument("experiment_id", metavar="ID")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many at most.")
@with_settings()
@json_option
def evaluations(settings: Settings, experiment_id: str, limit: int, as_json: bool) -> None:
    """Show what was decided about it, the newest first; as JSON with all that each decision was made from."""
    found = _kept(settings, experiment_id, limit)
    if as_json:
        print_json({"items": found})
        return
    rows = [
        {
            **{name: getattr(one, name) for name in ("id", "at", "reason", "code_version")},
            **{name: one.decision["recommendation"][name] for name in ("verdict", "reasons")},
        }
        for one in found
    ]
    print_rows(rows, EVALUATION_COLUMNS, as_json=False)


@click.command()
@click.argument("experiment_id", metavar="ID")
@click.argument("evaluation", type=int, required=False)
@with_settings()
@json_option
def replay(settings: Settings, experiment_id: str, evaluation: int | None, as_json: bool) -> None:
    """Make the decisions that were kept again, or EVALUATION only, and compare; exit code 1 if the same rules decide otherwise.

    A decision that older rules made may be another one by those of today; that is said, and no contradiction.
    """
    found = [one for one in _kept(settings, experiment_id, _ALL) if evaluation in (None, one.id)]
    if evaluation is not None and not found:
        click.echo(f"mmserver: experiment {experiment_id} has no evaluation {evaluation}", err=True)
        click.get_current_context().exit(NO_SUCH_THING)
    rows = [_replayed(one) for one in found]
    print_rows(rows, REPLAY_COLUMNS, as_json=as_json)
    wrong = [row["id"] for row in rows if row["has_same_rules"] and not row["is_same"]]
    if wrong:
        click.echo(f"mmserver: the same rules decide otherwise: {shown(wrong)}", err=True)
        click.get_current_context().exit(FOUND_WRONG)


# --- an analysis --------------------------------------------------------------------------------------------------------


def print_report(experiment: "Experiment", found: "Analysis", at: datetime, *, as_json: bool) -> None:
    """What to do, why, whether to believe it, and the numbers; or the API's report."""
    from mmserver.web.experiment_bodies import report_from_analysis

    if as_json:
        print_json(report_from_analysis(experiment, found, at))
        return
    for line in _lines(experiment, found):
        click.echo(shown(line))
    click.echo()
    print_rows(_numbers(found), COLUMNS, as_json=False)


def _lines(experiment: "Experiment", found: "Analysis") -> Iterator[str]:
    control, treatment, advice = experiment.control, experiment.treatment, found.recommendation
    yield f"{experiment.experiment_id}: {advice.verdict.replace('_', ' ').upper()} (by {advice.policy})"
    for reason in advice.reasons:
        yield f"  {reason}"
    if advice.needs is not None and experiment.status == "running":
        yield f"  about {advice.needs.n_units} units and {advice.needs.hours:.0f} h more"
    ended = f", {experiment.applied} applied" if experiment.applied else ""
    yield f"status: {experiment.status}{ended}; {found.progress.hours:.1f} h, {found.progress.n_units} units"
    share = f"{experiment.treatment_weight:g} of the units" if experiment.mode == "split" else "in the shadow"
    yield (
        f"control: {control.model_name} {control.version}; treatment: {treatment.model_name} {treatment.version}, {share}"
    )
    if experiment.overruled_by is not None:
        yield f"overruled: {experiment.overruled_by} was put into service since the start, and requests get that"
    yield from _health(found)


def _health(found: "Analysis") -> Iterator[str]:
    checks = [finding for finding in found.recommendation.findings if finding.kind == "health"]
    if not checks:
        yield "health: nothing to check yet"
        return
    yield "health: sound" if all(check.holds for check in checks) else "health: NOT SOUND, the numbers mean nothing"
    for check in checks:
        yield f"  {'ok' if check.holds else 'WRONG'}: {check.text}"


def _numbers(found: "Analysis") -> list[dict[str, Any]]:
    """Counts, then what is compared; the interval is where the truth lies at all looks at once."""
    counted: list[dict[str, Any]] = [
        {
            **dict.fromkeys(COLUMNS),
            "number": name,
            "control": getattr(found.control, name),
            "treatment": getattr(found.treatment, name),
        }
        for name in COUNTS
    ]
    compared = [
        {
            "number": name,
            "control": _number(found.control, name),
            "treatment": _number(found.treatment, name),
            "difference": one.absolute,
            "relative": one.relative,
            "lower": one.lower,
            "upper": one.upper,
        }
        for name, one in found.improvement.items()
    ]
    return counted + compared


def _number(arm: "ArmReport", name: str) -> Any:
    return arm.sharpe.ratio if name == "sharpe_ratio" else getattr(arm, name)


# --- outcomes -----------------------------------------------------------------------------------------------------------


def outcomes_of(file: str) -> "list[Outcome]":
    """Those of a CSV or Parquet file, or of CSV on the standard input.

    Raises:
        RequestInvalid, ExtraMissing
    """
    from mmserver.experiments.observations.outcome_files import outcomes_from_csv, outcomes_from_parquet

    try:
        data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except OSError as error:
        raise RequestInvalid(f"{file}: {error.strerror}") from error
    is_parquet = data.startswith(_PARQUET_MAGIC) or file.endswith(".parquet")
    try:
        return outcomes_from_parquet(data) if is_parquet else outcomes_from_csv(data)
    except RequestInvalid as error:
        raise RequestInvalid(f"{file}: {error}") from error


def say_refused(file: str, report: "OutcomeReport") -> None:
    """Name those that were not added, as far as they were kept, and exit."""
    for error in report.errors:
        told = f"{file}: row {error.index + 1}, {error.prediction_id or 'no prediction'}: {error.message}"
        click.echo(f"mmserver: {shown(told)}", err=True)
    n_more = report.n_errors - len(report.errors)
    if n_more:
        click.echo(f"mmserver: {file}: {n_more} more were refused", err=True)
    if report.n_errors:
        click.get_current_context().exit(WRONG_INPUT)


# --- decisions that were kept -------------------------------------------------------------------------------------------


def _kept(settings: Settings, experiment_id: str, limit: int) -> "list[Evaluation]":
    from mmserver.catalog.opening import open_store
    from mmserver.experiments.experiments import get_experiment, list_evaluations

    with open_store(settings, owns_data_dir=False) as store:
        return list_evaluations(store, get_experiment(store, experiment_id).key, limit)


def _replayed(one: "Evaluation") -> dict[str, Any]:
    from mmserver.experiments.replaying import replay_kept

    again = replay_kept(one.inputs, one.decision)
    return {
        "id": one.id,
        "at": one.at,
        "verdict": one.decision["recommendation"]["verdict"],
        "again": None if again.recommendation is None else again.recommendation.verdict,
        "is_same": again.is_same,
        "has_same_rules": again.has_same_rules,
    }
