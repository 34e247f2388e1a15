"""Tables of features: columns find their factors by name whatever the format, and nothing that is not a number gets through."""

import io
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmserver.errors import FeaturesInvalid, RequestInvalid, TooManyRows
from mmserver.serving.tables import (
    Table,
    distinct_names,
    rows_from_table,
    table_from_csv,
    table_from_scoring,
    unused_columns,
)

FACTORS = ("rsi", "vol", "mom")
EXPECTED = [[1.5, 2.0, -3.25], [0.1, math.nan, 7.0]]


def rows(table: Table, factors: tuple[str, ...] = FACTORS, **options: Any) -> list[list[float]]:
    found = rows_from_table(table, factors, **{"max_rows": 100, **options})
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert found.shape == (table.n_rows, len(factors))
    return found.tolist()


def same(found: list[list[float]], expected: list[list[float]]) -> bool:
    return bool(np.array_equal(np.array(found), np.array(expected, np.float32), equal_nan=True))


def scoring(**document: Any) -> Table:
    return table_from_scoring(document)


# --- the four inputs --------------------------------------------------------------------------------------------------

SHUFFLED = ["mom", "day", "rsi", "vol"]
SHUFFLED_ROWS = [[-3.25, "2024-01-02", 1.5, 2], [7, None, 0.1, None]]
BY_NAME = [dict(zip(SHUFFLED, row, strict=True)) for row in SHUFFLED_ROWS]
PLAIN_ROWS = [[1.5, 2, -3.25], [0.1, None, 7]]


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({"dataframe_split": {"columns": SHUFFLED, "index": [5, 6], "data": SHUFFLED_ROWS}}, id="split"),
        pytest.param({"dataframe_split": {"data": PLAIN_ROWS}}, id="split without columns"),
        pytest.param({"dataframe_split": {"columns": None, "data": PLAIN_ROWS}}, id="split with null columns"),
        pytest.param({"dataframe_split": {"columns": [0, 1, 2], "data": PLAIN_ROWS}}, id="split with counted columns"),
        pytest.param({"dataframe_records": BY_NAME}, id="records"),
        pytest.param(
            {"dataframe_records": [BY_NAME[0], dict(reversed(BY_NAME[1].items()))]}, id="records in any order"
        ),
        pytest.param({"instances": BY_NAME}, id="instances by name"),
        pytest.param({"instances": PLAIN_ROWS, "params": {}}, id="instances by place"),
        pytest.param({"inputs": PLAIN_ROWS, "unknown": 1}, id="inputs by place"),
        pytest.param({"inputs": {name: [row[name] for row in BY_NAME] for name in SHUFFLED}}, id="inputs by column"),
    ],
)
def test_every_form_of_input_gives_the_same_rows(document: dict[str, Any]) -> None:
    assert same(rows(table_from_scoring(document)), EXPECTED)


def test_inputs_of_single_values_are_one_row() -> None:
    assert rows(scoring(inputs={"vol": 2, "mom": 3.0, "rsi": 1})) == [[1, 2, 3]]


def test_counted_columns_are_names_where_a_factor_is_called_so() -> None:
    table = scoring(dataframe_split={"columns": [0, 1], "data": [[10, 11]]})
    assert rows(table, ("1", "0")) == [[11, 10]]


def test_one_factor_alone_is_picked_by_name() -> None:
    assert rows(scoring(dataframe_records=BY_NAME), ("mom",)) == [[-3.25], [7.0]]
    assert rows(scoring(instances=[[1], [2]]), ("mom",)) == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "document", [{"instances": []}, {"inputs": []}, {"dataframe_records": []}, {"dataframe_split": {"data": []}}]
)
def test_no_rows_are_no_error(document: dict[str, Any]) -> None:
    assert rows(table_from_scoring(document)) == []


