"""Tensors become the rows that were meant, or are refused by name."""

import struct
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmserver.errors import RequestInvalid, TooManyRows
from mmserver.serving.tensors import (
    DTYPES,
    Tensor,
    binary_from_values,
    check_row_count,
    list_from_values,
    rows_from_tensors,
    values_from_binary,
    values_from_json,
)

FACTORS = ("mom", "vol", "gap")
FLOATS = ("FP16", "FP32", "FP64")
INTEGERS = tuple(name for name in DTYPES if "INT" in name)


def binary(datatype: str, shape: Sequence[int], data: bytes) -> Any:
    return values_from_binary("x", datatype, shape, memoryview(data))


def json(datatype: str, shape: Sequence[int], text: str) -> Any:
    return values_from_json("x", datatype, shape, text.encode())


def rows(*tensors: Tensor, factors: Sequence[str] = FACTORS, accepts_missing: bool = True) -> Any:
    return rows_from_tensors(tensors, factors, (len(factors),), accepts_missing=accepts_missing)


def features(values: Any, dtype: Any = np.float32) -> Tensor:
    return Tensor("features", np.asarray(values, dtype))


# --- binary data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", sorted(set(DTYPES) - {"BF16"}))
def test_binary_data_of_every_datatype_hold_what_was_packed(datatype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 0]]).astype(DTYPES[datatype])
    assert (binary(datatype, [2, 3], values.tobytes()) == values).all()


def test_bf16_is_the_upper_half_of_a_float32() -> None:
    halves = b"".join(struct.pack("<f", value)[2:] for value in (1.5, -3.0, 0.0))
    assert binary("BF16", [3], halves).tolist() == [1.5, -3.0, 0.0]


@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)), st.integers(0, 7))
def test_binary_data_keep_every_bit_wherever_they_begin_in_the_body(values: Any, offset: int) -> None:
    body = memoryview(b"\0" * offset + values.tobytes())
    found = values_from_binary("x", "FP32", (3, 4), body[offset:])
    assert found.tobytes() == values.tobytes()
    assert found.flags.aligned


def test_aligned_binary_data_are_not_copied() -> None:
    body = np.zeros(6, np.float32).tobytes()
    assert np.shares_memory(values_from_binary("x", "FP32", (2, 3), memoryview(body)), np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("size", [0, 23, 25, 48])
def test_bytes_of_another_number_than_the_shape_says_are_refused(size: int) -> None:
    with pytest.raises(RequestInvalid, match=r"x: .*FP32 of shape \[2,3\] takes 24"):
        binary("FP32", [2, 3], bytes(size))


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param([2**62, 2**62], id="more elements than 64 bits count"),
        pytest.param([2**32, 2**32], id="a product that is 0 modulo 2^64"),
        pytest.param([2**63 - 1], id="the largest dimension"),
        pytest.param([10**19] * 32, id="a product of 600 digits"),
        pytest.param([0, 10**30], id="nothing of a dimension beyond 64 bits"),
        pytest.param([2**40, 2**40, 0], id="nothing of more than 64 bits count"),
        pytest.param([0, 2**61], id="nothing of more bytes than 64 bits count"),
    ],
)
def test_a_count_that_would_overflow_is_refused(shape: list[int]) -> None:
    with pytest.raises(RequestInvalid):
        binary("FP32", shape, b"")
    with pytest.raises(RequestInvalid):
        json("FP32", shape, "[]")


@pytest.mark.parametrize("shape", [[], [-1, 3], [2, -3], [1] * 33])
def test_a_shape_that_no_tensor_can_have_is_refused(shape: list[int]) -> None:
    with pytest.raises(RequestInvalid, match="dimension"):
        binary("FP32", shape, bytes(24))


@pytest.mark.parametrize("datatype", ["BYTES", "fp32", "FLOAT", "", "FP8", "STRING", "é" * 100])
def test_a_datatype_that_is_not_a_number_is_refused(datatype: str) -> None:
    with pytest.raises(RequestInvalid):
        binary(datatype, [1], bytes(4))
    with pytest.raises(RequestInvalid):
        json(datatype, [1], "[1]")


def test_a_bool_that_is_neither_0_nor_1_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="BOOL"):
        binary("BOOL", [2], b"\1\2")


# --- JSON data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", ["FP32", "FP64", *INTEGERS])
def test_json_data_are_the_same_flat_and_nested(datatype: str) -> None:
    flat, nested = json(datatype, [2, 3], "[1,2,3,4,5,6]"), json(datatype, [2, 3], " [ [1,2,3] ,[4,5,6]]")
    assert flat.tolist() == nested.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert flat.dtype == nested.dtype == np.dtype(DTYPES[datatype])


def test_json_data_may_be_nested_as_deep_as_the_shape() -> None:
    assert json("INT32", [2, 1, 2], "[[[1,2]],[[3,4]]]").tolist() == [[[1, 2]], [[3, 4]]]


