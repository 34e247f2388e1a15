"""Sharpe ratios, against the checked cases and published examples."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mmserver.experiments.moments import CoMoments, Moments
from mmserver.experiments.sharpe import (
    Shape,
    annualising_factor,
    autocorrelations_of,
    bao_variance,
    deflated_sharpe,
    expected_maximum_sharpe,
    independent_sharpe_difference,
    lo_standard_error,
    mertens_standard_error,
    paired_sharpe_difference,
    probabilistic_sharpe,
    shape_of,
    sharpe_ratio,
)

Cases = Callable[[str], dict[str, Any]]


def test_lo_s_errors_are_as_published(case: Cases) -> None:
    found = case("lo2002_sharpe_se_iid")
    ours = [lo_standard_error(sharpe, n) for sharpe, n in found["inputs"]["sr_T"]]
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


def test_bao_s_variance_is_as_published(case: Cases) -> None:
    found = case("sharper_sr_variance")
    ours = bao_variance(found["inputs"]["snr"], found["inputs"]["n"])
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


def test_the_probabilistic_ratio_is_as_published(case: Cases) -> None:
    found = case("psr_bailey_lopezdeprado2012")
    given = found["inputs"]
    ours = [
        probabilistic_sharpe(given["sr"], given["T"], benchmark=given["benchmark"], shape=Shape(of["skew"], of["kurt"]))
        for of in given["cases"]
    ]
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


def test_the_deflated_ratio_is_as_in_its_paper() -> None:
    # 100 trials whose annual ratios have the variance 1/2, five years of days, an annual ratio of 2.5.
    trials = expected_maximum_sharpe(n_trials=100, trials_variance=0.5 / 250)
    assert trials == pytest.approx(0.1132, abs=5e-5)
    ours = deflated_sharpe(2.5 / math.sqrt(250), 1250, n_trials=100, trials_variance=0.5 / 250, shape=Shape(-3.0, 10.0))
    assert ours == pytest.approx(0.9004, abs=5e-5)


def test_the_best_of_many_without_skill_is_as_great_as_expected() -> None:
    best = np.random.default_rng(41).normal(0.0, 0.1, (4000, 200)).max(1).mean()
    assert expected_maximum_sharpe(n_trials=200, trials_variance=0.01) == pytest.approx(best, rel=0.02)
    assert expected_maximum_sharpe(n_trials=1, trials_variance=0.01) == 0.0


@pytest.mark.parametrize(("n_trials", "expected"), [(10**12, 7.1142181723633303), (10**20, 9.3236128823618716)])
def test_the_best_of_very_many_keeps_its_digits(n_trials: int, expected: float) -> None:
    # The same formula with 50 digits.
    assert expected_maximum_sharpe(n_trials=n_trials, trials_variance=1.0) == pytest.approx(expected, rel=1e-14)


def test_the_difference_of_paired_ratios_is_as_published(case: Cases) -> None:
    found = case("jobson_korkie_memmel_seeded")
    random = np.random.RandomState(1)
    returns = random.multivariate_normal([1, 1], [[1, 0.5], [0.5, 1]], 100)
    ours = paired_sharpe_difference(CoMoments.from_values(returns[:, 1], returns[:, 0]))
    assert ours is not None
    assert {"p": ours.p_value, "t": ours.t} == pytest.approx(found["expected"], abs=found["tolerance"])
    turned = paired_sharpe_difference(CoMoments.from_values(returns[:, 0], returns[:, 1]))
    assert turned is not None
    assert (turned.t, turned.p_value) == pytest.approx((-ours.t, ours.p_value))


def test_the_factor_of_a_year_of_resembling_months_is_as_published() -> None:
    assert annualising_factor(12, [0.2**lag for lag in range(1, 12)]) == pytest.approx(2.879, abs=5e-4)
    assert annualising_factor(12) == pytest.approx(math.sqrt(12.0))
    assert annualising_factor(1, [0.9]) == 1.0
    assert annualising_factor(252, [0.1]) == annualising_factor(252, [0.1] + [0.0] * 300)


def test_returns_that_cannot_be_have_no_factor() -> None:
    assert annualising_factor(12, [-1.0] * 11) is None
    with pytest.raises(ValueError, match="at least"):
        annualising_factor(0)


def test_the_ratio_is_mean_by_deviation() -> None:
    returns = np.random.default_rng(42).normal(1e-4, 1e-3, 500)
    moments = Moments.from_values(returns)
    assert sharpe_ratio(moments) == pytest.approx(returns.mean() / returns.std(ddof=1), rel=1e-12)
    assert sharpe_ratio(moments, ddof=0) == pytest.approx(returns.mean() / returns.std(), rel=1e-12)
    assert sharpe_ratio(Moments()) is None
    assert sharpe_ratio(Moments(1, 1.0, 0.0)) is None
    assert sharpe_ratio(Moments(5, 1.0, 0.0)) is None


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-120])
def test_the_shape_is_that_of_scipy_whatever_the_scale(scale: float) -> None:
    returns = np.random.default_rng(43).standard_t(5, 400) + 0.1
    shape = shape_of(returns * scale)
    assert shape is not None
    assert (shape.skew, shape.kurtosis) == pytest.approx(
        (stats.skew(returns), stats.kurtosis(returns, fisher=False)), rel=1e-9
    )


def test_what_does_not_vary_has_no_shape() -> None:
    assert shape_of([]) is None
    assert shape_of([1.0]) is None
    assert shape_of([2.0, 2.0]) is None
    with pytest.raises(ValueError, match="not finite"):
        shape_of([1.0, math.nan])


def test_normal_returns_have_lo_s_error_and_skewed_ones_another() -> None:
    assert mertens_standard_error(0.4, 60, Shape()) == pytest.approx(lo_standard_error(0.4, 60))
    skewed = mertens_standard_error(0.4, 60, Shape(-1.5, 8.0))
    assert skewed is not None
    assert skewed > lo_standard_error(0.4, 60)
    assert mertens_standard_error(2.0, 60, Shape(3.0, 1.0)) is None
    assert probabilistic_sharpe(2.0, 60, shape=Shape(3.0, 1.0)) is None


def test_lo_s_error_is_how_far_ratios_of_normal_returns_lie_apart() -> None:
    returns = np.random.default_rng(44).normal(0.3, 1.0, (20_000, 60))
    ratios = returns.mean(1) / returns.std(1, ddof=1)
    assert lo_standard_error(0.3, 60) == pytest.approx(ratios.std(), rel=0.03)


def test_autocorrelations_are_those_of_a_process_that_has_them() -> None:
    noise = np.random.default_rng(45).normal(0.0, 1.0, 20_000)
    values = np.zeros(20_000)
    for index in range(1, 20_000):
        values[index] = 0.5 * values[index - 1] + noise[index]
    assert autocorrelations_of(values, n_lags=3) == pytest.approx([0.5, 0.25, 0.125], abs=0.03)
    assert len(autocorrelations_of([1.0, 2.0, 4.0], n_lags=50)) == 2
    assert autocorrelations_of([1.0, 1.0], n_lags=3) == []
    assert autocorrelations_of([], n_lags=3) == []


def test_copies_of_one_series_do_not_differ() -> None:
    returns = np.random.default_rng(46).normal(0.0, 1.0, 50)
    assert paired_sharpe_difference(CoMoments.from_values(returns, returns)) is None
    assert paired_sharpe_difference(CoMoments.from_values(returns, np.ones(50))) is None
    assert paired_sharpe_difference(CoMoments()) is None


def test_arms_that_traded_apart_add_their_errors() -> None:
    random = np.random.default_rng(47)
    control, treatment = (Moments.from_values(random.normal(0.1, 1.0, n)) for n in (900, 100))
    ours = independent_sharpe_difference(control=control, treatment=treatment)
    assert ours is not None
    assert ours.difference.standard_error == pytest.approx(math.sqrt(1 / 900 + 1 / 100), rel=0.02)
    assert independent_sharpe_difference(control=control, treatment=Moments(9, 1.0, 0.0)) is None


def test_too_few_of_anything_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        lo_standard_error(0.1, 0)
    with pytest.raises(ValueError, match="at least 2"):
        probabilistic_sharpe(0.1, 1)
    with pytest.raises(ValueError, match="at least 1"):
        expected_maximum_sharpe(n_trials=0, trials_variance=1.0)
    with pytest.raises(ValueError, match="variance"):
        expected_maximum_sharpe(n_trials=3, trials_variance=math.nan)
