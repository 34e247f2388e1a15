"""What is decided of an experiment, and in which order of precedence."""

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest
from experiments.made_totals import after, arm, design, shadow, split
from scipy import stats

from mmserver.experiments.deciding import Decision, Design, Looks, Recommendation, decide
from mmserver.experiments.findings import Finding
from mmserver.experiments.policies import ClassicPolicy, Policy, SequentialPolicy
from mmserver.experiments.totals import ArmTotals, ExperimentTotals, PhaseTotals

N_CONTROL, N_TREATMENT = 9_000, 1_000


def decided(
    totals: ExperimentTotals,
    *,
    policy: Policy | None = None,
    hours: float = 100.0,
    looks: Looks | None = None,
    how: Design | None = None,
) -> Decision:
    return decide(totals, policy=policy or SequentialPolicy(), design=how or design(), now=after(hours), looks=looks)


def an_experiment(**treatment: Any) -> ExperimentTotals:
    return split(arm(N_CONTROL, seed=1), arm(N_TREATMENT, seed=2, **treatment))


def finding(recommendation: Recommendation, rule: str) -> Finding:
    return next(found for found in recommendation.findings if found.rule == rule)


# --- each verdict -------------------------------------------------------------------------------------------------------


def test_a_much_better_treatment_is_promoted_with_its_reasons() -> None:
    found = decided(an_experiment(accuracy=0.62)).recommendation
    assert (found.action, found.verdict, found.policy) == ("promote", "promote", "sequential")
    assert len(found.reasons) == 4
    assert "accuracy differs by +7 points" in found.reasons[0]
    certain = finding(found, "certainty")
    assert certain.holds
    assert certain.p_value is not None
    assert certain.p_value < 0.05
    assert found.needs is None


def test_equal_arms_go_on_and_say_how_much_longer_it_would_take() -> None:
    found = decided(an_experiment()).recommendation
    assert (found.action, found.verdict) == ("continue", "continue")
    assert found.needs is not None
    assert found.needs.n_units > 0
    assert found.needs.n_samples == pytest.approx(5 * found.needs.n_units, abs=5)
    assert found.needs.hours == pytest.approx(found.needs.n_units / 100.0, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        pytest.param({"accuracy": 0.45}, "accuracy_loss", id="less accurate"),
        pytest.param({"error_rate": 0.05}, "excess_errors", id="more errors"),
        pytest.param({"latency_ms": 9.0}, "latency_increase", id="slower"),
    ],
)
def test_a_broken_guardrail_rolls_back_and_is_the_only_reason(changes: dict[str, float], rule: str) -> None:
    found = decided(an_experiment(**changes)).recommendation
    assert (found.action, found.verdict) == ("rollback", "rollback")
    broken = [one for one in found.findings if one.kind == "guardrail" and not one.holds]
    assert [one.rule for one in broken] == [rule]
    assert found.reasons == [broken[0].text]


def test_slower_and_more_accurate_is_rolled_back_not_promoted() -> None:
    assert decided(an_experiment(accuracy=0.65, latency_ms=9.0)).recommendation.action == "rollback"


def test_slower_within_the_margin_but_not_certainly_so_goes_on() -> None:
    found = decided(an_experiment(accuracy=0.65, latency_ms=6.98)).recommendation
    assert found.verdict == "continue"
    assert [one.rule for one in found.findings if one.kind == "goal" and not one.holds] == ["latency_margin"]


def test_a_loss_beyond_the_margin_names_the_margin() -> None:
    little, much = (
        finding(decided(an_experiment(accuracy=share)).recommendation, "accuracy_loss") for share in (0.48, 0.4)
    )
    assert (little.limit, much.limit) == (0.0, -0.05)
    assert not little.holds
    assert not much.holds


def test_a_treatment_without_errors_is_not_a_certain_one() -> None:
    few = split(arm(450, error_rate=0.0, seed=1), arm(50, accuracy=0.8, error_rate=0.0, seed=2))
    margin = finding(decided(few).recommendation, "error_rate_margin")
    assert not margin.holds
    assert margin.upper is not None
    assert margin.upper > 0.01


