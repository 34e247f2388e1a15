"""How observations lie in a journal file: each framed and checked by itself, so that damage costs no more than what it hit."""

import struct
import zlib
from dataclasses import dataclass

import msgspec

from mmserver.experiments.observations.values import Observation

_MARK = b"\xa9MO1"
_HEAD = struct.Struct("<4sII")  # the mark, the length and the CRC-32 of what follows
MAX_RECORD_BYTES = 64 << 20

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Observation).decode


@dataclass(frozen=True, slots=True)
class ReadRecords:
    """What a part of a journal holds.

    Fields:
        end: up to where it is read, from the start of the part; what follows is no whole record (yet).
        n_skipped_bytes: of damage between records.
    """

    observations: list[Observation]
    end: int
    n_skipped_bytes: int


def record_from_observation(observation: Observation) -> bytes:
    """The bytes to append."""
    body = _encode(observation)
    return _HEAD.pack(_MARK, len(body), zlib.crc32(body)) + body


def read_records(data: bytes) -> ReadRecords:
    """All whole records of a part that begins with one, or with damage; what is damaged is skipped up to the next whole record."""
    observations: list[Observation] = []
    position = end = n_skipped = 0
    while (found := data.find(_MARK, position)) >= 0:
        observation, after = _record_at(data, found)
        if observation is None:
            position = found + 1
            continue
        observations.append(observation)
        n_skipped += found - end
        position = end = after
    return ReadRecords(observations, end, n_skipped)


def _record_at(data: bytes, start: int) -> tuple[Observation | None, int]:
    """The record and where it ends; None where there is no whole one."""
    begin = start + _HEAD.size
    if begin > len(data):
        return None, start
    _, length, checksum = _HEAD.unpack_from(data, start)
    after = begin + length
    if after > len(data):
        return None, start
    body = memoryview(data)[begin:after]
    if zlib.crc32(body) != checksum:
        return None, start
    try:
        return _decode(body), after
    except msgspec.DecodeError:  # ValidationError too: written by another version
        return None, start
