"""`mmserver experiments simulate`: how experiments are decided, tried on such that never were."""

import sys
from typing import Any

import click
import msgspec

from mmserver.cli.experiments_values import POLICIES, number
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows
from mmserver.settings import Settings

COLUMNS = (
    "policy",
    "ever_promote",
    "ever_rollback",
    "ever_invalid",
    "first_promote",
    "first_rollback",
    "undecided",
    "median_hours",
    "ever_missed_accuracy",
    "ever_missed_return",
)
SHARE = click.FloatRange(0.0, 1.0, min_open=True, max_open=True)


@click.command()
@click.option("--runs", "n_runs", type=click.IntRange(1, 1_000_000), default=200, show_default=True, help="How many.")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=1, show_default=True, help="The same gives the same."
)
@click.option("--days", type=float, help="How long each run is [30].")
@click.option("--predictions-per-hour", type=int, help="Of all symbols together [100].")
@click.option("--symbols", "n_symbols", type=int, help="A unit is a symbol in a block of time [20].")
@click.option("--block-hours", type=int, help="How long a block is [1].")
@click.option("--look-every-hours", type=int, help="How often it is looked at [1].")
@click.option("--traffic-split", type=SHARE, help="The control's share of the units [0.9].")
@click.option("--ramp", "ramps", multiple=True, metavar="HOUR:SHARE", help="From that hour on, the treatment's share.")
@click.option("--accuracy", type=float, help="The control's [0.55].")
@click.option("--accuracy-gain", type=float, help="What the treatment's is higher by; 0.04 is four points [0].")
@click.option("--accuracy-drift", type=float, help="What both change by from the first to the last hour [0].")
@click.option("--symbol-spread", type=float, help="The standard deviation of the symbols' own accuracies [0].")
@click.option("--error-rate", type=float, help="The control's share of failed predictions [0.01].")
@click.option("--error-factor", type=float, help="How many times that the treatment has [1].")
@click.option("--latency-ms", type=float, help="The control's mean [5].")
@click.option("--latency-sd-ms", type=float, help="Of single predictions [3].")
@click.option("--latency-increase-ms", type=float, help="What the treatment's mean is higher by [0].")
@click.option("--return-sd", type=float, help="Of single predictions' returns; none are simulated where it is 0 [0].")
@click.option("--return-gain", type=float, help="What the treatment's average return is higher by [0].")
@click.option("--autocorrelation", type=float, help="Of a symbol's consecutive predictions, AR(1) [0].")
@click.option("--policy", type=click.Choice(POLICIES), multiple=True, help="This one only (may be given again).")
@click.option(
    "--set", "numbers", multiple=True, metavar="NAME=VALUE", help="A number of the policies, such as alpha=0.1."
)
@with_settings()
@json_option
def simulate(
    _settings: Settings,
    *,
    n_runs: int,
    seed: int,
    traffic_split: float | None,
    ramps: tuple[str, ...],
    policy: tuple[str, ...],
    numbers: tuple[str, ...],
    as_json: bool,
    **world: Any,
) -> None:
    """Run experiments whose truth is known, and show how often each policy promotes and rolls back.

    Shares of the runs: `ever` at any look, `first` if it was the first of the two, which is what a server that acts by
    itself would have done. Without options both models are the same (A/A): every promotion and rollback is a mistake.
    """
    from mmserver.experiments.error_rates import error_rates
    from mmserver.experiments.planning import rest_of
    from mmserver.experiments.simulating import Scenario

    given = {name: value for name, value in world.items() if value is not None}
    if traffic_split is not None:
        given["treatment_weight"] = rest_of(traffic_split)
    try:
        scenario = Scenario(**given, ramps=tuple(_ramp(text) for text in ramps))
        policies = _policies(tuple(dict.fromkeys(policy)) or POLICIES, numbers)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    found = error_rates(scenario, policies, n_runs=n_runs, seed=seed, on_progress=lambda n: _say(n, n_runs))
    if as_json:
        print_json({"scenario": scenario, "seed": seed, "policies": policies, "items": found})
    else:
        print_rows([msgspec.structs.asdict(row) for row in found], COLUMNS, as_json=False)


def _ramp(text: str) -> tuple[int, float]:
    hour, _, share = text.partition(":")
    try:
        return int(hour), float(share)
    except ValueError:
        raise ValueError(f"{text!r} is no ramp; one is HOUR:SHARE, such as 240:0.2") from None


def _policies(names: tuple[str, ...], numbers: tuple[str, ...]) -> list[Any]:
    """The policies, each with those of the numbers that it has."""
    from mmserver.experiments.policies import ClassicPolicy, SequentialPolicy, policy_from

    kinds = {"sequential": SequentialPolicy, "classic": ClassicPolicy}
    values: dict[str, float] = {}
    for text in numbers:
        field, _, value = text.partition("=")
        if not any(field in kinds[name].__struct_fields__ for name in names):
            raise ValueError(f"{' and '.join(names)}: no number is called {field!r}")
        values[field] = number(field, value)
    return [
        policy_from({"policy": name, **{k: v for k, v in values.items() if k in kinds[name].__struct_fields__}})
        for name in names
    ]


def _say(n_done: int, n_runs: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"{n_done} of {n_runs} runs", err=True)
