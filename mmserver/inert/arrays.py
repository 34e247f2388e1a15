"""numpy arrays, scalars and dtypes, rebuilt from declared values that are checked one by one.

numpy itself trusts what it unpickles (forged offsets and sizes crash it), so nothing here is handed on unread.
"""

import math
import re
from typing import Any

import numpy as np

from mmserver.errors import Undecodable
from mmserver.inert.machine import Global, Machine, Pending
from mmserver.inert.records import Array, ObjectArray, Value

_PLAIN = re.compile(r"(?:b1|i[1248]|u[1248]|f[248]|c8|c16)")
_TEXT = re.compile(r"[SU][1-9][0-9]{0,6}")
_VOID = re.compile(r"V[1-9][0-9]{0,6}")
_UNITS = frozenset(("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as"))
_NATIVE_ORDERS = frozenset("=|")
_MAX_DIMENSIONS = 32
_MAX_EXTENT = 1 << 40
_MAX_EMPTY_EXTENT = 1 << 24  # of an array without elements: its other dimensions still become lists
_MAX_CODE_POINT = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)

Dtype = np.dtype[Any]


def malformed(detail: str) -> Undecodable:
    """The refusal for values that do not fit together."""
    return Undecodable("malformed", detail)


def is_global(value: Value, *names: str) -> bool:
    """Whether the value is a reference to one of the globals of those dotted names."""
    return type(value) is Global and value.name in names


def is_text(value: Value, *texts: str) -> bool:
    """Whether the value is one of those strings; safe for any value, where `in` would hash or compare it."""
    return type(value) is str and value in texts


def bytes_from(value: Value, what: str) -> bytes | bytearray:
    """The value, when it is bytes or a bytearray."""
    if type(value) is not bytes and type(value) is not bytearray:
        raise malformed(f"{what} is a {type(value).__name__}, not bytes")
    return value


# --- dtypes -------------------------------------------------------------------------------------------------------------


def _dtype(machine: Machine, args: tuple[Value, ...]) -> Pending:
    if not args or type(args[0]) is not str or any(type(flag) not in (bool, int) for flag in args[1:]):
        raise malformed("numpy.dtype with unexpected arguments")
    code = args[0]
    return Pending("numpy.dtype", lambda machine, state: _finish_dtype(machine, code, state))


def _finish_dtype(machine: Machine, code: str, state: Value) -> Dtype:
    if type(state) is not tuple or not 8 <= len(state) <= 9 or not is_text(state[1], "<", ">", "|", "="):
        raise malformed(f"the state of dtype {code!r}")
    _, order, base, names, fields = state[:5]
    if _VOID.fullmatch(code):
        size = int(code[1:])
        return _subarray(base, size) if base is not None else _structure(machine, names, fields, size)
    if base is not None or names is not None or fields is not None:
        raise malformed(f"dtype {code!r} with fields")
    if code in ("O8", "O4", "O"):
        return np.dtype(object)
    if code in ("M8", "m8"):
        return np.dtype(f"{order}{code}{_unit(state[8:])}")
    if _PLAIN.fullmatch(code) or _TEXT.fullmatch(code):
        return np.dtype(order + code if order != "|" else code)
    raise Undecodable("unsupported", f"dtype {code[:20]!r}")


def _unit(metadata: tuple[Value, ...]) -> str:
    if not metadata:
        raise malformed("a datetime dtype without a unit")
    pair = metadata[0]
    if type(pair) is not tuple or len(pair) != 2 or type(pair[1]) is not tuple or len(pair[1]) != 4:
        raise malformed("the unit of a datetime dtype")
    raw, number, denominator, events = pair[1]
    unit = raw.decode("ascii", "replace") if type(raw) is bytes else raw
    if type(unit) is not str:
        raise malformed("the unit of a datetime dtype")
    if unit == "generic":
        return ""
    if unit not in _UNITS or type(number) is not int or not 1 <= number < 1 << 31 or (denominator, events) != (1, 1):
        raise malformed("the unit of a datetime dtype")
    return f"[{number}{unit}]" if number != 1 else f"[{unit}]"


