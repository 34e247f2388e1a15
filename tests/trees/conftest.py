"""Tiny real models of every kind, trained once, and the bytes of the shared real ones."""

import json
import pickletools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xgboost

N_FEATURES = 5


class GoldenCase(NamedTuple):
    handle: bytes
    rows: np.ndarray
    native: np.ndarray


def _rows(n: int, seed: int) -> np.ndarray:
    random = np.random.RandomState(seed)
    rows = random.normal(size=(n, N_FEATURES)).astype(np.float32)
    rows[:, 1] = np.round(rows[:, 1], 1)
    rows[random.random_sample(rows.shape) < 0.05] = np.nan
    return rows


def _targets(rows: np.ndarray) -> np.ndarray:
    filled = np.nan_to_num(rows)
    return filled[:, 0] * 2 + np.sin(3 * filled[:, 1]) + filled[:, 2] * filled[:, 3] + 3


def _train(
    parameters: dict[str, Any], target: np.ndarray | None = None, n: int = 6, **keywords: Any
) -> xgboost.Booster:
    rows = keywords.pop("rows", None)
    rows = _rows(400, 1) if rows is None else rows
    label = _targets(rows) if target is None else target
    matrix = xgboost.DMatrix(rows, label, **keywords)
    return xgboost.train({"max_depth": 4, "nthread": 1, "seed": 1, "verbosity": 0, **parameters}, matrix, n)


def _early_stopped() -> xgboost.Booster:
    rows, other = _rows(300, 1), _rows(200, 2)
    noisy = _targets(rows) + np.random.RandomState(3).normal(size=300) * 4
    return xgboost.train(
        {"max_depth": 6, "eta": 0.9, "nthread": 1},
        xgboost.DMatrix(rows, noisy),
        30,
        evals=[(xgboost.DMatrix(other, _targets(other)), "valid")],
        early_stopping_rounds=4,
        verbose_eval=False,
    )


def _categorical(parameters: dict[str, Any]) -> xgboost.Booster:
    rows = _rows(400, 1)
    random = np.random.RandomState(4)
    rows[:, 2] = random.randint(0, 40, 400)
    rows[:, 4] = random.randint(0, 3, 400)
    target = np.sin(rows[:, 2] * 5) + rows[:, 4] * np.nan_to_num(rows[:, 0])
    types = ["float", "float", "c", "float", "c"]
    return _train(parameters, target, rows=rows, feature_types=types, enable_categorical=True)


