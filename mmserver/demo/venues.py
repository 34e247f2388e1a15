"""Example order-size thresholds: real turnover, scaled down by an invented share."""

import numpy as np

from mmserver.demo.market_data import MarketSeries

VENUE_SHARES = {"binance-futures": 1e-6, "okex-futures": 5e-7}
"""The share of a day's turnover that is taken for an order's size: invented, and an example only."""
MEDIUM_QUANTILE = 0.5
LARGE_QUANTILE = 0.9


def venue_rows(all_series: list[MarketSeries], share: float) -> list[dict[str, str | float]]:
    """One row for every series that has a volume, in the form of a venue's quantile file.

    Units:
        thresholds in close × volume × share, 0 < medium < large.
    """
    rows: list[dict[str, str | float]] = []
    for series in all_series:
        if series.volume is None:
            continue
        turnover = series.close * series.volume * share
        medium, large = np.quantile(turnover, [MEDIUM_QUANTILE, LARGE_QUANTILE])
        row: dict[str, str | float] = {"symbol": series.symbol}
        rows.append(row | {"medium_notional_threshold": float(medium), "large_notional_threshold": float(large)})
    return rows
