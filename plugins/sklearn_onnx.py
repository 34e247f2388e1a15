"""scikit-learn models saved with skops, made into ONNX; what a file names is looked up in scikit-learn's own list, never run.

Each step is converted by itself, in double precision as scikit-learn computes: a price of 50,000 that moves by 5 loses most of its
digits in a scaler of float32. What has no such conversion is left in single precision, and what comes of it is compared.

Pickles run as code, and so only where the operator allows it, in the guarded process.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from mmserver import (
    Conversion,
    ModelFile,
    ModelFormat,
    ModelSource,
    NotConvertible,
    Undecodable,
    archive_names,
    content_from_graph,
    hookimpl,
    likeness,
    model_file_from_onnx,
    probe_rows,
    probe_rows_at_splits,
    probes_from_outputs,
    to_jsonable,
    unpacked_pickle,
)

INPUT = "features"
PREDICTION, PROBABILITIES, SCORES = "prediction", "probabilities", "scores"
_ABSOLUTE = _RELATIVE = 1e-5
_INNER_PARTS = re.compile(r"sklearn\.[\w.]+\.([A-Z]\w*|newObj)")
"""Classes of scikit-learn that skops leaves to the reader's judgement: forged, they crash the guarded process at worst."""
_EXPECTED = "a scikit-learn model is expected: skops.io.dump(model, 'model.skops')"
_PICKLE_OR_COMPRESSED = re.compile(rb"\x80|\x78|\x1f\x8b|BZh|\xfd7zXZ|\x5d\x00|\x04\x22\x4d\x18")
_HEAD_BYTES = 1 << 12
_N_TREES = 8
_STEADY_SCALERS = ("MaxAbsScaler", "MinMaxScaler", "RobustScaler", "StandardScaler")
_SCALERS = (*_STEADY_SCALERS, "PowerTransformer", "QuantileTransformer")
_KEPT_ROWS = ("support_vectors_", "_fit_X", "X_train_")
"""Where models keep rows that they were fitted with: support vectors, neighbours, Gaussian processes."""
_WEIGHTS = (1e-10, 1e6)
"""Of a linear model; what is smaller or larger says nothing of how large its feature is."""
_CONVERTER_RAISES = (NameError, NotImplementedError, RuntimeError, TypeError, ValueError)
_SHARE_BEYOND_OF_TREES = 0.02
"""One row of 64, five of 256. scikit-learn scales and splits in double precision: in float32 a row that lies on a split takes the other branch.

Source:
    measured: StandardScaler before a random forest, another rounding moved 2.4e-7 and 1 of 300 rows by 0.585.
"""


def read_sklearn(source: ModelSource) -> ModelFile:
    """The regressor or classifier as ONNX, with what scikit-learn itself gives for the probe rows.

    Shapes:
        A classifier gives `probabilities` (n_rows × n_classes), or `scores` where it has no probabilities; a regressor `prediction`.
    """
    import sklearn

    model = _on_one_thread(_loaded(source))
    kind = _kind(model)
    rows = _rows(model, _n_features(model, source.options))
    with _quiet():
        output, expected = _predicted(model, kind, rows.astype("float64"))
        graph = _converted(model, rows.shape[1], output)
    trees = _has_trees(model)
    names = getattr(model, "feature_names_in_", None)
    file = model_file_from_onnx(
        content_from_graph(graph),
        outputs=(output,),
        feature_names=None if names is None else tuple(map(str, names)),
        library_version=f"scikit-learn {sklearn.__version__}",
        conversion=Conversion(
            source=f"scikit-learn {sklearn.__version__} {type(model).__name__}",
            absolute=_ABSOLUTE,
            relative=_RELATIVE,
            max_share_beyond=_SHARE_BEYOND_OF_TREES if trees else 0.0,
        ),
        probes=probes_from_outputs(rows, {output: expected}),
        summary={"estimator": type(model).__name__, **_classes(model, kind)},
    )
    return _with_objective(file, model)


