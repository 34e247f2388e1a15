"""Moments, against numpy and against exact fractions."""

import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserver.experiments.moments import CoMoments, Moments

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def test_moments_are_those_of_numpy() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 1000)
    moments = Moments.from_values(values)
    assert moments.n == 1000
    assert moments.mean == pytest.approx(values.mean(), rel=1e-13)
    assert moments.variance == pytest.approx(values.var(ddof=1), rel=1e-12)
    assert moments.total == pytest.approx(values.sum(), rel=1e-13)
    assert moments.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-12)


def test_ten_million_small_returns_keep_their_spread_when_added_by_batches() -> None:
    batch = np.random.default_rng(2).normal(1e-4, 1e-5, 10_000)
    one = Moments.from_values(batch)
    whole = Moments.merged([one] * 1000)
    assert whole.n == 10_000_000
    assert whole.mean == pytest.approx(one.mean, rel=1e-12)
    assert whole.m2 == pytest.approx(1000 * one.m2, rel=1e-9)


def test_a_spread_far_below_the_values_is_not_lost() -> None:
    values = [1e9 + step for step in (4.0, 7.0, 13.0, 16.0)]
    assert Moments.from_values(values).variance == 30.0
    assert Moments.merged([Moments.from_values([value]) for value in values]).variance == pytest.approx(30.0, rel=1e-9)


def test_values_one_by_one_give_what_they_give_together() -> None:
    values = np.random.default_rng(3).normal(1e-4, 1e-5, 5_000)
    moments = Moments()
    for value in values.tolist():
        moments = moments.with_value(value)
    assert moments.variance == pytest.approx(values.var(ddof=1), rel=1e-10)


@given(st.lists(FINITE, max_size=20), st.lists(FINITE, max_size=20), st.lists(FINITE, max_size=20))
def test_merging_is_associative_and_what_the_whole_gives(a: list[float], b: list[float], c: list[float]) -> None:
    parts = [Moments.from_values(part) for part in (a, b, c)]
    left, right = parts[0].merge(parts[1]).merge(parts[2]), parts[0].merge(parts[1].merge(parts[2]))
    exact = [Fraction(value) for value in a + b + c]
    mean = sum(exact) / len(exact) if exact else Fraction(0)
    m2 = float(sum((value - mean) ** 2 for value in exact))
    scale = max((abs(value) for value in a + b + c), default=0.0)
    for whole in (left, right, Moments.from_values(a + b + c)):
        assert whole.n == len(exact)
        assert whole.mean == pytest.approx(float(mean), rel=1e-12, abs=1e-12 * scale)
        assert whole.m2 == pytest.approx(m2, rel=1e-9, abs=1e-12 * scale * scale)


def test_sums_give_the_moments_of_their_values() -> None:
    values = np.random.default_rng(4).normal(0.4, 3.9, 500)
    moments = Moments.from_sums(500, float(values.sum()), float((values**2).sum()))
    assert moments.variance == pytest.approx(values.var(ddof=1), rel=1e-10)
    assert Moments.from_sums(0, 0.0, 0.0) == Moments()


def test_sums_of_values_far_from_zero_keep_the_spread_that_they_have() -> None:
    # Of 10^7 + 1, + 2, + 3: the two terms are 3e14, and differ by 2.
    assert Moments.from_sums(3, 3e7 + 6.0, 3e14 + 12e7 + 14.0) == Moments(3, 1e7 + 2.0, 2.0)
    # Sums that are only near those of two values: exactly what is left of them, where float64 alone leaves 0.00390625.
    assert Moments.from_sums(2, -6526794.952, 21299526172726.344).m2 == pytest.approx(0.005321191062450409, rel=1e-15)


def test_rounding_in_sums_never_makes_a_spread_negative() -> None:
    assert Moments.from_sums(3, 0.3, 0.03 - 1e-17).m2 == pytest.approx(0.0, abs=1e-16)


@pytest.mark.parametrize(
    ("n", "total", "total_squares"),
    [(2, 10.0, 1.0), (-1, 0.0, 0.0), (3, math.nan, 1.0), (3, 1.0, math.inf), (3, 1e308, 1e308)],
)
def test_sums_of_no_values_are_refused(n: int, total: float, total_squares: float) -> None:
    with pytest.raises(ValueError, match="values have"):
        Moments.from_sums(n, total, total_squares)


