"""All that is known of an experiment, as it is shown: both arms, how they differ, how sure that is, and what to do.

It is made from totals alone, so it costs the same after a thousand predictions and after ten million.
"""

from datetime import date, datetime

import msgspec

from mmserver.experiments.arms import ArmReport, arm_report, daily_returns, day_of, standard_error
from mmserver.experiments.bootstrap import bootstrap_difference
from mmserver.experiments.comparisons import MIN_CONTROL_Z, Difference, mcnemar, welch_test
from mmserver.experiments.deciding import Design, Looks, Recommendation, decide
from mmserver.experiments.effects import (
    Effects,
    Metric,
    Mode,
    averaged,
    cuped_effect,
    paired_effect,
    split_effect,
    welch_of_predictions,
)
from mmserver.experiments.health import Health
from mmserver.experiments.moments import CoMoments
from mmserver.experiments.multiple import benjamini_hochberg
from mmserver.experiments.policies import ClassicPolicy, Policy, SequentialPolicy
from mmserver.experiments.sequences import always_valid_p, confidence_sequence
from mmserver.experiments.sharpe import paired_sharpe_difference
from mmserver.experiments.totals import ArmTotals, ExperimentTotals, RatioMoments, SymbolTotals

BOOTSTRAP_SEED = 20_260_101
"""Fixed, so that the same totals are always shown with the same interval."""
N_RESAMPLES = 1000


class Improvement(msgspec.Struct, frozen=True, kw_only=True):
    """Treatment less control of one number.

    Fields:
        relative: as a share of the control's; None where that is too near zero to be a measure.
        standard_error, lower, upper: where the truth lies at all looks at once, for the numbers that may be decided by.
    """

    absolute: float | None
    relative: float | None = None
    standard_error: float | None = None
    lower: float | None = None
    upper: float | None = None


class StudentTest(msgspec.Struct, frozen=True, kw_only=True):
    """A t-test; right if looked at once, at an end that was planned.

    Fields:
        confidence_level: 1 - p_value.
    """

    t: float
    p_value: float
    confidence_level: float
    degrees_of_freedom: float
    lower: float
    upper: float


class SequenceTest(msgspec.Struct, frozen=True, kw_only=True):
    """What holds at all looks at once.

    Fields:
        always_valid_p: of this look, two-sided. least_p_of_gain: the least of all looks of the treatment being ahead, which a
            promotion goes by; of accuracy only.
    """

    lower: float
    upper: float
    always_valid_p: float
    least_p_of_gain: float | None = None


class CupedTest(msgspec.Struct, frozen=True, kw_only=True):
    """The difference after what the control model explains, scoring the same in the shadow, is taken out."""

    theta: float
    difference: float
    standard_error: float
    lower: float
    upper: float
    variance_left: float | None


class McnemarTest(msgspec.Struct, frozen=True, kw_only=True):
    """Of predictions that both models scored, as if each were independent: who was right where one of them was."""

    n_only_control: int
    n_only_treatment: int
    statistic: float
    p_value: float
    is_exact: bool


class SharpeTest(msgspec.Struct, frozen=True, kw_only=True):
    """The difference of the arms' daily Sharpe ratios over the days that both have.

    Fields:
        standard_error, p_value: Memmel's, for independent normal returns. bootstrap_…: of stretches of days together.
    """

    n_days: int
    difference: float
    standard_error: float
    p_value: float
    bootstrap_lower: float | None = None
    bootstrap_upper: float | None = None
    bootstrap_p_value: float | None = None
    bootstrap_block_days: float | None = None


class Tests(msgspec.Struct, frozen=True, kw_only=True):
    """How sure the differences are; None where the numbers say nothing.

    Fields:
        t_test: the earlier service's, of single predictions' being right, as if each were independent.
        accuracy_t_test, returns_t_test: over units, so that predictions of one unit may resemble each other.
    """

    t_test: StudentTest | None
    accuracy_t_test: StudentTest | None
    returns_t_test: StudentTest | None
    accuracy_sequence: SequenceTest | None
    returns_sequence: SequenceTest | None
    errors_sequence: SequenceTest | None
    latency_sequence: SequenceTest | None
    accuracy_cuped: CupedTest | None
    returns_cuped: CupedTest | None
    mcnemar: McnemarTest | None
    sharpe: SharpeTest | None


