"""Where charts put their values: within the frame, on round ticks, however odd the numbers are."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mmserver.web.experiment_charts import BOTTOM, LEFT, RIGHT, TOP, Area, Chart, Level, Line, Value

BEGUN = datetime(2026, 11, 20, 15, 7, tzinfo=UTC)


def chart_of(values: Sequence[Value], *, step: timedelta = timedelta(hours=1), **more: Any) -> Chart:
    moments = [BEGUN + place * step for place in range(len(values))]
    said = {"name": "c", "title": "C", "takeaway": "So it is.", "unit": "%", **more}
    return Chart(moments=moments, lines=[Line("A, b", "control", values)], **said)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1.0], id="one point"),
        pytest.param([0.0, 0.0, 0.0], id="all zero"),
        pytest.param([3.0, 3.0], id="all the same"),
        pytest.param([1e-12, 2e-12], id="tiny"),
        pytest.param([1e12, -1e12], id="huge"),
        pytest.param([None, 1.0, None, 2.0], id="gaps"),
        pytest.param([None, None], id="nothing known"),
    ],
)
def test_everything_lies_within_the_frame(values: Sequence[Value]) -> None:
    drawing = chart_of(values).drawing
    for _, x, y in drawing.dots:
        assert LEFT <= x <= RIGHT
        assert TOP <= y <= BOTTOM
    assert len(drawing.dots) == sum(value is not None for value in values)
    assert 2 <= len(drawing.y_ticks) <= 7
    assert all(TOP - 0.01 <= tick.at <= BOTTOM + 0.01 for tick in drawing.y_ticks)
    assert len({tick.text for tick in drawing.y_ticks}) == len(drawing.y_ticks), "no two ticks read the same"


def test_a_gap_is_not_bridged() -> None:
    [(_, path)] = chart_of([1.0, 2.0, None, 3.0, 4.0]).drawing.lines
    assert path.count("M") == 2


def test_a_chart_without_points_draws_nothing() -> None:
    drawing = chart_of([]).drawing
    assert (drawing.lines, drawing.y_ticks, drawing.early_until) == ([], [], None)


def test_an_area_that_was_wide_at_first_does_not_flatten_the_rest() -> None:
    wide = Area("band", "effect", [-1000.0, -1.0, -0.5], [1000.0, 1.0, 0.5])
    drawing = chart_of([0.1, 0.2, 0.3], areas=[wide], levels=[Level("goal", "goal", 2.0)]).drawing
    distance = drawing.dots[0][2] - drawing.dots[2][2]
    assert distance > 0.03 * (BOTTOM - TOP)


@pytest.mark.parametrize(
    "step", [timedelta(seconds=20), timedelta(hours=1), timedelta(days=1), timedelta(days=40)], ids=str
)
def test_times_have_few_ticks_in_order(step: timedelta) -> None:
    ticks = chart_of([1.0] * 30, step=step).drawing.x_ticks
    assert 1 <= len(ticks) <= 5
    assert [tick.at for tick in ticks] == sorted(tick.at for tick in ticks)
    assert all(LEFT <= tick.at <= RIGHT + 0.01 for tick in ticks)


def test_what_is_early_is_covered_up_to_what_counts() -> None:
    assert chart_of([1.0, 2.0, 3.0], n_early=0).drawing.early_until is None
    some = chart_of([1.0, 2.0, 3.0], n_early=1).drawing.early_until
    assert some == pytest.approx(LEFT + (RIGHT - LEFT) / 4)
    whole = chart_of([1.0, 2.0, 3.0], n_early=3).drawing.early_until
    assert whole is not None
    assert whole > RIGHT


def test_the_csv_has_all_digits_and_leaves_out_what_is_not_known() -> None:
    text = chart_of([0.1 + 0.2, None], areas=[Area("band", "effect", [0.0, None], [1.0, None])]).csv
    assert text.splitlines() == [
        'time,"A, b (%)","band, from (%)","band, to (%)"',
        "2026-11-20T15:07:00Z,0.30000000000000004,0.0,1.0",
        "2026-11-20T16:07:00Z,,,",
    ]
