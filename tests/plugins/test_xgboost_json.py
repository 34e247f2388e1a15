"""XGBoost's own JSON, and giving models as JSON and UBJSON."""

import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.formats import Artifact, ModelFile
from mmserver.plugin_loading import Plugins

NAME = "BTC_ret_1h_model.json"


@pytest.fixture(scope="module")
def rows() -> Any:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(300, 3)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows


@pytest.fixture(scope="module")
def estimator(rows: Any) -> Any:
    import xgboost

    model = xgboost.XGBRegressor(n_estimators=5, max_depth=3, n_jobs=1, missing=-1.0)
    return model.fit(np.nan_to_num(rows, nan=-1.0), np.nan_to_num(rows).sum(axis=1))


@pytest.fixture(scope="module")
def text(estimator: Any) -> bytes:
    return bytes(estimator.get_booster().save_raw("json"))


def test_json_and_its_pickle_have_the_same_content(parse: Callable[..., Any], text: bytes, estimator: Any) -> None:
    from_json = parse(NAME, text)
    from_pickle = parse("BTC_ret_1h_model.pkl", pickle.dumps(estimator))
    assert from_json.content == from_pickle.content
    assert (from_json.missing, from_pickle.missing) == (None, -1.0)


@pytest.mark.parametrize("target", ["json", "ubj"])
def test_every_form_loads_and_predicts_the_same(
    parse: Callable[..., Any], plugins: Plugins, text: bytes, rows: Any, estimator: Any, target: str
) -> None:
    import xgboost

    converter = plugins.converter_for("xgboost", target)
    assert converter is not None
    model = parse(NAME, text)
    content = converter.convert(model)
    assert content == converter.convert(model)
    booster = xgboost.Booster(model_file=bytearray(content))
    assert booster.inplace_predict(rows).tobytes() == estimator.get_booster().inplace_predict(rows).tobytes()


def test_the_predictor_takes_the_estimator_s_missing_value(
    parse: Callable[..., Any], plugins: Plugins, estimator: Any, rows: Any
) -> None:
    model = parse("BTC_ret_1h_model.pkl", pickle.dumps(estimator))
    predictor = plugins.load_predictor(model)
    assert predictor is not None
    assert (predictor.n_features, predictor.size_bytes > 0) == (3, True)
    filled = np.nan_to_num(rows, nan=-1.0)
    expected = estimator.predict(filled)
    for given in (rows, filled):
        outputs = predictor.predict(given)
        assert outputs["prediction"].shape == (300, 1)
        assert outputs["prediction"].ravel().tobytes() == expected.tobytes()
    assert np.isnan(rows).any(), "the caller's rows were changed"


def test_no_rows_give_no_predictions(parse: Callable[..., Any], plugins: Plugins, text: bytes) -> None:
    predictor = plugins.load_predictor(parse(NAME, text))
    assert predictor is not None
    outputs = predictor.predict(np.empty((0, 3), dtype=np.float32))
    assert len(outputs["prediction"]) == 0


def test_another_kind_is_another_plugin_s(plugins: Plugins) -> None:
    other = ModelFile(kind="other", content=b"", n_features=1, n_outputs=1, objective="", library_version="")
    assert plugins.load_predictor(other) is None


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d.clear(), id="empty object"),
        pytest.param(lambda d: d.pop("learner"), id="no learner"),
        pytest.param(lambda d: d.update(version=[3]), id="version"),
        pytest.param(lambda d: d["learner"]["gradient_booster"].update(name="gblinear"), id="gblinear"),
        pytest.param(lambda d: d["learner"]["objective"].update(name="mine"), id="objective"),
    ],
)
def test_another_document_is_refused(parse: Callable[..., Any], text: bytes, change: Callable[[Any], Any]) -> None:
    document = json.loads(text)
    change(document)
    with pytest.raises(Undecodable):
        parse(NAME, json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"\xff", b'{"a":1}{"b":2}', b"[" * 50_000])
def test_text_that_is_no_document_is_refused(parse: Callable[..., Any], data: bytes) -> None:
    with pytest.raises(Undecodable):
        parse(NAME, data)


def test_contributions_add_up_to_the_margin_whatever_means_missing(
    parse: Callable[..., Any], plugins: Plugins, estimator: Any, rows: Any
) -> None:
    predictor: Any = plugins.load_predictor(parse("BTC_ret_1h_model.pkl", pickle.dumps(estimator)))
    assert predictor.accepts_missing
    filled = np.nan_to_num(rows, nan=-1.0)
    contributions = predictor.contributions(rows)
    assert (contributions.shape, contributions.dtype) == ((300, 1, 4), np.float32)
    assert predictor.contributions(filled).tobytes() == contributions.tobytes()
    np.testing.assert_allclose(contributions.sum(axis=2), predictor.predict(rows)["margin"], atol=1e-5)
    assert predictor.contributions(rows[:0]).shape == (0, 1, 4)


def test_contributions_of_categorical_and_of_several_classes_add_up(plugins: Plugins) -> None:
    import xgboost

    random = np.random.default_rng(1)
    rows = np.stack([random.normal(size=400), random.integers(0, 20, 400)], axis=1).astype(np.float32)
    matrix = xgboost.DMatrix(rows, rows[:, 1] % 3, feature_types=["float", "c"], enable_categorical=True)
    booster = xgboost.train({"objective": "multi:softprob", "num_class": 3, "max_cat_to_onehot": 1}, matrix, 3)
    claim = plugins.format_for(NAME)
    assert claim is not None
    model = claim.parse(Artifact(name=NAME, group_key="", data=bytes(booster.save_raw("json"))))
    assert isinstance(model, ModelFile)
    predictor: Any = plugins.load_predictor(model)
    contributions = predictor.contributions(rows)
    assert contributions.shape == (400, 3, 3)
    np.testing.assert_allclose(contributions.sum(axis=2), predictor.predict(rows)["margin"], atol=1e-5)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values_are_predicted_and_not_explained(
    parse: Callable[..., Any], plugins: Plugins, text: bytes, value: float
) -> None:
    predictor: Any = plugins.load_predictor(parse(NAME, text))
    rows = np.array([[0, value, 0]], np.float32)
    assert np.isfinite(predictor.predict(rows)["margin"]).all()
    with pytest.raises(ValueError, match="infinite"):
        predictor.contributions(rows)


def test_eight_threads_predict_and_explain_as_one_does(
    parse: Callable[..., Any], plugins: Plugins, text: bytes, rows: Any
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    predictor: Any = plugins.load_predictor(parse(NAME, text))
    expected = [predictor.predict(rows)["margin"].tobytes(), predictor.contributions(rows).tobytes()]
    fresh: Any = plugins.load_predictor(parse(NAME, text))

    def ask(index: int) -> bytes:
        return (fresh.contributions(rows) if index % 2 else fresh.predict(rows)["margin"]).tobytes()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(80))) == expected * 40
