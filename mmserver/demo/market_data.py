"""The daily market series that the `arch` package ships, as arrays; reading them needs no network."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmserver.errors import ExtraMissing

Floats = npt.NDArray[np.float64]
Days = npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class MarketSeries:
    """One daily series, oldest day first; days without a price are left out.

    Shapes:
        every array: n_days.

    Units:
        prices in index points, dollars a barrel (WTI) or volatility points (VIX); `volume` in shares.
        `open`, `high`, `low` and `volume` are None where the source has closes only.
    """

    symbol: str
    days: Days
    close: Floats
    open: Floats | None = None
    high: Floats | None = None
    low: Floats | None = None
    volume: Floats | None = None

    def between(self, first_day: np.datetime64, last_day: np.datetime64) -> "MarketSeries":
        """The days from `first_day` to `last_day`, both included."""
        kept = (self.days >= first_day) & (self.days <= last_day)
        columns = (self.open, self.high, self.low, self.volume)
        return MarketSeries(
            self.symbol, self.days[kept], self.close[kept], *(None if c is None else c[kept] for c in columns)
        )


def load_market_series() -> list[MarketSeries]:
    """S&P 500 and NASDAQ (1999–2018, with volume), WTI crude oil (1986–2019) and VIX (2014–2019).

    Raises:
        ExtraMissing: the packages of the extra `demo` are not installed.
    """
    try:
        from arch.data import nasdaq, sp500, vix, wti
    except ImportError as error:
        raise ExtraMissing(what="the demo", extra="demo") from error
    bars = ("Close", "Open", "High", "Low", "Volume")
    return [
        _series("SP500", sp500.load(), bars),
        _series("NASDAQ", nasdaq.load(), bars),
        _series("WTI", wti.load(), ("DCOILWTICO",)),
        _series("VIX", vix.load(), ("vix",)),
    ]


def _series(symbol: str, frame: object, columns: tuple[str, ...]) -> MarketSeries:
    kept = frame[list(columns)].dropna()  # type: ignore[index]
    days = kept.index.to_numpy().astype("datetime64[D]")
    return MarketSeries(symbol, days, *(kept[name].to_numpy(dtype=np.float64) for name in columns))
