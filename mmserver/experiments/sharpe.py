"""Sharpe ratios and how little is known of them: shown with their errors, never a reason to promote.

Ratios are per period of the returns given; annualise them last. A kurtosis is raw: 3 for normal returns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mmserver.experiments.comparisons import Difference
from mmserver.experiments.distributions import normal_cdf, normal_isf, student_sf
from mmserver.experiments.moments import CoMoments, Moments, finite_values

EULER_GAMMA = 0.5772156649015329


def sharpe_ratio(returns: Moments, *, ddof: int = 1) -> float | None:
    """Mean by standard deviation, per period; None for fewer than two returns, or where they do not vary.

    Args:
        ddof: 1 for the sample's deviation, 0 for that of the returns as they are.
    """
    if returns.n < 2 or not returns.m2:
        return None
    return returns.mean / math.sqrt(returns.m2 / (returns.n - ddof))


@dataclass(frozen=True, slots=True)
class Shape:
    """Skewness and raw kurtosis."""

    skew: float = 0.0
    kurtosis: float = 3.0


NORMAL_SHAPE = Shape()


def shape_of(returns: ArrayLike) -> Shape | None:
    """The moment estimates, without a correction for few returns; None where they do not vary.

    Raises:
        ValueError: a return is not finite.
    """
    array = finite_values(returns)
    if array.size < 2:
        return None
    distances = array - array.mean()
    scale = float(np.abs(distances).max())
    if not scale:
        return None
    # Of returns near 1e-5 the fourth powers alone would be 1e-20; as shares of the greatest they are near 1.
    distances /= scale
    variance = float((distances**2).mean())
    return Shape(float((distances**3).mean()) / variance**1.5, float((distances**4).mean()) / variance**2)


# --- one ratio ----------------------------------------------------------------------------------------------------------


def lo_standard_error(sharpe: float, n: int) -> float:
    """sqrt((1 + SR² / 2) / T), for independent normal returns.

    Source:
        Lo (2002), The statistics of Sharpe ratios.
    """
    return math.sqrt((1.0 + 0.5 * sharpe * sharpe) / _whole(n, 1))


def mertens_standard_error(sharpe: float, n: int, shape: Shape) -> float | None:
    """sqrt((1 - skew SR + (kurtosis - 1) / 4 SR²) / T), for independent returns; None where no returns have that shape.

    Source:
        Mertens (2002), Comments on variance of the IID estimator in Lo (2002).
    """
    variance = _shape_variance(sharpe, shape)
    return math.sqrt(variance / _whole(n, 1)) if variance > 0.0 else None


def bao_variance(sharpe: float, n: int) -> float:
    """(1 + z² / 2) / n + (19 z² / 8 + 2) / n²: the variance for few independent normal returns, z being the true ratio.

    Source:
        Bao (2009), Estimation risk-adjusted Sharpe ratio and fund performance ranking, eq. 4; SharpeR `sr_variance`.
    """
    _whole(n, 1)
    return (1.0 + sharpe**2 / 2.0) / n + (19.0 * sharpe**2 / 8.0 + 2.0) / n**2


def probabilistic_sharpe(sharpe: float, n: int, *, benchmark: float = 0.0, shape: Shape = NORMAL_SHAPE) -> float | None:
    """The probability that the true ratio is above the benchmark; None where no returns have that shape.

    Source:
        Bailey and López de Prado (2012), The Sharpe ratio efficient frontier.
    """
    variance = _shape_variance(sharpe, shape)
    if not variance > 0.0:
        return None
    return normal_cdf((sharpe - benchmark) * math.sqrt(_whole(n, 2) - 1) / math.sqrt(variance))


def expected_maximum_sharpe(*, n_trials: int, trials_variance: float) -> float:
    """The best ratio to be expected of n trials without any skill, whose ratios vary so much.

    Source:
        Bailey and López de Prado (2014), The deflated Sharpe ratio.
    """
    if not 0.0 <= trials_variance < math.inf:
        raise ValueError(f"the trials' variance is {trials_variance}; it must not be negative")
    if _whole(n_trials, 1) == 1:
        return 0.0
    near, far = normal_isf(1.0 / n_trials), normal_isf(1.0 / (n_trials * math.e))
    return math.sqrt(trials_variance) * ((1.0 - EULER_GAMMA) * near + EULER_GAMMA * far)


def deflated_sharpe(
    sharpe: float, n: int, *, n_trials: int, trials_variance: float, shape: Shape = NORMAL_SHAPE
) -> float | None:
    """The probability that the true ratio of the best of n trials is above what luck alone would have chosen.

    Source:
        Bailey and López de Prado (2014), The deflated Sharpe ratio.
    """
    benchmark = expected_maximum_sharpe(n_trials=n_trials, trials_variance=trials_variance)
    return probabilistic_sharpe(sharpe, n, benchmark=benchmark, shape=shape)


def annualising_factor(periods: int, autocorrelations: Sequence[float] = ()) -> float | None:
    """What a ratio is multiplied by to be one of `periods` periods: sqrt(periods) only where returns do not resemble.

    Args:
        autocorrelations: of lag 1, 2, …; those that are missing are taken to be zero.

    Returns:
        None where no returns have such autocorrelations.

    Source:
        Lo (2002): eta(q) = q / sqrt(q + 2 sum over k < q of (q - k) rho_k).
    """
    _whole(periods, 1)
    used = list(autocorrelations)[: periods - 1]
    radicand = periods + 2.0 * math.fsum((periods - lag) * rho for lag, rho in enumerate(used, 1))
    return periods / math.sqrt(radicand) if radicand > 0.0 else None


def autocorrelations_of(returns: ArrayLike, *, n_lags: int) -> list[float]:
    """Of lags 1 to n_lags (fewer for fewer returns), each by the variance of all; none where returns do not vary."""
    array = finite_values(returns)
    distances = array - array.mean() if array.size else array
    whole = float(np.dot(distances, distances))
    if not whole:
        return []
    last = min(n_lags, array.size - 1)
    return [float(np.dot(distances[lag:], distances[:-lag])) / whole for lag in range(1, last + 1)]


def _shape_variance(sharpe: float, shape: Shape) -> float:
    return 1.0 - shape.skew * sharpe + 0.25 * (shape.kurtosis - 1.0) * sharpe * sharpe


def _whole(n: int, least: int) -> int:
    if n < least:
        raise ValueError(f"there are {n} of them; at least {least} are needed")
    return n


# --- two ratios ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SharpeDifference:
    """Treatment minus control, per period, with Student's statistic and its two-sided p-value."""

    difference: Difference
    t: float
    p_value: float


