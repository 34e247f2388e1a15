"""IC tables of every writer: which column has the factors, and what is a number."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from mmserver.errors import Undecodable

NAME = "BTC_ret_1h_ic.csv"


@pytest.mark.parametrize(
    ("header", "factor_column"),
    [
        ("factor,ic", "factor"),
        ("ic,factor", "factor"),
        ("Factor_Name,ic", "Factor_Name"),
        ("ic,Feature", "Feature"),
        ("alpha,ic", "alpha"),
        (",ic", "factor"),
        ("name,factor", "factor"),
    ],
)
def test_the_factor_column_is_the_one_named_so_else_the_first(
    parse: Callable[..., Any], header: str, factor_column: str
) -> None:
    assert parse(NAME, f"{header}\nx,y\n".encode()).factor_column == factor_column


FRAME = pd.DataFrame({"factor": ["a", "b"], "ic": [0.1, None], "kendall_tau": [0.25, -1.0], "n": [5, 6]})


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        pytest.param(FRAME.to_csv(index=False), ("factor", "ic", "kendall_tau", "n"), id="without an index"),
        pytest.param(FRAME.to_csv(), ("index", "factor", "ic", "kendall_tau", "n"), id="with a numbered index"),
        pytest.param(
            FRAME.set_index("factor").to_csv(), ("factor", "ic", "kendall_tau", "n"), id="factors as the index"
        ),
        pytest.param(
            FRAME.set_index("factor").rename_axis(None).to_csv(), ("factor", "ic", "kendall_tau", "n"), id="unnamed"
        ),
    ],
)
def test_what_pandas_writes_is_read(parse: Callable[..., Any], text: str, columns: tuple[str, ...]) -> None:
    table = parse(NAME, text.encode())
    assert table.columns == columns
    assert table.factor_column == "factor"
    at = {name: columns.index(name) for name in FRAME.columns}
    assert [tuple(row[at[name]] for name in FRAME.columns) for row in table.rows] == [
        ("a", 0.1, 0.25, 5),
        ("b", None, -1.0, 6),
    ]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1", 1), ("-2", -2), ("1.5", 1.5), ("1e-3", 0.001), (" 3 ", 3), ("", None), ("nan", None), ("NaN", None),
        ("inf", None), ("-Infinity", None), ("1e999", None), ("n/a", "n/a"), ("1_000", "1_000"), ("2024-01-01", "2024-01-01"),
        ("9" * 30, float("9" * 30)), ("0x10", "0x10"), ('"1,5"', "1,5"), ("True", "True"),
    ],
)  # fmt: skip
def test_a_cell_is_a_number_when_it_is_written_as_one(parse: Callable[..., Any], cell: str, value: Any) -> None:
    [row] = parse(NAME, f"factor,x\na,{cell}\n".encode()).rows
    assert row == ("a", value)
    assert type(row[1]) is type(value)


def test_a_factor_that_looks_like_a_number_stays_a_name(parse: Callable[..., Any]) -> None:
    assert parse(NAME, b"factor,x\n12,3\n").rows == (("12", 3),)


def test_quotes_newlines_marks_and_blank_lines(parse: Callable[..., Any]) -> None:
    table = parse(NAME, b'\xef\xbb\xbffactor,x\r\n"a ""b"", c",1\r\n\r\n"d\ne",2\r\n')
    assert table.rows == (('a "b", c', 1), ("d\ne", 2))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"\n\n", "empty", id="blank"),
        pytest.param(b"factor,ic\na,1\nb\n", "torn", id="short row"),
        pytest.param(b"factor,ic\na,1,2\n", "torn", id="long row"),
        pytest.param(b"factor,ic\na,1\na,2\n", "malformed", id="factor twice"),
        pytest.param(b"factor,ic,ic\na,1,2\n", "malformed", id="column twice"),
    ],
)
def test_a_table_that_is_not_whole_is_refused(parse: Callable[..., Any], data: bytes, reason: str) -> None:
    with pytest.raises(Undecodable) as refused:
        parse(NAME, data)
    assert refused.value.reason == reason


def test_a_cut_within_a_row_is_refused_unless_only_its_last_cell_is_shorter(parse: Callable[..., Any]) -> None:
    whole = FRAME.to_csv(index=False).encode()
    for size in range(whole.index(b"\n") + 2, len(whole)):
        last_line = whole[:size].rpartition(b"\n")[2]
        if last_line and last_line.count(b",") < 3:
            with pytest.raises(Undecodable, match="torn"):
                parse(NAME, whole[:size])
        else:
            assert all(len(row) == 4 for row in parse(NAME, whole[:size]).rows)
