"""The evaluator gives XGBoost's margins bit for bit, or says why it cannot."""

import numpy as np
import pytest
import xgboost

from mmserver.trees.canonical import json_from_document
from mmserver.trees.document import document_from_bytes, document_from_snapshot
from mmserver.trees.evaluation import Evaluator, base_margins, supports_exactly
from mmserver.trees.golden import golden_rows
from mmserver.trees.objectives import OBJECTIVES
from mmserver.trees.validation import validate
from tests.counting import n_steps

NUMERIC = [
    "regression",
    "named",
    "binary",
    "logistic_regression",
    "multi",
    "softmax_forest",
    "forest",
    "pruned",
    "lossguide",
    "approx",
    "early_stopped",
    "quantiles",
    "targets",
    "poisson",
    "gamma",
    "tweedie",
    "hinge",
    "logitraw",
    "absolute",
    "cox",
    "ranking",
    "stumps",
    "constant",
]


def model_of(booster: xgboost.Booster):
    return validate(document_from_bytes(bytes(booster.save_raw("ubj"))))


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype == np.float32 and np.array_equal(left.view(np.uint32), right.view(np.uint32))


@pytest.mark.parametrize("kind", NUMERIC)
def test_margins_equal_xgboost_s_bit_for_bit(booster, kind, predict, rows_to_predict):
    model = model_of(booster(kind))
    rows = np.concatenate([rows_to_predict, golden_rows(model, 64)])
    assert supports_exactly(model) is None
    assert same_bits(Evaluator(model).margins(rows), predict(booster(kind), rows))


@pytest.mark.parametrize("kind", NUMERIC)
def test_infinities_are_values_like_others(booster, kind, rows_to_predict):
    rows = rows_to_predict.copy()
    rows[::3, 0], rows[1::3, 1], rows[::4, 2] = np.inf, -np.inf, np.inf
    native = booster(kind).inplace_predict(rows, predict_type="margin", validate_features=False)
    assert same_bits(Evaluator(model_of(booster(kind))).margins(rows), native.reshape(len(rows), -1))


@pytest.mark.parametrize("kind", ["categorical", "categorical_onehot"])
def test_categorical_splits_equal_xgboost_s(booster, kind, predict):
    model = model_of(booster(kind))
    assert model.has_categorical
    random = np.random.RandomState(6)
    rows = np.concatenate([golden_rows(model, 200), random.uniform(0, 45, (200, 5)).astype(np.float32)])
    rows[-20:, 2] = np.array([0.5, 39.9, 40, 41, 1000, 16777215, 16777216, 2e7, 1e30, np.nan] * 2, np.float32)
    assert same_bits(Evaluator(model).margins(rows), predict(booster(kind), rows))


def test_a_row_s_margin_does_not_depend_on_the_batch(booster, rows_to_predict):
    evaluator = Evaluator(model_of(booster("multi")))
    together = evaluator.margins(rows_to_predict)
    for index in range(0, 300, 17):
        assert same_bits(evaluator.margins(rows_to_predict[index : index + 1]), together[index : index + 1])
    assert evaluator.margins(rows_to_predict[:0]).shape == (0, 3)


def test_batches_larger_than_a_block_are_whole(booster, predict):
    rows = np.random.RandomState(8).normal(size=(70_000, 5)).astype(np.float32)
    assert same_bits(Evaluator(model_of(booster("forest"))).margins(rows), predict(booster("forest"), rows))


def test_rows_in_any_memory_layout_are_read_right(booster, rows_to_predict):
    evaluator = Evaluator(model_of(booster("regression")))
    strided = np.asfortranarray(rows_to_predict)
    assert same_bits(evaluator.margins(strided), evaluator.margins(rows_to_predict))


def test_dart_is_named_as_not_exact(booster):
    model = model_of(booster("dart"))
    assert "dart" in str(supports_exactly(model))
    with pytest.raises(ValueError, match="dart"):
        Evaluator(model)


@pytest.mark.parametrize("shape", [(2, 4), (2, 6), (5,)])
def test_rows_of_another_width_are_refused(booster, shape):
    with pytest.raises(ValueError, match="float32"):
        Evaluator(model_of(booster("regression"))).margins(np.zeros(shape, np.float32))


def test_rows_of_another_type_are_refused(booster):
    with pytest.raises(ValueError, match="float64"):
        Evaluator(model_of(booster("regression"))).margins(np.zeros((1, 5)))


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES) - {"reg:linear", "multi:softmax", "multi:softprob"}))
def test_every_objective_s_base_score_becomes_xgboost_s_margin(booster, objective, predict):
    label = np.ones(20)
    matrix = xgboost.DMatrix(np.zeros((20, 5)), label, qid=np.zeros(20))
    if objective == "survival:aft":
        matrix.set_float_info("label_lower_bound", label)
        matrix.set_float_info("label_upper_bound", label)
    made = xgboost.train(
        {"objective": objective, "quantile_alpha": 0.5, "nthread": 1, "verbosity": 0, "gamma": 1e9}, matrix, 1
    )
    document = document_from_bytes(bytes(made.save_raw("ubj")))
    document["learner"]["gradient_booster"]["model"]["trees"][0]["split_conditions"][:] = 0
    for score in np.random.RandomState(7).uniform(0.01, 0.99, 40).astype(np.float32):
        document["learner"]["learner_model_param"]["base_score"] = f"[{score!s}]"
        native = predict(json_from_document(document), np.zeros((1, 5), np.float32))
        assert same_bits(base_margins(validate(document)).reshape(1, 1), native), (objective, score)


def test_one_row_of_the_wide_model_takes_few_steps(golden_case):
    case = golden_case("wide__SP500_mid_chg_1d")
    evaluator = Evaluator(validate(document_from_snapshot(case.handle)))
    row = case.rows[5:6]
    evaluator.margins(row)
    assert n_steps(lambda: evaluator.margins(row)) < 2000  # 182 of them