class SymbolReport(msgspec.Struct, frozen=True, kw_only=True):
    """Both arms on one symbol; exploratory: looked at among others, and no reason to promote.

    Fields:
        adjusted_p_value: Benjamini and Hochberg's, among all symbols that have one.
    """

    symbol: str
    n_control: int
    n_treatment: int
    control_accuracy: float | None
    treatment_accuracy: float | None
    accuracy_difference: float | None
    control_return: float | None
    treatment_return: float | None
    p_value: float | None
    adjusted_p_value: float | None


class DayReport(msgspec.Struct, frozen=True, kw_only=True):
    """Both arms on one day (UTC), for charts."""

    day: date
    n_control: int
    n_treatment: int
    control_accuracy: float | None
    treatment_accuracy: float | None
    control_error_rate: float | None
    treatment_error_rate: float | None
    control_return: float | None
    treatment_return: float | None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is."""

    hours: float
    n_units: int
    planned_units: int | None
    max_units: int | None
    max_hours: float | None
    deadline_at: datetime | None


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    """The whole; `other_policy` is what the policy that was not chosen would say of the same look."""

    control: ArmReport
    treatment: ArmReport
    improvement: dict[str, Improvement]
    tests: Tests
    health: Health
    progress: Progress
    by_symbol: list[SymbolReport]
    by_day: list[DayReport]
    recommendation: Recommendation
    other_policy: Recommendation
    looks: Looks


def analyse(
    totals: ExperimentTotals, *, policy: Policy, design: Design, now: datetime, looks: Looks | None = None
) -> Analysis:
    """Analyse an experiment at one moment.

    Args:
        looks: those of the last evaluation that was kept; none before the first.
    """
    decision = decide(totals, policy=policy, design=design, now=now, looks=looks)
    bounds = policy if isinstance(policy, SequentialPolicy) else SequentialPolicy(alpha=policy.alpha)
    other = decide(totals, policy=_other(policy), design=design, now=now, looks=looks)
    control, treatment = totals.control, totals.treatment
    arms = [arm_report(arm, periods_per_year=policy.periods_per_year) for arm in (control, treatment)]
    return Analysis(
        control=arms[0],
        treatment=arms[1],
        improvement=_improvement(arms[0], arms[1], (control, treatment), decision.effects, bounds),
        tests=_tests(totals, decision.effects, bounds, decision.looks, mode=design.mode),
        health=decision.health,
        progress=Progress(
            hours=design.hours_until(now),
            n_units=control.n_units if design.mode == "shadow" else control.n_units + treatment.n_units,
            planned_units=policy.planned_units if isinstance(policy, SequentialPolicy) else None,
            max_units=policy.max_units,
            max_hours=policy.max_hours,
            deadline_at=design.deadline_at,
        ),
        by_symbol=symbol_reports(totals, mode=design.mode),
        by_day=_days(control, treatment),
        recommendation=decision.recommendation,
        other_policy=other.recommendation,
        looks=decision.looks,
    )


def _other(policy: Policy) -> Policy:
    """The policy that was not chosen, with the numbers that both have."""
    kind = ClassicPolicy if isinstance(policy, SequentialPolicy) else SequentialPolicy
    return kind(**{name: getattr(policy, name) for name in ClassicPolicy.__struct_fields__})


# --- differences --------------------------------------------------------------------------------------------------------


def _improvement(
    control: ArmReport,
    treatment: ArmReport,
    totals: tuple[ArmTotals, ArmTotals],
    effects: Effects,
    policy: SequentialPolicy,
) -> dict[str, Improvement]:
    metrics: dict[str, tuple[Difference | None, RatioMoments]] = {
        "accuracy": (effects.accuracy, totals[0].accuracy),
        "average_return": (effects.returns, totals[0].returns),
        "error_rate": (effects.errors, totals[0].errors),
        "average_latency_ms": (effects.latency, totals[0].latency),
    }
    shown = ("precision", "recall", "f1", "win_rate", "p50_latency_ms", "p95_latency_ms")
    plain = {name: _plain(getattr(control, name), getattr(treatment, name)) for name in shown}
    plain["sharpe_ratio"] = _plain(control.sharpe.ratio, treatment.sharpe.ratio, is_measure=False)
    return {**{name: _sure(*parts, policy) for name, parts in metrics.items()}, **plain}


def _sure(effect: Difference | None, control: RatioMoments, policy: SequentialPolicy) -> Improvement:
    if effect is None:
        return Improvement(absolute=None)
    base, error = control.ratio, standard_error(control)
    is_measure = base is not None and error is not None and abs(base) > MIN_CONTROL_Z * error
    sequence = confidence_sequence(effect, n_star=float(policy.planned_units), alpha=policy.alpha)
    return Improvement(
        absolute=effect.estimate,
        relative=effect.estimate / abs(base) if is_measure and base else None,
        standard_error=effect.standard_error,
        lower=sequence.lower,
        upper=sequence.upper,
    )


def _plain(control: float | None, treatment: float | None, *, is_measure: bool = True) -> Improvement:
    if control is None or treatment is None:
        return Improvement(absolute=None)
    absolute = treatment - control
    return Improvement(absolute=absolute, relative=absolute / abs(control) if is_measure and control else None)


# --- tests --------------------------------------------------------------------------------------------------------------


def _tests(totals: ExperimentTotals, effects: Effects, policy: SequentialPolicy, looks: Looks, *, mode: Mode) -> Tests:
    return Tests(
        t_test=_student(welch_of_predictions(totals), policy.alpha),
        accuracy_t_test=_student(effects.accuracy, policy.alpha),
        returns_t_test=_student(effects.returns, policy.alpha),
        accuracy_sequence=_sequence(effects.accuracy, policy, least_p=looks.least_p),
        returns_sequence=_sequence(effects.returns, policy),
        errors_sequence=_sequence(effects.errors, policy),
        latency_sequence=_sequence(effects.latency, policy),
        accuracy_cuped=_cuped(totals, "accuracy", policy, effects.accuracy, mode),
        returns_cuped=_cuped(totals, "returns", policy, effects.returns, mode),
        mcnemar=_mcnemar(totals),
        sharpe=_sharpe(totals.control, totals.treatment, policy.alpha),
    )


def _student(difference: Difference | None, alpha: float) -> StudentTest | None:
    if difference is None:
        return None
    test = welch_test(difference, alpha=alpha)
    return StudentTest(
        t=test.t,
        p_value=test.p_value,
        confidence_level=1.0 - test.p_value,
        degrees_of_freedom=difference.degrees_of_freedom,
        lower=test.interval.lower,
        upper=test.interval.upper,
    )


def _sequence(
    difference: Difference | None, policy: SequentialPolicy, *, least_p: float | None = None
) -> SequenceTest | None:
    if difference is None:
        return None
    n_star = float(policy.planned_units)
    sequence = confidence_sequence(difference, n_star=n_star, alpha=policy.alpha)
    p_value = always_valid_p(difference, n_star=n_star, alpha=policy.alpha)
    return SequenceTest(lower=sequence.lower, upper=sequence.upper, always_valid_p=p_value, least_p_of_gain=least_p)


def _cuped(
    totals: ExperimentTotals, metric: Metric, policy: SequentialPolicy, plain: Difference | None, mode: Mode
) -> CupedTest | None:
    found = cuped_effect(totals, metric) if mode == "split" else None
    if found is None:
        return None
    sequence = confidence_sequence(found.difference, n_star=float(policy.planned_units), alpha=policy.alpha)
    return CupedTest(
        theta=found.theta,
        difference=found.difference.estimate,
        standard_error=found.difference.standard_error,
        lower=sequence.lower,
        upper=sequence.upper,
        variance_left=found.variance / plain.standard_error**2 if plain else None,
    )


def _mcnemar(totals: ExperimentTotals) -> McnemarTest | None:
    paired = [phase.paired for phase in totals.phases.values() if phase.paired is not None]
    ours, theirs = sum(part.n_only_treatment for part in paired), sum(part.n_only_control for part in paired)
    test = mcnemar(only_control=theirs, only_treatment=ours)
    if test is None:
        return None
    return McnemarTest(
        n_only_control=theirs,
        n_only_treatment=ours,
        statistic=test.statistic,
        p_value=test.p_value,
        is_exact=test.is_exact,
    )


def _sharpe(control: ArmTotals, treatment: ArmTotals, alpha: float) -> SharpeTest | None:
    theirs, ours = daily_returns(control), daily_returns(treatment)
    days = [day for day in theirs if day in ours]
    pairs = [theirs[day] for day in days], [ours[day] for day in days]
    test = paired_sharpe_difference(CoMoments.from_values(*pairs))
    if test is None:
        return None
    resampled = bootstrap_difference(
        control=pairs[0], treatment=pairs[1], seed=BOOTSTRAP_SEED, n_resamples=N_RESAMPLES, confidence=1.0 - alpha
    )
    return SharpeTest(
        n_days=len(days),
        difference=test.difference.estimate,
        standard_error=test.difference.standard_error,
        p_value=test.p_value,
        bootstrap_lower=resampled.interval.lower if resampled else None,
        bootstrap_upper=resampled.interval.upper if resampled else None,
        bootstrap_p_value=resampled.p_value if resampled else None,
        bootstrap_block_days=resampled.block_length if resampled else None,
    )


# --- parts --------------------------------------------------------------------------------------------------------------


def symbol_reports(totals: ExperimentTotals, *, mode: Mode) -> list[SymbolReport]:
    """Of each symbol, by its name."""
    by_symbol: dict[str, list[SymbolTotals]] = {}
    for phase in totals.phases.values():
        for symbol, part in phase.by_symbol.items():
            by_symbol.setdefault(symbol, []).append(part)
    names = sorted(by_symbol)
    effects = [averaged(_symbol_effect(part, mode) for part in by_symbol[name]) for name in names]
    p_values = [welch_test(effect).p_value if effect else None for effect in effects]
    adjusted = iter(benjamini_hochberg([p_value for p_value in p_values if p_value is not None]))
    return [
        _symbol(name, by_symbol[name], effect, p_value, None if p_value is None else next(adjusted))
        for name, effect, p_value in zip(names, effects, p_values, strict=True)
    ]


def _symbol_effect(part: SymbolTotals, mode: Mode) -> tuple[Difference | None, float]:
    if mode == "shadow":
        return paired_effect(part.paired_accuracy, "accuracy"), float(part.paired_accuracy.n)
    control, treatment = part.control_accuracy, part.treatment_accuracy
    found = split_effect(control, treatment, "accuracy")
    return found, control.n * treatment.n / (control.n + treatment.n) if found else 0.0


def _symbol(
    name: str, parts: list[SymbolTotals], effect: Difference | None, p_value: float | None, adjusted: float | None
) -> SymbolReport:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return SymbolReport(
        symbol=name,
        n_control=round(whole.control_accuracy.x),
        n_treatment=round(whole.treatment_accuracy.x),
        control_accuracy=whole.control_accuracy.ratio,
        treatment_accuracy=whole.treatment_accuracy.ratio,
        accuracy_difference=effect.estimate if effect else None,
        control_return=whole.control_returns.ratio,
        treatment_return=whole.treatment_returns.ratio,
        p_value=p_value,
        adjusted_p_value=adjusted,
    )


def _days(control: ArmTotals, treatment: ArmTotals) -> list[DayReport]:
    shares = [
        {
            day: (
                sums.n_predictions,
                sums.n_right / sums.n_labelled if sums.n_labelled else None,
                sums.n_errors / sums.n_predictions if sums.n_predictions else None,
                sums.total_return / sums.n_returns if sums.n_returns else None,
            )
            for day, sums in arm.days.items()
        }
        for arm in (control, treatment)
    ]
    nothing = (0, None, None, None)
    return [
        DayReport(
            day=day_of(number),
            n_control=theirs[0],
            n_treatment=ours[0],
            control_accuracy=theirs[1],
            treatment_accuracy=ours[1],
            control_error_rate=theirs[2],
            treatment_error_rate=ours[2],
            control_return=theirs[3],
            treatment_return=ours[3],
        )
        for number in sorted({*shares[0], *shares[1]})
        for theirs, ours in [(shares[0].get(number, nothing), shares[1].get(number, nothing))]
    ]
