"""Totals of an experiment: they add up, grow unit by unit, and come back from JSON as they were."""

import msgspec
import numpy as np
import pytest

from mmserver.experiments.comparisons import ratio_difference
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.moments import CoMoments
from mmserver.experiments.rates import Rate
from mmserver.experiments.totals import (
    ArmTotals,
    DaySums,
    ExperimentTotals,
    PairedMoments,
    PairedTotals,
    PhaseTotals,
    RatioMoments,
    SymbolTotals,
)

UNITS = [(3.0, 1.0), (5.0, 5.0), (1.0, 0.0), (8.0, 4.0)]
TRIPLES = [(3.0, 1.0, 2.0), (5.0, 5.0, 4.0), (1.0, 0.0, 1.0)]


def an_arm() -> ArmTotals:
    return ArmTotals(
        n_units=4,
        n_predictions=17,
        accuracy=RatioMoments.from_units(UNITS),
        wins=Rate(2, 5),
        latencies=Latencies.from_ms([1.0, 3.0]),
        days={20_000: DaySums(3, 1), 20_001: DaySums(2, 0, 1, 1, 1, 0.5)},
        first_at_us=5,
        last_at_us=9,
    )


def a_whole() -> ExperimentTotals:
    phase = PhaseTotals(
        control=an_arm(),
        treatment=an_arm(),
        paired=PairedTotals(n_only_control=3, accuracy=PairedMoments.from_units(TRIPLES)),
        by_symbol={"BTC/USDT": SymbolTotals(control_accuracy=RatioMoments.from_units(UNITS))},
    )
    return ExperimentTotals(phases={1: phase, 2: PhaseTotals(control=an_arm())})


def test_sums_over_units_are_the_moments_of_the_units() -> None:
    moments = RatioMoments.from_units(UNITS).pairs
    exact = CoMoments.from_values(*zip(*UNITS, strict=True))
    assert moments.n == exact.n
    for name in ("mean_x", "mean_y", "m2_x", "m2_y", "c_xy"):
        assert getattr(moments, name) == pytest.approx(getattr(exact, name), rel=1e-12)


def test_a_unit_that_grows_prediction_by_prediction_ends_as_the_whole_unit() -> None:
    sums = RatioMoments.from_units(UNITS)
    seen = (0.0, 0.0)
    for right in (1, 0, 1, 1):
        grown = (seen[0] + 1, seen[1] + right)
        sums, seen = sums.replaced(seen, grown), grown
    assert sums == RatioMoments.from_units([*UNITS, (4.0, 3.0)])


def test_a_unit_of_which_nothing_counts_is_no_unit() -> None:
    assert RatioMoments.from_units([*UNITS, (0.0, 0.0)]) == RatioMoments.from_units(UNITS)
    assert PairedMoments.from_units([*TRIPLES, (0.0, 0.0, 0.0)]) == PairedMoments.from_units(TRIPLES)
    assert RatioMoments().ratio is None
    assert RatioMoments().pairs == CoMoments()


def test_a_million_small_returns_taken_in_and_out_keep_their_spread() -> None:
    values = np.random.default_rng(7).normal(1e-4, 1e-5, 2_000)
    sums = RatioMoments()
    for value in values:
        sums = sums.replaced((0.0, 0.0), (1.0, float(value))).replaced((1.0, float(value)), (2.0, 2 * float(value)))
    assert sums.pairs.y.variance == pytest.approx(np.var(2 * values, ddof=1), rel=1e-9)
    assert sums.ratio == pytest.approx(values.mean(), rel=1e-12)


def test_units_that_do_not_vary_have_no_spread() -> None:
    moments = RatioMoments.from_units([(1.0, 0.1)] * 1000).pairs
    assert (moments.m2_x, moments.m2_y, moments.c_xy) == (0.0, 0.0, 0.0)


def test_what_rounding_took_from_a_spread_of_none_is_no_mistake() -> None:
    tenths = RatioMoments.from_units([(1.0, 0.1)] * 1000)
    less = RatioMoments(tenths.n, tenths.x, tenths.y, tenths.xx, tenths.xy, tenths.yy * (1.0 - 1e-10))
    assert less.pairs.m2_y == 0.0


def test_sums_that_no_units_have_are_refused() -> None:
    with pytest.raises(ValueError, match="no 2 units"):
        _ = RatioMoments(2, 10.0, 0.0, 1.0, 0.0, 0.0).pairs


def test_a_paired_difference_is_that_of_each_unit() -> None:
    sums = PairedMoments.from_units(TRIPLES)
    assert sums.difference(1.5) == RatioMoments.from_units((x, t - 1.5 * c) for x, c, t in TRIPLES)
    assert sums.control == RatioMoments.from_units((x, c) for x, c, _ in TRIPLES)
    assert sums.treatment == RatioMoments.from_units((x, t) for x, _, t in TRIPLES)
    grown = sums.replaced(TRIPLES[0], (4.0, 2.0, 2.0))
    assert grown == PairedMoments.from_units([(4.0, 2.0, 2.0), *TRIPLES[1:]])


def test_merging_parts_adds_them_up() -> None:
    both = a_whole().merge(a_whole())
    arm = both.phases[1].control
    assert (arm.n_units, arm.n_predictions, arm.accuracy.n, arm.wins) == (8, 34, 8, Rate(4, 10))
    assert arm.days[20_001] == DaySums(4, 0, 2, 2, 2, 1.0)
    assert (arm.first_at_us, arm.last_at_us) == (5, 9)
    paired = both.phases[1].paired
    assert paired is not None
    assert (paired.n_only_control, paired.accuracy.n) == (6, 6)
    assert both.phases[2].paired is None
    assert both.phases[1].by_symbol["BTC/USDT"].control_accuracy.n == 8
    assert a_whole().control.n_units == 8
    assert a_whole().treatment.n_units == 4


def test_nothing_changes_nothing() -> None:
    assert ExperimentTotals().merge(a_whole()) == a_whole() == a_whole().merge(ExperimentTotals())


def test_totals_come_back_from_json_as_they_were() -> None:
    encoded = msgspec.json.encode(a_whole())
    assert msgspec.json.decode(encoded, type=ExperimentTotals) == a_whole()


def test_what_a_decision_needs_is_kept_beside_it_and_what_is_shown_is_not() -> None:
    kept = a_whole().for_deciding
    assert kept.phases[1].control.accuracy == an_arm().accuracy
    assert kept.phases[1].paired == a_whole().phases[1].paired
    assert (kept.phases[1].by_symbol, kept.phases[1].control.days) == ({}, {})
    assert kept.phases[1].control.latencies == Latencies()


def test_the_difference_of_arms_is_that_of_their_units() -> None:
    other = [(4.0, 3.0), (2.0, 2.0), (6.0, 4.0)]
    found = ratio_difference(
        control=RatioMoments.from_units(UNITS).pairs, treatment=RatioMoments.from_units(other).pairs, is_rate=True
    )
    assert found is not None
    assert found.estimate == pytest.approx(9 / 12 - 10 / 17)
    assert found.n == 7
