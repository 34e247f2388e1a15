"""Trained models of every objective, from their pickle to the decision: what XGBoost predicts is what is decided on."""

import math
import pickle
from typing import Any

import numpy as np
import pytest

from mmserver.errors import NotInterpretable

ROWS = np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)


def trained(objective: str, **parameters: Any) -> Any:
    import xgboost

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 3)).astype(np.float32)
    signal = rows[:, 0] + rng.normal(scale=0.3, size=300)
    label: Any = signal
    if objective.startswith("binary") or objective == "reg:logistic":
        label = signal > 0
    elif objective.startswith("multi"):
        label, parameters["num_class"] = np.digitize(signal, [-0.5, 0.5]), 3
    elif objective in ("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox"):
        label = np.exp(signal)
    asked = {"objective": objective, "max_depth": 3, "nthread": 1, **parameters}
    return xgboost.train(asked, xgboost.DMatrix(rows, label=np.asarray(label, float)), 5)


@pytest.fixture
def decided(desk: Any) -> Any:
    """A function: objective → (the booster, the decisions for ROWS)."""

    def of(objective: str, **parameters: Any) -> tuple[Any, list[Any]]:
        booster = trained(objective, **parameters)
        (desk.directory("alpha") / "BTC_ret_1h_model.pkl").write_bytes(pickle.dumps(booster))
        desk.register()
        return booster, [desk.predict([float(cell) for cell in row]).decision for row in ROWS]

    return of


def predicted(booster: Any) -> Any:
    return booster.inplace_predict(ROWS)


@pytest.mark.parametrize(
    "objective", ["reg:squarederror", "reg:absoluteerror", "reg:pseudohubererror", "reg:quantileerror"]
)
def test_the_sign_of_a_predicted_return_is_the_direction(decided: Any, objective: str) -> None:
    more = {"quantile_alpha": 0.5} if objective == "reg:quantileerror" else {}
    booster, decisions = decided(objective, **more)
    native = predicted(booster).tolist()
    assert [d.expected_return for d in decisions] == native
    assert [d.direction for d in decisions] == ["BUY" if x > 0 else "SELL" if x < 0 else "HOLD" for x in native]
    assert {d.probability for d in decisions} == {d.confidence for d in decisions} == {None}


@pytest.mark.parametrize("objective", ["binary:logistic", "binary:logitraw", "binary:hinge"])
def test_two_classes_become_directions(decided: Any, objective: str) -> None:
    booster, decisions = decided(objective)
    native = predicted(booster).tolist()
    above = {"binary:logistic": 0.5, "binary:logitraw": 0.0, "binary:hinge": 0.5}[objective]
    assert [d.direction for d in decisions] == ["BUY" if p > above else "SELL" for p in native]
    second = {
        "binary:logistic": native,
        "binary:logitraw": [1 / (1 + math.exp(-x)) for x in native],
        "binary:hinge": [None] * len(native),
    }[objective]
    expected = [p if p is None or p > 0.5 else 1 - p for p in second]
    assert [d.probability for d in decisions] == pytest.approx(expected)
    assert {d.expected_return for d in decisions} == {None}


@pytest.mark.parametrize("objective", ["multi:softprob", "multi:softmax"])
def test_three_classes_become_directions(decided: Any, objective: str) -> None:
    booster, decisions = decided(objective)
    margins = booster.inplace_predict(ROWS, predict_type="margin").astype(float)
    shares = np.exp(margins) / np.exp(margins).sum(axis=1, keepdims=True)
    assert [d.direction for d in decisions] == [("HOLD", "BUY", "SELL")[at] for at in shares.argmax(axis=1)]
    assert [d.probability for d in decisions] == pytest.approx(shares.max(axis=1).tolist(), rel=1e-6)
    if objective == "multi:softmax":
        assert shares.argmax(axis=1).tolist() == predicted(booster).tolist()


@pytest.mark.parametrize(
    "objective", ["count:poisson", "reg:gamma", "reg:tweedie", "reg:logistic", "survival:cox", "rank:pairwise"]
)
def test_other_objectives_give_their_outputs_and_no_direction(desk: Any, objective: str) -> None:
    booster = trained(objective)
    (desk.directory("alpha") / "BTC_ret_1h_model.pkl").write_bytes(pickle.dumps(booster))
    desk.register()
    with pytest.raises(NotInterpretable, match=objective):
        desk.predict([1.0, 2.0, 3.0])
    outputs = desk.serving.run(desk.resolved(), ROWS)
    assert outputs["prediction"][:, 0].tolist() == predicted(booster).tolist()


def test_a_wrapper_s_missing_value_is_missing_here_too(desk: Any) -> None:
    import xgboost

    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 3)).astype(np.float32)
    rows[::3, 1] = -999
    model = xgboost.XGBRegressor(n_estimators=5, missing=-999, n_jobs=1).fit(rows, rows[:, 0])
    (desk.directory("alpha") / "BTC_ret_1h_model.pkl").write_bytes(pickle.dumps(model))
    desk.register()
    sent = np.array([[0.5, -999, 0.5]], np.float32)
    expected = float(model.predict(sent)[0])
    assert desk.predict([0.5, -999.0, 0.5]).decision.expected_return == expected
    assert desk.predict([0.5, None, 0.5]).decision.expected_return == expected
