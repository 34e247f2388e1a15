"""Factor lists: the line number is the dimension, so nothing may shift them."""

from collections.abc import Callable
from typing import Any

import pytest

from mmserver.errors import Undecodable

NAME = "BTC_ret_1h_factors.txt"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"a\nb b\nc\n", id="plain"),
        pytest.param(b"a\nb b\nc", id="no newline at the end"),
        pytest.param(b"a\r\nb b\r\nc\r\n", id="Windows"),
        pytest.param(b"\xef\xbb\xbfa\nb b\nc\n", id="byte order mark"),
        pytest.param(b"  a \n\tb b\nc\n\n\n", id="blanks around"),
    ],
)
def test_one_name_a_line(parse: Callable[..., Any], data: bytes) -> None:
    assert parse(NAME, data).factors == ("a", "b b", "c")


def test_only_newlines_end_a_line(parse: Callable[..., Any]) -> None:
    names = ("a\u2028b", "c\x0bd", "e\x85f")
    assert parse(NAME, "\n".join(names).encode()).factors == names


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b" \n\n", "empty", id="blank"),
        pytest.param(b"a\n\nb\n", "malformed", id="a line missing"),
        pytest.param(b"\na\n", "malformed", id="the first line missing"),
        pytest.param(b"a\nb\na\n", "malformed", id="twice"),
        pytest.param(b"a\n a\n", "malformed", id="twice but for blanks"),
    ],
)
def test_a_list_that_would_shift_dimensions_is_refused(parse: Callable[..., Any], data: bytes, reason: str) -> None:
    with pytest.raises(Undecodable) as refused:
        parse(NAME, data)
    assert refused.value.reason == reason


def test_what_is_not_utf_8_is_an_error(parse: Callable[..., Any]) -> None:
    with pytest.raises(UnicodeDecodeError):
        parse(NAME, b"a\xff\n")
