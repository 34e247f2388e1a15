"""Bounds for planned looks, against the published tables."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mmserver.experiments.group_sequential import (
    MAX_BOUND,
    crossing_probability,
    group_sequential_bounds,
    obrien_fleming_spending,
    quadratic_spending,
)

Cases = Callable[[str], dict[str, Any]]


def equal_looks(n: int) -> list[float]:
    return [look / n for look in range(1, n + 1)]


def test_peeking_at_a_fixed_bound_inflates_the_error_as_published(case: Cases) -> None:
    found = case("peeking_inflation_fixed_1.96")
    z = stats.norm.isf(0.025)
    ours = [crossing_probability([z] * looks, equal_looks(looks)) for looks in found["inputs"]["looks"]]
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


def test_the_first_bound_of_the_quadratic_spending_is_as_published(case: Cases) -> None:
    found = case("spotify_power2_first_bound")
    given = found["inputs"]
    (bound,) = group_sequential_bounds([given["t"]], alpha=given["alpha"] / 2, spending=quadratic_spending, sides=1)
    assert bound == pytest.approx(found["expected"], abs=found["tolerance"])


def test_five_looks_of_the_obrien_fleming_kind_are_as_in_the_tables() -> None:
    assert group_sequential_bounds(equal_looks(5)) == pytest.approx([4.8769, 3.3570, 2.6803, 2.2898, 2.0310], abs=1e-4)


def test_one_side_with_half_of_alpha_has_the_bounds_of_two_sides() -> None:
    # As ldbounds has them for one side: 2 - 2 Phi(z_{1 - alpha / 2} / sqrt(t)).
    ours = group_sequential_bounds(equal_looks(5), alpha=0.025, sides=1)
    assert ours == pytest.approx([4.8769, 3.3570, 2.6803, 2.2898, 2.0310], abs=1e-4)
    spent = [crossing_probability(ours[:k], equal_looks(5)[:k], sides=1) for k in (2, 3, 4)]
    assert spent == pytest.approx(
        [2 * stats.norm.sf(stats.norm.isf(0.0125) / math.sqrt(k / 5)) for k in (2, 3, 4)], rel=1e-6
    )


def test_constant_bounds_of_pocock_spend_what_his_table_says() -> None:
    # Pocock (1977), two sides, alpha .05.
    for looks, bound in ((2, 2.178), (3, 2.289), (4, 2.361), (5, 2.413), (10, 2.555)):
        assert crossing_probability([bound] * looks, equal_looks(looks)) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("spending", [obrien_fleming_spending, quadratic_spending])
@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("fractions", [[1.0], [0.3, 0.31, 0.9, 1.0], equal_looks(30)], ids=["one", "uneven", "thirty"])
def test_the_bounds_spend_alpha_exactly(
    spending: Callable[[float, float], float], sides: int, fractions: Sequence[float]
) -> None:
    bounds = group_sequential_bounds(fractions, alpha=0.05, spending=spending, sides=sides)
    assert crossing_probability(bounds, fractions, sides=sides) == pytest.approx(0.05, abs=1e-9)
    for k in range(1, len(fractions)):
        spent = crossing_probability(bounds[:k], fractions[:k], sides=sides)
        assert spent == pytest.approx(spending(0.05 * 2 / sides, fractions[k - 1]) * sides / 2, abs=1e-9)


def test_one_planned_look_is_the_fixed_test() -> None:
    assert group_sequential_bounds([1.0]) == pytest.approx([stats.norm.isf(0.025)], rel=1e-10)
    assert group_sequential_bounds([1.0], sides=1) == pytest.approx([stats.norm.isf(0.05)], rel=1e-10)


def test_paths_cross_as_often_as_was_integrated() -> None:
    fractions = [0.1, 0.4, 0.5, 1.0]
    bounds = group_sequential_bounds(fractions, alpha=0.1)
    steps = np.random.default_rng(31).normal(0.0, np.sqrt(np.diff([0.0, *fractions])), (200_000, 4))
    z = np.cumsum(steps, 1) / np.sqrt(fractions)
    crossed = (np.abs(z) > bounds).any(1).mean()
    assert abs(crossed - 0.1) < 4.0 * math.sqrt(0.09 / 200_000)


def test_a_look_that_may_spend_nothing_is_bounded_by_the_greatest_bound() -> None:
    bounds = group_sequential_bounds([0.001, 0.5, 1.0])
    assert bounds[0] == MAX_BOUND
    assert crossing_probability([math.inf, 1.959964], [0.5, 1.0]) == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize(
    "fractions",
    [[], [0.0, 1.0], [0.5, 0.5], [0.5, 0.4], [0.5, 1.1], [math.nan], [0.5, 0.500001]],
    ids=["none", "zero", "twice", "back", "beyond", "nan", "too near"],
)
def test_looks_that_do_not_rise_are_refused(fractions: list[float]) -> None:
    with pytest.raises(ValueError, match="do not rise"):
        group_sequential_bounds(fractions)
    with pytest.raises(ValueError, match="do not rise"):
        crossing_probability([2.0] * len(fractions), fractions)


def test_bounds_spending_and_sides_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="no bounds"):
        crossing_probability([2.0], [0.5, 1.0])
    with pytest.raises(ValueError, match="no bounds"):
        crossing_probability([2.0, math.nan], [0.5, 1.0])
    with pytest.raises(ValueError, match="spending falls"):
        group_sequential_bounds([0.5, 1.0], spending=lambda alpha, fraction: alpha * (1.0 - fraction))
    with pytest.raises(ValueError, match="sides"):
        group_sequential_bounds([1.0], sides=3)
    with pytest.raises(ValueError, match="alpha"):
        group_sequential_bounds([1.0], alpha=0.0)
