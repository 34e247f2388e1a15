"""Experiments from a draft to their end, and what stands against each step."""

from datetime import UTC, datetime
from typing import Any

import pytest

from mmserver.catalog.history import apply_retention
from mmserver.catalog.registering import register_model
from mmserver.errors import (
    ExperimentConflict,
    ExperimentNotFound,
    ExperimentStatusConflict,
    ExperimentTaken,
    ModelNotFound,
    ReadOnly,
    RequestInvalid,
    VersionChanged,
    VersionInUse,
    VersionNotFound,
)
from mmserver.experiments.experiments import get_experiment, list_experiments
from mmserver.experiments.lifecycle import (
    note_applied,
    ramp_experiment,
    start_experiment,
    stop_experiment,
    update_experiment,
)
from mmserver.experiments.planning import checked_plan
from mmserver.registry.removing import delete_model, delete_version
from mmserver.registry.stages import promote, retire, rollback, set_stage
from mmserver.storage.audit import list_audit
from tests.experiments.lifecycle.conftest import Create
from tests.registry.conftest import TEST, Bench


def actions(bench: Bench, target: str = "exp") -> list[str]:
    with bench.store.database.read() as connection:
        return [entry.action for entry in reversed(list_audit(connection, 100)) if entry.target == target]


def test_an_experiment_is_created_started_ramped_stopped_and_applied_each_with_its_audit(
    three: Bench, create: Create
) -> None:
    draft = create(three.store, start=False)
    assert (draft.status, draft.started_at, draft.phases[0].started_at) == ("draft", None, None)
    assert three.store.catalog.experiments == {}
    running = start_experiment(three.store, "exp", TEST)
    assert running.status == "running"
    assert running.started_at == running.phases[0].started_at is not None
    [active] = three.store.catalog.experiments["hybrid"]
    assert (active.salt, active.phase, active.treatment_weight) == ("exp:1", 1, 0.1)
    ramped = ramp_experiment(three.store, "exp", 0.5, TEST)
    assert [(phase.number, phase.salt, phase.treatment_weight) for phase in ramped.phases] == [
        (1, "exp:1", 0.1),
        (2, "exp:1", 0.5),
    ]
    assert three.store.catalog.experiments["hybrid"][0].treatment_weight == 0.5
    stopped = stop_experiment(three.store, "exp", TEST)
    assert (stopped.status, three.store.catalog.experiments) == ("stopped", {})
    applied = note_applied(three.store, "exp", "promote", {}, TEST)
    assert (applied.status, applied.applied) == ("applied", "promote")
    assert actions(three) == [
        "experiment.created",
        "experiment.started",
        "experiment.ramped",
        "experiment.stopped",
        "experiment.applied",
    ]
    assert get_experiment(three.store, "exp") == applied


def test_moving_references_are_fixed_when_an_experiment_is_created(three: Bench, create: Create) -> None:
    promote(three.store, "hybrid", "1.9.0", TEST)
    made = create(three.store, control=("hybrid", "production"), treatment=("hybrid", "1.10.0"))
    assert (made.control.version, made.treatment.version) == ("1.9.0", "1.10.0")


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        pytest.param({"treatment_weight": 1.01}, RequestInvalid, "traffic_split", id="weight-above-1"),
        pytest.param({"treatment_weight": -0.01}, RequestInvalid, "traffic_split", id="weight-below-0"),
        pytest.param({"treatment_weight": float("nan")}, RequestInvalid, "traffic_split", id="weight-nan"),
        pytest.param({"treatment": ("hybrid", "9.9.9")}, VersionNotFound, "9.9.9", id="unknown-version"),
        pytest.param({"treatment": ("nobody", "1.0.0")}, ModelNotFound, "nobody", id="unknown-model"),
        pytest.param({"treatment": ("hybrid", "1.0.0")}, RequestInvalid, "treatment_version", id="same-version"),
        pytest.param({"unit": "moon"}, RequestInvalid, "unit", id="unknown-unit"),
        pytest.param({"mode": "dark"}, RequestInvalid, "mode", id="unknown-mode"),
        pytest.param({"block_s": 0.0}, RequestInvalid, "block_s", id="no-block"),
        pytest.param({"block_s": float("inf")}, RequestInvalid, "block_s", id="endless-block"),
        pytest.param({"block_s": 60.0, "horizon_s": 60.0}, RequestInvalid, "horizon_s", id="horizon-of-a-block"),
        pytest.param({"namespace": ("desk", 0.5, 0.5)}, RequestInvalid, "namespace", id="empty-slice"),
        pytest.param({"policy": {"alpha": 7}}, RequestInvalid, "alpha", id="policy-out-of-limits"),
        pytest.param({"policy": "vibes"}, RequestInvalid, "policy", id="unknown-policy"),
        pytest.param({"experiment_id": "a b"}, RequestInvalid, "experiment_id", id="name-with-a-space"),
        pytest.param(
            {"deadline_at": datetime(2020, 1, 1, tzinfo=UTC)}, RequestInvalid, "deadline_at", id="deadline-over"
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    three: Bench, create: Create, changes: dict[str, Any], error: type[Exception], word: str
) -> None:
    with pytest.raises(error, match=word):
        create(three.store, **changes)
    assert list_experiments(three.store) == []
    assert actions(three) == []


