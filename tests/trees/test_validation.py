"""The semantic validator: what real models have is accepted, what would crash native code is refused with its path."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.trees.canonical import json_from_document
from mmserver.trees.document import document_from_bytes
from mmserver.trees.validation import validate

MODEL = "learner.gradient_booster.model"
TREE = f"{MODEL}.trees[1]"
ACCEPTED = [
    "regression",
    "named",
    "binary",
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
    "ranking",
    "categorical",
    "categorical_onehot",
    "stumps",
    "constant",
    "dart",
]


def document_of(booster) -> dict[str, Any]:
    return document_from_bytes(bytes(booster.save_raw("json")))


def learner_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["learner"]


def model_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["learner"]["gradient_booster"]["model"]


def set_node(key: str, node: int, value: float) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        model_of(document)["trees"][1][key][node] = value

    return change


def delete_a_leaf_uncounted(document: dict[str, Any]) -> None:
    tree = model_of(document)["trees"][1]
    tree["split_indices"][-1], tree["default_left"][-1] = 2**31 - 1, 1


def set_tree(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        model_of(document)["trees"][1][key] = value

    return change


def set_size(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: model_of(document)["trees"][1]["tree_param"].update({key: value})


def set_learner(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: learner_of(document)["learner_model_param"].update({key: value})


def set_model(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: model_of(document).update({key: value})


def set_count(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: model_of(document)["gbtree_model_param"].update({key: value})


def set_objective(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: learner_of(document)["objective"].update(values)


def set_top(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: learner_of(document).update({key: value})


def shorten(key: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        tree = model_of(document)["trees"][1]
        tree[key] = tree[key][:-1]

    return change


def remove(path: str) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        holder: Any = document
        *parents, last = path.split(".")
        for part in parents:
            holder = holder[int(part) if part.isdigit() else part]
        del holder[last]

    return change


def detach_a_cycle(document: dict[str, Any]) -> None:
    """Node 1 of the second tree gets its own ancestors' children swapped so that two splits hold each other."""
    tree = model_of(document)["trees"][1]
    left, right, parents = tree["left_children"], tree["right_children"], tree["parents"]
    inner = next(node for node in range(1, left.size) if left[node] != -1 and left[left[node]] != -1)
    child = int(left[inner])
    above, grandchild = int(parents[inner]), int(left[child])
    pair = int(left[above])
    left[above], right[above] = grandchild, grandchild + 1
    parents[grandchild] = parents[grandchild + 1] = above
    left[child], right[child] = pair, pair + 1
    parents[pair] = parents[pair + 1] = child


def with_nan(key: str) -> Callable[[dict[str, Any]], None]:
    return set_node(key, 2, np.nan)


