"""Every built-in format keeps the contract that plugins are held to, and the contract's checks can fail."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import format_contract
import numpy as np
import pytest
import xgboost
from format_contract import CHECKS, FormatCase, Outputs, PredictRows

from mmserver.formats import FloatRows
from mmserver.plugin_loading import Plugins, load_plugins

N_FEATURES = 7
Check = Callable[[FormatCase], None]


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins()


def predicting(booster: xgboost.Booster, missing: float = np.nan) -> PredictRows:
    def predict(rows: FloatRows) -> Outputs:
        given = np.where(rows == np.float32(missing), np.float32(np.nan), rows)
        kinds = {"margin": "margin", "prediction": "value"}
        outputs = {name: booster.inplace_predict(given, predict_type=kind) for name, kind in kinds.items()}
        return {name: np.asarray(values, np.float32).reshape(len(rows), -1) for name, values in outputs.items()}

    return predict


def load_xgboost(form: str) -> Callable[[bytes], PredictRows]:
    def load(converted: bytes) -> PredictRows:
        booster = xgboost.Booster({"nthread": 1})
        booster.load_model(bytearray(converted))
        assert converted[:2] == {"json": b'{"', "ubj": b"{L"}[form]
        return predicting(booster)

    return load


def split_points(booster: xgboost.Booster) -> tuple[tuple[int, float], ...]:
    trees = json.loads(booster.save_raw("json"))["learner"]["gradient_booster"]["model"]["trees"]
    points = []
    for tree in trees[:3]:
        for left, dim, threshold in zip(
            tree["left_children"], tree["split_indices"], tree["split_conditions"], strict=True
        ):
            if left != -1:
                points.append((dim, threshold))
    return tuple(points)


def trained(estimator: Any, n_classes: int = 0, **fit: Any) -> Any:
    random = np.random.default_rng(3)
    inputs = random.normal(size=(400, N_FEATURES))
    signal = inputs[:, 0] * inputs[:, 1] + 0.3 * random.normal(size=400)
    wanted = np.digitize(signal, np.quantile(signal, np.arange(1, n_classes) / n_classes)) if n_classes else signal
    if "early_stopping_rounds" in estimator.get_params() and estimator.get_params()["early_stopping_rounds"]:
        fit["eval_set"] = [(random.normal(size=(100, N_FEATURES)), random.normal(size=100))]
        fit["verbose"] = False
    return estimator.fit(inputs, wanted, **fit)


ESTIMATORS: Mapping[str, Callable[[], Any]] = {
    "regressor": lambda: trained(xgboost.XGBRegressor(n_estimators=12, max_depth=4, n_jobs=1)),
    "two classes": lambda: trained(xgboost.XGBClassifier(n_estimators=8, max_depth=3, n_jobs=1), 2),
    "three classes": lambda: trained(xgboost.XGBClassifier(n_estimators=6, max_depth=3, n_jobs=1), 3),
    "early stopping": lambda: trained(xgboost.XGBRegressor(n_estimators=40, early_stopping_rounds=3, n_jobs=1)),
    "missing -999": lambda: trained(xgboost.XGBRegressor(n_estimators=5, missing=-999.0, n_jobs=1)),
}


def model_case(plugins: Plugins, name: str, estimator: Any, data: bytes) -> FormatCase:
    booster = estimator.get_booster()
    if estimator.get_params().get("early_stopping_rounds"):
        booster = booster[: estimator.best_iteration + 1]
    forms = {form: load_xgboost(form) for form in ("json", "ubj")}
    points = split_points(booster)
    reference = predicting(booster, estimator.get_params()["missing"])
    return FormatCase(plugins, name, data, reference=reference, conversions=forms, split_points=points)


@pytest.fixture(params=[pytest.param(name, id=name.replace(" ", "_")) for name in ESTIMATORS], scope="module")
def pickled_case(request: pytest.FixtureRequest, plugins: Plugins) -> FormatCase:
    estimator = ESTIMATORS[request.param]()
    return model_case(plugins, "BTC_ret_1d_model.pkl", estimator, pickle.dumps(estimator, protocol=4))


@pytest.fixture(
    params=[pytest.param(name, id=name.replace(" ", "_")) for name in ("regressor", "three classes", "early stopping")],
    scope="module",
)
def json_case(request: pytest.FixtureRequest, plugins: Plugins, tmp_path_factory: pytest.TempPathFactory) -> FormatCase:
    estimator = ESTIMATORS[request.param]()
    path = tmp_path_factory.mktemp("json") / "BTC_ret_1d_model.json"
    estimator.save_model(path)
    return model_case(plugins, path.name, estimator, path.read_bytes())


def load_onnx(converted: bytes) -> PredictRows:
    """ONNX Runtime as somebody else would use it, one row at a time."""
    import onnxruntime

    session = onnxruntime.InferenceSession(converted, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    (given,) = session.get_outputs()

    def predict(rows: FloatRows) -> Outputs:
        alone = [session.run(None, {taken.name: row.reshape(1, *taken.shape[1:])})[0] for row in rows]
        return {given.name: np.concatenate(alone)}

    return predict


@pytest.fixture(params=["dense", "recurrent", "trees"], scope="module")
def onnx_case(request: pytest.FixtureRequest, plugins: Plugins) -> FormatCase:
    pytest.importorskip("onnx", reason="graphs are made with the onnx package")
    import onnx_graphs

    data = onnx_graphs.saved(getattr(onnx_graphs, request.param)())
    points = ((0, 0.25), (onnx_graphs.N_FEATURES - 1, -0.5)) if request.param == "trees" else ()
    reference = load_onnx(data)
    forms = {"onnx": load_onnx}
    return FormatCase(
        plugins, "BTC_ret_1d_model.onnx", data, reference=reference, conversions=forms, split_points=points
    )


TEXTS = {
    "BTC_ret_1d_factors.txt": (b"mom_1d\nvol_5d\n", False),
    "BTC_ret_1d_ic.csv": (b"factor,ic,kendall_tau\nmom_1d,0.1,0.05\nvol_5d,,-0.02\n", False),
    "BTC_ret_1d_info.pkl": (pickle.dumps({"dim": 2, "metrics": {"ic": np.float64(0.1)}}), True),
    "binance-futures.pkl": (
        pickle.dumps([{"symbol": "BTC", "medium_notional_threshold": np.float64(1), "large_notional_threshold": 2}]),
        True,
    ),
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_pickled_xgboost_model_keeps_the_contract(check: Check, pickled_case: FormatCase) -> None:
    check(pickled_case)


@pytest.mark.parametrize("check", CHECKS)
def test_an_xgboost_json_model_keeps_the_contract(check: Check, json_case: FormatCase) -> None:
    check(json_case)


@pytest.mark.parametrize("check", CHECKS)
def test_an_onnx_model_keeps_the_contract(check: Check, onnx_case: FormatCase) -> None:
    check(onnx_case)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("check", CHECKS)
def test_a_file_without_a_model_keeps_the_contract(check: Check, name: str, plugins: Plugins) -> None:
    data, cuts_show = TEXTS[name]
    check(FormatCase(plugins, name, data, cuts_show=cuts_show))


# --- the checks can fail ----------------------------------------------------------------------------------------------


WRONG_PLUGIN = """
import itertools
import numpy as np
from mmserver import ArtifactFormat, Converter, ModelFile, hookimpl

