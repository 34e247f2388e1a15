"""The mixture test, against confseq's published values and the sequences of the same family."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.experiments.comparisons import Difference
from mmserver.experiments.mixtures import best_ratio, log_mixture, mixture_bound, msprt_p
from mmserver.experiments.sequences import always_valid_p, mixture_rho

Cases = Callable[[str], dict[str, Any]]


def test_the_two_sided_mixture_is_as_published(case: Cases) -> None:
    found = case("normal_mixture_msprt")
    given = found["inputs"]
    r = best_ratio(given["v_opt"], alpha=given["alpha_opt"])
    ours = {
        "best_rho": r,
        "bound": mixture_bound(given["v"], r=r, alpha=given["alpha"]),
        "log_mixture": log_mixture(given["s"], given["v"], r=r),
    }
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


def test_the_one_sided_mixture_is_as_confseq_published() -> None:
    r = best_ratio(100.0, is_one_sided=True)
    assert log_mixture(10.0, 100.0, r=r, is_one_sided=True) == pytest.approx(-0.06502391, abs=1e-5)
    assert mixture_bound(100.0, r=r, is_one_sided=True) == pytest.approx(27.66071, abs=1e-5)


def test_the_bound_is_where_the_mixture_reaches_its_level() -> None:
    for is_one_sided in (False, True):
        bound = mixture_bound(40.0, r=7.0, alpha=0.01, is_one_sided=is_one_sided)
        assert log_mixture(bound, 40.0, r=7.0, is_one_sided=is_one_sided) == pytest.approx(math.log(100.0))


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e9])
def test_the_bound_of_a_sum_is_as_exact_in_any_unit(unit: float) -> None:
    bound = mixture_bound(40.0 * unit**2, r=7.0 * unit**2, is_one_sided=True)
    assert bound == pytest.approx(unit * mixture_bound(40.0, r=7.0, is_one_sided=True), rel=1e-10)


def test_it_is_the_family_of_the_sequences() -> None:
    difference = Difference(0.02, 0.008, 4000, 3998.0)
    z = difference.estimate / difference.standard_error
    r = 1.0 / mixture_rho(n_star=5000, alpha=0.05) ** 2
    ours = msprt_p(z * math.sqrt(difference.n), float(difference.n), r=r)
    assert ours == pytest.approx(always_valid_p(difference, n_star=5000), rel=1e-9)


def test_a_walk_without_drift_crosses_as_rarely_as_it_says() -> None:
    steps = np.random.default_rng(21).normal(0.0, 1.0, (1000, 500))
    v = np.arange(1.0, 501.0)
    bounds = np.array([mixture_bound(time, r=best_ratio(250.0)) for time in v.tolist()])
    assert (np.abs(np.cumsum(steps, 1)) > bounds).any(1).mean() <= 0.05


def test_far_on_the_wrong_side_one_sided_evidence_is_none() -> None:
    # Phi(z) is about exp(-z² / 2) / (|z| sqrt(2 pi)) there, so the squares take each other out.
    z = -1e4 / math.sqrt(110.0)
    expected = 0.5 * math.log(10.0 / 110.0) + math.log(2.0 / (-z * math.sqrt(2.0 * math.pi)))
    assert log_mixture(-1e4, 100.0, r=10.0, is_one_sided=True) == pytest.approx(expected, abs=1e-4)
    assert msprt_p(1e6, 10.0, r=1.0) == 0.0
    assert msprt_p(0.0, 0.0, r=1.0) == 1.0


@pytest.mark.parametrize(("v", "r"), [(-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.nan), (math.inf, 1.0)])
def test_times_and_ratios_that_are_none_are_refused(v: float, r: float) -> None:
    with pytest.raises(ValueError, match="v is"):
        log_mixture(1.0, v, r=r)
    with pytest.raises(ValueError, match="v is"):
        mixture_bound(v, r=r)


def test_plans_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="v_opt"):
        best_ratio(0.0)
    with pytest.raises(ValueError, match="twice alpha"):
        best_ratio(10.0, alpha=0.5, is_one_sided=True)
