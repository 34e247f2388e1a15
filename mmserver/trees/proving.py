"""Whether our own evaluation of a model may stand for its library's: tried on rows that are hard for both."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmserver.formats import FloatRows, ModelFile, Predictor
from mmserver.trees.document import document_from_bytes
from mmserver.trees.evaluation import supports_exactly
from mmserver.trees.exact import EXACT, ExactPredictor
from mmserver.trees.golden import golden_rows, hard_rows
from mmserver.trees.model_file import N_PROBES
from mmserver.trees.validation import validate


def engine_facts(model: ModelFile, library: Predictor | None) -> dict[str, Any]:
    """What shall run the model, for its summary: `engine` is `exact` or the model's kind, `engine_note` says why not `exact`.

    Exact is what gives the library's margins bit for bit, and its predictions to one unit in the last place, which is as near
    as two builds of one C library agree on an exponential.

    Raises:
        Undecodable: the content is not a model whose trees may be walked.
    """
    note = _difference(model, library)
    return {"engine": EXACT if note is None else model.kind, "engine_note": note}


def _difference(model: ModelFile, library: Predictor | None) -> str | None:
    trees = validate(document_from_bytes(model.content))
    if (reason := supports_exactly(trees)) is not None:
        return reason
    if library is None:
        return f"no plugin runs {model.kind}, so that exact evaluation could not be compared with it"
    rows = np.concatenate([golden_rows(trees, N_PROBES), hard_rows(trees, model.missing)])
    ours, theirs = ExactPredictor(trees, model.missing).predict(rows), library.predict(rows)
    differs = np.zeros(len(rows), np.bool_)
    for name, max_distance in (("margin", 0), ("prediction", 1)):
        if name not in theirs:
            return f"{model.kind} gives no {name} to compare with"
        expected = np.asarray(theirs[name], np.float32)
        if expected.shape != ours[name].shape:
            return f"exact evaluation gives {name} as {ours[name].shape}, {model.kind} as {expected.shape}"
        differs |= (_distances(ours[name], expected) > max_distance).any(axis=1)
    n_differ = int(differs.sum())
    return f"exact evaluation differs on {n_differ} of {len(rows)} probe rows" if n_differ else None


def _distances(first: FloatRows, second: FloatRows) -> NDArray[np.int64]:
    """How many float32 lie between; 0 for equal bits, and for any two NaN."""
    ordinals = []
    for values in (first, second):
        bits = np.ascontiguousarray(values).view(np.int32).astype(np.int64)
        ordinals.append(np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits))  # -0 is one below 0
    distances: NDArray[np.int64] = np.abs(ordinals[0] - ordinals[1])
    return np.where(np.isnan(first) & np.isnan(second), 0, distances)
