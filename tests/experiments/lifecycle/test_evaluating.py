"""Decisions that are kept, and what is done about them: promotions, rollbacks, deadlines, and what somebody else decided."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.exc import IntegrityError

from mmserver.errors import ExperimentStatusConflict, ExperimentUndecided, NotRecommended
from mmserver.experiments.evaluating import SCHEDULE, apply_result, evaluate_running, stop_and_report
from mmserver.experiments.experiments import get_experiment, list_evaluations
from mmserver.experiments.lifecycle import stop_experiment
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.values import Observation, Outcome
from mmserver.experiments.replaying import replay
from mmserver.registry.stages import promote
from mmserver.storage.audit import list_audit
from tests.experiments.lifecycle.conftest import Create
from tests.registry.conftest import TEST, Bench

POLICY = {"policy": "classic", "min_hours": 1.0}
N_UNITS = 400


@dataclass
class Trial:
    """A running experiment with what both arms did in it."""

    bench: Bench
    log: ObservationLog

    def observe(self, *, control_right: float, treatment_right: float, treatment_units: int = N_UNITS) -> None:
        """Predictions of both arms, of which so many shares came out as predicted."""
        key = get_experiment(self.bench.store, "exp").log_key
        outcomes = []
        at = self.bench.calendar.moment
        arms = (("control", control_right, N_UNITS), ("treatment", treatment_right, treatment_units))
        for arm, share, n_units in arms:
            for n in range(n_units):
                name = f"{arm}-{n}"
                seen = Observation(
                    prediction_id=name, at_us=int(at.timestamp() * 1e6), experiment_key=key, arm=arm,  # type: ignore[arg-type]
                    unit=name, symbol="btc", model_name="hybrid", version="1.0.0", direction=1, latency_us=100 + n % 7,
                )  # fmt: skip
                self.log.append(seen, must_keep=True)
                outcomes.append(Outcome(prediction_id=name, label="BUY" if n < share * n_units else "SELL"))
        self.bench.calendar.moment += timedelta(hours=30)
        assert self.log.add_outcomes(outcomes).n_accepted == len(outcomes)

    def now(self) -> float:
        """By its calendar, seconds since the epoch."""
        return self.bench.calendar.moment.timestamp()

    def look(self) -> None:
        evaluate_running(self.bench.store, self._opened)

    def _opened(self) -> ObservationLog:
        return self.log

    @property
    def actions(self) -> list[str]:
        with self.bench.store.database.read() as connection:
            return [entry.action for entry in reversed(list_audit(connection, 100)) if entry.actor != "test"]


@pytest.fixture
def trial(three: Bench, tmp_path: Path) -> Iterator[Trial]:
    def now() -> float:
        return three.calendar.moment.timestamp()

    log = ObservationLog(tmp_path / "log", now=now)
    yield Trial(three, log)
    log.close()


@pytest.fixture
def running(trial: Trial, create: Create) -> Callable[..., Trial]:
    def start(**changes: Any) -> Trial:
        promote(trial.bench.store, "hybrid", "1.0.0", TEST)
        create(trial.bench.store, **{"treatment_weight": 0.5, "unit": "unit_id", "policy": POLICY, **changes})
        return trial

    return start


def test_a_better_treatment_is_promoted_by_itself_with_an_audit_of_each_step(running: Callable[..., Trial]) -> None:
    trial = running(auto=True)
    trial.look()
    assert get_experiment(trial.bench.store, "exp").status == "running"
    trial.observe(control_right=0.5, treatment_right=0.7)
    trial.look()
    ended = get_experiment(trial.bench.store, "exp")
    assert (ended.status, ended.applied) == ("applied", "promote")
    assert trial.bench.served == "1.9.0"
    assert trial.bench.model.stages["production"] == "1.9.0"
    assert trial.actions == ["experiment.stopped", "experiment.applied", "version.promoted"]


def test_a_lopsided_arm_is_invalid_and_is_neither_applied_nor_acted_on_by_auto(running: Callable[..., Trial]) -> None:
    """However much better the treatment looks."""
    trial = running(auto=True)
    trial.observe(control_right=0.3, treatment_right=0.9, treatment_units=200)
    trial.look()
    assert get_experiment(trial.bench.store, "exp").status == "running"
    assert trial.actions == []
    assert trial.bench.served == "1.0.0"
    (kept,) = list_evaluations(trial.bench.store, get_experiment(trial.bench.store, "exp").key, 10)
    said = kept.decision["recommendation"]
    assert (said["verdict"], said["action"]) == ("invalid", "continue")
    with pytest.raises(ExperimentUndecided):
        apply_result(trial.bench.store, trial.log, "exp", TEST)
    experiment, done = apply_result(trial.bench.store, trial.log, "exp", TEST, action="keep")
    assert (experiment.status, experiment.applied, done["promoted"]) == ("applied", "keep", None)


def test_without_auto_nothing_is_done_by_itself(running: Callable[..., Trial]) -> None:
    trial = running()
    trial.observe(control_right=0.5, treatment_right=0.7)
    trial.look()
    assert get_experiment(trial.bench.store, "exp").status == "running"
    assert trial.actions == []
    experiment, done = apply_result(trial.bench.store, trial.log, "exp", TEST)
    assert (experiment.applied, done["promoted"]) == ("promote", {"model_name": "hybrid", "version": "1.9.0"})
    with pytest.raises(ExperimentStatusConflict):
        apply_result(trial.bench.store, trial.log, "exp", TEST)


def test_a_worse_treatment_is_rolled_back_and_the_control_stays(running: Callable[..., Trial]) -> None:
    trial = running(auto=True)
    trial.observe(control_right=0.7, treatment_right=0.5)
    trial.look()
    assert get_experiment(trial.bench.store, "exp").applied == "rollback"
    assert trial.bench.model.stages["production"] == "1.0.0"
    assert trial.actions == ["experiment.stopped", "experiment.applied"]


def test_a_rollback_takes_a_treatment_out_of_production(running: Callable[..., Trial]) -> None:
    trial = running()
    promote(trial.bench.store, "hybrid", "1.9.0", TEST)
    _, done = apply_result(trial.bench.store, trial.log, "exp", TEST, action="rollback")
    assert done["promoted"] == {"model_name": "hybrid", "version": "1.0.0"}
    assert trial.bench.served == "1.0.0"


def test_what_somebody_promoted_meanwhile_is_not_overruled_by_the_schedule(running: Callable[..., Trial]) -> None:
    trial = running(auto=True)
    trial.observe(control_right=0.5, treatment_right=0.7)
    promote(trial.bench.store, "hybrid", "1.10.0", TEST)
    trial.look()
    assert trial.bench.served == "1.10.0"
    assert get_experiment(trial.bench.store, "exp").status == "running"


def test_an_undecided_experiment_is_applied_only_by_a_named_action(running: Callable[..., Trial]) -> None:
    trial = running()
    with pytest.raises(ExperimentUndecided, match="name an action"):
        apply_result(trial.bench.store, trial.log, "exp", TEST)
    assert get_experiment(trial.bench.store, "exp").status == "running"
    experiment, done = apply_result(trial.bench.store, trial.log, "exp", TEST, action="keep")
    assert (experiment.status, experiment.applied, done["promoted"]) == ("applied", "keep", None)
    kept = list_evaluations(trial.bench.store, experiment.key, 10)
    assert [one.reason for one in kept] == ["applied", "asked"]


def test_what_is_not_recommended_is_refused_where_only_that_is_to_be_done(running: Callable[..., Trial]) -> None:
    trial = running()
    trial.observe(control_right=0.5, treatment_right=0.7)
    for action in ("rollback", "keep"):
        with pytest.raises(NotRecommended, match="verdict is promote"):
            apply_result(trial.bench.store, trial.log, "exp", TEST, action=action, only_if_recommended=True)
    assert get_experiment(trial.bench.store, "exp").status == "running"
    experiment, _ = apply_result(trial.bench.store, trial.log, "exp", TEST, action="promote", only_if_recommended=True)
    assert experiment.applied == "promote"


@pytest.mark.parametrize(("auto", "status"), [(False, "stopped"), (True, "applied")])
def test_the_schedule_ends_an_experiment_whose_deadline_is_over(
    trial: Trial, create: Create, auto: bool, status: str
) -> None:
    deadline = trial.bench.calendar.moment + timedelta(hours=2)
    create(trial.bench.store, deadline_at=deadline, auto=auto)
    trial.look()
    assert get_experiment(trial.bench.store, "exp").status == "running"
    trial.bench.calendar.moment += timedelta(hours=3)
    trial.look()
    ended = get_experiment(trial.bench.store, "exp")
    assert (ended.status, ended.applied) == (status, "keep" if auto else None)


def test_every_kept_decision_is_made_again_from_its_inputs(running: Callable[..., Trial]) -> None:
    trial = running(policy="sequential")
    trial.look()
    trial.observe(control_right=0.5, treatment_right=0.7)
    trial.look()
    stop_and_report(trial.bench.store, trial.log, "exp", TEST)
    kept = list_evaluations(trial.bench.store, get_experiment(trial.bench.store, "exp").key, 10)
    assert [one.reason for one in kept] == ["stopped", "scheduled", "scheduled"]
    assert [one.decision["looks"]["n"] for one in kept] == [3, 2, 1]
    for one in kept:
        again = replay(msgspec.json.encode(one.inputs), msgspec.json.encode(one.decision["recommendation"]))
        assert again.is_same
        assert again.has_same_rules


def test_a_promotion_that_fails_leaves_the_experiment_running(running: Callable[..., Trial]) -> None:
    trial = running()
    trial.observe(control_right=0.5, treatment_right=0.7)
    with trial.bench.store.database.write() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON promotions BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with pytest.raises(IntegrityError, match="full"):
        apply_result(trial.bench.store, trial.log, "exp", SCHEDULE)
    ended = get_experiment(trial.bench.store, "exp")
    assert (ended.status, ended.applied, trial.actions, trial.bench.served) == ("running", None, [], "1.0.0")
    with trial.bench.store.database.write() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    assert apply_result(trial.bench.store, trial.log, "exp", SCHEDULE)[0].applied == "promote"


def test_a_stop_that_was_cut_off_keeps_its_last_decision_when_it_comes_again(running: Callable[..., Trial]) -> None:
    trial = running()
    trial.observe(control_right=0.5, treatment_right=0.5)
    stopped = stop_experiment(trial.bench.store, "exp", TEST)  # and the process died
    for _ in range(2):
        stop_and_report(trial.bench.store, trial.log, "exp", TEST)
        assert [one.reason for one in list_evaluations(trial.bench.store, stopped.key, 9)] == ["stopped"]


@pytest.mark.parametrize("kept", [pytest.param("none", id="deleted"), pytest.param("older", id="older-copy")])
def test_sums_that_are_not_those_of_the_last_look_make_an_experiment_invalid(
    running: Callable[..., Trial], tmp_path: Path, kept: str
) -> None:
    """Also where they have grown again beyond what they were."""
    trial = running(auto=True)
    trial.log.flush()
    with (
        closing(sqlite3.connect(tmp_path / "log/observations.sqlite")) as live,
        closing(sqlite3.connect(tmp_path / "older.sqlite")) as copy,
    ):
        live.backup(copy)
    trial.look()
    trial.log.close()
    for name in ("", "-wal", "-shm"):
        (tmp_path / f"log/observations.sqlite{name}").unlink(missing_ok=True)
    if kept == "older":
        (tmp_path / "older.sqlite").rename(tmp_path / "log/observations.sqlite")
    trial.log = ObservationLog(tmp_path / "log", now=trial.now)
    trial.observe(control_right=0.5, treatment_right=0.9)
    for _ in range(2):
        trial.look()
        experiment = get_experiment(trial.bench.store, "exp")
        assert (experiment.status, trial.bench.served) == ("running", "1.0.0")
        last = list_evaluations(trial.bench.store, experiment.key, 1)[0]
        assert last.decision["recommendation"]["verdict"] == "invalid"
        assert ["observations.sqlite" in text for text in last.decision["recommendation"]["reasons"]] == [True]
        stored = (msgspec.json.encode(last.inputs), msgspec.json.encode(last.decision["recommendation"]))
        assert replay(*stored).is_same
    trial.log.close()


def test_phases_that_an_older_copy_of_the_database_does_not_have_make_an_experiment_invalid(
    running: Callable[..., Trial],
) -> None:
    trial = running()
    key = get_experiment(trial.bench.store, "exp").log_key
    at_us = int(trial.bench.calendar.moment.timestamp() * 1e6)
    seen = Observation(prediction_id="a", at_us=at_us, experiment_key=key, arm="control", unit="a", phase=2)
    trial.log.append(seen, must_keep=True)
    trial.observe(control_right=0.5, treatment_right=0.9)
    trial.look()
    found = list_evaluations(trial.bench.store, get_experiment(trial.bench.store, "exp").key, 1)[0]
    assert found.decision["recommendation"]["verdict"] == "invalid"


def test_a_clock_that_is_set_back_an_hour_loses_nothing_and_concludes_nothing(running: Callable[..., Trial]) -> None:
    trial = running(policy={"policy": "sequential", "min_hours": 1.0}, auto=True)
    trial.observe(control_right=0.5, treatment_right=0.5)
    trial.look()
    key = get_experiment(trial.bench.store, "exp").key
    before = list_evaluations(trial.bench.store, key, 1)[0].decision["looks"]
    at = trial.bench.calendar.moment
    late = Observation(
        prediction_id="late", at_us=int(at.timestamp() * 1e6), arm="control", unit="late", direction=1,
        experiment_key=get_experiment(trial.bench.store, "exp").log_key,
    )  # fmt: skip
    trial.log.append(late, must_keep=True)
    trial.bench.calendar.moment = at - timedelta(hours=1)
    trial.look()
    after = list_evaluations(trial.bench.store, key, 1)[0].decision["looks"]
    assert (after["n"], after["least_p"] <= before["least_p"]) == (before["n"] + 1, True)
    early = trial.log.add_outcomes([Outcome(prediction_id="late", label="BUY")])
    assert (early.n_premature, early.n_errors) == (1, 1)  # told to send it again
    trial.bench.calendar.moment = at
    assert trial.log.add_outcomes([Outcome(prediction_id="late", label="BUY")]).n_accepted == 1
    trial.look()
    assert get_experiment(trial.bench.store, "exp").status == "running"


def test_a_clock_that_is_set_back_before_the_start_leaves_an_experiment_running(running: Callable[..., Trial]) -> None:
    trial = running(auto=True)
    trial.observe(control_right=0.5, treatment_right=0.9)
    trial.bench.calendar.moment -= timedelta(hours=31)
    trial.look()
    experiment = get_experiment(trial.bench.store, "exp")
    assert (experiment.status, trial.bench.served) == ("running", "1.0.0")
    trial.bench.calendar.moment += timedelta(hours=31)
    trial.look()
    assert get_experiment(trial.bench.store, "exp").applied == "promote"
