"""Containers around a pickle (zlib, gzip, bz2, lzma, xz, lz4), unpacked piece by piece under an output cap."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from mmserver.errors import Undecodable
from mmserver.inert.limits import Budget

_PIECE_BYTES = 1 << 20
_RATIO_APPLIES_ABOVE = 16 << 20
_LZMA_MEMORY_BYTES = 256 << 20  # the decoder's dictionary; presets up to 9 need 64 MiB

_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a .npy file",
    b"\x28\xb5\x2f\xfd": "a zstandard stream",
    b"\x89HDF": "an HDF5 file",
    b"ZF": "a joblib file older than 0.9.3",
}


class _Unpacker(Protocol):
    """What bz2, lzma and lz4 offer; zlib is adapted to it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Zlib:
    """zlib's and gzip's decompressor with the interface of the others."""

    def __init__(self, window_bits: int) -> None:
        self._inner = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _lz4() -> _Unpacker:
    from lz4.frame import LZ4FrameDecompressor

    unpacker: _Unpacker = LZ4FrameDecompressor()
    return unpacker


_FORMATS: dict[bytes, Callable[[], _Unpacker]] = {
    b"\x1f\x8b": lambda: _Zlib(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\x5d\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY_BYTES),
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY_BYTES),
    b"\x04\x22\x4d\x18": _lz4,
}


def unpacked(data: bytes, budget: Budget) -> bytes:
    """The pickle inside `data`, or `data` itself where it is in no container; containers do not nest.

    Raises:
        Undecodable: `torn`, `malformed`, `trailing_data`, `too_large`, `too_slow`, or `unsupported` for another format.
    """
    make = _format(data)
    if make is None:
        for magic, what in _FOREIGN.items():
            if data.startswith(magic):
                raise Undecodable("unsupported", f"{what}, not a pickle")
        return data
    try:
        plain = _unpack(data, make(), budget)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError) as error:
        if "emory" in str(error):
            raise Undecodable("too_large", "the container needs too much memory") from error
        raise Undecodable("malformed", f"the container is damaged ({type(error).__name__})") from error
    if _format(plain) is not None:
        raise Undecodable("unsupported", "a container within a container")
    return plain


def _format(data: bytes) -> Callable[[], _Unpacker] | None:
    for magic, make in _FORMATS.items():
        if data.startswith(magic):
            return make
    if data[:1] == b"\x78" and (len(data) < 2 or int.from_bytes(data[:2]) % 31 == 0):
        return lambda: _Zlib(15)
    return None


def _unpack(data: bytes, unpacker: _Unpacker, budget: Budget) -> bytes:
    limits = budget.limits
    cap = min(limits.max_bytes, max(limits.max_ratio * len(data), _RATIO_APPLIES_ABOVE))
    pieces: list[bytes] = []
    n_bytes = at = 0
    while not unpacker.eof:
        piece = b""
        if unpacker.needs_input:
            piece = data[at : at + _PIECE_BYTES]
            at += len(piece)
            if not piece:
                raise Undecodable("torn", "the container ends early")
        out = unpacker.decompress(piece, _PIECE_BYTES)
        pieces.append(out)
        n_bytes += len(out)
        if n_bytes > cap:
            raise Undecodable("too_large", f"{len(data)} bytes unpack to more than {cap}")
        budget.check_time()
    if unpacker.unused_data or at < len(data):
        raise Undecodable("trailing_data", "bytes follow the end of the container")
    return b"".join(pieces)