def _structure(machine: Machine, names: Value, fields: Value, size: int) -> Dtype:
    if type(names) is not tuple or type(fields) is not dict or not names or len(names) != len(fields):
        raise malformed("a void dtype without consistent fields")
    machine.budget.spend_ops(len(names))
    parts: list[tuple[str, Dtype]] = []
    offset = 0
    for name in names:
        field = fields.get(name) if type(name) is str else None
        if type(field) is not tuple or len(field) != 2 or not isinstance(field[0], np.dtype):
            raise malformed("a field of a structured dtype")
        dtype, declared = field
        if dtype.hasobject or dtype.fields is not None:
            raise Undecodable("unsupported", "a structured dtype with objects or structures in it")
        if type(declared) is not int or declared != offset:
            raise Undecodable("unsupported", "a structured dtype with padding")
        parts.append((name, dtype))
        offset += dtype.itemsize
    if offset != size:
        raise Undecodable("unsupported", "a structured dtype with padding")
    return np.dtype(parts)


def _subarray(base: Value, size: int) -> Dtype:
    if type(base) is not tuple or len(base) != 2 or not isinstance(base[0], np.dtype):
        raise malformed("a subarray dtype")
    dtype, shape = base
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None:
        raise Undecodable("unsupported", "a subarray of objects or structures")
    n_items = n_items_from_shape(shape)
    if n_items * dtype.itemsize != size:
        raise malformed("a subarray dtype whose size is not its shape's")
    return np.dtype((dtype, shape))


# --- arrays -------------------------------------------------------------------------------------------------------------


def n_items_from_shape(shape: Value) -> int:
    """How many elements an array of that declared shape has; refused where it is no shape or absurd."""
    if type(shape) is not tuple or len(shape) > _MAX_DIMENSIONS:
        raise malformed("the shape of an array")
    if any(type(extent) is not int or not 0 <= extent <= _MAX_EXTENT for extent in shape):
        raise malformed("the shape of an array")
    n_items = math.prod(shape)
    if n_items == 0 and math.prod(extent for extent in shape if extent) > _MAX_EMPTY_EXTENT:
        raise Undecodable("too_large", "an empty array of huge extent")
    return n_items


def array_from_bytes(machine: Machine, raw: bytes | bytearray, dtype: Dtype, shape: Value, order: str) -> Array:
    """The array that those bytes are.

    Shapes:
        raw: exactly shape's product times the item size.
    """
    if dtype.hasobject:
        raise malformed("an object array from bytes")
    n_items = n_items_from_shape(shape)
    if n_items * dtype.itemsize != len(raw):
        raise malformed(f"an array of shape {shape} and dtype {dtype} from {len(raw)} bytes")
    machine.budget.spend_bytes(len(raw))
    flat = np.frombuffer(bytes(raw), dtype, n_items) if n_items else np.empty(0, dtype)
    _check_items(flat)
    if dtype.byteorder not in _NATIVE_ORDERS and not dtype.isnative:
        flat = flat.astype(dtype.newbyteorder("="))
    flat.flags.writeable = False
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _check_items(flat: Array) -> None:
    dtype = flat.dtype
    if dtype.fields is not None:
        for name in dtype.names or ():
            _check_items(flat[name].reshape(-1))
    elif dtype.kind == "b":
        if flat.size and int(np.ascontiguousarray(flat).view(np.uint8).max()) > 1:
            raise malformed("a boolean array with values other than 0 and 1")
    elif dtype.kind == "U" and flat.size:
        points = np.ascontiguousarray(flat).view(np.dtype("u4").newbyteorder(dtype.byteorder))
        if int(points.max()) > _MAX_CODE_POINT or bool(((points >= _SURROGATES[0]) & (points <= _SURROGATES[1])).any()):
            raise malformed("a text array with characters that do not exist")


def objects_from_list(machine: Machine, items: Value, shape: Value) -> list[Value] | ObjectArray:
    """An object array: a list when it has one dimension."""
    if type(items) is not list or len(items) != n_items_from_shape(shape):
        raise malformed("an object array whose list has not its shape's length")
    machine.budget.spend_bytes(8 * len(items))
    return list(items) if len(shape) == 1 else ObjectArray(shape, list(items))


