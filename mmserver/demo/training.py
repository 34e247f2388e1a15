"""Training one small model on a past window and judging it on the days after that, never the same ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmserver.demo.factors import factor_columns, forward_return
from mmserver.demo.market_data import Floats, MarketSeries
from mmserver.errors import ExtraMissing

HORIZON_DAYS = 5
RETURN_NAME = f"ret_{HORIZON_DAYS}d"
TEST_SHARE = 0.2
"""The last fifth of the days is never trained on."""
PARAMS = {
    "objective": "reg:squarederror",
    "n_estimators": 120,
    "max_depth": 4,
    "learning_rate": 0.03,
    "subsample": 0.7,
    "colsample_bytree": 0.7,
    "min_child_weight": 20,
    "random_state": 7,
    "n_jobs": 1,
    "tree_method": "hist",
}


@dataclass(frozen=True)
class FactorIc:
    """How one factor went with the return over the training days; NaN where the factor was constant."""

    factor: str
    ic: float
    rank_ic: float
    kendall_tau: float
    p_value: float
    n: int


@dataclass(frozen=True)
class TrainedGroup:
    """One group as it is written: `model` is the fitted XGBRegressor, `info` a plain dict."""

    group_key: str
    factors: list[str]
    ic_rows: list[FactorIc]
    info: dict[str, Any]
    model: Any


def train_group(series: MarketSeries) -> TrainedGroup:
    """Train on the first four fifths of the days and measure on the rest.

    The last HORIZON_DAYS days before the test days are left out of the training: their returns reach into the test.

    Units:
        info["metrics"]: `ic` and `rank_ic` in [-1, 1], `hit_rate` in [0, 1], `rmse` and `residual_std` in log return.

    Raises:
        ExtraMissing: the packages of the extra `demo` are not installed.
    """
    columns = factor_columns(series)
    returns = forward_return(series, HORIZON_DAYS)
    inputs = np.column_stack(list(columns.values()))
    usable = np.flatnonzero(np.isfinite(inputs).all(axis=1) & np.isfinite(returns))
    train_rows, test_rows = split_rows(usable)
    model = _regressor()
    model.fit(inputs[train_rows], returns[train_rows])
    model.get_booster().feature_names = list(columns)
    predicted = np.asarray(model.get_booster().inplace_predict(inputs[test_rows]), dtype=np.float64)
    return TrainedGroup(
        group_key=f"{series.symbol}_{RETURN_NAME}",
        factors=list(columns),
        ic_rows=[_factor_ic(name, columns[name][train_rows], returns[train_rows]) for name in columns],
        info=_info(series, len(columns), train_rows, test_rows, _metrics(predicted, returns[test_rows])),
        model=model,
    )


def _regressor() -> Any:
    """Fresh and untrained; making one raises ImportError where scikit-learn is missing."""
    try:
        from xgboost import XGBRegressor

        return XGBRegressor(**PARAMS)
    except ImportError as error:
        raise ExtraMissing(what="the demo", extra="demo") from error


def split_rows(usable: np.ndarray[Any, np.dtype[np.intp]]) -> tuple[Any, Any]:
    """The row numbers to train on and those to test on: later ones, a whole horizon apart."""
    first_test = usable[int(len(usable) * (1 - TEST_SHARE))]
    return usable[usable + HORIZON_DAYS < first_test], usable[usable >= first_test]


def _factor_ic(name: str, factor: Floats, returns: Floats) -> FactorIc:
    from scipy import stats

    if np.ptp(factor) == 0:
        return FactorIc(name, np.nan, np.nan, np.nan, np.nan, len(factor))
    tau = stats.kendalltau(factor, returns)
    ic = float(np.corrcoef(factor, returns)[0, 1])
    rank_ic = float(stats.spearmanr(factor, returns).statistic)
    return FactorIc(name, ic, rank_ic, float(tau.statistic), float(tau.pvalue), len(factor))


def _metrics(predicted: Floats, realized: Floats) -> dict[str, float]:
    from scipy import stats

    residuals = realized - predicted
    return {
        "ic": float(np.corrcoef(predicted, realized)[0, 1]),
        "rank_ic": float(stats.spearmanr(predicted, realized).statistic),
        "hit_rate": float(np.mean(np.sign(predicted) == np.sign(realized))),
        "rmse": float(np.sqrt(np.mean(residuals**2))),
        "residual_std": float(np.std(residuals)),
    }


def _info(series: MarketSeries, dim: int, train_rows: Any, test_rows: Any, metrics: dict[str, float]) -> dict[str, Any]:
    import xgboost

    return {
        "symbol": series.symbol,
        "return_name": RETURN_NAME,
        "dim": dim,
        "train_start": str(series.days[train_rows[0]]),
        "train_end": str(series.days[train_rows[-1]]),
        "train_samples": len(train_rows),
        "test_start": str(series.days[test_rows[0]]),
        "test_end": str(series.days[test_rows[-1]]),
        "test_samples": len(test_rows),
        "metrics": metrics,
        "params": dict(PARAMS),
        "xgboost_version": xgboost.__version__,
        "note": "An example, trained by mmserver demo on daily data of the arch package; metrics are of the test days. "
        f"Returns over {HORIZON_DAYS} days overlap, so p_value in the IC table is smaller than it should be.",
    }