def _loaded(source: ModelSource) -> Any:
    names = archive_names(source.content)
    if names and "schema.json" not in names:
        raise Undecodable("wrong_type", f"{_EXPECTED}; this is {likeness(source.content)}")
    if names:
        return _from_skops(source.content)
    if not _PICKLE_OR_COMPRESSED.match(source.content):
        raise Undecodable("wrong_type", f"{_EXPECTED}; this is {likeness(source.content)}")
    if source.may_unpickle:
        return _unpickled(source.content)
    detail = (
        "a pickle would run as code; save the model with skops: skops.io.dump(model, 'model.skops'), or have pickles run in the "
        "guarded process: MMSERVER_ALLOW_UNPICKLING=sklearn, where `mmserver doctor` finds the guard whole"
    )
    foreign = re.search(rb"(catboost|lightgbm|xgboost)\.", source.content[:_HEAD_BYTES])
    raise Undecodable("unsupported", f"this is {likeness(source.content)}" if foreign else detail)


def _from_skops(content: bytes) -> Any:
    import skops.io

    found = skops.io.get_untrusted_types(data=content)
    unknown = [name for name in found if not _INNER_PARTS.fullmatch(name)]
    if unknown:
        detail = f"it holds what is neither scikit-learn's nor numpy's: {', '.join(sorted(unknown))[:300]}"
        raise Undecodable("forbidden_global", detail)
    return skops.io.loads(content, trusted=found)


def _unpickled(content: bytes) -> Any:
    """Whatever the file makes, by running it; of another version of scikit-learn it might predict something else."""
    import joblib
    from sklearn.exceptions import InconsistentVersionWarning

    with warnings.catch_warnings():
        warnings.simplefilter("error", InconsistentVersionWarning)
        plain = io.BytesIO(unpacked_pickle(content))  # joblib stops where the pickle ends, and sees no cut behind it
        try:
            model = joblib.load(plain)
        except InconsistentVersionWarning as error:
            detail = f"it was pickled with scikit-learn {error.original_sklearn_version}, here is {error.current_sklearn_version}"
            raise Undecodable("wrong_version", f"{detail}; save it there with skops, or train it again") from error
    if plain.read(1):
        raise Undecodable("trailing_data", "something follows the end of the pickle")
    return model


def _kind(model: Any) -> str:
    from sklearn.base import BaseEstimator, is_classifier, is_regressor

    if isinstance(model, BaseEstimator) and is_classifier(model):
        return "classifier"
    if isinstance(model, BaseEstimator) and is_regressor(model):
        return "regressor"
    raise Undecodable("wrong_type", f"a regressor or a classifier is expected, this is {type(model).__name__}")


def _n_features(model: Any, options: Mapping[str, Any]) -> int:
    given = options.get("n_features")
    found = getattr(model, "n_features_in_", None)
    if given is not None and (type(given) is not int or given < 1 or (found is not None and given != found)):
        raise Undecodable("option_invalid", f"the option n_features is {given!r}; the model was fitted with {found}")
    if found is None and given is None:
        raise Undecodable(
            "option_missing", "the model does not say how many features it takes: the option n_features is to"
        )
    return int(found or given or 0)


def _rows(model: Any, n_features: int) -> Any:
    """Around what the first scaler was fitted with, and at the splits of trees where what is before them is computed as in the source.

    Behind a step that is computed in single precision, rows at a split rightly take either branch.
    """
    import numpy as np

    *before, last = _parts(model)
    first = before[0] if before and getattr(before[0], "n_features_in_", None) == n_features else None
    center, scale = _scaling(first, n_features) if before else _scaling_of_last(last, n_features)
    is_unknown = type(first).__name__ not in _SCALERS if before else not any(hasattr(last, name) for name in _KEPT_ROWS)
    usual = probe_rows(n_features, center, scale, of_any_size=is_unknown and not _has_trees(model))
    is_exact = not before or (len(before) == 1 and type(first).__name__ in _STEADY_SCALERS)
    if not is_exact or getattr(last, "n_features_in_", None) != n_features:
        return usual
    splits = [(feature, threshold * scale[feature] + center[feature]) for feature, threshold in _splits(model)]
    return np.concatenate([usual, probe_rows_at_splits(n_features, splits)]) if splits else usual


