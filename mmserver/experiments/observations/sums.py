"""From predictions and outcomes to what they add to sums, a batch at a time; nothing is read or written here."""

from dataclasses import dataclass, field
from typing import NamedTuple

from mmserver.experiments.classification import N_CLASSES
from mmserver.experiments.observations.tables import SUMS

CONTROL, TREATMENT = 0, 1
ARMS = ("control", "treatment")
_DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
MS_PER_US = 1e-3
_BUY, _SELL = 1, 2

(
    N_SERVED, N_PREDICTIONS, ERROR_X, ERROR_Y, LATENCY_X, LATENCY_Y, JOIN_X, JOIN_Y, LABEL_X, LABEL_Y, RETURN_X, RETURN_Y,
    PAIRED_ERROR, _, _, PAIRED_LATENCY, _, _, PAIRED_LABEL, _, _, PAIRED_RETURN, _, _,
) = range(len(SUMS))  # fmt: skip


class Cell(NamedTuple):
    """Where sums are kept: one unit in one arm on one symbol."""

    experiment: int
    phase: int
    unit: str
    arm: int
    symbol: str


class Answer(NamedTuple):
    """What one arm answered, as far as sums need it."""

    direction: int | None
    latency_us: int
    has_failed: bool


class Counted(NamedTuple):
    """One prediction of an experiment, as far as sums need it."""

    experiment: int
    phase: int
    arm: int
    unit: str
    symbol: str
    at_us: int
    due_us: int
    is_washed_out: bool
    answer: Answer
    shadow: Answer | None


@dataclass(slots=True)
class HourChange:
    """What one hour of one arm gets; predictions are of the hour in which they were made, their outcomes too."""

    latencies_ms: list[float] = field(default_factory=list)
    n_returns: int = 0
    total_return: float = 0.0


@dataclass(slots=True)
class ArmChange:
    """What one arm of one phase gets beside its units' sums."""

    n_predictions: int = 0
    hours: dict[int, HourChange] = field(default_factory=dict)
    days: dict[int, list[float]] = field(default_factory=dict)
    wins: list[int] = field(default_factory=lambda: [0, 0])
    labels: list[list[int]] = field(default_factory=lambda: [[0] * N_CLASSES for _ in range(N_CLASSES)])
    first_at_us: int | None = None
    last_at_us: int | None = None

    def day(self, at_us: int) -> list[float]:
        """The day's changes, in the order of DaySums' fields."""
        number = at_us // _DAY_US
        found = self.days.get(number)
        if found is None:
            found = self.days[number] = [0, 0, 0, 0, 0, 0.0]
        return found

    def hour(self, at_us: int) -> HourChange:
        """The hour's changes; its latencies are those of the arm, too."""
        number = at_us // HOUR_US
        found = self.hours.get(number)
        if found is None:
            found = self.hours[number] = HourChange()
        return found


@dataclass(slots=True)
class PhaseChange:
    """What one phase gets beside its units' sums."""

    arms: tuple[ArmChange, ArmChange] = field(default_factory=lambda: (ArmChange(), ArmChange()))
    pairs: list[int] = field(
        default_factory=lambda: [0, 0, 0, 0]
    )  # both right, only control, only treatment, both wrong


