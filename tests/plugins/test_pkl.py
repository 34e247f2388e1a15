"""Pickles: models of XGBoost by whichever class they were pickled as, info mappings, and nothing else."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmserver.errors import Undecodable

INFO, MODEL = "BTC_ret_1h_info.pkl", "BTC_ret_1h_model.pkl"
N_FEATURES = 3


@pytest.fixture(scope="module")
def training() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, N_FEATURES)).astype(np.float32)
    return rows, rows @ np.array([1.0, -1.0, 0.5])


def fitted(kind: str, training: tuple[Any, Any], **options: Any) -> Any:
    import xgboost

    rows, labels = training
    options = {"n_estimators": 4, "max_depth": 2, "n_jobs": 1, **options}
    if kind == "Booster":
        return xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(rows, labels), 4)
    model = getattr(xgboost, kind)(**options)
    if kind == "XGBRanker":
        return model.fit(rows, labels > 0, group=[len(labels)])
    return model.fit(rows, labels > 0 if "Classifier" in kind else labels)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["Booster", "XGBRegressor", "XGBClassifier", "XGBRFRegressor", "XGBRanker"])
def test_a_model_of_every_class_is_read_and_predicts_what_it_did(
    parse: Callable[..., Any], training: tuple[Any, Any], kind: str, protocol: int
) -> None:
    import xgboost

    model = fitted(kind, training)
    parsed = parse(MODEL, pickle.dumps(model, protocol=protocol))
    assert (parsed.kind, parsed.n_features, parsed.n_trees) == ("xgboost", N_FEATURES, 4)
    booster = model if kind == "Booster" else model.get_booster()
    rows = training[0]
    loaded = xgboost.Booster(model_file=bytearray(parsed.content))
    assert loaded.inplace_predict(rows).tobytes() == booster.inplace_predict(rows).tobytes()


def test_a_value_that_means_missing_is_kept(parse: Callable[..., Any], training: tuple[Any, Any]) -> None:
    assert parse(MODEL, pickle.dumps(fitted("XGBRegressor", training, missing=-999.0))).missing == -999.0
    assert parse(MODEL, pickle.dumps(fitted("XGBRegressor", training))).missing is None


def test_only_the_trees_up_to_the_best_iteration_are_kept(parse: Callable[..., Any], training: tuple[Any, Any]) -> None:
    import xgboost

    rows, labels = training
    noise = np.random.default_rng(1).normal(size=len(labels))
    model = xgboost.XGBRegressor(n_estimators=60, max_depth=3, n_jobs=1, learning_rate=1.0, early_stopping_rounds=3)
    model.fit(rows, labels, eval_set=[(rows, noise)], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    parsed = parse(MODEL, pickle.dumps(model))
    assert (parsed.best_iteration, parsed.n_trees) == (model.best_iteration, model.best_iteration + 1)
    loaded = xgboost.Booster(model_file=bytearray(parsed.content))
    assert loaded.inplace_predict(rows).tobytes() == model.predict(rows).tobytes()


def test_what_is_no_trained_xgboost_model_is_refused_by_name(
    parse: Callable[..., Any], training: tuple[Any, Any]
) -> None:
    import xgboost
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), fitted("XGBRegressor", training))
    for value, reason, said in [
        (xgboost.XGBRegressor(), "unsupported", "was it fitted"),
        (LinearRegression().fit(*training), "unsupported", "LinearRegression"),
        (pipeline, "unsupported", "Pipeline"),
        (training[0], "wrong_type", "ndarray"),
        ({"model": 1}, "wrong_type", "dict"),
        (None, "wrong_type", "NoneType"),
    ]:
        with pytest.raises(Undecodable, match=said) as refused:
            parse(MODEL, pickle.dumps(value))
        assert refused.value.reason == reason


def test_compressed_joblib_files_are_read(parse: Callable[..., Any], training: tuple[Any, Any], tmp_path: Path) -> None:
    import joblib

    model = fitted("XGBRegressor", training)
    plain = parse(MODEL, pickle.dumps(model)).content
    for number, compress in enumerate([0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3), ("lz4", 3)]):
        joblib.dump(model, tmp_path / str(number), compress=compress)
        assert parse(MODEL, (tmp_path / str(number)).read_bytes()).content == plain


def test_numpy_and_pandas_values_are_shown_as_json(parse: Callable[..., Any]) -> None:
    info = {
        "dim": np.int64(3),
        "ic": np.float32(0.5),
        "bad": np.float64("nan"),
        "start": pd.Timestamp("2024-01-01", tz="UTC"),
        "names": np.array(["a", "b"]),
        ("tuple", 1): {1, 2},
    }
    values = parse(INFO, pickle.dumps(info)).values
    assert (values["dim"], values["ic"], values["bad"]) == (3, 0.5, None)
    assert values["start"].startswith("2024-01-01T00:00:00")
    assert values["names"] == ["a", "b"]
    assert all(isinstance(key, str) for key in values)


def test_a_series_is_a_mapping(parse: Callable[..., Any]) -> None:
    assert parse(INFO, pickle.dumps(pd.Series({"dim": 3, "n_train": 5}))).values == {"dim": 3, "n_train": 5}


@pytest.mark.parametrize("value", [None, 5, "text", [1], (1,), np.zeros(2), pd.DataFrame({"a": [1]})], ids=repr)
def test_an_info_file_that_is_no_mapping_is_refused(parse: Callable[..., Any], value: Any) -> None:
    with pytest.raises(Undecodable, match="a mapping is expected"):
        parse(INFO, pickle.dumps(value))
