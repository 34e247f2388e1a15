"""The UBJSON reader believes nothing, and what the writer writes is what XGBoost writes."""

import struct

import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.trees.ubjson import read_ubjson, write_ubjson

L = struct.Struct(">q").pack


def key(text: str) -> bytes:
    return b"L" + L(len(text)) + text.encode()


@pytest.mark.parametrize("kind", ["regression", "multi", "categorical", "dart", "gblinear", "named"])
def test_a_document_of_xgboost_is_written_back_byte_for_byte(booster, kind):
    raw = bytes(booster(kind).save_raw("ubj"))
    assert write_ubjson(read_ubjson(raw)) == raw


def test_every_kind_of_value_survives():
    value = {
        "": None,
        "flags": [True, False],
        "integers": [0, -1, 126, 127, 128, -128, 32767, -32768, 1 << 31, -(1 << 40)],
        "float": 0.5,
        "text": "é\u0000日",
        "nested": [[], {}, [{"x": []}]],
    }
    assert read_ubjson(write_ubjson(value)) == value


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "i4", "i8", "f4", "f8"])
def test_a_typed_array_keeps_its_type_and_its_numbers(dtype):
    array = np.array([0, 1, 127, 5], dtype)
    read = read_ubjson(write_ubjson({"a": array, "none": array[:0]}))
    assert read["a"].dtype == array.dtype
    assert read["a"].tolist() == array.tolist()
    assert read["none"].dtype == array.dtype
    assert read["a"].flags.writeable


def test_an_array_without_a_count_is_read_to_its_end():
    assert read_ubjson(b"[i\x01[]SU\x01x]") == [1, [], "x"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "torn", id="nothing"),
        pytest.param(b"{" + key("a"), "torn", id="no-value"),
        pytest.param(b"S" + b"L" + L(1 << 62) + b"abc", "torn", id="text-longer-than-the-rest"),
        pytest.param(b"[$d#L" + L(1 << 60), "torn", id="typed-array-longer-than-the-rest"),
        pytest.param(b"[#L" + L(1 << 40) + b"Z", "torn", id="list-longer-than-the-rest"),
        pytest.param(b"S" + b"L" + L(-1), "malformed", id="negative-length"),
        pytest.param(b"[$d#L" + L(-4) + bytes(8), "malformed", id="negative-array"),
        pytest.param(b"[$Z#L" + L(1 << 40), "malformed", id="array-of-nothing"),
        pytest.param(b"[$d" + L(1), "malformed", id="typed-without-length"),
        pytest.param(b"Q", "malformed", id="unknown-marker"),
        pytest.param(b"{" + key("a") + b"Z" + key("a") + b"Z}", "malformed", id="key-twice"),
        pytest.param(b"{Sx", "malformed", id="key-that-is-none"),
        pytest.param(b"SU\x02\xff\xfe", "malformed", id="not-utf8"),
        pytest.param(b"SSU\x01x", "malformed", id="length-that-is-none"),
        pytest.param(b"ZZ", "trailing_data", id="trailing"),
        pytest.param(b"[" * 40, "too_complex", id="deep-arrays"),
        pytest.param((b"{" + key("a")) * 40, "too_complex", id="deep-objects"),
        pytest.param(b"[" * 1_000_000, "too_complex", id="very-deep"),
    ],
)
def test_bytes_that_lie_are_refused(data, reason):
    with pytest.raises(Undecodable) as refused:
        read_ubjson(data)
    assert refused.value.reason == reason


def test_every_prefix_is_refused_as_torn(booster):
    raw = bytes(booster("stumps").save_raw("ubj"))
    for length in range(len(raw)):
        with pytest.raises(Undecodable) as refused:
            read_ubjson(raw[:length])
        assert refused.value.reason == "torn", length


@pytest.mark.parametrize("value", [{"a": object()}, np.zeros((2, 2)), np.zeros(2, "c8"), 1 << 70])
def test_what_a_document_cannot_hold_is_not_written(value):
    with pytest.raises(TypeError):
        write_ubjson(value)
