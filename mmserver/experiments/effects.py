"""How the arms differ, metric by metric: unit by unit, phase by phase, and pair by pair where both models scored the same.

Phases are compared each within itself and then averaged, by weights that come from how many units they have, never from
how these turned out: neither a ramp nor a time of day can then pass for a difference.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mmserver.experiments.comparisons import (
    Cuped,
    Difference,
    mean_difference,
    paired_difference,
    ratio_difference,
)
from mmserver.experiments.moments import Moments
from mmserver.experiments.totals import (
    ArmTotals,
    ExperimentTotals,
    PairedMoments,
    PairedTotals,
    PhaseTotals,
    RatioMoments,
)

Mode = Literal["split", "shadow"]
Metric = Literal["accuracy", "returns", "errors", "latency"]
RATES: tuple[Metric, ...] = ("accuracy", "errors")
LATENCY_RESOLUTION_MS = 0.001
"""Latencies are kept in whole microseconds: no difference of them is known better than that."""


@dataclass(frozen=True, slots=True)
class Effects:
    """Treatment - control of each metric; None where the numbers say nothing.

    Units:
        accuracy, errors, excess_errors: shares. returns: per matured prediction. latency: milliseconds, of the means.
    """

    accuracy: Difference | None
    returns: Difference | None
    errors: Difference | None
    excess_errors: Difference | None
    latency: Difference | None


def effects_of(totals: ExperimentTotals, *, mode: Mode, max_error_rate_increase: float) -> Effects:
    """All that decisions rest on.

    Args:
        max_error_rate_increase: `excess_errors` is the treatment's error rate less (1 + this) times the control's.
    """
    factor = 1.0 + max_error_rate_increase
    return Effects(
        accuracy=effect_of(totals, "accuracy", mode=mode),
        returns=effect_of(totals, "returns", mode=mode),
        errors=effect_of(totals, "errors", mode=mode),
        excess_errors=effect_of(totals, "errors", mode=mode, control_factor=factor),
        latency=effect_of(totals, "latency", mode=mode),
    )


def effect_of(
    totals: ExperimentTotals, metric: Metric, *, mode: Mode, control_factor: float = 1.0
) -> Difference | None:
    """treatment - control_factor × control, over all phases."""
    return averaged(_phase_effect(phase, metric, mode, control_factor) for phase in totals.phases.values())


def counts_of(totals: ExperimentTotals, metric: Metric, *, mode: Mode) -> tuple[float, float]:
    """How many predictions and units the metric has, in the arm that has fewer; in shadow mode, that both models scored."""
    if mode == "shadow":
        pairs: list[PairedMoments] = [
            getattr(phase.paired or PairedTotals(), metric) for phase in totals.phases.values()
        ]
        return sum(part.x for part in pairs), float(sum(part.n for part in pairs))
    control: RatioMoments = getattr(totals.control, metric)
    treatment: RatioMoments = getattr(totals.treatment, metric)
    return min(control.x, treatment.x), float(min(control.n, treatment.n))


def averaged(parts: Iterable[tuple[Difference | None, float]]) -> Difference | None:
    """The mean of differences by weights that their outcomes did not choose; None where there are none.

    Source:
        post-stratification; Satterthwaite (1946) for the degrees of freedom.
    """
    known = [(part, weight) for part, weight in parts if part is not None and weight > 0.0]
    whole = math.fsum(weight for _, weight in known)
    if not known:
        return None
    variances = [(weight / whole * part.standard_error) ** 2 for part, weight in known]
    variance = math.fsum(variances)
    freedom = sum(own * own / part.degrees_of_freedom for own, (part, _) in zip(variances, known, strict=True))
    return Difference(
        math.fsum(weight / whole * part.estimate for part, weight in known),
        math.sqrt(variance),
        sum(part.n for part, _ in known),
        variance * variance / freedom,
    )


def _phase_effect(
    phase: PhaseTotals, metric: Metric, mode: Mode, control_factor: float
) -> tuple[Difference | None, float]:
    """The difference within one phase, and its weight."""
    if mode == "shadow":
        pairs: PairedMoments = getattr(phase.paired or PairedTotals(), metric)
        return paired_effect(pairs, metric, control_factor), float(pairs.n)
    control: RatioMoments = getattr(phase.control, metric)
    treatment: RatioMoments = getattr(phase.treatment, metric)
    found = split_effect(control, treatment, metric, control_factor)
    # Of equal spread in all phases, these weights are the best there are.
    return found, control.n * treatment.n / (control.n + treatment.n) if found else 0.0


def split_effect(
    control: RatioMoments, treatment: RatioMoments, metric: Metric, control_factor: float = 1.0
) -> Difference | None:
    """Of units of which each was served by one arm."""
    found = ratio_difference(
        control=control.pairs, treatment=treatment.pairs, control_factor=control_factor, is_rate=metric in RATES
    )
    if metric != "latency" or control.n < 2 or treatment.n < 2:
        return found
    estimate = (treatment.ratio or 0.0) - control_factor * (control.ratio or 0.0)
    return _no_finer_than_the_clock(found, estimate, control.n + treatment.n)


def paired_effect(pairs: PairedMoments, metric: Metric, control_factor: float = 1.0) -> Difference | None:
    """Of units that both models scored: the spread of their differences, and for shares no less than chance would leave.

    A pair of models that never disagreed yet may do so next: no share's variance is below that of (|difference| + 1) / (n + 2).
    """
    sums = pairs.difference(control_factor)
    ratio = sums.ratio
    if ratio is None or sums.n < 2:
        return None
    units = sums.pairs
    spread = units.adjusted(ratio).m2 / units.mean_x**2
    if metric in RATES:
        chance = min((abs(sums.y) + 1.0) / (sums.x + 2.0), 1.0) / sums.x
        spread = max(spread, chance * sums.n * (sums.n - 1))
    found = paired_difference(Moments(sums.n, ratio, spread))
    return _no_finer_than_the_clock(found, ratio, sums.n) if metric == "latency" else found


def _no_finer_than_the_clock(found: Difference | None, estimate: float, n: int) -> Difference:
    least = LATENCY_RESOLUTION_MS / math.sqrt(n)
    if found is not None and found.standard_error >= least:
        return found
    return Difference(estimate, least, n, n - 1.0)


# --- what is shown beside ----------------------------------------------------------------------------------------------


def welch_of_predictions(totals: ExperimentTotals) -> Difference | None:
    """The earlier service's comparison: single predictions' being right, as if each were independent, all phases pooled."""
    control, treatment = (_right_or_wrong(arm) for arm in (totals.control, totals.treatment))
    return mean_difference(control=control, treatment=treatment)


def _right_or_wrong(arm: ArmTotals) -> Moments:
    return Moments.from_sums(round(arm.accuracy.x), arm.accuracy.y, arm.accuracy.y)


def cuped_effect(totals: ExperimentTotals, metric: Metric) -> Cuped | None:
    """The difference in split mode after what the control model, scoring in the shadow of the treatment, explains is taken out.

    On the units of the control arm the covariate is the outcome itself. None where too few treated units have a shadow.

    Source:
        Deng, Xu, Kohavi, Walker (2013), its theta = cov(y, x) / var(x) over the units of both arms, each phase by itself.
    """
    parts = [(phase, _theta(phase, metric)) for phase in totals.phases.values()]
    known = [(phase, theta) for phase, theta in parts if theta is not None]
    weights = [getattr(phase.paired, metric).n for phase, _ in known]
    found = averaged(
        (_adjusted(phase, metric, theta), weight) for (phase, theta), weight in zip(known, weights, strict=True)
    )
    if found is None:
        return None
    theta = math.fsum(theta * weight for (_, theta), weight in zip(known, weights, strict=True)) / sum(weights)
    return Cuped(theta, found)


def _theta(phase: PhaseTotals, metric: Metric) -> float | None:
    """Of what is left of y and x when what their ratios expect of each unit is taken out (the delta method)."""
    control: RatioMoments = getattr(phase.control, metric)
    pairs: PairedMoments = getattr(phase.paired or PairedTotals(), metric)
    if control.n < 2 or pairs.n < 2:
        return None
    own, shadow = _residual_m2(control), _residual_m2(pairs.control)
    # cov(t, c) from var(t), var(c) and var(t - c); each unit counts by its share of its arm's predictions.
    shared = (_residual_m2(pairs.treatment) + shadow - _residual_m2(pairs.difference())) / 2.0
    return (own + shared) / (own + shadow) if own + shadow > 0.0 else None


def _residual_m2(sums: RatioMoments) -> float:
    units = sums.pairs
    return units.adjusted(units.mean_y / units.mean_x).m2 / units.mean_x**2


def _adjusted(phase: PhaseTotals, metric: Metric, theta: float) -> Difference | None:
    control: RatioMoments = getattr(phase.control, metric)
    pairs: PairedMoments = getattr(phase.paired or PairedTotals(), metric)
    return ratio_difference(
        control=control.pairs, treatment=pairs.difference(theta).pairs, control_factor=1.0 - theta, is_rate=False
    )