def paired_sharpe_difference(pairs: CoMoments) -> SharpeDifference | None:
    """Of returns of both arms over the same periods, x being the control's; None where one does not vary, or both are one.

    Independent normal returns are assumed; real ones resemble their neighbours, so prefer the bootstrap.

    Source:
        Jobson and Korkie (1981) as Memmel (2003) corrected: V = (2 (1 - r) + (S1² + S2² - 2 S1 S2 r²) / 2) / T, deviations
        with ddof 0, t with T - 1 degrees of freedom.
    """
    control, treatment = sharpe_ratio(pairs.x, ddof=0), sharpe_ratio(pairs.y, ddof=0)
    r = pairs.correlation
    if control is None or treatment is None or r is None:
        return None
    variance = 2.0 * (1.0 - r) + 0.5 * (control**2 + treatment**2 - 2.0 * control * treatment * r * r)
    # Copies of one series differ in the last digits of r only.
    if variance <= 1e-12:
        return None
    return _sharpe_difference(treatment - control, variance / pairs.n, pairs.n, pairs.n - 1.0)


def independent_sharpe_difference(*, control: Moments, treatment: Moments) -> SharpeDifference | None:
    """Of arms that traded apart: the squares of Lo's errors add up; None where an arm's returns do not vary."""
    ours, theirs = sharpe_ratio(treatment), sharpe_ratio(control)
    if ours is None or theirs is None:
        return None
    variance = lo_standard_error(ours, treatment.n) ** 2 + lo_standard_error(theirs, control.n) ** 2
    n = control.n + treatment.n
    return _sharpe_difference(ours - theirs, variance, n, n - 2.0)


def _sharpe_difference(estimate: float, variance: float, n: int, freedom: float) -> SharpeDifference:
    difference = Difference(estimate, math.sqrt(variance), n, freedom)
    t = estimate / difference.standard_error
    return SharpeDifference(difference, t, 2.0 * student_sf(abs(t), freedom))
