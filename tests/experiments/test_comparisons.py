"""Comparisons of arms, against the checked cases, scipy and statsmodels."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mmserver.experiments.comparisons import (
    Difference,
    autocorrelated_difference,
    cuped_difference,
    mcnemar,
    mean_difference,
    paired_difference,
    rate_difference,
    ratio_difference,
    relative_difference,
    sample_ratio_mismatch,
    welch_test,
)
from mmserver.experiments.moments import CoMoments, Moments
from mmserver.experiments.rates import Rate

Cases = Callable[[str], dict[str, Any]]


def moments_of(arm: dict[str, float]) -> Moments:
    return Moments.from_sums(int(arm["n"]), arm["sum"], arm["sumsq"])


def difference_of(control: Moments, treatment: Moments) -> Difference:
    difference = mean_difference(control=control, treatment=treatment)
    assert difference is not None
    return difference


# --- means --------------------------------------------------------------------------------------------------------------


def test_welch_is_as_published(case: Cases) -> None:
    found = case("welch_absolute")
    difference = difference_of(moments_of(found["inputs"]["a"]), moments_of(found["inputs"]["b"]))
    test = welch_test(difference, alpha=found["inputs"]["alpha"])
    ours = {
        "diff": difference.estimate,
        "se": difference.standard_error,
        "p": test.p_value,
        "lo": test.interval.lower,
        "hi": test.interval.upper,
    }
    assert ours == pytest.approx(found["expected"], abs=found["tolerance"])


def test_welch_from_means_and_variances_is_that_of_scipy(case: Cases) -> None:
    found = case("ttest_from_stats_scipy")
    given = found["inputs"]
    first = Moments(given["n1"], given["m1"], given["v1"] * (given["n1"] - 1))
    second = Moments(given["n2"], given["m2"], given["v2"] * (given["n2"] - 1))
    test = welch_test(difference_of(control=second, treatment=first))
    assert (test.t, test.p_value) == pytest.approx(
        (found["expected"]["welch_t"], found["expected"]["welch_p"]), abs=found["tolerance"]
    )


def test_a_relative_difference_is_as_gbstats_published() -> None:
    control = Moments(3407, 0.41, 3.9**2 * 3406)
    treatment = Moments(3461, 0.70, 6.2**2 * 3460)
    difference = relative_difference(control=control, treatment=treatment)
    assert difference is not None
    test = welch_test(difference)
    ours = (difference.estimate, difference.standard_error, test.p_value, test.interval.lower, test.interval.upper)
    assert ours == pytest.approx((0.70732, 0.37879, 0.06191, -0.03526, 1.44989), abs=6e-6)


@pytest.mark.parametrize("seed", range(3))
def test_welch_is_that_of_scipy_on_raw_values(seed: int) -> None:
    random = np.random.default_rng(seed)
    control, treatment = random.normal(1e-4, 1e-3, 900), random.normal(2e-4, 3e-3, 100)
    ours = welch_test(difference_of(Moments.from_values(control), Moments.from_values(treatment)))
    theirs = stats.ttest_ind(treatment, control, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert (ours.t, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    assert (ours.interval.lower, ours.interval.upper) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_a_null_other_than_zero_shifts_the_test() -> None:
    difference = Difference(0.05, 0.01, 1000, 500.0)
    assert welch_test(difference, null=0.05).p_value == pytest.approx(1.0)
    assert welch_test(difference, null=0.02).t == pytest.approx(3.0)


def test_a_far_tail_is_not_rounded_to_zero() -> None:
    test = welch_test(Difference(0.2, 0.01, 10_000, 9_000.5))
    assert test.p_value == pytest.approx(2.0 * stats.t.sf(20.0, 9_000.5), rel=1e-9)
    assert 0.0 < test.p_value < 1e-80


def test_a_factor_on_the_control_asks_for_a_ratio() -> None:
    control, treatment = Moments.from_values([1.0, 2.0, 3.0, 6.0]), Moments.from_values([2.0, 5.0, 8.0])
    difference = mean_difference(control=control, treatment=treatment, control_factor=1.5)
    scaled = Moments.from_values([1.5, 3.0, 4.5, 9.0])
    assert difference is not None
    expected = difference_of(scaled, treatment)
    assert (difference.estimate, difference.standard_error, difference.degrees_of_freedom) == pytest.approx(
        (expected.estimate, expected.standard_error, expected.degrees_of_freedom)
    )


def test_a_negative_control_has_a_lift_in_the_direction_of_the_difference() -> None:
    control = Moments.from_values([-2.0, -2.1, -1.9, -2.0])
    better = Moments.from_values([-1.0, -1.1, -0.9, -1.0])
    lift = relative_difference(control=control, treatment=better)
    assert lift is not None
    assert lift.estimate == pytest.approx(0.5)


def test_a_ratio_to_a_control_about_zero_is_refused() -> None:
    returns = Moments.from_values(np.random.default_rng(1).normal(0.0, 1e-3, 500))
    assert relative_difference(control=returns, treatment=returns) is None
    assert relative_difference(control=Moments(5, 0.0, 0.0), treatment=Moments(5, 1.0, 1.0)) is None


@pytest.mark.parametrize(
    ("control", "treatment"),
    [
        pytest.param(Moments(), Moments(5, 1.0, 1.0), id="no control"),
        pytest.param(Moments(5, 1.0, 1.0), Moments(1, 1.0, 0.0), id="one treated"),
        pytest.param(Moments(5, 1.0, 0.0), Moments(5, 2.0, 0.0), id="no spread"),
    ],
)
def test_arms_that_say_nothing_have_no_difference(control: Moments, treatment: Moments) -> None:
    assert mean_difference(control=control, treatment=treatment) is None
    assert relative_difference(control=control, treatment=treatment) is None


def test_one_arm_without_spread_leaves_the_other_s_degrees_of_freedom() -> None:
    assert difference_of(Moments(5, 1.0, 0.0), Moments(8, 2.0, 3.0)).degrees_of_freedom == pytest.approx(7.0)


def test_tiny_variances_keep_their_degrees_of_freedom() -> None:
    tiny = difference_of(Moments(10, 0.0, 9e-200), Moments(10, 1e-100, 9e-200))
    assert tiny.degrees_of_freedom == pytest.approx(18.0)


@pytest.mark.parametrize(("estimate", "error"), [(math.nan, 1.0), (1.0, 0.0), (1.0, math.nan), (1.0, math.inf)])
def test_a_difference_that_is_none_is_refused(estimate: float, error: float) -> None:
    with pytest.raises(ValueError, match="no difference is"):
        Difference(estimate, error, 10, 9.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_a_level_outside_of_0_to_1_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        welch_test(Difference(1.0, 1.0, 10, 9.0), alpha=alpha)


# --- pairs and blocks ---------------------------------------------------------------------------------------------------


def test_the_paired_test_is_that_of_scipy() -> None:
    random = np.random.default_rng(7)
    control = random.normal(0.0, 1.0, 80)
    treatment = control + random.normal(0.1, 0.3, 80)
    difference = paired_difference(CoMoments.from_values(control, treatment).difference)
    assert difference is not None
    theirs = stats.ttest_rel(treatment, control)
    ours = welch_test(difference)
    assert (ours.t, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    assert paired_difference(Moments(4, 1.0, 0.0)) is None


@pytest.mark.parametrize("lag", [0, 1, 5, 30])
def test_the_error_of_resembling_blocks_is_that_of_statsmodels(lag: int) -> None:
    regression = pytest.importorskip("statsmodels.regression.linear_model")
    random = np.random.default_rng(8)
    values = np.convolve(random.normal(0.0, 1.0, 300), np.ones(6) / 6, "valid") + 0.05
    fitted = regression.OLS(values, np.ones(len(values))).fit(cov_type="HAC", cov_kwds={"maxlags": lag})
    ours = autocorrelated_difference(values, lag=lag)
    assert ours is not None
    assert (ours.estimate, ours.standard_error) == pytest.approx((fitted.params[0], fitted.bse[0]), rel=1e-10)


def test_a_lag_beyond_the_blocks_uses_all_of_them() -> None:
    assert autocorrelated_difference([1.0, 2.0, 4.0], lag=50) is not None
    assert autocorrelated_difference([1.0], lag=2) is None
    assert autocorrelated_difference([2.0, 2.0, 2.0], lag=1) is None
    with pytest.raises(ValueError, match="lag"):
        autocorrelated_difference([1.0, 2.0], lag=-1)
    with pytest.raises(ValueError, match="not finite"):
        autocorrelated_difference([1.0, math.nan], lag=1)


def blocks(n_units: int, share: float, random: np.random.Generator) -> tuple[Any, Any]:
    """How many predictions each unit had, and how many were right; within a unit they resemble each other strongly."""
    sizes = random.integers(1, 40, n_units)
    return sizes, random.binomial(sizes, random.beta(4.0 * share, 4.0 * (1.0 - share), n_units))


def test_a_ratio_over_units_has_the_error_of_units_and_not_of_predictions() -> None:
    random = np.random.default_rng(10)
    estimates, errors, naive = [], [], []
    for _ in range(300):
        control, treatment = (CoMoments.from_values(*blocks(100, 0.55, random)) for _ in range(2))
        difference = ratio_difference(control=control, treatment=treatment)
        assert difference is not None
        estimates.append(difference.estimate)
        errors.append(difference.standard_error)
        naive.append(math.sqrt(0.55 * 0.45 * (1 / control.x.total + 1 / treatment.x.total)))
    truth = np.std(estimates, ddof=1)
    assert np.mean(errors) == pytest.approx(truth, rel=0.15)
    assert np.mean(naive) < 0.6 * truth


def test_a_ratio_is_the_delta_method_written_out() -> None:
    sizes, right = blocks(50, 0.5, np.random.default_rng(11))
    other = CoMoments.from_values([10.0] * 50, [5.0, 6.0] * 25)
    difference = ratio_difference(control=other, treatment=CoMoments.from_values(sizes, right), control_factor=1.5)
    covariances = np.cov(right, sizes)
    m, d = right.mean(), sizes.mean()
    ours = covariances[0, 0] / d**2 - 2 * covariances[0, 1] * m / d**3 + covariances[1, 1] * m**2 / d**4
    theirs = np.var([0.5, 0.6] * 25, ddof=1)
    assert difference is not None
    assert difference.estimate == pytest.approx(right.sum() / sizes.sum() - 1.5 * 0.55)
    assert difference.standard_error == pytest.approx(math.sqrt(ours / 50 + 1.5**2 * theirs / 50), rel=1e-10)
    assert difference.n == 100


def test_units_of_size_one_have_the_error_of_their_values() -> None:
    random = np.random.default_rng(12)
    control, treatment = random.normal(0.0, 1.0, 60), random.normal(0.2, 2.0, 40)
    ratio = ratio_difference(
        control=CoMoments.from_values(np.ones(60), control), treatment=CoMoments.from_values(np.ones(40), treatment)
    )
    plain = difference_of(Moments.from_values(control), Moments.from_values(treatment))
    assert ratio is not None
    assert (ratio.estimate, ratio.standard_error, ratio.degrees_of_freedom) == pytest.approx(
        (plain.estimate, plain.standard_error, plain.degrees_of_freedom), rel=1e-9
    )


def test_blocks_without_any_error_are_not_certain() -> None:
    sizes = np.arange(5.0, 45.0)
    spotless = CoMoments.merged([CoMoments.from_values(sizes[i::7], np.zeros(len(sizes[i::7]))) for i in range(7)])
    perfect = CoMoments.merged([CoMoments.from_values(sizes[i::7], sizes[i::7]) for i in range(7)])
    for arm in (spotless, perfect):
        assert ratio_difference(control=arm, treatment=arm) is None
        difference = ratio_difference(control=arm, treatment=arm, is_rate=True)
        share = 1.0 / (sizes.sum() + 2.0)
        assert difference is not None
        assert difference.standard_error == pytest.approx(math.sqrt(2 * share * (1 - share) / sizes.sum()))


def test_units_without_anything_in_them_have_no_ratio() -> None:
    some = CoMoments.from_values([2.0, 3.0, 4.0], [1.0, 1.0, 4.0])
    empty = CoMoments.from_values([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    assert ratio_difference(control=some, treatment=empty) is None
    assert ratio_difference(control=CoMoments(), treatment=some) is None


# --- rates --------------------------------------------------------------------------------------------------------------


def test_an_arm_without_any_error_is_not_certain() -> None:
    difference = rate_difference(control=Rate(0, 50), treatment=Rate(0, 50))
    assert difference is not None
    share = 1 / 52
    assert difference.estimate == 0.0
    assert difference.standard_error == pytest.approx(math.sqrt(2 * share * (1 - share) / 50))


def test_the_error_guardrail_is_a_difference_to_a_multiple_of_the_control() -> None:
    difference = rate_difference(control=Rate(90, 9000), treatment=Rate(20, 1000), control_factor=1.5, smoothed=False)
    assert difference is not None
    variance = 1.5**2 * 0.01 * 0.99 / 9000 + 0.02 * 0.98 / 1000
    assert (difference.estimate, difference.standard_error) == pytest.approx((0.005, math.sqrt(variance)))


def test_rates_without_trials_have_no_difference() -> None:
    assert rate_difference(control=Rate(), treatment=Rate(1, 2)) is None
    assert rate_difference(control=Rate(0, 4), treatment=Rate(0, 4), smoothed=False) is None
    assert rate_difference(control=Rate(0, 1), treatment=Rate(1, 1)) is not None


# --- counts -------------------------------------------------------------------------------------------------------------


def test_the_sample_ratio_test_is_pearson_s_with_the_configured_weights(case: Cases) -> None:
    found = case("chisquare_gof_scipy")
    test = sample_ratio_mismatch(found["inputs"]["f_obs"], found["inputs"]["f_exp"])
    assert test is not None
    assert test.degrees_of_freedom == 5
    assert (test.statistic, test.p_value) == pytest.approx(
        (found["expected"]["stat"], found["expected"]["p"]), abs=found["tolerance"]
    )


@pytest.mark.parametrize(("counts", "weights"), [((9043, 957), (0.9, 0.1)), ((500, 520, 470), (1.0, 1.0, 1.0))])
def test_the_sample_ratio_test_is_that_of_scipy(counts: tuple[int, ...], weights: tuple[float, ...]) -> None:
    test = sample_ratio_mismatch(counts, weights)
    expected = np.array(weights) / sum(weights) * sum(counts)
    theirs = stats.chisquare(counts, expected)
    assert test is not None
    assert (test.statistic, test.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)


def test_an_arm_of_weight_zero_costs_no_degree_of_freedom_and_may_have_no_unit() -> None:
    two, three = sample_ratio_mismatch([880, 120], [0.9, 0.1]), sample_ratio_mismatch([880, 0, 120], [0.9, 0.0, 0.1])
    assert two == three
    impossible = sample_ratio_mismatch([880, 1, 120], [0.9, 0.0, 0.1])
    assert impossible is not None
    assert impossible.p_value == 0.0


def test_a_sample_ratio_is_judged_from_the_first_unit_on() -> None:
    assert sample_ratio_mismatch([0, 0], [0.9, 0.1]) is None
    all_to_one = sample_ratio_mismatch([5, 0], [1.0, 0.0])
    assert all_to_one is not None
    assert (all_to_one.p_value, all_to_one.degrees_of_freedom) == (1.0, 0)


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([1, 2], [1.0]),
        ([-1, 2], [0.5, 0.5]),
        ([1, 2], [-0.5, 0.5]),
        ([1, 2], [math.nan, 0.5]),
        ([1, 2], [math.inf, 1]),
        ([1, 2], [0.0, 0.0]),
        ([0, 0], [0.0, 0.0]),
    ],
)
def test_counts_and_weights_that_do_not_fit_are_refused(counts: list[int], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        sample_ratio_mismatch(counts, weights)


def test_mcnemar_is_as_in_the_book(case: Cases) -> None:
    found = case("mcnemar_paired_accuracy")
    (_, b), (c, _) = found["inputs"]["table"]
    test = mcnemar(only_control=b, only_treatment=c)
    assert test is not None
    assert not test.is_exact
    assert test.statistic == pytest.approx(found["expected"]["stat"], abs=found["tolerance"])
    assert test.p_value == pytest.approx(found["expected"]["p"], rel=1e-3)


@pytest.mark.parametrize(("b", "c"), [(0, 1), (3, 3), (2, 9), (24, 0), (12, 12), (10, 14)])
def test_few_discordant_pairs_are_judged_by_the_exact_binomial(b: int, c: int) -> None:
    test = mcnemar(only_control=b, only_treatment=c)
    assert test is not None
    assert test.is_exact
    assert test.p_value == pytest.approx(stats.binomtest(b, b + c, 0.5).pvalue, rel=1e-12)


def test_mcnemar_changes_to_the_chi_square_at_25_pairs() -> None:
    at_24, at_25 = mcnemar(only_control=6, only_treatment=18), mcnemar(only_control=7, only_treatment=18)
    assert at_24 is not None
    assert at_25 is not None
    assert (at_24.is_exact, at_25.is_exact) == (True, False)
    assert mcnemar(only_control=0, only_treatment=0) is None
    with pytest.raises(ValueError, match="negative"):
        mcnemar(only_control=-1, only_treatment=3)


# --- CUPED --------------------------------------------------------------------------------------------------------------


def test_cuped_is_as_published(case: Cases) -> None:
    found = case("cuped_absolute")
    given = found["inputs"]
    ours = cuped_difference(
        control=CoMoments.from_values(given["x_c"], given["y_c"]),
        treatment=CoMoments.from_values(given["x_t"], given["y_t"]),
    )
    assert ours is not None
    found_values = {"adj_diff": ours.difference.estimate, "adj_var": ours.variance, "theta": ours.theta}
    assert found_values == pytest.approx(found["expected"], abs=found["tolerance"])


def test_a_covariate_that_explains_the_outcome_narrows_the_difference_and_keeps_it_unbiased() -> None:
    random = np.random.default_rng(9)
    x_c, x_t = random.normal(0, 1, 2000), random.normal(0, 1, 2000)
    y_c, y_t = x_c + random.normal(0, 0.3, 2000), x_t + random.normal(0.1, 0.3, 2000)
    plain = difference_of(Moments.from_values(y_c), Moments.from_values(y_t))
    ours = cuped_difference(control=CoMoments.from_values(x_c, y_c), treatment=CoMoments.from_values(x_t, y_t))
    assert ours is not None
    assert ours.difference.standard_error < 0.4 * plain.standard_error
    assert abs(ours.difference.estimate - 0.1) < 4.0 * ours.difference.standard_error


def test_a_constant_covariate_adjusts_nothing() -> None:
    arm = CoMoments.from_values([1.0, 1.0, 1.0], [1.0, 2.0, 4.0])
    assert cuped_difference(control=arm, treatment=arm) is None
    assert cuped_difference(control=CoMoments(), treatment=CoMoments()) is None
