"""How values read on pages."""

import datetime as dt

import pytest

from mmserver.web import figures


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (True, "yes"),
        (0, "0"),
        (4344, "4,344"),
        (-12, "−12"),
        (0.0, "0"),
        (-0.07881470504636667, "−0.07881"),
        (0.5, "0.5000"),
        (1.4288290980125412e-06, "1.429e-06"),
        (1234.0, "1,234"),
        (1234.56, "1,235"),
        (250000.0, "250,000"),
        (1e20, "1.000e+20"),
        (float("nan"), "–"),
        ("text", "text"),
    ],
)
def test_numbers_have_four_significant_digits(value: object, expected: str) -> None:
    assert figures.number(value) == expected


def test_the_full_value_loses_nothing() -> None:
    assert float(figures.full(0.1 + 0.2)) == 0.1 + 0.2


def test_times_are_shown_in_utc() -> None:
    moment = dt.datetime(2026, 11, 20, 15, 3, 22, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert figures.utc(moment) == "2026-11-20 14:03:22"
    assert figures.rfc3339(moment) == "2026-11-20T14:03:22Z"


@pytest.mark.parametrize(
    ("size_bytes", "expected"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes_have_the_unit_that_makes_them_short(size_bytes: int, expected: str) -> None:
    assert figures.size(size_bytes) == expected
