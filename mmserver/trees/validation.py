"""The semantic validator: from a document that may say anything to a `TreeModel` that is safe to walk.

Nothing else may reach native code or our own evaluator. What is refused is refused with the path of the member.
"""

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmserver.errors import Undecodable
from mmserver.trees.document import Document, booster_of, member_of, version_of
from mmserver.trees.model import TreeModel
from mmserver.trees.objectives import OBJECTIVES, Link
from mmserver.trees.structure import count_from_text, forest_from_trees

MAX_FEATURES = 100_000
"""XGBoost allocates a dense row per thread and block."""

MAX_OUTPUTS = 10_000
MAX_TREES = 1_000_000

_FEATURE_TYPES = frozenset({"float", "int", "i", "q", "c"})
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,4})?")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+([eE][+-]?[0-9]{1,4})?|[eE][+-]?[0-9]{1,4})")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_PARAMETER = re.compile(r"[a-z_]{0,40}|\[?(-?[0-9.]+([eE][+-]?[0-9]{1,4})?,?)*\]?")


def validate(document: Document) -> TreeModel:
    """Check everything in the document that XGBoost or our evaluator relies on, and flatten its trees.

    Raises:
        Undecodable: invalid_model with "path: what"; unsupported with the name (a booster without trees, vector
            leaves, an objective that is not XGBoost's own); newer_xgboost; too_complex.

    Source:
        XGBoost model IO, JSON schema, versions 1.7 to 3.2; the walk's own assumptions from notes on its crashes.
    """
    version = version_of(document)
    _check_texts(document)
    learner = member_of(document, "learner", dict, "")
    booster, model, path = booster_of(document)
    n_features, n_outputs = _sizes(learner)
    objective = _objective(learner, n_outputs)
    trees = member_of(model, "trees", list, path)
    if not trees:
        raise Undecodable("invalid_model", f"{path}.trees: none; the model was never trained")
    tree_output = _tree_outputs(model, len(trees), n_outputs, path)
    iteration_offsets = iteration_offsets_of(model, n_outputs, path)
    n_iterations = len(iteration_offsets) - 1
    forest = forest_from_trees(trees, n_features, f"{path}.trees")
    _check_category_names(model, n_features, path)
    return TreeModel(
        objective=objective,
        booster=booster,
        version=version,
        n_features=n_features,
        n_outputs=n_outputs,
        n_trees=len(trees),
        n_iterations=n_iterations,
        has_categorical=bool(forest.category_nodes.size),
        base_score=_base_score(learner, objective, n_outputs),
        best_iteration=_best_iteration(learner, n_iterations),
        feature_names=_feature_texts(learner, "feature_names", n_features),
        feature_types=_feature_texts(learner, "feature_types", n_features),
        iteration_offsets=iteration_offsets,
        tree_output=tree_output,
        tree_weight=_tree_weights(learner, booster, len(trees)),
        **vars(forest),
    )


def _check_texts(document: Document) -> None:
    """XGBoost's JSON reader has no escapes for most control characters."""
    pending: list[Any] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value)
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(member for member in value if isinstance(member, dict | list | str))
        elif isinstance(value, str) and not value.isprintable() and _CONTROL.search(value):
            raise Undecodable("invalid_model", f"a control character in {value[:80]!r}")


def iteration_offsets_of(model: dict[str, Any], n_outputs: int, path: str) -> NDArray[np.int64]:
    """Where the trees of each boosting iteration begin, and the number of trees; computed where XGBoost (before 2.0) wrote none.

    Raises:
        Undecodable: invalid_model when the iterations do not make up the trees.
    """
    n_trees = len(model["trees"])
    parameters = member_of(model, "gbtree_model_param", dict, path)
    where = f"{path}.gbtree_model_param"
    if count_from_text(parameters.get("num_trees"), f"{where}.num_trees", MAX_TREES) != n_trees:
        raise Undecodable("invalid_model", f"{where}.num_trees: {parameters['num_trees']}, but there are {n_trees}")
    n_parallel = count_from_text(parameters.get("num_parallel_tree", "1"), f"{where}.num_parallel_tree", MAX_TREES)
    if n_parallel == 0:
        raise Undecodable("invalid_model", f"{where}.num_parallel_tree: 0")
    if "iteration_indptr" in model:
        offsets = np.array(_integers(model["iteration_indptr"], f"{path}.iteration_indptr"), np.int64)
        if not offsets.size or offsets[0] != 0 or offsets[-1] != n_trees or (np.diff(offsets) < 0).any():
            raise Undecodable("invalid_model", f"{path}.iteration_indptr: does not rise from 0 to {n_trees} trees")
        return offsets
    per_iteration = n_parallel * n_outputs
    if n_trees % per_iteration:
        raise Undecodable(
            "invalid_model", f"{where}.num_parallel_tree: {n_trees} trees are no iterations of {per_iteration}"
        )
    return np.arange(0, n_trees + 1, per_iteration, dtype=np.int64)


