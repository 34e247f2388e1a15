"""Linear models for mmserver: `SOLUSDT_ret_5d_linear.json` holds {"intercept": 0.1, "coef": {"mom_1d": 0.5, ...}}."""

import json
import logging
import math
from collections.abc import Mapping

import numpy as np

from mmserver import Artifact, ArtifactFormat, Converter, Event, FloatRows, ModelFile, Predictor, hookimpl


def parse(artifact: Artifact) -> ModelFile:
    document = json.loads(artifact.data)
    coef = {str(name): float(weight) for name, weight in document["coef"].items()}
    intercept = float(document["intercept"])
    if not all(math.isfinite(number) for number in [intercept, *coef.values()]):
        raise ValueError("a coefficient is not a finite number")
    return ModelFile(
        kind="linear",
        content=json.dumps({"intercept": intercept, "coef": coef}).encode(),
        n_features=len(coef),
        n_outputs=1,
        objective="linear",
        library_version="",
        feature_names=tuple(coef),
    )


class LinearPredictor:
    """Loaded once, then shared by all threads: it keeps arrays and never changes them."""

    accepts_missing = True

    def __init__(self, model: ModelFile) -> None:
        document = json.loads(model.content)
        self.intercept = document["intercept"]
        self.weights = np.array(list(document["coef"].values()))
        self.n_features = len(self.weights)
        self.size_bytes = self.weights.nbytes

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """A missing factor counts as 0. Not `rows @ weights`: its last bits depend on how many rows there are."""
        known = np.where(np.isnan(rows), 0.0, rows.astype(np.float64))
        totals = (known * self.weights).sum(axis=1, keepdims=True) + self.intercept
        return {"prediction": totals.astype(np.float32)}


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    return [ArtifactFormat(name="linear", suffix="_linear.json", role="model", parse=parse)]


@hookimpl
def mmserver_converters() -> list[Converter]:
    return [Converter(kind="linear", target="json", media_type="application/json", convert=lambda model: model.content)]


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    return LinearPredictor(model) if model.kind == "linear" else None


@hookimpl
def mmserver_event(event: Event) -> None:
    if event.kind == "version_published":
        logging.getLogger(__name__).info("%s is now at %s", event.model_name, event.version)
