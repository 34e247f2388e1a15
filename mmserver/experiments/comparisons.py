"""How two arms differ, and the tests that are valid once, at the end that was planned; `sequences` has those for any time.

Every comparison is treatment minus control. None is returned where the numbers say nothing: fewer than two units in an
arm, no spread at all, a control so near zero that a ratio to it means nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mmserver.experiments.distributions import check_level, chi_square_sf, student_isf, student_sf
from mmserver.experiments.intervals import Interval
from mmserver.experiments.moments import CoMoments, Moments, finite_values
from mmserver.experiments.rates import Rate

MIN_CONTROL_Z = 2.0
"""How many standard errors the control's mean must be from zero for a relative difference.

Nearer than 1.96, Fieller's interval of the ratio is unbounded: any relative difference would fit the data.
"""
MCNEMAR_EXACT_BELOW = 25
"""Discordant pairs below which the exact binomial test stands in for the chi-square."""


@dataclass(frozen=True, slots=True)
class Difference:
    """An estimate of treatment - control, its standard error, and the units of both arms together that it rests on.

    Raises:
        ValueError: the estimate is not finite or the standard error not above zero.
    """

    estimate: float
    standard_error: float
    n: int
    degrees_of_freedom: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.estimate) and 0.0 < self.standard_error < math.inf and self.n > 0):
            raise ValueError(f"no difference is {self.estimate} with standard error {self.standard_error}, n={self.n}")


def mean_difference(*, control: Moments, treatment: Moments, control_factor: float = 1.0) -> Difference | None:
    """mean(treatment) - control_factor × mean(control), with unequal variances.

    Args:
        control_factor: 1.5 asks whether the treatment is above one and a half times the control.

    Source:
        Welch (1947); Satterthwaite (1946) for the degrees of freedom.
    """
    if control.n < 2 or treatment.n < 2:
        return None
    parts = (
        control_factor**2 * control.m2 / (control.n - 1) / control.n,
        treatment.m2 / (treatment.n - 1) / treatment.n,
    )
    return _difference(treatment.mean - control_factor * control.mean, parts, control.n, treatment.n)


def relative_difference(*, control: Moments, treatment: Moments) -> Difference | None:
    """(mean(treatment) - mean(control)) / |mean(control)|, by the delta method; None where the control is about zero.

    Units:
        a share: 0.02 is two per cent of the control's mean.

    Source:
        variance vT / (nT mC²) + vC mT² / (nC mC⁴), degrees of freedom as of the absolute difference; gbstats, Welch's test
        of relative differences.
    """
    absolute = mean_difference(control=control, treatment=treatment)
    spread = control.standard_error
    if absolute is None or spread is None or abs(control.mean) <= MIN_CONTROL_Z * spread or not control.mean:
        return None
    ratio = treatment.mean / control.mean
    error = math.hypot(treatment.standard_error or 0.0, ratio * spread) / abs(control.mean)
    estimate = (treatment.mean - control.mean) / abs(control.mean)
    if not (math.isfinite(estimate) and 0.0 < error < math.inf):
        return None
    return Difference(estimate, error, absolute.n, absolute.degrees_of_freedom)


def rate_difference(
    *, control: Rate, treatment: Rate, control_factor: float = 1.0, smoothed: bool = True
) -> Difference | None:
    """share(treatment) - control_factor × share(control); its variance is that of (count + 1) / (n + 2).

    Args:
        smoothed: False takes the variance of the shares as they are, with which an arm without any error looks certain.
    """
    if not control.n or not treatment.n:
        return None
    ours = treatment.smoothed if smoothed else treatment.count / treatment.n
    theirs = control.smoothed if smoothed else control.count / control.n
    parts = (control_factor**2 * theirs * (1.0 - theirs) / control.n, ours * (1.0 - ours) / treatment.n)
    estimate = treatment.count / treatment.n - control_factor * control.count / control.n
    return _difference(estimate, parts, control.n, treatment.n)


def ratio_difference(
    *, control: CoMoments, treatment: CoMoments, control_factor: float = 1.0, is_rate: bool = False
) -> Difference | None:
    """sum(y) / sum(x) of the treatment less control_factor times that of the control, over units of unequal size.

    For what is counted by prediction but randomised by something larger: with `symbol|time-block`, x is how many
    predictions a block had and y how many of them were right. Predictions within a unit may resemble each other as they like.

    Args:
        is_rate: y counts some of x; no arm's variance is then taken to be below that of x independent trials with the
            share (y + 1) / (x + 2), so that blocks without any error are not certainty.

    Source:
        Deng, Knoblich, Lu (2018), Applying the delta method in metric analytics; gbstats `RatioStatistic`.
    """
    ours, theirs = _ratio_variance(treatment, is_rate=is_rate), _ratio_variance(control, is_rate=is_rate)
    if ours is None or theirs is None:
        return None
    estimate = treatment.mean_y / treatment.mean_x - control_factor * control.mean_y / control.mean_x
    return _difference(estimate, (control_factor**2 * theirs, ours), control.n, treatment.n)


def _ratio_variance(units: CoMoments, *, is_rate: bool) -> float | None:
    """Of sum(y) / sum(x), as of the mean of (y - ratio x) / mean(x)."""
    if units.n < 2 or not units.mean_x > 0.0:
        return None
    variance = units.adjusted(units.mean_y / units.mean_x).m2 / (units.n - 1) / units.n / units.mean_x**2
    if not is_rate:
        return variance
    rate = Rate(round(units.y.total), round(units.x.total))
    return max(variance, rate.smoothed * (1.0 - rate.smoothed) / rate.n)


def paired_difference(differences: Moments) -> Difference | None:
    """The mean of treatment - control over the same units, scored by both."""
    error = differences.standard_error
    return Difference(differences.mean, error, differences.n, differences.n - 1.0) if error else None


def autocorrelated_difference(differences: ArrayLike, *, lag: int) -> Difference | None:
    """The mean of treatment - control over consecutive blocks that resemble their neighbours: give a lag >= the horizon.

    Source:
        Newey and West (1987), Bartlett weights, without a small-sample correction; statsmodels OLS `cov_type="HAC"`.
    """
    array = finite_values(differences)
    if lag < 0:
        raise ValueError(f"the lag is {lag}; it must not be negative")
    if array.size < 2:
        return None
    distances = array - array.mean()
    long_run = float(np.dot(distances, distances))
    for step in range(1, min(lag, array.size - 1) + 1):
        long_run += 2.0 * (1.0 - step / (lag + 1.0)) * float(np.dot(distances[step:], distances[:-step]))
    if not long_run > 0.0:
        return None
    return Difference(float(array.mean()), math.sqrt(long_run) / array.size, array.size, array.size - 1.0)


def _difference(estimate: float, variances: tuple[float, float], n_control: int, n_treatment: int) -> Difference | None:
    whole = sum(variances)
    if not 0.0 < whole < math.inf:
        return None
    below = 0.0
    for variance, n in zip(variances, (n_control, n_treatment), strict=True):
        # As shares of the whole, so that variances of 1e-200 do not vanish when squared.
        below += (variance / whole) ** 2 / (n - 1) if n > 1 else 0.0
    return Difference(estimate, math.sqrt(whole), n_control + n_treatment, 1.0 / below if below else 1.0)


# --- the t-test ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TTest:
    """Student's statistic, its two-sided p-value, and the interval of the difference at 1 - alpha."""

    t: float
    p_value: float
    interval: Interval


