"""The four charts of an experiment: its looks, returns and latencies as series, each with what it says."""

from collections.abc import Sequence

from mmserver.experiments.courses import Band, LatencyCourse, ReturnCourse
from mmserver.experiments.experiments import Experiment
from mmserver.experiments.looks import Look
from mmserver.experiments.policies import SequentialPolicy
from mmserver.web.experiment_charts import Area, Chart, Level, Line
from mmserver.web.experiment_rows import percent_text, points_text
from mmserver.web.figures import number

PER_CENT = 100.0
CHART_NAMES = ("effect", "returns", "latency", "units")


def charts_of(
    experiment: Experiment, looks: Sequence[Look], returns: ReturnCourse | None, latencies: LatencyCourse | None
) -> list[Chart]:
    """Those that there are numbers for, always in the same order."""
    found = (
        effect_chart(experiment, looks),
        returns_chart(returns, looks),
        latency_chart(latencies),
        units_chart(experiment, looks),
    )
    return [chart for chart in found if chart is not None]


def effect_chart(experiment: Experiment, looks: Sequence[Look]) -> Chart | None:
    """The difference of accuracies and its confidence sequence, look by look."""
    known = [look for look in looks if look.effect is not None]
    if not known:
        return None
    policy = experiment.policy
    share = f"{(1.0 - policy.alpha):.0%}"
    sequences = [look.sequence for look in known]
    return Chart(
        name="effect",
        title="Difference of accuracy over time",
        takeaway=_effect_takeaway(known[-1], share),
        unit="points",
        moments=[look.at for look in known],
        lines=[Line("Difference", "effect", [_scaled(look.effect) for look in known])],
        areas=[
            Area(
                f"{share} sequence",
                "effect",
                [_scaled(None if one is None else one.lower) for one in sequences],
                [_scaled(None if one is None else one.upper) for one in sequences],
            )
        ],
        levels=[
            Level("no difference", "zero", 0.0),
            Level(f"{points_text(policy.min_accuracy_gain)}: asked for", "goal", PER_CENT * policy.min_accuracy_gain),
            Level(f"{points_text(-policy.max_accuracy_loss)}: limit", "limit", -PER_CENT * policy.max_accuracy_loss),
        ],
        n_early=_n_early(known),
        has_looks=True,
    )


def _effect_takeaway(last: Look, share: str) -> str:
    if last.verdict == "invalid":
        return "The experiment is not sound: these numbers mean nothing until that is repaired."
    if not last.is_enough:
        return "Too little is known to conclude anything: what is greyed lies before the minimums."
    found = f"The treatment's accuracy differs by {points_text(last.effect)}"
    if last.sequence is None:
        return f"{found}; how certain that is cannot be said yet."
    lower, upper = last.sequence.lower, last.sequence.upper
    side = "above zero" if lower > 0.0 else "below zero" if upper < 0.0 else "on both sides of zero"
    return (
        f"{found}; at all looks at once, with {share} confidence, the truth lies between {points_text(lower)} and"
        f" {points_text(upper)}: {side}."
    )


def returns_chart(course: ReturnCourse | None, looks: Sequence[Look]) -> Chart | None:
    """What a unit of each arm earned so far."""
    if course is None:
        return None
    enough_at = next((look.at for look in looks if look.is_enough), None)
    n_early = sum(enough_at is None or end <= enough_at for end in course.ends)
    control, treatment = course.control[-1], course.treatment[-1]
    ahead = "the treatment" if treatment > control else "the control"
    said = (
        f"A unit of the treatment earned {percent_text(treatment)} so far, one of the control {percent_text(control)}"
    )
    if looks and looks[-1].verdict == "invalid":
        certainty = "the experiment is not sound, so that says nothing"
    elif enough_at is None:
        certainty = "that is before the minimums, and says nothing yet"
    elif course.control_band is None or course.treatment_band is None:
        certainty = "there are too few hours to say how far chance alone would take them apart"
    elif _overlap(course.control_band, course.treatment_band):
        certainty = "their bands overlap, so that may be chance"
    else:
        certainty = f"their bands are apart, with {ahead} in front"
    bands = (
        ("Control, 95 % band", "control", course.control_band),
        ("Treatment, 95 % band", "treatment", course.treatment_band),
    )
    return Chart(
        name="returns",
        title="Cumulative return per unit",
        takeaway=f"{said}; {certainty}.",
        unit="%",
        moments=course.ends,
        lines=[
            Line("Control", "control", [_scaled(value) for value in course.control]),
            Line("Treatment", "treatment", [_scaled(value) for value in course.treatment]),
        ],
        areas=[
            Area(name, kind, [_scaled(value) for value in band.lower], [_scaled(value) for value in band.upper])
            for name, kind, band in bands
            if band is not None
        ],
        levels=[Level("nothing", "zero", 0.0)],
        n_early=n_early,
    )


