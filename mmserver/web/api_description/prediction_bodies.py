"""The bodies of predictions as clients see them: the types that are sent, with the words and codes that can stand in them."""

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mmserver.web.api_description.error_bodies import Misfit

Share = Annotated[float, Meta(ge=0, le=1)]


def _either(*types: type[msgspec.Struct]) -> Meta:
    """msgspec describes unions of Structs only where they are tagged; these are told apart by their fields."""
    return Meta(extra_json_schema={"anyOf": [{"$ref": f"#/components/schemas/{type_.__name__}"} for type_ in types]})


class Explained(msgspec.Struct):
    """How much each factor moved the model's margin; with the base they sum to it."""

    base: float
    factors: dict[str, float | list[Any]]


class ExplainedOutputs(msgspec.Struct):
    """The same for each output, where the model has several."""

    outputs: list[Explained]


class ModelInfo(msgspec.Struct):
    """What the prediction rests on."""

    version: str
    training_date: str | None
    accuracy: float | None
    engine: str
    direction_from: str
    confidence_from: str | None


class Decision(msgspec.Struct):
    """The decision; `signal` says the same as `direction`. What there is no ground for is null."""

    direction: Literal["HOLD", "BUY", "SELL"]
    signal: Literal["HOLD", "BUY", "SELL"]
    confidence: Share | None
    probability: Share | None
    expected_return: float | None


class CodedDecision(msgspec.Struct):
    """The decision with its direction as a code: 0 HOLD, 1 BUY, 2 SELL."""

    direction: Literal[0, 1, 2]
    signal: Literal[0, 1, 2]
    confidence: Share | None
    probability: Share | None
    expected_return: float | None


class _Answered(msgspec.Struct, kw_only=True):
    symbol: str
    model_name: str
    model_version: str
    model_info: ModelInfo
    variant: Literal["control", "treatment"] | None
    prediction_id: str
    latency_ms: Annotated[float, Meta(ge=0)]
    timestamp: datetime
    contributions: Annotated[Any, _either(Explained, ExplainedOutputs)] | UnsetType = UNSET
    experiment_id: str | UnsetType = UNSET
    fallback: str | UnsetType = UNSET


class Prediction(_Answered, kw_only=True):
    """One prediction."""

    prediction: Decision


class CodedPrediction(_Answered, kw_only=True):
    """One prediction, its direction as a code."""

    prediction: CodedDecision


class ItemProblem(msgspec.Struct):
    """Why one item of a batch has no prediction: what the whole answer would have said, had it been asked alone."""

    code: str
    detail: str
    errors: list[Misfit] | UnsetType = UNSET


class FailedItem(msgspec.Struct):
    """An item of a batch that could not be predicted; the others are not touched by it."""

    symbol: str | None
    error: ItemProblem


class BatchOfPredictions(msgspec.Struct):
    """The answers in the order asked."""

    predictions: list[Annotated[Any, _either(Prediction, FailedItem)]]
    timestamp: datetime


class BatchOfCodedPredictions(msgspec.Struct):
    """The answers in the order asked, directions as codes."""

    predictions: list[Annotated[Any, _either(CodedPrediction, FailedItem)]]
    timestamp: datetime


REFERRED_TO = (Prediction, CodedPrediction, FailedItem, Explained, ExplainedOutputs)
"""Types that stand above by name only."""
