"""Whatever was decoded can be shown as strict JSON."""

import datetime as dt
import json
import math
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.inert import decode, to_jsonable
from mmserver.inert.records import Instance, TimeZone, ZonedTime

CASES: list[Any] = [
    pytest.param([1, "x", None, True, 1.5], [1, "x", None, True, 1.5], id="plain"),
    pytest.param([math.nan, math.inf, -math.inf], [None, None, None], id="not finite"),
    pytest.param((1, (2,)), [1, [2]], id="tuples"),
    pytest.param({3, 1, 2}, [1, 2, 3], id="sets are sorted"),
    pytest.param(b"abc", {"bytes": 3}, id="bytes"),
    pytest.param(2**64, "18446744073709551616", id="beyond 64 bits"),
    pytest.param(
        {1: "a", "1": "b", None: "c", (1, "x"): "d"}, {"1": "a", "1 (2)": "b", "None": "c", "1, x": "d"}, id="keys"
    ),
    pytest.param({np.float64(0.5): 1, b"k": 2}, {"0.5": 1, "k": 2}, id="more keys"),
    pytest.param(Decimal("1.25"), 1.25, id="Decimal"),
    pytest.param(Decimal("1e9999"), "1E+9999", id="Decimal beyond floats"),
    pytest.param(Decimal("NaN"), None, id="Decimal NaN"),
    pytest.param(UUID(int=1), "00000000-0000-0000-0000-000000000001", id="UUID"),
    pytest.param(1 + 2j, {"real": 1.0, "imag": 2.0}, id="complex"),
    pytest.param(range(3), [0, 1, 2], id="range"),
    pytest.param(slice(1, None), {"start": 1, "stop": None, "step": None}, id="slice"),
    pytest.param(dt.datetime(2024, 1, 2, 3, tzinfo=dt.UTC), "2024-01-02T03:00:00Z", id="UTC"),
    pytest.param(dt.datetime(2024, 1, 2, 3), "2024-01-02T03:00:00", id="wall clock"),
    pytest.param(dt.date(2024, 1, 2), "2024-01-02", id="date"),
    pytest.param(dt.timedelta(days=1, microseconds=5), "PT86400.000005S", id="timedelta"),
    pytest.param(-dt.timedelta(seconds=100), "-PT100S", id="negative timedelta"),
    pytest.param(TimeZone("Asia/Tokyo"), "Asia/Tokyo", id="zone"),
    pytest.param(ZonedTime(dt.datetime(2024, 1, 2), "Asia/Tokyo"), "2024-01-02T00:00:00[Asia/Tokyo]", id="zoned"),
    pytest.param(np.float32(0.5), 0.5, id="float32"),
    pytest.param(np.float64("nan"), None, id="numpy NaN"),
    pytest.param(np.datetime64("2024-01-02"), "2024-01-02T00:00:00", id="datetime64"),
    pytest.param(np.datetime64("NaT"), None, id="NaT"),
    pytest.param(np.timedelta64(1500, "ms"), "PT1.5S", id="timedelta64"),
    pytest.param(np.array([[1.0, np.nan], [np.inf, 2]]), [[1.0, None], [None, 2.0]], id="array"),
    pytest.param(np.zeros((2, 0, 3)), [[], []], id="empty array"),
    pytest.param(np.array(5), 5, id="array of no dimension"),
    pytest.param(np.array(np.nan), None, id="NaN of no dimension"),
    pytest.param(np.array([True]), [True], id="booleans"),
    pytest.param(np.array(["a"]), ["a"], id="text"),
    pytest.param(np.array([[1j]]), [[{"real": 0.0, "imag": 1.0}]], id="complex array"),
    pytest.param(np.array([(1, np.nan)], dtype=[("a", "i4"), ("b", "f8")]), [{"a": 1, "b": None}], id="records"),
    pytest.param(
        np.array([[(1, [1, 2])]], dtype=[("a", "i4"), ("b", "f8", (2,))]),
        [[{"a": 1, "b": [1.0, 2.0]}]],
        id="nested records",
    ),
    pytest.param(
        np.array(["2024-01-02T03:04:05.006", "NaT"], "M8[ms]"), ["2024-01-02T03:04:05.006", None], id="datetimes"
    ),
    pytest.param(np.array([1], "M8[Y]"), ["1971-01-01T00:00:00"], id="years"),
    pytest.param(
        Instance("a.B", (1,), {"handle": b"xy"}),
        {"instance": "a.B", "state": {"handle": {"bytes": 2}}, "args": [1]},
        id="instance",
    ),
]


@pytest.mark.parametrize(("value", "expected"), CASES)
def test_values_are_shown_as_strict_json(value: Any, expected: Any) -> None:
    shown = to_jsonable(value)
    assert json.loads(json.dumps(shown, allow_nan=False)) == expected


def test_frames_and_series() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (the extra test)")
    frame = pandas.DataFrame({"x": [1.0, np.nan], "t": ["a", None]})
    assert to_jsonable(decode(pickle.dumps(frame))) == {"columns": ["x", "t"], "rows": [[1.0, "a"], [None, None]]}
    labelled = frame.set_index(pandas.to_datetime(["2024-01-01", "2024-01-02"], utc=True))
    assert to_jsonable(decode(pickle.dumps(labelled)))["index"] == ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00Z"]
    series = pandas.Series([1, 2, 3], index=["a", "b", "a"])
    assert to_jsonable(decode(pickle.dumps(series))) == {"a": 1, "b": 2, "a (2)": 3}


def test_limits() -> None:
    with pytest.raises(Undecodable, match="too_large"):
        to_jsonable(np.zeros((1000, 1000)), max_items=10_000)
    with pytest.raises(Undecodable, match="too_large"):
        to_jsonable(range(10**12))
    with pytest.raises(Undecodable, match="too_large"):
        to_jsonable([[0] * 100] * 1000, max_items=50_000)
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(Undecodable, match="too_complex"):
        to_jsonable(nested)
    itself: list[Any] = []
    itself.append(itself)
    with pytest.raises(Undecodable, match="too_complex"):
        to_jsonable(itself)


def test_an_empty_array_of_many_lists_counts_them(whole: Callable[[bytes], bytes]) -> None:
    assert to_jsonable(np.zeros((3, 0))) == [[], [], []]
    with pytest.raises(Undecodable, match="too_large"):
        to_jsonable(np.zeros((10**6, 0)), max_items=1000)