def _overlap(control: Band, treatment: Band) -> bool:
    return control.lower[-1] <= treatment.upper[-1] and treatment.lower[-1] <= control.upper[-1]


def latency_chart(course: LatencyCourse | None) -> Chart | None:
    """Percentiles of both arms, stretch by stretch."""
    if course is None:
        return None
    control, treatment = (_last(values) for values in (course.control_p95_ms, course.treatment_p95_ms))
    if control is None or treatment is None:
        arm, value = ("control", control) if treatment is None else ("treatment", treatment)
        said = f"Only the {arm} has answered yet: 95 % of its last answers took {number(value)} ms or less."
    else:
        said = f"95 % of the last answers took {number(treatment)} ms or less in the treatment, {number(control)} ms in the control."
    return Chart(
        name="latency",
        title="Latency over time",
        takeaway=said,
        unit="ms",
        moments=course.starts,
        lines=[
            Line("Control, p50", "control middle", course.control_p50_ms),
            Line("Control, p95", "control", course.control_p95_ms),
            Line("Treatment, p50", "treatment middle", course.treatment_p50_ms),
            Line("Treatment, p95", "treatment", course.treatment_p95_ms),
        ],
        levels=[Level("nothing", "zero", 0.0)],
    )


def units_chart(experiment: Experiment, looks: Sequence[Look]) -> Chart | None:
    """How many units each arm has, against how many are planned."""
    if not any(look.n_control_units or look.n_treatment_units for look in looks):
        return None
    is_shadow, policy = experiment.mode == "shadow", experiment.policy
    totals = [look.n_control_units + (0 if is_shadow else look.n_treatment_units) for look in looks]
    planned = policy.planned_units if isinstance(policy, SequentialPolicy) else None
    said = f"{number(totals[-1])} units so far"
    if planned is not None:
        said += f", {totals[-1] / planned:.0%} of the {number(planned)} that were planned (N*)"
    elif policy.max_units is not None:
        said += f" of at most {number(policy.max_units)}"
    else:
        said += "; the policy classic plans none"
    levels = [] if planned is None else [Level(f"N* = {number(planned)}", "plan", float(planned))]
    levels += (
        []
        if policy.max_units is None
        else [Level(f"at most {number(policy.max_units)}", "limit", float(policy.max_units))]
    )
    lines = [
        Line("Control", "control", [float(look.n_control_units) for look in looks]),
        Line("Treatment", "treatment", [float(look.n_treatment_units) for look in looks]),
    ]
    both = [] if is_shadow else [Line("Both", "total", [float(total) for total in totals])]
    return Chart(
        name="units",
        title="Units per arm",
        takeaway=f"{said}.",
        unit="units",
        moments=[look.at for look in looks],
        lines=[*lines, *both],
        levels=[Level("none", "zero", 0.0), *levels],
        n_early=_n_early(looks),
        has_looks=True,
    )


def _n_early(looks: Sequence[Look]) -> int:
    """How many from the first on were before the minimums."""
    return next((place for place, look in enumerate(looks) if look.is_enough), len(looks))


def _scaled(share: float | None) -> float | None:
    return None if share is None else PER_CENT * share


def _last(values: Sequence[float | None]) -> float | None:
    return next((value for value in reversed(values) if value is not None), None)