def test_models_without_a_symbol_in_common_are_not_compared(three: Bench, create: Create) -> None:
    three.watch()
    create(three.store, "any", treatment=("alpha", "latest"), start=False)  # `hybrid` serves every symbol
    (three.root / "beta").mkdir()
    (three.root / "beta" / "ETH_ret_model.json").write_bytes(three.contents[1])

    register_model(three.store, "beta", str(three.root / "beta"), TEST)
    with pytest.raises(RequestInvalid, match="symbols"):
        create(three.store, "none", control=("alpha", "latest"), treatment=("beta", "latest"))


def test_a_name_is_given_once(three: Bench, create: Create) -> None:
    create(three.store)
    stop_experiment(three.store, "exp", TEST)
    with pytest.raises(ExperimentTaken):
        create(three.store)


def test_a_draft_may_be_changed_and_a_running_experiment_may_not(three: Bench, create: Create) -> None:
    create(three.store, start=False)
    plan = checked_plan(
        experiment_id="exp", control=("hybrid", "1.0.0"), treatment=("hybrid", "1.10.0"), treatment_weight=0.3
    )
    changed = update_experiment(three.store, plan, TEST)
    assert (changed.treatment.version, changed.treatment_weight) == ("1.10.0", 0.3)
    with pytest.raises(ExperimentStatusConflict, match="after its start"):
        note_applied(three.store, "exp", "promote", {}, TEST)
    start_experiment(three.store, "exp", TEST)
    with pytest.raises(ExperimentStatusConflict, match="running"):
        update_experiment(three.store, plan, TEST)
    with pytest.raises(ExperimentStatusConflict, match="starts once"):
        start_experiment(three.store, "exp", TEST)


@pytest.mark.parametrize(
    ("said", "block_s"),
    [
        pytest.param({}, 3600.0, id="split"),
        pytest.param({"mode": "shadow"}, 86400.0, id="shadow"),
        pytest.param({"mode": "shadow", "horizon_s": 7200.0}, 86400.0, id="shadow-with-a-horizon-above-an-hour"),
        pytest.param({"mode": "shadow", "block_s": 3600.0}, 3600.0, id="shadow-by-the-hour"),
    ],
)
def test_a_block_lasts_an_hour_and_in_the_shadow_a_day_unless_that_is_said(
    three: Bench, create: Create, said: dict[str, Any], block_s: float
) -> None:
    assert create(three.store, **said).block_s == block_s
    assert get_experiment(three.store, "exp").block_s == block_s


def test_a_smaller_weight_draws_the_units_anew_or_is_refused(three: Bench, create: Create) -> None:
    create(three.store, treatment_weight=0.5)
    with pytest.raises(RequestInvalid, match="would go back"):
        ramp_experiment(three.store, "exp", 0.2, TEST)
    with pytest.raises(RequestInvalid, match="from 0 to 1"):
        ramp_experiment(three.store, "exp", 1.5, TEST)
    redrawn = ramp_experiment(three.store, "exp", 0.2, TEST, redraw=True)
    assert [phase.salt for phase in redrawn.phases] == ["exp:1", "exp:2"]
    assert len(ramp_experiment(three.store, "exp", 0.2, TEST).phases) == 2  # the same wish again changes nothing