def _scaling(step: Any, n_features: int) -> tuple[Any, Any]:
    """What a scaler makes 0 (the middle, where it gives ranks), and what it makes 1 more than that; 0 and 1 for any other step."""
    import numpy as np

    name = type(step).__name__
    if name not in _SCALERS:
        return np.zeros(n_features), np.ones(n_features)
    if name == "QuantileTransformer":
        low, center, high = np.quantile(step.quantiles_, (0.1, 0.5, 0.9), axis=0)
        return center, np.where(high > low, high - low, 1.0)
    center, above = step.inverse_transform(np.array([np.zeros(n_features), np.ones(n_features)]))
    center = np.where(np.isfinite(center), center, 0.0)
    scale = np.where(np.isfinite(above) & (above > center), above - center, 1.0)
    return center, scale


def _scaling_of_last(last: Any, n_features: int) -> tuple[Any, Any]:
    """Of what a model without a scaler was fitted with, as far as it keeps rows of that; else what each weight makes as large as another."""
    import numpy as np

    center, scale = np.zeros(n_features), np.ones(n_features)
    kept = [getattr(last, name) for name in _KEPT_ROWS if hasattr(last, name)]
    rows = next((rows for rows in kept if isinstance(rows, np.ndarray) and rows.shape[1:] == (n_features,)), None)
    weights = np.abs(np.atleast_2d(getattr(last, "coef_", np.zeros(0)))) if rows is None else np.zeros((0, 0))
    if rows is not None:
        deviations = rows.std(axis=0)
        return rows.mean(axis=0), np.where(deviations > 0, deviations, 1.0)
    if weights.shape[1] == n_features and np.isfinite(weights).all():
        largest = weights.max(axis=0)
        scale = 1 / np.where((largest > _WEIGHTS[0]) & (largest < _WEIGHTS[1]), largest, 1.0)
    return center, scale


def _splits(model: Any) -> list[tuple[int, float]]:
    """(feature, threshold) of the first trees, which a forest, a boosting or the model itself has."""
    last = _steps(model)[-1]
    several = getattr(last, "estimators_", ())
    trees = [last, *(several.ravel() if hasattr(several, "ravel") else several)]
    found = [tree.tree_ for tree in trees[: 1 + _N_TREES] if hasattr(tree, "tree_")]
    return [(int(feature), float(threshold)) for tree in found
            for feature, threshold in zip(tree.feature, tree.threshold, strict=True) if feature >= 0]  # fmt: skip


def _predicted(model: Any, kind: str, rows: Any) -> tuple[str, Any]:
    """The output's name and numbers; of two classes, the converter gives the score of each."""
    import numpy as np

    if kind == "regressor":
        return PREDICTION, model.predict(rows)
    if hasattr(model, "predict_proba"):
        return PROBABILITIES, model.predict_proba(rows)
    scores = model.decision_function(rows)
    return SCORES, scores if scores.ndim > 1 else np.column_stack([-scores, scores])


# --- the graph --------------------------------------------------------------------------------------------------------


