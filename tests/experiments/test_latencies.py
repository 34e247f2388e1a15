"""Histograms of latencies, against the exact percentiles of numpy."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserver.experiments.latencies import MAX_MS, MIN_MS, RELATIVE_ERROR, Latencies, percentile
from mmserver.experiments.moments import Moments

SOME = st.lists(st.floats(MIN_MS, MAX_MS), max_size=30)


def by_definition(values: Any, q: float) -> float:
    """The least value that at least q % are at or below; numpy's own rounds 0.07 × 100 up to the eighth of a hundred."""
    needed = math.ceil(Fraction(str(q)) * len(values) / 100)
    return float(np.sort(values)[max(needed, 1) - 1])


def test_the_percentiles_are_as_their_definitions_say(case: Callable[[str], dict[str, Any]]) -> None:
    found = case("p95_definitions")
    values, q = found["inputs"]["x"], found["inputs"]["q"]
    ours = {
        "linear": percentile(values, q, definition="linear"),
        "nearest_rank": percentile(values, q, definition="nearest_rank"),
    }
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


@pytest.mark.parametrize("q", [0.0, 1.0, 7.0, 50.0, 95.0, 99.9, 100.0])
@pytest.mark.parametrize("n", [1, 2, 99, 100, 101])
def test_the_definitions_are_those_of_numpy(n: int, q: float) -> None:
    values = np.random.default_rng(n).lognormal(1.0, 1.0, n)
    assert percentile(values, q, definition="linear") == pytest.approx(np.percentile(values, q))
    if round(q * n) % 100:
        assert by_definition(values, q) == np.percentile(values, q, method="inverted_cdf")
    assert percentile(values, q, definition="nearest_rank") == by_definition(values, q)


@pytest.mark.parametrize("q", [1.0, 50.0, 95.0, 99.9])
def test_a_percentile_of_the_histogram_is_within_its_error(q: float) -> None:
    values = np.random.default_rng(61).lognormal(0.5, 1.5, 20_000)
    ours = Latencies.from_ms(values).percentile_ms(q)
    assert ours == pytest.approx(by_definition(values, q), rel=RELATIVE_ERROR)


@given(st.floats(MIN_MS, MAX_MS))
def test_every_latency_in_range_is_found_again_within_the_error(latency_ms: float) -> None:
    ours = Latencies.from_ms([latency_ms])
    assert ours.p50_ms == pytest.approx(latency_ms, rel=RELATIVE_ERROR * (1 + 1e-6))
    assert ours.average_ms == latency_ms


@given(SOME, SOME, SOME)
def test_merging_is_associative_and_what_the_whole_gives(a: list[float], b: list[float], c: list[float]) -> None:
    parts = [Latencies.from_ms(part) for part in (a, b, c)]
    left, right = parts[0].merge(parts[1]).merge(parts[2]), parts[0].merge(parts[1].merge(parts[2]))
    whole = Latencies.from_ms(a + b + c)
    assert left.bins == right.bins == whole.bins == Latencies.merged(parts).bins
    assert left.moments.n == len(a + b + c)
    assert left.moments.mean == pytest.approx(whole.moments.mean, rel=1e-9)


def test_what_is_out_of_range_goes_to_the_ends() -> None:
    assert Latencies.from_ms([0.0]).p50_ms == MIN_MS
    assert Latencies.from_ms([1e-9]).p50_ms == MIN_MS
    far = Latencies.from_ms([1e12]).p50_ms
    assert far is not None
    assert far == pytest.approx(MAX_MS, rel=0.03)


def test_the_average_is_exact_and_the_median_and_p95_are_by_rank() -> None:
    latencies = Latencies.from_ms([1.0, 2.0, 3.0, 100.0])
    assert latencies.average_ms == 26.5
    assert latencies.p50_ms == pytest.approx(2.0, rel=0.01)
    assert latencies.p95_ms == pytest.approx(100.0, rel=0.01)


def test_without_any_there_is_no_percentile() -> None:
    assert (Latencies().average_ms, Latencies().p50_ms, Latencies().p95_ms) == (None, None, None)
    assert percentile([], 50.0, definition="linear") is None
    assert Latencies.from_ms([]) == Latencies() == Latencies.merged([])


@pytest.mark.parametrize("latency_ms", [-0.001, math.nan, math.inf])
def test_what_is_no_latency_is_refused(latency_ms: float) -> None:
    with pytest.raises(ValueError, match=r"latency is|not finite"):
        Latencies.from_ms([1.0, latency_ms])


@pytest.mark.parametrize("q", [-1.0, 101.0, math.nan])
def test_what_is_no_percentile_is_refused(q: float) -> None:
    for latencies in (Latencies(), Latencies.from_ms([1.0])):
        with pytest.raises(ValueError, match="percentile"):
            latencies.percentile_ms(q)
    with pytest.raises(ValueError, match="percentile"):
        percentile([1.0], q, definition="nearest_rank")


@pytest.mark.parametrize("bins", [{1: 2}, {-1: 3}, {10**6: 3}, {1: 4, 2: -1}, {1: 3, 2: 0}])
def test_bins_that_are_none_are_refused(bins: dict[int, int]) -> None:
    with pytest.raises(ValueError, match="bins"):
        Latencies(bins, Moments(3, 1.0, 0.0))
