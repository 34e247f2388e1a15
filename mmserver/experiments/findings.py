"""What was found of an experiment, each as a sentence and as the numbers of it."""

from typing import Literal

import msgspec
import numpy as np

from mmserver.experiments.health import Health
from mmserver.experiments.policies import ClassicPolicy, SequentialPolicy
from mmserver.experiments.rules import Checks, Measured, Measures, PointChecks, PointMeasures, guardrail_alpha

Kind = Literal["health", "minimum", "guardrail", "goal", "end"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was checked.

    Fields:
        holds: whether it is as a promotion needs it; a guardrail that does not hold asks for a rollback.
        value: what was measured. lower, upper: what the truth lies above and below at all looks at once, where that is known.
        limit: what it was held to. p_value: of health and certainty.
    """

    rule: str
    kind: Kind
    holds: bool
    text: str
    value: float | None = None
    lower: float | None = None
    upper: float | None = None
    limit: float | None = None
    p_value: float | None = None


def of_health(health: Health) -> list[Finding]:
    """The checks, as far as there was something to check."""
    found = []
    if health.has_lost_observations:
        found.append(
            Finding(
                rule="lost_observations",
                kind="health",
                holds=False,
                text="observations.sqlite lacks what the last decision was made from, or has phases that the database does not"
                " know: one of them was deleted, or is an older copy; make another experiment",
            )
        )
    if health.srm_p is not None:
        seen, expected = health.n_treatment_units, health.expected_treatment_units
        found.append(
            Finding(
                rule="sample_ratio",
                kind="health",
                holds=not health.has_wrong_ratio,
                text=f"{seen} units met the treatment where {expected:.1f} of {health.n_control_units + seen} were expected"
                f" (p = {health.srm_p:.2g})",
                value=float(seen),
                limit=expected,
                p_value=health.srm_p,
            )
        )
    if health.both_arms_share is not None:
        found.append(
            Finding(
                rule="mixed_units",
                kind="health",
                holds=not health.has_mixed_units,
                text=f"{health.both_arms_share:.2%} of the units met both arms",
                value=health.both_arms_share,
            )
        )
    if health.join_p is not None:
        control, treatment = health.control_join_rate or 0.0, health.treatment_join_rate or 0.0
        found.append(
            Finding(
                rule="lost_outcomes",
                kind="health",
                holds=not health.has_lost_outcomes,
                text=f"outcomes came for {treatment:.2%} of the treatment's predictions and {control:.2%} of the control's"
                f" (p = {health.join_p:.2g})",
                value=treatment - control,
                p_value=health.join_p,
            )
        )
    return found


# --- sequential ---------------------------------------------------------------------------------------------------------


def of_minimums(measures: Measures | PointMeasures, policy: SequentialPolicy | ClassicPolicy) -> list[Finding]:
    """Whether there is enough of anything to conclude from."""
    hours, n_matured = _one(measures.hours), _one(measures.n_matured)
    found = [
        _at_least(
            "min_hours", hours, policy.min_hours, f"it has run for {hours:.1f} h of at least {policy.min_hours:g}"
        ),
        _at_least(
            "min_samples",
            n_matured,
            policy.min_samples,
            f"the arm with fewer outcomes has {n_matured:.0f} of at least {policy.min_samples}",
        ),
    ]
    if isinstance(measures, Measures) and isinstance(policy, SequentialPolicy):
        n_units = _one(measures.n_units_matured)
        found.append(
            _at_least(
                "min_units",
                n_units,
                policy.min_units,
                f"the arm with fewer units that have outcomes has {n_units:.0f} of at least {policy.min_units}",
            )
        )
    return found


def _at_least(rule: str, value: float, limit: float, text: str) -> Finding:
    return Finding(rule=rule, kind="minimum", holds=value >= limit, text=text, value=value, limit=limit)


def of_guardrails(measures: Measures, checks: Checks, policy: SequentialPolicy) -> list[Finding]:
    """What asks for a rollback where it does not hold, most telling first."""
    alpha = guardrail_alpha(policy)
    accuracy, excess, latency = (
        _Bounds(measured, policy, alpha) for measured in (measures.accuracy, measures.excess_errors, measures.latency)
    )
    is_worse, is_much_worse = _holds(checks.is_worse), _holds(checks.is_much_worse)
    loss = -policy.max_accuracy_loss if is_much_worse else 0.0
    times = 1.0 + policy.max_error_rate_increase
    return [
        accuracy.finding(
            "accuracy_loss",
            not (_holds(checks.has_outcomes) and is_worse),
            "the accuracies cannot be compared yet"
            if accuracy.is_unknown
            else f"the treatment's accuracy differs by {_points(accuracy.value)} points, certainly by less than {_points(accuracy.upper)}"
            + (f" (it may {f'by {_points(loss)}' if loss else 'not be lower'})" if is_worse else ""),
            limit=loss,
        ),
        excess.finding(
            "excess_errors",
            not (_holds(checks.has_calls) and _holds(checks.has_excess_errors)),
            "the error rates cannot be compared yet"
            if excess.is_unknown
            else f"the treatment's error rate less {times:g} times the control's is {_points(excess.value)} points, certainly more than"
            f" {_points(excess.lower)}",
            limit=0.0,
        ),
        latency.finding(
            "latency_increase",
            not (_holds(checks.has_calls) and _holds(checks.is_slower)),
            "the latencies cannot be compared yet"
            if latency.is_unknown
            else f"the treatment's latency differs by {latency.value:+.3g} ms, certainly by more than {latency.lower:+.3g} ms"
            f" (it may by {policy.max_latency_increase_ms:g})",
            limit=policy.max_latency_increase_ms,
        ),
    ]


def of_goals(measures: Measures, checks: Checks, policy: SequentialPolicy) -> list[Finding]:
    """What a promotion needs."""
    accuracy, errors, latency = (
        _Bounds(measured, policy, policy.alpha) for measured in (measures.accuracy, measures.errors, measures.latency)
    )
    least_p = _one(measures.least_p)
    return [
        accuracy.finding(
            "accuracy_gain",
            _holds(checks.is_better),
            f"the accuracy differs by {_points(accuracy.value)} points of at least {_points(policy.min_accuracy_gain)}"
            if not accuracy.is_unknown
            else "the gain in accuracy is not known yet",
            kind="goal",
            limit=policy.min_accuracy_gain,
        ),
        Finding(
            rule="certainty",
            kind="goal",
            holds=_holds(checks.is_certain),
            text=f"that the treatment is more accurate has an always-valid p of {least_p:.2g}"
            f" ({'below' if _holds(checks.is_certain) else 'not below'} {policy.alpha:g})",
            limit=policy.alpha,
            p_value=least_p,
        ),
        errors.finding(
            "error_rate_margin",
            _holds(checks.errors_are_bounded),
            "the error rates cannot be compared yet"
            if errors.is_unknown
            else f"the error rate is higher by at most {_points(errors.upper)} points"
            f" ({'below' if _holds(checks.errors_are_bounded) else 'not below'} {_points(policy.max_error_rate_margin)})",
            kind="goal",
            limit=policy.max_error_rate_margin,
        ),
        latency.finding(
            "latency_margin",
            _holds(checks.latency_is_bounded),
            "the latencies cannot be compared yet"
            if latency.is_unknown
            else f"the latency is higher by at most {latency.upper:.3g} ms"
            f" ({'below' if _holds(checks.latency_is_bounded) else 'not below'} {policy.max_latency_increase_ms:g})",
            kind="goal",
            limit=policy.max_latency_increase_ms,
        ),
    ]


class _Bounds:
    """One measure of one experiment, with its one-sided bounds."""

    def __init__(self, measured: Measured, policy: SequentialPolicy, alpha: float) -> None:
        self.value = _one(measured.estimate)
        self.lower = _one(measured.lower(policy, alpha))
        self.upper = _one(measured.upper(policy, alpha))
        self.is_unknown = not np.isfinite(self.upper)

    def finding(self, rule: str, holds: bool, text: str, *, limit: float, kind: Kind = "guardrail") -> Finding:
        if self.is_unknown:
            return Finding(rule=rule, kind=kind, holds=holds, text=text, limit=limit)
        return Finding(
            rule=rule,
            kind=kind,
            holds=holds,
            text=text,
            value=self.value,
            lower=self.lower,
            upper=self.upper,
            limit=limit,
        )


# --- classic ------------------------------------------------------------------------------------------------------------


def of_points(measures: PointMeasures, checks: PointChecks, policy: ClassicPolicy) -> list[Finding]:
    """The earlier service's rules: two that roll back, three that a promotion needs."""
    gain, p_value = _known(measures.accuracy_gain), _known(measures.p_value)
    slower = _known(measures.latency_increase_ms)
    control, treatment = _known(measures.control_error_rate), _known(measures.treatment_error_rate)
    most = None if control is None else (1.0 + policy.max_error_rate_increase) * control
    points = "not known yet" if gain is None else f"{_points(gain)} points"
    return [
        Finding(
            rule="accuracy_loss",
            kind="guardrail",
            holds=not _holds(checks.is_much_worse),
            text=f"the accuracy's difference is {points} (it may be {_points(-policy.max_accuracy_loss)})",
            value=gain,
            limit=-policy.max_accuracy_loss,
        ),
        Finding(
            rule="excess_errors",
            kind="guardrail",
            holds=not _holds(checks.has_excess_errors),
            text="the error rates cannot be compared yet"
            if treatment is None or most is None
            else f"the treatment's error rate is {treatment:.3%} (it may be {most:.3%})",
            value=treatment,
            limit=most,
        ),
        Finding(
            rule="accuracy_gain",
            kind="goal",
            holds=_holds(checks.is_better),
            text=f"the accuracy's difference is {points} of at least {_points(policy.min_accuracy_gain)}",
            value=gain,
            limit=policy.min_accuracy_gain,
        ),
        Finding(
            rule="certainty",
            kind="goal",
            holds=_holds(checks.is_certain),
            text="Welch's p is not known yet"
            if p_value is None
            else f"Welch's p is {p_value:.2g} ({'below' if _holds(checks.is_certain) else 'not below'} {policy.alpha:g});"
            " valid only if looked at once, at the planned end",
            limit=policy.alpha,
            p_value=p_value,
        ),
        Finding(
            rule="latency_margin",
            kind="goal",
            holds=_holds(checks.is_fast_enough),
            text="the latencies cannot be compared yet"
            if slower is None
            else f"the latency differs by {slower:+.3g} ms (it may by {policy.max_latency_increase_ms:g})",
            value=slower,
            limit=policy.max_latency_increase_ms,
        ),
    ]


def of_end(text: str, *, halfwidth: float | None) -> Finding:
    """The planned end is reached."""
    return Finding(rule="end", kind="end", holds=False, text=text, value=halfwidth)


def _one(values: np.typing.NDArray[np.float64]) -> float:
    return float(values[0])


def _holds(values: np.typing.NDArray[np.bool_]) -> bool:
    return bool(values[0])


def _known(values: np.typing.NDArray[np.float64]) -> float | None:
    value = float(values[0])
    return value if np.isfinite(value) else None


def _points(share: float) -> str:
    """0.021 is +2.1."""
    return f"{100.0 * share:+.3g}"