# --- minimums -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", [0.2, 0.9])
def test_before_a_day_nothing_is_concluded(accuracy: float) -> None:
    totals = an_experiment(accuracy=accuracy)
    before, then = (decided(totals, hours=hours).recommendation for hours in (23.9, 24.0))
    assert before.verdict == "continue"
    assert before.reasons == ["it has run for 23.9 h of at least 24"]
    assert then.verdict != "continue"


@pytest.mark.parametrize(
    ("n_units", "size", "rule"),
    [pytest.param(29, 10, "min_units", id="29 units"), pytest.param(33, 3, "min_samples", id="99 outcomes")],
)
def test_too_few_units_or_outcomes_conclude_nothing(n_units: int, size: int, rule: str) -> None:
    totals = split(arm(9 * n_units, accuracy=0.2, size=size), arm(n_units, accuracy=1.0, size=size))
    found = decided(totals)
    assert found.recommendation.verdict == "continue"
    assert [one.rule for one in found.recommendation.findings if one.kind == "minimum" and not one.holds] == [rule]
    assert found.looks.least_p == 1.0


def test_errors_and_latency_need_no_outcomes_to_roll_back() -> None:
    def unlabelled(totals: ArmTotals) -> ArmTotals:
        return dataclasses.replace(totals, accuracy=type(totals.accuracy)(), joins=type(totals.joins)())

    totals = split(unlabelled(arm(9_000)), unlabelled(arm(1_000, error_rate=0.2)))
    assert decided(totals).recommendation.action == "rollback"


def test_nothing_at_all_goes_on() -> None:
    for totals in (ExperimentTotals(), ExperimentTotals(phases={1: PhaseTotals()}), split(arm(1), arm(0))):
        for policy in (SequentialPolicy(), ClassicPolicy()):
            found = decided(totals, policy=policy).recommendation
            assert found.verdict == "continue"
            assert found.reasons


def test_a_clock_set_back_before_the_start_is_no_time_at_all() -> None:
    found = decided(an_experiment(accuracy=0.9), hours=-1.0).recommendation
    assert found.reasons == ["it has run for 0.0 h of at least 24"]


# --- health -------------------------------------------------------------------------------------------------------------


def test_a_planted_sample_ratio_is_invalid_before_anything_else() -> None:
    for changes in ({"accuracy": 0.9}, {"accuracy": 0.2}, {}):
        found = decided(split(arm(9_000), arm(1_200, **changes))).recommendation
        assert (found.action, found.verdict) == ("continue", "invalid")
        assert found.reasons == ["1200 units met the treatment where 1020.0 of 10200 were expected (p = 2.8e-09)"]


def test_units_in_both_arms_are_invalid() -> None:
    def verdict(n: int) -> str:
        totals = split(arm(N_CONTROL), arm(N_TREATMENT, accuracy=0.7), n_units_in_both_arms=n)
        return decided(totals).recommendation.verdict

    assert (verdict(100), verdict(101)) == ("promote", "invalid")


def test_outcomes_that_came_for_one_arm_only_are_invalid() -> None:
    found = decided(split(arm(N_CONTROL, joined=0.98), arm(N_TREATMENT, accuracy=0.7, joined=0.9))).recommendation
    assert found.verdict == "invalid"
    assert "outcomes came for 90.00% of the treatment's predictions" in found.reasons[0]


def test_a_treated_unit_where_none_should_be_is_invalid() -> None:
    found = decided(split(arm(10), arm(1)), how=design(treatment_weights={1: 0.0}))
    assert found.recommendation.verdict == "invalid"


@pytest.mark.parametrize(("n_control", "n_treatment"), [(0, 1), (0, 2), (38, 12), (900, 130), (9_000, 1_090)])
def test_few_units_are_judged_by_the_exact_test_and_many_by_the_chi_square(n_control: int, n_treatment: int) -> None:
    n = n_control + n_treatment
    found = decided(split(arm(n_control), arm(n_treatment))).health.srm_p
    if 0.1 * n < 50:
        exact = stats.binom(n, 0.1)
        expected = 2 * min(exact.cdf(n_treatment), exact.sf(n_treatment - 1))
    else:
        expected = stats.chisquare([n_control, n_treatment], [0.9 * n, 0.1 * n]).pvalue
    assert found == pytest.approx(min(expected, 1.0), rel=1e-6)


