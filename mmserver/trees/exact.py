"""A stored XGBoost model, run by our own evaluator: what its library's predictor gives, without the library."""

from collections.abc import Mapping

import numpy as np

from mmserver.formats import FloatRows, ModelFile
from mmserver.trees.document import document_from_bytes
from mmserver.trees.evaluation import Evaluator
from mmserver.trees.links import link_of
from mmserver.trees.model import TreeModel
from mmserver.trees.validation import validate

EXACT = "exact"
"""What `engine` is in the summary of a model that was proven to predict here as in its library."""


class ExactPredictor:
    """A predictor as the plugins' are: `margin` and `prediction`.

    Raises:
        ValueError: the model is not one that `supports_exactly` allows.
    """

    accepts_missing = True

    def __init__(self, model: TreeModel, missing: float | None) -> None:
        self._evaluator = Evaluator(model)
        self._link = link_of(model.objective)
        self._missing = None if missing is None else np.float32(missing)
        self.n_features = model.n_features
        self.n_outputs = model.n_outputs
        self.n_trees = model.n_trees
        self.size_bytes = self._evaluator.size_bytes

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """`margin`: the leaves' sums; `prediction`: values, probabilities (of the second class, for two), or the class."""
        return self.outputs(self.margins(rows))

    def margins(self, rows: FloatRows) -> FloatRows:
        """The leaves' sums alone."""
        if self._missing is not None:
            rows = np.where(rows == self._missing, np.float32(np.nan), rows)
        return self._evaluator.margins(rows)

    def outputs(self, margins: FloatRows) -> Mapping[str, FloatRows]:
        """What `predict` gives where these are the margins."""
        return {"margin": margins, "prediction": margins if self._link is None else self._link(margins)}


def exact_from_model_file(model: ModelFile) -> ExactPredictor:
    """The predictor of a stored model, whose trees are checked again.

    Raises:
        Undecodable: the content is not a model whose trees may be walked.
        ValueError: it is one that `supports_exactly` does not allow.
    """
    return ExactPredictor(validate(document_from_bytes(model.content)), model.missing)


def is_proven_exact(model: ModelFile) -> bool:
    """Whether the summary says so; those stored before there was a choice of engines have an empty note and no engine."""
    if "engine" in model.summary:
        return bool(model.summary["engine"] == EXACT)
    return "engine_note" in model.summary and model.summary["engine_note"] is None
