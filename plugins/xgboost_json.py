"""XGBoost models as JSON: `_model.json` files, giving any XGBoost model as JSON or UBJSON, and running it with XGBoost."""

import threading
from collections.abc import Mapping

import numpy as np

from mmserver import (
    Artifact,
    ArtifactFormat,
    Converter,
    FloatRows,
    ModelFile,
    Predictor,
    document_from_bytes,
    hookimpl,
    model_file_from_document,
    scikit_learn_attributes,
    ubjson_from_model_file,
)

KIND = "xgboost"


def parse_model_json(artifact: Artifact) -> ModelFile:
    """A file that `save_model` wrote; saved by a scikit-learn wrapper, it predicts with its best iteration only."""
    document = document_from_bytes(artifact.data)
    return model_file_from_document(document, uses_best_iteration=scikit_learn_attributes(document) is not None)


def model_as_json(model: ModelFile) -> bytes:
    """XGBoost JSON text."""
    return model.content


class XgboostPredictor:
    """A Booster on one thread; XGBoost's inplace prediction is safe for many callers, explaining is not said to be."""

    accepts_missing = True

    def __init__(self, model: ModelFile) -> None:
        import xgboost

        self._booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(model.content))
        self._missing = np.float32(model.missing) if model.missing is not None else None
        self._explaining = threading.Lock()
        self.n_features = model.n_features
        self._n_outputs = model.n_outputs
        self.size_bytes = 3 * len(model.content)

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """`margin`: the leaves' sums; `prediction`: values, or the probabilities of the classes (of the second, for two)."""
        if len(rows) == 0:
            nothing = np.empty((0, self._n_outputs), dtype=np.float32)
            return {"margin": nothing, "prediction": nothing}
        rows = self._with_nan(rows)
        prediction = self._booster.inplace_predict(rows, predict_type="value", validate_features=False)
        return {"margin": self.margins(rows), "prediction": _as_table(prediction, len(rows))}

    def margins(self, rows: FloatRows) -> FloatRows:
        """The leaves' sums alone, in half the time."""
        margin = self._booster.inplace_predict(self._with_nan(rows), predict_type="margin", validate_features=False)
        return _as_table(margin, len(rows))

    def contributions(self, rows: FloatRows) -> FloatRows:
        """How much each feature moves each margin, exactly (TreeSHAP), and last the base: they add up to the margin.

        Raises:
            ValueError: a value is infinite.
        """
        import xgboost

        if np.isinf(rows).any():
            raise ValueError("XGBoost predicts with infinite values, but it does not explain them")
        types = self._booster.feature_types
        shape = (len(rows), self._n_outputs, self.n_features + 1)
        if len(rows) == 0:
            return np.empty(shape, dtype=np.float32)
        matrix = xgboost.DMatrix(
            self._with_nan(rows), nthread=1, feature_types=types, enable_categorical=types is not None
        )
        with self._explaining:
            found = self._booster.predict(matrix, pred_contribs=True, validate_features=False)
        return np.ascontiguousarray(found, dtype=np.float32).reshape(shape)

    def _with_nan(self, rows: FloatRows) -> FloatRows:
        return rows if self._missing is None else np.where(rows == self._missing, np.float32(np.nan), rows)


def _as_table(values: FloatRows, n_rows: int) -> FloatRows:
    return np.ascontiguousarray(values, dtype=np.float32).reshape(n_rows, -1)


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    """Claims `_model.json`, the same model as `_model.pkl` in another form."""
    return [
        ArtifactFormat(
            name="xgboost_json", suffix="_model.json", role="model", parse=parse_model_json, derived_from="pkl_model"
        )
    ]


@hookimpl
def mmserver_converters() -> list[Converter]:
    """JSON and UBJSON for every XGBoost model, whichever file it came in."""
    return [
        Converter(kind=KIND, target="json", media_type="application/json", convert=model_as_json),
        Converter(kind=KIND, target="ubj", media_type="application/vnd.xgboost.ubj", convert=ubjson_from_model_file),
    ]


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    """XGBoost itself."""
    return XgboostPredictor(model) if model.kind == KIND else None
