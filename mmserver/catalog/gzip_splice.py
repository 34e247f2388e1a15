"""Putting a stored gzip body between a small head and tail without compressing it again.

A payload is compressed once, when its artifacts are read; the envelope around it (model name, version) changes with every
version. Deflate blocks that end on a byte boundary and refer to nothing before them can be joined, and CRC-32 of joined
texts follows from their own CRCs, so the whole body is one gzip member that every client reads.
"""

import struct
import zlib

_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"
_LAST_EMPTY_BLOCK = b"\x03\x00"
_TRAILER = struct.Struct("<II")
_OVERHEAD = len(_LAST_EMPTY_BLOCK) + _TRAILER.size
_POLYNOMIAL = 0xEDB88320
LEVEL = 6


def compress(text: bytes) -> bytes:
    """A whole gzip file of the text, the same bytes each time, in the form that `splice` can take apart."""
    return _HEADER + _segment(text) + _LAST_EMPTY_BLOCK + _TRAILER.pack(zlib.crc32(text), len(text) & 0xFFFFFFFF)


def splice(head: bytes, body_gzip: bytes, tail: bytes) -> bytes:
    """The gzip of head + body + tail, where `body_gzip` came from `compress`."""
    body_crc, body_size = _TRAILER.unpack_from(body_gzip, len(body_gzip) - _TRAILER.size)
    body_segment = memoryview(body_gzip)[len(_HEADER) : len(body_gzip) - _OVERHEAD]
    crc = _combined(_combined(zlib.crc32(head), body_crc, body_size), zlib.crc32(tail), len(tail))
    size = (len(head) + body_size + len(tail)) & 0xFFFFFFFF
    parts = (_HEADER, _segment(head), body_segment, _segment(tail), _LAST_EMPTY_BLOCK, _TRAILER.pack(crc, size))
    return b"".join(parts)


def _segment(text: bytes) -> bytes:
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(text) + compressor.flush(zlib.Z_FULL_FLUSH)


def _combined(first_crc: int, second_crc: int, second_size: int) -> int:
    """CRC-32 of two joined texts: the first CRC moved on over `second_size` zero bytes, xor the second.

    Source: the linearity of CRC over GF(2); moving on by 2^k zero bits is a matrix that is squared for each next k.
    """
    if second_size == 0:
        return first_crc
    matrix = [_POLYNOMIAL] + [1 << bit for bit in range(31)]  # moves on by one zero bit
    for _ in range(3):
        matrix = _squared(matrix)  # … by one zero byte
    while second_size:
        if second_size & 1:
            first_crc = _times(matrix, first_crc)
        matrix = _squared(matrix)
        second_size >>= 1
    return first_crc ^ second_crc


def _times(matrix: list[int], vector: int) -> int:
    product = 0
    for column in matrix:
        if vector & 1:
            product ^= column
        vector >>= 1
        if not vector:
            break
    return product


def _squared(matrix: list[int]) -> list[int]:
    return [_times(matrix, column) for column in matrix]