def test_a_phase_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="phase 1"):
        decided(an_experiment(), how=design(treatment_weights={2: 0.1}))


def test_each_phase_is_held_to_its_own_weight() -> None:
    phases = {
        1: PhaseTotals(control=arm(900), treatment=arm(100)),
        2: PhaseTotals(control=arm(500), treatment=arm(500)),
    }
    totals = ExperimentTotals(phases=phases)
    assert decided(totals, how=design(treatment_weights={1: 0.1, 2: 0.5})).health.is_sound
    assert not decided(totals, how=design(treatment_weights={1: 0.1, 2: 0.4})).health.is_sound


# --- phases, looks and the end ------------------------------------------------------------------------------------------


def test_a_ramp_at_a_better_time_is_no_difference_of_the_models() -> None:
    phases = {
        1: PhaseTotals(control=arm(9_000, accuracy=0.4), treatment=arm(1_000, accuracy=0.4)),
        2: PhaseTotals(control=arm(5_000, accuracy=0.7), treatment=arm(5_000, accuracy=0.7)),
    }
    totals = ExperimentTotals(phases=phases)
    pooled = (totals.treatment.accuracy.ratio or 0.0) - (totals.control.accuracy.ratio or 0.0)
    assert pooled > 0.1
    found = decided(totals, how=design(treatment_weights={1: 0.1, 2: 0.5}))
    assert found.effects.accuracy is not None
    assert found.effects.accuracy.estimate == pytest.approx(0.0, abs=1e-9)
    assert found.recommendation.verdict == "continue"


def test_what_an_earlier_look_was_sure_of_still_counts() -> None:
    totals = split(arm(N_CONTROL, seed=1), arm(N_TREATMENT, accuracy=0.572, seed=2))
    alone, later = decided(totals), decided(totals, looks=Looks(n=3, least_p=0.01))
    assert alone.recommendation.verdict == "continue"
    assert alone.looks.n == 1
    assert later.recommendation.verdict == "promote"
    assert later.looks == Looks(n=4, least_p=0.01)


def test_that_the_treatment_was_worse_is_no_evidence_that_it_is_better() -> None:
    assert decided(an_experiment(accuracy=0.4)).looks.least_p == 1.0


@pytest.mark.parametrize(
    ("policy", "how", "words"),
    [
        pytest.param({"max_hours": 100.0}, {}, "it has run for 100 h", id="hours"),
        pytest.param({"max_units": 10_000}, {}, "it has had 10000 units", id="units"),
        pytest.param({}, {"deadline_at": after(100.0)}, "the deadline is reached", id="deadline"),
    ],
)
@pytest.mark.parametrize("kind", [SequentialPolicy, ClassicPolicy], ids=["sequential", "classic"])
def test_at_the_end_without_a_difference_that_is_the_finding(
    kind: Any, policy: dict[str, Any], how: dict[str, Any], words: str
) -> None:
    totals = an_experiment(accuracy=0.552)
    found = decided(totals, policy=kind(**policy), how=design(**how)).recommendation
    assert (found.action, found.verdict) == ("continue", "no_difference")
    assert found.reasons[0].startswith(f"{words}, and no difference was found that matters: accuracy +0.2 ± ")


def test_at_the_end_a_promotion_is_still_one() -> None:
    found = decided(an_experiment(accuracy=0.65), policy=SequentialPolicy(max_hours=100.0)).recommendation
    assert found.verdict == "promote"


# --- shadow -------------------------------------------------------------------------------------------------------------


def test_both_models_on_the_same_predictions_are_told_apart_by_few_of_them() -> None:
    how = design(mode="shadow")
    totals = shadow(800, only_control=0.05, only_treatment=0.10)
    assert decided(totals, how=how).recommendation.action == "promote"
    split_arms = split(arm(720, accuracy=0.55), arm(80, accuracy=0.60))
    assert decided(split_arms).recommendation.action == "continue"


