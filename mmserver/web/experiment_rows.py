"""An experiment's analysis as rows of its page: the banner, the health strip, the metrics and what was checked.

While an experiment runs no p-value stands alone: always-valid ones beside their interval, and none before the minimums.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mmserver.experiments.analysing import Analysis, Improvement, SequenceTest
from mmserver.experiments.arms import ArmReport
from mmserver.experiments.deciding import Recommendation, Verdict
from mmserver.experiments.experiments import Experiment
from mmserver.experiments.findings import Finding
from mmserver.experiments.looks import has_enough
from mmserver.experiments.needs import Needs
from mmserver.experiments.policies import Policy, SequentialPolicy
from mmserver.web.figures import EMPTY, number

VERDICTS = {
    "promote": ("✓", "ok", "Promote the treatment"),
    "rollback": ("✕", "stale", "Roll back to the control"),
    "continue": ("△", "degraded", "Go on: nothing is decided yet"),
    "invalid": ("✕", "stale", "Invalid: the numbers mean nothing until this is repaired"),
    "no_difference": ("=", "plain", "No difference that matters: keep the control"),
}
"""Sign, look and words of each."""
APPLIED = {
    "promote": "the treatment was put into production",
    "rollback": "it was rolled back to the control",
    "keep": "the control was kept",
}
UNIT_WORDS = {
    "symbol|time-block": "a symbol in a block of time",
    "prediction": "one prediction",
    "symbol": "a symbol",
    "unit_id": "what each request names as `unit_id`",
}
_DAY_H = 24.0
_MONTHS_H = 60 * _DAY_H


@dataclass(frozen=True, slots=True)
class Banner:
    """What to do, in one line, and why."""

    sign: str
    look: str
    words: str
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class HealthRow:
    """One check; `is_sound` is None where there is nothing to check yet."""

    title: str
    value: str
    note: str
    is_sound: bool | None


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One number of both arms; `status` is (sign, look, words) or None where nothing is decided by it."""

    title: str
    control: str
    treatment: str
    difference: str
    interval: str
    p_value: str
    margin: str
    status: tuple[str, str, str] | None


@dataclass(frozen=True, slots=True)
class SymbolRow:
    """Both arms on one symbol."""

    symbol: str
    n_control: int
    n_treatment: int
    control: str
    treatment: str
    difference: str
    control_return: str
    treatment_return: str
    adjusted_p: str
    is_notable: bool


def banner_of(recommendation: Recommendation, *, is_over: bool) -> Banner:
    """The verdict; of what is over, nothing goes on."""
    sign, look, words = VERDICTS[recommendation.verdict]
    if is_over and recommendation.verdict == "continue":
        words = "Undecided: it ended before anything was shown"
    return Banner(sign, look, words, recommendation.reasons)


def needs_text(needs: Needs | None) -> str | None:
    """How much more it takes."""
    if needs is None:
        return None
    if not needs.n_units and not needs.hours:
        return "By its present numbers it has all that a promotion takes."
    return (
        f"If it goes on as it did, a promotion takes about {number(needs.n_samples)} more outcomes, {number(needs.n_units)} more"
        f" units and {hours_text(needs.hours)}."
    )


# --- health -------------------------------------------------------------------------------------------------------------


def health_rows(experiment: Experiment, analysis: Analysis) -> list[HealthRow]:
    """The strip: the sample ratio, exposures, units in both arms and outcomes that came."""
    health, policy = analysis.health, experiment.policy
    if experiment.mode == "shadow":
        return [
            HealthRow("Units scored by both", number(health.n_control_units), "in shadow mode nothing is split", None),
            HealthRow("Outcomes joined", share_text(health.control_join_rate), "of predictions that are due", None),
        ]
    return [
        HealthRow(
            "Sample ratio, SRM p",
            p_text(health.srm_p),
            f"invalid below {policy.srm_alpha:g}",
            None if health.srm_p is None else not health.has_wrong_ratio,
        ),
        _exposures("Control units", health.n_control_units, health.expected_control_units, health.has_wrong_ratio),
        _exposures(
            "Treatment units", health.n_treatment_units, health.expected_treatment_units, health.has_wrong_ratio
        ),
        HealthRow(
            "Units in both arms",
            share_text(health.both_arms_share),
            f"invalid above {policy.max_both_arms_share:.2%}",
            None if health.both_arms_share is None else not health.has_mixed_units,
        ),
        HealthRow(
            "Outcomes joined, control",
            share_text(health.control_join_rate),
            "of predictions that are due",
            None if health.join_p is None else not health.has_lost_outcomes,
        ),
        HealthRow(
            "Outcomes joined, treatment",
            share_text(health.treatment_join_rate),
            f"difference: p {p_text(health.join_p)}, invalid below {policy.join_alpha:g}",
            None if health.join_p is None else not health.has_lost_outcomes,
        ),
    ]


