"""Whether an experiment may be believed at all: the arms' shares of the units, units that met both, outcomes that came, and
whether all that was observed is still there."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmserver.experiments.comparisons import ratio_difference, sample_ratio_mismatch
from mmserver.experiments.distributions import chi_square_sf, normal_sf
from mmserver.experiments.effects import Mode, averaged
from mmserver.experiments.policies import Policy
from mmserver.experiments.totals import ExperimentTotals

EXACT_BELOW = 50.0
"""Fewer units than this expected in an arm, and the chi-square's p-values near 0.001 are too small by half and more."""


@dataclass(frozen=True, slots=True)
class Health:
    """The three checks; a p-value is None where there is nothing to check yet.

    Fields:
        srm_p: of units having been assigned by the configured weights, phase by phase.
        join_p: of both arms having the same share of their outcomes.
    """

    n_control_units: int
    n_treatment_units: int
    expected_control_units: float
    expected_treatment_units: float
    srm_p: float | None
    both_arms_share: float | None
    control_join_rate: float | None
    treatment_join_rate: float | None
    join_p: float | None
    has_wrong_ratio: bool
    has_mixed_units: bool
    has_lost_outcomes: bool
    has_lost_observations: bool

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (
            self.has_wrong_ratio or self.has_mixed_units or self.has_lost_outcomes or self.has_lost_observations
        )


def health_of(
    totals: ExperimentTotals, *, mode: Mode, treatment_weights: Mapping[int, float], policy: Policy
) -> Health:
    """Check an experiment.

    Args:
        treatment_weights: of each phase, as it was configured.

    Raises:
        ValueError: a phase has units and no weight.
    """
    srm_p, expected_treatment = _sample_ratio(totals, treatment_weights) if mode == "split" else (None, None)
    control, treatment = totals.control, totals.treatment
    n_units = control.n_units + treatment.n_units
    n_mixed = sum(phase.n_units_in_both_arms for phase in totals.phases.values())
    mixed = n_mixed / n_units if n_units and mode == "split" else None
    join_p = _join_p(totals) if mode == "split" else None
    return Health(
        n_control_units=control.n_units,
        n_treatment_units=treatment.n_units,
        expected_control_units=control.n_units if expected_treatment is None else n_units - expected_treatment,
        expected_treatment_units=treatment.n_units if expected_treatment is None else expected_treatment,
        srm_p=srm_p,
        both_arms_share=mixed,
        control_join_rate=control.joins.ratio,
        treatment_join_rate=treatment.joins.ratio,
        join_p=join_p,
        has_wrong_ratio=srm_p is not None and srm_p < policy.srm_alpha,
        has_mixed_units=mixed is not None and mixed > policy.max_both_arms_share,
        has_lost_outcomes=join_p is not None and join_p < policy.join_alpha,
        has_lost_observations=totals.has_lost_observations,
    )


def _sample_ratio(
    totals: ExperimentTotals, treatment_weights: Mapping[int, float]
) -> tuple[float | None, float | None]:
    """The p-value over all phases together, and how many treated units were to be expected."""
    statistics: list[float] = []
    expected, n_free, n_seen = 0.0, 0, 0
    for number, phase in totals.phases.items():
        counts = (phase.control.n_units, phase.treatment.n_units)
        if not sum(counts):
            continue
        if number not in treatment_weights:
            raise ValueError(f"phase {number} has {sum(counts)} units and no weight")
        weight = treatment_weights[number]
        test = sample_ratio_mismatch(counts, (1.0 - weight, weight))
        expected += weight * sum(counts)
        n_seen += sum(counts)
        if test is None:
            continue
        is_small = 0.0 < min(weight, 1.0 - weight) * sum(counts) < EXACT_BELOW
        statistics.append(float(exact_statistic(counts[1], sum(counts), weight)) if is_small else test.statistic)
        n_free += test.degrees_of_freedom
    if not n_seen:
        return None, None
    whole = math.fsum(statistics)
    if math.isinf(whole):
        return 0.0, expected
    return (chi_square_sf(whole, n_free) if n_free else None), expected


def exact_statistic(n_treated: Any, n_units: Any, weight: float) -> Any:
    """The chi-square (one degree of freedom) whose p-value is the exact binomial one, two-sided by doubling; of numbers or arrays."""
    from scipy import special

    k, n = np.asarray(n_treated, float), np.asarray(n_units, float)
    # P(X >= k) and P(X <= k); where that is all there is, the beta function is not defined.
    upper = np.where(k > 0.0, special.betainc(np.maximum(k, 1.0), n - k + 1.0, weight), 1.0)
    lower = np.where(k < n, special.betainc(np.maximum(n - k, 1.0), k + 1.0, 1.0 - weight), 1.0)
    return special.chdtri(1.0, np.minimum(2.0 * np.minimum(lower, upper), 1.0))


def _join_p(totals: ExperimentTotals) -> float | None:
    """By unit: a block whose outcomes never came loses all its predictions at once."""
    parts = []
    for phase in totals.phases.values():
        control, treatment = phase.control.joins, phase.treatment.joins
        found = ratio_difference(control=control.pairs, treatment=treatment.pairs, is_rate=True)
        parts.append((found, control.n * treatment.n / (control.n + treatment.n) if found else 0.0))
    whole = averaged(parts)
    return 2.0 * normal_sf(abs(whole.estimate / whole.standard_error)) if whole else None
