"""How often a policy promotes and rolls back where the truth is known, looked at as often as a person or a job would."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.distributions import normal_isf
from mmserver.experiments.effects import LATENCY_RESOLUTION_MS, RATES
from mmserver.experiments.health import EXACT_BELOW, exact_statistic
from mmserver.experiments.policies import Policy, SequentialPolicy
from mmserver.experiments.rules import (
    Measured,
    Measures,
    PointMeasures,
    classic_checks,
    least_p_of_gain,
    sequential_checks,
)
from mmserver.experiments.sequences import sequence_halfwidth
from mmserver.experiments.simulating import ArmSums, Look, Phases, Scenario, Sums, looks_of, seeds_of

Array = NDArray[Any]


class ErrorRates(msgspec.Struct, frozen=True, kw_only=True):
    """What one policy decided in simulated runs, as shares of them.

    Fields:
        ever_promote, ever_rollback, ever_invalid: at any look of the run.
        first_promote, first_rollback: was the first of the two; what a server that acts by itself would have done.
        undecided: neither, to the end. median_hours: until the first of the two, where there was one.
        ever_missed_accuracy, ever_missed_return: the true difference lay outside the interval that was shown, at any look from
            the minimums on; of `sequential` its confidence sequence, of `classic` the normal interval over units. None of returns where
            none were simulated.
    """

    policy: str
    n_runs: int
    ever_promote: float
    ever_rollback: float
    ever_invalid: float
    first_promote: float
    first_rollback: float
    undecided: float
    median_hours: float | None
    ever_missed_accuracy: float
    ever_missed_return: float | None


def error_rates(
    scenario: Scenario,
    policies: Iterable[Policy],
    *,
    n_runs: int,
    seed: int = 1,
    on_progress: Callable[[int], None] = lambda n_done: None,
) -> list[ErrorRates]:
    """Simulate, with every policy looking at the same runs.

    Args:
        on_progress: called with how many runs are done.
    """
    policies = list(policies)
    records: list[list[_Record]] = [[] for _ in policies]
    n_done = 0
    for n_part, generator in seeds_of(seed, n_runs):
        parts = [_Record(policy, scenario, n_part) for policy in policies]
        for look in looks_of(scenario, n_runs=n_part, generator=generator):
            for part in parts:
                part.look(look)
        for whole, part in zip(records, parts, strict=True):
            whole.append(part)
        n_done += n_part
        on_progress(n_done)
    return [_summary(policy, scenario, parts) for policy, parts in zip(policies, records, strict=True)]


@dataclass(slots=True)
class _Record:
    """What a policy has said of each run so far."""

    policy: Policy
    scenario: Scenario
    n_runs: int
    verdicts: "Verdicts" = field(init=False)
    promoted_at: Array = field(init=False)
    rolled_back_at: Array = field(init=False)
    was_invalid: Array = field(init=False)
    missed_accuracy: Array = field(init=False)
    missed_return: Array = field(init=False)

    def __post_init__(self) -> None:
        self.verdicts = Verdicts(self.policy, self.scenario.weights, self.n_runs)
        self.promoted_at = np.full(self.n_runs, np.inf)
        self.rolled_back_at = np.full(self.n_runs, np.inf)
        self.was_invalid, self.missed_accuracy, self.missed_return = (np.zeros(self.n_runs, bool) for _ in range(3))

    def look(self, look: Look) -> None:
        promote, rollback, invalid = self.verdicts.of_look(look)
        self.promoted_at = np.where(promote, np.minimum(self.promoted_at, look.hour), self.promoted_at)
        self.rolled_back_at = np.where(rollback, np.minimum(self.rolled_back_at, look.hour), self.rolled_back_at)
        self.was_invalid |= invalid
        self.missed_accuracy |= _misses(look, "accuracy", self.scenario.accuracy_gain, self.policy)
        if self.scenario.return_sd:
            self.missed_return |= _misses(look, "returns", self.scenario.return_gain, self.policy)


def _misses(look: Look, metric: str, truth: float, policy: Policy) -> Array:
    """Whether the interval that is shown at this look leaves out the truth."""
    n, n_units = _fewest(tuple(zip(*look.phases.values(), strict=True)), metric)
    is_enough = (look.hour >= policy.min_hours) & (n >= policy.min_samples) & (n_units >= SequentialPolicy().min_units)
    found = _averaged(look.phases, metric)
    if isinstance(policy, SequentialPolicy):
        n_star = float(policy.planned_units)
        half = sequence_halfwidth(found.standard_error, found.n, n_star=n_star, alpha=policy.alpha)
    else:
        half = found.standard_error * normal_isf(policy.alpha / 2.0)
    misses: Array = is_enough & (np.abs(found.estimate - truth) > half)
    return misses


def _summary(policy: Policy, scenario: Scenario, parts: list[_Record]) -> ErrorRates:
    promoted = np.concatenate([part.promoted_at for part in parts])
    rolled_back = np.concatenate([part.rolled_back_at for part in parts])
    first = np.minimum(promoted, rolled_back)
    is_decided = np.isfinite(first)
    return ErrorRates(
        policy=policy.name,
        n_runs=promoted.size,
        ever_promote=float(np.isfinite(promoted).mean()),
        ever_rollback=float(np.isfinite(rolled_back).mean()),
        ever_invalid=float(np.concatenate([part.was_invalid for part in parts]).mean()),
        first_promote=float((promoted < rolled_back).mean()),
        first_rollback=float((rolled_back < promoted).mean()),
        undecided=float((~is_decided).mean()),
        median_hours=float(np.median(first[is_decided])) if is_decided.any() else None,
        ever_missed_accuracy=float(np.concatenate([part.missed_accuracy for part in parts]).mean()),
        ever_missed_return=float(np.concatenate([part.missed_return for part in parts]).mean())
        if scenario.return_sd
        else None,
    )


class Verdicts:
    """What a policy says of many runs, look after look; of each as `decide` would, with the looks before."""

    def __init__(self, policy: Policy, weights: Mapping[int, float], n_runs: int) -> None:
        self._policy = policy
        self._weights = weights
        self._least_p = np.ones(n_runs)

    def of_look(self, look: Look) -> tuple[Array, Array, Array]:
        """Which to promote, which to roll back, which are invalid."""
        invalid = has_wrong_ratio(look.phases, self._weights, alpha=self._policy.srm_alpha)
        if isinstance(self._policy, SequentialPolicy):
            measures = measures_of(look, self._policy, self._least_p)
            self._least_p = measures.least_p
            sequential = sequential_checks(measures, self._policy)
            return sequential.promote & ~invalid, sequential.rollback & ~invalid, invalid
        classic = classic_checks(point_measures_of(look), self._policy)
        return classic.promote & ~invalid, classic.rollback & ~invalid, invalid


def has_wrong_ratio(phases: Phases, weights: Mapping[int, float], *, alpha: float) -> Array:
    """As the health check has it: the sum of the phases' statistics, each with one degree of freedom."""
    from scipy import special

    statistic, n_free = np.zeros(1), np.zeros(1)
    for number, (control, treatment) in phases.items():
        weight, n = weights[number], control.n_units + treatment.n_units
        expected = weight * n
        own = (treatment.n_units - expected) ** 2 / np.maximum((1.0 - weight) * expected, 1e-9)
        is_small = np.minimum(expected, n - expected) < EXACT_BELOW
        if is_small.any():
            own = np.where(is_small, exact_statistic(treatment.n_units, n, weight), own)
        statistic = statistic + np.where(n > 0.0, own, 0.0)
        n_free = n_free + (n > 0.0)
    wrong: Array = special.chdtrc(np.maximum(n_free, 1.0), statistic) < alpha
    return wrong


