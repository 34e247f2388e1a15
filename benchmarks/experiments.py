"""How often experiments are decided wrongly: equal and unequal models, 90/10, looked at every hour for 30 days, by both policies.

python -m benchmarks.experiments [--smoke] [--runs 2000] [--seed 1]
"""

import argparse
import time
from typing import Any

import msgspec

from benchmarks.measuring import Goal, machine, print_goals, print_table
from mmserver.experiments.error_rates import ErrorRates, error_rates
from mmserver.experiments.policies import ClassicPolicy, SequentialPolicy
from mmserver.experiments.simulating import Scenario

N_RUNS, N_OTHER_RUNS = 2000, 500
SMOKE: dict[str, Any] = {"days": 3.0, "look_every_hours": 12}
SMOKE_RUNS = 20
MOST_MISTAKES, LEAST_PROMOTED = 0.05, 0.95

EQUAL = "A/A: equal models"
ALIKE = "A/A, outcomes alike within and between units (AR(1), 0.5)"
BETTER = "4 points more accurate"
JUDGED: dict[str, dict[str, Any]] = {
    EQUAL: {"return_sd": 0.01},
    ALIKE: {"return_sd": 0.01, "autocorrelation": 0.5},
    BETTER: {"accuracy_gain": 0.04},
}
"""With all runs."""
OTHERS: dict[str, dict[str, Any]] = {
    "A/A, AR(1) 0.9": {"autocorrelation": 0.9},
    "A/A, 20 predictions an hour": {"predictions_per_hour": 20},
    "A/A, 5 symbols in blocks of 4 hours": {"n_symbols": 5, "block_hours": 4},
    "A/A, ramps to 20 % and 50 %, accuracy rising by 10 points": {
        "ramps": ((240, 0.2), (480, 0.5)),
        "accuracy_drift": 0.1,
    },
    "2 points more accurate": {"accuracy_gain": 0.02},
    "4 points more accurate, AR(1) 0.5": {"accuracy_gain": 0.04, "autocorrelation": 0.5},
    "5 points less accurate": {"accuracy_gain": -0.05},
    "3 times the errors": {"error_factor": 3.0},
    "twice the errors": {"error_factor": 2.0},
    "3 ms slower": {"latency_increase_ms": 3.0},
}
"""With fewer."""
COLUMNS = (
    "truth",
    "policy",
    "runs",
    "ever promote",
    "ever roll back",
    "first: promote",
    "first: roll back",
    "undecided",
    "median hours",
    "ever invalid",
    "interval ever wrong: accuracy",
    "return",
)


def main(arguments: list[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few runs of three days")
    parser.add_argument("--runs", type=int, default=N_RUNS, help="of the first three")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    started = time.perf_counter()
    found = {
        truth: _rates(changes, given.runs if truth in JUDGED else min(given.runs, N_OTHER_RUNS), given)
        for truth, changes in {**JUDGED, **OTHERS}.items()
    }
    print(f"{machine()}; {time.perf_counter() - started:.0f} s, seed {given.seed}")
    print_goals(_goals({truth: rates[0] for truth, rates in found.items()}))
    print_table(
        "Decisions, as shares of the runs",
        COLUMNS,
        [_row(truth, rate) for truth, rates in found.items() for rate in rates],
    )


def _rates(changes: dict[str, Any], n_runs: int, given: argparse.Namespace) -> list[ErrorRates]:
    if not given.smoke:
        return error_rates(Scenario(**changes), (SequentialPolicy(), ClassicPolicy()), n_runs=n_runs, seed=given.seed)
    short = msgspec.structs.replace(Scenario(**{**changes, "ramps": ()}), **SMOKE)
    return error_rates(short, (SequentialPolicy(), ClassicPolicy()), n_runs=SMOKE_RUNS, seed=given.seed)


def _goals(sequential: dict[str, ErrorRates]) -> list[Goal]:
    mistakes = [
        Goal(f"{truth}: ever {what}", share, at_most=MOST_MISTAKES)
        for truth in (EQUAL, ALIKE)
        for what, share in (
            ("promoted", sequential[truth].ever_promote),
            ("rolled back", sequential[truth].ever_rollback),
        )
    ]
    return [*mistakes, Goal(f"{BETTER}: promoted", sequential[BETTER].first_promote, at_least=LEAST_PROMOTED)]


def _row(truth: str, rate: ErrorRates) -> tuple[object, ...]:
    hours = "" if rate.median_hours is None else f"{rate.median_hours:.0f}"
    shares = (rate.ever_promote, rate.ever_rollback, rate.first_promote, rate.first_rollback, rate.undecided)
    return (
        truth,
        rate.policy,
        rate.n_runs,
        *(f"{share:.3f}" for share in shares),
        hours,
        *(
            "" if share is None else f"{share:.3f}"
            for share in (rate.ever_invalid, rate.ever_missed_accuracy, rate.ever_missed_return)
        ),
    )


if __name__ == "__main__":
    main()
