"""Outcomes: each kind of late, doubled, wrong or impossible one has its own answer, and none spoils the others."""

from collections.abc import Callable
from typing import Any

import pytest

from mmserver.experiments.observations.dead_bands import DeadBands
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.reports import MAX_ERRORS, OutcomeReport
from mmserver.experiments.observations.values import Observation, Outcome

HORIZON_S = 100


@pytest.fixture
def log(observations: ObservationLog, observe: Callable[..., Observation], clock: Any) -> ObservationLog:
    """Ten predictions BUY of which the horizon is over."""
    for number in range(10):
        observation = observe(f"p{number}", unit=f"u{number}", horizon_us=HORIZON_S * 1_000_000)
        observations.append(observation, must_keep=True)
    observations.flush()
    clock.now_s += HORIZON_S
    return observations


def _counts(report: OutcomeReport) -> dict[str, int]:
    names = ("accepted", "duplicates", "conflicts", "unknown", "premature", "in_future", "invalid")
    counts = {name: getattr(report, f"n_{name}") for name in names}
    return {name: count for name, count in counts.items() if count}


def _one(log: ObservationLog, **values: Any) -> OutcomeReport:
    return log.add_outcomes([Outcome(**({"prediction_id": "p0"} | values))])


@pytest.mark.parametrize(
    ("label", "code"),
    [("BUY", 1), ("SELL", 2), ("HOLD", 0), (0, 0), (1, 1), (2, 2)],
)
def test_a_label_is_a_name_or_a_direction_code(log: ObservationLog, label: Any, code: int) -> None:
    assert _counts(_one(log, label=label)) == {"accepted": 1}
    labels = log.read_totals(1).control.labels.counts
    assert [row[1] for row in labels] == [int(place == code) for place in range(3)]


def test_the_same_outcome_again_changes_nothing(log: ObservationLog) -> None:
    _one(log, label="BUY", realized_return=0.01)
    before = log.read_totals(1)
    assert _counts(_one(log, label="BUY", realized_return=0.01)) == {"duplicates": 1}
    assert _counts(_one(log, label=1)) == {"duplicates": 1}
    assert log.read_totals(1) == before


def test_of_two_in_one_call_the_second_is_judged_by_the_first(log: ObservationLog) -> None:
    outcomes = [Outcome(prediction_id="p1", label=label) for label in ("BUY", "BUY", "SELL")]  # type: ignore[arg-type]
    assert _counts(log.add_outcomes(outcomes)) == {"accepted": 1, "duplicates": 1, "conflicts": 1}
    assert log.read_totals(1).control.accuracy.x == 1


@pytest.mark.parametrize("other", [{"label": "SELL"}, {"realized_return": 0.02}])
def test_another_outcome_is_a_conflict_and_the_first_stays(log: ObservationLog, other: dict[str, Any]) -> None:
    _one(log, label="BUY", realized_return=0.01)
    before = log.read_totals(1)
    report = _one(log, **other)
    assert _counts(report) == {"conflicts": 1}
    assert (report.errors[0].index, report.errors[0].prediction_id, report.errors[0].code) == (0, "p0", "conflict")
    assert "stays" in report.errors[0].message
    assert log.read_totals(1) == before


def test_what_was_missing_of_an_outcome_may_come_later(log: ObservationLog) -> None:
    assert _counts(_one(log, realized_return=-0.01)) == {"accepted": 1}
    assert _counts(_one(log, label="SELL")) == {"accepted": 1}
    control = log.read_totals(1).control
    assert (control.accuracy.x, control.accuracy.y) == (1, 0)
    assert (control.returns.x, control.returns.y) == (1, -0.01)
    assert (control.wins.count, control.wins.n) == (0, 1)


