"""Resampled blocks, against arch and by how often the intervals hold."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.experiments.bootstrap import (
    BlockLengths,
    bootstrap_difference,
    mean_rows,
    optimal_block_length,
    stationary_indices,
)

Cases = Callable[[str], dict[str, Any]]


def resembling(n: int, *, rho: float, seed: int) -> Any:
    noise = np.random.default_rng(seed).normal(0.0, 1.0, n)
    for index in range(1, n):
        noise[index] += rho * noise[index - 1]
    return noise


def test_the_automatic_length_is_as_published(case: Cases) -> None:
    found = case("optimal_block_length_arch")
    noise = np.random.RandomState(0).standard_normal(10_100)
    for index in range(1, 10_100):
        noise[index] += 0.3 * noise[index - 1]
    ours = optimal_block_length(noise[100:])
    assert {"stationary": ours.stationary, "circular": ours.circular} == pytest.approx(
        found["expected"], abs=found["tolerance"]
    )


@pytest.mark.parametrize("n", [10, 12, 20, 60, 250, 3000])
@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.4, 0.95])
def test_the_automatic_length_is_that_of_arch(n: int, rho: float) -> None:
    bootstrap = pytest.importorskip("arch.bootstrap")
    for seed in range(5):
        values = resembling(n, rho=rho, seed=seed) * 1e-5
        # Of ten values it divides by zero at the last lag, and goes on.
        with np.errstate(divide="ignore"):
            stationary, circular = bootstrap.optimal_block_length(values).to_numpy()[0]
        ours = optimal_block_length(values)
        assert (ours.stationary, ours.circular) == pytest.approx((stationary, circular), rel=1e-9)


def test_series_that_say_nothing_have_blocks_of_one() -> None:
    assert optimal_block_length([]) == BlockLengths(1.0, 1.0)
    assert optimal_block_length([1.0, 2.0, 3.0]) == BlockLengths(1.0, 1.0)
    assert optimal_block_length([2.5] * 50) == BlockLengths(1.0, 1.0)


@pytest.mark.parametrize("n", range(10, 14))
def test_short_series_have_a_length(n: int) -> None:
    for seed in range(30):
        found = optimal_block_length(np.random.default_rng(seed).normal(0.0, 1.0, n))
        assert 0.0 < found.stationary <= n
        assert 0.0 < found.circular <= n


def test_blocks_that_hardly_resemble_each_other_are_drawn_one_by_one() -> None:
    noise = np.random.default_rng(0).normal(0.0, 1.0, (40, 200))
    lengths = [optimal_block_length(series).stationary for series in noise]
    short = noise[int(np.argmin(lengths))]
    assert min(lengths) < 1.0
    found = bootstrap_difference(control=short, treatment=short[::-1] + short, seed=1, n_resamples=100)
    assert found is not None
    assert found.block_length >= 1.0


@pytest.mark.parametrize("length", [1.0, 4.0, 25.0])
def test_stretches_are_as_long_as_asked_and_every_place_is_drawn_alike(length: float) -> None:
    indices = stationary_indices(100, length, 2000, np.random.default_rng(51))
    continued = (np.diff(indices, axis=1) % 100 == 1).mean()
    # A new stretch begins where the old one would have gone on, once in a hundred times.
    assert continued == pytest.approx(1.0 - 1.0 / length * 0.99, abs=0.005)
    counts = np.bincount(indices.ravel(), minlength=100)
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()


def test_stretches_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks of"):
        stationary_indices(10, 0.5, 5, np.random.default_rng(1))


def test_a_seed_repeats_its_resamples_and_another_does_not() -> None:
    control, treatment = resembling(120, rho=0.3, seed=1), resembling(120, rho=0.3, seed=2)
    once, again, other = (
        bootstrap_difference(control=control, treatment=treatment, seed=seed, n_resamples=200) for seed in (5, 5, 6)
    )
    assert once is not None
    assert once == again
    assert once != other


def test_the_number_of_blocks_drawn_at_a_time_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    control, treatment = resembling(60, rho=0.0, seed=1), resembling(60, rho=0.0, seed=2)
    whole = bootstrap_difference(control=control, treatment=treatment, seed=5, n_resamples=2000)
    monkeypatch.setattr("mmserver.experiments.bootstrap.MAX_CELLS", 60 * 700)
    parts = bootstrap_difference(control=control, treatment=treatment, seed=5, n_resamples=2000)
    assert whole is not None
    assert parts is not None
    assert parts.n_resamples == whole.n_resamples == 2000
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=0.1)


def test_p_is_small_exactly_where_the_interval_leaves_out_zero() -> None:
    outside = 0
    for seed in range(20):
        control = resembling(150, rho=0.2, seed=seed)
        treatment = control * 0.5 + resembling(150, rho=0.2, seed=seed + 100) + 0.15
        found = bootstrap_difference(control=control, treatment=treatment, seed=seed, n_resamples=400)
        assert found is not None
        assert found.interval.has(found.estimate)
        assert (found.p_value < 0.05 - 2 / 400) <= (not found.interval.has(0.0))
        assert (found.p_value > 0.05 + 2 / 400) <= found.interval.has(0.0)
        outside += not found.interval.has(0.0)
    assert 0 < outside < 20


def test_resembling_blocks_widen_the_interval_as_the_truth_is_wide() -> None:
    wide, narrow, estimates = [], [], []
    for seed in range(60):
        control, treatment = resembling(200, rho=0.6, seed=seed), resembling(200, rho=0.6, seed=seed + 1000)
        given = {"control": control, "treatment": treatment, "statistic": mean_rows, "seed": seed, "n_resamples": 200}
        ours, plain = bootstrap_difference(**given), bootstrap_difference(**given, block_length=1.0)
        assert ours is not None
        assert plain is not None
        wide.append(ours.standard_error)
        narrow.append(plain.standard_error)
        estimates.append(ours.estimate)
    truth = float(np.std(estimates, ddof=1))
    assert np.mean(narrow) < 0.75 * truth
    assert 0.75 * truth < np.mean(wide) < 1.25 * truth


def test_series_that_say_too_little_have_no_difference() -> None:
    random = np.random.default_rng(52)
    values = random.normal(0.0, 1.0, 50)
    assert bootstrap_difference(control=values[:9], treatment=values[:9], seed=1) is None
    assert bootstrap_difference(control=values, treatment=values, seed=1) is None
    assert bootstrap_difference(control=values, treatment=np.full(50, 0.1), seed=1) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_blocks_that_are_not_numbers_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_difference(control=[1.0, value], treatment=[1.0, 2.0], seed=1)


def test_series_that_do_not_pair_and_parameters_out_of_range_are_refused() -> None:
    values = list(range(20))
    with pytest.raises(ValueError, match="not pairs"):
        bootstrap_difference(control=values, treatment=values[1:], seed=1)
    with pytest.raises(ValueError, match="too few"):
        bootstrap_difference(control=values, treatment=values, seed=1, n_resamples=10)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_difference(control=values, treatment=values, seed=1, confidence=1.0)
    with pytest.raises(ValueError, match="blocks of"):
        bootstrap_difference(control=values, treatment=values[::-1], seed=1, block_length=0.5)
