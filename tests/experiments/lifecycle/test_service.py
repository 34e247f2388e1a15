"""Predictions while experiments run: who gets which arm, what is logged before the answer, and what a failing arm costs."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.errors import FeaturesInvalid, FieldsInvalid, Overloaded, SymbolNotFound
from mmserver.experiments.assignment import arm_of
from mmserver.experiments.lifecycle import ramp_experiment, stop_experiment
from mmserver.experiments.observations.journal import Journal
from mmserver.experiments.observations.records import read_records
from mmserver.experiments.observations.values import Observation
from mmserver.experiments.service import Experimenter
from mmserver.registry.stages import promote
from mmserver.serving.predictions import Asked, Prediction, Serving
from tests.experiments.lifecycle.conftest import Create
from tests.registry.conftest import TEST, Bench

ROW = [0.3, -1.2, 0.8]
BY_NAME = {"momentum": 0.3, "volume": -1.2, "spread": 0.8}


@dataclass
class Desk:
    """An experimenter of one process, and the journal that it writes to."""

    bench: Bench
    serving: Serving
    journal: Journal
    experimenter: Experimenter

    def ask(self, symbol: str = "BTC/USDT", features: Any = None, **more: Any) -> Prediction:
        more.setdefault("model_name", "hybrid")
        return self.experimenter.predict(Asked(symbol, ROW if features is None else features, **more))

    @property
    def logged(self) -> list[Observation]:
        files = sorted(self.journal.folder.glob("*.journal"))
        return [one for path in files for one in read_records(path.read_bytes()).observations]

    def returned(self, version: str, symbol: str = "BTC/USDT") -> float | None:
        """What the version gives when it is asked for by its label."""
        return self.serving.predict(Asked(symbol, ROW, "hybrid", version)).decision.expected_return


@pytest.fixture
def open_desk(tmp_path: Path) -> Callable[[Bench], Desk]:
    def open_it(bench: Bench, **options: Any) -> Desk:
        serving = Serving(bench.store)
        journal = Journal(tmp_path / "journals", **options)
        return Desk(bench, serving, journal, Experimenter(serving, journal))

    return open_it


@pytest.fixture
def desk(three: Bench, open_desk: Callable[[Bench], Desk]) -> Desk:
    return open_desk(three)


def test_a_request_gets_its_units_arm_and_is_logged_with_what_was_answered(desk: Desk, create: Create) -> None:
    experiment = create(desk.bench.store, treatment_weight=0.5, unit="symbol", horizon_s=60.0)
    seen = set()
    for n in range(40):
        answer = desk.ask(f"SYM-{n}")
        arm = arm_of(salt="exp:1", unit=f"sym{n}", treatment_weight=0.5)
        version = {"control": "1.0.0", "treatment": "1.9.0"}[arm]
        assert (answer.variant, answer.experiment_id, answer.version, answer.fallback) == (arm, "exp", version, None)
        assert answer.decision.expected_return == desk.returned(version)
        logged = desk.logged[-1]
        assert (logged.prediction_id, logged.arm, logged.unit) == (answer.prediction_id, arm, f"sym{n}")
        assert (logged.model_name, logged.version, logged.experiment_key) == ("hybrid", version, experiment.log_key)
        assert logged.expected_return == answer.decision.expected_return
        assert logged.features == np.array(ROW, np.float32).tobytes()
        assert logged.horizon_us == 60_000_000
        seen.add(arm)
    assert seen == {"control", "treatment"}


def test_without_an_experiment_nothing_is_assigned_or_logged(desk: Desk, create: Create) -> None:
    create(desk.bench.store, start=False)
    answer = desk.ask()
    assert (answer.variant, answer.experiment_id, desk.logged) == (None, None, [])
    assert not desk.journal.folder.exists()


def test_a_model_found_by_its_symbol_is_in_its_experiment(desk: Desk, create: Create) -> None:
    create(desk.bench.store)
    assert desk.ask(model_name=None).experiment_id == "exp"
    assert desk.ask(model_name=None, version="latest").experiment_id == "exp"


@pytest.mark.parametrize(
    "more",
    [pytest.param({"version": "1.10.0"}, id="a-label"), pytest.param({"model_name": "other"}, id="another-model")],
)
def test_a_request_that_means_another_version_is_in_no_experiment(
    desk: Desk, create: Create, more: dict[str, Any]
) -> None:
    desk.bench.register("1.0.0", 3, "other")
    create(desk.bench.store)
    assert desk.ask(**more).variant is None
    assert desk.logged == []


def test_a_request_may_name_its_experiment_and_then_leaves_the_version_to_it(desk: Desk, create: Create) -> None:
    create(desk.bench.store)
    assert desk.ask(model_name=None, experiment_id="exp").experiment_id == "exp"
    with pytest.raises(FieldsInvalid, match="model_version"):
        desk.ask(experiment_id="exp", version="1.10.0")
    desk.bench.register("1.0.0", 3, "other")
    with pytest.raises(FieldsInvalid, match="is on hybrid"):
        desk.ask(experiment_id="exp", model_name="other")
    assert desk.ask(experiment_id="yesterdays").variant is None  # it has ended: the model answers as it does


def test_units_of_the_caller_need_to_be_named_by_who_names_the_experiment(desk: Desk, create: Create) -> None:
    create(desk.bench.store, unit="unit_id", treatment_weight=0.5)
    arms = {n: desk.ask(unit_id=f"order-{n}").variant for n in range(30)}
    assert arms == {n: arm_of(salt="exp:1", unit=f"order-{n}", treatment_weight=0.5) for n in range(30)}
    with pytest.raises(FieldsInvalid, match="unit_id"):
        desk.ask(experiment_id="exp")
    assert desk.ask().variant is None


def test_a_block_of_time_has_one_arm_and_its_first_horizon_is_washed_out(desk: Desk, create: Create) -> None:
    create(desk.bench.store, block_s=600.0, horizon_s=120.0, treatment_weight=0.5)
    start = desk.bench.calendar.moment.replace(hour=15, minute=0, second=0)
    for minute in range(40):
        desk.bench.calendar.moment = start.replace(minute=minute)
        desk.ask()
    logged = desk.logged
    assert len({one.unit for one in logged}) == 4
    assert all(len({one.arm for one in logged if one.unit == unit}) == 1 for unit in {one.unit for one in logged})
    assert [one.is_washed_out for one in logged[:10]] == [True, True] + [False] * 8


def test_units_by_prediction_follow_the_weight(desk: Desk, create: Create) -> None:
    create(desk.bench.store, unit="prediction", treatment_weight=0.5)
    answers = [desk.ask() for _ in range(400)]
    for answer in answers:
        assert answer.variant == arm_of(salt="exp:1", unit=answer.prediction_id, treatment_weight=0.5)
    assert 140 <= Counter(answer.variant for answer in answers)["treatment"] <= 260  # 6 sigma


def test_a_ramp_never_moves_a_treated_unit_back(desk: Desk, create: Create) -> None:
    create(desk.bench.store, unit="symbol")
    treated: set[str] = set()
    for weight in (0.1, 0.2, 0.5):
        ramp_experiment(desk.bench.store, "exp", weight, TEST)
        now = {f"S{n}" for n in range(200) if desk.ask(f"S{n}").variant == "treatment"}
        assert treated < now
        treated = now
    assert {one.phase for one in desk.logged} == {1, 2, 3}


def test_every_process_gives_a_unit_the_same_arm(
    desk: Desk, create: Create, open_bench: Callable[..., Bench], open_desk: Callable[[Bench], Desk]
) -> None:
    create(desk.bench.store, unit="symbol", treatment_weight=0.5)
    other = open_desk(open_bench(desk.bench.store.settings.data_dir))
    for n in range(50):
        ours, theirs = desk.ask(f"S{n}"), other.ask(f"S{n}")
        assert (ours.variant, ours.version) == (theirs.variant, theirs.version)


def test_in_shadow_mode_the_control_answers_and_both_are_logged(desk: Desk, create: Create) -> None:
    create(desk.bench.store, mode="shadow", treatment_weight=1.0)
    answer = desk.ask()
    assert (answer.variant, answer.version) == ("control", "1.0.0")
    [logged] = desk.logged
    assert (logged.arm, logged.version) == ("control", "1.0.0")
    assert logged.expected_return == desk.returned("1.0.0")
    assert logged.shadow is not None
    assert logged.shadow.expected_return == desk.returned("1.9.0") != logged.expected_return
    assert logged.shadow.error is None


def test_a_treatment_that_fails_is_answered_by_the_control_and_counts_against_the_treatment(
    desk: Desk, create: Create
) -> None:
    desk.bench.register("2.0.0", 3, factors=("a", "b", "c"))
    create(desk.bench.store, treatment=("hybrid", "2.0.0"), treatment_weight=1.0)
    answer = desk.ask(features=BY_NAME)
    assert (answer.variant, answer.version, answer.fallback) == ("control", "1.0.0", "features_invalid")
    assert answer.decision.expected_return == desk.returned("1.0.0")
    [logged] = desk.logged
    assert (logged.prediction_id, logged.arm, logged.version) == (answer.prediction_id, "treatment", "2.0.0")
    assert (logged.error, logged.direction) == ("features_invalid", None)


@pytest.mark.parametrize("mode", ["split", "shadow"])
def test_numbers_without_names_are_never_given_to_a_treatment_of_other_factors(
    desk: Desk, create: Create, mode: str
) -> None:
    desk.bench.register("2.0.0", 3, factors=("a", "b", "c"))
    create(desk.bench.store, treatment=("hybrid", "2.0.0"), treatment_weight=1.0, mode=mode)
    answer = desk.ask()
    assert (answer.variant, answer.version) == ("control", "1.0.0")
    assert answer.decision.expected_return == desk.returned("1.0.0")
    [logged] = desk.logged
    code = logged.error if logged.shadow is None else logged.shadow.error
    assert code == "inputs_differ"
    assert answer.fallback == (None if mode == "shadow" else "inputs_differ")


def test_in_shadow_mode_a_failing_treatment_is_noted_and_costs_nothing(desk: Desk, create: Create) -> None:
    desk.bench.register("2.0.0", 3, factors=("a", "b", "c"))
    create(desk.bench.store, treatment=("hybrid", "2.0.0"), mode="shadow")
    answer = desk.ask(features=BY_NAME)
    assert (answer.variant, answer.fallback) == ("control", None)
    [logged] = desk.logged
    assert logged.error is None
    assert logged.shadow is not None
    assert (logged.shadow.direction, logged.shadow.error) == (None, "features_invalid")


def test_an_archived_treatment_is_answered_by_the_control(desk: Desk, create: Create) -> None:
    desk.bench.register("1.0.0", 3, "other")
    desk.bench.register("1.1.0", 4, "other")
    promote(desk.bench.store, "other", "1.0.0", TEST)
    create(desk.bench.store, treatment=("other", "1.0.0"), treatment_weight=1.0)
    assert desk.ask().model_name == "other"
    promote(desk.bench.store, "other", "1.1.0", TEST)
    answer = desk.ask()
    assert (answer.model_name, answer.variant, answer.fallback) == ("hybrid", "control", "version_archived")
    assert [one.error for one in desk.logged] == [None, "version_archived"]


def test_what_a_client_gets_wrong_is_refused_and_is_no_failure_of_an_arm(desk: Desk, create: Create) -> None:
    create(desk.bench.store, treatment_weight=0.5, unit="prediction")
    for _ in range(20):
        with pytest.raises(FeaturesInvalid):
            desk.ask(features=[1.0])
    assert desk.logged == []


def test_what_somebody_promotes_is_served_from_the_next_request_on(desk: Desk, create: Create) -> None:
    create(desk.bench.store)
    assert desk.ask().experiment_id == "exp"
    promote(desk.bench.store, "hybrid", "1.10.0", TEST)
    answer = desk.ask()
    assert (answer.version, answer.variant, answer.experiment_id) == ("1.10.0", None, None)


def test_a_stopped_experiment_is_over_at_the_next_request(desk: Desk, create: Create) -> None:
    create(desk.bench.store)
    stop_experiment(desk.bench.store, "exp", TEST)
    assert (desk.ask().variant, desk.ask().version) == (None, "1.10.0")


def test_what_cannot_be_logged_is_not_answered(three: Bench, create: Create, open_desk: Callable[..., Desk]) -> None:
    desk = open_desk(three, limit_bytes=1000)
    create(three.store)
    n_answered = 0
    with pytest.raises(Overloaded):
        for _ in range(1000):
            desk.ask()
            n_answered += 1
    assert 0 < n_answered == len(desk.logged)
    assert desk.ask(version="1.0.0").variant is None  # outside of experiments all goes on


def test_disjoint_slices_of_a_namespace_share_out_the_units(desk: Desk, create: Create) -> None:
    create(desk.bench.store, "low", namespace=("desk", 0.0, 0.5), unit="symbol")
    create(desk.bench.store, "mid", namespace=("desk", 0.5, 0.8), unit="symbol", treatment=("hybrid", "1.10.0"))
    found = Counter(desk.ask(f"S{n}").experiment_id for n in range(300))
    assert set(found) == {"low", "mid", None}
    assert 100 <= found["low"] <= 200  # of 150, 5.8 sigma
    assert 45 <= found["mid"] <= 135


def test_a_batch_puts_each_item_into_its_own_arm_in_the_order_asked(desk: Desk, create: Create) -> None:
    create(desk.bench.store, unit="symbol", treatment_weight=0.5)
    asked = [Asked(f"S{n}", ROW, "hybrid") for n in range(20)]
    asked[3] = Asked("S3", ROW, "hybrid", "1.10.0")
    asked[5] = Asked("S5", [1.0], "hybrid")
    asked[7] = Asked("S7", ROW, "hybrid", experiment_id="exp", version="1.10.0")
    answers = desk.experimenter.predict_many(asked)
    assert isinstance(answers[5], FeaturesInvalid)
    assert isinstance(answers[7], FieldsInvalid)
    for n, answer in enumerate(answers):
        if n in (5, 7):
            continue
        assert isinstance(answer, Prediction)
        arm = None if n == 3 else arm_of(salt="exp:1", unit=f"s{n}", treatment_weight=0.5)
        assert (answer.symbol, answer.variant) == (f"S{n}", arm)
    assert len(desk.logged) == 17


def test_a_symbol_that_no_arm_has_is_refused_as_ever(
    three: Bench, create: Create, open_desk: Callable[[Bench], Desk]
) -> None:
    alpha = three.watch(0)
    three.write_watched(1)
    three.refresh()
    create(three.store, control=("alpha", alpha.serving.label), treatment=("alpha", "latest"))
    desk = open_desk(three)
    assert desk.ask("BTC", model_name="alpha").experiment_id == "exp"
    with pytest.raises(SymbolNotFound):
        desk.ask("ETH", model_name="alpha")
    assert len(desk.logged) == 1


def test_nothing_runs_quickly_before_both_arms_are_loaded(desk: Desk, create: Create) -> None:
    create(desk.bench.store, unit="prediction")
    asked = Asked("BTC", ROW, "hybrid")
    assignment = desk.experimenter.assigned(asked)
    assert assignment is not None
    assert not desk.experimenter.ready_arms(asked, assignment, float("inf"))
    while {one.arm for one in desk.logged} != {"control", "treatment"}:
        desk.ask("BTC")
    assert desk.experimenter.ready_arms(asked, assignment, float("inf"))
    assert not desk.experimenter.ready_arms(asked, assignment, 0.0)
