"""Shares: right predictions, wins, errors; their differences and intervals, at small counts and near zero too."""

import math
from dataclasses import dataclass

from mmserver.experiments.distributions import check_level, normal_isf, normal_sf
from mmserver.experiments.intervals import Interval


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of n trials had it; the zero of it is `Rate()`.

    Raises:
        ValueError: there cannot be so many of so many.
    """

    count: int = 0
    n: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.n:
            raise ValueError(f"{self.count} of {self.n} is no rate")

    def merge(self, other: "Rate") -> "Rate":
        """Both parts' trials together."""
        return Rate(self.count + other.count, self.n + other.n)

    @property
    def value(self) -> float | None:
        """The share; None without trials."""
        return self.count / self.n if self.n else None

    @property
    def smoothed(self) -> float:
        """(count + 1) / (n + 2): the share by which to judge the spread, so that no errors in ten calls are not certainty.

        Source:
            Laplace's rule of succession.
        """
        return (self.count + 1) / (self.n + 2)


@dataclass(frozen=True, slots=True)
class ZTest:
    """A statistic that is standard normal where nothing differs, and its two-sided p-value."""

    z: float
    p_value: float


def two_proportion_z(*, control: Rate, treatment: Rate) -> ZTest | None:
    """Whether two shares differ, by their pooled variance; None where all trials had it, none had, or an arm has none.

    Source:
        statsmodels `proportions_ztest`; its square is Pearson's chi-square of the 2 × 2 table.
    """
    if not control.n or not treatment.n:
        return None
    pooled = (control.count + treatment.count) / (control.n + treatment.n)
    variance = pooled * (1.0 - pooled) * (1.0 / control.n + 1.0 / treatment.n)
    return _z_test(treatment.count / treatment.n - control.count / control.n, variance)


def one_proportion_z(rate: Rate, *, expected: float) -> ZTest | None:
    """Whether a share is what was expected, by the variance of the share seen; None where that is zero.

    Source:
        statsmodels `proportions_ztest(count, nobs, value)`.
    """
    if not rate.n:
        return None
    seen = rate.count / rate.n
    return _z_test(seen - expected, seen * (1.0 - seen) / rate.n)


def _z_test(distance: float, variance: float) -> ZTest | None:
    if not variance > 0.0:
        return None
    z = distance / math.sqrt(variance)
    return ZTest(z, 2.0 * normal_sf(abs(z)))


def wilson_interval(rate: Rate, *, confidence: float = 0.95) -> Interval:
    """The score interval of one share; all of [0, 1] without trials.

    Source:
        Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    check_level("the confidence", confidence)
    if not rate.n:
        return Interval(0.0, 1.0)
    z2 = normal_isf((1.0 - confidence) / 2.0) ** 2
    share = rate.count / rate.n
    centre = (share + z2 / (2 * rate.n)) / (1.0 + z2 / rate.n)
    half = math.sqrt(z2 * (share * (1.0 - share) + z2 / (4 * rate.n)) / rate.n) / (1.0 + z2 / rate.n)
    # At 0 and n the score interval ends at 0 and 1 exactly; rounding must not say otherwise.
    lower = 0.0 if rate.count == 0 else max(centre - half, 0.0)
    return Interval(lower, 1.0 if rate.count == rate.n else min(centre + half, 1.0))


def newcombe_interval(*, control: Rate, treatment: Rate, confidence: float = 0.95) -> Interval:
    """The interval of treatment - control that is shown: right at small counts and near 0 and 1; [-1, 1] without trials.

    Source:
        Newcombe (1998), Interval estimation for the difference between independent proportions, method 10; statsmodels
        `confint_proportions_2indep(method="newcomb")`.
    """
    ours, theirs = wilson_interval(treatment, confidence=confidence), wilson_interval(control, confidence=confidence)
    if not control.n or not treatment.n:
        return Interval(-1.0, 1.0)
    treated, controlled = treatment.count / treatment.n, control.count / control.n
    difference = treated - controlled
    below = math.hypot(treated - ours.lower, theirs.upper - controlled)
    above = math.hypot(ours.upper - treated, controlled - theirs.lower)
    return Interval(max(difference - below, -1.0), min(difference + above, 1.0))