def _converted(model: Any, n_features: int, output: str) -> Any:
    """The steps' graphs one after the other, from features to the one output, both in float32.

    Trees take float32, as scikit-learn gives it to them.
    """
    from onnx import TensorProto, compose, helper

    *before, last = parts = _parts(model)
    found, width = [], n_features
    for number, part in enumerate(parts):
        is_last = part is last and number == len(before)
        width = int(getattr(part, "n_features_in_", None) or width)
        try:
            graph = _part(part, width, output if is_last else None, is_double=not (is_last and _has_trees(part)))
        except _CONVERTER_RAISES as error:
            steps = " → ".join(type(step).__name__ for step in _steps(model))
            reason = f"{steps}: {str(error).partition(chr(10))[0][:200]}"
            raise NotConvertible(target="onnx", reason=reason) from error
        found.append(graph)
    nodes, constants, last_name = [], [], INPUT
    opsets: dict[str, int] = {}
    for number, graph in enumerate(found):
        part = compose.add_prefix(graph, f"step{number}_")
        taken, given = part.graph.input[0], part.graph.output[-1]
        nodes += [
            helper.make_node("Cast", [last_name], [taken.name], to=taken.type.tensor_type.elem_type),
            *part.graph.node,
        ]
        constants += part.graph.initializer
        opsets.update({one.domain: max(one.version, opsets.get(one.domain, 0)) for one in part.opset_import})
        last_name = given.name
    nodes.append(helper.make_node("Cast", [last_name], [output], to=TensorProto.FLOAT))
    takes = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", n_features])
    gives = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", None])
    return helper.make_model(
        helper.make_graph(_needed(nodes, output), "sklearn", [takes], [gives], constants),
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        ir_version=max(graph.ir_version for graph in found),
        producer_name="mmserver",
    )


def _part(part: Any, width: int, output: str | None, *, is_double: bool) -> Any:
    """One step in double precision where that can be converted and run, else in single; `output` is that of the last."""
    import onnxruntime
    import skl2onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as refusals
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    ways = {"options": _options(part, output), **_own_ways()}
    silent = onnxruntime.SessionOptions()
    silent.log_severity_level, silent.intra_op_num_threads = 4, 1
    if is_double:
        with contextlib.suppress(*_CONVERTER_RAISES, refusals.Fail, refusals.InvalidGraph, refusals.NotImplemented):
            graph = skl2onnx.convert_sklearn(part, initial_types=[(INPUT, DoubleTensorType([None, width]))], **ways)
            onnxruntime.InferenceSession(graph.SerializeToString(), silent, providers=["CPUExecutionProvider"])
            return graph
    return skl2onnx.convert_sklearn(part, initial_types=[(INPUT, FloatTensorType([None, width]))], **ways)


def _own_ways() -> dict[str, Any]:
    """What is converted here, in skl2onnx's place."""
    from sklearn.preprocessing import Normalizer

    return {
        "custom_conversion_functions": {Normalizer: _add_normalizer},
        "custom_shape_calculators": {Normalizer: _size_normalizer},
    }


def _size_normalizer(operator: Any) -> None:
    taken, given = operator.inputs[0].type, operator.outputs[0]
    given.type = type(taken)([taken.shape[0], sum(one.type.shape[1] for one in operator.inputs)])


def _add_normalizer(scope: Any, operator: Any, container: Any) -> None:
    """Each row over its norm; one that is as good as 0 is left as it is, where ONNX's own operator gives NaN.

    Source:
        scikit-learn 1.9, preprocessing.normalize: _handle_zeros_in_scale takes less than 10 eps for 0, and `max` is of absolute values.
    """
    import numpy as np
    from onnx import TensorProto
    from skl2onnx.common.data_types import DoubleTensorType

    is_double = isinstance(operator.inputs[0].type, DoubleTensorType)
    kind = TensorProto.DOUBLE if is_double else TensorProto.FLOAT
    names = {name: scope.get_unique_variable_name(name) for name in
             ("rows", "sizes", "axis", "norm", "least", "is_none", "one", "divisor")}  # fmt: skip

    def add(kind_of_node: str, taken: list[str], given: str, **attributes: Any) -> None:
        name = scope.get_unique_operator_name(kind_of_node)
        container.add_node(kind_of_node, taken, given, name=name, op_version=18, **attributes)

    container.add_initializer(names["axis"], TensorProto.INT64, [1], [1])
    container.add_initializer(names["least"], kind, [], [10 * float(np.finfo(np.float64).eps)])
    container.add_initializer(names["one"], kind, [], [1.0])
    add("Concat", [one.full_name for one in operator.inputs], names["rows"], axis=1)
    add("Abs", [names["rows"]], names["sizes"])
    reduce = {"l1": "ReduceL1", "l2": "ReduceL2", "max": "ReduceMax"}[operator.raw_operator.norm]
    add(reduce, [names["sizes"], names["axis"]], names["norm"], keepdims=1)
    add("Less", [names["norm"], names["least"]], names["is_none"])
    add("Where", [names["is_none"], names["one"], names["norm"]], names["divisor"])
    add("Div", [names["rows"], names["divisor"]], operator.outputs[0].full_name)