def _exposures(title: str, seen: int, expected: float, is_wrong: bool) -> HealthRow:
    known = seen or expected
    return HealthRow(title, number(seen), f"expected {expected:,.1f}", not is_wrong if known else None)


# --- metrics ------------------------------------------------------------------------------------------------------------


def metric_rows(experiment: Experiment, analysis: Analysis) -> list[MetricRow]:
    """What is decided by first, then what is only shown."""
    recommendation = analysis.recommendation
    is_enough = has_enough(recommendation)
    findings = {finding.rule: finding for finding in recommendation.findings}
    margins = _margins(experiment.policy, analysis.control)
    decided = [
        _decided("accuracy", "Accuracy", analysis, analysis.tests.accuracy_sequence, is_enough=is_enough),
        _decided("error_rate", "Error rate", analysis, analysis.tests.errors_sequence, is_enough=is_enough),
        _decided("average_latency_ms", "Latency, mean", analysis, analysis.tests.latency_sequence, is_enough=is_enough),
        _decided(
            "average_return", "Return per prediction", analysis, analysis.tests.returns_sequence, is_enough=is_enough
        ),
    ]
    rows = [
        MetricRow(*row, margins[name], _status(findings, _RULES[name], recommendation.verdict, is_enough=is_enough))
        for name, row in zip(_RULES, decided, strict=True)
    ]
    return [*rows, *(_only_shown(name, title, analysis) for name, title in _ONLY_SHOWN.items())]


_RULES: Mapping[str, tuple[str, ...]] = {
    "accuracy": ("accuracy_loss", "accuracy_gain", "certainty"),
    "error_rate": ("excess_errors", "error_rate_margin"),
    "average_latency_ms": ("latency_increase", "latency_margin"),
    "average_return": (),
}
_ONLY_SHOWN = {
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "win_rate": "Win rate",
    "p50_latency_ms": "Latency, p50",
    "p95_latency_ms": "Latency, p95",
    "sharpe_ratio": "Sharpe ratio, per day",
}

Decided = tuple[str, str, str, str, str, str]


def _decided(name: str, title: str, analysis: Analysis, sequence: SequenceTest | None, *, is_enough: bool) -> Decided:
    improvement = analysis.improvement[name]
    control, treatment = (_value(name, getattr(arm, name)) for arm in (analysis.control, analysis.treatment))
    p_value = EMPTY if sequence is None else p_text(sequence.always_valid_p) if is_enough else "too early"
    return (title, control, treatment, _difference(name, improvement.absolute), _interval(name, improvement), p_value)


def _only_shown(name: str, title: str, analysis: Analysis) -> MetricRow:
    arms = (analysis.control, analysis.treatment)
    if name == "sharpe_ratio":
        control, treatment = (_sharpe(arm) for arm in arms)
    else:
        control, treatment = (_value(name, getattr(arm, name)) for arm in arms)
    difference = _difference(name, analysis.improvement[name].absolute)
    return MetricRow(title, control, treatment, difference, EMPTY, EMPTY, "only shown", None)


def _sharpe(arm: ArmReport) -> str:
    sharpe = arm.sharpe
    if sharpe.ratio is None or sharpe.standard_error is None:
        return EMPTY
    return f"{_signed(f'{sharpe.ratio:.3g}')} ± {sharpe.standard_error:.2g}"


