"""CatBoost's own ONNX, with its output in the shape that it has and its classes in a tensor."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.errors import NotConvertible, Undecodable

catboost = pytest.importorskip("catboost", reason="catboost is not installed (the extra catboost)")
pytest.importorskip("onnx", reason="onnx is not installed (the extra catboost)")

OPTIONS = {"iterations": 15, "depth": 3, "verbose": False, "thread_count": 1, "allow_writing_files": False}


@pytest.fixture(scope="module")
def rows() -> Any:
    rng = np.random.default_rng(0)
    found = rng.normal(size=(200, 4))
    found[rng.random(found.shape) < 0.1] = np.nan
    return found


@pytest.fixture(scope="module")
def returns(rows: Any) -> Any:
    return np.nan_to_num(rows) @ [1.0, 2.0, -1.0, 0.0]


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., bytes]:
    """The file of a fitted model."""

    def run(model: Any, rows: Any, labels: Any, **saving: Any) -> bytes:
        path = tmp_path / "model.cbm"
        model.fit(rows, labels).save_model(str(path), **saving)
        return path.read_bytes()

    return run


@pytest.mark.parametrize("nan_mode", ["Min", "Max"])
def test_a_regressor_predicts_the_same_with_missing_values_too(
    read_model: Callable[..., Any],
    parity: Callable[..., Any],
    saved: Callable[..., bytes],
    rows: Any,
    returns: Any,
    nan_mode: str,
) -> None:
    model = read_model("catboost", saved(catboost.CatBoostRegressor(**OPTIONS, nan_mode=nan_mode), rows, returns))
    report = parity(model)
    assert report.passed
    assert report.max_abs_difference < 1e-5
    assert (model.n_features, model.n_trees, model.objective) == (4, 15, "RMSE")
    assert any(None in row for row in model.probes.rows)


def test_trees_on_prices_are_tried_on_both_sides_of_their_splits(
    read_model: Callable[..., Any], parity: Callable[..., Any], saved: Callable[..., bytes]
) -> None:
    shifts = np.random.default_rng(0).normal(size=(200, 4))
    model = catboost.CatBoostRegressor(**OPTIONS)
    read = read_model("catboost", saved(model, 50_000 + 300 * shifts, shifts @ [1.0, 2.0, -1.0, 0.0]))
    assert parity(read).passed
    rows = np.array(read.probes.rows, dtype=np.float64)
    borders = {feature: found for feature, found in model.get_borders().items() if found}
    used = rows[:, list(borders)]
    ordinary = np.isfinite(used).all(axis=1) & (np.abs(used - 50_000) < 3000).all(axis=1)
    predictions = np.array(read.probes.outputs["prediction"])[ordinary]
    assert len(np.unique(predictions)) > 8
    assert predictions.min() < -1 < 1 < predictions.max()
    for feature, found in borders.items():
        assert rows[ordinary][:, feature].min() < min(found) < max(found) < rows[ordinary][:, feature].max()


@pytest.mark.parametrize(
    "classes", [pytest.param([0, 1], id="two"), pytest.param(["BUY", "HOLD", "SELL"], id="three-named")]
)
def test_a_classifier_gives_the_probabilities_of_its_classes(
    read_model: Callable[..., Any],
    parity: Callable[..., Any],
    saved: Callable[..., bytes],
    rows: Any,
    returns: Any,
    classes: list[Any],
) -> None:
    labels = np.array(classes)[np.digitize(returns, np.linspace(-1, 1, len(classes) - 1))]
    model = read_model("catboost", saved(catboost.CatBoostClassifier(**OPTIONS), rows, labels))
    report = parity(model)
    assert (report.passed, report.class_agreement) == (True, 1.0)
    assert model.summary["classes"] == classes
    assert np.shape(model.probes.outputs["probabilities"])[1] == len(classes)


def test_a_loss_with_a_link_gives_margins_not_predictions(
    read_model: Callable[..., Any], saved: Callable[..., bytes], rows: Any, returns: Any
) -> None:
    counts = catboost.CatBoostRegressor(**OPTIONS, loss_function="Poisson")
    assert list(read_model("catboost", saved(counts, rows, np.abs(returns))).probes.outputs) == ["margin"]


def test_probabilities_that_the_exporter_gets_wrong_do_not_agree(
    read_model: Callable[..., Any], parity: Callable[..., Any], saved: Callable[..., bytes], rows: Any, returns: Any
) -> None:
    model = catboost.CatBoostClassifier(**OPTIONS, loss_function="MultiClassOneVsAll")
    assert not parity(read_model("catboost", saved(model, rows, np.digitize(returns, (-1, 1))))).passed


def test_categories_are_refused_by_name(
    read_model: Callable[..., Any], saved: Callable[..., bytes], returns: Any
) -> None:
    model = catboost.CatBoostRegressor(**OPTIONS, cat_features=[0])
    rows = [[str(number % 3), float(number)] for number in range(len(returns))]
    with pytest.raises(NotConvertible, match="encode them as numbers"):
        read_model("catboost", saved(model, rows, returns))


def test_another_form_than_cbm_is_refused_with_what_to_do(
    read_model: Callable[..., Any], saved: Callable[..., bytes], rows: Any, returns: Any
) -> None:
    as_json = saved(catboost.CatBoostRegressor(**OPTIONS), rows, returns, format="json")
    with pytest.raises(Undecodable, match=r"save_model\('model.cbm'\)"):
        read_model("catboost", as_json)


def test_a_torn_file_is_refused(
    read_model: Callable[..., Any], saved: Callable[..., bytes], rows: Any, returns: Any
) -> None:
    whole = saved(catboost.CatBoostRegressor(**OPTIONS), rows, returns)
    for length in range(len(whole)):
        with pytest.raises(Undecodable):
            read_model("catboost", whole[:length])


def test_json_becomes_a_model_that_predicts_the_same_as_the_refusal_says(
    read_model: Callable[..., Any],
    saved: Callable[..., bytes],
    rows: Any,
    returns: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = catboost.CatBoostRegressor(**OPTIONS)
    (tmp_path / "model.json").write_bytes(saved(fitted, rows, returns, format="json"))
    with pytest.raises(Undecodable) as refusal:
        read_model("catboost", (tmp_path / "model.json").read_bytes())
    lines = re.search(r"model = .*?; model\.save_model\('model\.cbm'\)", refusal.value.detail)
    assert lines is not None
    monkeypatch.chdir(tmp_path)
    exec(lines.group(0), {"catboost": catboost})
    read = read_model("catboost", (tmp_path / "model.cbm").read_bytes())
    expected = read_model("catboost", saved(fitted, rows, returns))
    assert np.allclose(read.probes.outputs["prediction"], expected.probes.outputs["prediction"], rtol=1e-12, atol=0)


def test_a_regressor_that_catboost_itself_saved_as_onnx_predicts_what_catboost_does(
    read_model: Callable[..., Any], plugins: Any, saved: Callable[..., bytes], rows: Any, returns: Any
) -> None:
    fitted = catboost.CatBoostRegressor(**OPTIONS)
    model = read_model("onnx", saved(fitted, rows, returns, format="onnx"))
    wanted = np.nan_to_num(rows).astype(np.float32)
    (found,) = plugins.load_predictor(model).predict(wanted).values()
    assert np.abs(found.ravel() - fitted.predict(wanted)).max() < 1e-5


def test_a_classifier_that_catboost_itself_saved_as_onnx_gives_maps_and_is_refused_with_another_way(
    read_model: Callable[..., Any], saved: Callable[..., bytes], rows: Any, returns: Any
) -> None:
    labels = (returns > 0).astype(int)
    with pytest.raises(Undecodable, match="ZipMap") as refusal:
        read_model("onnx", saved(catboost.CatBoostClassifier(**OPTIONS), rows, labels, format="onnx"))
    assert refusal.value.reason == "unsupported"
