"""Shares and their intervals, against the checked cases and statsmodels."""

from collections.abc import Callable
from typing import Any

import pytest

from mmserver.experiments.intervals import Interval
from mmserver.experiments.rates import Rate, newcombe_interval, one_proportion_z, two_proportion_z, wilson_interval

Cases = Callable[[str], dict[str, Any]]
PAIRS = [
    (Rate(7, 34), Rate(1, 34)),
    (Rate(0, 10), Rate(0, 12)),
    (Rate(5, 5), Rate(0, 7)),
    (Rate(81, 90), Rate(700, 800)),
]


def test_the_z_test_of_two_shares_is_as_published(case: Cases) -> None:
    found = case("two_proportion_ztest_statsmodels")
    (x_0, x_1), (n_0, n_1) = found["inputs"]["count"], found["inputs"]["nobs"]
    test = two_proportion_z(control=Rate(x_0, n_0), treatment=Rate(x_1, n_1))
    assert test is not None
    assert test.z > 0
    assert test.p_value == pytest.approx(found["expected"]["two_sample_p"], abs=found["tolerance"])
    count, n, expected = found["inputs"]["one_sample"]
    one = one_proportion_z(Rate(count, n), expected=expected)
    assert one is not None
    assert one.p_value == pytest.approx(found["expected"]["one_sample_p"], abs=found["tolerance"])


def test_newcombe_s_interval_is_as_published(case: Cases) -> None:
    found = case("newcombe_ci_diff_proportions")
    given = found["inputs"]
    interval = newcombe_interval(
        treatment=Rate(given["count1"], given["nobs1"]),
        control=Rate(given["count2"], given["nobs2"]),
        confidence=1.0 - given["alpha"],
    )
    assert (interval.lower, interval.upper) == pytest.approx(found["expected"], abs=found["tolerance"])


@pytest.mark.parametrize(("treatment", "control"), PAIRS, ids=["few", "none", "all and none", "many"])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.999])
def test_the_intervals_are_those_of_statsmodels(treatment: Rate, control: Rate, confidence: float) -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    ours = newcombe_interval(control=control, treatment=treatment, confidence=confidence)
    theirs = proportion.confint_proportions_2indep(
        treatment.count, treatment.n, control.count, control.n, method="newcomb", alpha=1.0 - confidence
    )
    assert (ours.lower, ours.upper) == pytest.approx(theirs, abs=1e-9)
    one = wilson_interval(treatment, confidence=confidence)
    assert (one.lower, one.upper) == pytest.approx(
        proportion.proportion_confint(treatment.count, treatment.n, alpha=1.0 - confidence, method="wilson"), abs=1e-12
    )


def test_shares_that_cannot_differ_are_not_tested() -> None:
    assert two_proportion_z(control=Rate(0, 5), treatment=Rate(0, 9)) is None
    assert two_proportion_z(control=Rate(5, 5), treatment=Rate(9, 9)) is None
    assert two_proportion_z(control=Rate(), treatment=Rate(1, 9)) is None
    assert one_proportion_z(Rate(), expected=0.5) is None


def test_without_trials_everything_is_possible() -> None:
    assert wilson_interval(Rate()) == Interval(0.0, 1.0)
    assert newcombe_interval(control=Rate(), treatment=Rate(3, 3)) == Interval(-1.0, 1.0)
    assert Rate().value is None


def test_an_interval_at_the_edge_ends_there_and_is_not_empty() -> None:
    assert wilson_interval(Rate(0, 10)).lower == 0.0
    assert wilson_interval(Rate(10, 10)).upper == 1.0
    assert 0.2 < wilson_interval(Rate(0, 10)).upper < 0.3


def test_the_smoothed_share_is_never_certain() -> None:
    assert (Rate(0, 8).smoothed, Rate(8, 8).smoothed) == (0.1, 0.9)


def test_rates_merge() -> None:
    assert Rate(1, 3).merge(Rate(2, 5)).merge(Rate()) == Rate(3, 8)


@pytest.mark.parametrize(("count", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_a_rate_that_is_none_is_refused(count: int, n: int) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        Rate(count, n)


def test_an_interval_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="no interval"):
        Interval(1.0, 0.0)
    with pytest.raises(ValueError, match="no interval"):
        Interval(float("nan"), 0.0)


def test_an_interval_knows_its_half_width_and_what_it_has() -> None:
    assert Interval(-1.0, 3.0).halfwidth == 2.0
    assert Interval(-float("inf"), 3.0).halfwidth == float("inf")
    assert [Interval(-1.0, 3.0).has(value) for value in (-1.0, 3.0, 3.1)] == [True, True, False]