def test_a_ramp_from_another_phase_than_was_seen_changes_nothing(three: Bench, create: Create) -> None:
    create(three.store, treatment_weight=0.25)
    ramp_experiment(three.store, "exp", 0.5, TEST, redraw=True, from_phase=1)
    with pytest.raises(VersionChanged, match=r"phase 2, where the treatment has 0\.5"):
        ramp_experiment(three.store, "exp", 0.5, TEST, redraw=True, from_phase=1)
    assert len(ramp_experiment(three.store, "exp", 0.5, TEST, from_phase=1).phases) == 2  # it is so already
    assert len(ramp_experiment(three.store, "exp", 0.75, TEST, from_phase=2).phases) == 3


def test_what_has_ended_stays_ended(three: Bench, create: Create) -> None:
    create(three.store)
    stopped = stop_experiment(three.store, "exp", TEST)
    assert stop_experiment(three.store, "exp", TEST) == stopped
    with pytest.raises(ExperimentStatusConflict, match="ramp"):
        ramp_experiment(three.store, "exp", 0.5, TEST)
    assert actions(three).count("experiment.stopped") == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "may_run"),
    [
        pytest.param({}, {}, False, id="both-want-everything"),
        pytest.param({"namespace": ("desk", 0.0, 0.5)}, {}, False, id="one-without-a-slice"),
        pytest.param({"namespace": ("desk", 0.0, 0.5)}, {"namespace": ("lab", 0.5, 1.0)}, False, id="two-namespaces"),
        pytest.param({"namespace": ("desk", 0.0, 0.6)}, {"namespace": ("desk", 0.5, 1.0)}, False, id="overlapping"),
        pytest.param(
            {"namespace": ("desk", 0.0, 0.5)},
            {"namespace": ("desk", 0.5, 1.0), "unit": "symbol"},
            False,
            id="other-units",
        ),
        pytest.param({"namespace": ("desk", 0.0, 0.5)}, {"namespace": ("desk", 0.5, 1.0)}, True, id="disjoint"),
        pytest.param({}, {"control": ("hybrid2", "1.0.0")}, True, id="another-control-model"),
    ],
)
def test_two_experiments_run_on_one_control_model_only_if_no_unit_can_be_in_both(
    three: Bench, create: Create, ours: dict[str, Any], theirs: dict[str, Any], may_run: bool
) -> None:
    three.register("1.0.0", 3, "hybrid2")
    create(three.store, "first", **ours)
    if may_run:
        create(three.store, "second", **theirs)
        return
    with pytest.raises(ExperimentConflict, match="first"):
        create(three.store, "second", **theirs)
    create(three.store, "second", start=False, **theirs)  # a draft is no harm
    with pytest.raises(ExperimentConflict, match="first"):
        start_experiment(three.store, "second", TEST)
    stop_experiment(three.store, "first", TEST)
    assert start_experiment(three.store, "second", TEST).status == "running"


def test_a_version_in_a_running_experiment_is_neither_retired_nor_removed(three: Bench, create: Create) -> None:
    create(three.store)
    for refuse in (
        lambda: retire(three.store, "hybrid", "1.9.0", TEST),
        lambda: set_stage(three.store, "hybrid", "1.0.0", "archived", TEST),
        lambda: delete_version(three.store, "hybrid", "1.9.0", TEST),
        lambda: delete_version(three.store, "hybrid", "1.0.0", TEST),
        lambda: delete_model(three.store, "hybrid", TEST),
    ):
        with pytest.raises(VersionInUse, match="running experiment exp"):
            refuse()
    stop_experiment(three.store, "exp", TEST)
    retire(three.store, "hybrid", "1.9.0", TEST)
    delete_version(three.store, "hybrid", "1.9.0", TEST)
    assert get_experiment(three.store, "exp").treatment.version == "1.9.0"  # what was found out outlives it


