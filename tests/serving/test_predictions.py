"""A prediction is what the model gives for exactly that row, alone or among others; what cannot be answered is said by name."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.errors import (
    FeaturesInvalid,
    MmserverError,
    NotExplainable,
    NotInterpretable,
    PredictionFailed,
    PredictionNotFinite,
    SymbolNotFound,
    TooManyRows,
)
from mmserver.serving.engines import LIBRARY_FROM_CELLS
from mmserver.serving.predictions import MAX_EXPLAINED_ROWS, Asked, Prediction

ROW = [1.0, 2.0, 3.0]
INFO = {
    "created_at": "2026-01-02T03:04:05Z",
    "train_end": "2025-12-31",
    "metrics": {"residual_std": 0.5, "accuracy": 0.57, "hit_rate": 0.9},
}
GOLDEN = ["daily_5d", "daily_5d_retrained", "kinds", "wide", "xgboost_1_7", "xgboost_2_1"]


@pytest.fixture
def trees(desk: Any) -> Any:
    """A desk with trained regressors for BTC and ETH in `alpha`."""
    for seed, symbol in enumerate(("BTC", "ETH")):
        desk.write_trees("alpha", f"{symbol}_ret_1h", seed, INFO)
    desk.register()
    return desk


@pytest.fixture
def weights(desk: Any) -> Any:
    """A desk with linear models: BTC gives its first factor, ETH its second; NaN is a missing value to neither."""
    desk.write_weights("alpha", "BTC_ret_1h", info=INFO)
    desk.write_weights("alpha", "ETH_ret_1h", {"prediction": [[0.0, 1.0, 0.0]]})
    desk.register()
    return desk


def booster(pickled: bytes) -> Any:
    import pickle

    return pickle.loads(pickled)


# --- one --------------------------------------------------------------------------------------------------------------


def test_a_prediction_says_all_that_it_rests_on(trees: Any) -> None:
    found = trees.predict(ROW)
    expected = float(booster(trees.model_pickles[0]).predict(np.array([ROW], np.float32))[0])
    assert (found.symbol, found.model_name, found.version) == ("BTC", "alpha", trees.store.model("alpha").serving.label)
    assert found.decision.expected_return == expected
    assert found.decision.direction == ("BUY" if expected > 0 else "SELL")
    assert found.decision.confidence == pytest.approx(NormalDist().cdf(abs(expected) / 0.5))
    assert json.loads(bytes(found.model_info)) == {
        "version": found.version,
        "training_date": "2026-01-02T03:04:05Z",
        "accuracy": 0.57,
        "engine": "exact",
        "direction_from": "the sign of expected_return outside the dead band",
        "confidence_from": "expected_return against metrics.residual_std of the info file",
    }
    assert found.contributions is None


@pytest.mark.parametrize(
    "features", [ROW, [ROW], {"spread": 3.0, "momentum": 1.0, "volume": 2.0}], ids=["list", "matrix", "names"]
)
def test_features_mean_the_same_however_they_are_written(trees: Any, features: Any) -> None:
    assert trees.predict(features).decision == trees.predict(ROW).decision


def test_the_symbol_is_given_back_as_it_was_asked_for(trees: Any) -> None:
    assert trees.predict(ROW, "b/t-c").symbol == "b/t-c"


@pytest.mark.parametrize("model_name", GOLDEN)
def test_what_the_writing_library_predicted_is_served_to_the_bit(
    desk: Any, shared_artifacts: Path, model_name: str
) -> None:
    register_model(desk.store, model_name, str(shared_artifacts / model_name), Actor("test"))
    files = sorted((shared_artifacts / "golden").glob(f"{model_name}__*.json"))
    assert files
    for file in files:
        golden = json.loads(file.read_text())
        group = desk.store.model(model_name).serving.groups[file.stem.partition("__")[2]]
        resolved = desk.serving.resolve(group.symbol, model_name)
        for row, native in zip(golden["rows"], golden["native"], strict=True):
            decision = desk.predict(row, group.symbol, model_name).decision
            outputs = desk.serving.run(resolved, np.array([[math.nan if c is None else c for c in row]], np.float32))
            given = outputs["prediction"][0].tolist()
            wanted = [float(np.float32(v)) for v in (native if isinstance(native, list) else [native])]
            assert given == wanted[-len(given) :]
            if decision.expected_return is None:
                assert decision.probability == pytest.approx(max(wanted), rel=1e-6)
            else:
                assert [decision.expected_return] == wanted


def test_the_dead_band_is_the_model_s_although_predictors_are_shared(open_desk: Callable[..., Any]) -> None:
    desk = open_desk(dead_band=0.5, dead_bands={"beta": 2.0, "gamma": 0.0})
    desk.write_weights("alpha", "BTC_ret_1h")
    for name in ("alpha", "beta", "gamma"):
        desk.directories[name] = desk.directory("alpha")
        desk.register(name)
    found = {n: desk.predict([x, 0.0, 0.0], model_name=n).decision.direction for n in desk.directories for x in (1.0,)}
    assert found == {"alpha": "BUY", "beta": "HOLD", "gamma": "BUY"}
    assert desk.predict([0.25, 0.0, 0.0], model_name="alpha").decision.direction == "HOLD"
    assert desk.predict([0.25, 0.0, 0.0], model_name="gamma").decision.direction == "BUY"
    assert len(desk.serving.predictors.loaded()) == 1


def test_a_label_is_predicted_with_its_own_model(trees: Any) -> None:
    before = trees.predict(ROW)
    trees.write_trees("alpha", "BTC_ret_1h", 2, INFO)
    trees.refresh()
    after, old = trees.predict(ROW), trees.predict(ROW, version=before.version)
    assert after.decision != before.decision
    assert (old.decision, old.version) == (before.decision, before.version)
    assert json.loads(bytes(old.model_info))["version"] == before.version


def test_a_request_keeps_what_it_resolved(trees: Any) -> None:
    resolved = trees.resolved()
    loaded = trees.serving.predictors.get(resolved.group)
    before = trees.predict(ROW).decision
    trees.write_trees("alpha", "BTC_ret_1h", 2)
    trees.refresh()
    trees.serving.predictors.let_go([resolved.group.id])
    assert trees.serving.predict_row(resolved, loaded, loaded.layout.row(ROW)) == before


def test_missing_values_reach_only_models_that_know_them(trees: Any, open_desk: Callable[..., Any]) -> None:
    expected = booster(trees.model_pickles[0]).predict(np.array([[1.0, np.nan, 3.0]], np.float32))[0]
    assert trees.predict([1.0, None, 3.0]).decision.expected_return == float(expected)
    trees.write_weights("beta", "BTC_ret_1h")
    trees.register("beta")
    with pytest.raises(FeaturesInvalid, match="volume is missing"):
        trees.predict([1.0, None, 3.0], model_name="beta")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_never_a_prediction(
    weights: Any, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    weights.predict(ROW)
    plugin = weights.store.plugins._manager.get_plugin("weights")
    outputs = {"prediction": np.full((1, 1), value, np.float32)}
    monkeypatch.setattr(plugin.WeightsPredictor, "predict", lambda self, rows: outputs)
    with pytest.raises(PredictionNotFinite, match=r"BTC_ret_1h gave .* for prediction"):
        weights.predict(ROW)
    with pytest.raises(PredictionNotFinite):
        weights.serving.run(weights.resolved(), np.array([ROW]))
    (answer,) = weights.serving.predict_many([Asked("BTC", ROW, "alpha")])
    assert isinstance(answer, PredictionNotFinite)


def test_a_library_that_fails_on_a_row_is_no_bug_of_ours(weights: Any, caplog: pytest.LogCaptureFixture) -> None:
    weights.predict(ROW)

    def failing(rows: Any) -> None:
        raise ValueError("secret of the library")

    weights.switches["predicting"] = failing
    with pytest.raises(PredictionFailed) as caught:
        weights.predict(ROW)
    assert "secret" not in str(caught.value)
    assert "secret of the library" in caplog.text
    with pytest.raises(PredictionFailed):
        weights.serving.run(weights.resolved(), np.array([ROW]))


def every_way(desk: Any) -> list[Any]:
    """What one row gives as a prediction, in a batch and as raw outputs: the answer or the error."""
    found: list[Any] = []
    for ask in (lambda: desk.predict(ROW), lambda: desk.serving.run(desk.resolved(), np.array([ROW]))):
        try:
            found.append(ask())
        except MmserverError as error:
            found.append(error)
    return [*found, *desk.serving.predict_many([Asked("BTC", ROW, "alpha")])]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"prediction": np.ones((2, 1), np.float32)}, id="a row too many"),
        pytest.param({"prediction": np.ones((1, 2), np.float32)}, id="a column too many"),
        pytest.param({"prediction": np.ones((0, 1), np.float32)}, id="no row"),
        pytest.param({"prediction": np.ones(1, np.float32)}, id="one dimension"),
        pytest.param({"prediction": np.ones((1, 1), np.bool_)}, id="flags"),
        pytest.param({"prediction": np.ones((1, 1), np.complex64)}, id="complex numbers"),
        pytest.param({"prediction": np.ones((1, 1), np.float32), "more": np.ones((1, 1), np.float32)}, id="an output more"),
        pytest.param({"other": np.ones((1, 1), np.float32)}, id="another output"),
        pytest.param({"prediction": [[1.0]]}, id="lists"),
        pytest.param({}, id="nothing"),
        pytest.param([1.0], id="no mapping"),
    ],
)  # fmt: skip
def test_outputs_of_another_shape_than_at_loading_are_never_a_prediction(
    weights: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    weights.predict(ROW)
    plugin = weights.store.plugins._manager.get_plugin("weights")
    monkeypatch.setattr(plugin.WeightsPredictor, "predict", lambda self, rows: wrong)
    assert [type(answer) for answer in every_way(weights)] == [PredictionFailed] * 3


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.uint64])
def test_outputs_of_any_number_type_are_float32_in_every_way_of_predicting(
    weights: Any, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    weights.predict(ROW)
    plugin = weights.store.plugins._manager.get_plugin("weights")
    value = np.array([[0.1]] if np.dtype(dtype).kind == "f" else [[100]], dtype)
    monkeypatch.setattr(plugin.WeightsPredictor, "predict", lambda self, rows: {"prediction": value})
    one, table, batched = every_way(weights)
    assert table["prediction"].dtype == np.float32
    expected = float(value.astype(np.float32)[0, 0])
    assert [one.decision.expected_return, float(table["prediction"][0, 0]), batched.decision.expected_return] == [
        expected
    ] * 3


def test_an_output_beyond_float32_is_not_finite_in_any_way_of_predicting(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights.predict(ROW)
    plugin = weights.store.plugins._manager.get_plugin("weights")
    monkeypatch.setattr(plugin.WeightsPredictor, "predict", lambda self, rows: {"prediction": np.array([[1e300]])})
    assert [type(answer) for answer in every_way(weights)] == [PredictionNotFinite] * 3


def test_a_model_that_says_no_direction_still_gives_its_outputs(desk: Any) -> None:
    desk.write_weights("alpha", "BTC_ret_1h", {"score": [[1.0, 0.0, 0.0]]})
    desk.register()
    with pytest.raises(NotInterpretable, match="BTC_ret_1h gives no direction"):
        desk.predict(ROW)
    assert desk.serving.run(desk.resolved(), np.array([ROW]))["score"].tolist() == [[1.0]]


def test_prediction_ids_are_unique_in_all_threads_and_processes(trees: Any) -> None:
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.extend(trees.serving.new_prediction_id() for _ in range(2000)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = type(trees.serving)(trees.store)
    ids += [other.new_prediction_id() for _ in range(2000)]
    assert len(set(ids)) == 18_000


# --- many -------------------------------------------------------------------------------------------------------------


def test_many_are_answered_in_order_and_a_bad_one_spoils_no_other(trees: Any) -> None:
    asked = [
        Asked("ETH", ROW, "alpha"),
        Asked("DOGE", ROW, "alpha"),
        Asked("BTC", {"momentum": 1.0}, "alpha"),
        Asked("BTC", ROW, "alpha"),
        Asked("BTC", [1.0, None, 3.0]),
        Asked("BTC", ROW, "alpha", version="nothing"),
    ]
    answers = trees.serving.predict_many(asked)
    assert [type(answer).__name__ for answer in answers] == [
        "Prediction",
        "SymbolNotFound",
        "FeaturesInvalid",
        "Prediction",
        "Prediction",
        "VersionNotFound",
    ]
    alone = [trees.serving.predict(one).decision for one in (asked[0], asked[3], asked[4])]
    assert [answer.decision for answer in answers if isinstance(answer, Prediction)] == alone
    assert [answer.symbol for answer in answers if isinstance(answer, Prediction)] == ["ETH", "BTC", "BTC"]


def test_no_item_is_no_answer(trees: Any) -> None:
    assert trees.serving.predict_many([]) == []


def test_a_row_s_result_does_not_depend_on_how_many_come_with_it(trees: Any) -> None:
    rng = np.random.default_rng(5)
    n_rows = LIBRARY_FROM_CELLS // 40 + 100  # beyond the number from which XGBoost runs them
    table = rng.normal(size=(n_rows, 3)).astype(np.float32)
    table[rng.random(table.shape) < 0.05] = np.nan
    features = [[None if math.isnan(cell) else cell for cell in row] for row in table.tolist()]
    alone = [trees.predict(row).decision for row in features]
    for size in (1, 2, 7, 64, n_rows):
        together = trees.serving.predict_many([Asked("BTC", row, "alpha") for row in features[:size]])
        assert [answer.decision for answer in together] == alone[:size]
    raw = trees.serving.run(trees.resolved(), table)
    assert raw["prediction"][:, 0].tolist() == [decision.expected_return for decision in alone]


def test_rows_of_one_model_run_together_and_each_gets_its_own_answer(weights: Any) -> None:
    weights.serving.predict_many([Asked(symbol, ROW, "alpha") for symbol in ("BTC", "ETH")])
    sizes: list[int] = []
    weights.switches["predicting"] = lambda rows: sizes.append(len(rows))
    asked = [Asked(("BTC", "ETH")[at % 2], [float(at), float(-at), 0.0], "alpha") for at in range(40)]
    answers = weights.serving.predict_many(asked)
    assert sizes == [20, 20]
    assert [a.decision.expected_return for a in answers] == [at if at % 2 == 0 else -at for at in range(40)]


def test_no_more_rows_run_together_than_asked_for(weights: Any) -> None:
    sizes: list[int] = []
    weights.predict(ROW)
    weights.switches["predicting"] = lambda rows: sizes.append(len(rows))
    asked = [Asked(("BTC", "ETH")[number % 2], [number, -number, 0.0], "alpha") for number in range(10)]
    answers = weights.serving.predict_many(asked, together=2)
    assert [answer.decision.expected_return for answer in answers] == [
        number * (1, -1)[number % 2] for number in range(10)
    ]
    assert max(sizes) == 2


def test_a_row_that_the_library_fails_on_spoils_no_other(weights: Any) -> None:
    weights.predict(ROW)

    def failing(rows: Any) -> None:
        if (rows == 13).any():
            raise ValueError("unlucky")

    weights.switches["predicting"] = failing
    answers = weights.serving.predict_many([Asked("BTC", [float(at), 0.0, 0.0], "alpha") for at in range(10, 17)])
    assert [isinstance(answer, PredictionFailed) for answer in answers] == [at == 13 for at in range(10, 17)]
    assert [a.decision.expected_return for a in answers if isinstance(a, Prediction)] == [10, 11, 12, 14, 15, 16]


def test_a_row_that_becomes_infinite_spoils_no_other(desk: Any) -> None:
    desk.write_weights("alpha", "BTC_ret_1h", {"prediction": [[1.0, 1e30, 0.0]]})
    desk.register()
    with np.errstate(over="ignore"):
        answers = desk.serving.predict_many([Asked("BTC", [1.0, v, 0.0], "alpha") for v in (0.0, 1e30, 0.0)])
    assert [type(answer).__name__ for answer in answers] == ["Prediction", "PredictionNotFinite", "Prediction"]


def test_more_items_than_max_rows_are_refused(open_desk: Callable[..., Any]) -> None:
    desk = open_desk(max_rows=3)
    desk.write_weights("alpha", "BTC_ret_1h")
    desk.register()
    assert len(desk.serving.predict_many([Asked("BTC", ROW)] * 3)) == 3
    with pytest.raises(TooManyRows, match="4 rows are more than the 3"):
        desk.serving.predict_many([Asked("BTC", ROW)] * 4)
    with pytest.raises(TooManyRows):
        desk.serving.run(desk.resolved(), np.zeros((4, 3)))


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_gives_every_output_in_float32(trees: Any) -> None:
    outputs = trees.serving.run(trees.resolved(), np.array([ROW, ROW], np.float64))
    assert {name: (values.shape, str(values.dtype)) for name, values in outputs.items()} == {
        "margin": ((2, 1), "float32"),
        "prediction": ((2, 1), "float32"),
    }


@pytest.mark.parametrize(
    "table", [np.zeros(3), np.zeros((2, 4)), np.zeros((0, 3)), np.full((1, 3), np.inf), np.zeros(())]
)
def test_a_table_that_does_not_fit_is_refused(trees: Any, table: Any) -> None:
    with pytest.raises(FeaturesInvalid):
        trees.serving.run(trees.resolved(), table)


# --- explaining -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [ROW, [None, 0.5, -0.5]])
def test_contributions_sum_to_the_margin(trees: Any, row: Any) -> None:
    found = trees.predict(row, explain=True)
    assert found.contributions is not None
    assert list(found.contributions["factors"]) == ["momentum", "volume", "spread"]
    total = found.contributions["base"] + sum(found.contributions["factors"].values())
    assert total == pytest.approx(found.decision.expected_return, abs=1e-5)


def test_contributions_of_classes_are_told_for_each(desk: Any, shared_artifacts: Path) -> None:
    register_model(desk.store, "kinds", str(shared_artifacts / "kinds"), Actor("test"))
    resolved = desk.serving.resolve("NASDAQ", "kinds")
    rows = np.zeros((2, resolved.group.dim), np.float32)
    loaded = desk.serving.predictors.get(resolved.group)
    margins = desk.serving.run(resolved, rows)["margin"]
    for told, margin in zip(desk.serving.contributions(resolved, loaded, rows), margins.tolist(), strict=True):
        sums = [output["base"] + sum(output["factors"].values()) for output in told["outputs"]]
        assert sums == pytest.approx(margin, abs=1e-5)


def test_a_library_that_cannot_explain_says_so(weights: Any) -> None:
    with pytest.raises(NotExplainable, match="alpha cannot explain"):
        weights.predict(ROW, explain=True)
    answers = weights.serving.predict_many([Asked("BTC", ROW, explain=True), Asked("BTC", ROW)])
    assert [type(answer).__name__ for answer in answers] == ["NotExplainable", "Prediction"]


def test_explaining_is_for_a_few_rows(trees: Any) -> None:
    asked = Asked("BTC", ROW, "alpha", explain=True)
    answers = trees.serving.predict_many([asked] * MAX_EXPLAINED_ROWS)
    assert all(answer.contributions == answers[0].contributions for answer in answers)
    with pytest.raises(TooManyRows, match="65 rows are more than the 64"):
        trees.serving.predict_many([asked] * (MAX_EXPLAINED_ROWS + 1))
    with pytest.raises(TooManyRows, match="65 rows are more than the 64"):
        trees.serving.predict_many([asked] * (MAX_EXPLAINED_ROWS + 1), together=1)


@pytest.mark.parametrize("wrong", [None, [[[1.0]]], np.ones((1, 4)), np.full((1, 1, 4), np.nan)])
def test_contributions_that_are_none_are_refused(weights: Any, monkeypatch: pytest.MonkeyPatch, wrong: Any) -> None:
    plugin = weights.store.plugins._manager.get_plugin("weights")
    monkeypatch.setattr(plugin.WeightsPredictor, "contributions", lambda self, rows: wrong, raising=False)
    with pytest.raises((PredictionFailed, PredictionNotFinite)):
        weights.predict(ROW, explain=True)


# --- statistics -------------------------------------------------------------------------------------------------------


def test_every_way_of_predicting_is_counted(trees: Any) -> None:
    resolved = trees.resolved()
    of = trees.serving.statistics.of
    assert of(resolved.version, resolved.group).success.count == 0
    trees.predict(ROW)
    trees.serving.predict_many([Asked("BTC", ROW, "alpha")] * 5)
    trees.serving.run(resolved, np.zeros((7, 3)), queue_ns=1000)
    for features in ([1.0], {"x": 1.0}):
        with pytest.raises(FeaturesInvalid):
            trees.predict(features)
    with pytest.raises(FeaturesInvalid):
        trees.serving.run(resolved, np.zeros((7, 4)))
    found = of(resolved.version, resolved.group)
    assert (found.inference_count, found.execution_count, found.success.count, found.fail.count) == (13, 3, 3, 3)
    assert (found.model_name, found.symbol, found.queue.ns) == ("alpha", "BTC", 1000)
    parts = (found.queue, found.compute_input, found.compute_infer, found.compute_output)
    assert found.success.ns == sum(part.ns for part in parts)
    assert all(part.ns > 0 for part in parts)
    assert found.last_inference_ms > 1_700_000_000_000
    assert trees.serving.statistics.all() == [found]


def test_what_was_never_resolved_is_nobody_s_failure(trees: Any) -> None:
    with pytest.raises(SymbolNotFound):
        trees.predict(ROW, "DOGE")
    assert trees.serving.statistics.all() == []


def test_versions_are_counted_apart(trees: Any) -> None:
    first = trees.predict(ROW).version
    trees.write_trees("alpha", "BTC_ret_1h", 2)
    trees.refresh()
    trees.predict(ROW)
    trees.predict(ROW, version=first)
    assert [(s.version == first, s.success.count) for s in trees.serving.statistics.all()] == [(True, 2), (False, 1)]


def test_no_count_is_lost_between_threads(trees: Any) -> None:
    resolved = trees.resolved()
    loaded = trees.serving.predictors.get(resolved.group)
    row = loaded.layout.row(ROW)

    def work() -> None:
        for _ in range(500):
            trees.serving.predict_row(resolved, loaded, row)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trees.serving.statistics.of(resolved.version, resolved.group).inference_count == 4000


# --- imports ----------------------------------------------------------------------------------------------------------


def test_predicting_with_trees_loads_no_library(trees: Any, tmp_path: Path, test_plugins_dir: Path) -> None:
    script = """
import sys
from pathlib import Path
from mmserver.catalog.opening import open_store
from mmserver.serving.predictions import Asked, Serving
from mmserver.settings import Settings
with open_store(Settings(data_dir=Path(sys.argv[1]), plugins_dir=Path(sys.argv[2]))) as store:
    Serving(store).predict(Asked("BTC", [1.0, 2.0, 3.0], "alpha"))
heavy = {"xgboost", "onnxruntime", "pandas", "scipy", "pyarrow", "sklearn", "flask.app_ctx"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "data"), str(test_plugins_dir)], check=True, timeout=300
    )
