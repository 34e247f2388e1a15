"""The distributions that p-values and intervals come from; tails are computed as tails, never as 1 - cdf."""

import math
from statistics import NormalDist

_NORMAL = NormalDist()


def normal_cdf(z: float) -> float:
    """P(Z <= z), with all its digits far below zero too."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def normal_sf(z: float) -> float:
    """P(Z > z), with all its digits far above zero too."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def normal_quantile(probability: float) -> float:
    """The z with P(Z <= z) = probability, which lies strictly between 0 and 1."""
    return _NORMAL.inv_cdf(probability)


def normal_isf(probability: float) -> float:
    """The z with P(Z > z) = probability; exact for tiny probabilities, where 1 - probability is 1."""
    return -_NORMAL.inv_cdf(probability)


def student_sf(t: float, degrees_of_freedom: float) -> float:
    """P(T > t) of Student's t; the degrees of freedom need not be whole."""
    from scipy import special

    return float(special.stdtr(degrees_of_freedom, -t))


def student_isf(probability: float, degrees_of_freedom: float) -> float:
    """The t with P(T > t) = probability."""
    from scipy import special

    return -float(special.stdtrit(degrees_of_freedom, probability))


def chi_square_sf(statistic: float, degrees_of_freedom: float) -> float:
    """P(X > statistic) of the chi-square distribution."""
    from scipy import special

    return float(special.chdtrc(degrees_of_freedom, statistic))


def check_level(name: str, level: float) -> None:
    """Refuse an error rate or confidence level that is not strictly between 0 and 1.

    Raises:
        ValueError: it is outside, or not a number.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"{name} is {level}; it must lie between 0 and 1")
