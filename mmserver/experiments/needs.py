"""How much more an experiment would take to show what a promotion needs, if it goes on as it did."""

import math

import msgspec

from mmserver.experiments.comparisons import Difference
from mmserver.experiments.effects import Effects, Mode, counts_of
from mmserver.experiments.policies import SequentialPolicy
from mmserver.experiments.sequences import units_until_halfwidth
from mmserver.experiments.totals import ExperimentTotals


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What is still missing, of both arms together; an estimate, from the split, spread and pace so far.

    Fields:
        accuracy_halfwidth: how far off the difference of accuracies may be by then; the gain seen so far, or the least that a
            promotion asks for where that is more.
    """

    n_units: int
    n_samples: int
    hours: float
    accuracy_halfwidth: float


def needs_of(
    totals: ExperimentTotals, effects: Effects, *, mode: Mode, hours: float, policy: SequentialPolicy
) -> Needs | None:
    """None where nothing can be said yet, or where the treatment would not be promoted however long it ran as it does."""
    accuracy, errors, latency = effects.accuracy, effects.errors, effects.latency
    if accuracy is None or errors is None or latency is None or not hours > 0.0:
        return None
    n_samples, n_units = counts_of(totals, "accuracy", mode=mode)
    target = max(accuracy.estimate, policy.min_accuracy_gain)
    shares = [
        _times_longer(accuracy, target, policy),
        _times_longer(errors, policy.max_error_rate_margin - errors.estimate, policy),
        _times_longer(latency, policy.max_latency_increase_ms - latency.estimate, policy),
        policy.min_hours / hours,
        *_minimums(n_samples, n_units, policy),
    ]
    known = [share for share in shares if share is not None]
    if len(known) < len(shares):
        return None
    more = max(*known, 1.0) - 1.0
    n_all = n_samples if mode == "shadow" else totals.control.accuracy.x + totals.treatment.accuracy.x
    return Needs(
        n_units=math.ceil(more * accuracy.n),
        n_samples=math.ceil(more * n_all),
        hours=more * hours,
        accuracy_halfwidth=target,
    )


def _times_longer(difference: Difference, halfwidth: float, policy: SequentialPolicy) -> float | None:
    """How many times as many units as now; None for never."""
    if not halfwidth > 0.0:
        return None
    n = units_until_halfwidth(difference, halfwidth=halfwidth, n_star=float(policy.planned_units), alpha=policy.alpha)
    return None if n is None else n / difference.n


def _minimums(n_samples: float, n_units: float, policy: SequentialPolicy) -> list[float | None]:
    return [policy.min_units / n_units if n_units else None, policy.min_samples / n_samples if n_samples else None]