def test_columns_that_are_not_used_are_not_looked_at_but_known() -> None:
    table = scoring(dataframe_split={"columns": SHUFFLED, "data": SHUFFLED_ROWS})
    assert unused_columns(table, FACTORS) == ("day",)
    assert unused_columns(scoring(instances=PLAIN_ROWS), FACTORS) == ()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param([], "an object", id="array"),
        pytest.param(1, "an object", id="number"),
        pytest.param({}, "it has nothing", id="empty"),
        pytest.param({"columns": [], "data": []}, "it has 'columns', 'data'", id="bare split"),
        pytest.param({"instances": [], "inputs": []}, "it has instances and inputs", id="two inputs"),
        pytest.param({"instances": [[1, 2, 3]], "params": {"output_margin": True}}, "params", id="params"),
        pytest.param({"instances": [[1, 2, 3]], "signature_name": "x"}, "signature_name", id="signature name"),
        pytest.param({"instances": [1, 2, 3]}, "array of rows", id="flat instances"),
        pytest.param({"instances": [[1, 2, 3], [1, 2]]}, r"instances\[1\]: has 2 values instead of 3", id="ragged"),
        pytest.param({"instances": [{"rsi": 1}, [1]]}, "array of objects", id="mixed instances"),
        pytest.param({"instances": "x"}, "array of rows", id="text"),
        pytest.param({"inputs": None}, "array of rows", id="null"),
        pytest.param({"inputs": {}}, "no columns", id="no columns"),
        pytest.param({"inputs": {"rsi": [1, 2], "vol": [1]}}, "inputs.vol: must be an array of 2", id="column lengths"),
        pytest.param({"inputs": {"rsi": [1], "vol": 1}}, "inputs.vol: must be an array of 1", id="column and single"),
        pytest.param({"inputs": {"rsi": 1, "vol": [1]}}, "inputs.rsi: must be an array", id="single and column"),
        pytest.param({"dataframe_records": [{}]}, r"dataframe_records\[0\]: has no columns", id="empty record"),
        pytest.param({"dataframe_records": {"rsi": [1]}}, "array of objects", id="records of columns"),
        pytest.param({"dataframe_split": []}, "object of data", id="split array"),
        pytest.param({"dataframe_split": {"columns": ["rsi"]}}, "object of data", id="split without data"),
        pytest.param({"dataframe_split": {"data": [], "dtype": 1}}, "object of data", id="split with more"),
        pytest.param({"dataframe_split": {"data": [1]}}, "data: must be an array of rows", id="flat split"),
        pytest.param({"dataframe_split": {"columns": "abc", "data": []}}, "array of names", id="columns as text"),
        pytest.param({"dataframe_split": {"columns": [True], "data": []}}, "array of names", id="columns as flags"),
        pytest.param({"dataframe_split": {"columns": ["a", "a"], "data": []}}, "'a' stands there twice", id="twice"),
        pytest.param({"dataframe_split": {"columns": ["1", 1], "data": []}}, "'1' stands there twice", id="twice as text"),
        pytest.param({"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, "2 values instead of 1", id="width"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_by_place(document: Any, said: str) -> None:
    with pytest.raises(RequestInvalid, match=said):
        table_from_scoring(document)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param({"instances": [{"rsi": 1, "mom": 2, "ROC": 0}]}, "missing columns: 'vol'; given, but unknown: 'ROC'", id="missing"),
        pytest.param({"instances": [{"x": 1, "y": 2, "z": 3}]}, "missing columns: 'rsi', 'vol', 'mom'", id="other names"),
        pytest.param({"instances": [[1, 2]]}, "2 values without names; the model takes 3", id="too narrow"),
        pytest.param({"instances": [[1, 2, 3, 4]]}, "4 values without names", id="too wide"),
        pytest.param({"dataframe_split": {"columns": [0, 1], "data": [[1, 2]]}}, "2 values without names", id="counted"),
        pytest.param({"instances": [[]]}, "0 values without names", id="empty row"),
        pytest.param({"instances": [[1, 2, 3], [1, "2", 3]]}, "row 1, column 1: '2' is not a number", id="text"),
        pytest.param({"instances": [[1, 2, True]]}, "row 0, column 2: True is not a number", id="flag"),
        pytest.param({"instances": [[1, [2], 3]]}, "is not a number", id="array"),
        pytest.param({"instances": [{"rsi": 1, "vol": {}, "mom": 1}]}, r"row 0, vol: \{\} is not a number", id="object"),
        pytest.param({"instances": [[1, 2, 1e39]]}, "row 0, mom: is not finite as a 32-bit", id="beyond float32"),
        pytest.param({"instances": [[1, 2, -(2**63) * 10**22]]}, "not finite", id="huge integer"),
        pytest.param({"dataframe_records": [BY_NAME[0], {"rsi": 1, "mom": 1, "day": 1}]}, r"records\[1\] has no 'vol'.*send null", id="later record"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_take_is_refused_by_name(document: Any, said: str) -> None:
    with pytest.raises(FeaturesInvalid, match=said) as caught:
        rows(table_from_scoring(document))
    assert caught.value.values["errors"]


def test_each_missing_column_is_an_error_of_its_own() -> None:
    with pytest.raises(FeaturesInvalid) as caught:
        rows(scoring(instances=[{"rsi": 1}]))
    assert [error["loc"] for error in caught.value.values["errors"]] == ["vol", "mom"]


def test_a_thousand_missing_columns_are_not_all_listed() -> None:
    with pytest.raises(FeaturesInvalid, match="and 980 more") as caught:
        rows(scoring(instances=[{"rsi": 1}]), tuple(f"f{i}" for i in range(1000)))
    assert len(str(caught.value)) < 1000


def test_more_rows_than_are_allowed_are_refused_before_they_are_looked_at() -> None:
    assert len(rows(scoring(instances=[[1, 2, 3]] * 5), max_rows=5)) == 5
    with pytest.raises(TooManyRows, match="6 rows are more than the 5"):
        rows(scoring(instances=[["x", None, []]] * 6), max_rows=5)


# --- CSV --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("rsi,vol,mom\n1.5,2,-3.25\n0.1,,7\n", id="plain"),
        pytest.param("mom,rsi,vol\r\n-3.25,1.5,2\r\n7,0.1,\r\n", id="other order, CRLF"),
        pytest.param(",rsi,vol,mom\n0,1.5,2,-3.25\n1,0.1,NaN,7", id="index column, no last newline"),
        pytest.param('\n"rsi","vol","mom"\n"1.5","2.0",-325e-2\n\n0.1,None,+7.0\n\n', id="quotes and empty lines"),
        pytest.param("\ufeffrsi,vol,mom\n1.5,2,-3.25\n0.1,N/A,7\n", id="byte order mark"),
        pytest.param('day,rsi,vol,mom\n"a,\nb",1.5, 2 ,-3.25\nx,0.1,null,7\n', id="text beside"),
    ],
)
def test_csv_columns_are_matched_by_name(text: str) -> None:
    assert same(rows(table_from_csv(text.encode())), EXPECTED)


def test_what_pandas_writes_is_read_to_the_bit() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (the extra test)")
    values = np.random.default_rng(3).normal(scale=1e4, size=(50, 3)).astype(np.float32)
    values[np.random.default_rng(4).random(values.shape) < 0.2] = np.nan
    frame = pandas.DataFrame(values, columns=list(FACTORS))
    for options in ({}, {"index": False}, {"na_rep": "NULL"}, {"lineterminator": "\r\n"}):
        assert same(rows(table_from_csv(frame.to_csv(**options).encode())), values.tolist())
    for orient in ("split", "records"):
        document = json.loads(frame.to_json(orient=orient, double_precision=15))
        assert same(rows(table_from_scoring({f"dataframe_{orient}": document})), values.tolist())


def test_a_missing_value_alone_in_its_line_is_a_row() -> None:
    assert same(rows(table_from_csv(b'rsi\n1\n""\n2\n'), ("rsi",)), [[1], [math.nan], [2]])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"\n\r\n", "empty", id="empty lines"),
        pytest.param(b"rsi,vol,mom\n1,2\n", "line 2: has 2 values, the header has 3", id="short line"),
        pytest.param(b"rsi,vol,mom\n\n1,2,3\n1,2,3,4\n", "line 4: has 4 values", id="long line"),
        pytest.param(b'rsi,vol,mom\n1,2,"3\n', "is not CSV", id="open quote"),
        pytest.param(b'rsi,vol,mom\n1,2,"3"4\n', "is not CSV", id="text after a quote"),
        pytest.param(b"rsi,vol,rsi\n1,2,3\n", "'rsi' stands there twice", id="twice"),
        pytest.param(b"rsi,vol,mom\n1,2,\xff\n", "not UTF-8: invalid byte at offset 16", id="latin"),
        pytest.param("rsi,vol\n1,2\n".encode("utf-16"), "not UTF-8", id="utf-16"),
        pytest.param(b"rsi,vol,mom\n1,2," + b"3" * 200_000, "is not CSV", id="endless field"),
    ],
)
def test_what_is_no_csv_is_refused_by_line(data: bytes, said: str) -> None:
    with pytest.raises(RequestInvalid, match=said):
        table_from_csv(data)


