"""The diff page's tables: shifts by factor, the largest first, and what changed in the info file, member by member."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mmserver.catalog.diffing import ColumnShift, GroupDiff
from mmserver.web.factor_rows import IC_NAMES, TAU_NAMES, Bar, bar_from_value, first_column


@dataclass(frozen=True, slots=True)
class MeasureShift:
    """One measure of one factor, before and after."""

    before: float | None
    after: float | None
    diff: float | None
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class ShiftTable:
    """Shifts of IC and of tau, where there are such columns. `rows` holds (factor, one shift a measure, None where it did not change)."""

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
    """The first IC column and the first tau column: the others say nearly the same again."""
    found = (first_column(columns, IC_NAMES), first_column(columns, TAU_NAMES))
    return tuple(column for column in found if column is not None)


def _measure_shift(shift: ColumnShift | None, scale: float) -> MeasureShift | None:
    if shift is None:
        return None
    return MeasureShift(shift.from_value, shift.to_value, shift.diff, bar_from_value(shift.diff, scale))


def _largest(shifts: Iterable[ColumnShift]) -> float:
    return max((abs(shift.diff) for shift in shifts if shift.diff is not None), default=0.0)


@dataclass(frozen=True, slots=True)
class MemberChange:
    """One member of the info file that differs; the path leads to it through nested mappings."""

    path: tuple[str, ...]
    before: Any
    after: Any


def member_changes(group: GroupDiff) -> tuple[MemberChange, ...]:
    """The group's info changes, taken apart where both sides are mappings."""
    return tuple(
        change
        for entry in group.info_changes
        for change in _taken_apart((entry.key,), entry.from_value, entry.to_value)
    )


def _taken_apart(path: tuple[str, ...], before: object, after: object) -> Iterator[MemberChange]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*after, *(key for key in before if key not in after)]:
            if before.get(key) != after.get(key):
                yield from _taken_apart((*path, str(key)), before.get(key), after.get(key))
    else:
        yield MemberChange(path, before, after)
