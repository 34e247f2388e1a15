"""scikit-learn models saved with skops, made into ONNX; what a file names is looked up in scikit-learn's own list, never run.

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
    content_from_graph,
    hookimpl,
    model_file_from_onnx,
    probe_rows,
    probe_rows_at_splits,
    probes_from_outputs,
    to_jsonable,
)

INPUT = "features"
PREDICTION, PROBABILITIES, SCORES = "prediction", "probabilities", "scores"
_ABSOLUTE = _RELATIVE = 1e-5
_INNER_PARTS = re.compile(r"sklearn\.[\w.]+\.([A-Z]\w*|newObj)")
"""Classes of scikit-learn that skops leaves to the reader's judgement: forged, they crash the guarded process at worst."""
_N_TREES = 8
_KEEP_FEATURES = ("NoneType", "SimpleImputer", "str")
"""Steps whose features are the rows' own: a pipeline may have None or a text in place of one."""
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
        graph = _converted(model, rows.shape[1], is_classifier=kind == "classifier")
    trees = _has_trees(model)
    names = getattr(model, "feature_names_in_", None)
    file = model_file_from_onnx(
        content_from_graph(graph, {graph.graph.output[-1].name: output}),
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
    if source.content.startswith(b"PK"):
        return _from_skops(source.content)
    if source.may_unpickle:
        return _unpickled(source.content)
    detail = (
        "a pickle would run as code; save the model with skops: skops.io.dump(model, 'model.skops'), or have pickles run in the "
        "guarded process: MMSERVER_ALLOW_UNPICKLING=sklearn, where `mmserver doctor` finds the guard whole"
    )
    raise Undecodable("unsupported", detail)


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
        try:
            return joblib.load(io.BytesIO(content))
        except InconsistentVersionWarning as error:
            detail = f"it was pickled with scikit-learn {error.original_sklearn_version}, here is {error.current_sklearn_version}"
            raise Undecodable("wrong_version", f"{detail}; save it there with skops, or train it again") from error


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

    Only the conversions of StandardScaler and RobustScaler compute in double precision: after another, rows at a split rightly take either branch.
    """
    import numpy as np

    before = [step for step in _steps(model)[:-1] if type(step).__name__ not in _KEEP_FEATURES]
    first = before[0] if before and getattr(before[0], "n_features_in_", None) == n_features else None
    center, scale = _scaling(first, n_features)
    usual = probe_rows(n_features, center, scale)
    is_exact = not before or (
        len(before) == 1
        and type(first).__name__ in ("RobustScaler", "StandardScaler")
        and getattr(first, "scale_", None) is not None
    )
    if not is_exact or getattr(_steps(model)[-1], "n_features_in_", None) != n_features:
        return usual
    splits = [(feature, threshold * scale[feature] + center[feature]) for feature, threshold in _splits(model)]
    return np.concatenate([usual, probe_rows_at_splits(n_features, splits)]) if splits else usual


def _scaling(step: Any, n_features: int) -> tuple[Any, Any]:
    """What a scaler makes 0, and what it makes 1 more than that; 0 and 1 for any other step."""
    import numpy as np

    center, scale = np.zeros(n_features), np.ones(n_features)
    match type(step).__name__:
        case "MinMaxScaler":
            center, scale = -step.min_ / step.scale_, 1 / step.scale_
        case "StandardScaler":
            center = step.mean_ if step.with_mean else center
            scale = scale if step.scale_ is None else step.scale_
        case "RobustScaler":
            center = center if step.center_ is None else step.center_
            scale = scale if step.scale_ is None else step.scale_
        case "MaxAbsScaler":
            scale = step.scale_
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


def _converted(model: Any, n_features: int, *, is_classifier: bool) -> Any:
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.preprocessing import RobustScaler, StandardScaler
    from sklearn.svm import LinearSVC

    options: dict[Any, dict[str, Any]] = {kind: {"div": "div_cast"} for kind in (RobustScaler, StandardScaler)}
    if is_classifier:
        named = {} if isinstance(_steps(model)[-1], LinearSVC) else {"zipmap": False}
        options[id(model)] = named if hasattr(model, "predict_proba") else {**named, "raw_scores": True}
    types = [(INPUT, FloatTensorType([None, n_features]))]
    try:
        graph = skl2onnx.to_onnx(model, initial_types=types, options=options)
    except (NameError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        steps = " → ".join(type(step).__name__ for step in _steps(model))
        raise NotConvertible(target="onnx", reason=f"{steps}: {str(error).partition(chr(10))[0][:200]}") from error
    means = [getattr(step, "mean_" if type(step) is StandardScaler else "center_") for step in _steps(model)
             if isinstance(step, RobustScaler | StandardScaler)]  # fmt: skip
    _set_means(graph, [mean for mean in means if mean is not None])
    return graph


def _set_means(graph: Any, means: list[Any]) -> None:
    """As they were fitted, where the converter has rounded them to single precision before it subtracts in double.

    Source:
        skl2onnx 1.20, convert_sklearn_scaler; measured on prices of 50,000: 15 of 296 rows at splits of scaled trees took the other branch.
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    for constant in graph.graph.initializer:
        if constant.data_type == TensorProto.DOUBLE:
            values = numpy_helper.to_array(constant).ravel()
            for mean in means:
                if np.array_equal(values, mean.astype(np.float32).astype(np.float64)):
                    exact = numpy_helper.from_array(mean.reshape(tuple(constant.dims)), constant.name)
                    constant.CopyFrom(exact)


def _steps(model: Any) -> list[Any]:
    """The model's parts: a pipeline's, or the model itself."""
    return [step for _, step in model.steps] if hasattr(model, "steps") else [model]


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
    """Rows come without names here, also for a model that was fitted with some."""
    with warnings.catch_warnings():
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
