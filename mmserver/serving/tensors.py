"""Tensors of the Open Inference Protocol: what their JSON or binary data hold, and the rows that a model makes of them.

Knows no transport. Whatever does not fit (datatype, shape, count, a value that float32 cannot hold) is refused by name: a
tensor never reaches a model reinterpreted.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from types import GenericAlias
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from mmserver.errors import RequestInvalid, TooManyRows
from mmserver.formats import FloatRows

FEATURES = "features"
"""The input that holds whole rows; the other way is one input for each factor, named after it."""

MAX_DIMS = 32
_MAX_STRIDED = (1 << 63) // 8 - 1
"""The product of its dimensions other than 0 that numpy takes for any datatype of ours, also where there are no elements."""
Values = npt.NDArray[Any]

DTYPES: dict[str, npt.DTypeLike] = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "BF16": "<u2",
    "FP32": "<f4",
    "FP64": "<f8",
}
"""Element type in binary data, little-endian. BF16 is the upper half of a float32 and has no numpy type of its own."""

_BINARY_ONLY = ("FP16", "BF16")
_JSON_ELEMENT: dict[str, Any] = {"BOOL": bool, "FP32": float | None, "FP64": float | None}
"""Of JSON data; whole numbers for the others. `null` is a missing value, which only floating point has."""
_NESTED = re.compile(rb"[ \t\r\n]*\[[ \t\r\n]*\[")


class Tensor(NamedTuple):
    """One input as it was sent: its name, and its values in the shape that it declares."""

    name: str
    values: Values


# --- from binary and JSON data ----------------------------------------------------------------------------------------


def check_shape(name: str, shape: Sequence[int]) -> int:
    """How many elements a tensor of the shape has.

    Raises:
        RequestInvalid: a dimension is negative, or there are none or too many of them, or they are too large for numpy even
            though one of them is 0.
    """
    if not 0 < len(shape) <= MAX_DIMS:
        refuse_tensor(name, f"the shape has {len(shape)} dimensions, not 1 to {MAX_DIMS}")
    if min(shape) < 0:
        refuse_tensor(name, f"the shape {_shown_shape(shape)} has a negative dimension")
    n_elements = math.prod(shape)
    if not n_elements and math.prod(filter(None, shape)) > _MAX_STRIDED:
        refuse_tensor(name, f"the shape {_shown_shape(shape)} has no elements and is too large for any")
    return n_elements


def values_from_binary(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Values:
    """The elements that lie in `data` one after another, row-major; a view of it where it is aligned.

    Raises:
        RequestInvalid: the datatype cannot be taken, or the bytes are not as many as the shape says.
    """
    n_elements = check_shape(name, shape)
    dtype = np.dtype(_checked_dtype(name, datatype))
    if data.nbytes != n_elements * dtype.itemsize:
        refuse_tensor(
            name,
            f"{data.nbytes} bytes of data; {datatype} of shape {_shown_shape(shape)} takes "
            f"{_shown_count(n_elements * dtype.itemsize)}",
        )
    values = np.frombuffer(data, dtype).reshape(shape)
    if datatype == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if datatype == "BOOL" and n_elements and np.frombuffer(data, np.uint8).max() > 1:
        refuse_tensor(name, "a BOOL is neither 0 nor 1")
    return values if values.flags.aligned else values.copy()


def values_from_json(name: str, datatype: str, shape: Sequence[int], data: bytes | msgspec.Raw) -> Values:
    """The elements of a JSON array, flat in row-major order or nested as the shape is.

    Raises:
        RequestInvalid: the datatype cannot be taken or not as JSON, an element is not of it, or the shape is another.
    """
    n_elements = check_shape(name, shape)
    dtype = np.dtype(_checked_dtype(name, datatype))
    if datatype in _BINARY_ONLY:
        refuse_tensor(name, f"{datatype} has no JSON form; send it as binary data")
    if n_elements > len(memoryview(data)):
        refuse_tensor(name, f"fewer elements than the {_shown_count(n_elements)} of shape {_shown_shape(shape)}")
    depth = len(shape) if len(shape) > 1 and _NESTED.match(data) else 1
    try:
        decoded = _decoder(_JSON_ELEMENT.get(datatype, int), depth).decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        refuse_tensor(name, f"the data are not {datatype} in {depth} dimension{'s' * (depth > 1)}: {error}", error)
    try:
        with np.errstate(over="ignore"):  # what becomes infinite so is refused with the other infinities
            values = np.array(decoded, dtype)
    except (ValueError, OverflowError) as error:
        reason = "beyond the datatype" if isinstance(error, OverflowError) else "rows of different lengths"
        refuse_tensor(name, f"the data are not {datatype} of shape {_shown_shape(shape)}: {reason}", error)
    if values.size != n_elements:
        refuse_tensor(name, f"{values.size} elements; the shape {_shown_shape(shape)} has {_shown_count(n_elements)}")
    if depth > 1 and values.shape != tuple(shape):
        refuse_tensor(name, f"the data are nested as {_shown_shape(values.shape)}, the shape is {_shown_shape(shape)}")
    return values.reshape(shape)


def _checked_dtype(name: str, datatype: str) -> npt.DTypeLike:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        if datatype == "BYTES":
            refuse_tensor(name, "BYTES is text; the model takes numbers, send FP32")
        refuse_tensor(name, f"no such datatype: {datatype[:40]!r}")
    return dtype


@lru_cache(maxsize=3 * MAX_DIMS)
def _decoder(element: Any, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = element
    for _ in range(depth):
        kind = GenericAlias(list, (kind,))
    return msgspec.json.Decoder(kind)


# --- what a model is given --------------------------------------------------------------------------------------------


def rows_from_tensors(
    tensors: Sequence[Tensor], factors: Sequence[str], row_shape: tuple[int, ...], *, accepts_missing: bool
) -> FloatRows:
    """The rows that the inputs describe: one tensor `features`, or one for each factor of a flat row, in any order.

    Numbers become float32 as the model's library itself makes them: rounded to the nearest.

    Shapes:
        `features` n × `row_shape`, the others n or n × 1. Returns n × n_features, C-contiguous.

    Raises:
        RequestInvalid: an input is unknown, missing, there twice or of another shape; there are no rows; a value is
            infinite or beyond float32; a value is missing and the model does not know such.
    """
    is_a_factor = row_shape == (1,) and FEATURES in factors
    if len(tensors) == 1 and tensors[0].name == FEATURES and not is_a_factor:
        rows = _whole_rows(tensors[0], row_shape)
    else:
        rows = _rows_by_factor(tensors, factors if len(row_shape) == 1 else (), row_shape[0])
    if not len(rows):
        refuse_tensor(tensors[0].name, "has no rows")
    _check_finite(rows, tensors, row_shape, accepts_missing=accepts_missing)
    return rows


def check_row_count(shape: Sequence[int], size_bytes: int, max_rows: int) -> None:
    """Refuse more rows than one request may have, before their data are looked at.

    A shape that `size_bytes` of data cannot have is not too large but wrong, and is left to who looks at the data.

    Raises:
        TooManyRows: the first dimension is larger.
    """
    if shape and max_rows < shape[0] <= size_bytes:
        raise TooManyRows(n_rows=shape[0], limit=max_rows)


def _whole_rows(tensor: Tensor, row_shape: tuple[int, ...]) -> FloatRows:
    shape = tensor.values.shape
    if shape[1:] != row_shape:
        wanted = _shown_shape((-1, *row_shape))
        refuse_tensor(tensor.name, f"the shape is {_shown_shape(shape)}, the model takes {wanted}")
    rows = _as_float32(tensor.values)
    return rows if len(row_shape) == 1 else rows.reshape(len(rows), math.prod(row_shape))


def _rows_by_factor(tensors: Sequence[Tensor], factors: Sequence[str], n_features: int) -> FloatRows:
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        twice = Counter(tensor.name for tensor in tensors).most_common(1)[0][0]
        refuse_tensor(twice, "the input is there twice")
    dims = {factor: dim for dim, factor in enumerate(factors)}
    wanted = f"{FEATURES!r}, or one input for each of the {n_features} factors"
    if len(dims) != n_features:  # without a name for each column, or with one for two
        refuse_tensor(tensors[0].name, f"unexpected input; the model takes {FEATURES!r} only")
    for name in by_name:
        if name not in dims:
            refuse_tensor(name, f"unexpected input; the model takes {wanted}")
    missing = [factor for factor in factors if factor not in by_name]
    if missing:
        refuse_tensor(
            missing[0],
            f"the input is missing, {len(by_name)} of {n_features} are there; the model takes {wanted}",
        )
    n_rows = tensors[0].values.shape[0]
    rows = np.empty((n_rows, n_features), np.float32)
    for tensor in tensors:
        if tensor.values.shape not in ((n_rows,), (n_rows, 1)):
            refuse_tensor(
                tensor.name,
                f"the shape is {_shown_shape(tensor.values.shape)}, not [{n_rows}] or [{n_rows},1] as of {tensors[0].name}",
            )
        rows[:, dims[tensor.name]] = _as_float32(tensor.values).reshape(n_rows)
    return rows


def _as_float32(values: Values) -> FloatRows:
    with np.errstate(over="ignore"):  # refused as infinite afterwards
        return np.ascontiguousarray(values, np.float32)


def _check_finite(
    rows: FloatRows, tensors: Sequence[Tensor], row_shape: tuple[int, ...], *, accepts_missing: bool
) -> None:
    is_finite = np.isfinite(rows)
    if is_finite.all() or (accepts_missing and not np.isinf(rows).any()):
        return
    bad = ~is_finite if not accepts_missing else np.isinf(rows)
    row, column = (int(place) for place in np.argwhere(bad)[0])
    reason = (
        "is missing (NaN or null); the model knows no missing values"
        if np.isnan(rows[row, column])
        else "is infinite, or too large for float32"
    )
    if len(tensors) == 1:
        within = ",".join(map(str, np.unravel_index(column, row_shape)))
        refuse_tensor(f"{tensors[0].name}[{row},{within}]", reason)
    refuse_tensor(f"row {row}, factor {column}", reason)


# --- what a model gives -----------------------------------------------------------------------------------------------


def binary_from_values(values: FloatRows) -> bytes:
    """The elements as FP32 binary data."""
    return np.ascontiguousarray(values, "<f4").tobytes()


def list_from_values(values: FloatRows) -> list[float]:
    """The elements as JSON takes them, flat: each the float64 that equals its float32, NaN for the encoder to write as null."""
    flat: list[float] = values.reshape(-1).tolist()
    return flat


# --- refusing ---------------------------------------------------------------------------------------------------------


def refuse_tensor(name: str, reason: str, cause: Exception | None = None) -> NoReturn:
    """Refuse one input or output, by name."""
    shown = name if len(name) <= 200 else name[:199] + "…"
    raise RequestInvalid(reason=f"{shown}: {reason}", errors=[{"loc": shown, "msg": reason}]) from cause


def _shown_shape(shape: Sequence[int]) -> str:
    text = ",".join(_shown_count(size) for size in shape[:8])
    return f"[{text}{',…' * (len(shape) > 8)}]"


def _shown_count(count: int) -> str:
    """A number that may have thousands of digits."""
    return str(count) if abs(count) < 10**24 else "more than 10^24"