@pytest.mark.parametrize(
    "cell", ["abc", "1_000", "0x10", "1,5", "True", "1.5.2", "١", "1 2", " ", "inf", "-Infinity", "1e39", "1e999", "\0"]
)
def test_a_cell_that_is_no_finite_number_is_refused_by_row_and_column(cell: str) -> None:
    text = f'rsi,vol,mom\n1,2,3\n1,"{cell}",3\n'
    with pytest.raises(FeaturesInvalid, match=r"^row 1, vol: "):
        rows(table_from_csv(text.encode()))


def test_semicolons_are_told_by_the_names_that_are_missing() -> None:
    with pytest.raises(FeaturesInvalid, match=r"missing columns: 'rsi', .* unknown: 'rsi;vol;mom'"):
        rows(table_from_csv(b"rsi;vol;mom\n1;2;3\n"))


@given(
    st.lists(
        st.lists(st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=8,
    )
)
def test_csv_and_json_of_the_same_numbers_give_the_same_rows(cells: list[list[float | None]]) -> None:
    text = "\n".join(["rsi,vol,mom", *(",".join("" if c is None else repr(c) for c in row) for row in cells)])
    assert same(rows(table_from_csv(text.encode())), rows(scoring(inputs=cells)))
    assert same(rows(scoring(inputs=cells)), [[math.nan if c is None else c for c in row] for row in cells])


# --- Parquet ----------------------------------------------------------------------------------------------------------


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra test)")
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (the extra test)")
    file = io.BytesIO()
    pq.write_table(pyarrow.table(columns), file, **options)
    return file.getvalue()


