"""Universal Binary JSON as XGBoost writes it: typed arrays become numpy arrays, and nothing that lies about its size is believed."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmserver.errors import Undecodable

_TYPED_ARRAY_DTYPES: dict[int, np.dtype[Any]] = {
    ord("i"): np.dtype(">i1"),
    ord("U"): np.dtype(">u1"),
    ord("I"): np.dtype(">i2"),
    ord("l"): np.dtype(">i4"),
    ord("L"): np.dtype(">i8"),
    ord("d"): np.dtype(">f4"),
    ord("D"): np.dtype(">f8"),
}
_MARKER_OF_DTYPE = {dtype.newbyteorder("="): chr(marker) for marker, dtype in _TYPED_ARRAY_DTYPES.items()}
_INTEGERS = {ord("i"): ">b", ord("U"): ">B", ord("I"): ">h", ord("l"): ">i", ord("L"): ">q"}
_SCALARS = {marker: struct.Struct(code) for marker, code in {**_INTEGERS, ord("d"): ">f", ord("D"): ">d"}.items()}
_CONSTANTS = {ord("T"): True, ord("F"): False, ord("Z"): None}


def read_ubjson(data: bytes, *, max_depth: int = 32) -> Any:
    """The value that `data` holds; typed arrays are native-endian numpy arrays that own their memory.

    Raises:
        Undecodable: torn (cut short, or a declared size beyond the end), malformed (unknown marker, duplicate key,
            text that is not UTF-8), trailing_data, too_complex (nested deeper than `max_depth`).

    Source:
        ubjson.org draft 12, with the subset and the length markers that XGBoost's own reader takes.
    """
    reader = _Reader(data, max_depth)
    value = reader.value(reader.marker(), 0)
    if reader.position != len(data):
        raise Undecodable("trailing_data", f"{len(data) - reader.position} bytes after the document's end")
    return value


def write_ubjson(document: Any) -> bytes:
    """The bytes that XGBoost loads: numpy arrays as typed arrays, lists element by element, floats as float32.

    Raises:
        TypeError: a value of a kind that XGBoost documents do not have.
    """
    out = bytearray()
    _write(document, out)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes, max_depth: int) -> None:
        self.data = data
        self.position = 0
        self.max_depth = max_depth

    def marker(self) -> int:
        if self.position >= len(self.data):
            raise Undecodable("torn", f"the bytes end at offset {self.position}, inside the document")
        self.position += 1
        return self.data[self.position - 1]

    def take(self, size_bytes: int) -> int:
        """Claim `size_bytes`; the offset where they start."""
        start = self.position
        if size_bytes > len(self.data) - start:
            raise Undecodable("torn", f"offset {start} declares {size_bytes} bytes, {len(self.data) - start} are left")
        self.position = start + size_bytes
        return start

    def malformed(self, what: str) -> Undecodable:
        return Undecodable("malformed", f"offset {self.position - 1}: {what}")

    def length(self) -> int:
        marker = self.marker()
        if marker not in _INTEGERS:
            raise self.malformed(f"{chr(marker)!r} where a length is due")
        value = int(self.scalar(marker))
        if value < 0:
            raise self.malformed("a negative length")
        return value

    def scalar(self, marker: int) -> Any:
        layout = _SCALARS[marker]
        return layout.unpack_from(self.data, self.take(layout.size))[0]

    def text(self) -> str:
        size_bytes = self.length()
        start = self.take(size_bytes)
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.malformed("text that is not UTF-8") from error

    def value(self, marker: int, depth: int) -> Any:
        if marker in _SCALARS:
            return self.scalar(marker)
        if marker == ord("S"):
            return self.text()
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker not in b"{[":
            raise self.malformed(f"unknown marker {chr(marker)!r}")
        if depth >= self.max_depth:
            raise Undecodable("too_complex", f"nested deeper than {self.max_depth}")
        return self.object(depth + 1) if marker == ord("{") else self.array(depth + 1)

    def object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while (marker := self.marker()) != ord("}"):
            if marker not in _INTEGERS:
                raise self.malformed(f"{chr(marker)!r} where a key or '}}' is due")
            self.position -= 1
            key = self.text()
            if key in members:
                raise self.malformed(f"the key {key[:80]!r} comes twice")
            members[key] = self.value(self.marker(), depth)
        return members

    def array(self, depth: int) -> list[Any] | NDArray[Any]:
        marker = self.marker()
        if marker == ord("$"):
            return self.typed_array()
        if marker == ord("#"):
            count = self.length()
            if count > len(self.data) - self.position:
                raise Undecodable("torn", f"offset {self.position} declares {count} elements, too few bytes are left")
            return [self.value(self.marker(), depth) for _ in range(count)]
        elements = []
        while marker != ord("]"):
            elements.append(self.value(marker, depth))
            marker = self.marker()
        return elements

    def typed_array(self) -> NDArray[Any]:
        kind = self.marker()
        dtype = _TYPED_ARRAY_DTYPES.get(kind)
        if dtype is None:
            raise self.malformed(f"{chr(kind)!r} as the type of an array")
        if self.marker() != ord("#"):
            raise self.malformed("a typed array without its length")
        count = self.length()
        start = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, start).astype(dtype.newbyteorder("="))


def _write_integer(value: int, out: bytearray) -> None:
    """In the smallest type that XGBoost would take, which leaves the two ends of each type to the next."""
    for marker, limit in (("i", 1 << 7), ("I", 1 << 15), ("l", 1 << 31), ("L", 1 << 63)):
        if -limit < value < limit - 1:
            out += marker.encode() + _SCALARS[ord(marker)].pack(value)
            return
    raise TypeError(f"{value} does not fit in 64 bits")


def _write_text(value: str, out: bytearray) -> None:
    encoded = value.encode("utf-8")
    out += b"L" + struct.pack(">q", len(encoded)) + encoded


def _write_array(array: NDArray[Any], out: bytearray) -> None:
    marker = _MARKER_OF_DTYPE.get(array.dtype)
    if marker is None or array.ndim != 1:
        raise TypeError(f"no typed array for {array.ndim}-dimensional {array.dtype}")
    out += (
        b"[$"
        + marker.encode()
        + b"#L"
        + struct.pack(">q", array.size)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def _write(value: Any, out: bytearray) -> None:
    match value:
        case bool():
            out += b"T" if value else b"F"
        case None:
            out += b"Z"
        case int():
            _write_integer(value, out)
        case float():
            out += b"d" + struct.pack(">f", value)
        case str():
            out += b"S"
            _write_text(value, out)
        case np.ndarray():
            _write_array(value, out)
        case list():
            out += b"[#L" + struct.pack(">q", len(value))
            for element in value:
                _write(element, out)
        case dict():
            out += b"{"
            for key, member in value.items():
                _write_text(key, out)
                _write(member, out)
            out += b"}"
        case _:
            raise TypeError(f"no UBJSON for {type(value).__name__}")