MUTATIONS = [
    pytest.param(set_node("left_children", 1, 0), f"{TREE}.left_children[1]", id="child-is-the-root"),
    pytest.param(set_node("left_children", 1, 1), f"{TREE}.right_children[1]", id="child-is-itself"),
    pytest.param(detach_a_cycle, f"{MODEL}.trees", id="cycle-apart-from-the-root"),
    pytest.param(set_node("left_children", 0, 10**9), f"{TREE}.left_children[0]", id="left-child-1e9"),
    pytest.param(set_node("right_children", 0, 10**9), f"{TREE}.right_children[0]", id="right-child-1e9"),
    pytest.param(set_node("left_children", 0, -5), f"{TREE}.left_children[0]", id="left-child-minus-5"),
    pytest.param(set_node("right_children", 0, -5), f"{TREE}.right_children[0]", id="right-child-minus-5"),
    pytest.param(set_node("left_children", 0, -1), f"{TREE}.right_children[0]", id="right-child-alone"),
    pytest.param(set_node("right_children", 0, -1), f"{TREE}.right_children[0]", id="left-child-alone"),
    pytest.param(set_node("right_children", 0, 3), f"{TREE}.right_children[0]", id="children-not-side-by-side"),
    pytest.param(set_node("parents", 3, 2), f"{TREE}.parents[3]", id="parent-of-another"),
    pytest.param(set_node("parents", 3, -7), f"{TREE}.parents[3]", id="parent-negative"),
    pytest.param(set_node("parents", 3, 10**6), f"{TREE}.parents[3]", id="parent-out-of-range"),
    pytest.param(set_node("parents", 0, 1), f"{TREE}.parents[0]", id="root-with-parent"),
    pytest.param(set_node("split_indices", 0, 10**6), f"{TREE}.split_indices[0]", id="split-index-1e6"),
    pytest.param(set_node("split_indices", 0, -1), f"{TREE}.split_indices[0]", id="split-index-negative"),
    pytest.param(set_node("split_indices", 0, 5), f"{TREE}.split_indices[0]", id="split-index-one-too-many"),
    pytest.param(set_node("split_indices", 1, 2**31 - 1), f"{TREE}.split_indices[1]", id="deleted-but-a-split"),
    pytest.param(delete_a_leaf_uncounted, f"{TREE}.tree_param.num_deleted", id="deleted-not-counted"),
    pytest.param(set_size("num_deleted", "1"), f"{TREE}.tree_param.num_deleted", id="counted-not-deleted"),
    pytest.param(set_node("default_left", 0, 2), f"{TREE}.default_left[0]", id="default-left-2"),
    pytest.param(set_node("split_type", 0, 1), f"{TREE}.split_type[0]", id="categorical-without-categories"),
    pytest.param(set_node("split_type", 0, 9), f"{TREE}.split_type[0]", id="unknown-split-type"),
    pytest.param(with_nan("split_conditions"), f"{TREE}.split_conditions[2]", id="threshold-nan"),
    pytest.param(set_node("split_conditions", -1, np.inf), f"{TREE}.split_conditions[", id="leaf-inf"),
    pytest.param(set_node("split_conditions", -1, np.nan), f"{TREE}.split_conditions[", id="leaf-nan"),
    pytest.param(with_nan("base_weights"), f"{TREE}.base_weights[2]", id="weight-nan"),
    pytest.param(with_nan("loss_changes"), f"{TREE}.loss_changes[2]", id="loss-nan"),
    pytest.param(with_nan("sum_hessian"), f"{TREE}.sum_hessian[2]", id="hessian-nan"),
    *(
        pytest.param(shorten(key), TREE, id=f"{key}-too-short")
        for key in ("left_children", "right_children", "parents", "split_indices", "split_conditions", "default_left")
    ),
    *(
        pytest.param(shorten(key), f"{TREE}.{key}", id=f"{key}-too-short")
        for key in ("split_type", "base_weights", "loss_changes", "sum_hessian")
    ),
    pytest.param(remove(f"{MODEL}.trees.1.parents"), f"{TREE}.parents", id="no-parents"),
    pytest.param(remove(f"{MODEL}.trees.1.tree_param"), f"{TREE}.tree_param", id="no-tree-param"),
    pytest.param(set_size("num_nodes", "2000000000"), TREE, id="num-nodes-2e9"),
    pytest.param(set_size("num_nodes", "-1"), f"{TREE}.tree_param.num_nodes", id="num-nodes-negative"),
    pytest.param(set_size("num_nodes", "0"), f"{TREE}.tree_param.num_nodes", id="num-nodes-0"),
    pytest.param(set_size("num_nodes", 7), f"{TREE}.tree_param.num_nodes", id="num-nodes-no-text"),
    pytest.param(set_size("num_nodes", "٣"), f"{TREE}.tree_param.num_nodes", id="num-nodes-other-digits"),
    pytest.param(set_size("num_feature", "6"), f"{TREE}.tree_param.num_feature", id="tree-with-more-features"),
    pytest.param(set_tree("id", 0), f"{TREE}.id", id="tree-id-twice"),
    pytest.param(set_tree("id", 10**9), f"{TREE}.id", id="tree-id-1e9"),
    pytest.param(set_tree("id", None), f"{TREE}.id", id="tree-id-none"),
    pytest.param(set_model("tree_info", [0, 10**8, 0, 0, 0, 0]), f"{MODEL}.tree_info[1]", id="tree-info-1e8"),
    pytest.param(set_model("tree_info", [0, -1, 0, 0, 0, 0]), f"{MODEL}.tree_info[1]", id="tree-info-negative"),
    pytest.param(set_model("tree_info", [0, 0]), f"{MODEL}.tree_info", id="tree-info-short"),
    pytest.param(set_model("tree_info", [0.0] * 6), f"{MODEL}.tree_info", id="tree-info-floats"),
    pytest.param(set_model("iteration_indptr", [0, 1, 2, 3, 4, 5]), f"{MODEL}.iteration_indptr", id="indptr-short"),
    pytest.param(set_model("iteration_indptr", [0, 4, 2, 6]), f"{MODEL}.iteration_indptr", id="indptr-falls"),
    pytest.param(set_model("iteration_indptr", [1, 6]), f"{MODEL}.iteration_indptr", id="indptr-starts-late"),
    pytest.param(set_model("iteration_indptr", [0, 10**12]), f"{MODEL}.iteration_indptr", id="indptr-1e12"),
    pytest.param(set_model("iteration_indptr", []), f"{MODEL}.iteration_indptr", id="indptr-empty"),
    pytest.param(set_model("trees", []), f"{MODEL}.trees", id="no-trees"),
    pytest.param(set_count("num_trees", "7"), f"{MODEL}.gbtree_model_param.num_trees", id="num-trees"),
    pytest.param(set_count("num_parallel_tree", "x"), f"{MODEL}.gbtree_model_param.num_parallel_tree", id="parallel"),
    pytest.param(set_count("num_parallel_tree", "0"), f"{MODEL}.gbtree_model_param.num_parallel_tree", id="parallel-0"),
    pytest.param(set_learner("num_class", "1000000000"), "learner.learner_model_param.num_class", id="num-class-1e9"),
    pytest.param(set_learner("num_class", "3"), "learner.learner_model_param.num_class", id="classes-of-a-regression"),
    pytest.param(
        set_learner("num_target", "1000000000"), "learner.learner_model_param.num_target", id="num-target-1e9"
    ),
    pytest.param(set_learner("num_feature", "0"), "learner.learner_model_param.num_feature", id="no-features"),
    pytest.param(
        set_learner("num_feature", "1000000000"), "learner.learner_model_param.num_feature", id="features-1e9"
    ),
    *(
        pytest.param(set_learner("base_score", score), "learner.learner_model_param.base_score", id=f"base-{score!r}")
        for score in (
            "NaN",
            "nan",
            "inf",
            "[NaN]",
            "1e99",
            "[1E99]",
            "",
            "[",
            "[]",
            "[1E0,2E0]",
            "[1]",
            "5-1",
            0.5,
            None,
        )
    ),
    pytest.param(set_objective(reg_loss_param=None), "learner.objective.reg_loss_param", id="objective-parameters"),
    pytest.param(set_objective(reg_loss_param={"a": "1;2"}), "learner.objective.reg_loss_param.a", id="odd-parameter"),
    pytest.param(set_top("attributes", {"a": 1}), "learner.attributes", id="attributes-no-text"),
    pytest.param(
        set_top("attributes", {"best_iteration": "6"}), "learner.attributes.best_iteration", id="best-iteration"
    ),
    pytest.param(
        set_top("attributes", {"best_iteration": "-1"}), "learner.attributes.best_iteration", id="best-negative"
    ),
    pytest.param(set_top("feature_names", ["a"] * 5), "learner.feature_names", id="names-twice"),
    pytest.param(set_top("feature_names", ["a"]), "learner.feature_names", id="names-too-few"),
    pytest.param(set_top("feature_names", [1, 2, 3, 4, 5]), "learner.feature_names", id="names-no-text"),
    pytest.param(set_top("feature_types", ["x"] * 5), "learner.feature_types", id="types-unknown"),
    pytest.param(
        set_model("cats", {"enc": [{}], "feature_segments": [0, 1], "sorted_idx": [0]}), f"{MODEL}.cats", id="cats"
    ),
    pytest.param(remove("learner.attributes"), "learner.attributes", id="no-attributes"),
    pytest.param(remove(f"{MODEL}.trees.1.categories_sizes"), f"{TREE}.categories_sizes", id="half-the-categories"),
    pytest.param(
        set_top("feature_names", ["a\x00", "b", "c", "d", "e"]), "a control character", id="control-character"
    ),
    pytest.param(set_size("size_leaf_vector", None), f"{TREE}.tree_param.size_leaf_vector", id="no-leaf-size"),
    pytest.param(remove("learner.objective"), "learner.objective", id="no-objective"),
    pytest.param(remove("learner"), "learner", id="no-learner"),
    pytest.param(remove("version"), "version", id="no-version"),
]