@given(hnp.arrays(np.float32, (2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_float32_survives_json_to_the_bit(values: Any) -> None:
    text = msgspec.json.encode(list_from_values(values))
    assert values_from_json("x", "FP32", (2, 3), text).tobytes() == values.tobytes()


def test_null_is_a_missing_value_of_floating_point_only() -> None:
    assert np.isnan(json("FP32", [1, 2], "[null,1]")).tolist() == [[True, False]]
    assert np.isnan(json("FP64", [1, 2], "[[1,null]]")).tolist() == [[False, True]]
    for datatype in ("INT32", "BOOL"):
        with pytest.raises(RequestInvalid, match="null"):
            json(datatype, [1], "[null]")


@pytest.mark.parametrize(
    ("datatype", "text"),
    [
        ("FP32", "[1,true,3]"),
        ("FP32", '[1,"2",3]'),
        ("FP32", "[1,2]"),
        ("FP32", "[1,2,3,4]"),
        ("FP32", "[[1,2],3]"),
        ("FP32", "[[1,2,3]]"),
        ("FP32", "[1,2,1e400]"),
        ("FP32", "{}"),
        ("FP32", "1"),
        ("FP32", '"abc"'),
        ("FP32", "null"),
        ("INT32", "[1,2,3.5]"),
        ("INT8", "[1,2,128]"),
        ("UINT8", "[1,2,-1]"),
        ("INT64", "[1,2,9223372036854775808]"),
        ("UINT64", "[1,2,18446744073709551616]"),
        ("INT32", "[1,2,true]"),
        ("BOOL", "[true,false,1]"),
        ("FP16", "[1,2,3]"),
        ("BF16", "[1,2,3]"),
    ],
)
def test_json_data_that_are_not_what_they_say_are_refused(datatype: str, text: str) -> None:
    with pytest.raises(RequestInvalid, match=r"^x: "):
        json(datatype, [3], text)


@pytest.mark.parametrize("text", ["[[1,2,3],[4,5]]", "[[1,2],[3,4],[5,6]]", "[[1,2,3,4,5,6]]", "[[[1,2,3],[4,5,6]]]"])
def test_json_data_nested_otherwise_than_the_shape_are_refused(text: str) -> None:
    with pytest.raises(RequestInvalid):
        json("FP32", [2, 3], text)


@pytest.mark.parametrize("depth", [33, 1000, 250_000])
def test_data_nested_however_deep_are_refused(depth: int) -> None:
    with pytest.raises(RequestInvalid):
        json("FP32", [1, 1], "[" * depth + "1" + "]" * depth)
    with pytest.raises(RequestInvalid):
        json("FP32", [1] * 32, "[" * depth + "1" + "]" * depth)


# --- rows -------------------------------------------------------------------------------------------------------------


def test_features_are_the_rows_themselves() -> None:
    tensor = features([[1, 2, 3], [4, 5, 6]])
    found = rows(tensor)
    assert found.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert np.shares_memory(found, tensor.values)


def test_inputs_by_factor_are_put_in_the_models_order() -> None:
    given_inputs = [
        Tensor("gap", np.array([3, 6], np.int64)),
        Tensor("mom", np.array([[1.0], [4.0]])),
        Tensor("vol", np.array([2, 5], np.float16)),
    ]
    assert rows(*given_inputs).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(2**24 + 1, np.int64), (2**53 + 1, np.int64), (2**64 - 1, np.uint64), (0.1, np.float64), (1e-46, np.float64)],
)
def test_numbers_are_rounded_to_float32_as_xgboost_rounds_them(value: float, dtype: Any) -> None:
    import xgboost

    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 3)).astype(np.float32)
    X[:, 0] *= 2.0**24
    booster = xgboost.train({"max_depth": 3, "nthread": 1}, xgboost.DMatrix(X, label=X[:, 0]), 3)
    sent = np.array([[value, value, value]], dtype)
    assert booster.inplace_predict(rows(features(sent, dtype))) == booster.inplace_predict(sent)
    assert rows(features(sent, dtype))[0, 0] == np.float32(value)


def test_a_tensor_is_refused_by_its_shape() -> None:
    for shape in [(3,), (2, 4), (3, 2), (1, 1, 3), (6,)]:
        with pytest.raises(RequestInvalid, match=r"features: the shape is .* takes \[-1,3\]"):
            rows(features(np.zeros(shape)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mom", "vol"], "gap: the input is missing"),
        (["mom", "vol", "gap", "rsi"], "rsi: unexpected input"),
        (["mom", "vol", "gap", "features"], "features: unexpected input"),
        (["Mom", "vol", "gap"], "Mom: unexpected input"),
        (["mom", "vol", "gap", "mom"], "mom: the input is there twice"),
        (["input-0"], "input-0: unexpected input"),
        (["features", "features"], "features: the input is there twice"),
    ],
)
def test_unknown_missing_and_repeated_inputs_are_named(names: list[str], message: str) -> None:
    with pytest.raises(RequestInvalid, match=f"^{message}"):
        rows(*(Tensor(name, np.zeros(2, np.float32)) for name in names))