def welch_test(difference: Difference, *, alpha: float = 0.05, null: float = 0.0) -> TTest:
    """The two-sided t-test of a difference, valid at one planned look only."""
    check_level("alpha", alpha)
    t = (difference.estimate - null) / difference.standard_error
    half = student_isf(alpha / 2.0, difference.degrees_of_freedom) * difference.standard_error
    p_value = 2.0 * student_sf(abs(t), difference.degrees_of_freedom)
    return TTest(t, p_value, Interval(difference.estimate - half, difference.estimate + half))


# --- counts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChiSquareTest:
    """A chi-square statistic and its p-value; `is_exact` where the p-value is the exact binomial one instead."""

    statistic: float
    p_value: float
    degrees_of_freedom: int = 1
    is_exact: bool = False


def sample_ratio_mismatch(counts: Sequence[int], weights: Sequence[float]) -> ChiSquareTest | None:
    """Whether the arms got the shares of units that the configured weights say; None before the first unit.

    Arms of weight zero are no arms: they cost no degree of freedom. A unit in one of them is impossible, so p is 0.

    Args:
        counts: randomised units in each arm, not predictions. weights: as configured; only their ratios matter.

    Raises:
        ValueError: a count or weight is negative or not a number, no two of them belong together, or no arm has a weight.

    Source:
        Pearson's goodness of fit, degrees of freedom one less than the active arms; Fabijan et al. (2019) on sample ratios.
    """
    if len(counts) != len(weights):
        raise ValueError(f"{len(counts)} counts and {len(weights)} weights do not belong together")
    if not all(count >= 0 for count in counts) or not all(0.0 <= weight < math.inf for weight in weights):
        raise ValueError(f"counts {list(counts)} and weights {list(weights)} must not be negative")
    whole, weight_sum = sum(counts), math.fsum(weights)
    if not weight_sum:
        raise ValueError("weights of zero only are no shares")
    active = [(count, weight / weight_sum) for count, weight in zip(counts, weights, strict=True) if weight > 0.0]
    if not whole:
        return None
    freedom = len(active) - 1
    if sum(count for count, _ in active) < whole:
        return ChiSquareTest(math.inf, 0.0, freedom)
    statistic = math.fsum((count - whole * share) ** 2 / (whole * share) for count, share in active)
    return ChiSquareTest(statistic, chi_square_sf(statistic, freedom) if freedom else 1.0, freedom)


