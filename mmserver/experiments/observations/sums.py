"""From predictions and outcomes to sums: what a batch adds is gathered first, then added to units and totals at once."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.classification import N_CLASSES, ConfusionCounts
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.observations.tables import SUMS, UNIT_COLUMNS, insert_rows
from mmserver.experiments.rates import Rate
from mmserver.experiments.totals import (
    ArmTotals,
    DaySums,
    PairedMoments,
    PairedTotals,
    PhaseTotals,
    RatioMoments,
    SymbolTotals,
)

CONTROL, TREATMENT = 0, 1
ARMS = ("control", "treatment")
_DAY_US = 86_400_000_000
_MS_PER_US = 1e-3
_BUY, _SELL = 1, 2

(
    N_SERVED, N_PREDICTIONS, ERROR_X, ERROR_Y, LATENCY_X, LATENCY_Y, JOIN_X, JOIN_Y, LABEL_X, LABEL_Y, RETURN_X, RETURN_Y,
    PAIRED_ERROR, _, _, PAIRED_LATENCY, _, _, PAIRED_LABEL, _, _, PAIRED_RETURN, _, _,
) = range(len(SUMS))  # fmt: skip

Sums = NDArray[np.float64]
_encode = msgspec.msgpack.Encoder().encode
_decode_phase = msgspec.msgpack.Decoder(PhaseTotals).decode
_decode_symbol = msgspec.msgpack.Decoder(SymbolTotals).decode


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
class _ArmChange:
    n_predictions: int = 0
    latencies_ms: list[float] = field(default_factory=list)
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


@dataclass(slots=True)
class _PhaseChange:
    arms: tuple[_ArmChange, _ArmChange] = field(default_factory=lambda: (_ArmChange(), _ArmChange()))
    pairs: list[int] = field(
        default_factory=lambda: [0, 0, 0, 0]
    )  # both right, only control, only treatment, both wrong


class Changes:
    """What a batch adds to sums; nothing is written before `apply`.

    Args:
        due_until_us: predictions whose horizon ended by then count in joins, whether they have an outcome or not.
    """

    def __init__(self, due_until_us: int) -> None:
        self._due_until_us = due_until_us
        self._cells: dict[Cell, list[float]] = {}
        self._phases: dict[tuple[int, int], _PhaseChange] = {}

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
            returns = (_gained(answer.direction, realized_return) for answer in (control, treatment))
            _add_pair(cell, PAIRED_RETURN, *returns)

    def add_due(self, cell: Cell, n_predictions: int, n_with_outcome: int) -> None:
        """Count predictions of a cell as due, and how many of them have an outcome; negative counts take it back."""
        found = self._cells.get(cell)
        if found is None:
            found = self._cells[cell] = [0] * len(SUMS)
        found[JOIN_X] += n_predictions
        found[JOIN_Y] += n_with_outcome
        self._phases.setdefault(cell[:2], _PhaseChange())

    def apply(self, raw: Any) -> None:
        """Add all to the units and totals, in the caller's transaction."""
        by_phase: dict[tuple[int, int], dict[Cell, list[float]]] = {}
        for cell, sums in self._cells.items():
            by_phase.setdefault(cell[:2], {})[cell] = sums
        for key, change in self._phases.items():
            _apply_phase(raw, key, change, by_phase.get(key, {}))

    def _phase(self, counted: Counted) -> _PhaseChange:
        key = (counted.experiment, counted.phase)
        found = self._phases.get(key)
        if found is None:
            found = self._phases[key] = _PhaseChange()
        return found

    def _cell(self, counted: Counted, arm: int) -> list[float]:
        cell = Cell(counted.experiment, counted.phase, counted.unit, arm, counted.symbol)
        found = self._cells.get(cell)
        if found is None:
            found = self._cells[cell] = [0] * len(SUMS)
        return found

    def _add_answer(self, counted: Counted, cell: list[float], change: _ArmChange, answer: Answer) -> None:
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
        change.latencies_ms.append(answer.latency_us * _MS_PER_US)
        if counted.due_us <= self._due_until_us:
            cell[JOIN_X] += 1