def test_an_unknown_prediction_is_said_and_the_rest_is_added(log: ObservationLog) -> None:
    report = log.add_outcomes([Outcome(prediction_id=name, label="BUY") for name in ("p0", "never made", "p1")])
    assert _counts(report) == {"accepted": 2, "unknown": 1}
    assert [(error.index, error.prediction_id) for error in report.errors] == [(1, "never made")]


def test_a_prediction_of_another_experiment_is_unknown_to_this_one(log: ObservationLog) -> None:
    outcome = Outcome(prediction_id="p0", label="BUY")
    assert _counts(log.add_outcomes([outcome], experiment_key=2)) == {"unknown": 1}
    assert _counts(log.add_outcomes([outcome], experiment_key=1)) == {"accepted": 1}


def test_a_prediction_that_still_waits_in_a_journal_is_moved_first(
    log: ObservationLog, observe: Callable[..., Observation]
) -> None:
    log.append(observe("waiting"), must_keep=True)
    report = log.add_outcomes([Outcome(prediction_id=name, label="BUY") for name in ("waiting", "unknown", "p0")])
    assert _counts(report) == {"accepted": 2, "unknown": 1}
    assert report.n_waiting == 1


def test_an_outcome_before_the_end_of_the_horizon_is_premature_and_taken_afterwards(
    log: ObservationLog, clock: Any
) -> None:
    clock.now_s -= 1
    report = _one(log, label="BUY")
    assert _counts(report) == {"premature": 1}
    assert "1 s later" in report.errors[0].message
    assert log.read_totals(1).control.n_matured == 0
    clock.now_s += 1
    assert _counts(_one(log, label="BUY", at=clock.now_s - 1)) == {"premature": 1}
    assert _counts(_one(log, label="BUY")) == {"accepted": 1}


def test_after_the_clock_was_set_back_an_hour_outcomes_wait_and_nothing_is_lost(
    log: ObservationLog, clock: Any
) -> None:
    then = clock.now_s
    clock.now_s -= 3600
    assert _counts(_one(log, label="BUY")) == {"premature": 1}
    assert _counts(_one(log, label="BUY", at=then)) == {"in_future": 1}
    clock.now_s = then
    assert _counts(_one(log, label="BUY", at=then)) == {"accepted": 1}


def test_an_outcome_of_next_year_is_refused(log: ObservationLog, clock: Any) -> None:
    report = _one(log, label="BUY", at=clock.now_s + 365 * 86_400)
    assert _counts(report) == {"in_future": 1}
    assert "31536000 s ahead" in report.errors[0].message


def test_a_clock_that_is_a_little_ahead_is_forgiven(log: ObservationLog, clock: Any) -> None:
    assert _counts(_one(log, label="BUY", at=clock.now_s + 4.9)) == {"accepted": 1}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        pytest.param({"realized_return": float("nan")}, "not a finite number", id="NaN"),
        pytest.param({"realized_return": float("inf")}, "not a finite number", id="infinite"),
        pytest.param(
            {"realized_return": float("-inf"), "label": "BUY"}, "not a finite number", id="infinite and label"
        ),
        pytest.param({"realized_return": "0.1"}, "not a finite number", id="text"),
        pytest.param({"realized_return": True}, "not a finite number", id="boolean"),
        pytest.param({"realized_return": 1e300}, "more than", id="absurd"),
        pytest.param({"realized_return": 10**400}, "not a finite number", id="larger than a float"),
        pytest.param({}, "neither", id="nothing"),
        pytest.param({"label": "UP"}, "none of BUY, SELL, HOLD", id="no class"),
        pytest.param({"label": 3}, "none of BUY, SELL, HOLD", id="no code"),
        pytest.param({"label": True}, "none of BUY, SELL, HOLD", id="boolean label"),
        pytest.param({"label": 1.5}, "none of BUY, SELL, HOLD", id="fraction"),
        pytest.param({"label": []}, "none of BUY, SELL, HOLD", id="list"),
        pytest.param({"label": "BUY", "at": float("nan")}, "not seconds", id="NaN time"),
        pytest.param({"label": "BUY", "at": -1.0}, "not seconds", id="negative time"),
        pytest.param({"label": "BUY", "at": "yesterday"}, "not seconds", id="text time"),
        pytest.param({"label": "BUY", "prediction_id": ""}, "no prediction_id", id="no id"),
        pytest.param({"label": "BUY", "prediction_id": 7}, "no prediction_id", id="number as id"),
    ],
)
def test_what_cannot_be_an_outcome_is_refused_and_the_rest_is_added(
    log: ObservationLog, values: dict[str, Any], reason: str
) -> None:
    wrong = Outcome(**({"prediction_id": "p0"} | values))
    report = log.add_outcomes([wrong, Outcome(prediction_id="p1", label="BUY")])
    assert _counts(report) == {"accepted": 1, "invalid": 1}
    assert reason in report.errors[0].message


