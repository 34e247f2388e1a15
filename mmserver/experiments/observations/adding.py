"""What a batch adds to sums is added to the units, and what that changes in them to the totals, at once."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.classification import ConfusionCounts
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.observations.hours import HourSums, add_hours
from mmserver.experiments.observations.sums import (
    ARMS,
    CONTROL,
    ERROR_X,
    JOIN_X,
    LABEL_X,
    LABEL_Y,
    LATENCY_X,
    MS_PER_US,
    N_PREDICTIONS,
    N_SERVED,
    PAIRED_ERROR,
    PAIRED_LABEL,
    PAIRED_LATENCY,
    PAIRED_RETURN,
    RETURN_X,
    RETURN_Y,
    TREATMENT,
    ArmChange,
    Cell,
    Changes,
    PhaseChange,
)
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

Sums = NDArray[np.float64]
_encode = msgspec.msgpack.Encoder().encode
_decode_phase = msgspec.msgpack.Decoder(PhaseTotals).decode
_decode_symbol = msgspec.msgpack.Decoder(SymbolTotals).decode


def add_changes(raw: Any, changes: Changes) -> None:
    """Add all to the units and totals, in the caller's transaction."""
    by_phase: dict[tuple[int, int], dict[Cell, list[float]]] = {}
    for cell, sums in changes.cells.items():
        by_phase.setdefault(cell[:2], {})[cell] = sums
    for key, change in changes.phases.items():
        _apply_phase(raw, key, change, by_phase.get(key, {}))


def _apply_phase(raw: Any, key: tuple[int, int], change: PhaseChange, added: dict[Cell, list[float]]) -> None:
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
    hours = tuple(_hours_of(arm) for arm in change.arms)
    totals = _changed_phase(_decode_phase(row[0]) if row else PhaseTotals(), change, cells, before, after, hours=hours)
    raw.execute("INSERT OR REPLACE INTO phase_totals VALUES (?, ?, ?)", (*key, _encode(totals)))
    add_hours(raw, key, hours)
    _apply_symbols(raw, key, cells, before, after)


def _hours_of(change: ArmChange) -> Mapping[int, HourSums]:
    return {
        number: HourSums(hour.n_returns, hour.total_return, Latencies.from_ms(hour.latencies_ms))
        for number, hour in change.hours.items()
    }


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
    totals: PhaseTotals,
    change: PhaseChange,
    cells: Sequence[Cell],
    before: Sums,
    after: Sums,
    *,
    hours: Sequence[Mapping[int, HourSums]],
) -> PhaseTotals:
    whole_units, before, after = _whole_units(cells, before, after)
    arms = np.array([arm for _, arm in whole_units], np.int64)
    control, treatment = (
        _changed_arm(getattr(totals, name), change.arms[arm], before[arms == arm], after[arms == arm], hours[arm])
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


def _changed_arm(
    arm: ArmTotals, change: ArmChange, before: Sums, after: Sums, hours: Mapping[int, HourSums]
) -> ArmTotals:
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
        latency=ratio(arm.latency, LATENCY_X, MS_PER_US),
        joins=ratio(arm.joins, JOIN_X),
        accuracy=ratio(arm.accuracy, LABEL_X),
        returns=ratio(arm.returns, RETURN_X),
        wins=arm.wins.merge(Rate(*change.wins)),
        labels=arm.labels.merge(ConfusionCounts(tuple(map(tuple, change.labels)))),
        latencies=Latencies.merged((arm.latencies, *(hour.latencies for hour in hours.values()))),
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
        latency=moments(paired.latency, PAIRED_LATENCY, MS_PER_US),
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
