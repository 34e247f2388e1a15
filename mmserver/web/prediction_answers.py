"""What a prediction looks like to clients: the same value from Flask's views and from the quick routes."""

import time
from datetime import datetime
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from mmserver.errors import MmserverError
from mmserver.formats import Decision
from mmserver.serving.interpretation import DIRECTION_CODES
from mmserver.serving.predictions import Prediction
from mmserver.web.errors import problem_from_error

Direction: TypeAlias = str | int


class DecisionItem(msgspec.Struct, frozen=True):
    """The decision; `signal` says the same as `direction`, for clients that know it by that name."""

    direction: Direction
    signal: Direction
    confidence: float | None
    probability: float | None
    expected_return: float | None


class PredictionItem(msgspec.Struct, frozen=True):
    """One answer. `contributions` is there only if the request asked to have the prediction explained; `experiment_id` if it
    belongs to an experiment, and `fallback`, an error's code, if the control answers because the treatment could not.

    Units:
        latency_ms: from the moment that the request was taken up; in a batch, that of the whole batch.
    """

    symbol: str
    prediction: DecisionItem
    model_name: str
    model_version: str
    model_info: msgspec.Raw
    variant: str | None
    prediction_id: str
    latency_ms: float
    timestamp: datetime
    contributions: dict[str, Any] | UnsetType = UNSET
    experiment_id: str | UnsetType = UNSET
    fallback: str | UnsetType = UNSET


class ErrorDetail(msgspec.Struct, frozen=True):
    """Why one item of a batch has no prediction: what the whole answer would have said, had it been asked alone."""

    code: str
    detail: str
    errors: list[dict[str, str]] | UnsetType = UNSET


class ErrorItem(msgspec.Struct, frozen=True):
    """An item of a batch that could not be predicted; the others are not touched by it."""

    symbol: str | None
    error: ErrorDetail


class BatchAnswer(msgspec.Struct, frozen=True):
    """The answers in the order asked."""

    predictions: list[PredictionItem | ErrorItem]
    timestamp: datetime


def item_from_prediction(
    prediction: Prediction, begun_ns: int, timestamp: datetime, *, direction_codes: bool
) -> PredictionItem:
    """The answer to one request, taken up at `begun_ns` (of `time.perf_counter_ns`)."""
    return PredictionItem(
        prediction.symbol,
        decision_item(prediction.decision, direction_codes),
        prediction.model_name,
        prediction.version,
        prediction.model_info,
        prediction.variant,
        prediction.prediction_id,
        latency_ms(begun_ns),
        timestamp,
        UNSET if prediction.contributions is None else prediction.contributions,
        UNSET if prediction.experiment_id is None else prediction.experiment_id,
        UNSET if prediction.fallback is None else prediction.fallback,
    )


def item_from_error(symbol: str | None, error: MmserverError) -> ErrorItem:
    """The error in an item's place."""
    problem = problem_from_error(error)
    return ErrorItem(symbol, ErrorDetail(problem.code, problem.detail, problem.errors or UNSET))


def latency_ms(begun_ns: int) -> float:
    """Milliseconds since then, to the microsecond."""
    return (time.perf_counter_ns() - begun_ns) // 1000 / 1000


def decision_item(decision: Decision, direction_codes: bool) -> DecisionItem:
    """The decision, its direction as a word or as a code."""
    direction: Direction = DIRECTION_CODES[decision.direction] if direction_codes else decision.direction
    return DecisionItem(direction, direction, decision.confidence, decision.probability, decision.expected_return)
