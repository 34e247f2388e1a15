"""What each worker says of itself, for all of them to read: one place each in a file without a name."""

import os
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from mmserver.serving.siblings import PLACE_BYTES, SharedPlace, Siblings

ALIVE_S = 5.0
"""A worker writes once a second; one that has not for this long hangs or is gone."""


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


class Board:
    """The slots of all workers. Each is written by its worker alone, and cleared for it by the supervisor once it is dead."""

    def __init__(self, fd: int, n_workers: int) -> None:
        self.fd = fd
        self.n_workers = n_workers
        self._slots = [SharedPlace(fd, slot * PLACE_BYTES) for slot in range(n_workers)]

    @classmethod
    def create(cls, n_workers: int) -> "Board":
        """An empty one; its descriptor is what other processes need to open it."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("mmserver board"), n_workers)  # a full disk does not touch it
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()), n_workers)

    def siblings(self, slot: int) -> Siblings:
        """What the worker of that slot shares with the others for predictions; it lies behind the slots."""
        return Siblings.of_file(self.fd, self.n_workers * PLACE_BYTES, self.n_workers, slot)

    def write(self, slot: int, status: Status) -> None:
        """Replace the slot's status."""
        self._slots[slot].replace(msgspec.json.encode(status))

    def clear(self, slot: int) -> None:
        """The slot's worker is gone."""
        self._slots[slot].replace(b"")

    def read(self) -> list[Status]:
        """What the workers say that are there; one whose beat is old is among them."""
        return [status for slot in self._slots if (status := _status(slot)) is not None]

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


def _status(slot: SharedPlace) -> Status | None:
    """None where no worker is, and where what it says is damaged: such a worker counts as not alive."""
    try:
        content = slot.read()
    except OSError:
        return None
    return msgspec.json.decode(content, type=Status) if content else None