def _add_matured(
    counted: Counted,
    cell: list[float],
    change: _ArmChange,
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
        gained = _gained(direction, realized_return)
        cell[RETURN_X] += 1
        cell[RETURN_Y] += gained
        day[4] += 1
        day[5] += gained
        if direction in (_BUY, _SELL):
            change.wins[0] += gained > 0.0
            change.wins[1] += 1


def _add_pair(cell: list[float], place: int, control: float, treatment: float) -> None:
    cell[place] += 1
    cell[place + 1] += control
    cell[place + 2] += treatment


def _gained(direction: int | None, realized_return: float) -> float:
    """What the position that the prediction calls for made of it."""
    return realized_return if direction == _BUY else -realized_return if direction == _SELL else 0.0


def _paired(arm: int, answer: Answer, shadow: Answer) -> tuple[Answer, Answer]:
    return (answer, shadow) if arm == CONTROL else (shadow, answer)


# --- adding them up -----------------------------------------------------------------------------------------------------


def _apply_phase(raw: Any, key: tuple[int, int], change: _PhaseChange, added: dict[Cell, list[float]]) -> None:
    cells, before = _units_before(raw, key, added)
    after = before.copy()
    places = {cell: place for place, cell in enumerate(cells)}
    for cell, sums in added.items():
        after[places[cell]] += sums
    touched = [places[cell] for cell in added]
    values = after[touched].tolist()
    rows = [(*cell, *sums) for cell, sums in zip(added, values, strict=True)]
    insert_rows(raw, "units", UNIT_COLUMNS, rows, verb="INSERT OR REPLACE")
    row = raw.execute("SELECT totals FROM phase_totals WHERE experiment = ? AND phase = ?", key).fetchone()
    totals = _changed_phase(_decode_phase(row[0]) if row else PhaseTotals(), change, cells, before, after)
    raw.execute("INSERT OR REPLACE INTO phase_totals VALUES (?, ?, ?)", (*key, _encode(totals)))
    _apply_symbols(raw, key, cells, before, after)


def _units_before(raw: Any, key: tuple[int, int], added: dict[Cell, list[float]]) -> tuple[list[Cell], Sums]:
    """All cells of the units that change, those on other symbols too, and what they hold; new ones hold nothing."""
    units = json.dumps(sorted({cell.unit for cell in added}))
    found = raw.execute(
        f"SELECT {', '.join(UNIT_COLUMNS[2:])} FROM units "  # noqa: S608 (names of our own)
        "WHERE experiment = ? AND phase = ? AND unit IN (SELECT value FROM json_each(?))",
        (*key, units),
    ).fetchall()
    held = {Cell(*key, *row[:3]): row[3:] for row in found}
    nothing = (0,) * len(SUMS)
    cells = list(dict.fromkeys([*held, *added]))
    return cells, np.array([held.get(cell, nothing) for cell in cells], np.float64).reshape(len(cells), len(SUMS))


def _changed_phase(
    totals: PhaseTotals, change: _PhaseChange, cells: Sequence[Cell], before: Sums, after: Sums
) -> PhaseTotals:
    whole_units, before, after = _whole_units(cells, before, after)
    arms = np.array([arm for _, arm in whole_units], np.int64)
    control, treatment = (
        _changed_arm(getattr(totals, name), change.arms[arm], before[arms == arm], after[arms == arm])
        for arm, name in enumerate(ARMS)
    )
    paired = _changed_pairs(totals.paired or PairedTotals(), change.pairs, before, after)
    n_mixed = _n_mixed(whole_units, after) - _n_mixed(whole_units, before)
    return replace(
        totals,
        control=control,
        treatment=treatment,
        paired=paired if totals.paired is not None or paired != PairedTotals() else None,
        n_units_in_both_arms=totals.n_units_in_both_arms + n_mixed,
    )


def _whole_units(cells: Sequence[Cell], before: Sums, after: Sums) -> tuple[list[tuple[str, int]], Sums, Sums]:
    """Sums of (unit, arm) over its symbols."""
    keys: dict[tuple[str, int], int] = {}
    places = [keys.setdefault((cell.unit, cell.arm), len(keys)) for cell in cells]
    if len(keys) == len(cells):
        return list(keys), before, after
    wholes = []
    for sums in (before, after):
        whole = np.zeros((len(keys), len(SUMS)))
        np.add.at(whole, places, sums)
        wholes.append(whole)
    return list(keys), wholes[0], wholes[1]


def _n_mixed(units: Sequence[tuple[str, int]], sums: Sums) -> int:
    """How many units were served by both arms."""
    served = [unit for (unit, _), n_served in zip(units, sums[:, N_SERVED].tolist(), strict=True) if n_served]
    return len(served) - len(set(served))


def _changed_arm(arm: ArmTotals, change: _ArmChange, before: Sums, after: Sums) -> ArmTotals:
    def ratio(moments: RatioMoments, x: int, scale: float = 1.0) -> RatioMoments:
        return moments.merge(_ratio_change(before, after, x, scale))

    days = dict(arm.days)
    for number, sums in change.days.items():
        predictions, errors, labelled, right, returns = map(int, sums[:5])
        added = DaySums(predictions, errors, labelled, right, returns, sums[5])
        days[number] = days.get(number, DaySums()).merge(added)
    at_us = [at for at in (arm.first_at_us, change.first_at_us, arm.last_at_us, change.last_at_us) if at is not None]
    n_new = np.count_nonzero(after[:, N_PREDICTIONS]) - np.count_nonzero(before[:, N_PREDICTIONS])
    return ArmTotals(
        n_units=arm.n_units + int(n_new),
        n_predictions=arm.n_predictions + change.n_predictions,
        errors=ratio(arm.errors, ERROR_X),
        latency=ratio(arm.latency, LATENCY_X, _MS_PER_US),
        joins=ratio(arm.joins, JOIN_X),
        accuracy=ratio(arm.accuracy, LABEL_X),
        returns=ratio(arm.returns, RETURN_X),
        wins=arm.wins.merge(Rate(*change.wins)),
        labels=arm.labels.merge(ConfusionCounts(tuple(map(tuple, change.labels)))),
        latencies=arm.latencies.merge(Latencies.from_ms(change.latencies_ms)) if change.latencies_ms else arm.latencies,
        days=days,
        first_at_us=min(at_us, default=None),
        last_at_us=max(at_us, default=None),
    )


def _changed_pairs(paired: PairedTotals, pairs: Iterable[int], before: Sums, after: Sums) -> PairedTotals:
    def moments(found: PairedMoments, place: int, scale: float = 1.0) -> PairedMoments:
        return found.merge(_paired_change(before, after, place, scale))

    both, only_control, only_treatment, neither = pairs
    return PairedTotals(
        n_both_right=paired.n_both_right + both,
        n_only_control=paired.n_only_control + only_control,
        n_only_treatment=paired.n_only_treatment + only_treatment,
        n_both_wrong=paired.n_both_wrong + neither,
        errors=moments(paired.errors, PAIRED_ERROR),
        latency=moments(paired.latency, PAIRED_LATENCY, _MS_PER_US),
        accuracy=moments(paired.accuracy, PAIRED_LABEL),
        returns=moments(paired.returns, PAIRED_RETURN),
    )


def _ratio_change(before: Sums, after: Sums, x: int, scale: float) -> RatioMoments:
    """What units changed in their moments: those of sums after, less those of sums before."""
    x0, y0, x1, y1 = before[:, x], before[:, x + 1] * scale, after[:, x], after[:, x + 1] * scale
    if np.array_equal(x0, x1) and np.array_equal(y0, y1):
        return RatioMoments()
    return RatioMoments(
        int(np.count_nonzero(x1) - np.count_nonzero(x0)),
        *(
            float((b - a).sum())
            for a, b in ((x0, x1), (y0, y1), (x0 * x0, x1 * x1), (x0 * y0, x1 * y1), (y0 * y0, y1 * y1))
        ),
    )


def _paired_change(before: Sums, after: Sums, place: int, scale: float) -> PairedMoments:
    scales = np.array([1.0, scale, scale])
    b, a = before[:, place : place + 3] * scales, after[:, place : place + 3] * scales
    if np.array_equal(a, b):
        return PairedMoments()
    sums = (a - b).sum(axis=0).tolist()
    products = [float((a[:, i] * a[:, j] - b[:, i] * b[:, j]).sum()) for i in range(3) for j in range(i, 3)]
    return PairedMoments(int(np.count_nonzero(a[:, 0]) - np.count_nonzero(b[:, 0])), *sums, *products)


def _apply_symbols(raw: Any, key: tuple[int, int], cells: Sequence[Cell], before: Sums, after: Sums) -> None:
    """Symbols' totals, of those of which an outcome came."""
    parts = [LABEL_X, LABEL_Y, RETURN_X, RETURN_Y, *range(PAIRED_LABEL, PAIRED_LABEL + 3)]
    changed = np.flatnonzero((before[:, parts] != after[:, parts]).any(axis=1))
    by_symbol: dict[str, list[int]] = {}
    for place in changed.tolist():
        by_symbol.setdefault(cells[place].symbol, []).append(place)
    if not by_symbol:
        return
    found = raw.execute(
        "SELECT symbol, totals FROM symbol_totals WHERE experiment = ? AND phase = ? "
        "AND symbol IN (SELECT value FROM json_each(?))",
        (*key, json.dumps(sorted(by_symbol))),
    ).fetchall()
    held = {symbol: _decode_symbol(totals) for symbol, totals in found}
    rows = []
    for symbol, places in by_symbol.items():
        arms = np.array([cells[place].arm for place in places])
        b, a = before[places], after[places]
        (control_accuracy, control_returns), (treatment_accuracy, treatment_returns) = (
            [_ratio_change(b[arms == arm], a[arms == arm], x, 1.0) for x in (LABEL_X, RETURN_X)]
            for arm in (CONTROL, TREATMENT)
        )
        change = SymbolTotals(
            control_accuracy=control_accuracy,
            treatment_accuracy=treatment_accuracy,
            control_returns=control_returns,
            treatment_returns=treatment_returns,
            paired_accuracy=_paired_change(b, a, PAIRED_LABEL, 1.0),
        )
        rows.append((*key, symbol, _encode(held.get(symbol, SymbolTotals()).merge(change))))
    columns = ("experiment", "phase", "symbol", "totals")
    insert_rows(raw, "symbol_totals", columns, rows, verb="INSERT OR REPLACE")
