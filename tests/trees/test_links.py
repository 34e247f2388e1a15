"""What XGBoost's own predict returns is made of margins here to the bit, for every objective that is served."""

import numpy as np
import pytest
import xgboost

from mmserver.trees.links import c_float_function, link_of
from mmserver.trees.objectives import OBJECTIVES

KINDS = ["regression", "binary", "logistic_regression", "multi", "softmax_forest", "quantiles", "targets", "poisson", "gamma",
         "tweedie", "hinge", "logitraw", "absolute", "cox", "ranking", "categorical", "empty"]  # fmt: skip
EDGES = [
    0.0,
    -0.0,
    1e-40,
    16.7,
    -16.7,
    88.6,
    88.7,
    88.8,
    -88.7,
    -88.8,
    -103.9,
    -104.1,
    88.72283,
    88.72284,
    1e30,
    -1e30,
    3e38,
    -3e38,
]


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype == np.float32 and np.array_equal(left.view(np.uint32), right.view(np.uint32))


def linked(objective: str, margins: np.ndarray) -> np.ndarray:
    link = link_of(objective)
    return margins if link is None else link(margins)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_trained_models_are_xgboost_s_bit_for_bit(booster, kind, rows_to_predict):
    native = booster(kind)
    objective = xgboost_objective(native)
    margins = native.inplace_predict(rows_to_predict, predict_type="margin", validate_features=False)
    predictions = native.inplace_predict(rows_to_predict, validate_features=False)
    found = linked(objective, margins.reshape(300, -1))
    assert same_bits(found, predictions.reshape(300, -1))


def xgboost_objective(booster: xgboost.Booster) -> str:
    import json

    return str(json.loads(booster.save_config())["learner"]["objective"]["name"])


def given_by_xgboost(objective: str, margins: np.ndarray) -> np.ndarray:
    """XGBoost's predictions for any margins: they come in as each row's base margin, beside one tree without effect."""
    n_rows, n_outputs = margins.shape
    label = np.arange(n_rows) % max(n_outputs, 1) if objective.startswith("multi:") else np.ones(n_rows)
    matrix = xgboost.DMatrix(np.zeros((n_rows, 2)), label, qid=np.zeros(n_rows))
    if objective == "survival:aft":
        matrix.set_float_info("label_lower_bound", np.ones(n_rows))
        matrix.set_float_info("label_upper_bound", np.ones(n_rows))
    parameters = {"objective": objective, "quantile_alpha": 0.5, "nthread": 1, "verbosity": 0, "eta": 0, "gamma": 1e9}
    if objective.startswith("multi:"):
        parameters["num_class"] = n_outputs
    booster = xgboost.train(parameters, matrix, 1)
    bare = xgboost.DMatrix(np.zeros((n_rows, 2)), base_margin=margins)
    assert same_bits(booster.predict(bare, output_margin=True).reshape(margins.shape), margins + np.float32(0))
    return booster.predict(bare).reshape(n_rows, -1)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_predictions_of_any_margins_are_xgboost_s_bit_for_bit(objective):
    n_outputs = 3 if objective.startswith("multi:") else 1
    random = np.random.RandomState(5)
    edges = np.array(EDGES, np.float32)
    margins = np.concatenate([random.normal(size=(30_000, n_outputs)) * 8, random.uniform(-105, 95, (500, n_outputs)),
                              edges[random.randint(0, edges.size, (300, n_outputs))]]).astype(np.float32)  # fmt: skip
    margins += np.float32(0)  # XGBoost makes 0 of -0 before it asks the objective
    assert same_bits(linked(objective, margins), given_by_xgboost(objective, margins))


def test_no_rows_have_no_predictions():
    for objective in OBJECTIVES:
        assert len(linked(objective, np.empty((0, 3), np.float32))) == 0


def test_a_function_that_the_c_library_lacks_is_replaced():
    assert c_float_function("no_such_function_f", abs)(-2.0) == 2.0
    assert c_float_function("expf", abs)(0.0) == 1.0
