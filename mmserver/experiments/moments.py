"""What is kept of many values: count, mean and spread, that merge exactly enough for 10 million returns of 1e-5.

Sums of squares are not kept: of values near 1e-4 with a spread of 1e-5 they lose the spread in their last digits.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

ROUNDING = 1e-13
"""A sum of squares that is left of others as a share of them this small is what rounding left."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean, and the sum of squared distances from the mean (`m2`); the zero of it is `Moments()`.

    Raises:
        ValueError: a value is not finite, or no values give such numbers.

    Source:
        Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance.
    """

    n: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def __post_init__(self) -> None:
        if self.n < 0 or not math.isfinite(self.mean) or not (math.isfinite(self.m2) and self.m2 >= 0.0):
            raise ValueError(f"no values have n={self.n}, mean={self.mean}, m2={self.m2}")

    @classmethod
    def from_values(cls, values: ArrayLike) -> Self:
        """The moments of finite numbers."""
        array = finite_values(values)
        if not array.size:
            return cls()
        mean, m2 = _centred(array)
        return cls(array.size, mean, m2)

    @classmethod
    def from_sums(cls, n: int, total: float, total_squares: float) -> Self:
        """The moments of n values whose sum and sum of squares are known; as exact as these are.

        Raises:
            ValueError: no values have these sums.
        """
        if n == 0:
            return cls()
        if not (math.isfinite(total) and math.isfinite(total_squares)):
            raise ValueError(f"no {n} values have the sum {total} and the sum of squares {total_squares}")
        # Of values far from zero the two nearly cancel: taken in whole numbers, what they leave has all its digits.
        try:
            m2 = float(Fraction(float(total_squares)) - Fraction(float(total)) ** 2 / int(n))
        except OverflowError:
            m2 = -math.inf
        # Rounding of the sums alone may leave a little below zero; more than that is a mistake of the caller.
        if m2 < -1e-9 * abs(total_squares):
            raise ValueError(f"no {n} values have the sum {total} and the sum of squares {total_squares}")
        return cls(n, total / n, max(m2, 0.0))

    @classmethod
    def merged(cls, parts: Iterable["Moments"]) -> "Moments":
        """The moments of all the parts' values together."""
        whole = Moments()
        for part in parts:
            whole = whole.merge(part)
        return whole

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both parts' values together."""
        n = self.n + other.n
        if not self.n or not other.n:
            return self if self.n else other
        distance = other.mean - self.mean
        mean = self.mean + distance * (other.n / n)
        return Moments(n, mean, self.m2 + other.m2 + distance * distance * (self.n * (other.n / n)))

    def with_value(self, value: float) -> "Moments":
        """The moments with one value more."""
        return self.merge(Moments(1, value, 0.0))

    @property
    def total(self) -> float:
        """The sum of the values."""
        return self.n * self.mean

    @property
    def variance(self) -> float | None:
        """The sample variance (n - 1 below the line); None for fewer than two values."""
        return self.m2 / (self.n - 1) if self.n > 1 else None

    @property
    def standard_error(self) -> float | None:
        """Of the mean, for independent values; None for fewer than two."""
        return math.sqrt(self.m2 / (self.n - 1) / self.n) if self.n > 1 else None


