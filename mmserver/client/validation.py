"""A strategy's own signal and the model's, as one decision; the strategy's alone whenever the model's cannot be had at once.

docs/client.md has the formula.
"""

import logging
import math
import os
import time
from collections.abc import Coroutine
from typing import Any, Generic, Literal, TypeVar, overload

import msgspec

from mmserver.client.answers import Direction, Prediction
from mmserver.client.async_client import ModelClient
from mmserver.client.calls import Flow
from mmserver.client.errors import ClientError, is_away
from mmserver.client.features import Features
from mmserver.client.options import NO_RETRIES
from mmserver.client.predicting import predict
from mmserver.client.sync_client import SyncModelClient

log = logging.getLogger(__name__)

C = TypeVar("C", ModelClient, SyncModelClient)
WEIGHT_VARIABLE = "ML_WEIGHT"
MIN_CONFIDENCE_VARIABLE = "ML_MIN_CONFIDENCE"
DEFAULT_WEIGHT = 0.6
DEFAULT_MIN_CONFIDENCE = 0.6
DEFAULT_TIMEOUT_S = 1.0
REMIND_S = 3600.0
"""A refusal is warned of when it is new, and again after so long."""
MAX_REMEMBERED = 10_000
"""Refusals by model, symbol and code; beyond that all are forgotten, and warned of once more."""
TIE = 1e-9
"""Votes that differ by less are equal: 0.6 × 0.5 and 0.4 × 0.75 differ in the last bit only."""
Reason = Literal["hybrid", "server_away", "refused", "no_confidence", "below_min_confidence", "no_weight"]
_DIRECTIONS: dict[str | int, Direction] = {"HOLD": "HOLD", "BUY": "BUY", "SELL": "SELL", 0: "HOLD", 1: "BUY", 2: "SELL"}


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do. `reason` says whether the model had a say (`hybrid`), and if not, why; `error` is what the server said.

    Units:
        confidence in [0, 1].
    """

    direction: Direction
    confidence: float
    reason: Reason
    prediction: Prediction | None = None
    error: Exception | None = None

    @property
    def is_hybrid(self) -> bool:
        """Whether the model had a say."""
        return self.reason == "hybrid"


def hybrid(strategy: tuple[Direction, float], model: tuple[Direction, float], weight: float) -> tuple[Direction, float]:
    """The decision of two voters. The model's vote is `weight` × its confidence, the strategy's (1 − `weight`) × its own.

    They agree: that direction, with the sum of the votes. They do not: the stronger vote's direction, with the difference;
    HOLD with 0 if the votes are equal.
    """
    vote, other = weight * model[1], (1.0 - weight) * strategy[1]
    if model[0] == strategy[0]:
        return model[0], min(1.0, vote + other)
    if abs(vote - other) < TIE:
        return "HOLD", 0.0
    return (model[0], vote - other) if vote > other else (strategy[0], other - vote)


class SignalValidator(Generic[C]):
    """Decides with a client of either kind; with `ModelClient`, `decide` is awaited.

    A server that hangs costs `timeout_s` once. From then on, until a health check succeeds, it is not asked.
    """

    def __init__(
        self,
        client: C,
        *,
        ml_weight: float | None = None,
        ml_min_confidence: float | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._client: C = client
        self.ml_weight = _share(WEIGHT_VARIABLE, ml_weight, DEFAULT_WEIGHT)
        self.ml_min_confidence = _share(MIN_CONFIDENCE_VARIABLE, ml_min_confidence, DEFAULT_MIN_CONFIDENCE)
        self.timeout_s = timeout_s
        self._warned_at_s: dict[tuple[str | None, str, str], float] = {}

    @overload
    def decide(
        self: "SignalValidator[SyncModelClient]",
        symbol: str,
        direction: str | int,
        confidence: float,
        features: Features,
        *,
        model_name: str | None = None,
        model_version: str | None = None,
    ) -> Decision: ...
    @overload
    def decide(
        self: "SignalValidator[ModelClient]",
        symbol: str,
        direction: str | int,
        confidence: float,
        features: Features,
        *,
        model_name: str | None = None,
        model_version: str | None = None,
    ) -> Coroutine[Any, Any, Decision]: ...
    def decide(
        self,
        symbol: str,
        direction: str | int,
        confidence: float,
        features: Features,
        *,
        model_name: str | None = None,
        model_version: str | None = None,
    ) -> Decision | Coroutine[Any, Any, Decision]:
        """The decision for a strategy that says `direction` (BUY, SELL, HOLD, or their codes) with that confidence.

        Raises:
            TypeError, ValueError: no direction or no confidence; features that are no numbers at all.
                Those with an infinite number are `refused`.
            RuntimeError: the client was not initialized, so nobody would notice that the server is back.
        """
        own = (_direction(direction), _share("confidence", confidence, 0.0))
        if not self._client.is_initialized:
            raise RuntimeError("initialize the client first: with it begins the watching of the server's health")
        flow = self._deciding(symbol, own, features, model_name, model_version)
        decided: Decision | Coroutine[Any, Any, Decision] = self._client.run(flow)
        return decided

    def _deciding(
        self,
        symbol: str,
        own: tuple[Direction, float],
        features: Features,
        model_name: str | None,
        model_version: str | None,
    ) -> Flow[Decision]:
        if self.ml_weight == 0.0:
            return _strategy_alone(own, "no_weight")
        if not self._client.available:
            return _strategy_alone(own, "server_away")
        try:
            call = predict(
                symbol,
                features,
                model_name=model_name,
                model_version=model_version,
                timeout_s=self.timeout_s,
                retries=NO_RETRIES,
            )
        except ValueError as error:
            self._log_refusal(model_name, symbol, error)
            return _strategy_alone(own, "refused", error=error)
        try:
            prediction: Prediction = yield call
        except ClientError as error:
            if is_away(error):
                self._client.note_away(error)
                return _strategy_alone(own, "server_away", error=error)
            self._log_refusal(model_name, symbol, error)
            return _strategy_alone(own, "refused", error=error)
        return self._weighed(own, prediction)

    def _weighed(self, own: tuple[Direction, float], prediction: Prediction) -> Decision:
        said = prediction.prediction
        if said.confidence is None:
            return _strategy_alone(own, "no_confidence", prediction)
        if said.confidence < self.ml_min_confidence:
            return _strategy_alone(own, "below_min_confidence", prediction)
        direction, confidence = hybrid(own, (said.direction, said.confidence), self.ml_weight)
        return Decision(direction=direction, confidence=confidence, reason="hybrid", prediction=prediction)

    def _log_refusal(self, model_name: str | None, symbol: str, error: Exception) -> None:
        """A bot that sends the wrong features has to be noticed, but not at every tick."""
        refused = (model_name, symbol, str(getattr(error, "code", type(error).__name__)))
        now_s = time.monotonic()
        is_new = now_s - self._warned_at_s.get(refused, -math.inf) > REMIND_S
        if is_new:
            if len(self._warned_at_s) >= MAX_REMEMBERED:
                self._warned_at_s.clear()
            self._warned_at_s[refused] = now_s
        what = symbol if model_name is None else f"{symbol} of {model_name}"
        log.log(logging.WARNING if is_new else logging.DEBUG, "no prediction for %s: %s", what, error)


def _strategy_alone(
    own: tuple[Direction, float],
    reason: Reason,
    prediction: Prediction | None = None,
    error: Exception | None = None,
) -> Decision:
    return Decision(direction=own[0], confidence=own[1], reason=reason, prediction=prediction, error=error)


def _direction(given: str | int) -> Direction:
    found = _DIRECTIONS.get(given.upper() if isinstance(given, str) else given) if not isinstance(given, bool) else None
    if found is None:
        raise ValueError(f"direction must be BUY, SELL, HOLD, or 1, 2, 0, not {given!r}")
    return found


def _share(name: str, given: float | None, default: float) -> float:
    """A number in [0, 1], as given, else from the environment, else the default."""
    value: object = given
    if given is None:
        value = os.environ.get(name) or default
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
    return number