def mcnemar(*, only_control: int, only_treatment: int) -> ChiSquareTest | None:
    """Whether one of two models is right more often, from the cases where exactly one is; None where there are none.

    Source:
        McNemar (1947), (b - c)² / (b + c) without correction; the exact binomial test below 25 discordant pairs.
    """
    discordant = only_control + only_treatment
    if only_control < 0 or only_treatment < 0:
        raise ValueError(f"counts {only_control} and {only_treatment} must not be negative")
    if not discordant:
        return None
    statistic = (only_control - only_treatment) ** 2 / discordant
    if discordant >= MCNEMAR_EXACT_BELOW:
        return ChiSquareTest(statistic, chi_square_sf(statistic, 1))
    fewer = min(only_control, only_treatment)
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1)) / 2**discordant
    return ChiSquareTest(statistic, min(1.0, 2.0 * tail), is_exact=True)


# --- variance taken out by what was known before -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cuped:
    """A difference after what a covariate explains is taken out of both arms, and the slope that took it out."""

    theta: float
    difference: Difference

    @property
    def variance(self) -> float:
        """Of the adjusted difference."""
        return self.difference.standard_error**2


def cuped_difference(*, control: CoMoments, treatment: CoMoments) -> Cuped | None:
    """The difference of y, adjusted by a covariate x that no arm can have changed; None where x is constant.

    x is known before the unit was exposed, or is what the control model, scoring in the shadow, would have got there.

    Source:
        Deng, Xu, Kohavi, Walker (2013); theta = cov(y, x) / var(x) over the units of both arms together.
    """
    together = control.merge(treatment)
    if not together.m2_x:
        return None
    theta = together.c_xy / together.m2_x
    adjusted = mean_difference(control=control.adjusted(theta), treatment=treatment.adjusted(theta))
    return Cuped(theta, adjusted) if adjusted else None
