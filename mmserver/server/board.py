"""What each worker says of itself, for all of them to read: one slot each in a file without a name."""

import os
import tempfile
import time
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec

from mmserver.serving.siblings import Siblings

SLOT_BYTES = 256 << 10
ALIVE_S = 5.0
"""A worker writes once a second; one that has not for this long hangs or is gone."""
_LENGTH_BYTES = 4
_MARKS_BYTES = 8
_READS = 3


class Status(msgspec.Struct, frozen=True):
    """One worker's word.

    Units:
        started_at: seconds since 1970; beat_at: of the monotonic clock, which all processes of a machine share.
    """

    pid: int
    started_at: float
    beat_at: float
    requests: int = 0
    errors: int = 0
    refused: int = 0
    waiting: int = 0
    connections: int = 0
    more: dict[str, Any] = {}
    """What parts of the application add (see `app.STATUS_KEY`)."""


class Board:
    """The slots of all workers. Each is written by its worker alone; a torn read is noticed, and read again."""

    def __init__(self, fd: int, n_workers: int) -> None:
        self.fd = fd
        self.n_workers = n_workers

    @classmethod
    def create(cls, n_workers: int) -> "Board":
        """An empty one; its descriptor is what other processes need to open it."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("mmserver board"), n_workers)  # a full disk does not touch it
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()), n_workers)

    def siblings(self, slot: int) -> Siblings:
        """What the worker of that slot shares with the others for predictions; it lies behind the slots."""
        return Siblings.of_file(self.fd, self.n_workers * SLOT_BYTES, self.n_workers, slot)

    def write(self, slot: int, status: Status) -> None:
        """Replace the slot's status; without `more` where that is too long."""
        content = msgspec.json.encode(status)
        if len(content) > SLOT_BYTES - _MARKS_BYTES:
            content = msgspec.json.encode(msgspec.structs.replace(status, more={}))
        marks = len(content).to_bytes(_LENGTH_BYTES, "big") + zlib.crc32(content).to_bytes(_LENGTH_BYTES, "big")
        os.pwrite(self.fd, marks + content, slot * SLOT_BYTES)

    def clear(self, slot: int) -> None:
        """The slot's worker is gone."""
        os.pwrite(self.fd, bytes(_MARKS_BYTES), slot * SLOT_BYTES)

    def read(self) -> list[Status]:
        """What the workers say that are there; one whose beat is old is among them."""
        found = (self._read(slot) for slot in range(self.n_workers))
        return [status for status in found if status is not None]

    def check(self) -> Mapping[str, Any]:
        """Whether all are alive, and what they did together; a readiness check."""
        statuses = self.read()
        now = time.monotonic()
        n_alive = sum(now - status.beat_at < ALIVE_S for status in statuses)
        return {
            "status": "ok" if n_alive == self.n_workers else "degraded",
            "workers": self.n_workers,
            "alive": n_alive,
            "requests": sum(status.requests for status in statuses),
            "errors": sum(status.errors for status in statuses),
            "refused": sum(status.refused for status in statuses),
        }

    def close(self) -> None:
        """Close this process's descriptor."""
        os.close(self.fd)

    def _read(self, slot: int) -> Status | None:
        for _ in range(_READS):
            found = os.pread(self.fd, SLOT_BYTES, slot * SLOT_BYTES)
            length = int.from_bytes(found[:_LENGTH_BYTES], "big")
            content = found[_MARKS_BYTES : _MARKS_BYTES + length]
            if not length:
                return None
            if zlib.crc32(content) == int.from_bytes(found[_LENGTH_BYTES:_MARKS_BYTES], "big"):
                return msgspec.json.decode(content, type=Status)
        return None