def _options(part: Any, output: str | None) -> dict[int, dict[str, Any]]:
    """Of a classifier: numbers in a table, and scores where there are no probabilities."""
    from sklearn.svm import LinearSVC

    if output not in (PROBABILITIES, SCORES):
        return {}
    named: dict[str, Any] = {} if isinstance(part, LinearSVC) else {"zipmap": False}
    return {id(part): named if output == PROBABILITIES else {**named, "raw_scores": True}}


def _needed(nodes: list[Any], output: str) -> list[Any]:
    """Those that the output is computed from: classifiers give their labels too."""
    wanted, kept = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            wanted.update(name for attribute in node.attribute for inner in attribute.g.node for name in inner.input)
    return kept[::-1]


def _steps(model: Any) -> list[Any]:
    """The model's parts: a pipeline's, or the model itself."""
    return [step for _, step in model.steps] if hasattr(model, "steps") else [model]


def _parts(model: Any) -> list[Any]:
    """The steps that change something."""
    *before, last = _steps(model)
    return [*(step for step in before if step is not None and step != "passthrough"), last]


def _has_trees(model: Any) -> bool:
    parts = [model, *(value for value in model.get_params(deep=True).values()), *_steps(model)]
    return any("Forest" in type(part).__name__ or "Tree" in type(part).__name__ or "Boosting" in type(part).__name__
               for part in parts)  # fmt: skip


def _on_one_thread(model: Any) -> Any:
    """The guarded process has no other."""
    parameters: dict[str, Any] = model.get_params() if hasattr(model, "get_params") else {}
    several = {
        name: 1 for name, value in parameters.items() if name.rpartition("__")[2] == "n_jobs" and value is not None
    }
    return model.set_params(**several) if several else model


def _classes(model: Any, kind: str) -> dict[str, Any]:
    return {"classes": to_jsonable(model.classes_)} if kind == "classifier" else {}


def _with_objective(file: ModelFile, model: Any) -> ModelFile:
    """Its last part's name and loss, by which the server tells a return from a quantile, a count or a class."""
    import msgspec

    last = _steps(model)[-1]
    loss = getattr(last, "loss", None)
    objective = f"{type(last).__name__} {loss}" if isinstance(loss, str) else type(last).__name__
    return msgspec.structs.replace(file, objective=objective)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Rows come without names here, also for a model that was fitted with some, and some are too large for it."""
    import numpy as np

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category)
        yield


def warm_up() -> None:
    """All of scikit-learn, which files name by module, and one conversion."""
    import joblib
    import skops.io
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.utils.discovery import all_estimators

    rows, labels = [[0.0, 1.0], [1.0, 0.0], [2.0, 1.0]], [0, 1, 2]
    with _quiet():
        all_estimators()
        for model in (make_pipeline(StandardScaler(), Ridge()), RandomForestClassifier(2, max_depth=2)):
            pickled = io.BytesIO()
            joblib.dump(model.fit(rows, labels), pickled)
            for content in (skops.io.dumps(model), pickled.getvalue()):
                read_sklearn(ModelSource(file_name="a", files={"a": content}, may_unpickle=True))


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """Claims `.skops`, and `.joblib` for whoever allows that; a `.pkl` has to be named `sklearn`."""
    return [
        ModelFormat(
            name="sklearn",
            suffixes=(".skops", ".joblib"),
            read=read_sklearn,
            modules=("sklearn", "skl2onnx", "skops.io", "onnx", "onnxruntime"),
            extra="sklearn",
            warm_up=warm_up,
        )
    ]