def refusal(document: dict[str, Any]) -> Undecodable:
    with pytest.raises(Undecodable) as caught:
        validate(document)
    return caught.value


@pytest.mark.parametrize(("mutate", "path"), MUTATIONS)
def test_what_would_crash_or_mislead_is_refused_with_its_path(booster, mutate, path):
    document = document_of(booster("regression"))
    mutate(document)
    error = refusal(document)
    assert error.reason == "invalid_model"
    assert error.detail.startswith(path), error.detail


@pytest.mark.parametrize("kind", ACCEPTED)
def test_real_models_are_accepted_and_described(booster, kind):
    native = booster(kind)
    model = validate(document_of(native))
    dumped = native.trees_to_dataframe() if not model.has_categorical else None
    assert model.n_features == native.num_features()
    assert model.n_iterations == native.num_boosted_rounds()
    assert model.n_trees == len(native.get_dump())
    assert model.version[0] == 3
    assert model.feature_names == (tuple(native.feature_names) if native.feature_names else None)
    if dumped is not None:
        is_live = ~model.is_deleted
        assert is_live.sum() == len(dumped)
        assert (model.left[is_live] == -1).sum() == (dumped["Feature"] == "Leaf").sum()


@pytest.mark.parametrize(
    ("kind", "n_outputs", "n_iterations", "n_trees"),
    [
        ("regression", 1, 6, 6),
        ("multi", 3, 6, 18),
        ("softmax_forest", 3, 3, 18),
        ("forest", 1, 2, 10),
        ("quantiles", 3, 6, 18),
        ("targets", 3, 6, 18),
    ],
)
def test_outputs_and_iterations_are_counted(booster, kind, n_outputs, n_iterations, n_trees):
    document = document_of(booster(kind))
    with_offsets = validate(document)
    del model_of(document)["iteration_indptr"]
    for model in (with_offsets, validate(document)):
        assert (model.n_outputs, model.n_iterations, model.n_trees) == (n_outputs, n_iterations, n_trees)


