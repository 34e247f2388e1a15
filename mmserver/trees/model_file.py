"""From an XGBoost document to the model that is stored: validated, cut to the trees that are used, with probe rows."""

from typing import Any

import msgspec
import numpy as np

from mmserver.errors import Undecodable
from mmserver.formats import ModelFile, Probes
from mmserver.trees.canonical import json_from_document, ubjson_from_document
from mmserver.trees.document import Document, document_from_bytes
from mmserver.trees.golden import golden_rows
from mmserver.trees.slicing import slice_iterations
from mmserver.trees.validation import validate

KIND = "xgboost"
N_PROBES = 32


def model_file_from_document(
    document: Document,
    *,
    uses_best_iteration: bool,
    missing: float | None = None,
    summary: dict[str, Any] | None = None,
) -> ModelFile:
    """The model with only the trees that its producer's predict uses.

    `uses_best_iteration`: the model comes from a scikit-learn wrapper, whose predict stops at the best iteration of early
    stopping; a plain Booster's uses all trees. `missing`: the wrapper's missing value, NaN or None for NaN alone.

    Raises:
        Undecodable: the trees are not ones that may be walked, or of a kind that is not served; see `validation.validate`.
    """
    model = validate(document)
    best = model.best_iteration if uses_best_iteration else None
    if best is not None and best + 1 < model.n_iterations:
        document = slice_iterations(document, model, best + 1)
        model = validate(document)
    if missing is not None and abs(missing) > np.finfo(np.float32).max:
        raise Undecodable("unsupported", f"missing={missing}: an infinite missing value")
    return ModelFile(
        kind=KIND,
        content=json_from_document(document),
        n_features=model.n_features,
        n_outputs=model.n_outputs,
        objective=model.objective,
        library_version=".".join(str(part) for part in model.version),
        n_trees=model.n_trees,
        feature_names=model.feature_names,
        missing=None if missing is None or np.isnan(missing) else missing,
        best_iteration=best,
        summary={
            "booster": model.booster,
            "base_score": list(model.base_score),
            "n_iterations": model.n_iterations,
            "depth": model.depth,
            "has_categorical": model.has_categorical,
            "feature_types": list(model.feature_types) if model.feature_types else None,
            **(summary or {}),
        },
        probes=Probes(rows=_rows_as_lists(golden_rows(model, N_PROBES)), outputs={}),
    )


def ubjson_from_model_file(model: ModelFile) -> bytes:
    """The same model as UBJSON, which XGBoost loads about twenty times faster than JSON."""
    return ubjson_from_document(document_from_bytes(model.content))


def scikit_learn_attributes(document: Document) -> dict[str, Any] | None:
    """What a scikit-learn wrapper's save_model wrote about itself into the document; None when it was not one."""
    learner = document.get("learner")
    attributes = learner.get("attributes") if isinstance(learner, dict) else None
    text = attributes.get("scikit_learn") if isinstance(attributes, dict) else None
    if not isinstance(text, str):
        return None
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _rows_as_lists(rows: "np.typing.NDArray[np.float32]") -> list[list[float | None]]:
    return [[None if np.isnan(cell) else float(cell) for cell in row] for row in rows]
