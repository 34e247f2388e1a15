"""The fast reader of JSON says exactly what the strict one does, whatever it is given."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mmserver.errors import RequestInvalid
from mmserver.web.plain_json import strict_document
from mmserver.web.requests import strict_json


def outcome(read: Any, data: bytes) -> tuple[str, str]:
    """The document with the types of its numbers, or the refusal."""
    try:
        return "read", repr(read(data))
    except RequestInvalid as error:
        return "refused", str(error)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=30
)


@given(DOCUMENTS, st.booleans())
def test_every_document_is_read_as_the_strict_reader_reads_it(document: Any, is_ascii: bool) -> None:
    data = json.dumps(document, ensure_ascii=is_ascii).encode()
    assert outcome(strict_document, data) == outcome(strict_json, data)


@given(
    st.lists(
        st.sampled_from(
            [
                '"a"',
                '"a',
                ":",
                ",",
                "{",
                "}",
                "[",
                "]",
                "1",
                "-0",
                "1e5",
                "1e999",
                "NaN",
                "null",
                "true",
                " ",
                "\\",
                '"\\u0000"',
                "01",
                "2.",
                "9" * 19,
                "9" * 21,
                "\t",
                "\x00",
                "\ufeff",
            ]
        ),
        max_size=14,
    )
)
@example(['{"a":1,"a":2}'])
@example(['{"a":{"b":1,"b":1}}'])
@example(['[{"a":1,"a":1},{"a":2}]'])
@example(["18446744073709551616"])
@example(["[18446744073709551616, 1]"])
@example(["[18446744073709551615, -9223372036854775809, 1]"])
@example(["[1e19]"])
@example(["[" * 40 + "]" * 40])
@example(["[" * 100_000])
@example(['{"a":' * 33 + "1" + "}" * 33])
def test_rubbish_is_refused_as_the_strict_reader_refuses_it(parts: list[str]) -> None:
    data = "".join(parts).encode()
    assert outcome(strict_document, data) == outcome(strict_json, data)


@pytest.mark.parametrize("data", [b'{"a":"\xff"}', b'{"\xed\xa0\x80":1}', b"\xff\xfe", b'"\x01"', b'["a\nb"]'])
def test_what_is_not_utf8_text_is_refused_alike(data: bytes) -> None:
    assert outcome(strict_document, data)[0] == "refused"
    assert outcome(strict_document, data) == outcome(strict_json, data)


@pytest.mark.parametrize(
    "data",
    [
        b"[[1,2.5],[null,true]]",
        b"[[],[]]",
        b"[[1],[9223372036854775808]]",
        b"[[1],[18446744073709551616]]",
        b"[[-9223372036854775808]]",
        b"[[-9223372036854775809]]",
        b"[[1],[1e999]]",
        b'[[1],["a"]]',
        b'[[1],{"a":1,"a":2}]',
        b'[[1],[{"a":1,"a":2}]]',
        b"[[1],2]",
        b"[[1],[[2]]]",
        *(b"[" * depth + b"1" + b"]" * depth for depth in (31, 32, 33, 34, 5000)),
        *(b"[" * depth + b"[1],[2]" + b"]" * depth for depth in (30, 31, 32, 33)),
        b"[" * 32 + b"]" * 32,
        b"[" * 33 + b"]" * 33,
    ],
    ids=lambda data: data[:40].decode(),
)
def test_tables_are_read_as_the_strict_reader_reads_them(data: bytes) -> None:
    assert outcome(strict_document, data) == outcome(strict_json, data)
