"""Models are loaded once, held within a bound, swapped whole, and let go of."""

import copy
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from mmserver.errors import BlobCorrupt, GroupHasNoModel, NotReady, PredictorUnloadable
from mmserver.serving import predictors
from mmserver.serving.predictors import FAILURE_LASTS_S, Predictors
from mmserver.storage.tables import BlobRow

ROW = [1.0, 2.0, 3.0]


def in_threads(n: int, call: Callable[[int], Any]) -> list[Any]:
    """What each thread's call gave or raised; all begin at the same moment."""
    barrier = threading.Barrier(n)
    results: list[Any] = [None] * n

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = call(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.fixture
def loads(desk: Any) -> list[Any]:
    """What the test plugin was asked to load in this process."""
    found: list[Any] = []
    desk.switches["loading"] = found.append
    return found


@pytest.fixture
def btc(desk: Any) -> Any:
    """A desk with BTC of the test plugin, nothing loaded."""
    desk.write_weights("alpha", "BTC_ret_1h")
    desk.register()
    return desk


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_at_its_first_use_and_once(btc: Any, loads: list[Any]) -> None:
    held = btc.serving.predictors
    assert (held.held(btc.group()), held.loaded(), held.size_bytes) == (None, [], 0)
    first = held.get(btc.group())
    assert held.get(btc.group()) is first is held.held(btc.group())
    assert (len(loads), held.loaded(), held.size_bytes) == (1, [first], first.size_bytes)
    assert first.model.content == b""
    assert first.row_cost_ns > 0


def test_eight_threads_that_miss_load_it_once(btc: Any, loads: list[Any]) -> None:
    btc.switches["loading"] = lambda document: (loads.append(document), time.sleep(0.2))
    found = in_threads(8, lambda _: btc.serving.predictors.get(btc.group()))
    assert len(loads) == 1
    assert len({id(loaded) for loaded in found}) == 1


def test_different_models_are_loaded_side_by_side(btc: Any) -> None:
    btc.write_weights("alpha", "ETH_ret_1h")
    btc.refresh()
    both = threading.Barrier(2, timeout=60)
    btc.switches["loading"] = lambda document: both.wait()
    found = in_threads(2, lambda number: btc.serving.predictors.get(btc.group(("BTC", "ETH")[number])))
    assert [loaded.group.symbol for loaded in found] == ["BTC", "ETH"]


def test_models_of_one_content_share_their_predictor(btc: Any, loads: list[Any]) -> None:
    btc.directories["beta"] = btc.directory("alpha")
    btc.register("beta")
    assert btc.predict(ROW).model_name == "alpha"
    assert btc.predict(ROW, model_name="beta").model_name == "beta"
    assert len(loads) == 1


def test_a_group_without_a_model_is_refused_with_the_reason(desk: Any) -> None:
    desk.directory("alpha").joinpath("BTC_ret_1h_factors.txt").write_text("momentum\n")
    desk.register()
    with pytest.raises(GroupHasNoModel, match="no model file"):
        desk.serving.predictors.get(desk.group())


def test_a_kind_that_no_plugin_runs_any_more_is_refused_by_name(btc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btc.store.plugins, "load_predictor", lambda model: None)
    with pytest.raises(GroupHasNoModel, match="no plugin runs weights models"):
        btc.serving.predictors.get(btc.group())


# --- what does not load -----------------------------------------------------------------------------------------------


def failing(loads: list[Any]) -> Callable[[Any], None]:
    def load(document: Any) -> None:
        loads.append(document)
        raise RuntimeError("the library is broken")

    return load


def test_a_plugin_s_error_is_refused_and_logged_once_with_its_traceback(
    btc: Any, loads: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    btc.switches["loading"] = failing(loads)
    found = in_threads(8, lambda _: btc.serving.predictors.get(btc.group()))
    found += in_threads(8, lambda _: btc.serving.predictors.get(btc.group()))
    assert [type(error) for error in found] == [PredictorUnloadable] * 16
    assert "RuntimeError: the library is broken" in str(found[0])
    assert len(loads) == 1
    assert caplog.text.count("Traceback") == 1


def test_what_is_remembered_of_a_failed_load_holds_no_content(btc: Any) -> None:
    btc.switches["loading"] = failing([])
    with pytest.raises(PredictorUnloadable) as caught:
        btc.serving.predictors.get(btc.group())
    assert isinstance(caught.value.__cause__, RuntimeError)  # for the log
    remembered = btc.serving.predictors.failure(btc.group())
    assert str(remembered) == str(caught.value)
    assert (remembered.__traceback__, remembered.__cause__, remembered.__context__) == (None, None, None)


def test_a_model_that_is_removed_before_it_is_loaded_is_not_there(btc: Any) -> None:
    resolved = btc.resolved()
    btc.remove("alpha")
    for _ in range(2):
        with pytest.raises(GroupHasNoModel, match="it was removed meanwhile"):
            btc.serving.loaded(resolved)
    assert btc.serving.predictors.known_ids() == set()


def test_it_is_tried_again_after_a_while(btc: Any, loads: list[Any]) -> None:
    clock = copy.copy(btc.clock)
    held = Predictors(btc.store, clock=clock)
    btc.switches["loading"] = failing(loads)
    for _ in range(3):
        with pytest.raises(PredictorUnloadable):
            held.get(btc.group())
    del btc.switches["loading"]
    with pytest.raises(PredictorUnloadable):
        held.get(btc.group())
    clock.now += FAILURE_LASTS_S + 1
    assert held.get(btc.group()).engine.n_features == 3
    assert len(loads) == 1


def test_a_reload_tries_it_again_at_once(btc: Any, loads: list[Any]) -> None:
    btc.switches["loading"] = failing(loads)
    with pytest.raises(PredictorUnloadable):
        btc.serving.predictors.get(btc.group())
    again = btc.serving.predictors.reload([btc.group()])
    assert (again.loaded, list(again.failed)) == ((), ["BTC_ret_1h"])
    del btc.switches["loading"]
    assert btc.serving.predictors.reload([btc.group()]).loaded == ("BTC_ret_1h",)
    assert btc.predict(ROW).decision.expected_return == 1.0


def test_damaged_content_is_refused_without_reading_it_a_thousand_times(
    btc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with btc.store.database.write() as connection:
        connection.execute(update(BlobRow).where(BlobRow.sha256 == btc.group().model_sha256).values(content=b"damaged"))
    reads: list[Any] = []
    real = predictors.stored_model
    monkeypatch.setattr(predictors, "stored_model", lambda *a: (reads.append(a), real(*a))[1])
    for _ in range(5):
        with pytest.raises(BlobCorrupt):
            btc.serving.predictors.get(btc.group())
    assert len(reads) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda rows: {}, id="nothing"),
        pytest.param(lambda rows: {"prediction": [1.0]}, id="a-list"),
        pytest.param(lambda rows: {"prediction": rows[:, 0]}, id="one-dimension"),
        pytest.param(lambda rows: {"prediction": rows[:0, :1]}, id="no-rows"),
        pytest.param(lambda rows: {"prediction": rows[:, :1].astype(str)}, id="texts"),
    ],
)
def test_a_predictor_that_gives_no_tables_is_not_served(btc: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    plugin = btc.store.plugins._manager.get_plugin("weights")
    monkeypatch.setattr(plugin.WeightsPredictor, "predict", lambda self, rows: wrong(rows))
    with pytest.raises(PredictorUnloadable, match="its library gave"):
        btc.serving.predictors.get(btc.group())


# --- the bound --------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(open_desk: Callable[..., Any]) -> Any:
    """Models of about 100 000 bytes for A to E, room for three; and X, which is larger than all the room."""
    desk = open_desk(predictor_cache_bytes=400_000)
    for symbol in "ABCDE":
        desk.write_weights("alpha", f"{symbol}_ret", size_bytes=100_000)
    desk.write_weights("alpha", "X_ret", size_bytes=500_000)
    desk.register()
    return desk


def symbols_held(desk: Any) -> str:
    return "".join(sorted(loaded.group.symbol for loaded in desk.serving.predictors.loaded()))


def test_the_least_recently_used_goes_first(many: Any) -> None:
    for symbol in "ABC":
        many.predict(ROW, symbol)
    many.predict(ROW, "A")
    many.predict(ROW, "D")
    assert symbols_held(many) == "ACD"
    many.serving.predictors.held(many.group("C"))
    many.predict(ROW, "E")
    assert symbols_held(many) == "CDE"
    assert many.serving.predictors.size_bytes == sum(m.size_bytes for m in many.serving.predictors.loaded()) <= 400_000


def test_what_had_to_make_way_is_gone_from_memory(many: Any) -> None:
    many.predict(ROW, "A")
    loaded = many.serving.predictors.held(many.group("A"))
    many.serving.model_info(many.serving.resolve("A", None), loaded)
    gone = weakref.ref(loaded)
    del loaded
    for symbol in "BCDE":
        many.predict(ROW, symbol)
    gc.collect()
    assert gone() is None


def test_a_model_larger_than_the_bound_is_served_and_not_kept(many: Any) -> None:
    many.predict(ROW, "A")
    assert many.predict(ROW, "X").decision.expected_return == 1.0
    assert symbols_held(many) == "A"


def test_with_no_room_at_all_everything_is_still_served(open_desk: Callable[..., Any], many: Any) -> None:
    desk = open_desk(predictor_cache_bytes=0)
    assert [desk.predict(ROW, symbol).decision.expected_return for symbol in "AXA"] == [1.0] * 3
    assert (desk.serving.predictors.loaded(), desk.serving.predictors.size_bytes) == ([], 0)


def test_the_bound_holds_whatever_eight_threads_do(many: Any) -> None:
    def work(number: int) -> int:
        for step in range(60):
            symbol = "ABCDEX"[(step * (number + 1)) % 6]
            if step % 17 == number:
                many.serving.predictors.reload([many.group(symbol)])
            elif step % 23 == number:
                many.serving.unloading.unload(many.resolved("E"))
                many.serving.unloading.allow(many.resolved("E"))
            else:
                try:
                    assert many.predict(ROW, symbol).decision.expected_return == 1.0
                except NotReady:
                    assert symbol == "E"
            assert many.serving.predictors.size_bytes <= 400_000
        return number

    assert in_threads(8, work) == list(range(8))
    held = many.serving.predictors
    assert held.size_bytes == sum(loaded.size_bytes for loaded in held.loaded())


# --- reloading and unloading ------------------------------------------------------------------------------------------


def test_a_reload_makes_a_new_one_and_serves_the_old_one_meanwhile(btc: Any) -> None:
    old = btc.serving.predictors.get(btc.group())
    during: list[Any] = []
    btc.switches["loading"] = lambda document: during.append(btc.serving.predictors.get(btc.group()))
    assert btc.serving.predictors.reload([btc.group()]).loaded == ("BTC_ret_1h",)
    assert during == [old]
    assert btc.serving.predictors.get(btc.group()) is not old


def test_a_reload_that_fails_leaves_the_old_one(btc: Any, loads: list[Any]) -> None:
    old = btc.serving.predictors.get(btc.group())
    btc.switches["loading"] = failing(loads)
    again = btc.serving.predictors.reload([btc.group()])
    assert isinstance(again.failed["BTC_ret_1h"], PredictorUnloadable)
    assert btc.serving.predictors.get(btc.group()) is old


def test_a_reload_of_many_leaves_cold_ones_cold(many: Any, loads: list[Any]) -> None:
    many.predict(ROW, "A")
    again = many.serving.predictors.reload(many.store.model("alpha").serving.groups.values())
    assert (again.loaded, again.failed, symbols_held(many)) == (("A_ret",), {}, "A")


def test_a_reload_skips_what_has_no_model(desk: Any) -> None:
    desk.directory("alpha").joinpath("BTC_ret_1h_factors.txt").write_text("momentum\n")
    desk.register()
    again = desk.serving.predictors.reload([desk.group()])
    assert (again.loaded, again.failed) == ((), {})


def test_no_request_fails_while_eight_threads_predict_and_others_reload(desk: Any) -> None:
    desk.write_trees("alpha", "BTC_ret_1h")
    desk.register()
    expected = desk.predict(ROW).decision
    stop = threading.Event()

    def reload() -> None:
        while not stop.is_set():
            assert desk.serving.predictors.reload([desk.group()]).failed == {}

    def predict(_: int) -> set[Any]:
        return {desk.predict(ROW).decision for _ in range(400)}

    reloading = [threading.Thread(target=reload) for _ in range(2)]
    for thread in reloading:
        thread.start()
    found = in_threads(8, predict)
    stop.set()
    for thread in reloading:
        thread.join(60)
    assert found == [{expected}] * 8


def test_an_unloaded_model_is_not_ready_until_it_is_allowed(btc: Any, loads: list[Any]) -> None:
    held = btc.serving.predictors
    kept = held.get(btc.group())
    btc.serving.unloading.unload(btc.resolved())
    assert (held.loaded(), held.size_bytes) == ([], 0)
    with pytest.raises(NotReady, match="unloaded"):
        btc.predict(ROW)
    assert kept.engine.predict(kept.layout.row(ROW))["prediction"].tolist() == [[1.0]]
    assert len(loads) == 1
    btc.serving.unloading.allow(btc.resolved())
    assert btc.predict(ROW).decision.expected_return == 1.0
    assert len(loads) == 2


def test_a_load_that_an_unload_overtakes_is_not_kept(btc: Any) -> None:
    btc.switches["loading"] = lambda document: btc.serving.unloading.unload(btc.resolved())
    assert btc.predict(ROW).decision.expected_return == 1.0
    assert (btc.serving.predictors.loaded(), btc.serving.predictors.size_bytes) == ([], 0)
    with pytest.raises(NotReady):
        btc.predict(ROW)


def test_a_load_of_an_old_version_that_an_unload_overtakes_is_not_kept(btc: Any) -> None:
    label = btc.store.model("alpha").serving.label
    btc.write_weights("alpha", "BTC_ret_1h", {"prediction": [[2.0, 0.0, 0.0]]})
    btc.refresh()
    btc.switches["loading"] = lambda document: btc.serving.unloading.unload(btc.resolved())
    assert btc.predict(ROW, version=label).decision.expected_return == 1.0
    assert btc.serving.predictors.loaded() == []


def test_a_load_that_begins_after_an_unload_it_did_not_see_is_not_kept(
    btc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request has just been found good when the unload comes."""
    check = btc.serving.unloading.check

    def check_and_be_overtaken(resolved: Any) -> None:
        check(resolved)
        btc.serving.unloading.unload(resolved)

    monkeypatch.setattr(btc.serving.unloading, "check", check_and_be_overtaken)
    assert btc.predict(ROW).decision.expected_return == 1.0
    assert btc.serving.predictors.loaded() == []


def test_a_load_that_an_unload_overtakes_is_kept_for_another_model_of_the_same_content(
    btc: Any, loads: list[Any]
) -> None:
    btc.directories["beta"] = btc.directory("alpha")
    btc.register("beta")

    def unload(document: Any) -> None:
        loads.append(document)
        btc.serving.unloading.unload(btc.resolved())

    btc.switches["loading"] = unload
    btc.predict(ROW)
    assert btc.serving.predictors.is_loaded(btc.group())
    assert btc.predict(ROW, model_name="beta").decision.expected_return == 1.0
    assert len(loads) == 1


def test_a_failed_load_of_an_unloaded_model_says_so(btc: Any, loads: list[Any]) -> None:
    btc.serving.unloading.unload(btc.resolved())
    btc.switches["loading"] = failing(loads)
    assert isinstance(btc.serving.predictors.reload([btc.group()]).failed["BTC_ret_1h"], PredictorUnloadable)


def test_a_reload_of_one_unloaded_model_loads_it(btc: Any, loads: list[Any]) -> None:
    btc.serving.unloading.unload(btc.resolved())
    assert btc.serving.predictors.reload([btc.group()]).loaded == ("BTC_ret_1h",)
    assert len(loads) == 1
