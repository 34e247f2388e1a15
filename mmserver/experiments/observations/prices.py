"""Outcomes from prices: what a symbol made over each prediction's horizon, from the last prices at its start and at its end.

A prediction is priced once a price at or after the end of its horizon is known, so that no price before it is still to come.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from mmserver.experiments.observations.dead_bands import DeadBands
from mmserver.experiments.observations.outcomes import SKEW_S, Checked, add_checked
from mmserver.experiments.observations.reports import OutcomeReport, PriceReport
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.tables import insert_rows
from mmserver.experiments.observations.values import Price, is_finite_number

MAX_AGE_S = 300.0
"""How old the last price may be, at the start and at the end of a horizon."""
_AT_ONCE = 5000


def add_prices(
    store: ObservationStore,
    prices: Iterable[Price],
    *,
    flush: Callable[[], None],
    now: float,
    dead_bands: DeadBands | None = None,
    max_age_s: float = MAX_AGE_S,
) -> PriceReport:
    """Add prices, in any order, and the outcomes that they give: realised returns, and labels where there are dead bands.

    A price that comes late is used for predictions that still have no return; a return that is there stays.

    Args:
        flush: moves what waits in journals; called once.
        now: the wall clock, seconds since the epoch.

    Raises:
        DatabaseBusy, DiskFull, ObservationsCorrupt, WritesStopped: what came before in the call is added; send it again whole.
    """
    report = PriceReport()
    flush()
    symbols: set[str] = set()
    indexed = enumerate(prices)
    while some := list(islice(indexed, _AT_ONCE)):
        rows = list(_checked(some, now, report))
        if not rows:
            continue
        with store.write() as raw:
            _insert(raw, rows)
        report.n_prices += len(rows)
        symbols.update(symbol for symbol, _, _ in rows)
    for symbol in sorted(symbols):
        while _price_some(store, symbol, report, now=now, dead_bands=dead_bands, max_age_us=int(max_age_s * 1e6)):
            pass
    return report


def _checked(prices: Sequence[tuple[int, Price]], now: float, report: PriceReport) -> Iterator[tuple[str, int, float]]:
    for place, price in prices:
        reason = None
        if not isinstance(price.symbol, str) or not price.symbol:
            reason = "it has no symbol"
        elif not is_finite_number(price.price) or price.price <= 0:
            reason = f"the price {str(price.price)[:50]} is not a positive number"
        elif not is_finite_number(price.at) or price.at < 0:
            reason = f"the time {str(price.at)[:50]} is not seconds since the epoch"
        elif price.at > now + SKEW_S:
            reason = f"its time is {price.at - now:.0f} s ahead of the clock; send it again then"
        if reason:
            report.refuse(place, str(price.symbol)[:100], reason)
        else:
            yield price.symbol, int(min(price.at, now) * 1e6), float(price.price)


def _insert(raw: Any, rows: Sequence[tuple[str, int, float]]) -> None:
    insert_rows(raw, "prices", ("symbol", "at_us", "price"), rows, verb="INSERT OR REPLACE")
    earliest: dict[str, int] = {}
    for symbol, at_us, _ in rows:
        earliest[symbol] = min(at_us, earliest.get(symbol, at_us))
    # Whatever ends after a price may be priced by it, though it was tried before.
    raw.executemany(
        "INSERT INTO priced_symbols VALUES (?1, 0) "
        "ON CONFLICT (symbol) DO UPDATE SET priced_until_us = min(priced_until_us, ?2 - 1)",
        list(earliest.items()),
    )


_OPEN = """
FROM predictions LEFT JOIN outcomes ON outcomes.prediction = predictions.id
WHERE symbol = ?1 AND due_us > ?2 AND due_us <= ?3 AND due_us > predictions.at_us AND error IS NULL
  AND outcomes.realized_return IS NULL
"""
_LAST_PRICE = (
    "(SELECT price FROM prices WHERE prices.symbol = predictions.symbol "
    "AND prices.at_us <= {0} AND prices.at_us >= {0} - ?4 ORDER BY prices.at_us DESC LIMIT 1)"
)
_PRICED = (
    f"SELECT prediction_id, due_us, {_LAST_PRICE.format('predictions.at_us')}, "
    f"{_LAST_PRICE.format('due_us')} {_OPEN} ORDER BY due_us"
)


def _price_some(
    store: ObservationStore,
    symbol: str,
    report: PriceReport,
    *,
    now: float,
    dead_bands: DeadBands | None,
    max_age_us: int,
) -> bool:
    """Price the next predictions of a symbol; False where all are done."""
    with store.write() as raw:
        (since,) = raw.execute("SELECT priced_until_us FROM priced_symbols WHERE symbol = ?", (symbol,)).fetchone()
        (until,) = raw.execute("SELECT max(at_us) FROM prices WHERE symbol = ?", (symbol,)).fetchone()
        later = raw.execute(
            f"SELECT due_us {_OPEN} ORDER BY due_us LIMIT 1 OFFSET {_AT_ONCE}", (symbol, since, until)
        ).fetchone()
        target = max(since, later[0] if later else until)
        rows = raw.execute(_PRICED, (symbol, since, target, max_age_us)).fetchall()
        checked = []
        for prediction_id, due_us, start, end in rows:
            if start is None or end is None:
                report.n_unpriced += 1
                continue
            checked.append(Checked(0, prediction_id, None, end / start - 1.0, due_us))
        outcomes = OutcomeReport()
        add_checked(raw, checked, outcomes, now=now, dead_bands=dead_bands)
        raw.execute("UPDATE priced_symbols SET priced_until_us = ? WHERE symbol = ?", (target, symbol))
    report.n_outcomes += outcomes.n_accepted
    return later is not None