def _margins(policy: Policy, control: ArmReport) -> dict[str, str]:
    loss, gain = points_text(-policy.max_accuracy_loss), points_text(policy.min_accuracy_gain)
    most_errors = f"{1.0 + policy.max_error_rate_increase:g} × the control's"
    if control.error_rate is not None:
        most_errors = f"{share_text((1.0 + policy.max_error_rate_increase) * control.error_rate)}, {most_errors}"
    most_errors = f"at most {most_errors}"
    if isinstance(policy, SequentialPolicy):
        most_errors += f"; to promote {points_text(policy.max_error_rate_margin)}"
    return {
        "accuracy": f"to promote {gain}, to go on {loss}",
        "error_rate": most_errors,
        "average_latency_ms": f"at most +{policy.max_latency_increase_ms:g} ms",
        "average_return": "only shown",
    }


def _status(
    findings: Mapping[str, Finding], rules: tuple[str, ...], verdict: Verdict, *, is_enough: bool
) -> tuple[str, str, str] | None:
    found = [findings[rule] for rule in rules if rule in findings]
    if not found:
        return None
    if verdict == "invalid":
        return ("–", "early", "not judged")
    # Errors and latencies need no outcomes: they may roll back before there are enough of those.
    if (is_enough or verdict == "rollback") and any(not one.holds for one in found if one.kind == "guardrail"):
        return ("✕", "stale", "beyond limit")
    if not is_enough:
        return ("…", "early", "too early")
    return ("✓", "ok", "as asked") if all(one.holds for one in found) else ("△", "degraded", "not shown")


def symbol_rows(analysis: Analysis, alpha: float) -> list[SymbolRow]:
    """Those that stand out first."""
    reports = sorted(
        analysis.by_symbol,
        key=lambda one: (
            2.0 if one.adjusted_p_value is None else one.adjusted_p_value,
            -abs(one.accuracy_difference or 0.0),
        ),
    )
    return [
        SymbolRow(
            one.symbol,
            one.n_control,
            one.n_treatment,
            share_text(one.control_accuracy),
            share_text(one.treatment_accuracy),
            points_text(one.accuracy_difference),
            percent_text(one.control_return),
            percent_text(one.treatment_return),
            p_text(one.adjusted_p_value),
            one.adjusted_p_value is not None and one.adjusted_p_value < alpha,
        )
        for one in reports
    ]


# --- how numbers read ---------------------------------------------------------------------------------------------------


def _value(name: str, value: float | None) -> str:
    if value is None:
        return EMPTY
    if name.endswith("_ms"):
        return f"{number(value)} ms"
    return percent_text(value) if name == "average_return" else share_text(value)


def _difference(name: str, value: float | None) -> str:
    if value is None:
        return EMPTY
    if name.endswith("_ms"):
        return f"{_signed(f'{value:+.3g}')} ms"
    if name == "sharpe_ratio":
        return _signed(f"{value:+.3g}")
    return percent_text(value) if name == "average_return" else points_text(value)


def _interval(name: str, improvement: Improvement) -> str:
    if improvement.lower is None or improvement.upper is None:
        return EMPTY
    lower, upper = _difference(name, improvement.lower), _difference(name, improvement.upper)
    return f"{lower.partition(' ')[0]} to {upper}"


def share_text(value: float | None) -> str:
    """0.5532 is 55.32 %."""
    return EMPTY if value is None else f"{100.0 * value:.2f} %"


def percent_text(value: float | None) -> str:
    """A return: 0.00123 is +0.123 %."""
    return EMPTY if value is None else f"{_signed(f'{100.0 * value:+.3g}')} %"


def points_text(value: float | None) -> str:
    """A difference of shares: 0.021 is +2.1 points."""
    return EMPTY if value is None else f"{_signed(f'{100.0 * value:+.3g}')} points"


def p_text(value: float | None) -> str:
    """A p-value; below 0.0001 its size says nothing more."""
    if value is None:
        return EMPTY
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def hours_text(hours: float) -> str:
    """Hours up to two days, then days; beyond two months it is a guess at most."""
    if hours < 2 * _DAY_H:
        return f"{hours:.1f} more hours"
    text = f"{hours / _DAY_H:.1f} more days"
    return f"{text}, far beyond what can be foretold" if hours > _MONTHS_H else text


def _signed(text: str) -> str:
    return "0" if float(text) == 0.0 else text.replace("-", "\N{MINUS SIGN}", 1)
