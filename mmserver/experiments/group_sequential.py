"""Bounds for a few planned looks: more power at the planned end than a sequence for all times, and void if looked at oftener.

The paths of the statistic that crossed no bound yet are carried from look to look as a density, by numerical integration.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.distributions import check_level, normal_isf, normal_sf

MAX_BOUND = 8.0
"""Bounds end here, as in ldbounds: no look can spend less than P(Z > 8) = 6e-16."""
MIN_STEP = 1e-5
"""Looks must be this much information apart, or the steps between them are finer than is integrated."""
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_PANEL_SDS = 2.0
_REACH_SDS = 9.0
_BLOCK = 256

FloatArray = NDArray[Any]
Spending = Callable[[float, float], float]
"""(alpha, information fraction) → what may be spent up to there, both for both sides together."""


def obrien_fleming_spending(alpha: float, fraction: float) -> float:
    """Hardly any early, nearly all at the end: 4 - 4 Phi(z_{1 - alpha / 4} / sqrt(t)), for both sides together.

    Source:
        Lan and DeMets (1983), as ldbounds has it for two sides.
    """
    return 4.0 * normal_sf(normal_isf(alpha / 4.0) / math.sqrt(fraction))


def quadratic_spending(alpha: float, fraction: float) -> float:
    """alpha t².

    Source:
        Kim and DeMets (1987), power family; what spotify-confidence uses, for one side with half of alpha.
    """
    return alpha * fraction * fraction


def group_sequential_bounds(
    fractions: Sequence[float], *, alpha: float = 0.05, spending: Spending = obrien_fleming_spending, sides: int = 2
) -> list[float]:
    """The bound of |Z| (of Z, for one side) at each look, so that a true "no difference" crosses any with probability alpha.

    Args:
        fractions: the share of the planned information that each look has, rising, the last at most 1.
        alpha: of all that the bounds have: over both sides together, or of the one. One side then spends half of what two
            of twice its alpha would, so that 0.025 on one side and 0.05 on both give nearly the same bounds.

    Raises:
        ValueError: the fractions do not rise by MIN_STEP at least within 0 and 1, or the spending falls.

    Source:
        Armitage, McPherson, Rowe (1969); Lan and DeMets (1983).
    """
    check_level("alpha", alpha)
    times = _times(fractions, sides)
    walk = _Walk(sides)
    bounds: list[float] = []
    spent = 0.0
    for before, now in zip([0.0, *times], times, strict=False):
        target = spending(alpha * 2.0 / sides, now) * sides / 2.0
        if target < spent:
            raise ValueError(f"the spending falls from {spent} to {target} at {now}")
        bounds.append(walk.bound_spending(target - spent, step=now - before, now=now))
        spent = max(target, spent)
    return bounds


def crossing_probability(bounds: Sequence[float], fractions: Sequence[float], *, sides: int = 2) -> float:
    """The probability that a true "no difference" crosses the bound of |Z| (of Z, for one side) at any look.

    Raises:
        ValueError: the fractions do not rise by MIN_STEP at least within 0 and 1, or a bound is missing or not above zero.
    """
    times = _times(fractions, sides)
    if len(bounds) != len(times) or not all(bound > 0.0 for bound in bounds):
        raise ValueError(f"{list(bounds)} are no bounds for {len(times)} looks")
    walk = _Walk(sides)
    crossed = 0.0
    for before, now, bound in zip([0.0, *times], times, bounds, strict=False):
        z = min(bound, MAX_BOUND)
        crossed += walk.crossing(z * math.sqrt(now), step=now - before)
        walk.move(z * math.sqrt(now), step=now - before, now=now)
    return crossed


class _Walk:
    """The density of the Brownian path at the last look, over the paths that have not crossed; between looks it diffuses."""

    def __init__(self, sides: int) -> None:
        self.sides = sides
        self.places: FloatArray = np.zeros(1)
        self.masses: FloatArray = np.ones(1)

    def crossing(self, edge: float, *, step: float) -> float:
        """How much of it lies beyond the edge one step later."""
        from scipy import special

        sd = math.sqrt(step)
        beyond = float(self.masses @ special.ndtr((self.places - edge) / sd))
        # The two sides mirror each other, so twice the one is both.
        return beyond * self.sides

    def move(self, edge: float, *, step: float, now: float) -> None:
        """Let it diffuse one step, and drop what lies beyond the edge."""
        sd = math.sqrt(step)
        start = -edge if self.sides == 2 else -MAX_BOUND * math.sqrt(now)
        n_panels = max(1, math.ceil((edge - start) / (_PANEL_SDS * sd)))
        half = (edge - start) / n_panels / 2.0
        centres = start + half * (2.0 * np.arange(n_panels) + 1.0)
        places = (centres[:, None] + half * _NODES).ravel()
        self.masses = np.tile(half * _WEIGHTS, n_panels) * self._density(places, sd)
        self.places = places

    def _density(self, places: FloatArray, sd: float) -> FloatArray:
        """Of the path one step later; block by block, each from what lies near enough to reach it."""
        density = np.empty(len(places))
        for start in range(0, len(places), _BLOCK):
            block = places[start : start + _BLOCK]
            ends = (block[0] - _REACH_SDS * sd, block[-1] + _REACH_SDS * sd)
            first, last = np.searchsorted(self.places, ends)
            steps = (block[:, None] - self.places[first:last]) / sd
            density[start : start + _BLOCK] = np.exp(-0.5 * steps * steps) @ self.masses[first:last]
        return density / (sd * math.sqrt(2.0 * math.pi))

    def bound_spending(self, probability: float, *, step: float, now: float) -> float:
        """The bound that is crossed with this probability, and the walk moved there."""
        from scipy import optimize

        root = math.sqrt(now)
        if self.crossing(MAX_BOUND * root, step=step) >= probability:
            bound = MAX_BOUND
        else:
            bound = float(
                optimize.brentq(
                    lambda z: self.crossing(z * root, step=step) - probability,
                    0.0 if self.sides == 2 else -MAX_BOUND,
                    MAX_BOUND,
                    xtol=1e-12,
                )
            )
        self.move(bound * root, step=step, now=now)
        return bound


def _times(fractions: Sequence[float], sides: int) -> list[float]:
    times = [float(fraction) for fraction in fractions]
    if sides not in {1, 2}:
        raise ValueError(f"a test has 1 or 2 sides, not {sides}")
    steps = [now - before for before, now in zip([0.0, *times], times, strict=False)]
    # Fractions come from divisions: a millionth of a step above 1 is rounding.
    if not times or not all(step >= MIN_STEP for step in steps) or times[-1] > 1.0 + 1e-9:
        raise ValueError(f"looks at {times} do not rise within 0 and 1, {MIN_STEP} apart at least")
    return times
