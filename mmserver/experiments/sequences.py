"""Bounds that hold at every look at once: look as often as you like, act at the first that convinces.

`n` is the units of both arms together, and `n_star` the number of them at which the bounds are tightest: plan it, fix it
when the experiment starts, and never move it while it runs. All functions take numbers or arrays of them, for simulations.

Source:
    Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, Time-uniform central limit theory and asymptotic confidence sequences
    (arXiv 2103.06476v7); its equations are named where they are used.
"""

import math
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.comparisons import Difference
from mmserver.experiments.distributions import check_level
from mmserver.experiments.intervals import Interval

Numbers = TypeVar("Numbers", float, NDArray[Any])
Alternative = Literal["greater", "less"]


def mixture_rho(*, n_star: float, alpha: float) -> float:
    """The mixture's scale at which the two-sided sequence is tightest after n_star units; for a one-sided one, at 2 alpha.

    Raises:
        ValueError: n_star is not above zero or alpha not between 0 and 1.

    Source:
        eq. 161.
    """
    check_level("alpha", alpha)
    if not 0.0 < n_star < math.inf:
        raise ValueError(f"n_star is {n_star}; it must be above zero")
    log_term = -2.0 * math.log(alpha)
    return math.sqrt((log_term + math.log1p(log_term)) / n_star)


def sequence_halfwidth(standard_error: Numbers, n: Numbers, *, n_star: float, alpha: float = 0.05) -> Numbers:
    """Half the width of the two-sided confidence sequence around an estimate with this standard error.

    Source:
        eq. 9.
    """
    growth = _growth(n, mixture_rho(n_star=n_star, alpha=alpha))
    return standard_error * np.sqrt(2.0 * (growth + 1.0) / growth * (0.5 * np.log1p(growth) - math.log(alpha)))  # type: ignore[no-any-return]


def one_sided_halfwidth(standard_error: Numbers, n: Numbers, *, n_star: float, alpha: float = 0.05) -> Numbers:
    """How far below (or above) the estimate the one-sided bound lies.

    Raises:
        ValueError: alpha is not between 0 and one half.

    Source:
        eq. 134, its scale taken at 2 alpha.
    """
    growth = _growth(n, _one_sided_rho(n_star=n_star, alpha=alpha))
    inflated = growth + 1.0
    return standard_error * np.sqrt(2.0 * inflated / growth * np.log1p(np.sqrt(inflated) / (2.0 * alpha)))  # type: ignore[no-any-return]


def log_e_value(z: Numbers, n: Numbers, *, n_star: float, alpha: float = 0.05) -> Numbers:
    """The logarithm of the evidence against "no difference", z being estimate / standard error.

    Source:
        eq. 155.
    """
    growth = _growth(n, mixture_rho(n_star=n_star, alpha=alpha))
    return 0.5 * (z * z * growth / (growth + 1.0) - np.log1p(growth))  # type: ignore[no-any-return]


def _growth(n: Numbers, rho: float) -> Numbers:
    """n rho²; the formulas have it with 1 added too, which must not be taken away again: of 1e-10, half its digits are gone."""
    return n * (rho * rho)


def _one_sided_rho(*, n_star: float, alpha: float) -> float:
    if not 0.0 < alpha < 0.5:
        raise ValueError(f"alpha is {alpha}; for one side it must lie between 0 and one half")
    return mixture_rho(n_star=n_star, alpha=2.0 * alpha)


# --- of a difference ----------------------------------------------------------------------------------------------------


def confidence_sequence(difference: Difference, *, n_star: float, alpha: float = 0.05) -> Interval:
    """Where the true difference lies, at all looks at once, with probability 1 - alpha."""
    half = float(sequence_halfwidth(difference.standard_error, difference.n, n_star=n_star, alpha=alpha))
    return Interval(difference.estimate - half, difference.estimate + half)


def lower_bound(difference: Difference, *, n_star: float, alpha: float = 0.05) -> float:
    """What the true difference is above, at all looks at once, with probability 1 - alpha."""
    return difference.estimate - float(
        one_sided_halfwidth(difference.standard_error, difference.n, n_star=n_star, alpha=alpha)
    )


def upper_bound(difference: Difference, *, n_star: float, alpha: float = 0.05) -> float:
    """What the true difference is below, at all looks at once, with probability 1 - alpha."""
    return difference.estimate + float(
        one_sided_halfwidth(difference.standard_error, difference.n, n_star=n_star, alpha=alpha)
    )


def always_valid_p(difference: Difference, *, n_star: float, alpha: float = 0.05, null: float = 0.0) -> float:
    """The two-sided p-value that may be looked at any time; report the least of all looks so far.

    Args:
        alpha: sets where the sequence is tightest, as in `confidence_sequence`; below it, the sequence leaves out null.
    """
    z = (difference.estimate - null) / difference.standard_error
    return math.exp(min(0.0, -float(log_e_value(z, difference.n, n_star=n_star, alpha=alpha))))


def one_sided_always_valid_p(
    difference: Difference, *, n_star: float, alternative: Alternative, alpha: float = 0.05, null: float = 0.0
) -> float:
    """The least alpha at which the one-sided bound leaves out null; 1 where the estimate is on null's wrong side.

    The scale stays where `alpha` put it, so the bound can be solved for its level, without searching.

    Source:
        eq. 134, solved for alpha.
    """
    z = (difference.estimate - null) / difference.standard_error
    z = z if alternative == "greater" else -z
    growth = _growth(float(difference.n), _one_sided_rho(n_star=n_star, alpha=alpha))
    if z <= 0.0:
        return 1.0
    exponent = z * z * growth / (2.0 * (growth + 1.0))
    if not exponent:
        return 1.0
    # log(sqrt(growth + 1) / 2 / (e^exponent - 1)), written so that neither end overflows.
    log_p = 0.5 * math.log1p(growth) - math.log(2.0) - exponent - math.log(-math.expm1(-exponent))
    return math.exp(min(0.0, log_p))


def units_until_halfwidth(
    difference: Difference, *, halfwidth: float, n_star: float, alpha: float = 0.05
) -> int | None:
    """How many units in all the sequence will need to be this narrow, at the same split and spread; None beyond 10^12.

    Raises:
        ValueError: the half-width is not above zero.
    """
    from scipy import optimize

    if not halfwidth > 0.0:
        raise ValueError(f"the half-width is {halfwidth}; it must be above zero")
    spread = difference.standard_error * math.sqrt(difference.n)

    def excess(log_n: float) -> float:
        n = math.exp(log_n)
        return float(sequence_halfwidth(spread / math.sqrt(n), n, n_star=n_star, alpha=alpha)) - halfwidth

    first, last = 0.0, math.log(1e12)
    if excess(last) > 0.0:
        return None
    return 1 if excess(first) <= 0.0 else math.ceil(math.exp(optimize.brentq(excess, first, last)))