def _integers(value: Any, path: str) -> list[int]:
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return list(value.tolist())
    if not isinstance(value, list) or not all(type(element) is int and abs(element) < 1 << 31 for element in value):
        raise Undecodable("invalid_model", f"{path}: not a list of integers")
    return value


def _sizes(learner: dict[str, Any]) -> tuple[int, int]:
    """(n_features, n_outputs)."""
    path = "learner.learner_model_param"
    parameters = member_of(learner, "learner_model_param", dict, "learner")
    n_features = count_from_text(parameters.get("num_feature"), f"{path}.num_feature", MAX_FEATURES)
    n_classes = count_from_text(parameters.get("num_class"), f"{path}.num_class", MAX_OUTPUTS)
    n_targets = count_from_text(parameters.get("num_target", "1"), f"{path}.num_target", MAX_OUTPUTS)
    if n_features == 0:
        raise Undecodable("invalid_model", f"{path}.num_feature: a model without features")
    if n_classes > 1 and n_targets > 1:
        raise Undecodable("unsupported", "several classes and several targets at once")
    return n_features, max(n_classes, n_targets, 1)


def _objective(learner: dict[str, Any], n_outputs: int) -> str:
    objective = member_of(learner, "objective", dict, "learner")
    name: str = member_of(objective, "name", str, "learner.objective")
    if name not in OBJECTIVES:
        raise Undecodable("unsupported", f"objective {name[:80]!r}")
    known = OBJECTIVES[name]
    if known.parameters is not None:
        member_of(objective, known.parameters, dict, "learner.objective")
        if known.required is not None and not objective[known.parameters].get(known.required):
            raise Undecodable("invalid_model", f"learner.objective.{known.parameters}.{known.required}: missing")
    for key, parameters in objective.items():
        if key != "name":
            _check_parameters(parameters, f"learner.objective.{key}")
    n_classes = int(learner["learner_model_param"]["num_class"])
    if name.startswith("multi:"):
        if objective["softmax_multiclass_param"].get("num_class") != learner["learner_model_param"]["num_class"]:
            raise Undecodable(
                "invalid_model", "learner.objective.softmax_multiclass_param.num_class: not the learner's"
            )
        if n_outputs != n_classes:
            raise Undecodable(
                "invalid_model", "learner.learner_model_param.num_class: no classes for a multi-class objective"
            )
    elif n_classes > 1:
        raise Undecodable("invalid_model", f"learner.learner_model_param.num_class: {n_classes} classes for {name}")
    return name


def _check_parameters(parameters: Any, path: str) -> None:
    if not isinstance(parameters, dict):
        raise Undecodable("invalid_model", f"{path}: of the wrong type")
    for key, value in parameters.items():
        if not isinstance(value, str) or not _PARAMETER.fullmatch(value):
            raise Undecodable("invalid_model", f"{path}.{key}: not a parameter, written as text")


def _base_score(learner: dict[str, Any], objective: str, n_outputs: int) -> tuple[float, ...]:
    path = "learner.learner_model_param.base_score"
    text = learner["learner_model_param"].get("base_score")
    if not isinstance(text, str):
        raise Undecodable("invalid_model", f"{path}: missing, or not text")
    if text.startswith("["):
        parts, number = (text[1:-1].split(",") if text.endswith("]") else [""]), _FLOAT
    else:
        parts, number = [text], _NUMBER
    if not all(number.fullmatch(part) for part in parts):
        raise Undecodable("invalid_model", f"{path}: neither a number nor a list of numbers")
    if len(parts) not in (1, n_outputs):
        raise Undecodable("invalid_model", f"{path}: {len(parts)} numbers for {n_outputs} outputs")
    with np.errstate(over="ignore"):
        scores = tuple(float(np.float32(part)) for part in parts)
    if not all(math.isfinite(score) for score in scores):
        raise Undecodable("invalid_model", f"{path}: not a finite number")
    link = OBJECTIVES[objective].link
    if link is Link.LOGIT and not all(0.0 < score < 1.0 for score in scores):
        raise Undecodable("invalid_model", f"{path}: not a probability")
    if link is Link.LOG and not all(score > 0.0 for score in scores):
        raise Undecodable("invalid_model", f"{path}: not positive")
    return scores


