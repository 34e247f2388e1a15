"""What is predicted outside experiments, or a sample of it, is logged with its features; nobody waits for it, and nothing fails.

What cannot be kept is dropped and counted. A client's own mistake is no prediction, and is not logged.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmserver.catalog.symbols import ALL_SYMBOLS, comparable_symbol
from mmserver.errors import Corrupt, MmserverError, Unavailable
from mmserver.experiments.observations.values import Observation, us_since_epoch
from mmserver.experiments.sampling import Sample, row_id
from mmserver.formats import Decision, FloatRows
from mmserver.serving.interpretation import DIRECTION_CODES, NoInterpreter, decide
from mmserver.serving.predictions import Prediction, Resolved, Serving
from mmserver.serving.predictors import LoadedModel


class Appending(Protocol):
    """What observations are handed to: `ObservationLog`."""

    def append_all(self, observations: Iterable[Observation], *, must_keep: bool) -> None:
        """Keep them, or drop and count those that need not be kept."""


class Observing:
    """What `Serving.observer` is while predictions outside experiments are observed; safe for all threads.

    Args:
        share: of the predictions, 0 to 1; see `Sample`.
        horizon_s: how long after a prediction its outcome is known.
    """

    def __init__(self, serving: Serving, log: Appending, *, share: float, horizon_s: float) -> None:
        self._new_prediction_id: Callable[[], str] = serving.new_prediction_id
        self._dead_band = serving.dead_band
        self._now = serving.store.now
        self._log = log
        self._sample = Sample(share)
        self._horizon_us = round(horizon_s * 1e6)

    def answered(
        self,
        resolved: Resolved,
        symbols: Sequence[str],
        answers: Sequence[Prediction | MmserverError],
        rows: FloatRows,
        begun_ns: int,
    ) -> None:
        """Log predictions and failures of one model, one for each row."""
        self._log.append_all(self._of_answers(resolved, symbols, answers, rows, begun_ns), must_keep=False)

    def failed(self, resolved: Resolved, symbol: str | None, error: MmserverError, begun_ns: int) -> None:
        """Log that nothing could be predicted, whatever the features were; `symbol` where it is not the group's."""
        prediction_id = self._new_prediction_id()
        if is_ours(error) and self._sample.has(prediction_id):
            symbol = _symbol_of(resolved) if symbol is None else symbol
            made = self._made(resolved, begun_ns, 1)(prediction_id, symbol, None, b"", error.code)
            self._log.append_all((made,), must_keep=False)

    def ran(  # noqa: PLR0917 (all that is known of it)
        self,
        resolved: Resolved,
        loaded: LoadedModel,
        prediction_id: str,
        rows: np.ndarray[Any, Any],
        found: Mapping[str, FloatRows] | MmserverError,
        begun_ns: int,
    ) -> None:
        """Log rows of which the model's raw outputs were given, with what these decide, or why there are none.

        Args:
            prediction_id: the request's, of which those of its rows are made: see `row_id`.

        Shapes:
            rows: n_rows × n_features, as they were asked. found: n_rows × width each.
        """
        if isinstance(found, MmserverError) and not is_ours(found):
            return
        places = self._sample.rows(prediction_id, len(rows))
        if not len(places):
            return
        is_whole = len(places) == len(rows)
        table = loaded.layout.rows(rows if is_whole else rows[places])
        decisions: Sequence[Decision | None] = [None] * len(places)
        code = None
        if isinstance(found, MmserverError):
            code = found.code
        else:
            some = found if is_whole else {name: values[places] for name, values in found.items()}
            decisions = decisions_of(resolved, loaded, some, len(places), self._dead_band(resolved))
        made, symbol = self._made(resolved, begun_ns, len(rows)), _symbol_of(resolved)
        drawn = (
            made(row_id(prediction_id, place, len(rows)), symbol, decision, row.tobytes(), code)
            for place, row, decision in zip(places.tolist(), table, decisions, strict=True)
        )
        self._log.append_all(drawn, must_keep=False)

    # --- parts ------------------------------------------------------------------------------------------------------------

    def _of_answers(
        self,
        resolved: Resolved,
        symbols: Sequence[str],
        answers: Sequence[Prediction | MmserverError],
        rows: FloatRows,
        begun_ns: int,
    ) -> Iterator[Observation]:
        made = self._made(resolved, begun_ns, len(answers))
        for place, (symbol, answer) in enumerate(zip(symbols, answers, strict=True)):
            if isinstance(answer, Prediction):
                if self._sample.has(answer.prediction_id):
                    yield made(answer.prediction_id, symbol, answer.decision, rows[place].tobytes(), None)
            elif is_ours(answer):
                prediction_id = self._new_prediction_id()
                if self._sample.has(prediction_id):
                    yield made(prediction_id, symbol, None, rows[place].tobytes(), answer.code)

    def _made(
        self, resolved: Resolved, begun_ns: int, n_rows: int
    ) -> Callable[[str, str, Decision | None, bytes, str | None], Observation]:
        """How to make an observation of what one model did with rows together; each row's latency is its share."""
        at_us = us_since_epoch(self._now())
        latency_us = (time.perf_counter_ns() - begun_ns) // (1000 * max(1, n_rows))
        model_name, version, horizon_us = resolved.version.model_name, resolved.version.label, self._horizon_us

        def make(
            prediction_id: str, symbol: str, decision: Decision | None, features: bytes, error: str | None
        ) -> Observation:
            return Observation(
                prediction_id=prediction_id,
                at_us=at_us,
                symbol=comparable_symbol(symbol),
                model_name=model_name,
                version=version,
                direction=None if decision is None else DIRECTION_CODES[decision.direction],
                confidence=None if decision is None else decision.confidence,
                expected_return=None if decision is None else decision.expected_return,
                latency_us=latency_us,
                error=error,
                features=features,
                horizon_us=horizon_us,
            )

        return make


def is_ours(error: MmserverError) -> bool:
    """Whether the model or the server failed, rather than the client in asking."""
    return isinstance(error, Unavailable | Corrupt)


def decisions_of(
    resolved: Resolved, loaded: LoadedModel, outputs: Mapping[str, FloatRows], n_rows: int, dead_band: float
) -> Sequence[Decision | None]:
    """What each row's raw outputs mean; None where nothing says that, which is no failure of what gives raw outputs."""
    nothing = [None] * n_rows
    if isinstance(loaded.interpreter, NoInterpreter):
        return nothing
    try:
        return decide(loaded.interpreter, resolved.group.group_key, outputs, dead_band)
    except MmserverError:
        return nothing


def _symbol_of(resolved: Resolved) -> str:
    """That of the group; none where it predicts for all symbols."""
    return "" if resolved.group.symbol == ALL_SYMBOLS else resolved.group.symbol
