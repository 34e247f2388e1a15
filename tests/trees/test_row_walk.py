"""One row goes down all trees by another way than many rows do, and ends in the same leaves."""

import numpy as np
import pytest
import xgboost

from mmserver.trees.canonical import json_from_document
from mmserver.trees.document import document_from_bytes
from mmserver.trees.evaluation import Evaluator
from mmserver.trees.golden import golden_rows, hard_rows
from mmserver.trees.node_walk import NodeWalk
from mmserver.trees.row_walk import row_walk_of
from mmserver.trees.validation import validate

KINDS = ["regression", "binary", "multi", "softmax_forest", "forest", "pruned", "lossguide", "early_stopped", "quantiles",
         "targets", "stumps", "constant", "categorical", "categorical_onehot"]  # fmt: skip


def model_of(booster: xgboost.Booster):
    return validate(document_from_bytes(bytes(booster.save_raw("ubj"))))


def walks_of(model):
    nodes = NodeWalk(model, np.arange(model.n_trees), model.split_condition.copy())
    return nodes, row_walk_of(nodes)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype == np.float32 and np.array_equal(left.view(np.uint32), right.view(np.uint32))


def assert_rows_one_by_one_are_xgboost_s(booster: xgboost.Booster, rows: np.ndarray) -> None:
    native = booster.inplace_predict(rows, predict_type="margin", validate_features=False).reshape(len(rows), -1)
    evaluator = Evaluator(model_of(booster))
    for index in range(len(rows)):
        found = evaluator.margins(rows[index : index + 1])
        assert found.shape == (1, native.shape[1])
        assert same_bits(found, native[index : index + 1]), index


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_row_s_margin_is_xgboost_s_bit_for_bit(booster, kind, rows_to_predict):
    model = model_of(booster(kind))
    rows = np.concatenate([rows_to_predict[:80], golden_rows(model, 32), hard_rows(model, None)])
    assert_rows_one_by_one_are_xgboost_s(booster(kind), rows)


@pytest.fixture(scope="module")
def grown():
    """A function: (depth, growth) -> a Booster of that depth."""
    random = np.random.RandomState(2)
    rows = random.normal(size=(3000, 6)).astype(np.float32)
    matrix = xgboost.DMatrix(rows, rows[:, 0] * rows[:, 1] + np.sin(4 * rows[:, 2]) + random.normal(size=3000) * 0.1)
    made = {}

    def of_depth(depth: int, **parameters: object) -> xgboost.Booster:
        if depth not in made:
            parameters = {"max_depth": depth, "nthread": 1, "min_child_weight": 0, **parameters}
            made[depth] = xgboost.train(parameters, matrix, 4)
        return made[depth]

    return of_depth


@pytest.mark.parametrize("depth", range(1, 12))
def test_trees_of_every_depth_are_walked_to_their_ends(grown, depth):
    booster = grown(depth)
    model = model_of(booster)
    assert model.depth == depth
    assert walks_of(model)[1] is not None
    assert_rows_one_by_one_are_xgboost_s(booster, golden_rows(model, 64))


def chain(document, n: int) -> bytes:
    """The document with its first tree replaced by a line of `n` splits of one feature, at 0, 1, 2...: nothing is as thin."""
    tree = document["learner"]["gradient_booster"]["model"]["trees"][0]
    node = np.arange(2 * n + 1)
    is_split = (node % 2 == 0) & (node < 2 * n)
    tree["tree_param"].update(num_nodes=str(node.size), num_deleted="0")
    tree["left_children"] = np.where(is_split, node + 1, -1).astype(np.int32)
    tree["right_children"] = np.where(is_split, node + 2, -1).astype(np.int32)
    tree["parents"] = np.where(node == 0, 2147483647, (node - 1) // 2 * 2).astype(np.int32)
    tree["split_conditions"] = np.where(is_split, node / 2, np.sin(node)).astype(np.float32)
    for name in ("split_indices", "default_left", "split_type"):
        tree[name] = np.zeros(node.size, tree[name].dtype)
    for name in ("base_weights", "loss_changes", "sum_hessian"):
        tree[name] = np.zeros(node.size, np.float32)
    return json_from_document(document)


def test_a_tree_like_a_thread_is_not_cut_into_more_pieces_than_it_is_worth(booster):
    document = document_from_bytes(bytes(booster("stumps").save_raw("ubj")))
    threadlike = xgboost.Booster(model_file=bytearray(chain(document, 60)))
    model = model_of(threadlike)
    assert model.depth == 60
    assert walks_of(model)[1] is None
    rows = np.zeros((64, 5), np.float32)
    rows[:, 0] = np.arange(-1, 63) + np.float32(0.5) * (np.arange(64) % 2)
    rows[-1, 0] = np.nan
    assert_rows_one_by_one_are_xgboost_s(threadlike, rows)


def test_the_pieces_take_no_more_memory_than_the_nodes_do(grown):
    for depth in (3, 4, 6, 7, 10):
        nodes, row_walk = walks_of(model_of(grown(depth)))
        assert row_walk.size_bytes < 1.6 * nodes.size_bytes, depth


@pytest.mark.parametrize("pattern", [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF812345])
def test_every_nan_is_missing_quiet_or_signalling(booster, pattern):
    rows = np.zeros((1, 5), np.float32)
    rows.view(np.uint32)[0, :3] = pattern
    assert_rows_one_by_one_are_xgboost_s(booster("regression"), rows)
    evaluator = Evaluator(model_of(booster("regression")))
    assert same_bits(evaluator.margins(np.repeat(rows, 3, axis=0))[2:], evaluator.margins(rows))


@pytest.mark.parametrize("outputs", [[0, 2, 0, 0, 2, 2], [1, 1, 1, 1, 1, 0], [2, 1, 0, 0, 1, 2]])
def test_outputs_with_more_trees_than_others_get_theirs(booster, outputs, rows_to_predict):
    document = document_from_bytes(bytes(booster("multi").save_raw("ubj")))
    document["learner"]["gradient_booster"]["model"]["tree_info"] = outputs * 3
    assert_rows_one_by_one_are_xgboost_s(
        xgboost.Booster(model_file=bytearray(json_from_document(document))), rows_to_predict[:40]
    )


@pytest.mark.parametrize("n_rows", [1, 7])
def test_sums_that_leave_float32_do_so_as_in_xgboost_without_a_warning(booster, n_rows):
    document = document_from_bytes(bytes(booster("stumps").save_raw("ubj")))
    for index, tree in enumerate(document["learner"]["gradient_booster"]["model"]["trees"]):
        tree["split_conditions"][1:] = 3e38 if index % 2 == 0 or index < 3 else -1e38
    text = json_from_document(document)
    rows = np.zeros((n_rows, 5), np.float32)
    native = xgboost.Booster(model_file=bytearray(text)).inplace_predict(rows, predict_type="margin")
    assert np.isinf(native).all()
    assert same_bits(Evaluator(validate(document)).margins(rows), native.reshape(-1, 1))