class Changes:
    """What a batch adds to sums; `adding.add_changes` writes it.

    Args:
        due_until_us: predictions whose horizon ended by then count in joins, whether they have an outcome or not.
    """

    def __init__(self, due_until_us: int) -> None:
        self._due_until_us = due_until_us
        self.cells: dict[Cell, list[float]] = {}
        self.phases: dict[tuple[int, int], PhaseChange] = {}

    def add_prediction(self, counted: Counted) -> None:
        """Count one new prediction."""
        phase = self._phase(counted)
        cell = self._cell(counted, counted.arm)
        cell[N_SERVED] += 1
        self._add_answer(counted, cell, phase.arms[counted.arm], counted.answer)
        shadow = counted.shadow
        if shadow is None:
            return
        if counted.arm == CONTROL:
            self._add_answer(counted, self._cell(counted, TREATMENT), phase.arms[TREATMENT], shadow)
        if counted.is_washed_out:
            return
        control, treatment = _paired(counted.arm, counted.answer, shadow)
        _add_pair(cell, PAIRED_ERROR, control.has_failed, treatment.has_failed)
        if not control.has_failed and not treatment.has_failed:
            _add_pair(cell, PAIRED_LATENCY, control.latency_us, treatment.latency_us)

    def add_outcome(
        self, counted: Counted, label: int | None, realized_return: float | None, *, is_first: bool
    ) -> None:
        """Count what is new of a prediction's outcome: its label, its return, or both; `is_first` where it had neither."""
        if counted.is_washed_out:
            return
        phase = self._phase(counted)
        cell = self._cell(counted, counted.arm)
        outcome = (label, realized_return)
        is_due = is_first and counted.due_us <= self._due_until_us
        _add_matured(counted, cell, phase.arms[counted.arm], counted.answer, outcome, is_due=is_due)
        shadow = counted.shadow
        if shadow is None:
            return
        if counted.arm == CONTROL:
            other = self._cell(counted, TREATMENT)
            _add_matured(counted, other, phase.arms[TREATMENT], shadow, outcome, is_due=is_due)
        control, treatment = _paired(counted.arm, counted.answer, shadow)
        if control.has_failed or treatment.has_failed or control.direction is None or treatment.direction is None:
            return
        if label is not None:
            control_right, treatment_right = control.direction == label, treatment.direction == label
            _add_pair(cell, PAIRED_LABEL, control_right, treatment_right)
            phase.pairs[(not control_right) * 2 + (not treatment_right)] += 1
        if realized_return is not None:
            returns = (gain_of(answer.direction, realized_return) for answer in (control, treatment))
            _add_pair(cell, PAIRED_RETURN, *returns)

    def add_due(self, cell: Cell, n_predictions: int, n_with_outcome: int) -> None:
        """Count predictions of a cell as due, and how many of them have an outcome; negative counts take it back."""
        found = self.cells.get(cell)
        if found is None:
            found = self.cells[cell] = [0] * len(SUMS)
        found[JOIN_X] += n_predictions
        found[JOIN_Y] += n_with_outcome
        self.phases.setdefault(cell[:2], PhaseChange())

    def _phase(self, counted: Counted) -> PhaseChange:
        key = (counted.experiment, counted.phase)
        found = self.phases.get(key)
        if found is None:
            found = self.phases[key] = PhaseChange()
        return found

    def _cell(self, counted: Counted, arm: int) -> list[float]:
        cell = Cell(counted.experiment, counted.phase, counted.unit, arm, counted.symbol)
        found = self.cells.get(cell)
        if found is None:
            found = self.cells[cell] = [0] * len(SUMS)
        return found

    def _add_answer(self, counted: Counted, cell: list[float], change: ArmChange, answer: Answer) -> None:
        at_us = counted.at_us
        cell[N_PREDICTIONS] += 1
        change.n_predictions += 1
        if change.first_at_us is None or at_us < change.first_at_us:
            change.first_at_us = at_us
        if change.last_at_us is None or at_us > change.last_at_us:
            change.last_at_us = at_us
        day = change.day(at_us)
        day[0] += 1
        if counted.is_washed_out:
            return
        cell[ERROR_X] += 1
        if answer.has_failed:
            cell[ERROR_Y] += 1
            day[1] += 1
            return
        cell[LATENCY_X] += 1
        cell[LATENCY_Y] += answer.latency_us
        change.hour(at_us).latencies_ms.append(answer.latency_us * MS_PER_US)
        if counted.due_us <= self._due_until_us:
            cell[JOIN_X] += 1


def _add_matured(
    counted: Counted,
    cell: list[float],
    change: ArmChange,
    answer: Answer,
    outcome: tuple[int | None, float | None],
    *,
    is_due: bool,
) -> None:
    label, realized_return = outcome
    if answer.has_failed:
        return
    if is_due:
        cell[JOIN_Y] += 1
    direction = answer.direction
    if direction is None:
        return
    day = change.day(counted.at_us)
    if label is not None:
        is_right = direction == label
        cell[LABEL_X] += 1
        cell[LABEL_Y] += is_right
        change.labels[label][direction] += 1
        day[2] += 1
        day[3] += is_right
    if realized_return is not None:
        gained = gain_of(direction, realized_return)
        cell[RETURN_X] += 1
        cell[RETURN_Y] += gained
        day[4] += 1
        day[5] += gained
        hour = change.hour(counted.at_us)
        hour.n_returns += 1
        hour.total_return += gained
        if direction in (_BUY, _SELL):
            change.wins[0] += gained > 0.0
            change.wins[1] += 1


def _add_pair(cell: list[float], place: int, control: float, treatment: float) -> None:
    cell[place] += 1
    cell[place + 1] += control
    cell[place + 2] += treatment


def gain_of(direction: int | None, realized_return: float) -> float:
    """What the position that the prediction calls for made of it."""
    return realized_return if direction == _BUY else -realized_return if direction == _SELL else 0.0


def _paired(arm: int, answer: Answer, shadow: Answer) -> tuple[Answer, Answer]:
    return (answer, shadow) if arm == CONTROL else (shadow, answer)