def _trained() -> dict[str, Callable[[], xgboost.Booster]]:
    target = _targets(_rows(400, 1))
    classes = np.digitize(target, np.quantile(target, [0.3, 0.7])).astype(float)
    several = np.stack([target, -target, target**2], axis=1)
    positive = np.abs(target) + 0.1
    return {
        "regression": lambda: _train({}),
        "named": lambda: _train({}, feature_names=["é", 'a "b"', "back\\slash", "tab\there", "日本"]),
        "binary": lambda: _train({"objective": "binary:logistic"}, (target > 3.4).astype(float)),
        "logistic_regression": lambda: _train({"objective": "reg:logistic"}, np.clip(target / 10, 0, 1)),
        "multi": lambda: _train({"objective": "multi:softprob", "num_class": 3}, classes),
        "softmax_forest": lambda: _train(
            {"objective": "multi:softmax", "num_class": 3, "num_parallel_tree": 2, "subsample": 0.7}, classes, n=3
        ),
        "forest": lambda: _train({"num_parallel_tree": 5, "subsample": 0.6, "eta": 1}, n=2),
        "pruned": lambda: _train({"tree_method": "exact", "gamma": 30, "max_depth": 6}),
        "lossguide": lambda: _train({"grow_policy": "lossguide", "max_depth": 0, "max_leaves": 40}),
        "approx": lambda: _train({"tree_method": "approx", "max_bin": 8}),
        "early_stopped": _early_stopped,
        "quantiles": lambda: _train({"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}),
        "targets": lambda: _train({}, several),
        "poisson": lambda: _train({"objective": "count:poisson"}, positive),
        "gamma": lambda: _train({"objective": "reg:gamma"}, positive),
        "tweedie": lambda: _train({"objective": "reg:tweedie"}, positive),
        "hinge": lambda: _train({"objective": "binary:hinge"}, (target > 3).astype(float)),
        "logitraw": lambda: _train({"objective": "binary:logitraw"}, (target > 3).astype(float)),
        "absolute": lambda: _train({"objective": "reg:absoluteerror"}),
        "cox": lambda: _train({"objective": "survival:cox"}, positive),
        "ranking": lambda: _train({"objective": "rank:ndcg"}, (target > 3).astype(float), qid=np.arange(400) // 20),
        "categorical": lambda: _categorical({"max_cat_to_onehot": 1}),
        "categorical_onehot": lambda: _categorical({"max_cat_to_onehot": 100}),
        "stumps": lambda: _train({"max_depth": 1}),
        "constant": lambda: _train({"gamma": 1e9}),
        "empty": lambda: _train({}, n=0),
        "dart": lambda: _train({"booster": "dart", "rate_drop": 0.5}),
        "gblinear": lambda: _train({"booster": "gblinear"}),
        "multi_output_tree": lambda: _train({"multi_strategy": "multi_output_tree"}, several),
    }


@pytest.fixture(scope="session")
def booster() -> Callable[[str], xgboost.Booster]:
    """A function: kind -> a tiny trained Booster of that kind, the same one every time."""
    makers = _trained()
    made: dict[str, xgboost.Booster] = {}

    def of_kind(kind: str) -> xgboost.Booster:
        if kind not in made:
            made[kind] = makers[kind]()
        return made[kind]

    return of_kind


@pytest.fixture(scope="session")
def rows_to_predict() -> np.ndarray:
    """Rows with NaN, ties with rounded values, huge and tiny values among them."""
    rows = _rows(300, 9)
    rows[:20] *= np.float32(1e30)
    rows[20:40] *= np.float32(1e-42)
    rows[40] = np.nan
    rows[41] = 0
    return rows


@pytest.fixture(scope="session")
def predict() -> Callable[..., np.ndarray]:
    """A function: (Booster or model bytes, rows) -> margins [n, n_outputs] as XGBoost gives them."""

    def margins(model: xgboost.Booster | bytes, rows: np.ndarray, types: list[str] | None = None) -> np.ndarray:
        loaded = xgboost.Booster(model_file=bytearray(model)) if isinstance(model, bytes) else model
        types = loaded.feature_types if types is None else types
        matrix = xgboost.DMatrix(rows, nthread=1, feature_types=types, enable_categorical=types is not None)
        found = loaded.predict(matrix, output_margin=True, validate_features=False)
        return found.reshape(len(rows), -1)

    return margins


@pytest.fixture(scope="session")
def golden_case(shared_artifacts: Path) -> Callable[[str], GoldenCase]:
    """A function: golden file's stem -> the pickled Booster's state, rows, and what its writer predicted."""

    def of_stem(stem: str) -> GoldenCase:
        directory, group_key = stem.split("__")
        golden = json.loads((shared_artifacts / "golden" / f"{stem}.json").read_text())
        rows = np.array([[np.nan if value is None else value for value in row] for row in golden["rows"]], np.float32)
        handle = _booster_state((shared_artifacts / directory / f"{group_key}_model.pkl").read_bytes())
        return GoldenCase(handle, rows, np.array(golden["native"], np.float32))

    return of_stem


def _booster_state(pickled: bytes) -> bytes:
    """The longest bytes in the pickle: the serialized Booster, found without loading anything."""
    stream = zlib.decompress(pickled) if pickled[:1] == b"x" else pickled
    found = [bytes(value) for _, value, _ in pickletools.genops(stream) if isinstance(value, bytes | bytearray)]
    return max(found, key=len)
