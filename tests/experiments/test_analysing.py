"""What is shown of an experiment, against what it is by definition."""

import dataclasses
import json
from datetime import date

import msgspec
import numpy as np
import pytest
from experiments.made_totals import after, arm, design, of_units, shadow, split

from mmserver.experiments.analysing import Analysis, analyse
from mmserver.experiments.classification import ConfusionCounts
from mmserver.experiments.comparisons import mcnemar
from mmserver.experiments.deciding import Design, Looks, decide
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.policies import ClassicPolicy, SequentialPolicy
from mmserver.experiments.rates import Rate
from mmserver.experiments.totals import (
    ArmTotals,
    DaySums,
    ExperimentTotals,
    PairedMoments,
    PairedTotals,
    PhaseTotals,
    SymbolTotals,
)

DAY = 20_458


def analysed(totals: ExperimentTotals, *, how: Design | None = None, looks: Looks | None = None) -> Analysis:
    return analyse(totals, policy=SequentialPolicy(), design=how or design(), now=after(100), looks=looks)


def daily(returns: list[float], *, n: int = 10) -> dict[int, DaySums]:
    return {DAY + place: DaySums(n, 1, n, 6, n, n * value) for place, value in enumerate(returns)}


def a_full_arm(seed: int, **changes: float) -> ArmTotals:
    generator = np.random.default_rng(seed)
    base = arm(1_000, seed=seed, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(
        base,
        returns=of_units([5] * 1_000, generator.normal(1e-4, 1e-2, 1_000).tolist()),
        wins=Rate(520, 1_000),
        labels=ConfusionCounts(((5, 1, 0), (2, 6, 0), (1, 1, 0))),
        latencies=Latencies.from_ms(generator.normal(5.0, 0.5, 5_000)),
        days=daily(generator.normal(0.001, 0.01, 40).tolist()),
        first_at_us=0,
        last_at_us=10_000_000,
    )


def both(**treatment: float) -> ExperimentTotals:
    return split(a_full_arm(1), a_full_arm(2, **treatment))


HALVES = design(treatment_weights={1: 0.5})


def test_an_arm_is_reported_with_all_its_numbers() -> None:
    arm_ = a_full_arm(1)
    report = analysed(both(), how=HALVES).control
    assert (report.n_units, report.n_predictions, report.n_matured, report.n_errors) == (1_000, 5_000, 5_000, 50)
    assert report.accuracy == pytest.approx(0.55)
    assert report.error_rate == pytest.approx(0.01)
    assert report.win_rate == pytest.approx(0.52)
    assert report.average_return == pytest.approx(arm_.returns.y / 5_000)
    assert report.average_latency_ms == pytest.approx(5.0)
    assert report.p50_latency_ms == pytest.approx(5.0, rel=0.02)
    assert report.p95_latency_ms == pytest.approx(5.82, rel=0.03)
    assert report.percentile_definition == "nearest_rank"
    assert report.throughput_per_s == pytest.approx(500.0)
    assert report.accuracy_standard_error == pytest.approx(np.sqrt(0.55 * 0.45 / 5_000), rel=0.1)


def test_a_class_that_was_never_predicted_has_no_precision_and_is_left_out_of_the_mean() -> None:
    report = analysed(both(), how=HALVES).control
    sell = report.by_class["SELL"]
    assert (sell.precision, sell.recall, sell.f1) == (None, 0.0, 0.0)
    assert report.precision == pytest.approx((5 / 8 + 6 / 8) / 2)
    assert report.recall == pytest.approx((5 / 6 + 6 / 8 + 0.0) / 3)
    assert list(report.by_class) == ["HOLD", "BUY", "SELL"]


def test_nothing_is_shown_of_nothing_rather_than_zero() -> None:
    for totals in (ExperimentTotals(), ExperimentTotals(phases={1: PhaseTotals()})):
        found = analysed(totals)
        for report in (found.control, found.treatment):
            for name in ("accuracy", "precision", "recall", "f1", "win_rate", "average_return", "error_rate"):
                assert getattr(report, name) is None
            for name in ("average_latency_ms", "p50_latency_ms", "p95_latency_ms", "throughput_per_s"):
                assert getattr(report, name) is None
            assert report.sharpe.ratio is None
        assert {value.absolute for value in found.improvement.values()} == {None}
        assert set(msgspec.structs.asdict(found.tests).values()) == {None}


def test_the_sharpe_ratio_comes_with_its_error_and_a_resampled_interval() -> None:
    found = analysed(both(), how=HALVES)
    report, test = found.control.sharpe, found.tests.sharpe
    days = np.array([value.total_return / 10 for value in a_full_arm(1).days.values()])
    assert report.n_days == 40
    assert report.ratio == pytest.approx(days.mean() / days.std(ddof=1))
    assert report.ratio is not None
    assert report.standard_error == pytest.approx(np.sqrt((1 + report.ratio**2 / 2) / 40))
    assert report.annualised == pytest.approx(np.sqrt(365) * report.ratio)
    assert test is not None
    assert test.bootstrap_lower is not None
    assert test.bootstrap_upper is not None
    assert test.bootstrap_lower < test.difference < test.bootstrap_upper
    assert analysed(both(), how=HALVES) == found


def test_days_that_resemble_those_before_them_have_a_lower_annual_sharpe_ratio() -> None:
    days = np.random.default_rng(9).normal(0.0, 1e-3, 400)
    for day in range(1, 400):
        days[day] += 0.5 * days[day - 1]
    arm = dataclasses.replace(
        a_full_arm(1), days={day: DaySums(n_returns=1, total_return=float(r) + 2e-4) for day, r in enumerate(days)}
    )
    report = analysed(split(arm, a_full_arm(2)), how=HALVES).control.sharpe
    assert report.ratio is not None
    assert report.annualised is not None
    # Lo's eta of a year whose days have the autocorrelations .5, .25, …: sqrt(365 / 3), where it is sqrt(365) without.
    assert report.annualised / report.ratio == pytest.approx(np.sqrt(365 / 3), rel=0.15)


def test_returns_are_shown_and_decide_nothing() -> None:
    rich = dataclasses.replace(
        a_full_arm(2), returns=of_units([5] * 1_000, [1.0] * 999 + [1.1]), wins=Rate(1_000, 1_000)
    )
    found = analysed(split(a_full_arm(1), rich), how=HALVES)
    assert found.tests.returns_t_test is not None
    assert found.tests.returns_t_test.p_value < 1e-6
    assert found.recommendation.verdict == "continue"


def test_a_ratio_to_a_control_that_may_be_zero_is_not_shown() -> None:
    found = analysed(both(), how=HALVES).improvement
    assert found["average_return"].absolute is not None
    assert found["average_return"].relative is None
    assert found["accuracy"].relative == pytest.approx(0.0)
    assert found["sharpe_ratio"].relative is None


def test_improvements_lie_within_their_sequences() -> None:
    found = analysed(both(accuracy=0.6), how=HALVES).improvement["accuracy"]
    assert found.absolute == pytest.approx(0.05)
    assert found.relative == pytest.approx(0.05 / 0.55)
    assert found.lower is not None
    assert found.upper is not None
    assert found.lower < 0.05 < found.upper
    assert found.standard_error is not None
    assert found.upper - 0.05 > 1.96 * found.standard_error


def test_the_t_test_of_the_earlier_service_is_shown_with_its_confidence() -> None:
    found = analysed(both(accuracy=0.6), how=HALVES).tests
    assert found.t_test is not None
    assert found.t_test.confidence_level == 1.0 - found.t_test.p_value
    assert found.t_test.t == pytest.approx(0.05 / np.sqrt(0.55 * 0.45 / 4_999 + 0.6 * 0.4 / 4_999), rel=1e-3)
    assert found.accuracy_sequence is not None
    assert found.accuracy_sequence.always_valid_p > found.t_test.p_value


def test_the_other_policy_s_word_is_shown_beside() -> None:
    totals = split(arm(900), arm(100, accuracy=0.49))
    found = analysed(totals)
    assert (found.recommendation.policy, found.recommendation.verdict) == ("sequential", "continue")
    assert (found.other_policy.policy, found.other_policy.verdict) == ("classic", "rollback")
    turned = analyse(totals, policy=ClassicPolicy(), design=design(), now=after(100))
    assert (turned.recommendation.verdict, turned.other_policy.policy) == ("rollback", "sequential")


def test_the_recommendation_is_the_decision() -> None:
    looks = Looks(n=2, least_p=0.2)
    found = analysed(both(accuracy=0.62), how=HALVES, looks=looks)
    decision = decide(both(accuracy=0.62), policy=SequentialPolicy(), design=HALVES, now=after(100), looks=looks)
    assert found.recommendation == decision.recommendation
    assert found.looks == decision.looks
    assert found.health == decision.health


# --- pairs --------------------------------------------------------------------------------------------------------------


def test_a_shadow_is_told_by_mcnemar_too() -> None:
    found = analysed(shadow(400, only_control=0.05, only_treatment=0.1), how=design(mode="shadow"))
    test = found.tests.mcnemar
    exact = mcnemar(only_control=100, only_treatment=200)
    assert test is not None
    assert exact is not None
    assert (test.n_only_control, test.n_only_treatment) == (100, 200)
    assert (test.statistic, test.p_value, test.is_exact) == (exact.statistic, exact.p_value, False)
    assert found.tests.accuracy_cuped is None
    assert found.progress.n_units == 400


def test_a_split_with_the_control_in_the_shadow_is_adjusted_by_it() -> None:
    control = shadow(1_800, only_control=0.05, only_treatment=0.05, seed=1).phases[1].control
    treated = shadow(200, only_control=0.05, only_treatment=0.05, seed=2).phases[1]
    found = analysed(split(control, treated.treatment, paired=treated.paired))
    test = found.tests.accuracy_cuped
    assert test is not None
    assert 0.5 < test.theta < 1.1
    assert test.variance_left is not None
    assert test.variance_left < 0.6
    assert found.tests.mcnemar is not None


# --- symbols and days ---------------------------------------------------------------------------------------------------


def with_symbols(parts: dict[str, SymbolTotals]) -> ExperimentTotals:
    return split(arm(900), arm(100), by_symbol=parts)


def test_one_symbol_in_many_is_not_a_finding_by_itself() -> None:
    def symbol(seed: int, accuracy: float = 0.5) -> SymbolTotals:
        control, treatment = arm(200, accuracy=0.5, seed=seed), arm(60, accuracy=accuracy, seed=seed + 1)
        return SymbolTotals(control_accuracy=control.accuracy, treatment_accuracy=treatment.accuracy)

    names = [f"S{number:02}" for number in range(20)]
    parts = {name: symbol(2 * number) for number, name in enumerate(names)}
    parts["S07"] = symbol(99, accuracy=0.57)
    found = analysed(with_symbols(parts)).by_symbol
    assert [report.symbol for report in found] == names
    odd = found[7]
    assert odd.p_value is not None
    assert odd.adjusted_p_value is not None
    assert odd.p_value < 0.05 < odd.adjusted_p_value
    assert odd.adjusted_p_value == pytest.approx(20 * odd.p_value)
    assert odd.accuracy_difference == pytest.approx(0.07)


def test_a_symbol_of_one_arm_has_no_difference() -> None:
    (found,) = analysed(with_symbols({"BTC/USDT": SymbolTotals(control_accuracy=arm(9).accuracy)})).by_symbol
    assert (found.n_control, found.n_treatment) == (45, 0)
    assert (found.treatment_accuracy, found.p_value, found.adjusted_p_value) == (None, None, None)


def test_symbols_in_the_shadow_are_compared_pair_by_pair() -> None:
    pairs = shadow(300, only_control=0.02, only_treatment=0.08).phases[1].paired
    assert pairs is not None
    part = SymbolTotals(
        control_accuracy=pairs.accuracy.control,
        treatment_accuracy=pairs.accuracy.treatment,
        paired_accuracy=pairs.accuracy,
    )
    totals = ExperimentTotals(phases={1: PhaseTotals(paired=PairedTotals(), by_symbol={"A": part})})
    (found,) = analysed(totals, how=design(mode="shadow")).by_symbol
    assert found.accuracy_difference == pytest.approx(0.06)
    assert found.p_value is not None
    assert found.p_value < 1e-6
    assert PairedMoments() == PairedTotals().accuracy


def test_days_that_one_arm_missed_are_shown() -> None:
    control = dataclasses.replace(arm(9), days=daily([0.01, 0.02]))
    treatment = dataclasses.replace(arm(1), days={DAY + 2: DaySums(n_predictions=4, n_errors=1)})
    found = analysed(split(control, treatment)).by_day
    assert [report.day for report in found] == [date(2026, 1, 5), date(2026, 1, 6), date(2026, 1, 7)]
    assert (found[0].control_accuracy, found[0].control_return, found[0].treatment_return) == (
        0.6,
        pytest.approx(0.01),
        None,
    )
    assert (found[2].n_treatment, found[2].treatment_error_rate, found[2].control_error_rate) == (4, 0.25, None)


def test_an_analysis_is_json_and_comes_back_from_it() -> None:
    for totals in (both(), ExperimentTotals()):
        encoded = msgspec.json.encode(analysed(totals, how=HALVES))
        assert set(json.loads(encoded)) >= {"control", "treatment", "improvement", "tests", "recommendation"}
        assert msgspec.json.decode(encoded, type=Analysis) == analysed(totals, how=HALVES)
