"""What a model's outputs are called and look like in the Open Inference Protocol, known without loading the model.

Every output of the engine keeps its name. A classifier has `probabilities` besides, first: one column for each class, because
what XGBoost calls the prediction of two classes is a single number that says nothing of which class it is about.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mmserver.formats import FloatRows

PREDICTION = "prediction"
MARGIN = "margin"
PROBABILITIES = "probabilities"

_BINARY = "binary:logistic"
_CLASSES = "multi:softprob"
_MEANINGS = {
    "binary:logistic": "the probability of the second class",
    "multi:softprob": "the probability of each class",
    "multi:softmax": "the number of the most probable class",
    "binary:hinge": "the class, 0 or 1",
    "binary:logitraw": "the log odds of the second class",
    "reg:quantileerror": "the value of each quantile",
}
"""Of what the library's own predict returns, where it is not simply the value in the unit that the model was trained on."""


class OutputTensor(NamedTuple):
    """One output as metadata describe it.

    Shapes:
        shape: [-1] where there is one number a row, else [-1, width], as the library's own predict gives it.
    """

    name: str
    shape: tuple[int, ...]
    meaning: str


class ModelFacts(NamedTuple):
    """What of a model decides about its outputs."""

    kind: str
    objective: str
    n_outputs: int


def facts_from_summary(summary: Mapping[str, Any]) -> ModelFacts:
    """From a stored group's `model`."""
    return ModelFacts(str(summary["kind"]), str(summary["objective"]), int(summary["n_outputs"]))


def widths_from_facts(facts: ModelFacts) -> Mapping[str, int] | None:
    """How many numbers a row each output of the engine has; None where the kind is a plugin's own, and has to be loaded."""
    if facts.kind != "xgboost":
        return None
    return {MARGIN: facts.n_outputs, PREDICTION: 1 if facts.objective == "multi:softmax" else facts.n_outputs}


def output_tensors(facts: ModelFacts, widths: Mapping[str, int]) -> tuple[OutputTensor, ...]:
    """The outputs of a model, the most useful one first."""
    shapes = {name: _shape(width) for name, width in widths.items()}
    n_classes = _n_classes(facts)
    if n_classes and PREDICTION in widths:
        shapes.setdefault(PROBABILITIES, (-1, n_classes))
    names = [name for name in (PROBABILITIES, PREDICTION) if name in shapes]
    names += [name for name in shapes if name not in names]
    return tuple(OutputTensor(name, shapes[name], _meaning(name, facts)) for name in names)


def output_values(name: str, facts: ModelFacts, outputs: Mapping[str, FloatRows]) -> FloatRows:
    """The values of one of the `output_tensors`, in its shape.

    Shapes:
        outputs: name → n_rows × width.
    """
    if name == PROBABILITIES and name not in outputs:
        predicted = outputs[PREDICTION]
        if facts.objective == _BINARY:
            return np.hstack([np.float32(1) - predicted, predicted])
        return predicted
    values = outputs[name]
    return values.reshape(-1) if values.shape[1] == 1 else values


def _meaning(name: str, facts: ModelFacts) -> str:
    if name == PROBABILITIES:
        return "the probability of each class"
    if facts.kind != "xgboost":
        return ""
    if name == MARGIN:
        return "the sum of the leaves, before the objective's link function"
    return f"what XGBoost's predict returns: {_MEANINGS.get(facts.objective, 'the predicted value')}"


def _n_classes(facts: ModelFacts) -> int:
    """How many columns of probabilities that exclude each other there are; 0 for none."""
    if facts.objective == _BINARY:
        return 2 if facts.n_outputs == 1 else 0  # several outputs are several labels, each with its own yes and no
    return facts.n_outputs if facts.objective == _CLASSES else 0


def _shape(width: int) -> tuple[int, ...]:
    return (-1,) if width == 1 else (-1, width)
