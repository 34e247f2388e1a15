"""Sums that are kept as predictions and outcomes come are those of the rows, in whatever order and how often they come."""

import math
import random
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation, Outcome, ShadowAnswer
from mmserver.experiments.totals import ExperimentTotals

HORIZON_S = 600


def assert_same(found: Any, expected: Any, place: str = "totals") -> None:
    """Equal but for the rounding of sums."""
    if is_dataclass(found):
        assert type(found) is type(expected), place
        for field in fields(found):
            assert_same(getattr(found, field.name), getattr(expected, field.name), f"{place}.{field.name}")
    elif isinstance(found, dict):
        assert sorted(found) == sorted(expected), place
        for key, value in found.items():
            assert_same(value, expected[key], f"{place}[{key!r}]")
    elif isinstance(found, float) or isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-9), (place, found, expected)
    else:
        assert found == expected, place


def _answer(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.1:
        return {"direction": None, "error": "prediction_failed"}
    return {"direction": rng.choice([0, 1, 2, 1, 2, None]), "error": None}


def _predictions(rng: random.Random, start_s: float, mode: str, n: int) -> list[Observation]:
    made = []
    for number in range(n):
        symbol = f"S{rng.randrange(4)}"
        at_s = start_s + number
        arm = "control" if mode == "shadow" else rng.choice(["control", "treatment"])
        has_shadow = (mode == "shadow" and rng.random() < 0.9) or (
            mode == "split" and arm == "treatment" and rng.random() < 0.5
        )
        shadow = (
            ShadowAnswer(**{"expected_return": 0.1, "latency_us": rng.randrange(1, 5000)} | _answer(rng))
            if has_shadow
            else None
        )
        made.append(
            Observation(
                prediction_id=f"{mode}-{number}",
                at_us=int(at_s * 1e6),
                experiment_key=1,
                phase=1 + (number > n // 2),
                arm=arm,
                unit=rng.choice([f"{symbol}|{int(at_s // 100)}", f"caller{rng.randrange(6)}"]),
                symbol=symbol,
                latency_us=rng.randrange(1, 5000),
                features=rng.randbytes(8),
                shadow=shadow,
                horizon_us=HORIZON_S * 1_000_000,
                is_washed_out=rng.random() < 0.1,
                **_answer(rng),
            )
        )
    return made


def _outcome(rng: random.Random, prediction: Observation) -> Outcome:
    label = rng.choice(["BUY", "SELL", "HOLD", 0, 1, 2, None])
    realized_return = rng.choice([None, rng.gauss(0, 0.01)]) if label is not None else rng.gauss(0, 0.01)
    return Outcome(prediction_id=prediction.prediction_id, label=label, realized_return=realized_return)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["split", "shadow"])
@pytest.mark.parametrize("seed", range(6))
def test_sums_are_those_of_the_rows_whatever_comes_late_twice_or_in_conflict(
    observations: ObservationLog,
    clock: Any,
    recompute: Callable[[ObservationStore, int], ExperimentTotals],
    mode: str,
    seed: int,
) -> None:
    rng = random.Random(seed)
    predictions = _predictions(rng, clock.now_s, mode, 400)
    sent: list[Observation] = []
    outcomes: list[Outcome] = []
    waiting = list(predictions)
    for _ in range(30):
        batch, waiting = waiting[:37], waiting[37:]
        rng.shuffle(batch)
        for prediction in batch:
            observations.append(prediction, must_keep=True)
        sent += batch
        if sent and rng.random() < 0.2:
            observations.append(rng.choice(sent), must_keep=True)  # a second time
        if rng.random() < 0.5:
            observations.flush()
        chosen = [_outcome(rng, rng.choice(predictions)) for _ in range(40)]
        outcomes += chosen
        again = [rng.choice(outcomes) for _ in range(5)]
        report = observations.add_outcomes([*chosen, *again])
        assert report.n_accepted + report.n_duplicates + report.n_errors == 45
        clock.now_s += rng.choice([-30.0, 40.0, 90.0, 200.0])
    observations.flush()
    totals = observations.read_totals(1)
    assert totals.control.accuracy.n > 5
    assert totals.control.joins.y > 5
    assert_same(totals, recompute(observations.store(), 1))


def test_sums_of_another_experiment_stay_apart(
    observations: ObservationLog, observe: Callable[..., Observation]
) -> None:
    observations.append(observe("a"), must_keep=True)
    observations.append(observe("b", experiment_key=2), must_keep=True)
    observations.append(observe("c", experiment_key=None, arm=None), must_keep=False)
    observations.flush()
    assert observations.read_totals(1).control.n_predictions == 1
    assert observations.read_totals(2).control.n_predictions == 1
    assert observations.read_totals(3) == ExperimentTotals()


def test_a_unit_that_both_arms_served_is_counted_as_such_once(
    observations: ObservationLog, observe: Callable[..., Observation]
) -> None:
    for number in range(6):
        observations.append(observe(f"c{number}", unit=f"u{number}"), must_keep=True)
    observations.flush()
    for number in range(3):
        for again in range(2):
            observations.append(observe(f"t{number}{again}", unit=f"u{number}", arm="treatment"), must_keep=True)
        observations.flush()
    phase = observations.read_totals(1).phases[1]
    assert phase.n_units_in_both_arms == 3
    assert (phase.control.n_units, phase.treatment.n_units) == (6, 3)


def test_a_shadow_is_no_unit_that_both_arms_served(
    observations: ObservationLog, observe: Callable[..., Observation]
) -> None:
    observations.append(observe("a", shadow=ShadowAnswer(2, None, 100)), must_keep=True)
    observations.flush()
    phase = observations.read_totals(1).phases[1]
    assert phase.n_units_in_both_arms == 0
    assert (phase.control.n_units, phase.treatment.n_units) == (1, 1)
    assert phase.paired is not None
    assert (phase.paired.latency.c, phase.paired.latency.t) == (0.3, 0.1)


def test_a_prediction_without_an_outcome_counts_as_one_only_when_its_grace_is_over(
    observations: ObservationLog, observe: Callable[..., Observation], clock: Any
) -> None:
    for number in range(3):
        observations.append(observe(f"p{number}", unit=f"u{number}", horizon_us=100_000_000), must_keep=True)
    clock.now_s += 159
    observations.flush()
    assert observations.add_outcomes([Outcome(prediction_id="p0", label="BUY")]).n_late == 0
    assert observations.read_totals(1).control.joins.x == 0
    clock.now_s += 1
    observations.flush()
    joins = observations.read_totals(1).control.joins
    assert (joins.x, joins.y) == (3, 1)
    assert observations.add_outcomes([Outcome(prediction_id="p1", label="BUY")]).n_late == 1
    clock.now_s -= 3600
    observations.flush()
    joins = observations.read_totals(1).control.joins
    assert (joins.n, joins.x, joins.y) == (3, 3, 2)
