"""Factors of a daily series: what was known at the close of each day, and nothing later."""

import numpy as np

from mmserver.demo.market_data import Floats, MarketSeries

MOMENTUM_DAYS = (1, 2, 3, 5, 10, 20, 60)
VOLATILITY_DAYS = (5, 10, 20, 60)
AVERAGE_DAYS = (10, 20, 50)


def factor_columns(series: MarketSeries) -> dict[str, Floats]:
    """Every factor that the series has the columns for, by name; the order is the models' input order.

    Shapes:
        every array: n_days; NaN in the first days, where the look-back is not full yet.

    Units:
        momentum, gaps and ranges are log ratios; volatilities are standard deviations of daily log returns;
        `rsi_14d` in [0, 100]; `close_in_range` in [0, 1]; `volume_z_20d` in standard deviations.
    """
    log_close = np.log(series.close)
    returns = _change(log_close, 1)
    columns = {f"mom_{n}d": _change(log_close, n) for n in MOMENTUM_DAYS}
    columns |= {f"vol_{n}d": _rolling(returns, n).std(axis=1) for n in VOLATILITY_DAYS}
    columns |= {f"ma_gap_{n}d": log_close - np.log(_rolling(series.close, n).mean(axis=1)) for n in AVERAGE_DAYS}
    columns["vol_ratio_5_60"] = _ratio(columns["vol_5d"], columns["vol_60d"])
    columns["rsi_14d"] = _rsi(returns, 14)
    columns["skew_60d"] = _skew(_rolling(returns, 60))
    columns["drawdown_60d"] = log_close - np.log(_rolling(series.close, 60).max(axis=1))
    columns["runup_60d"] = log_close - np.log(_rolling(series.close, 60).min(axis=1))
    return columns | _bar_factors(series) | _volume_factors(series, returns)


def forward_return(series: MarketSeries, horizon_days: int) -> Floats:
    """Log return from the close of each day to the close `horizon_days` later; NaN for the last days."""
    log_close = np.log(series.close)
    ahead = np.full_like(log_close, np.nan)
    ahead[:-horizon_days] = log_close[horizon_days:] - log_close[:-horizon_days]
    return ahead


def _bar_factors(series: MarketSeries) -> dict[str, Floats]:
    if series.open is None or series.high is None or series.low is None:
        return {}
    spread = np.log(series.high / series.low)
    gap = np.full_like(spread, np.nan)
    gap[1:] = np.log(series.open[1:] / series.close[:-1])
    return {
        "range_1d": spread,
        "range_20d": _rolling(spread, 20).mean(axis=1),
        "gap_open": gap,
        "body_1d": np.log(series.close / series.open),
        "close_in_range": _ratio(series.close - series.low, series.high - series.low),
    }


def _volume_factors(series: MarketSeries, returns: Floats) -> dict[str, Floats]:
    if series.volume is None:
        return {}
    log_volume = np.log(np.where(series.volume > 0, series.volume, np.nan))
    windows = _rolling(log_volume, 20)
    signed = np.sign(returns) * series.volume
    return {
        "volume_z_20d": _ratio(log_volume - windows.mean(axis=1), windows.std(axis=1)),
        "volume_mom_5d": _change(log_volume, 5),
        "signed_volume_10d": _ratio(_rolling(signed, 10).sum(axis=1), _rolling(series.volume, 10).sum(axis=1)),
    }


def _change(values: Floats, n_days: int) -> Floats:
    changed = np.full_like(values, np.nan)
    changed[n_days:] = values[n_days:] - values[:-n_days]
    return changed


def _rolling(values: Floats, n_days: int) -> Floats:
    """n_days columns: each row ends with its own day; rows whose look-back is not full are NaN."""
    padded = np.concatenate([np.full(n_days - 1, np.nan), values])
    return np.lib.stride_tricks.sliding_window_view(padded, n_days)


def _rsi(returns: Floats, n_days: int) -> Floats:
    """Cutler's relative strength index: plain averages, so that a value depends on its window only."""
    gains = _rolling(np.maximum(returns, 0), n_days).mean(axis=1)
    losses = _rolling(np.maximum(-returns, 0), n_days).mean(axis=1)
    return 100 * _ratio(gains, gains + losses)


def _skew(windows: Floats) -> Floats:
    centred = windows - windows.mean(axis=1, keepdims=True)
    return _ratio((centred**3).mean(axis=1), windows.std(axis=1) ** 3)


def _ratio(above: Floats, below: Floats) -> Floats:
    """above / below, NaN where below is 0."""
    return above / np.where(below == 0, np.nan, below)
