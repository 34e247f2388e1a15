"""A file of another format is refused with what it is and what to do with it, whichever format it was taken for."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserver.errors import Undecodable
from tests.plugins.samples import RETURNS, ROWS, SAMPLES, Sample

FORMATS = ("catboost", "lightgbm", "onnx", "sklearn", "tflite", "torch", "xgboost")
NEEDS = {
    "catboost": "catboost",
    "lightgbm": "lightgbm",
    "sklearn": "skops",
    "tflite": "ai_edge_litert",
    "torch": "torch",
}
BY_NAME = {sample.name: sample for sample in SAMPLES}


def refusal(read_model: Callable[..., Any], model_type: str, data: bytes) -> str:
    if model_type in NEEDS:
        pytest.importorskip(NEEDS[model_type], reason="the format's extra is not installed")
    with pytest.raises(Undecodable) as refused:
        read_model(model_type, data)
    return refused.value.detail


@pytest.mark.parametrize("model_type", FORMATS)
@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(b"", "an empty file", id="empty"),
        pytest.param(b"hello world\n", "text of another kind", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(60), "a PNG image", id="png"),
        pytest.param(b'{"a": 1}', "JSON of another kind", id="json"),
    ],
)
def test_what_is_no_model_is_called_what_it_is(
    read_model: Callable[..., Any], model_type: str, data: bytes, says: str
) -> None:
    detail = refusal(read_model, model_type, data)
    assert "expected" in detail
    assert f"this is {says}" in detail


@pytest.mark.parametrize("model_type", FORMATS)
@pytest.mark.parametrize(
    ("sample", "said"),
    [
        pytest.param(BY_NAME["lightgbm"], "model type lightgbm", id="lightgbm"),
        pytest.param(BY_NAME["catboost"], "model type catboost", id="catboost"),
        pytest.param(BY_NAME["sklearn-skops"], "model type sklearn", id="sklearn"),
        pytest.param(BY_NAME["tflite"], "model type tflite", id="tflite"),
        pytest.param(BY_NAME["torch-program"], "model type torch", id="torch"),
        pytest.param(BY_NAME["xgboost-json"], "model type xgboost", id="xgboost"),
    ],
)
def test_a_model_of_another_format_is_refused_with_the_model_type_that_reads_it(
    read_model: Callable[..., Any], model_type: str, sample: Sample, said: str
) -> None:
    if said == f"model type {model_type}":
        pytest.skip("it is of this very format")
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    assert said in refusal(read_model, model_type, sample.make())


def test_a_pickle_of_lightgbm_without_a_model_type_says_which_one_and_how_to_save_text(
    read_model: Callable[..., Any],
) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="lightgbm is not installed (the extra lightgbm)")
    data = pickle.dumps(lightgbm.LGBMRegressor(n_estimators=2, verbosity=-1, n_jobs=1).fit(ROWS, RETURNS))
    for model_type in ("xgboost", "sklearn"):  # which claim .pkl and .joblib
        detail = refusal(read_model, model_type, data)
        assert "model type lightgbm" in detail
        assert "booster_.save_model('model.txt')" in detail


def test_catboost_s_json_is_refused_with_what_to_do_and_its_onnx_taken(
    read_model: Callable[..., Any], tmp_path: Path
) -> None:
    catboost = pytest.importorskip("catboost", reason="catboost is not installed (the extra catboost)")
    model = catboost.CatBoostRegressor(iterations=3, depth=2, verbose=False, thread_count=1, allow_writing_files=False)
    model.fit(ROWS, RETURNS).save_model(str(tmp_path / "a.json"), format="json")
    for model_type in ("catboost", "xgboost"):
        detail = refusal(read_model, model_type, (tmp_path / "a.json").read_bytes())
        assert "from files only" in detail
        assert "model.save_model('model.cbm')" in detail
    model.save_model(str(tmp_path / "a.onnx"), format="onnx")
    assert read_model("onnx", (tmp_path / "a.onnx").read_bytes()).n_features == 4


def test_a_pickle_of_scikit_learn_without_a_model_type_says_how_to_save_it(read_model: Callable[..., Any]) -> None:
    ensemble = pytest.importorskip("sklearn.ensemble", reason="the format's extra is not installed")
    content = pickle.dumps(ensemble.RandomForestRegressor(2, random_state=0).fit(ROWS, RETURNS))
    detail = refusal(read_model, "xgboost", content)  # which claims .pkl first
    assert "skops.io.dump" in detail
