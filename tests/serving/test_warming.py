"""Models are loaded before they are asked for, where that was wanted, and let go when they are stored no more."""

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.errors import PredictorUnloadable
from mmserver.experiments.lifecycle import create_experiment
from mmserver.experiments.planning import checked_plan
from mmserver.jobs import Jobs
from mmserver.serving import statistics
from mmserver.serving.statistics import Statistics

ROW = [1.0, 2.0, 3.0]


def never() -> bool:
    return False


def keep_up(desk: Any) -> str:
    """Keys of what is loaded after one look."""
    desk.serving.warming.keep_up(never)
    return held(desk)


def held(desk: Any) -> str:
    return " ".join(sorted(loaded.group.group_key for loaded in desk.serving.predictors.loaded()))


def fill(desk: Any, **more: Any) -> Any:
    """Models `alpha` with A and B and `beta` with C."""
    for name, symbols in (("alpha", "AB"), ("beta", "C")):
        for symbol in symbols:
            desk.write_weights(name, f"{symbol}_ret", **more)
        desk.register(name)
    return desk


def test_nothing_is_loaded_ahead_unless_it_is_asked_for(desk: Any) -> None:
    assert keep_up(fill(desk)) == ""


@pytest.mark.parametrize(
    ("warm", "expected"),
    [(("all",), "A_ret B_ret C_ret"), (("beta",), "C_ret"), (("beta", "nothing"), "C_ret"), (("alpha", "beta"), "A_ret B_ret C_ret")],
)  # fmt: skip
def test_what_the_settings_name_is_loaded(open_desk: Callable[..., Any], warm: tuple[str, ...], expected: str) -> None:
    assert keep_up(fill(open_desk(warm=warm))) == expected


def test_a_look_without_a_change_does_nothing(open_desk: Callable[..., Any]) -> None:
    desk = fill(open_desk(warm=("all",)))
    keep_up(desk)
    desk.serving.predictors.let_go([desk.group("A").id])
    assert keep_up(desk) == "B_ret C_ret"


def test_what_comes_later_is_loaded_too(open_desk: Callable[..., Any]) -> None:
    desk = fill(open_desk(warm=("alpha",)))
    keep_up(desk)
    desk.write_weights("alpha", "D_ret")
    desk.refresh()
    assert keep_up(desk) == "A_ret B_ret D_ret"


def test_the_successor_of_a_model_in_use_is_loaded_before_it_is_asked_for(desk: Any) -> None:
    fill(desk)
    keep_up(desk)
    desk.predict(ROW, "A")
    before = desk.group("A")
    for symbol in "AB":
        desk.write_weights("alpha", f"{symbol}_ret", {"prediction": [[2.0, 0.0, 0.0]]})
    desk.refresh()
    keep_up(desk)
    assert desk.group("A").id != before.id
    assert desk.serving.predictors.is_loaded(desk.group("A"))
    assert not desk.serving.predictors.is_loaded(desk.group("B"))


