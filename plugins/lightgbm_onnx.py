"""LightGBM models, as text or in a pickle that is not run, made into an ONNX tree ensemble that computes in double precision as LightGBM does."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmserver import (
    Conversion,
    ModelFile,
    ModelFormat,
    ModelSource,
    NotConvertible,
    Undecodable,
    content_from_graph,
    decode_pickle,
    hookimpl,
    likeness,
    model_file_from_onnx,
    probe_rows_at_splits,
    probes_from_outputs,
    records,
    to_jsonable,
)

INPUT, MARGIN, PREDICTION, PROBABILITIES = "features", "margin", "prediction", "probabilities"
BOOSTER = "lightgbm.basic.Booster"
IDENTITY = ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg")
EXPONENTIAL = ("poisson", "gamma", "tweedie")
LOGISTIC = ("binary", "cross_entropy")
_EXPECTED = "a LightGBM model is expected: its text, save_model('model.txt'), or a pickle of a fitted one"
_PICKLE_OR_COMPRESSED = re.compile(rb"\x80|\x78|\x1f\x8b|BZh|\xfd7zXZ|\x5d\x00|\x04\x22\x4d\x18")
_ABSOLUTE = _RELATIVE = 1e-6
_ZERO, _INFINITY = 1.0000000180025095e-35, 1e300
_ML_OPSET, _OPSET = 3, 18


def read_lightgbm(source: ModelSource) -> ModelFile:
    """The trees that LightGBM itself would use, with what it gives for rows around their splits.

    Shapes:
        A classifier gives `probabilities` (n_rows × n_classes), a regressor or ranker `prediction`, a model without an objective
        of LightGBM's own the sums of its leaves, `margin`.
    """
    import lightgbm
    import msgspec
    import numpy as np

    text, n_iterations, classes = _model_text(source.content)
    booster = lightgbm.Booster(model_str=text)
    dump = booster.dump_model(num_iteration=n_iterations)
    trees = [tree["tree_structure"] for tree in dump["tree_info"]]
    objective = str(dump.get("objective", ""))
    output, steps = _link(objective, is_sum=not objective)
    names = tuple(dump["feature_names"])
    graph = _graph(trees, dump, output, steps)
    rows = probe_rows_at_splits(len(names), _splits(trees), with_missing=True)
    found = np.asarray(booster.predict(rows.astype("float64"), num_iteration=n_iterations, num_threads=1))
    if output == PROBABILITIES and found.ndim == 1:
        found = np.column_stack([1 - found, found])
    version = f"lightgbm {lightgbm.__version__}"
    file = model_file_from_onnx(
        content_from_graph(graph),
        feature_names=None if names == tuple(f"Column_{number}" for number in range(len(names))) else names,
        library_version=version,
        conversion=Conversion(source=f"{version} model", absolute=_ABSOLUTE, relative=_RELATIVE),
        probes=probes_from_outputs(rows, {output: found}),
        summary={} if classes is None else {"classes": classes},
    )
    return msgspec.structs.replace(file, objective=objective, n_trees=len(trees))


def _model_text(content: bytes) -> tuple[str, int | None, Any]:
    """(the text, how many iterations are used, the classes), of a text file or of a pickled Booster or scikit-learn wrapper."""
    if content[:5] == b"tree\n" or content[:6] == b"tree\r\n":
        return _checked(content.decode("utf-8")), None, None
    if not _PICKLE_OR_COMPRESSED.match(content):
        raise Undecodable("wrong_type", f"{_EXPECTED}; this is {likeness(content)}")
    value = decode_pickle(content)
    classes = None
    if isinstance(value, records.Instance) and value.global_name.startswith("lightgbm.sklearn."):
        state = value.state if isinstance(value.state, dict) else {}
        classes = to_jsonable(state["_classes"]) if state.get("_classes") is not None else None
        value = state.get("_Booster")
    if not isinstance(value, records.Instance) or value.global_name != BOOSTER or not isinstance(value.state, dict):
        raise Undecodable("wrong_type", f"{_EXPECTED}; this is {likeness(content)}")
    text = value.state.get("_handle", value.state.get("handle"))  # before version 4
    if not isinstance(text, str):
        raise Undecodable("malformed", "the pickled Booster has no text")
    best = value.state.get("best_iteration")
    return _checked(text), best if isinstance(best, int) and best > 0 else None, classes


def _checked(text: str) -> str:
    """LightGBM takes a text that ends early for a model with fewer trees."""
    lines = text.splitlines()
    sizes = next((line.partition("=")[2].split() for line in lines if line.startswith("tree_sizes=")), None)
    n_trees = sum(line.startswith("Tree=") for line in lines)
    if sizes is None or len(sizes) != n_trees or "end of trees" not in lines or "end of parameters" not in lines:
        raise Undecodable("torn", f"the text has {n_trees} trees of {len(sizes or ())}, or lacks its end")
    _check_end([line for line in lines[lines.index("end of parameters") + 1 :] if line.strip()])
    return text


def _check_end(lines: list[str]) -> None:
    """What LightGBM for Python writes last: the categories of its columns. That for R, and the command, write nothing there."""
    if not lines:
        return
    name, _, written = lines[0].partition(":")
    if len(lines) > 1 or name != "pandas_categorical":
        raise Undecodable("torn", f"the text goes on with {lines[0][:50]!r} behind its parameters, or is cut there")
    try:
        json.loads(written)
    except ValueError as error:
        raise Undecodable("torn", "the text ends within the categories of its columns") from error


def _link(objective: str, *, is_sum: bool) -> tuple[str, tuple[tuple[str, float], ...]]:
    """(what the output is called, what makes it of the sums: operators with their factor)."""
    name, _, rest = objective.partition(" ")
    options = dict(part.partition(":")[::2] for part in rest.split())
    sigmoid = float(options.get("sigmoid", 1))
    if is_sum or name == "custom":
        return MARGIN, ()
    if name in IDENTITY and "sqrt" not in options:
        return PREDICTION, ()
    if name in EXPONENTIAL:
        return PREDICTION, (("Exp", 1.0),)
    if name in LOGISTIC:
        return PROBABILITIES, (("Sigmoid", sigmoid), ("Both", 1.0))
    if name == "multiclass":
        return PROBABILITIES, (("Softmax", 1.0),)
    if name == "multiclassova":
        return PROBABILITIES, (("Sigmoid", sigmoid),)
    raise NotConvertible(target="onnx", reason=f"its objective is {objective}")


def _graph(trees: list[Any], dump: Mapping[str, Any], output: str, steps: tuple[tuple[str, float], ...]) -> Any:
    from onnx import TensorProto, helper

    n_sums = int(dump["num_tree_per_iteration"])
    scale = n_sums / len(trees) if dump.get("average_output") else 1.0
    nodes = [
        helper.make_node("Cast", [INPUT], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("TreeEnsembleRegressor", ["wide"], ["sums"], domain="ai.onnx.ml",
                         **_ensemble(trees, n_sums, scale)),
    ]  # fmt: skip
    constants, last = [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])], "sums"
    for number, (operator, factor) in enumerate(steps):
        if factor != 1.0:
            constants.append(helper.make_tensor(f"factor_{number}", TensorProto.FLOAT, [], [factor]))
            nodes.append(helper.make_node("Mul", [last, f"factor_{number}"], [f"scaled_{number}"]))
            last = f"scaled_{number}"
        if operator == "Both":
            nodes.append(helper.make_node("Sub", ["one", last], ["other"]))
            nodes.append(helper.make_node("Concat", ["other", last], ["both"], axis=1))
            last = "both"
        else:
            nodes.append(helper.make_node(operator, [last], [f"linked_{number}"]))
            last = f"linked_{number}"
    nodes.append(helper.make_node("Identity", [last], [output]))
    width = 2 if any(operator == "Both" for operator, _ in steps) else n_sums
    features = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", len(dump["feature_names"])])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    graph = helper.make_graph(nodes, "lightgbm", [features], [result], constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="mmserver")


def _ensemble(trees: list[Any], n_sums: int, scale: float) -> dict[str, Any]:
    """The attributes of a TreeEnsembleRegressor; thresholds and leaves as doubles, which is what LightGBM compares and adds."""
    from onnx import TensorProto, helper

    found: dict[str, list[Any]] = {name: [] for name in (*_NODE_LISTS, *_TARGET_LISTS)}
    for number, tree in enumerate(trees):
        for node_id, node, left, right in _numbered(tree):
            is_leaf = left is None
            row = (number, node_id, 0 if is_leaf else node["split_feature"], "LEAF" if is_leaf else "BRANCH_LEQ",
                   left or 0, right or 0, 0 if is_leaf else int(_missing_goes_left(node)),
                   0.0 if is_leaf else _threshold(node))  # fmt: skip
            for name, value in zip(_NODE_LISTS, row, strict=True):
                found[name].append(value)
            if is_leaf:
                leaf = (number, node_id, number % n_sums, scale * float(node["leaf_value"]))
                for name, value in zip(_TARGET_LISTS, leaf, strict=True):
                    found[name].append(value)
    for name in ("nodes_values_as_tensor", "target_weights_as_tensor"):
        found[name] = helper.make_tensor(name, TensorProto.DOUBLE, [len(found[name])], found[name])
    return {**found, "n_targets": n_sums, "aggregate_function": "SUM", "post_transform": "NONE"}


_NODE_LISTS = ("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_modes", "nodes_truenodeids",
               "nodes_falsenodeids", "nodes_missing_value_tracks_true", "nodes_values_as_tensor")  # fmt: skip
_TARGET_LISTS = ("target_treeids", "target_nodeids", "target_ids", "target_weights_as_tensor")


def _numbered(tree: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any], int | None, int | None]]:
    """(number, node, number of its left and right child) of every node, the root first; a leaf has no children."""
    pending, n_known = [(0, tree)], 1
    while pending:
        number, node = pending.pop()
        if "split_feature" not in node:
            if "leaf_coeff" in node:
                raise NotConvertible(target="onnx", reason="its leaves are linear models")
            yield number, node, None, None
            continue
        left, right = n_known, n_known + 1
        n_known += 2
        yield number, node, left, right
        pending += [(right, node["right_child"]), (left, node["left_child"])]


def _missing_goes_left(node: Mapping[str, Any]) -> bool:
    """Whether a missing value takes the left branch.

    Source:
        LightGBM 4.6, tree.h, NumericalDecision: without a way for missing values they count as zero.
    """
    if node["decision_type"] != "<=":
        raise NotConvertible(target="onnx", reason="it splits on categories; encode them as numbers")
    zero_goes_left, default_left = float(node["threshold"]) >= 0, bool(node["default_left"])
    if node["missing_type"] == "None":
        return zero_goes_left
    if node["missing_type"] == "Zero" and default_left != zero_goes_left:
        raise NotConvertible(target="onnx", reason="it was trained with zero_as_missing")
    return default_left


def _threshold(node: Mapping[str, Any]) -> float:
    """Up to which a value takes the left branch.

    Source:
        LightGBM 4.6: predictor.hpp takes values up to kZeroThreshold for zero; the JSON gives 1e300 for infinity (AvoidInf).
    """
    threshold = float(node["threshold"])
    if -_ZERO <= threshold < 0:
        return math.nextafter(-_ZERO, -math.inf)
    if 0 <= threshold < _ZERO:
        return _ZERO
    return math.copysign(math.inf, threshold) if abs(threshold) >= _INFINITY else threshold


def _splits(trees: list[Any]) -> list[tuple[int, float]]:
    """(feature, threshold) of every node, the first trees first."""
    return [(int(node["split_feature"]), float(node["threshold"]))
            for tree in trees for _, node, left, _ in _numbered(tree) if left is not None]  # fmt: skip


def warm_up() -> None:
    """One model, read and run."""
    import lightgbm
    import numpy as np

    rows = np.arange(80, dtype=np.float64).reshape(40, 2)
    options = {"objective": "binary", "num_threads": 1, "verbosity": -1, "min_data_in_leaf": 1}
    booster = lightgbm.train(options, lightgbm.Dataset(rows, rows[:, 0] > 40), 2)
    text = booster.model_to_string().encode()
    read_lightgbm(ModelSource(file_name="a.txt", files={"a.txt": text}))


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """Claims `.txt`; pickles have to be named `lightgbm`."""
    return [
        ModelFormat(
            name="lightgbm",
            suffixes=(".txt",),
            read=read_lightgbm,
            modules=("lightgbm", "onnx", "onnxruntime"),
            extra="lightgbm",
            warm_up=warm_up,
        )
    ]
