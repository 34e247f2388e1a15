"""How long single predictions are kept, and how many; the sums of experiments and models stay."""

from typing import Any

import msgspec

from mmserver.experiments.observations.reports import PruneReport
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.totals import PhaseTotals

_AT_ONCE = 2000
_PAGES_AT_ONCE = 2000
_decode = msgspec.msgpack.Decoder(PhaseTotals).decode


def prune(store: ObservationStore, *, now: float, retention_s: float, retention_bytes: int) -> PruneReport:
    """Delete predictions with their outcomes, the oldest first: all that are too old, then as many as take too much space, those
    outside experiments before those that an experiment may still join with their outcomes.

    In short transactions, so that moving goes on. An outcome that comes for one afterwards is unknown. Space goes back to the
    disk. Rows are taken to be in the order of their time, about, as they were moved.

    Raises:
        DatabaseBusy, DiskFull, ObservationsCorrupt, WritesStopped: what was deleted before stays deleted.
    """
    cutoff_us = int((now - retention_s) * 1e6)
    n_too_old = n_too_many = n_prices = 0
    while n_deleted := _delete_oldest(store, f"WHERE at_us < {cutoff_us}"):
        n_too_old += n_deleted
    while _used_bytes(store) > retention_bytes and (
        n_deleted := _delete_oldest(store, "", "INDEXED BY predictions_outside WHERE experiment IS NULL")
        or _delete_oldest(store, "")
    ):
        n_too_many += n_deleted
    while n_deleted := _delete_prices(store, cutoff_us):
        n_prices += n_deleted
    _delete_units(store, cutoff_us)
    _give_back(store)
    return PruneReport(n_too_old, n_too_many, n_prices)


def _delete_oldest(store: ObservationStore, condition: str, among: str = "") -> int:
    """Those of the oldest rows `among` some that meet the condition; only the oldest are looked at."""
    with store.write() as raw:
        cursor = raw.execute(
            "DELETE FROM predictions WHERE id IN (SELECT id FROM "  # noqa: S608 (a number of our own)
            f"(SELECT id, at_us FROM predictions {among} ORDER BY id LIMIT {_AT_ONCE}) {condition})"
        )
        return int(cursor.rowcount)


def _delete_prices(store: ObservationStore, cutoff_us: int) -> int:
    with store.write() as raw:
        symbols = [row[0] for row in raw.execute("SELECT symbol FROM priced_symbols ORDER BY symbol").fetchall()]
        n_deleted = 0
        for symbol in symbols:
            n_deleted += raw.execute(
                "DELETE FROM prices WHERE symbol = ?1 AND at_us IN "
                "(SELECT at_us FROM prices WHERE symbol = ?1 AND at_us < ?2 ORDER BY at_us LIMIT ?3)",
                (symbol, cutoff_us, _AT_ONCE),
            ).rowcount
            if n_deleted >= _AT_ONCE:
                break
        return n_deleted


def _delete_units(store: ObservationStore, cutoff_us: int) -> None:
    """Units' own sums are needed for as long as something may be added to them."""
    with store.read() as raw:
        found = raw.execute("SELECT experiment, phase, totals FROM phase_totals").fetchall()
    for experiment, phase, encoded in found:
        totals = _decode(encoded)
        last = [arm.last_at_us for arm in (totals.control, totals.treatment) if arm.last_at_us is not None]
        if max(last, default=0) < cutoff_us:
            _delete_units_of(store, experiment, phase)


def _delete_units_of(store: ObservationStore, experiment: int, phase: int) -> None:
    n_deleted = 1
    while n_deleted:
        with store.write() as raw:
            last = raw.execute(
                f"SELECT unit FROM units WHERE experiment = ? AND phase = ? ORDER BY unit LIMIT 1 OFFSET {_AT_ONCE}",  # noqa: S608 (a number of our own)
                (experiment, phase),
            ).fetchone()
            statement = "DELETE FROM units WHERE experiment = ? AND phase = ?"
            if last:
                n_deleted = raw.execute(f"{statement} AND unit <= ?", (experiment, phase, last[0])).rowcount
            else:
                n_deleted = raw.execute(statement, (experiment, phase)).rowcount


def _used_bytes(store: ObservationStore) -> int:
    with store.read() as raw:
        return (_pragma(raw, "page_count") - _pragma(raw, "freelist_count")) * _pragma(raw, "page_size")


def _give_back(store: ObservationStore) -> None:
    while True:
        with store.read() as raw:
            n_free = _pragma(raw, "freelist_count")
        if n_free < _PAGES_AT_ONCE:
            return
        with store.write() as raw:
            raw.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()


def _pragma(raw: Any, name: str) -> int:
    return int(raw.execute(f"PRAGMA {name}").fetchone()[0])