@dataclass(frozen=True, slots=True)
class CoMoments:
    """Count, means, sums of squared distances and of products of pairs (x, y); the zero of it is `CoMoments()`.

    Raises:
        ValueError: a value is not finite, or no pairs give such numbers.

    Source:
        Pébay (2008), Formulas for robust, one-pass parallel computation of covariances (SAND2008-6212).
    """

    n: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    m2_x: float = 0.0
    m2_y: float = 0.0
    c_xy: float = 0.0

    def __post_init__(self) -> None:
        Moments(self.n, self.mean_x, self.m2_x)
        Moments(self.n, self.mean_y, self.m2_y)
        if not math.isfinite(self.c_xy):
            raise ValueError(f"no pairs have the sum of products {self.c_xy}")

    @classmethod
    def from_values(cls, x: ArrayLike, y: ArrayLike) -> Self:
        """The moments of pairs of finite numbers.

        Raises:
            ValueError: there are more of one than of the other, or one is not finite.
        """
        xs, ys = finite_values(x), finite_values(y)
        if xs.size != ys.size:
            raise ValueError(f"{xs.size} and {ys.size} values are not pairs")
        if not xs.size:
            return cls()
        mean_x, m2_x = _centred(xs)
        mean_y, m2_y = _centred(ys)
        return cls(xs.size, mean_x, mean_y, m2_x, m2_y, float(np.dot(xs - mean_x, ys - mean_y)))

    @classmethod
    def merged(cls, parts: Iterable["CoMoments"]) -> "CoMoments":
        """The moments of all the parts' pairs together."""
        whole = CoMoments()
        for part in parts:
            whole = whole.merge(part)
        return whole

    def merge(self, other: "CoMoments") -> "CoMoments":
        """The moments of both parts' pairs together."""
        if not self.n or not other.n:
            return self if self.n else other
        x, y = self.x.merge(other.x), self.y.merge(other.y)
        between = self.n * (other.n / x.n) * (other.mean_x - self.mean_x) * (other.mean_y - self.mean_y)
        return CoMoments(x.n, x.mean, y.mean, x.m2, y.m2, self.c_xy + other.c_xy + between)

    def with_pair(self, x: float, y: float) -> "CoMoments":
        """The moments with one pair more."""
        return self.merge(CoMoments(1, x, y))

    @property
    def x(self) -> Moments:
        """The moments of the first of each pair."""
        return Moments(self.n, self.mean_x, self.m2_x)

    @property
    def y(self) -> Moments:
        """The moments of the second of each pair."""
        return Moments(self.n, self.mean_y, self.m2_y)

    @property
    def difference(self) -> Moments:
        """The moments of y - x."""
        return self.adjusted(1.0)

    def adjusted(self, slope: float) -> Moments:
        """The moments of y - slope × x."""
        parts = self.m2_y + slope * slope * self.m2_x
        m2 = parts - 2.0 * slope * self.c_xy
        # Where x explains all of y, only rounding is left: no spread, rather than a certainty of 1e-8.
        return Moments(self.n, self.mean_y - slope * self.mean_x, m2 if m2 > ROUNDING * parts else 0.0)

    @property
    def covariance(self) -> float | None:
        """The sample covariance; None for fewer than two pairs."""
        return self.c_xy / (self.n - 1) if self.n > 1 else None

    @property
    def correlation(self) -> float | None:
        """Pearson's r; None for fewer than two pairs, or where one side is constant."""
        if self.n < 2 or not self.m2_x or not self.m2_y:
            return None
        return max(-1.0, min(1.0, self.c_xy / (math.sqrt(self.m2_x) * math.sqrt(self.m2_y))))


def finite_values(values: ArrayLike) -> FloatArray:
    """The numbers as one row of float64.

    Raises:
        ValueError: one of them is NaN or infinite.
    """
    array = np.asarray(values, np.float64).ravel()
    wrong = np.flatnonzero(~np.isfinite(array))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} of {array.size} values are not finite, the first at {wrong[0]}: {array[wrong[0]]}"
        )
    return array


def _centred(array: FloatArray) -> tuple[float, float]:
    """Mean and sum of squared distances, in two passes, with what the mean's rounding did taken out again."""
    if not np.ptp(array):
        # The mean of a thousand tenths is not a tenth: what does not vary must not seem to.
        return float(array[0]), 0.0
    mean = float(array.mean())
    distances = array - mean
    correction = float(distances.sum())
    return mean + correction / array.size, max(float(np.dot(distances, distances)) - correction**2 / array.size, 0.0)