FAULT = {fault!r}
NUMBERS = itertools.count()

def parse(artifact):
    if FAULT != "accepts cut files" and len(artifact.data) < 10:
        raise ValueError("cut")
    name = f"wrong {{next(NUMBERS)}}" if FAULT == "parses differently" else "wrong"
    return ModelFile(kind="wrong", content=artifact.data, n_features=3, n_outputs=1, objective=name, library_version="")

class WrongPredictor:
    n_features, size_bytes, calls = 3, 1, 0

    def predict(self, rows):
        self.calls += 1
        totals = np.nan_to_num(rows).sum(axis=1, keepdims=True)
        if FAULT == "changes its input":
            rows[:] = 0
        if FAULT == "float64":
            totals = totals.astype(np.float64)
        if FAULT == "one dimension":
            totals = totals[:, 0]
        if FAULT == "centres the batch":
            totals = totals * len(rows)
        if FAULT == "keeps state":
            totals = np.full_like(totals, self.calls)
        return {{"prediction": totals}}

@hookimpl
def mmserver_formats():
    return [ArtifactFormat(name="wrong", suffix=".wrong", role="model", parse=parse)]

@hookimpl
def mmserver_converters():
    return [Converter(kind="wrong", target="json", media_type="x/y", convert=lambda model: model.content)]

@hookimpl
def mmserver_load_predictor(model):
    return WrongPredictor() if model.kind == "wrong" else None
"""


def sums(rows: FloatRows) -> Outputs:
    return {"prediction": np.nan_to_num(rows).sum(axis=1, keepdims=True)}


def sums_plus_one(rows: FloatRows) -> Outputs:
    return {"prediction": sums(rows)["prediction"] + np.float32(1)}


def wrong_case(directory: Path, fault: str) -> FormatCase:
    (directory / "wrong.py").write_text(WRONG_PLUGIN.format(fault=fault))
    converted = sums_plus_one if fault == "converts wrongly" else sums
    reference = sums_plus_one if fault == "predicts wrongly" else sums
    return FormatCase(
        load_plugins(directory),
        "A_b.wrong",
        b"some-model",
        reference=reference,
        conversions={"json": lambda _: converted},
    )


@pytest.mark.parametrize("check", CHECKS)
def test_a_plugin_without_a_fault_passes(check: Check, tmp_path: Path) -> None:
    check(wrong_case(tmp_path, "none"))


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("parses differently", format_contract.check_parsing_gives_what_the_role_promises),
        ("float64", format_contract.check_predictions_have_the_promised_shapes),
        ("one dimension", format_contract.check_predictions_have_the_promised_shapes),
        ("changes its input", format_contract.check_predictions_have_the_promised_shapes),
        ("centres the batch", format_contract.check_a_row_does_not_depend_on_its_batch),
        ("keeps state", format_contract.check_eight_threads_agree_with_one),
        ("accepts cut files", format_contract.check_a_cut_file_is_refused),
        ("predicts wrongly", format_contract.check_predictions_are_the_writing_library_s_own),
        ("converts wrongly", format_contract.check_a_conversion_agrees_with_its_source),
    ],
)
def test_a_plugin_with_this_fault_is_caught(fault: str, check: Check, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(wrong_case(tmp_path, fault))