# --- the numbers of `effects`, of many runs ----------------------------------------------------------------------------


def measures_of(look: Look, policy: SequentialPolicy, least_p: Array) -> Measures:
    """What the rules of `sequential` look at."""
    arms = tuple(zip(*look.phases.values(), strict=True))
    accuracy = _averaged(look.phases, "accuracy")
    n_matured, n_units_matured = _fewest(arms, "accuracy")
    n_predictions, n_units = _fewest(arms, "errors")
    return Measures(
        hours=np.array([float(look.hour)]),
        n_matured=n_matured,
        n_units_matured=n_units_matured,
        n_predictions=n_predictions,
        n_units=n_units,
        accuracy=accuracy,
        errors=_averaged(look.phases, "errors"),
        excess_errors=_averaged(look.phases, "errors", 1.0 + policy.max_error_rate_increase),
        latency=_averaged(look.phases, "latency"),
        least_p=least_p_of_gain(accuracy, policy, n_matured=n_matured, n_units_matured=n_units_matured, so_far=least_p),
    )


def _fewest(arms: tuple[tuple[ArmSums, ...], ...], metric: str) -> tuple[Array, Array]:
    """Predictions and units of the arm that has fewer."""
    control, treatment = (sum_of(arm, metric).rows for arm in arms)
    return np.minimum(control[1], treatment[1]), np.minimum(control[0], treatment[0])