def test_too_few_values_have_no_spread() -> None:
    assert Moments().variance is None
    assert Moments().standard_error is None
    assert Moments.from_values([3.0]) == Moments(1, 3.0, 0.0)
    assert Moments.from_values([3.0]).variance is None
    assert Moments.from_values([3.0, 3.0]).variance == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_and_named(value: float) -> None:
    with pytest.raises(ValueError, match=r"1 of 3 values are not finite, the first at 1"):
        Moments.from_values([1.0, value, 2.0])
    with pytest.raises(ValueError, match="no values have"):
        Moments().with_value(value)
    with pytest.raises(ValueError, match="not finite"):
        CoMoments.from_values([1.0, 2.0], [1.0, value])


@pytest.mark.parametrize("moments", [Moments(3, 1e-4, 1e-10), CoMoments(3, 1.0, 2.0, 0.5, 0.25, -0.125)])
def test_moments_come_back_from_json_as_they_were(moments: Any) -> None:
    assert type(moments)(**json.loads(json.dumps(dataclasses.asdict(moments)))) == moments


def test_comoments_are_those_of_numpy() -> None:
    random = np.random.default_rng(5)
    x = random.normal(1e-4, 1e-5, 999)
    y = 0.6 * x + random.normal(1e-4, 1e-5, 999)
    whole = CoMoments.merged([CoMoments.from_values(x[i::3], y[i::3]) for i in range(3)])
    assert whole.covariance == pytest.approx(np.cov(x, y)[0, 1], rel=1e-10)
    assert whole.correlation == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-10)
    assert whole.x.variance == pytest.approx(x.var(ddof=1), rel=1e-10)
    assert whole.y.mean == pytest.approx(y.mean(), rel=1e-12)
    assert whole.difference.mean == pytest.approx((y - x).mean(), rel=1e-10)
    assert whole.difference.variance == pytest.approx((y - x).var(ddof=1), rel=1e-10)


@given(st.lists(st.tuples(FINITE, FINITE), max_size=15), st.lists(st.tuples(FINITE, FINITE), max_size=15))
def test_merging_pairs_gives_what_pairs_one_by_one_give(
    a: list[tuple[float, float]], b: list[tuple[float, float]]
) -> None:
    merged = CoMoments.from_values(*zip(*a, strict=True) if a else ([], [])).merge(
        CoMoments.from_values(*zip(*b, strict=True) if b else ([], []))
    )
    added = CoMoments()
    for x, y in a + b:
        added = added.with_pair(x, y)
    scale = max((abs(value) for pair in a + b for value in pair), default=0.0)
    assert merged.n == added.n == len(a) + len(b)
    assert merged.c_xy == pytest.approx(added.c_xy, rel=1e-9, abs=1e-11 * scale * scale)
    assert merged.m2_y == pytest.approx(added.m2_y, rel=1e-9, abs=1e-11 * scale * scale)


@pytest.mark.parametrize("value", [0.1, 1e-5 / 3, -7.7e8])
def test_what_does_not_vary_has_no_spread_however_it_is_counted(value: float) -> None:
    together = Moments.from_values([value] * 1000)
    parts = Moments.merged([Moments.from_values([value] * size) for size in (1, 3, 96, 900)])
    for moments in (together, parts):
        assert (moments.mean, moments.m2) == (value, 0.0)


def test_copies_differ_by_nothing_however_they_are_counted() -> None:
    values = np.random.default_rng(6).normal(1e-4, 1e-5, 1000)
    for slope in (1.0, 3.3):
        whole = CoMoments.merged([CoMoments.from_values(values[i::9], slope * values[i::9]) for i in range(9)])
        assert whole.adjusted(slope).m2 == 0.0
        assert whole.adjusted(0.5 * slope).m2 > 0.0


def test_pairs_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="are not pairs"):
        CoMoments.from_values([1.0, 2.0], [1.0])


def test_a_constant_side_has_no_correlation() -> None:
    assert CoMoments.from_values([1.0, 1.0], [1.0, 2.0]).correlation is None
    assert CoMoments().correlation is None
    assert CoMoments.from_values([1.0, 2.0], [3.0, 5.0]).correlation == pytest.approx(1.0, rel=1e-14)
