"""Series over time: what a unit earned whatever the traffic was, percentiles of each stretch by itself, and how many points there are."""

from collections.abc import Sequence

import pytest

from mmserver.experiments.bootstrap import MIN_BLOCKS
from mmserver.experiments.courses import MAX_POINTS, latency_course, return_course, stretches_of
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.looks import evenly_spread
from mmserver.experiments.observations.hours import Hour, HourSums
from mmserver.experiments.totals import ArmTotals, ExperimentTotals, PhaseTotals, RatioMoments

FIRST = 490_000


def earned(control: float, treatment: float, number: int, phase: int = 1, n: tuple[int, int] = (1, 1)) -> Hour:
    return Hour(phase, number, HourSums(n[0], control), HourSums(n[1], treatment))


def totals_of(*n_units: tuple[int, int]) -> ExperimentTotals:
    arms = [
        (ArmTotals(returns=RatioMoments(n=control)), ArmTotals(returns=RatioMoments(n=treatment)))
        for control, treatment in n_units
    ]
    return ExperimentTotals(
        phases={
            number: PhaseTotals(control=control, treatment=treatment)
            for number, (control, treatment) in enumerate(arms, 1)
        }
    )


def test_an_arm_with_nine_times_the_traffic_is_not_nine_times_ahead() -> None:
    course = return_course([earned(9.0, 1.0, FIRST), earned(18.0, 2.0, FIRST + 1)], totals_of((90, 10)))
    assert course is not None
    assert course.control == pytest.approx([0.1, 0.3])
    assert course.treatment == pytest.approx(course.control)


def test_a_ramp_does_not_look_like_earning() -> None:
    """Each unit earns 0.1 in either arm, before and after most units come into the treatment."""
    hours = [earned(9.0, 1.0, FIRST), earned(1.0, 9.0, FIRST + 1, phase=2)]
    course = return_course(hours, totals_of((90, 10), (10, 90)))
    assert course is not None
    assert course.control == pytest.approx([0.1, 0.2])
    assert course.treatment == pytest.approx([0.1, 0.2])


def test_a_phase_without_units_of_an_arm_adds_nothing_to_it() -> None:
    course = return_course([earned(1.0, 0.0, FIRST, n=(1, 0))], totals_of((10, 0)))
    assert course is not None
    assert (course.control, course.treatment) == ([0.1], [0.0])


@pytest.mark.parametrize("n", [MIN_BLOCKS - 1, MIN_BLOCKS])
def test_a_band_takes_enough_stretches_and_is_around_its_line(n: int) -> None:
    hours = [earned(1.0 + number % 3, 2.0 - number % 2, FIRST + number) for number in range(n)]
    course = return_course(hours, totals_of((10, 10)))
    assert course is not None
    if n < MIN_BLOCKS:
        assert (course.control_band, course.treatment_band) == (None, None)
        return
    assert course == return_course(hours, totals_of((10, 10))), "the same at each look"
    for band, line in ((course.control_band, course.control), (course.treatment_band, course.treatment)):
        assert band is not None
        assert band.lower[-1] < line[-1] < band.upper[-1]


def test_returns_that_are_all_the_same_have_a_band_without_width() -> None:
    course = return_course([earned(1.0, 1.0, FIRST + number) for number in range(20)], totals_of((10, 10)))
    assert course is not None
    assert course.control_band is not None
    assert course.control_band.lower == pytest.approx(course.control)


def test_latencies_of_a_stretch_are_its_own_and_an_idle_arm_has_none() -> None:
    quick, slow = HourSums(latencies=Latencies.from_ms([1.0] * 99)), HourSums(latencies=Latencies.from_ms([50.0] * 20))
    course = latency_course([Hour(1, FIRST, quick, HourSums()), Hour(1, FIRST + 1, quick, slow)])
    assert course is not None
    assert course.treatment_p95_ms[0] is None
    assert course.treatment_p95_ms[1] == pytest.approx(50.0, rel=0.01)
    assert course.control_p50_ms == pytest.approx([1.0, 1.0], rel=0.01)


def test_an_hour_of_two_phases_is_one_point() -> None:
    one, other = (HourSums(latencies=Latencies.from_ms([value])) for value in (1.0, 3.0))
    course = latency_course([Hour(1, FIRST, one, one), Hour(2, FIRST, other, other)])
    assert course is not None
    assert len(course.starts) == 1
    assert course.control_p95_ms == pytest.approx([3.0], rel=0.01)


def test_without_outcomes_or_answers_there_is_no_course() -> None:
    assert return_course([Hour(1, FIRST, HourSums(), HourSums())], totals_of((0, 0))) is None
    assert latency_course([]) is None


@pytest.mark.parametrize("n", [1, 2, MAX_POINTS, MAX_POINTS + 1, 24 * 365])
def test_stretches_are_few_and_hold_every_hour_once(n: int) -> None:
    stretches = stretches_of(range(FIRST, FIRST + n))
    assert len(stretches) <= MAX_POINTS
    assert [number for stretch in stretches for number in stretch][:n] == list(range(FIRST, FIRST + n))
    assert len({len(stretch) for stretch in stretches}) == 1


def test_hours_far_apart_leave_no_stretch_between_them() -> None:
    assert [stretch.start for stretch in stretches_of([FIRST, FIRST + 50])] == [FIRST, FIRST + 50]


@pytest.mark.parametrize(
    ("n", "most", "expected"), [(0, 3, []), (3, 3, [0, 1, 2]), (5, 3, [0, 2, 4]), (1000, 2, [0, 999])]
)
def test_looks_are_chosen_evenly_with_both_ends(n: int, most: int, expected: Sequence[int]) -> None:
    assert evenly_spread(range(n), most) == expected
