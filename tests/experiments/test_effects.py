"""Differences of the arms over phases, pairs and units, against what they are by definition."""

import dataclasses

import numpy as np
import pytest
from experiments.made_totals import arm, of_units, shadow, split

from mmserver.experiments.comparisons import Difference, ratio_difference
from mmserver.experiments.effects import averaged, cuped_effect, effect_of, paired_effect, split_effect
from mmserver.experiments.totals import (
    ArmTotals,
    ExperimentTotals,
    PairedMoments,
    PairedTotals,
    PhaseTotals,
    RatioMoments,
)


def test_one_phase_is_the_comparison_of_its_arms() -> None:
    control, treatment = arm(900, seed=1), arm(100, accuracy=0.6, seed=2)
    exact = ratio_difference(control=control.accuracy.pairs, treatment=treatment.accuracy.pairs, is_rate=True)
    found = effect_of(split(control, treatment), "accuracy", mode="split")
    assert found is not None
    assert exact is not None
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(exact))


def test_phases_are_averaged_by_how_many_units_they_have() -> None:
    first, second = Difference(0.1, 0.02, 100, 90.0), Difference(0.2, 0.01, 300, 280.0)
    found = averaged([(first, 1.0), (second, 3.0), (None, 7.0)])
    assert found is not None
    assert found.estimate == pytest.approx(0.25 * 0.1 + 0.75 * 0.2)
    assert found.standard_error == pytest.approx(np.hypot(0.25 * 0.02, 0.75 * 0.01))
    assert found.n == 400
    assert averaged([]) is None
    assert averaged([(None, 1.0)]) is None


def test_a_phase_too_young_to_compare_does_not_stand_in_the_way() -> None:
    phases = {
        1: PhaseTotals(control=arm(900, seed=1), treatment=arm(100, seed=2)),
        2: PhaseTotals(control=arm(3), treatment=arm(1)),
    }
    found = effect_of(ExperimentTotals(phases=phases), "accuracy", mode="split")
    assert found is not None
    assert found.n == 1000


def test_latencies_without_spread_are_known_to_the_microsecond_only() -> None:
    constant = of_units([5] * 100, [25.0] * 100)
    slower = of_units([5] * 100, [30.0] * 100)
    found = split_effect(constant, slower, "latency")
    assert found is not None
    assert found.estimate == pytest.approx(1.0)
    assert found.standard_error == pytest.approx(0.001 / np.sqrt(200))
    assert split_effect(RatioMoments(), slower, "latency") is None


def test_a_paired_effect_is_the_mean_difference_of_units_of_one_size() -> None:
    generator = np.random.default_rng(3)
    c, t = generator.normal(5.0, 1.0, 200), generator.normal(5.3, 1.0, 200)
    pairs = PairedMoments.from_units(zip([1.0] * 200, c.tolist(), t.tolist(), strict=True))
    found = paired_effect(pairs, "returns")
    assert found is not None
    assert found.estimate == pytest.approx((t - c).mean())
    assert found.standard_error == pytest.approx((t - c).std(ddof=1) / np.sqrt(200))
    assert (found.n, found.degrees_of_freedom) == (200, 199.0)


def test_in_shadow_mode_the_pairs_are_compared_and_nothing_else() -> None:
    totals = shadow(500, only_control=0.04, only_treatment=0.08)
    found = effect_of(totals, "accuracy", mode="shadow")
    assert found is not None
    assert found.estimate == pytest.approx(0.04, abs=1e-3)
    apart = effect_of(totals, "accuracy", mode="split")
    assert apart is not None
    assert found.standard_error < 0.6 * apart.standard_error
    without = ExperimentTotals(phases={1: dataclasses.replace(totals.phases[1], paired=None)})
    assert effect_of(without, "accuracy", mode="shadow") is None


def a_split_with_a_shadow(
    generator: np.random.Generator, *, gain: float, n_control: int, n_treatment: int
) -> ExperimentTotals:
    """Units of unequal size whose own difficulty both models feel."""

    def units(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = generator.integers(3, 9, n).astype(float)
        ease = generator.normal(0.0, 1.0, n)
        c = x * (0.1 + ease) + generator.normal(0.0, 1.0, n)
        return x, c, c + x * gain + generator.normal(0.0, 1.0, n)

    (xc, c, _), (xt, shadowed, t) = units(n_control), units(n_treatment)
    control, treatment = (
        ArmTotals(returns=of_units(xc.tolist(), c.tolist())),
        ArmTotals(returns=of_units(xt.tolist(), t.tolist())),
    )
    paired = PairedTotals(
        returns=PairedMoments.from_units(zip(xt.tolist(), shadowed.tolist(), t.tolist(), strict=True))
    )
    return split(control, treatment, paired=paired)


def test_what_the_control_explains_is_taken_out_of_a_split_without_bias() -> None:
    generator = np.random.default_rng(11)
    estimates, inside = [], 0
    for _ in range(300):
        totals = a_split_with_a_shadow(generator, gain=0.05, n_control=900, n_treatment=100)
        found = cuped_effect(totals, "returns")
        assert found is not None
        estimates.append(found.difference.estimate)
        inside += abs(found.difference.estimate - 0.05) < 1.96 * found.difference.standard_error
    raw = effect_of(totals, "returns", mode="split")
    assert raw is not None
    assert found.theta == pytest.approx(1.0, abs=0.1)
    assert found.difference.standard_error < 0.5 * raw.standard_error
    assert np.mean(estimates) == pytest.approx(0.05, abs=4 * np.std(estimates) / np.sqrt(300))
    assert 0.91 < inside / 300 < 0.985
    assert np.std(estimates) == pytest.approx(found.difference.standard_error, rel=0.2)


def test_without_a_shadow_there_is_nothing_to_take_out() -> None:
    assert cuped_effect(split(arm(900), arm(100)), "accuracy") is None
    assert cuped_effect(ExperimentTotals(), "accuracy") is None


def spread_of_z_in_shadow(*, block_hours: int) -> float:
    """How far apart z lies, over experiments of two models that are equally good but by turns: 1 where the error is right."""
    random = np.random.default_rng(81)
    edge = random.normal(size=(100, 10))
    hours = []
    for _ in range(480):
        edge = 0.7 * edge + np.sqrt(1.0 - 0.49) * random.normal(size=edge.shape)
        hours.append([random.binomial(20, np.clip(0.55 + sign * 0.15 * edge, 0.0, 1.0)) for sign in (1, -1)])
    blocks = np.array(hours).reshape(480 // block_hours, block_hours, 2, 100, 10).sum(1)
    found = []
    for run in range(100):
        control, treatment = blocks[:, :, run].swapaxes(0, 1).reshape(2, -1)
        units = np.column_stack([np.full(control.size, 20.0 * block_hours), control, treatment])
        paired = PairedTotals(accuracy=PairedMoments.from_units(units))
        effect = effect_of(ExperimentTotals(phases={1: PhaseTotals(paired=paired)}), "accuracy", mode="shadow")
        assert effect is not None
        found.append(effect.estimate / effect.standard_error)
    return float(np.std(found))


def test_in_shadow_blocks_must_be_longer_than_what_makes_them_resemble_each_other() -> None:
    # Nothing is drawn by lot there, so hours of one symbol that go alike count as more than they are; docs/experiments.md says so.
    assert spread_of_z_in_shadow(block_hours=1) > 1.7
    assert 0.8 < spread_of_z_in_shadow(block_hours=24) < 1.2