def test_only_the_first_errors_are_told_and_all_are_counted(log: ObservationLog) -> None:
    report = log.add_outcomes(Outcome(prediction_id=f"x{number}", label="BUY") for number in range(3 * MAX_ERRORS))
    assert report.n_unknown == report.n_errors == 3 * MAX_ERRORS
    assert [error.index for error in report.errors] == list(range(MAX_ERRORS))


def test_outcomes_are_read_a_chunk_at_a_time(log: ObservationLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserver.experiments.observations.outcomes._AT_ONCE", 3)
    n_read = 0

    def counted() -> Any:
        nonlocal n_read
        for number in range(10):
            n_read += 1
            added.append((n_read, log.read_totals(1).control.accuracy.x))
            yield Outcome(prediction_id=f"p{number}", label="BUY")

    added: list[tuple[int, float]] = []
    assert log.add_outcomes(counted()).n_accepted == 10
    assert added == [(number + 1, number // 3 * 3) for number in range(10)]


def test_an_outcome_of_a_failed_or_washed_out_prediction_is_kept_and_counts_nowhere(
    log: ObservationLog, observe: Callable[..., Observation]
) -> None:
    log.append(observe("failed", error="boom", direction=None), must_keep=True)
    log.append(observe("washed out", is_washed_out=True), must_keep=True)
    names = ("failed", "washed out")
    report = log.add_outcomes([Outcome(prediction_id=name, label="BUY", realized_return=0.1) for name in names])
    assert _counts(report) == {"accepted": 2}
    assert log.read_totals(1).control.n_matured == 0


def test_a_prediction_outside_experiments_may_have_an_outcome(
    log: ObservationLog, observe: Callable[..., Observation]
) -> None:
    log.append(observe("free", experiment_key=None, arm=None), must_keep=False)
    assert _counts(log.add_outcomes([Outcome(prediction_id="free", label="BUY")])) == {"accepted": 1}


@pytest.mark.parametrize(("realized_return", "label"), [(0.02, 1), (-0.02, 2), (0.01, 0), (-0.01, 0), (0.0, 0)])
def test_with_a_dead_band_a_return_says_what_would_have_been_right(
    log: ObservationLog, realized_return: float, label: int
) -> None:
    log.add_outcomes([Outcome(prediction_id="p0", realized_return=realized_return)], dead_bands=DeadBands(0.01))
    counts = log.read_totals(1).control.labels.counts
    assert [row[1] for row in counts] == [int(place == label) for place in range(3)]


def test_without_a_dead_band_a_return_gives_no_label(log: ObservationLog) -> None:
    _one(log, realized_return=0.02)
    assert log.read_totals(1).control.labels.n == 0


def test_what_is_refused_is_named_in_the_order_of_the_call(log: ObservationLog) -> None:
    outcomes = [Outcome(prediction_id="nobody", label="BUY"), Outcome(prediction_id="p0", label="MAYBE")]
    report = log.add_outcomes(outcomes)
    assert [(error.index, error.code) for error in report.errors] == [(0, "unknown"), (1, "invalid")]
