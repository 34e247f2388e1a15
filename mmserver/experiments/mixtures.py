"""The mixture sequential probability ratio test (mSPRT): evidence of a drift in a sum, at any time.

`s` is a sum with mean zero where there is no drift, `v` its variance so far ("intrinsic time"), and `r` the ratio
sigma² / tau² of the noise's variance to that of the drifts that are looked for. With r = 1 / rho² it is the family of
`sequences`.

Source:
    Robbins (1970); Johari, Pekelis, Walsh (2015), Always valid inference; Howard, Ramdas, McAuliffe, Sekhon (2021), Time-uniform,
    nonparametric, nonasymptotic confidence sequences, and its confseq, `normal_log_mixture` and `normal_mixture_bound`.
"""

import math

from mmserver.experiments.distributions import check_level


def best_ratio(v_opt: float, *, alpha: float = 0.05, is_one_sided: bool = False) -> float:
    """The ratio r for which the bound is tightest at intrinsic time v_opt.

    Raises:
        ValueError: v_opt is not above zero, or alpha not between 0 and 1 (one half for one side).
    """
    if not 0.0 < v_opt < math.inf:
        raise ValueError(f"v_opt is {v_opt}; it must be above zero")
    check_level("alpha", alpha)
    level = 2.0 * alpha if is_one_sided else alpha
    check_level("twice alpha" if is_one_sided else "alpha", level)
    log_term = -2.0 * math.log(level)
    return v_opt / (log_term + math.log1p(log_term))


def log_mixture(s: float, v: float, *, r: float, is_one_sided: bool = False) -> float:
    """The logarithm of the mixture's likelihood ratio; above log(1 / alpha), "no drift" is rejected."""
    _check(v, r)
    whole = 0.5 * math.log(r / (v + r)) + s * s / (2.0 * (v + r))
    if not is_one_sided:
        return whole
    from scipy import special

    return whole + math.log(2.0) + float(special.log_ndtr(s / math.sqrt(v + r)))


def mixture_bound(v: float, *, r: float, alpha: float = 0.05, is_one_sided: bool = False) -> float:
    """What |s| (or s) stays below at all times, with probability 1 - alpha, where there is no drift."""
    from scipy import optimize

    check_level("alpha", alpha)
    _check(v, r)
    two_sided = math.sqrt((v + r) * (math.log1p(v / r) - 2.0 * math.log(alpha)))
    if not is_one_sided:
        return two_sided

    # Twice the density on one side crosses sooner, and never later than the two-sided mixture. Searched for as a share of
    # that, because the search ends at 2e-12 of whatever unit it has, and sums of returns are not far above.
    def excess(share: float) -> float:
        return log_mixture(share * two_sided, v, r=r, is_one_sided=True) + math.log(alpha)

    return two_sided * float(optimize.brentq(excess, 0.0, 1.0))


def msprt_p(s: float, v: float, *, r: float) -> float:
    """The p-value of "no drift" that may be looked at any time; report the least of all looks so far."""
    return math.exp(min(0.0, -log_mixture(s, v, r=r)))


def _check(v: float, r: float) -> None:
    if not (0.0 <= v < math.inf and 0.0 < r < math.inf):
        raise ValueError(f"v is {v} and r is {r}; v must not be negative and r must be above zero")