def test_factors_of_unequal_length_are_refused() -> None:
    with pytest.raises(RequestInvalid, match=r"vol: the shape is \[3\]"):
        rows(*(Tensor(name, np.zeros(n, np.float32)) for name, n in zip(FACTORS, (2, 3, 2), strict=True)))


def test_without_one_name_for_each_column_only_whole_rows_are_taken() -> None:
    twice = ("mom", "mom", "gap")
    assert rows(features([[1, 2, 3]]), factors=twice).tolist() == [[1, 2, 3]]
    with pytest.raises(RequestInvalid, match="takes 'features' only"):
        rows(*(Tensor(name, np.zeros(1, np.float32)) for name in ("mom", "gap")), factors=twice)


def test_a_factor_named_features_is_an_input_of_its_own() -> None:
    assert rows(features([1, 2]), factors=("features",)).tolist() == [[1], [2]]
    assert rows(features([[1], [2]]), factors=("features",)).tolist() == [[1], [2]]
    assert rows(features([[1, 2]]), factors=("features", "vol")).tolist() == [[1, 2]]


def test_missing_values_reach_only_a_model_that_knows_them() -> None:
    assert np.isnan(rows(features([[1, np.nan, 3]]))).tolist() == [[False, True, False]]
    with pytest.raises(RequestInvalid, match=r"features\[0,1\]: is missing"):
        rows(features([[1, np.nan, 3]]), accepts_missing=False)


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39, -1e300])
def test_what_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(RequestInvalid, match=r"features\[1,2\]: is infinite, or too large"):
        rows(features([[1, np.nan, 3], [4, 5, value]], np.float64))


def test_infinite_half_precision_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="infinite"):
        rows(features([[1, 2, np.inf]], np.float16))


# --- models whose rows are not flat -----------------------------------------------------------------------------------


def shaped_rows(*tensors: Tensor, shape: tuple[int, ...] = (4, 3), accepts_missing: bool = False) -> Any:
    return rows_from_tensors(tensors, FACTORS, shape, accepts_missing=accepts_missing)


def test_rows_with_timesteps_become_flat_in_the_order_in_which_they_lie() -> None:
    sent = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    found = shaped_rows(features(sent))
    assert (found.shape, found.flags.c_contiguous) == ((2, 12), True)
    assert found.tobytes() == sent.tobytes()
    assert shaped_rows(features(sent, np.int64)).tobytes() == sent.tobytes()
    assert shaped_rows(features(np.asfortranarray(sent))).tobytes() == sent.tobytes()


def test_rows_with_timesteps_are_refused_in_any_other_shape() -> None:
    for shape in [(4, 3), (2, 12), (2, 3, 4), (2, 4, 3, 1), (24,), (1, 2, 4, 3)]:
        with pytest.raises(RequestInvalid, match=r"features: the shape is .* takes \[-1,4,3\]"):
            shaped_rows(features(np.zeros(shape)))


@pytest.mark.parametrize("shape", [(4, 3), (1, 3)])
def test_timesteps_cannot_be_sent_factor_by_factor(shape: tuple[int, ...]) -> None:
    by_factor = [Tensor(name, np.zeros(2, np.float32)) for name in FACTORS]
    with pytest.raises(RequestInvalid, match="takes 'features' only"):
        shaped_rows(*by_factor, shape=shape)


def test_a_bad_value_is_named_by_its_timestep() -> None:
    values = np.zeros((2, 4, 3))
    values[1, 2, 0] = np.nan
    with pytest.raises(RequestInvalid, match=r"features\[1,2,0\]: is missing"):
        shaped_rows(features(values))
    values[0, 3, 2] = 1e39
    with pytest.raises(RequestInvalid, match=r"features\[0,3,2\]: is infinite"):
        shaped_rows(features(values, np.float64), accepts_missing=True)


def test_too_many_rows_are_refused_before_their_data_are_read() -> None:
    check_row_count([10, 3], 120, 10)
    with pytest.raises(TooManyRows, match="11 rows"):
        check_row_count([11, 3], 132, 10)


def test_more_rows_than_the_data_can_have_are_not_too_many_but_wrong() -> None:
    check_row_count([10**4000], 120, 10)
    with pytest.raises(RequestInvalid, match="fewer elements than the more than"):
        json("FP32", [10**4000], "[1]")


def test_answers_hold_the_same_bits_in_both_forms() -> None:
    values = np.array([[0.1, np.nan], [-0.0, 3e38]], np.float32)
    assert binary_from_values(values) == values.tobytes()
    assert binary_from_values(values.T) == np.ascontiguousarray(values.T).tobytes()
    assert msgspec.json.encode(list_from_values(values)).startswith(b"[0.10000000149011612,null,-0.0,3")


def test_an_input_that_is_there_twice_among_many_is_found_at_once() -> None:
    value = np.zeros(1, np.float32)
    tensors = [Tensor(name, value) for name in [*map(str, range(200_000)), "x", "x"]]
    begun = time.process_time()
    with pytest.raises(RequestInvalid, match="x: the input is there twice"):
        rows_from_tensors(tensors, ["a", "b"], (2,), accepts_missing=True)
    assert time.process_time() - begun < 60  # where each is compared with all, it takes many minutes
