"""Real models of three generations of XGBoost: what is made of them predicts what their writer predicted."""

import numpy as np
import pytest
import xgboost

from mmserver.trees.canonical import json_from_document, ubjson_from_document
from mmserver.trees.document import document_from_bytes, document_from_snapshot
from mmserver.trees.evaluation import Evaluator
from mmserver.trees.golden import golden_rows
from mmserver.trees.slicing import slice_iterations
from mmserver.trees.validation import validate
from tests.counting import n_steps

STEMS = [
    "ambiguous__SP500_ret_1d",
    "ambiguous__SP500_ret_5d",
    "daily_5d__NASDAQ_ret_5d",
    "daily_5d__SP500_ret_5d",
    "daily_5d__WTI_ret_5d",
    "daily_5d_retrained__NASDAQ_ret_5d",
    "daily_5d_retrained__SP500_ret_5d",
    "daily_5d_retrained__WTI_ret_5d",
    "kinds__NASDAQ_dir_1d",
    "kinds__SP500_up_1d",
    "kinds__VIX_ret_5d",
    "kinds__WTI_ret_1d",
    "wide__SP500_mid_chg_1d",
    "xgboost_1_7__NASDAQ_ret_5d",
    "xgboost_1_7__SP500_ret_5d",
    "xgboost_1_7__WTI_ret_5d",
    "xgboost_2_1__NASDAQ_ret_5d",
    "xgboost_2_1__SP500_ret_5d",
    "xgboost_2_1__WTI_ret_5d",
]


def served_document(handle: bytes):
    document = document_from_snapshot(handle)
    model = validate(document)
    if model.best_iteration is None:
        return document
    return slice_iterations(document, model, model.best_iteration + 1)


def probabilities_of(predicted: np.ndarray, native: np.ndarray) -> np.ndarray:
    """In the shape in which the writing classifier gave them."""
    return np.stack([1 - predicted, predicted], axis=1) if native.ndim == 2 and predicted.ndim == 1 else predicted


def test_every_golden_file_is_listed_here(shared_artifacts):
    assert sorted(path.stem for path in (shared_artifacts / "golden").glob("*.json")) == STEMS


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("write", [json_from_document, ubjson_from_document])
def test_xgboost_predicts_from_our_bytes_what_the_writer_predicted(golden_case, stem, write):
    case = golden_case(stem)
    loaded = xgboost.Booster(model_file=bytearray(write(served_document(case.handle))))
    predicted = loaded.predict(xgboost.DMatrix(case.rows, nthread=1), validate_features=False)
    assert np.array_equal(probabilities_of(predicted, case.native), case.native)


@pytest.mark.parametrize("stem", STEMS)
def test_our_margins_equal_xgboost_s(golden_case, stem, predict):
    case = golden_case(stem)
    document = served_document(case.handle)
    model = validate(document)
    rows = np.concatenate([case.rows, golden_rows(model)])
    assert np.array_equal(Evaluator(model).margins(rows), predict(ubjson_from_document(document), rows))


@pytest.mark.parametrize("stem", [stem for stem in STEMS if not stem.startswith("kinds__") or "ret" in stem])
def test_our_margins_of_regressors_equal_what_the_writer_predicted(golden_case, stem):
    case = golden_case(stem)
    margins = Evaluator(validate(served_document(case.handle))).margins(case.rows)
    assert np.array_equal(margins[:, 0], case.native)


def test_the_json_beside_a_pickle_is_the_same_model(golden_case, shared_artifacts):
    text = (shared_artifacts / "daily_5d" / "WTI_ret_5d_model.json").read_bytes()
    document = document_from_snapshot(golden_case("daily_5d__WTI_ret_5d").handle)
    ours, theirs = (validate(each) for each in (document, document_from_bytes(text)))
    rows = golden_rows(ours, 64)
    assert np.array_equal(Evaluator(ours).margins(rows), Evaluator(theirs).margins(rows))


def test_an_early_stopped_model_is_cut_to_its_best_trees(golden_case):
    handle = golden_case("kinds__VIX_ret_5d").handle
    assert validate(document_from_snapshot(handle)).best_iteration == 1
    assert validate(served_document(handle)).n_trees == 2


def test_a_large_model_is_validated_in_some_steps_for_each_node(golden_case):
    document = document_from_snapshot(golden_case("wide__SP500_mid_chg_1d").handle)
    model = validate(document)
    assert (model.n_trees, model.depth, model.n_features) == (300, 6, 110)
    n_nodes = sum(len(tree["split_conditions"]) for tree in document["learner"]["gradient_booster"]["model"]["trees"])
    assert n_steps(lambda: validate(document)) < 50 * n_nodes  # 20 of them
