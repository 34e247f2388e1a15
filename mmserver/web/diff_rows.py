"""The diff page's table of shifts: one row a factor, the largest shift first."""

from collections.abc import Iterable
from dataclasses import dataclass

from mmserver.catalog.diffing import ColumnShift, GroupDiff
from mmserver.web.factor_rows import IC_NAMES, TAU_NAMES, Bar, bar_from_value

MAX_MEASURES = 3


@dataclass(frozen=True, slots=True)
class MeasureShift:
    """One measure of one factor, before and after."""

    before: float | None
    after: float | None
    diff: float | None
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class ShiftTable:
    """Shifts of up to three measures. `rows` holds (factor, one shift a measure, None where it did not change)."""

    measures: tuple[str, ...]
    rows: tuple[tuple[str, tuple[MeasureShift | None, ...]], ...]


def shift_table(group: GroupDiff) -> ShiftTable:
    """The group's shifts in its correlation columns; sample counts and p-values move by themselves and are left out."""
    measures = _measures({shift.column for shift in group.ic_shifts})
    shown = [shift for shift in group.ic_shifts if shift.column in measures]
    scales = {measure: _largest(shift for shift in shown if shift.column == measure) for measure in measures}
    by_factor: dict[str, dict[str, ColumnShift]] = {}
    for shift in shown:
        by_factor.setdefault(shift.factor, {})[shift.column] = shift
    ordered = sorted(by_factor.items(), key=lambda entry: _largest(entry[1].values()), reverse=True)
    rows = tuple(
        (factor, tuple(_measure_shift(shifts.get(measure), scales[measure]) for measure in measures))
        for factor, shifts in ordered
    )
    return ShiftTable(measures, rows)


def _measures(columns: set[str]) -> tuple[str, ...]:
    lowered = {column.lower(): column for column in columns}
    return tuple(lowered[name] for name in (*IC_NAMES, *TAU_NAMES) if name in lowered)[:MAX_MEASURES]


def _measure_shift(shift: ColumnShift | None, scale: float) -> MeasureShift | None:
    if shift is None:
        return None
    return MeasureShift(shift.from_value, shift.to_value, shift.diff, bar_from_value(shift.diff, scale))


def _largest(shifts: Iterable[ColumnShift]) -> float:
    return max((abs(shift.diff) for shift in shifts if shift.diff is not None), default=0.0)