def test_loading_ahead_stays_within_the_bound_and_drops_nothing_that_is_served(
    open_desk: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk = fill(open_desk(warm=("all",), predictor_cache_bytes=250_000), size_bytes=100_000)
    desk.predict(ROW, "C", "beta")
    with caplog.at_level(logging.WARNING):
        assert keep_up(desk) == "A_ret C_ret"
    assert "predictor_cache_bytes is full: B_ret" in caplog.text


def test_what_is_served_no_more_makes_room(open_desk: Callable[..., Any]) -> None:
    desk = fill(open_desk(warm=("alpha",), predictor_cache_bytes=250_000), size_bytes=100_000)
    keep_up(desk)
    for symbol in "AB":
        desk.write_weights("alpha", f"{symbol}_ret", {"prediction": [[2.0, 0.0, 0.0]]}, size_bytes=100_000)
    desk.refresh()
    keep_up(desk)
    assert {loaded.group.id for loaded in desk.serving.predictors.loaded()} == {desk.group("A").id, desk.group("B").id}


def test_a_model_that_does_not_load_does_not_keep_the_others_cold(
    open_desk: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    desk = fill(open_desk(warm=("all",)))
    n_loads = iter(range(10))

    def first_fails(document: Any) -> None:
        if next(n_loads) == 0:
            raise RuntimeError("broken")

    desk.switches["loading"] = first_fails
    assert keep_up(desk) == "B_ret C_ret"
    assert "A_ret is not loaded ahead" in caplog.text


def fill_arms(desk: Any) -> None:
    """Models `alpha` and `beta`, both with A and B, and no group in common."""
    for number, name in enumerate(("alpha", "beta"), 1):
        for symbol in "AB":
            desk.write_weights(name, f"{symbol}_ret", {"prediction": [[float(number), 0.0, 0.0]]})
        desk.register(name)


def start_experiment(desk: Any) -> None:
    arms = {"control": ("alpha", "latest"), "treatment": ("beta", "latest")}
    create_experiment(
        desk.store, checked_plan(experiment_id="exp", **arms, treatment_weight=0.5), Actor("test"), start=True
    )


def test_both_arms_of_an_experiment_are_loaded_when_it_starts(desk: Any) -> None:
    fill_arms(desk)
    assert keep_up(desk) == ""
    start_experiment(desk)
    assert keep_up(desk) == "A_ret A_ret B_ret B_ret"


def test_an_arm_that_is_not_served_any_more_is_loaded_as_it_was(desk: Any) -> None:
    fill_arms(desk)
    start_experiment(desk)
    treatment = desk.group("B", "beta")
    desk.write_weights("beta", "B_ret", {"prediction": [[3.0, 0.0, 0.0]]})
    desk.refresh("beta")
    keep_up(desk)
    assert desk.group("B", "beta").id != treatment.id
    assert desk.serving.predictors.is_loaded(treatment)


def test_an_arm_that_does_not_load_is_told_and_keeps_the_other_one_warm(
    desk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fill_arms(desk)
    start_experiment(desk)
    n_loads = iter(range(10))

    def last_fails(document: Any) -> None:
        if next(n_loads) == 3:
            raise RuntimeError("broken")

    desk.switches["loading"] = last_fails
    assert keep_up(desk) == "A_ret A_ret B_ret"
    assert "B_ret is not loaded ahead" in caplog.text
    assert desk.serving.predictors.failure(desk.group("B", "beta")) is not None


def test_of_an_arm_with_many_groups_those_in_use_are_loaded_first(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserver.serving.warming.MAX_ARM_GROUPS", 1)
    fill_arms(desk)
    desk.predict(ROW, "B")
    start_experiment(desk)
    assert keep_up(desk) == "B_ret B_ret"


def test_an_unloaded_model_stays_unloaded(open_desk: Callable[..., Any]) -> None:
    desk = fill(open_desk(warm=("all",)))
    desk.serving.unloading.unload(desk.resolved("A"))
    assert keep_up(desk) == "B_ret C_ret"


def test_an_unloaded_model_stays_unloaded_in_new_versions(open_desk: Callable[..., Any]) -> None:
    desk = fill(open_desk(warm=("all",)))
    keep_up(desk)
    desk.serving.unloading.unload(desk.resolved("A"))
    loads: list[Any] = []
    desk.switches["loading"] = loads.append
    for symbol in "AB":
        desk.write_weights("alpha", f"{symbol}_ret", {"prediction": [[2.0, 0.0, 0.0]]})
    desk.refresh()
    keep_up(desk)
    assert desk.serving.predictors.is_loaded(desk.group("B"))
    assert not desk.serving.predictors.is_loaded(desk.group("A"))
    assert len(loads) == 1


def test_the_successor_of_an_unloaded_model_is_not_loaded_for_another_s_use(desk: Any) -> None:
    fill(desk)
    desk.directories["gamma"] = desk.directory("alpha")
    desk.register("gamma")
    desk.predict(ROW, "A", "gamma")
    keep_up(desk)
    desk.serving.unloading.unload(desk.resolved("A"))
    assert keep_up(desk) == "A_ret"
    desk.write_weights("alpha", "A_ret", {"prediction": [[2.0, 0.0, 0.0]]})
    desk.refresh()
    keep_up(desk)
    assert desk.group("A").id != desk.group("A", "gamma").id
    assert not desk.serving.predictors.is_loaded(desk.group("A"))
    assert desk.serving.predictors.is_loaded(desk.group("A", "gamma"))


def test_what_is_allowed_again_is_loaded_ahead_again(open_desk: Callable[..., Any]) -> None:
    """In each process of a server, of which only one was asked to load it."""
    desk = fill(open_desk(warm=("all",)))
    desk.serving.unloading.unload(desk.resolved("A"))
    assert keep_up(desk) == "B_ret C_ret"
    desk.serving.unloading.allow(desk.resolved("A"))
    assert keep_up(desk) == "A_ret B_ret C_ret"


def test_an_unload_in_the_middle_of_a_look_holds(open_desk: Callable[..., Any]) -> None:
    """A is unloaded while it is loaded itself, C before it is its turn."""
    desk = fill(open_desk(warm=("all",)))

    def unload(document: Any) -> None:
        del desk.switches["loading"]
        desk.serving.unloading.unload(desk.resolved("A"))
        desk.serving.unloading.unload(desk.resolved("C", "beta"))

    desk.switches["loading"] = unload
    assert keep_up(desk) == "B_ret"


def test_the_last_model_that_predicts_with_unloaded_content_takes_it_out_of_memory_when_it_is_removed(
    desk: Any,
) -> None:
    fill(desk)
    desk.directories["gamma"] = desk.directory("alpha")
    desk.register("gamma")
    desk.predict(ROW, "A", "gamma")
    desk.serving.unloading.unload(desk.resolved("A"))
    assert keep_up(desk) == "A_ret"
    desk.remove("gamma")
    assert keep_up(desk) == ""
    assert desk.serving.predictors.size_bytes == 0


def test_what_is_unloaded_does_not_keep_its_room(open_desk: Callable[..., Any]) -> None:
    desk = fill(open_desk(warm=("all",), predictor_cache_bytes=250_000), size_bytes=100_000)
    assert keep_up(desk) == "A_ret B_ret"
    desk.serving.unloading.unload(desk.resolved("A"))
    assert keep_up(desk) == "B_ret C_ret"


def test_stopping_ends_it_early(open_desk: Callable[..., Any]) -> None:
    desk = fill(open_desk(warm=("all",)))
    desk.serving.warming.keep_up(lambda: len(desk.serving.predictors.loaded()) == 1)
    assert held(desk) == "A_ret"
    assert keep_up(desk) == "A_ret B_ret C_ret"


def test_a_removed_model_s_predictors_are_let_go(desk: Any) -> None:
    fill(desk)
    for symbol, name in (("A", "alpha"), ("C", "beta")):
        desk.predict(ROW, symbol, name)
    desk.serving.unloading.unload(desk.resolved("B"))
    desk.remove("alpha")
    assert keep_up(desk) == "C_ret"
    assert desk.serving.predictors.known_ids() == {desk.group("C", "beta").id}
    assert desk.serving.predictors.size_bytes == desk.serving.predictors.loaded()[0].size_bytes


def test_what_another_model_has_too_is_kept(desk: Any) -> None:
    fill(desk)
    desk.directories["gamma"] = desk.directory("alpha")
    desk.register("gamma")
    desk.predict(ROW, "A", "alpha")
    desk.remove("alpha")
    assert keep_up(desk) == "A_ret"


def test_an_old_version_s_predictor_is_kept_as_long_as_it_is_stored(desk: Any) -> None:
    fill(desk)
    label = desk.predict(ROW, "A").version
    desk.write_weights("alpha", "A_ret", {"prediction": [[2.0, 0.0, 0.0]]})
    desk.refresh()
    keep_up(desk)
    loads: list[Any] = []
    desk.switches["loading"] = loads.append
    assert desk.predict(ROW, "A", version=label).decision.expected_return == 1.0
    assert loads == []


def test_failures_of_removed_models_are_forgotten(desk: Any) -> None:
    fill(desk)

    def failing(document: Any) -> None:
        raise RuntimeError("broken")

    desk.switches["loading"] = failing
    with pytest.raises(PredictorUnloadable):
        desk.predict(ROW, "A")
    desk.remove("alpha")
    keep_up(desk)
    assert desk.serving.predictors.known_ids() == set()


def test_the_jobs_load_ahead_by_themselves(open_desk: Callable[..., Any], tmp_path: Any) -> None:
    desk = fill(open_desk(warm=("all",), watch_enabled=False, snapshot_interval_s=0.0))
    loaded = threading.Semaphore(0)
    desk.switches["loading"] = lambda document: loaded.release()
    jobs = Jobs(desk.store, tmp_path / "snapshots")
    jobs.start(desk.serving.warming.keep_up)
    try:
        assert all(loaded.acquire(timeout=60) for _ in range(3))
        desk.write_weights("beta", "D_ret")
        desk.refresh("beta")
        assert loaded.acquire(timeout=60)
    finally:
        jobs.stop()


def test_statistics_are_bounded(desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(desk)
    monkeypatch.setattr(statistics, "MAX_ENTRIES", 2)
    kept = Statistics()
    version = desk.store.model("alpha").serving
    groups = [desk.group("A"), desk.group("B"), desk.group("C", "beta")]
    for group in groups:
        kept.failed(version, group, 1)
    assert [found.group_key for found in kept.all()] == ["B_ret", "C_ret"]
    assert kept.of(version, groups[0]).fail.count == 0
