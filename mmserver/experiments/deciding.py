"""What to do about an experiment: health before rollback before promotion before going on, each with its reasons.

Nothing is done here: a decision is a value, made from totals, a policy and the looks so far, and made again from the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec
import numpy as np

from mmserver.experiments import findings
from mmserver.experiments.comparisons import Difference, welch_test
from mmserver.experiments.effects import Effects, Mode, counts_of, effects_of, welch_of_predictions
from mmserver.experiments.findings import Finding
from mmserver.experiments.health import Health, health_of
from mmserver.experiments.needs import Needs, needs_of
from mmserver.experiments.policies import ClassicPolicy, Policy, SequentialPolicy
from mmserver.experiments.rules import (
    Array,
    Checks,
    Measured,
    Measures,
    PointChecks,
    PointMeasures,
    classic_checks,
    least_p_of_gain,
    sequential_checks,
)
from mmserver.experiments.sequences import sequence_halfwidth
from mmserver.experiments.totals import ExperimentTotals, RatioMoments

S_PER_HOUR = 3600.0

Action = Literal["promote", "rollback", "continue"]
Verdict = Literal["promote", "rollback", "continue", "invalid", "no_difference"]


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """How an experiment was set up, as far as its decision depends on it.

    Fields:
        treatment_weights: the treatment's share of the units in each phase, by the phase's number.
        deadline_at: ends it as `max_hours` of its policy does.
    """

    started_at: datetime
    treatment_weights: Mapping[int, float]
    mode: Mode = "split"
    deadline_at: datetime | None = None

    def hours_until(self, now: datetime) -> float:
        """How long it has run; 0 where the clock was set back before its start."""
        return max((now - self.started_at).total_seconds() / S_PER_HOUR, 0.0)


class Looks(msgspec.Struct, frozen=True, kw_only=True):
    """What earlier looks found, as far as it still counts; kept from each evaluation for the next.

    Fields:
        least_p: the least always-valid p-value of the treatment being more accurate.
    """

    n: int = 0
    least_p: float = 1.0

    def __post_init__(self) -> None:
        if self.n < 0 or not 0.0 <= self.least_p <= 1.0:
            raise ValueError(f"no looks are n={self.n} with a least p of {self.least_p}")


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and why.

    Fields:
        action: "continue" also where the verdict is "invalid" (repair it and start again) or "no_difference" (stop it and keep
            the control).
        reasons: why this verdict and no other, as sentences. findings: all that was checked, as data.
        needs: how much more a promotion would take, where that can be said.
    """

    action: Action
    verdict: Verdict
    policy: str
    reasons: list[str]
    findings: list[Finding]
    needs: Needs | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A recommendation, and what it rests on.

    Fields:
        looks: to be given to the next decision.
    """

    recommendation: Recommendation
    looks: Looks
    health: Health
    effects: Effects


def decide(
    totals: ExperimentTotals, *, policy: Policy, design: Design, now: datetime, looks: Looks | None = None
) -> Decision:
    """Decide by a policy; the same inputs always give the same decision.

    Args:
        looks: those of the decision before this one; none for the first.
    """
    health = health_of(totals, mode=design.mode, treatment_weights=design.treatment_weights, policy=policy)
    effects = effects_of(totals, mode=design.mode, max_error_rate_increase=policy.max_error_rate_increase)
    hours = design.hours_until(now)
    looks = looks or Looks()
    if isinstance(policy, SequentialPolicy):
        measures = measures_of(totals, effects, mode=design.mode, hours=hours, policy=policy, looks=looks)
        looks = Looks(n=looks.n + 1, least_p=float(measures.least_p[0]))
        verdict, found = _sequential(measures, policy)
        needs = needs_of(totals, effects, mode=design.mode, hours=hours, policy=policy)
    else:
        verdict, found = _classic(point_measures_of(totals, hours=hours), policy)
        looks, needs = Looks(n=looks.n + 1, least_p=looks.least_p), None
    found = [*findings.of_health(health), *found]
    if verdict == "continue":
        end = _end_of(totals, effects.accuracy, policy, design, now)
        if end is not None:
            verdict, found = "no_difference", [*found, end]
    if not health.is_sound:
        verdict = "invalid"
    return Decision(_recommendation(verdict, policy, found, needs), looks, health, effects)


def _recommendation(verdict: Verdict, policy: Policy, found: list[Finding], needs: Needs | None) -> Recommendation:
    action: Action = verdict if verdict in {"promote", "rollback"} else "continue"
    kinds, holding = {
        "invalid": ({"health"}, False),
        "rollback": ({"guardrail"}, False),
        "promote": ({"goal"}, True),
        "no_difference": ({"end"}, False),
        "continue": ({"minimum", "goal"}, False),
    }[verdict]
    reasons = [finding for finding in found if finding.kind in kinds and finding.holds is holding]
    if verdict == "continue" and any(finding.kind == "minimum" for finding in reasons):
        # Before there is enough of anything, what its numbers look like is no reason.
        reasons = [finding for finding in reasons if finding.kind == "minimum"]
    return Recommendation(
        action=action,
        verdict=verdict,
        policy=policy.name,
        reasons=[finding.text for finding in reasons],
        findings=found,
        needs=needs if verdict == "continue" else None,
    )


# --- what the rules look at ---------------------------------------------------------------------------------------------


def measures_of(
    totals: ExperimentTotals, effects: Effects, *, mode: Mode, hours: float, policy: SequentialPolicy, looks: Looks
) -> Measures:
    """For `sequential`, this look counted in."""
    accuracy = Measured.of(effects.accuracy)
    labelled, called = (counts_of(totals, metric, mode=mode) for metric in ("accuracy", "errors"))
    n_matured, n_units_matured = (np.array([count]) for count in labelled)
    return Measures(
        hours=np.array([hours]),
        n_matured=n_matured,
        n_units_matured=n_units_matured,
        n_predictions=np.array([called[0]]),
        n_units=np.array([called[1]]),
        accuracy=accuracy,
        errors=Measured.of(effects.errors),
        excess_errors=Measured.of(effects.excess_errors),
        latency=Measured.of(effects.latency),
        least_p=least_p_of_gain(
            accuracy, policy, n_matured=n_matured, n_units_matured=n_units_matured, so_far=np.array([looks.least_p])
        ),
    )


def point_measures_of(totals: ExperimentTotals, *, hours: float) -> PointMeasures:
    """For `classic`: the numbers of the moment, all phases pooled."""
    control, treatment = totals.control, totals.treatment
    welch = welch_of_predictions(totals)
    return PointMeasures(
        hours=np.array([hours]),
        n_matured=np.array([min(control.accuracy.x, treatment.accuracy.x)]),
        accuracy_gain=_difference(control.accuracy, treatment.accuracy),
        p_value=np.array([welch_test(welch).p_value if welch else math.nan]),
        latency_increase_ms=_difference(control.latency, treatment.latency),
        control_error_rate=_ratio(control.errors),
        treatment_error_rate=_ratio(treatment.errors),
    )


def _ratio(sums: RatioMoments) -> Array:
    return np.array([math.nan if sums.ratio is None else sums.ratio])


def _difference(control: RatioMoments, treatment: RatioMoments) -> Array:
    return _ratio(treatment) - _ratio(control)


# --- what follows -------------------------------------------------------------------------------------------------------


def _sequential(measures: Measures, policy: SequentialPolicy) -> tuple[Verdict, list[Finding]]:
    checks = sequential_checks(measures, policy)
    found = [
        *findings.of_minimums(measures, policy),
        *findings.of_guardrails(measures, checks, policy),
        *findings.of_goals(measures, checks, policy),
    ]
    return _verdict(checks), found


def _classic(measures: PointMeasures, policy: ClassicPolicy) -> tuple[Verdict, list[Finding]]:
    checks = classic_checks(measures, policy)
    return _verdict(checks), [*findings.of_minimums(measures, policy), *findings.of_points(measures, checks, policy)]


def _verdict(checks: Checks | PointChecks) -> Verdict:
    if checks.rollback[0]:
        return "rollback"
    return "promote" if checks.promote[0] else "continue"


def _end_of(
    totals: ExperimentTotals, accuracy: Difference | None, policy: Policy, design: Design, now: datetime
) -> Finding | None:
    """That the planned end is reached, and how near to the control's accuracy the treatment's is by then."""
    n_units = totals.control.n_units + totals.treatment.n_units
    if design.deadline_at is not None and now >= design.deadline_at:
        end = "the deadline is reached"
    elif policy.max_hours is not None and design.hours_until(now) >= policy.max_hours:
        end = f"it has run for {policy.max_hours:g} h"
    elif policy.max_units is not None and n_units >= policy.max_units:
        end = f"it has had {n_units} units"
    else:
        return None
    if accuracy is None:
        return findings.of_end(f"{end}, and the accuracies could not be compared", halfwidth=None)
    half = _halfwidth(accuracy, policy)
    text = f"{end}, and no difference was found that matters: accuracy {100 * accuracy.estimate:+.3g} ± {100 * half:.3g} points"
    return findings.of_end(text, halfwidth=half)


def _halfwidth(accuracy: Difference, policy: Policy) -> float:
    if isinstance(policy, SequentialPolicy):
        n_star = float(policy.planned_units)
        return float(sequence_halfwidth(accuracy.standard_error, float(accuracy.n), n_star=n_star, alpha=policy.alpha))
    return welch_test(accuracy, alpha=policy.alpha).interval.halfwidth
