"""When to promote and when to roll back: the rules alone, over arrays, so that what is simulated is what decides.

Every number here may be of many experiments at once. What is not known has an infinite standard error: nothing follows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.comparisons import Difference
from mmserver.experiments.policies import ClassicPolicy, SequentialPolicy
from mmserver.experiments.sequences import log_e_value, one_sided_halfwidth

Array = NDArray[Any]

N_GUARDRAILS = 3
"""Accuracy, error rate, latency: each may roll back, so each has a third of alpha."""
ROUNDING = 1e-12
"""57 % less 55 % is 0.0199… in binary, and yet two points."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Estimates of treatment - control, their standard errors, and the units that they rest on."""

    estimate: Array
    standard_error: Array
    n: Array

    @classmethod
    def of(cls, difference: Difference | None) -> "Measured":
        """One experiment's; None is not known."""
        if difference is None:
            return cls(np.zeros(1), np.full(1, np.inf), np.ones(1))
        return cls(
            np.array([difference.estimate]), np.array([difference.standard_error]), np.array([float(difference.n)])
        )

    def lower(self, policy: SequentialPolicy, alpha: float) -> Array:
        """What the truth is above, at all looks at once."""
        return self.estimate - self._reach(policy, alpha)

    def upper(self, policy: SequentialPolicy, alpha: float) -> Array:
        """What the truth is below, at all looks at once."""
        return self.estimate + self._reach(policy, alpha)

    def _reach(self, policy: SequentialPolicy, alpha: float) -> Array:
        return one_sided_halfwidth(self.standard_error, self.n, n_star=float(policy.planned_units), alpha=alpha)


def guardrail_alpha(policy: SequentialPolicy) -> float:
    """The error rate of one guardrail."""
    return policy.alpha / N_GUARDRAILS


def p_of_gain(accuracy: Measured, policy: SequentialPolicy) -> Array:
    """The always-valid p-value of this look where the treatment is ahead, 1 where it is not."""
    z = accuracy.estimate / accuracy.standard_error
    log_e = log_e_value(z, accuracy.n, n_star=float(policy.planned_units), alpha=policy.alpha)
    return np.where(accuracy.estimate > 0.0, np.exp(np.minimum(0.0, -log_e)), 1.0)


def least_p_of_gain(
    accuracy: Measured, policy: SequentialPolicy, *, n_matured: Array, n_units_matured: Array, so_far: Array
) -> Array:
    """The least of all looks; one at fewer than the minimums does not count, because its p-value may mean nothing."""
    is_enough = (n_matured >= policy.min_samples) & (n_units_matured >= policy.min_units)
    return np.where(is_enough, np.minimum(p_of_gain(accuracy, policy), so_far), so_far)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """All that the rules of `sequential` look at; counts are those of the arm that has fewer.

    Fields:
        excess_errors: error rate of the treatment less (1 + max_error_rate_increase) times the control's.
        least_p: the least `p_of_gain` of all looks so far, this one too.
    """

    hours: Array
    n_matured: Array
    n_units_matured: Array
    n_predictions: Array
    n_units: Array
    accuracy: Measured
    errors: Measured
    excess_errors: Measured
    latency: Measured
    least_p: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Checks:
    """What holds of each experiment, and what follows: at most one of `promote` and `rollback`."""

    is_long_enough: Array
    has_outcomes: Array
    has_calls: Array
    is_worse: Array
    is_much_worse: Array
    has_excess_errors: Array
    is_slower: Array
    is_better: Array
    is_certain: Array
    errors_are_bounded: Array
    latency_is_bounded: Array

    @property
    def rollback(self) -> Array:
        """A guardrail is broken."""
        calls = self.has_calls & (self.has_excess_errors | self.is_slower)
        return self.is_long_enough & (calls | (self.has_outcomes & self.is_worse))

    @property
    def promote(self) -> Array:
        """All that a promotion needs is shown, and no guardrail is broken."""
        enough = self.is_long_enough & self.has_outcomes & self.has_calls
        harmless = self.errors_are_bounded & self.latency_is_bounded
        return enough & self.is_better & self.is_certain & harmless & ~self.rollback


def sequential_checks(measures: Measures, policy: SequentialPolicy) -> Checks:
    """The rules of `sequential`, but for health, which comes before them, and the end, which comes after.

    Accuracy below the control's and accuracy below it by more than the margin are one guardrail: the second never holds
    without the first.
    """
    alpha = guardrail_alpha(policy)
    worst_accuracy = measures.accuracy.upper(policy, alpha)
    return Checks(
        is_long_enough=measures.hours >= policy.min_hours,
        has_outcomes=(measures.n_matured >= policy.min_samples) & (measures.n_units_matured >= policy.min_units),
        has_calls=(measures.n_predictions >= policy.min_samples) & (measures.n_units >= policy.min_units),
        is_worse=worst_accuracy < 0.0,
        is_much_worse=worst_accuracy < -policy.max_accuracy_loss,
        has_excess_errors=measures.excess_errors.lower(policy, alpha) > 0.0,
        is_slower=measures.latency.lower(policy, alpha) > policy.max_latency_increase_ms,
        is_better=measures.accuracy.estimate >= policy.min_accuracy_gain - ROUNDING,
        is_certain=measures.least_p < policy.alpha,
        errors_are_bounded=measures.errors.upper(policy, policy.alpha) < policy.max_error_rate_margin,
        latency_is_bounded=measures.latency.upper(policy, policy.alpha) < policy.max_latency_increase_ms,
    )


# --- the earlier service's rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PointMeasures:
    """All that the rules of `classic` look at; not known is NaN, from which nothing follows.

    Fields:
        n_matured: of the arm that has fewer.
        p_value: Welch's, of single predictions' being right, as if each were independent.
    """

    hours: Array
    n_matured: Array
    accuracy_gain: Array
    p_value: Array
    latency_increase_ms: Array
    control_error_rate: Array
    treatment_error_rate: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class PointChecks:
    """What holds of each experiment, and what follows."""

    is_long_enough: Array
    has_outcomes: Array
    is_much_worse: Array
    has_excess_errors: Array
    is_better: Array
    is_certain: Array
    is_fast_enough: Array

    @property
    def rollback(self) -> Array:
        """A number is beyond its limit."""
        return self.is_long_enough & self.has_outcomes & (self.is_much_worse | self.has_excess_errors)

    @property
    def promote(self) -> Array:
        """All numbers are as a promotion needs them, and none is beyond its limit."""
        enough = self.is_long_enough & self.has_outcomes
        return enough & self.is_better & self.is_certain & self.is_fast_enough & ~self.rollback


def classic_checks(measures: PointMeasures, policy: ClassicPolicy) -> PointChecks:
    """The earlier service's rules."""
    most_errors = (1.0 + policy.max_error_rate_increase) * measures.control_error_rate
    return PointChecks(
        is_long_enough=measures.hours >= policy.min_hours,
        has_outcomes=measures.n_matured >= policy.min_samples,
        is_much_worse=measures.accuracy_gain < -policy.max_accuracy_loss - ROUNDING,
        has_excess_errors=measures.treatment_error_rate > most_errors + ROUNDING,
        is_better=measures.accuracy_gain >= policy.min_accuracy_gain - ROUNDING,
        is_certain=measures.p_value < policy.alpha,
        is_fast_enough=measures.latency_increase_ms <= policy.max_latency_increase_ms + ROUNDING,
    )