def test_pruned_nodes_are_known_as_deleted(booster):
    assert validate(document_of(booster("pruned"))).is_deleted.any()


def test_a_deleted_node_without_its_mark_is_refused(booster):
    document = document_of(booster("pruned"))
    tree = next(tree for tree in model_of(document)["trees"] if (tree["split_indices"] == 2**31 - 1).any())
    tree["default_left"][np.argmax(tree["split_indices"] == 2**31 - 1)] = 0
    assert "default_left" in refusal(document).detail


def test_quantiles_must_be_named(booster):
    document = document_of(booster("quantiles"))
    del learner_of(document)["objective"]["quantile_loss_param"]["quantile_alpha"]
    assert refusal(document).detail.startswith("learner.objective.quantile_loss_param.quantile_alpha")


def test_documents_from_before_categorical_splits_are_accepted(booster, predict, rows_to_predict):
    document = document_of(booster("regression"))
    for tree in model_of(document)["trees"]:
        for key in ("split_type", "categories", "categories_nodes", "categories_segments", "categories_sizes"):
            del tree[key]
    assert not validate(document).has_categorical
    assert np.array_equal(
        predict(json_from_document(document), rows_to_predict), predict(booster("regression"), rows_to_predict)
    )


def test_a_deleted_node_that_is_reachable_is_refused(booster):
    document = document_of(booster("pruned"))
    tree = next(tree for tree in model_of(document)["trees"] if (tree["split_indices"] == 2**31 - 1).any())
    live_leaf = np.flatnonzero((tree["left_children"] == -1) & (tree["split_indices"] != 2**31 - 1))[-1]
    tree["split_indices"][live_leaf] = 2**31 - 1
    tree["tree_param"]["num_deleted"] = str(int(tree["tree_param"]["num_deleted"]) + 1)
    assert "still a child" in refusal(document).detail


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("gblinear", "gblinear", id="gblinear"),
        pytest.param("multi_output_tree", "multi_output_tree", id="vector-leaves"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(booster, kind, name):
    with pytest.raises(Undecodable) as caught:
        validate(document_of(booster(kind)))
    assert caught.value.reason == "unsupported"
    assert name in caught.value.detail


def test_an_objective_that_is_not_xgboost_s_is_refused_by_name(booster):
    document = document_of(booster("regression"))
    learner_of(document)["objective"]["name"] = "mine:own"
    error = refusal(document)
    assert (error.reason, "mine:own" in error.detail) == ("unsupported", True)


def test_a_tree_deeper_than_native_recursion_bears_is_refused(booster):
    document = document_of(booster("constant"))
    tree = model_of(document)["trees"][0]
    depth = 1001
    splits = np.arange(0, 2 * depth, 2)
    n_nodes = 2 * depth + 1
    left = np.full(n_nodes, -1, np.int32)
    left[splits] = splits + 1
    tree["left_children"], tree["right_children"] = left, np.where(left == -1, -1, left + 1).astype(np.int32)
    tree["parents"] = np.array([2**31 - 1, *np.repeat(splits, 2)], np.int32)
    for key in (
        "split_indices",
        "default_left",
        "split_type",
        "split_conditions",
        "base_weights",
        "loss_changes",
        "sum_hessian",
    ):
        tree[key] = np.zeros(n_nodes, tree[key].dtype)
    tree["tree_param"]["num_nodes"] = str(n_nodes)
    # the chain goes on at the right child, which is the next even node
    assert refusal(document).reason == "too_complex"


@pytest.mark.parametrize(
    ("key", "position", "value"),
    [
        ("categories", 0, -1),
        ("categories", 0, 1 << 24),
        ("categories_segments", 1, 10**9),
        ("categories_segments", 0, -1),
        ("categories_sizes", 0, 10**9),
        ("categories_sizes", 0, 0),
        ("categories_sizes", 0, -3),
        ("categories_nodes", 0, 10**6),
        ("categories_nodes", 0, -1),
        ("categories_nodes", -1, 0),
    ],
)
def test_damaged_categories_are_refused(booster, key, position, value):
    document = document_of(booster("categorical"))
    tree = model_of(document)["trees"][0]
    assert tree["categories_nodes"].size > 1
    tree[key][position] = value
    error = refusal(document)
    assert error.reason == "invalid_model"
    assert error.detail.startswith(f"{MODEL}.trees[0].categories")


def test_categories_at_a_leaf_are_refused(booster):
    document = document_of(booster("categorical"))
    tree = model_of(document)["trees"][0]
    leaf = int(np.flatnonzero(tree["left_children"] == -1)[-1])
    tree["split_type"][tree["categories_nodes"][-1]] = 0
    tree["split_type"][leaf] = 1
    tree["categories_nodes"][-1] = leaf
    assert "no split" in refusal(document).detail


def test_categories_that_need_too_much_memory_are_refused(booster):
    document = document_of(booster("categorical"))
    trees = model_of(document)["trees"]
    for tree in trees:
        tree["categories"][:] = (1 << 24) - 1
    while sum(tree["categories_nodes"].size for tree in trees) <= 32:
        trees.append({**trees[0], "id": len(trees)})
    model_of(document)["gbtree_model_param"]["num_trees"] = str(len(trees))
    model_of(document)["tree_info"] = [0] * len(trees)
    del model_of(document)["iteration_indptr"]
    assert refusal(document).reason == "too_complex"


@pytest.mark.parametrize("weights", [[1.0], [float("nan")] * 6, [float("inf")] * 6, ["1"] * 6, None])
def test_dart_weights_must_be_one_finite_number_per_tree(booster, weights):
    document = document_of(booster("dart"))
    document["learner"]["gradient_booster"]["weight_drop"] = weights
    assert refusal(document).detail.startswith("learner.gradient_booster.weight_drop")


@pytest.mark.parametrize("kind", ["binary", "logistic_regression"])
@pytest.mark.parametrize("score", ["0E0", "1E0", "1.5E0", "-1E-1", "[0.0]"])
def test_a_logistic_base_score_must_be_a_probability(booster, kind, score):
    document = document_of(booster(kind))
    learner_of(document)["learner_model_param"]["base_score"] = score
    assert "not a probability" in refusal(document).detail


@pytest.mark.parametrize(
    ("score", "expected"),
    [("5E-1", (0.5,)), ("2", (2.0,)), ("[2.5E0]", (2.5,)), ("[1.5E0,-2.5E0,3E0]", (1.5, -2.5, 3.0))],
)
def test_every_form_of_base_score_is_read(booster, score, expected):
    document = document_of(booster("quantiles"))
    learner_of(document)["learner_model_param"]["base_score"] = score
    assert validate(document).base_score == expected


def test_classes_must_agree_with_the_objective_s(booster):
    document = document_of(booster("multi"))
    learner_of(document)["objective"]["softmax_multiclass_param"]["num_class"] = "1000000000"
    assert refusal(document).detail.startswith("learner.objective.softmax_multiclass_param.num_class")


def test_the_document_is_not_changed_by_validating_it(booster):
    document = document_of(booster("categorical"))
    before = copy.deepcopy(document)
    validate(document)
    np.testing.assert_equal(document, before)