def test_a_shadow_that_is_worse_is_rolled_back_and_an_equal_one_goes_on() -> None:
    how = design(mode="shadow")
    worse, equal = (
        shadow(800, only_control=0.1, only_treatment=0.05),
        shadow(800, only_control=0.05, only_treatment=0.05),
    )
    assert decided(worse, how=how).recommendation.action == "rollback"
    assert decided(equal, how=how).recommendation.verdict == "continue"


def test_models_that_never_disagreed_are_not_certainly_equal() -> None:
    found = decided(shadow(100, only_control=0.0, only_treatment=0.0), how=design(mode="shadow"))
    assert found.effects.accuracy is not None
    assert found.effects.accuracy.standard_error == pytest.approx(np.sqrt(1 / 502 / 500), rel=1e-6)


# --- classic ------------------------------------------------------------------------------------------------------------

CLASSIC = ClassicPolicy()


@pytest.mark.parametrize(
    ("changes", "action"),
    [
        pytest.param({"accuracy": 0.57}, "promote", id="two points exactly"),
        pytest.param({"accuracy": 0.569}, "continue", id="less than two points"),
        pytest.param({"accuracy": 0.60, "latency_ms": 6.99}, "promote", id="two ms slower"),
        pytest.param({"accuracy": 0.60, "latency_ms": 7.01}, "continue", id="more than two ms slower"),
        pytest.param({"accuracy": 0.50}, "continue", id="five points less exactly"),
        pytest.param({"accuracy": 0.499}, "rollback", id="more than five points less"),
        pytest.param({"accuracy": 0.60, "error_rate": 0.015}, "promote", id="half as many errors again"),
        pytest.param({"accuracy": 0.60, "error_rate": 0.0152}, "rollback", id="more than that"),
    ],
)
def test_classic_is_the_point_rules(changes: dict[str, float], action: str) -> None:
    totals = split(arm(9_000, seed=1), arm(1_000, seed=2, **changes))
    assert decided(totals, policy=CLASSIC).recommendation.action == action


def test_classic_needs_the_t_test_and_its_minimums() -> None:
    few = split(arm(180), arm(20, accuracy=0.60))
    assert finding(decided(few, policy=CLASSIC).recommendation, "certainty").holds is False
    assert decided(split(arm(171), arm(19, accuracy=1.0)), policy=CLASSIC).recommendation.verdict == "continue"
    assert decided(split(arm(180), arm(20, accuracy=1.0)), policy=CLASSIC).recommendation.verdict == "promote"
    assert decided(an_experiment(accuracy=0.6), policy=CLASSIC, hours=23).recommendation.verdict == "continue"


def test_every_number_of_a_policy_can_be_set() -> None:
    totals = an_experiment(accuracy=0.62)
    assert decided(totals, policy=SequentialPolicy(min_accuracy_gain=0.08)).recommendation.verdict == "continue"
    assert decided(totals, policy=SequentialPolicy(min_hours=200)).recommendation.verdict == "continue"
    assert decided(totals, policy=SequentialPolicy(min_units=1001)).recommendation.verdict == "continue"
    assert decided(totals, policy=SequentialPolicy(min_samples=5001)).recommendation.verdict == "continue"
    assert decided(totals, policy=SequentialPolicy(max_error_rate_margin=0.001)).recommendation.verdict == "continue"
    assert decided(totals, policy=SequentialPolicy(max_latency_increase_ms=0.001)).recommendation.verdict == "continue"
    assert (
        decided(
            an_experiment(latency_ms=9.0), policy=SequentialPolicy(max_latency_increase_ms=10)
        ).recommendation.verdict
        == "continue"
    )
    assert (
        decided(
            an_experiment(error_rate=0.05), policy=SequentialPolicy(max_error_rate_increase=9)
        ).recommendation.verdict
        == "continue"
    )


def test_a_decision_comes_back_from_json_as_it_was() -> None:
    for totals in (an_experiment(), ExperimentTotals()):
        found = decided(totals).recommendation
        assert msgspec.json.decode(msgspec.json.encode(found), type=Recommendation) == found
