"""Text columns as pandas writes them where pyarrow is installed: offsets, UTF-8 bytes and a validity bitmap."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mmserver.errors import Undecodable
from mmserver.inert.arrays import bytes_from, malformed
from mmserver.inert.machine import Global, Machine, Maker, Pending
from mmserver.inert.pandas_arrays import key_from_name, state_dict, text_dtype
from mmserver.inert.records import ExtensionArray, Value

_OFFSETS_BY_TYPE = {"string": "<i4", "large_string": "<i8", "utf8": "<i4", "large_utf8": "<i8"}
_TEXT_BYTES = 64  # of memory for a short str
_MAX_LENGTH = 1 << 32


@dataclass(frozen=True)
class _ArrowType:
    name: str


@dataclass(frozen=True, eq=False)
class _Texts:
    values: list[str | None]


def _type(_: Machine, args: tuple[Value, ...]) -> _ArrowType:
    if len(args) != 1 or type(args[0]) is not str:
        raise malformed("an Arrow type with unexpected arguments")
    if args[0] not in _OFFSETS_BY_TYPE:
        raise Undecodable("unsupported", f"an Arrow column of type {args[0][:40]!r}")
    return _ArrowType(args[0])


def _buffer(_: Machine, args: tuple[Value, ...]) -> bytes | bytearray:
    if len(args) != 1:
        raise malformed("an Arrow buffer with unexpected arguments")
    return bytes_from(args[0], "an Arrow buffer")


def _array(machine: Machine, args: tuple[Value, ...]) -> _Texts:
    state = args[0] if len(args) == 1 else None
    if type(state) is not tuple or len(state) != 7 or type(state[0]) is not _ArrowType or type(state[4]) is not list:
        raise malformed("the state of an Arrow array")
    kind, length, _, offset, buffers = state[:5]
    if any(type(number) is not int or not 0 <= number <= _MAX_LENGTH for number in (length, offset)):
        raise malformed("the length of an Arrow array")
    if len(buffers) != 3:
        raise malformed("an Arrow text array that has not three buffers")
    if length == 0:
        return _Texts([])
    validity, offsets, content = (None if each is None else bytes_from(each, "an Arrow buffer") for each in buffers)
    content = content or b""
    machine.budget.spend_bytes(_TEXT_BYTES * length + offset + len(content))
    bounds = _bounds(offsets or b"", _OFFSETS_BY_TYPE[kind.name], offset, length, len(content))
    is_valid = _validity(validity, offset, length)
    texts = [
        bytes(content[start:end]).decode("utf-8") if valid else None
        for start, end, valid in zip(bounds[:-1], bounds[1:], is_valid, strict=True)
    ]
    return _Texts(texts)


def _bounds(raw: bytes | bytearray, dtype: str, offset: int, length: int, n_bytes: int) -> list[int]:
    needed = (offset + length + 1) * np.dtype(dtype).itemsize
    if len(raw) < needed:
        raise malformed("an Arrow text array with too few offsets")
    bounds: list[int] = np.frombuffer(raw, dtype, offset + length + 1)[offset:].tolist()
    if bounds[0] < 0 or bounds[-1] > n_bytes or any(start > end for start, end in pairwise(bounds)):
        raise malformed("an Arrow text array with offsets out of order")
    return bounds


def _validity(raw: bytes | bytearray | None, offset: int, length: int) -> list[bool]:
    if raw is None:
        return [True] * length
    if 8 * len(raw) < offset + length:
        raise malformed("an Arrow text array with too short a validity bitmap")
    used = np.frombuffer(raw, np.uint8, -(-(offset + length) // 8))
    bits: list[bool] = np.unpackbits(used, bitorder="little")[offset : offset + length].astype(bool).tolist()
    return bits


def _chunked(machine: Machine, args: tuple[Value, ...]) -> _Texts:
    if not 1 <= len(args) <= 2 or type(args[0]) is not list or any(type(chunk) is not _Texts for chunk in args[0]):
        raise malformed("an Arrow column with unexpected arguments")
    machine.budget.spend_bytes(8 * (len(args[0]) + sum(len(chunk.values) for chunk in args[0])))
    return _Texts([text for chunk in args[0] for text in chunk.values])


def _column(_: Machine, args: tuple[Value, ...]) -> Pending:
    return Pending("pandas.ArrowStringArray", _finish_column)


def _finish_column(_: Machine, state: Value) -> ExtensionArray:
    fields = state_dict(state, "an Arrow text column")
    texts = fields.get("_pa_array", fields.get("_data"))
    if type(texts) is not _Texts:
        raise malformed("an Arrow text column without its text")
    return ExtensionArray(text_dtype(fields.get("_dtype")), list(texts.values))


_REDUCED: dict[str, Maker] = {
    "pyarrow.lib.type_for_alias": _type,
    "pyarrow.lib.py_buffer": _buffer,
    "pyarrow.lib._restore_array": _array,
    "pyarrow.lib.chunked_array": _chunked,
}

_COLUMNS = (
    "pandas.arrays.ArrowStringArray",
    "pandas.core.arrays.string_arrow.ArrowStringArray",
    "pandas.core.arrays.string_arrow.ArrowStringArrayNumpySemantics",
)


def _globals() -> dict[tuple[str, str], Global]:
    made = [Global(dotted, reduce=maker) for dotted, maker in _REDUCED.items()]
    made += [Global(dotted, new=_column) for dotted in _COLUMNS]
    return {key_from_name(each.name): each for each in made}


GLOBALS = _globals()
