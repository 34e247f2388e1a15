"""Frames and series of pandas 1.5, 2.2 and 3 come out with the values they were written with."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.inert import decode, to_jsonable
from mmserver.inert.records import Frame, Index, Series, Timestamp

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.pickle"))


@pytest.fixture(params=CORPUS, ids=lambda path: path.stem)
def written(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What one generation of libraries wrote, decoded."""
    decoded: dict[str, Any] = decode(request.param.read_bytes())
    return decoded


def test_the_corpus_covers_three_generations() -> None:
    assert {path.stem.partition("-")[0] for path in CORPUS} == {
        "pandas_1_5",
        "pandas_2_2",
        "pandas_3",
        "pandas_3_with_pyarrow",
    }


def test_numeric_columns_keep_values_and_dtypes(written: dict[str, Any]) -> None:
    frame = written["frame"]
    assert isinstance(frame, Frame)
    expected = {
        "f8": np.array([1.5, np.nan]),
        "f4": np.array([0.25, -2], "f4"),
        "f8b": np.array([7.0, 8.0]),
        "i8": np.array([1, -2]),
        "i4": np.array([3, 4], "i4"),
        "b": np.array([True, False]),
    }
    for name, values in expected.items():
        column = frame.column(name)
        assert isinstance(column, np.ndarray)
        assert column.dtype == values.dtype
        np.testing.assert_array_equal(column, values)
        assert frame.dtypes[frame.columns.index(name)] == str(values.dtype)


def test_text_categories_and_nullable_columns_are_lists_with_none(written: dict[str, Any]) -> None:
    frame = written["frame"]
    assert frame.column("text") == ["x", None]
    assert frame.column("kind") == ["u", "v"]
    assert frame.column("n") == [1, None]
    assert frame.column("s") == ["p", None]
    dtypes = dict(zip(frame.columns, frame.dtypes, strict=True))
    assert (dtypes["kind"], dtypes["n"], dtypes["s"]) == ("category", "Int64", "string")


def test_datetime_columns_are_datetimes_in_utc(written: dict[str, Any]) -> None:
    frame = written["frame"]
    np.testing.assert_array_equal(frame.column("when"), np.array(["2020-01-01T12:00", "NaT"], "M8[ns]"))
    instants = np.array(["2019-12-31T23:30", "2020-05-31T22:00"], "M8[ns]")
    np.testing.assert_array_equal(frame.column("zoned"), instants)
    np.testing.assert_array_equal(frame.column("utc"), instants)
    assert frame.dtypes[frame.columns.index("zoned")].endswith(", Europe/Berlin]")
    assert frame.dtypes[frame.columns.index("utc")].endswith(", UTC]")


def test_columns_keep_their_order_and_rows_their_labels(written: dict[str, Any]) -> None:
    frame = written["frame"]
    assert frame.columns == ["f8", "f4", "f8b", "i8", "i4", "b", "text", "when", "zoned", "utc", "kind", "n", "s"]
    assert (list(frame.index.values), frame.index.name, len(frame)) == (["r1", "r2"], "row", 2)
    assert written["ranged"].index.values == range(3)
    np.testing.assert_array_equal(written["ranged"].column("a"), [1, 2, 3])


def test_series_and_indexes(written: dict[str, Any]) -> None:
    series = written["series"]
    assert isinstance(series, Series)
    assert (series.name, series.dtype) == ("pnl", "float64")
    np.testing.assert_array_equal(series.values, [1.0, 2.0])
    np.testing.assert_array_equal(series.index.values, np.array(["2021-03-01", "2021-03-02"], "M8[ns]"))
    multi = written["multi"].index
    assert (multi.values, multi.name) == ([("x", 1), ("y", 2)], ("p", "q"))
    assert isinstance(written["int_index"], Index)
    np.testing.assert_array_equal(written["int_index"].values, [10, 20])


def test_scalars_of_pandas(written: dict[str, Any]) -> None:
    assert written["stamp"] == Timestamp(1577836800123456789, "ns", "UTC")
    assert written["stamp"].isoformat() == "2020-01-01T00:00:00.123456789Z"
    assert written["delta"] == np.timedelta64(1, "s")
    assert written["missing"] == [None, None]


def test_arrays_beside_frames(written: dict[str, Any]) -> None:
    np.testing.assert_array_equal(written["array"], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(written["fortran"], np.arange(6).reshape(2, 3))
    assert written["objects"] == ["a", None, {"deep": 1}]
    assert written["text_array"].tolist() == ["ab", "c"]
    assert written["scalars"] == [np.float32(0.5), np.int64(-7), np.bool_(True), np.datetime64("2020-01-01")]
    assert written["record"].tolist() == [(1, 2.5)]


def test_every_generation_shows_the_same() -> None:
    shown = [to_jsonable(decode(path.read_bytes())) for path in CORPUS]
    assert all(each == shown[0] for each in shown[1:])


@pytest.fixture(scope="module")
def pandas() -> Any:
    """The pandas that is installed here."""
    return pytest.importorskip("pandas", reason="pandas is not installed (the extra test)")


def _assert_same(decoded: Frame, frame: Any) -> None:
    assert decoded.columns == list(frame.columns)
    for values, (_, column) in zip(decoded.data, frame.items(), strict=True):
        np.testing.assert_array_equal(np.asarray(values), column.to_numpy())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_frames_of_many_blocks_equal_pandas_own(pandas: Any, protocol: int) -> None:
    random = np.random.default_rng(7)
    frame = pandas.DataFrame({f"f{at}": random.normal(size=50) for at in range(6)})
    for at in range(3):
        frame.insert(2 * at, f"i{at}", random.integers(0, 9, 50))
    frame["g"] = random.normal(size=50).astype("f4")
    del frame["f3"]
    _assert_same(decode(pickle.dumps(frame, protocol)), frame)
    _assert_same(decode(pickle.dumps(frame[::2], protocol)), frame[::2])
    _assert_same(decode(pickle.dumps(frame.T, protocol)), frame.T)


def test_odd_frames(pandas: Any) -> None:
    assert to_jsonable(decode(pickle.dumps(pandas.DataFrame()))) == {"columns": [], "rows": []}
    twice = decode(pickle.dumps(pandas.DataFrame([[1, 2]], columns=["a", "a"])))
    assert (twice.columns, [values.tolist() for values in twice.data]) == (["a", "a"], [[1], [2]])
    no_rows = decode(pickle.dumps(pandas.DataFrame(columns=["a", "b"])))
    assert (no_rows.columns, len(no_rows)) == (["a", "b"], 0)
    grouped = pandas.DataFrame([[1, 2]], columns=pandas.MultiIndex.from_product([["a"], ["x", "y"]]))
    assert decode(pickle.dumps(grouped)).columns == [("a", "x"), ("a", "y")]


@pytest.mark.parametrize(
    ("made", "name"),
    [("period_range('2020-01', periods=2, freq='M')", "PeriodArray"), ("interval_range(0, 2)", "IntervalIndex")],
)
def test_what_is_not_read_is_refused_by_name(pandas: Any, made: str, name: str) -> None:
    value = eval(f"pandas.{made}", {"pandas": pandas})
    with pytest.raises(Undecodable, match=f"unsupported: pandas {name}"):
        decode(pickle.dumps(value))
