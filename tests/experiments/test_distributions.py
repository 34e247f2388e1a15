"""Tails and quantiles, against scipy."""

import numpy as np
import pytest
from scipy import stats

from mmserver.experiments.distributions import (
    chi_square_sf,
    normal_cdf,
    normal_isf,
    normal_quantile,
    normal_sf,
    student_isf,
    student_sf,
)


@pytest.mark.parametrize("z", [-37.0, -8.5, -1.96, 0.0, 0.5, 3.0, 12.0, 37.0])
def test_the_normal_s_tails_keep_their_digits(z: float) -> None:
    assert normal_cdf(z) == pytest.approx(stats.norm.cdf(z), rel=1e-13)
    assert normal_sf(z) == pytest.approx(stats.norm.sf(z), rel=1e-13)


@pytest.mark.parametrize("probability", [1e-300, 1e-20, 1e-6, 0.025, 0.5, 0.975, 1 - 1e-12])
def test_the_normal_s_quantiles_are_those_of_scipy(probability: float) -> None:
    assert normal_quantile(probability) == pytest.approx(stats.norm.ppf(probability), rel=1e-12, abs=1e-15)
    assert normal_isf(probability) == pytest.approx(stats.norm.isf(probability), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("freedom", [1.0, 3.5, 30.0, 5e6])
def test_student_s_tails_and_quantiles_are_those_of_scipy(freedom: float) -> None:
    for t in np.linspace(-9.0, 9.0, 13).tolist():
        assert student_sf(t, freedom) == pytest.approx(stats.t.sf(t, freedom), rel=1e-9)
    for probability in (1e-9, 0.025, 0.4):
        assert student_isf(probability, freedom) == pytest.approx(stats.t.isf(probability, freedom), rel=1e-8)


@pytest.mark.parametrize(("statistic", "freedom"), [(0.0, 1), (3.84, 1), (300.0, 2), (9.5, 4)])
def test_the_chi_square_s_tail_is_that_of_scipy(statistic: float, freedom: int) -> None:
    assert chi_square_sf(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-10)
