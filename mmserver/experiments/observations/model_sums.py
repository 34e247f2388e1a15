"""Sums of what was observed outside experiments: per model, version and day, so that reading them costs the same at any number of rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

from mmserver.experiments.observations.sums import gain_of
from mmserver.experiments.observations.tables import MODEL_COLUMNS
from mmserver.experiments.observations.values import Observation

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC).date()
_SUMS = MODEL_COLUMNS[3:]
_N_PREDICTIONS, _N_ERRORS, _LATENCY_US, _N_LABELLED, _N_RIGHT, _N_RETURNS, _RETURNS = range(len(_SUMS))
_ADD = (
    f"INSERT INTO model_days ({', '.join(MODEL_COLUMNS)}) VALUES ({', '.join('?' * len(MODEL_COLUMNS))}) "  # noqa: S608 (names of our own)
    f"ON CONFLICT (model_name, version, day) DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in _SUMS)}"
)


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """What was observed of a version outside experiments, on one day (UTC, by when it was predicted) or all together.

    Units:
        average_latency_ms: of predictions without an error. accuracy: a share. average_return: of positions, 0.01 is one per cent;
            HOLD counts as 0. They are None where there is nothing to average.

    Fields:
        n_labelled, n_returns: predictions with a direction whose outcome came, with a label and with a return.
    """

    n_predictions: int = 0
    n_errors: int = 0
    latency_us: int = 0
    n_labelled: int = 0
    n_right: int = 0
    n_returns: int = 0
    returns: float = 0.0

    def merge(self, other: Self) -> Self:
        """Both together; no prediction may be in both."""
        return type(self)(*(getattr(self, name) + getattr(other, name) for name in _SUMS))

    @property
    def accuracy(self) -> float | None:
        """The share of labelled predictions whose direction was right."""
        return self.n_right / self.n_labelled if self.n_labelled else None

    @property
    def average_return(self) -> float | None:
        """What a position that followed the prediction made, on average."""
        return self.returns / self.n_returns if self.n_returns else None

    @property
    def average_latency_ms(self) -> float | None:
        """How long an answer took, on average."""
        n_answers = self.n_predictions - self.n_errors
        return self.latency_us / n_answers / 1000 if n_answers else None


@dataclass(frozen=True, slots=True)
class ModelDay:
    """One version's totals of one day."""

    model_name: str
    version: str
    day: date
    totals: ModelTotals


class ModelChanges:
    """What a batch adds to the sums of models."""

    def __init__(self) -> None:
        self._days: dict[tuple[str, str, int], list[float]] = {}

    def add_prediction(self, observation: Observation) -> None:
        """Count one new prediction outside experiments."""
        sums = self._day(observation.model_name, observation.version, observation.at_us)
        sums[_N_PREDICTIONS] += 1
        if observation.error is not None:
            sums[_N_ERRORS] += 1
        else:
            sums[_LATENCY_US] += observation.latency_us

    def add_outcome(
        self,
        model_name: str,
        version: str,
        at_us: int,
        direction: int,
        *,
        label: int | None,
        realized_return: float | None,
    ) -> None:
        """Count what is new of the outcome of a prediction that had a direction: its label, its return, or both."""
        sums = self._day(model_name, version, at_us)
        if label is not None:
            sums[_N_LABELLED] += 1
            sums[_N_RIGHT] += direction == label
        if realized_return is not None:
            sums[_N_RETURNS] += 1
            sums[_RETURNS] += gain_of(direction, realized_return)

    def write(self, raw: Any) -> None:
        """Add all, in the caller's transaction."""
        raw.executemany(_ADD, [(*key, *sums) for key, sums in self._days.items()])

    def _day(self, model_name: str, version: str, at_us: int) -> list[float]:
        key = (model_name, version, at_us // _DAY_US)
        found = self._days.get(key)
        if found is None:
            found = self._days[key] = [0] * len(_SUMS)
        return found


def read_model_days(raw: Any, model_name: str | None = None) -> list[ModelDay]:
    """By model, version and day; of one model, or all."""
    rows = raw.execute(
        f"SELECT {', '.join(MODEL_COLUMNS)} FROM model_days WHERE ?1 IS NULL OR model_name = ?1 "  # noqa: S608 (names of our own)
        "ORDER BY model_name, version, day",
        (model_name,),
    ).fetchall()
    return [ModelDay(name, version, _EPOCH + timedelta(day), ModelTotals(*sums)) for name, version, day, *sums in rows]


def whole_totals(days: Iterable[ModelDay]) -> dict[tuple[str, str], ModelTotals]:
    """All days together, of each (model, version)."""
    found: dict[tuple[str, str], ModelTotals] = {}
    for day in days:
        key = (day.model_name, day.version)
        found[key] = found.get(key, ModelTotals()).merge(day.totals)
    return found