def sum_of(arm: Iterable[ArmSums], metric: str) -> Sums:
    """Of all phases together."""
    first, *others = (getattr(phase, metric) for phase in arm)
    whole: Sums = first
    for other in others:
        whole += other
    return whole


def _averaged(phases: Phases, metric: str, control_factor: float = 1.0) -> Measured:
    parts = []
    for control, treatment in phases.values():
        ours, theirs = getattr(treatment, metric).rows, getattr(control, metric).rows
        parts.append(_ratio_difference(theirs, ours, metric, control_factor))
    weights = [weight for *_, weight in parts]
    whole = sum(weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        estimate = sum(weight * estimate for estimate, _, _, weight in parts) / whole
        error = np.sqrt(sum(weight * weight * variance for _, variance, _, weight in parts)) / whole
        n = sum(np.where(weight > 0.0, n, 0.0) for *_, n, weight in parts)
    is_known = whole > 0.0
    return Measured(np.where(is_known, estimate, 0.0), np.where(is_known, error, np.inf), np.where(is_known, n, 1.0))


def _ratio_difference(
    control: Array, treatment: Array, metric: str, control_factor: float
) -> tuple[Array, Array, Array, Array]:
    """Estimate, variance, units and weight of one phase; zeros where there are fewer than two units in an arm."""
    (theirs, their_variance), (ours, our_variance) = (
        _ratio(rows, is_rate=metric in RATES) for rows in (control, treatment)
    )
    n_control, n_treatment = control[0], treatment[0]
    variance = control_factor**2 * their_variance + our_variance
    if metric == "latency":
        variance = np.maximum(variance, LATENCY_RESOLUTION_MS**2 / np.maximum(n_control + n_treatment, 1.0))
    is_known = (n_control >= 2) & (n_treatment >= 2) & (variance > 0.0)
    n = n_control + n_treatment
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = np.where(is_known, n_control * n_treatment / n, 0.0)
    estimate = ours - control_factor * theirs
    return np.where(is_known, estimate, 0.0), np.where(is_known, variance, 0.0), n, weight


def _ratio(rows: Array, *, is_rate: bool) -> tuple[Array, Array]:
    """sum(y) / sum(x) and its variance over units; as `ratio_difference` has it."""
    n, x, y, xx, xy, yy = rows
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = y / x
        spread = np.maximum(yy - 2.0 * ratio * xy + ratio * ratio * xx, 0.0)
        variance = spread * n / (n - 1.0) / (x * x)
        if is_rate:
            share = (y + 1.0) / (x + 2.0)
            variance = np.maximum(variance, share * (1.0 - share) / x)
    return ratio, variance


def point_measures_of(look: Look) -> PointMeasures:
    """What the rules of `classic` look at."""
    from scipy import special

    arms = tuple(zip(*look.phases.values(), strict=True))
    (control_n, control_share), (treatment_n, treatment_share) = (_share(sum_of(arm, "accuracy")) for arm in arms)
    (_, control_errors), (_, treatment_errors) = (_share(sum_of(arm, "errors")) for arm in arms)
    (_, control_ms), (_, treatment_ms) = (_share(sum_of(arm, "latency")) for arm in arms)
    with np.errstate(invalid="ignore", divide="ignore"):
        parts = [
            share * (1.0 - share) / (n - 1.0)
            for n, share in ((control_n, control_share), (treatment_n, treatment_share))
        ]
        variance = parts[0] + parts[1]
        freedom = variance**2 / (parts[0] ** 2 / (control_n - 1.0) + parts[1] ** 2 / (treatment_n - 1.0))
        t = np.abs(treatment_share - control_share) / np.sqrt(variance)
        p_value = 2.0 * special.stdtr(freedom, -t)
    return PointMeasures(
        hours=np.array([float(look.hour)]),
        n_matured=np.minimum(control_n, treatment_n),
        accuracy_gain=treatment_share - control_share,
        p_value=p_value,
        latency_increase_ms=treatment_ms - control_ms,
        control_error_rate=control_errors,
        treatment_error_rate=treatment_errors,
    )


def _share(sums: Sums) -> tuple[Array, Array]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums.rows[1], sums.rows[2] / sums.rows[1]