def test_what_somebody_puts_into_production_overrules_a_running_experiment(three: Bench, create: Create) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    create(three.store)
    [before] = three.store.catalog.experiments["hybrid"]
    assert before.overruled_by is None
    promote(three.store, "hybrid", "1.10.0", TEST)
    [after] = three.store.catalog.experiments["hybrid"]
    assert after.overruled_by == "1.10.0" == get_experiment(three.store, "exp").overruled_by
    rollback(three.store, "hybrid", TEST)
    assert three.store.catalog.experiments["hybrid"][0].overruled_by is None


def test_a_version_that_arrives_does_not_overrule_an_experiment(three: Bench, create: Create) -> None:
    create(three.store)
    three.register("2.0.0", 3)
    assert three.served == "2.0.0"
    assert three.store.catalog.experiments["hybrid"][0].overruled_by is None


def test_a_treatment_that_gave_way_in_its_own_model_is_known_to_be_archived(three: Bench, create: Create) -> None:
    three.register("1.0.0", 3, "other")
    three.register("1.1.0", 4, "other")
    promote(three.store, "other", "1.0.0", TEST)
    create(three.store, treatment=("other", "1.0.0"))
    assert three.store.catalog.experiments["hybrid"][0].treatment_trouble is None
    promote(three.store, "other", "1.1.0", TEST)
    assert three.store.catalog.experiments["hybrid"][0].treatment_trouble == "version_archived"


def test_retention_keeps_the_versions_of_running_experiments(open_bench: Any, create: Create) -> None:
    bench: Bench = open_bench(keep_versions=1, keep_days=1)
    bench.watch(0)
    first = bench.store.model("alpha").serving.label
    for seed in (1, 2, 3):
        bench.write_watched(seed)
        bench.refresh()
    newest = bench.store.model("alpha").serving.label
    create(bench.store, control=("alpha", newest), treatment=("alpha", first))
    bench.calendar.moment = bench.calendar.moment.replace(year=2027)
    assert apply_retention(bench.store) == 2
    stop_experiment(bench.store, "exp", TEST)
    assert apply_retention(bench.store) == 1


def test_another_process_follows_what_is_started_and_stopped(three: Bench, create: Create, open_bench: Any) -> None:
    other: Bench = open_bench(three.store.settings.data_dir)
    create(three.store)
    assert other.store.follow_commits()
    assert other.store.catalog.experiments == three.store.catalog.experiments != {}
    stop_experiment(three.store, "exp", TEST)
    assert other.store.follow_commits()
    assert other.store.catalog.experiments == {}


def test_a_read_only_instance_changes_no_experiment(three: Bench, create: Create, open_bench: Any) -> None:
    create(three.store)
    reader: Bench = open_bench(three.store.settings.data_dir, read_only=True)
    with pytest.raises(ReadOnly):
        stop_experiment(reader.store, "exp", TEST)
    assert get_experiment(reader.store, "exp").status == "running"


def test_experiments_are_listed_the_newest_first_and_by_status(three: Bench, create: Create) -> None:
    for name in ("a", "b", "c"):
        create(three.store, name, start=False)
    start_experiment(three.store, "b", TEST)
    assert [one.experiment_id for one in list_experiments(three.store)] == ["c", "b", "a"]
    assert [one.experiment_id for one in list_experiments(three.store, status="running")] == ["b"]
    [first] = list_experiments(three.store, limit=1)
    assert [one.experiment_id for one in list_experiments(three.store, before_key=first.key)] == ["b", "a"]
    with pytest.raises(ExperimentNotFound):
        get_experiment(three.store, "d")


def test_an_experiment_set_up_in_an_older_copy_of_the_database_meets_no_sums_of_another(
    three: Bench, create: Create
) -> None:
    """Its number is then another's of before; what the observation log has it under is not."""
    create(three.store, "a", start=False)
    before = get_experiment(three.store, "a")
    with three.store.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM experiments")
        connection.exec_driver_sql("DELETE FROM sqlite_sequence WHERE name = 'experiments'")
    create(three.store, "b", start=False)
    after = get_experiment(three.store, "b")
    assert after.key == before.key
    assert after.log_key != before.log_key
