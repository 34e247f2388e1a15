"""What one arm of an experiment did, as it is shown; what is undefined is None, never zero."""

import math
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile

import msgspec

from mmserver.experiments.latencies import PercentileDefinition
from mmserver.experiments.moments import Moments
from mmserver.experiments.sharpe import annualising_factor, autocorrelations_of, lo_standard_error, sharpe_ratio
from mmserver.experiments.totals import ArmTotals, RatioMoments

CLASSES = ("HOLD", "BUY", "SELL")
"""In the order of the direction codes."""
MAX_LAGS = 5
"""Days whose resemblance counts when a Sharpe ratio is annualised: a week of trading."""
US_PER_S = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC).date()


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """Of one class against all others."""

    precision: float | None
    recall: float | None
    f1: float | None
    n_actual: int
    n_predicted: int


class SharpeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The Sharpe ratio of the days' average returns and how little is known of it; no reason to promote, ever.

    Fields:
        ratio, standard_error: per day (Lo, 2002, for independent normal returns). annualised, annualised_standard_error: by
            the square root of the policy's periods_per_year, and where days resemble those before them by Lo's eta instead.
    """

    n_days: int
    ratio: float | None = None
    standard_error: float | None = None
    annualised: float | None = None
    annualised_standard_error: float | None = None


class ArmReport(msgspec.Struct, frozen=True, kw_only=True):
    """One arm, over all phases.

    Units:
        accuracy, precision, recall, f1, win_rate and error_rate are shares; returns are those of positions, 0.01 is one per
        cent; throughput_per_s is of predictions, from the first to the last.

    Fields:
        precision, recall, f1: the mean over the classes of which they are defined. total_return is that of an arm with its
            own number of predictions: compare averages, not totals.
        average_return: per matured prediction; HOLD counts as 0.
    """

    n_units: int
    n_units_matured: int
    n_predictions: int
    n_matured: int
    accuracy: float | None
    accuracy_standard_error: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    by_class: dict[str, ClassReport]
    win_rate: float | None
    n_positions: int
    average_return: float | None
    total_return: float
    sharpe: SharpeReport
    average_latency_ms: float | None
    p50_latency_ms: float | None
    p95_latency_ms: float | None
    percentile_definition: PercentileDefinition
    error_rate: float | None
    n_errors: int
    throughput_per_s: float | None


def arm_report(arm: ArmTotals, *, periods_per_year: int) -> ArmReport:
    """Report on one arm."""
    macro = arm.labels.macro
    return ArmReport(
        n_units=arm.n_units,
        n_units_matured=arm.n_units_matured,
        n_predictions=arm.n_predictions,
        n_matured=arm.n_matured,
        accuracy=arm.accuracy.ratio,
        accuracy_standard_error=standard_error(arm.accuracy),
        precision=macro.precision,
        recall=macro.recall,
        f1=macro.f1,
        by_class={
            name: ClassReport(
                precision=scores.precision,
                recall=scores.recall,
                f1=scores.f1,
                n_actual=scores.n_actual,
                n_predicted=scores.n_predicted,
            )
            for name, scores in zip(CLASSES, arm.labels.scores, strict=True)
        },
        win_rate=arm.wins.value,
        n_positions=arm.wins.n,
        average_return=arm.returns.ratio,
        total_return=arm.returns.y,
        sharpe=_sharpe(arm, periods_per_year),
        average_latency_ms=arm.latency.ratio,
        p50_latency_ms=arm.latencies.p50_ms,
        p95_latency_ms=arm.latencies.p95_ms,
        percentile_definition="nearest_rank",
        error_rate=arm.errors.ratio,
        n_errors=round(arm.errors.y),
        throughput_per_s=_throughput(arm),
    )


def daily_returns(arm: ArmTotals) -> dict[int, float]:
    """The average return of each day that has one, in the order of the days."""
    return {day: sums.total_return / sums.n_returns for day, sums in sorted(arm.days.items()) if sums.n_returns}


def day_of(number: int) -> date:
    """The date of so many whole days since the epoch."""
    return EPOCH + timedelta(days=number)


def standard_error(sums: RatioMoments) -> float | None:
    """Of sum(y) / sum(x), over units; None for fewer than two."""
    ratio = sums.ratio
    if ratio is None or sums.n < 2:
        return None
    units = sums.pairs
    error = units.adjusted(ratio).standard_error
    return None if error is None else error / abs(units.mean_x)


def _sharpe(arm: ArmTotals, periods_per_year: int) -> SharpeReport:
    returns = list(daily_returns(arm).values())
    days = Moments.from_values(returns)
    ratio = sharpe_ratio(days)
    if ratio is None:
        return SharpeReport(n_days=days.n)
    error = lo_standard_error(ratio, days.n)
    factor = annualising_factor(periods_per_year, _resemblance(returns))
    return SharpeReport(
        n_days=days.n,
        ratio=ratio,
        standard_error=error,
        annualised=None if factor is None else factor * ratio,
        annualised_standard_error=None if factor is None else factor * error,
    )


def _resemblance(returns: list[float]) -> list[float]:
    """The autocorrelations of the first lags, as far as they stand out: those that chance makes would sway a year by half."""
    found = autocorrelations_of(returns, n_lags=MAX_LAGS)
    limit = 2.0 / math.sqrt(len(returns))
    return list(takewhile(lambda rho: abs(rho) > limit, found))


def _throughput(arm: ArmTotals) -> float | None:
    if arm.first_at_us is None or arm.last_at_us is None or arm.last_at_us <= arm.first_at_us:
        return None
    return arm.n_predictions / ((arm.last_at_us - arm.first_at_us) / US_PER_S)