def _frombuffer(machine: Machine, args: tuple[Value, ...]) -> Array:
    if not 4 <= len(args) <= 5 or not isinstance(args[1], np.dtype) or not is_text(args[3], "C", "F", "K"):
        raise malformed("a numpy array with unexpected arguments")
    raw = bytes_from(args[0], "the data of an array")
    array = array_from_bytes(machine, raw, args[1], args[2], args[3])
    if args[3] != "K":
        return array
    axes = args[4] if len(args) == 5 else None
    if axes is None:
        return array
    if type(axes) is not tuple or any(type(axis) is not int for axis in axes) or sorted(axes) != [*range(array.ndim)]:
        raise malformed("the axis order of an array")
    return array.transpose(axes)


def _reconstruct(machine: Machine, args: tuple[Value, ...]) -> Pending:
    if len(args) != 3 or not is_global(args[0], "numpy.ndarray"):
        raise malformed("numpy's _reconstruct with unexpected arguments")
    return Pending("numpy.ndarray", _finish_array)


def _finish_array(machine: Machine, state: Value) -> Value:
    if type(state) is not tuple or len(state) != 5 or not isinstance(state[2], np.dtype) or type(state[3]) is not bool:
        raise malformed("the state of a numpy array")
    _, shape, dtype, is_fortran, raw = state
    if dtype.hasobject:
        return objects_from_list(machine, raw, shape)
    return array_from_bytes(machine, bytes_from(raw, "the data of an array"), dtype, shape, "F" if is_fortran else "C")


def _scalar(machine: Machine, args: tuple[Value, ...]) -> Value:
    if len(args) != 2 or not isinstance(args[0], np.dtype):
        raise malformed("a numpy scalar with unexpected arguments")
    if args[0].subdtype is not None or args[0].fields is not None:
        raise Undecodable("unsupported", "a structured numpy scalar")
    return array_from_bytes(machine, bytes_from(args[1], "a numpy scalar"), args[0], (1,), "C")[0]


# --- arrays that joblib writes into the stream ----------------------------------------------------------------------------


def _wrapper(machine: Machine, args: tuple[Value, ...]) -> Pending:
    if args:
        raise malformed("joblib's array wrapper with arguments")
    return Pending("joblib.numpy_pickle.NumpyArrayWrapper", _read_inline)


def _read_inline(machine: Machine, state: Value) -> Value:
    if type(state) is not dict or not is_global(state.get("subclass"), "numpy.ndarray", "numpy.memmap"):
        raise malformed("the state of joblib's array wrapper")
    dtype, shape, order = state.get("dtype"), state.get("shape"), state.get("order")
    if not isinstance(dtype, np.dtype) or not is_text(order, "C", "F"):
        raise malformed("the state of joblib's array wrapper")
    n_items = n_items_from_shape(shape)
    if dtype.hasobject:
        array = machine.run_nested()
        if (array.shape if isinstance(array, ObjectArray) else (len(array),)) != shape:
            raise malformed("joblib's object array has another shape than announced")
        return array
    if state.get("numpy_array_alignment_bytes") is not None:
        padding = machine.take(machine.take(1)[0])
        if padding.strip(b"\xff"):
            raise malformed("joblib's padding holds data")
    raw = machine.take(n_items * dtype.itemsize)
    return array_from_bytes(machine, raw, dtype, shape, "F" if order == "F" else "C")


def _globals() -> dict[tuple[str, str], Global]:
    found = {
        ("numpy", "ndarray"): Global("numpy.ndarray"),
        ("numpy", "memmap"): Global("numpy.memmap"),
        ("numpy", "dtype"): Global("numpy.dtype", reduce=_dtype),
        ("joblib.numpy_pickle", "NumpyArrayWrapper"): Global("joblib.numpy_pickle.NumpyArrayWrapper", new=_wrapper),
    }
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray", "_reconstruct"] = Global(f"{core}.multiarray._reconstruct", reduce=_reconstruct)
        found[f"{core}.multiarray", "scalar"] = Global(f"{core}.multiarray.scalar", reduce=_scalar)
        found[f"{core}.numeric", "_frombuffer"] = Global(f"{core}.numeric._frombuffer", reduce=_frombuffer)
    return found


GLOBALS = _globals()