def from_parquet(data: bytes) -> Table:
    from mmserver.serving.parquet_tables import table_from_parquet

    return table_from_parquet(data)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_parquet_columns_are_matched_by_name(compression: str) -> None:
    data = parquet({"mom": [-3.25, 7], "day": ["a", "b"], "rsi": [1.5, 0.1], "vol": [2, None]}, compression=compression)
    assert same(rows(from_parquet(data)), EXPECTED)
    assert unused_columns(from_parquet(data), FACTORS) == ("day",)


def test_parquet_of_float32_is_read_to_the_bit() -> None:
    values = np.random.default_rng(3).normal(scale=1e4, size=(50, 3)).astype(np.float32)
    assert same(rows(from_parquet(parquet(dict(zip(FACTORS, values.T, strict=True))))), values.tolist())


def test_a_parquet_column_of_text_is_refused_by_name() -> None:
    with pytest.raises(FeaturesInvalid, match="vol: has the type string"):
        rows(from_parquet(parquet({"rsi": [1.0], "vol": ["2"], "mom": [1.0]})))


def test_parquet_cut_at_any_length_is_refused() -> None:
    data = parquet({name: np.arange(100.0) for name in FACTORS})
    for length in range(0, len(data), 97):
        with pytest.raises((RequestInvalid, FeaturesInvalid)):
            rows(from_parquet(data[:length]))


def test_damaged_parquet_is_refused_or_read_and_never_worse() -> None:
    data = bytearray(parquet({name: np.arange(100.0) for name in FACTORS}))
    random = np.random.default_rng(7)
    for _ in range(300):
        damaged = bytearray(data)
        for at in random.integers(0, len(data), 3):
            damaged[at] = random.integers(256)
        try:
            found = rows_from_table(from_parquet(bytes(damaged)), FACTORS, max_rows=100)
        except (RequestInvalid, FeaturesInvalid, TooManyRows):
            continue
        assert found.shape[1] == 3


def test_more_parquet_rows_than_are_allowed_are_not_decoded() -> None:
    data = parquet({name: np.zeros(1_000_000) for name in FACTORS})
    assert len(data) < 100_000
    with pytest.raises(TooManyRows):
        rows(from_parquet(data))


def test_a_name_that_is_there_twice_among_a_million_is_found_at_once() -> None:
    names = [*map(str, range(1_000_000)), "x", "x"]
    begun = time.process_time()
    with pytest.raises(RequestInvalid, match="'x' stands there twice"):
        distinct_names(names, "the header")
    assert time.process_time() - begun < 60  # where each is compared with all, it takes hours
