"""Bounds for any look: against the checked cases, against each other, and by how often they fail in simulations."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from mmserver.experiments.comparisons import Difference, mean_difference, rate_difference, relative_difference
from mmserver.experiments.moments import Moments
from mmserver.experiments.rates import Rate
from mmserver.experiments.sequences import (
    always_valid_p,
    confidence_sequence,
    log_e_value,
    lower_bound,
    mixture_rho,
    one_sided_always_valid_p,
    one_sided_halfwidth,
    sequence_halfwidth,
    units_until_halfwidth,
    upper_bound,
)

Cases = Callable[[str], dict[str, Any]]
CONTROL = Moments.from_sums(3000, 1396.87, 52377.9767)
TREATMENT = Moments.from_sums(3461, 2422.7, 134698.29)


def published() -> Difference:
    difference = relative_difference(control=CONTROL, treatment=TREATMENT)
    assert difference is not None
    return difference


def test_the_two_sided_sequence_is_as_published(case: Cases) -> None:
    found = case("sequential_two_sided_N1000")
    given = found["inputs"]
    arms = [Moments.from_sums(arm["n"], arm["sum"], arm["sumsq"]) for arm in (given["a"], given["b"])]
    difference = relative_difference(control=arms[0], treatment=arms[1])
    assert difference is not None
    interval = confidence_sequence(difference, n_star=given["N_star"], alpha=given["alpha"])
    p_value = always_valid_p(difference, n_star=given["N_star"], alpha=given["alpha"])
    ours = {"diff": difference.estimate, "lo": interval.lower, "hi": interval.upper, "p": p_value}
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


def test_the_width_is_that_of_the_paper_written_out() -> None:
    n, se, n_star, alpha = 700.0, 0.03, 5000.0, 0.05
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / n_star)
    two = se * math.sqrt(n) * math.sqrt(
        2 * (n * rho**2 + 1) / (n * rho) ** 2 * math.log(math.sqrt(n * rho**2 + 1) / alpha)
    )  # fmt: skip
    assert sequence_halfwidth(se, n, n_star=n_star, alpha=alpha) == pytest.approx(two, rel=1e-13)
    rho = math.sqrt((-2 * math.log(2 * alpha) + math.log(-2 * math.log(2 * alpha) + 1)) / n_star)
    one = se * math.sqrt(n) * math.sqrt(
        2 * (n * rho**2 + 1) / (n * rho) ** 2 * math.log(1 + math.sqrt(n * rho**2 + 1) / (2 * alpha))
    )  # fmt: skip
    assert one_sided_halfwidth(se, n, n_star=n_star, alpha=alpha) == pytest.approx(one, rel=1e-13)


def test_the_first_units_of_a_huge_plan_have_all_digits_of_their_width() -> None:
    # The formulas of the paper with 50 digits, two units of ten thousand million planned.
    assert sequence_halfwidth(1.0, 2.0, n_star=1e10, alpha=0.05) == pytest.approx(61439.325566251085, rel=1e-14)
    assert one_sided_halfwidth(1.0, 2.0, n_star=1e10, alpha=0.05) == pytest.approx(61553.446538271622, rel=1e-14)


@pytest.mark.parametrize(
    ("share", "factor"), [(0.1, 1.97), (0.25, 1.67), (0.5, 1.57), (1.0, 1.55), (2.0, 1.56), (5.0, 1.61), (10.0, 1.65)]
)
def test_the_cost_of_looking_any_time_is_smallest_about_n_star(share: float, factor: float) -> None:
    n_star = 20_000.0
    half = sequence_halfwidth(1.0, share * n_star, n_star=n_star)
    assert half / 1.959964 == pytest.approx(factor, abs=0.006)


@given(
    z=st.floats(0.01, 8.0),
    n=st.integers(4, 10**7),
    n_star=st.floats(10.0, 1e6),
    alpha=st.floats(0.001, 0.4),
)
def test_p_is_below_alpha_exactly_where_the_bounds_leave_out_the_null(
    z: float, n: int, n_star: float, alpha: float
) -> None:
    difference = Difference(z * 0.01 + 0.5, 0.01, n, n - 2.0)
    p_value = always_valid_p(difference, n_star=n_star, alpha=alpha, null=0.5)
    interval = confidence_sequence(difference, n_star=n_star, alpha=alpha)
    assert (p_value < alpha) == (interval.lower > 0.5) or p_value == pytest.approx(alpha, rel=1e-6)
    one = one_sided_always_valid_p(difference, n_star=n_star, alternative="greater", alpha=alpha, null=0.5)
    bound = lower_bound(difference, n_star=n_star, alpha=alpha)
    assert (one < alpha) == (bound > 0.5) or one == pytest.approx(alpha, rel=1e-6)


def test_the_one_sided_p_is_the_level_at_which_the_bound_meets_the_null() -> None:
    difference = published()
    rho = mixture_rho(n_star=1000, alpha=0.1)
    inflated = difference.n * rho**2 + 1

    def bound(level: float) -> float:
        width = math.sqrt(2 * inflated / (inflated - 1) * math.log(1 + math.sqrt(inflated) / (2 * level)))
        return difference.estimate - difference.standard_error * width

    expected = optimize.brentq(bound, 1e-9, 1e6, xtol=1e-15)
    ours = one_sided_always_valid_p(difference, n_star=1000, alternative="greater")
    assert ours == pytest.approx(min(1.0, expected), rel=1e-9)
    clear = Difference(0.05, 0.01, 6461, 6000.0)
    level = one_sided_always_valid_p(clear, n_star=1000, alternative="greater")
    width = math.sqrt(2 * inflated / (inflated - 1) * math.log(1 + math.sqrt(inflated) / (2 * level)))
    assert clear.estimate == pytest.approx(clear.standard_error * width, rel=1e-9)


def test_the_one_sided_p_is_what_others_approach_by_bisection() -> None:
    # gbstats publishes .46316 for these arms, the middle of where its search stopped.
    difference = mean_difference(control=CONTROL, treatment=TREATMENT)
    assert difference is not None
    ours = one_sided_always_valid_p(difference, n_star=5000, alternative="greater")
    assert ours == pytest.approx(0.46305, abs=6e-6)


def test_the_wrong_side_is_no_evidence() -> None:
    worse = Difference(-0.3, 0.01, 1000, 998.0)
    assert one_sided_always_valid_p(worse, n_star=1000, alternative="greater") == 1.0
    assert one_sided_always_valid_p(worse, n_star=1000, alternative="less") < 1e-6
    assert one_sided_always_valid_p(worse, n_star=1000, alternative="less", null=-0.3) == 1.0


@pytest.mark.parametrize("z", [1e-12, 40.0, 1e6])
def test_no_evidence_is_too_weak_or_too_strong_to_be_computed(z: float) -> None:
    difference = Difference(z, 1.0, 10**9, 1e9)
    assert 0.0 <= always_valid_p(difference, n_star=1e4) <= 1.0
    assert 0.0 <= one_sided_always_valid_p(difference, n_star=1e4, alternative="greater") <= 1.0


def test_the_bounds_mirror_each_other() -> None:
    difference = published()
    turned = Difference(-difference.estimate, difference.standard_error, difference.n, difference.degrees_of_freedom)
    assert lower_bound(difference, n_star=500) == -upper_bound(turned, n_star=500)
    assert confidence_sequence(difference, n_star=500).lower < lower_bound(difference, n_star=500)


def test_arrays_give_what_their_numbers_give() -> None:
    errors, n = np.array([0.1, 0.05, 0.02]), np.array([50.0, 200.0, 1500.0])
    for function in (sequence_halfwidth, one_sided_halfwidth, log_e_value):
        together = function(errors, n, n_star=800.0)
        assert together.tolist() == pytest.approx(
            [function(error, count, n_star=800.0) for error, count in zip(errors.tolist(), n.tolist(), strict=True)]
        )


# --- how often they are wrong -------------------------------------------------------------------------------------------


def looks_at_random_walks(n_paths: int, *, drift: float, seed: int) -> tuple[Any, Any, Any]:
    """Means of two arms (9 : 1), their standard errors by the variances seen, and the units, at 100 looks of each path."""
    random = np.random.default_rng(seed)
    n_looks, per_look = 100, 30
    control = random.normal(0.0, 1.0, (n_paths, n_looks, per_look * 9 // 10)).astype(np.float64)
    treatment = random.normal(drift, 1.0, (n_paths, n_looks, per_look // 10))
    means, errors = [], []
    for arm in (control, treatment):
        n = np.arange(1, n_looks + 1) * arm.shape[2]
        total, squares = np.cumsum(arm.sum(2), 1), np.cumsum((arm**2).sum(2), 1)
        means.append(total / n)
        errors.append((squares - total**2 / n) / (n - 1) / n)
    units = np.broadcast_to(np.arange(1.0, n_looks + 1) * per_look, (n_paths, n_looks))
    # The small arm's variance is not yet to be trusted before 20 units.
    return means[1][:, 6:] - means[0][:, 6:], np.sqrt(errors[0] + errors[1])[:, 6:], units[:, 6:]


def test_the_sequences_cover_the_truth_at_all_looks_at_once_and_a_fixed_interval_does_not() -> None:
    estimates, errors, units = looks_at_random_walks(1500, drift=0.0, seed=11)
    two = sequence_halfwidth(errors, units, n_star=3000.0)
    one = one_sided_halfwidth(errors, units, n_star=3000.0)
    three_sigma = 3.0 * math.sqrt(0.05 * 0.95 / 1500)
    assert np.mean((np.abs(estimates) > two).any(1)) <= 0.05
    assert np.mean((estimates - one > 0.0).any(1)) <= 0.05 + three_sigma
    assert np.mean((estimates + one < 0.0).any(1)) <= 0.05 + three_sigma
    assert np.mean((np.abs(estimates) > 1.96 * errors).any(1)) > 0.2


def test_the_always_valid_p_rejects_a_truth_as_rarely_as_it_says_and_a_difference_nearly_always() -> None:
    estimates, errors, units = looks_at_random_walks(1500, drift=0.0, seed=12)
    rejected = log_e_value(estimates / errors, units, n_star=3000.0) > -math.log(0.05)
    assert rejected.any(1).mean() <= 0.05
    estimates, errors, units = looks_at_random_walks(300, drift=0.35, seed=13)
    rejected = log_e_value(estimates / errors, units, n_star=3000.0) > -math.log(0.05)
    assert rejected.any(1).mean() > 0.95


# --- planning, and what is refused --------------------------------------------------------------------------------------


def test_the_units_still_needed_make_the_sequence_as_narrow_as_was_asked() -> None:
    difference = rate_difference(control=Rate(495, 900), treatment=Rate(57, 100))
    assert difference is not None
    n = units_until_halfwidth(difference, halfwidth=0.02, n_star=20_000)
    assert n is not None
    spread = difference.standard_error * math.sqrt(difference.n)
    halves = [sequence_halfwidth(spread / math.sqrt(count), float(count), n_star=20_000) for count in (n - 1, n)]
    assert halves[1] <= 0.02 < halves[0] * (1 + 1e-9)
    assert units_until_halfwidth(difference, halfwidth=1e-9, n_star=20_000) is None
    assert units_until_halfwidth(difference, halfwidth=1e9, n_star=20_000) == 1


@pytest.mark.parametrize("n_star", [0.0, -1.0, math.nan, math.inf])
def test_a_plan_of_no_units_is_refused(n_star: float) -> None:
    with pytest.raises(ValueError, match="n_star"):
        confidence_sequence(published(), n_star=n_star)


@pytest.mark.parametrize("alpha", [0.0, 1.0, math.nan, -0.05])
def test_a_level_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        always_valid_p(published(), n_star=1000, alpha=alpha)


def test_a_one_sided_level_of_one_half_is_refused() -> None:
    with pytest.raises(ValueError, match="one half"):
        lower_bound(published(), n_star=1000, alpha=0.5)


def test_the_sequence_of_a_difference_of_means_centres_on_it() -> None:
    difference = mean_difference(control=CONTROL, treatment=TREATMENT)
    assert difference is not None
    interval = confidence_sequence(difference, n_star=5000)
    assert (interval.lower + interval.upper) / 2 == pytest.approx(difference.estimate)