def _tree_outputs(model: dict[str, Any], n_trees: int, n_outputs: int, path: str) -> NDArray[np.int32]:
    outputs = _integers(model.get("tree_info"), f"{path}.tree_info")
    if len(outputs) != n_trees:
        raise Undecodable("invalid_model", f"{path}.tree_info: {len(outputs)} entries for {n_trees} trees")
    for index, output in enumerate(outputs):
        if not 0 <= output < n_outputs:
            raise Undecodable("invalid_model", f"{path}.tree_info[{index}]: no such output")
    return np.array(outputs, np.int32)


def _tree_weights(learner: dict[str, Any], booster: str, n_trees: int) -> NDArray[np.float32]:
    if booster != "dart":
        return np.ones(n_trees, np.float32)
    path = "learner.gradient_booster.weight_drop"
    weights = member_of(learner["gradient_booster"], "weight_drop", list, "learner.gradient_booster")
    if len(weights) != n_trees:
        raise Undecodable("invalid_model", f"{path}: {len(weights)} weights for {n_trees} trees")
    if not all(type(weight) is float and math.isfinite(weight) for weight in weights):
        raise Undecodable("invalid_model", f"{path}: not finite numbers")
    return np.array(weights, np.float32)


def _feature_texts(learner: dict[str, Any], key: str, n_features: int) -> tuple[str, ...] | None:
    texts = learner.get(key, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Undecodable("invalid_model", f"learner.{key}: not a list of texts")
    if not texts:
        return None
    if len(texts) != n_features:
        raise Undecodable("invalid_model", f"learner.{key}: {len(texts)} for {n_features} features")
    if key == "feature_names" and len(set(texts)) != n_features:
        raise Undecodable("invalid_model", "learner.feature_names: a name comes twice")
    if key == "feature_types" and not _FEATURE_TYPES.issuperset(texts):
        raise Undecodable("invalid_model", "learner.feature_types: an unknown type")
    return tuple(texts)


def _best_iteration(learner: dict[str, Any], n_iterations: int) -> int | None:
    attributes = member_of(learner, "attributes", dict, "learner")
    if not all(isinstance(value, str) for value in attributes.values()):
        raise Undecodable("invalid_model", "learner.attributes: not texts by name")
    if "best_iteration" not in attributes:
        return None
    return count_from_text(attributes["best_iteration"], "learner.attributes.best_iteration", n_iterations - 1)


def _check_category_names(model: dict[str, Any], n_features: int, path: str) -> None:
    """The category encodings that XGBoost (from 3.1) keeps beside the trees; our evaluator takes codes and needs none."""
    if "cats" not in model:
        return
    path = f"{path}.cats"
    cats = member_of(model, "cats", dict, path)
    encodings = member_of(cats, "enc", list, path)
    segments = _integers(cats.get("feature_segments"), f"{path}.feature_segments")
    order = _integers(cats.get("sorted_idx"), f"{path}.sorted_idx")
    if not encodings and not segments and not order:
        return
    if len(encodings) != n_features:
        raise Undecodable("invalid_model", f"{path}.enc: {len(encodings)} for {n_features} features")
    sizes = [_count_categories(encoding, f"{path}.enc[{index}]") for index, encoding in enumerate(encodings)]
    if segments != [sum(sizes[:index]) for index in range(n_features + 1)]:
        raise Undecodable("invalid_model", f"{path}.feature_segments: not the sizes of the encodings")
    for index, size in enumerate(sizes):
        if sorted(order[segments[index] : segments[index + 1]]) != list(range(size)):
            raise Undecodable("invalid_model", f"{path}.sorted_idx: no order of the categories of feature {index}")
    if len(order) != segments[-1]:
        raise Undecodable("invalid_model", f"{path}.sorted_idx: {len(order)} entries for {segments[-1]} categories")


def _count_categories(encoding: Any, path: str) -> int:
    """How many categories one feature's encoding has: texts end to end, or plain numbers."""
    values = member_of(encoding, "values", (list, np.ndarray), path)
    if "offsets" not in encoding:
        member_of(encoding, "type", int, path)
        return len(values)
    offsets = _integers(encoding["offsets"], f"{path}.offsets")
    texts = _integers(values, f"{path}.values")
    if not offsets and not texts:
        return 0
    if not offsets or offsets[0] != 0 or offsets[-1] != len(texts) or offsets != sorted(offsets):
        raise Undecodable("invalid_model", f"{path}.offsets: do not rise from 0 to the end of values")
    return len(offsets) - 1
