"""What the processes of one server tell each other beside the database: contents in a file without a name, each replaced whole.

It lives as long as the server: a process that takes a dead one's place finds it, the next server does not.
"""

import fcntl
import os
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

MAX_CONTENT_BYTES = 16 << 20
PLACE_BYTES = 4096 + 2 * MAX_CONTENT_BYTES
"""Of addresses; what is not written takes no memory."""
_HEAD_BYTES = 16
_READS = 100


class SharedPlace:
    """One content, replaced whole: a process that dies in the middle leaves the one before. Safe for all threads.

    Two areas take turns: the new content goes into the one that nobody reads, then the head says which it is.
    """

    def __init__(self, fd: int, at: int) -> None:
        self._fd = fd
        self._at = at
        self._lock = threading.Lock()

    def number(self) -> int:
        """Another one after each replacement; 0 before the first. Cheap enough to ask many times a second."""
        return self._head()[0]

    def read(self) -> bytes:
        """The content; empty before the first."""
        return self.read_numbered()[1]

    def read_numbered(self) -> tuple[int, bytes]:
        """The content and its number."""
        for _ in range(_READS):
            number, length, checksum = self._head()
            content = os.pread(self._fd, length, self._area(number)) if length else b""
            if number == 0 or (len(content) == length and zlib.crc32(content) == checksum):
                return number, content
        raise OSError("what the processes of this server share is replaced faster than it can be read")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other thread of any process replaces it meanwhile."""
        with self._lock:
            fcntl.lockf(self._fd, fcntl.LOCK_EX, _HEAD_BYTES, self._at)
            try:
                yield
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, _HEAD_BYTES, self._at)

    def replace(self, content: bytes) -> int:
        """Returns its number. Its one writer, or whoever is `alone`, may call it.

        Raises:
            OSError: it is too long, or there is no room for it.
        """
        if len(content) > MAX_CONTENT_BYTES:
            raise OSError(f"{len(content)} bytes are more than one process can share")
        number = self._head()[0] + 1
        if content:
            os.pwrite(self._fd, content, self._area(number))
        fields = ((number, 8), (len(content), 4), (zlib.crc32(content), 4))
        os.pwrite(self._fd, b"".join(value.to_bytes(size, "big") for value, size in fields), self._at)
        return number

    def _head(self) -> tuple[int, int, int]:
        head = os.pread(self._fd, _HEAD_BYTES, self._at)
        return int.from_bytes(head[:8], "big"), int.from_bytes(head[8:12], "big"), int.from_bytes(head[12:], "big")

    def _area(self, number: int) -> int:
        return self._at + 4096 + (number % 2) * MAX_CONTENT_BYTES


class Siblings(NamedTuple):
    """The places that the processes of one server share."""

    unloaded: SharedPlace
    statistics: tuple[SharedPlace, ...]
    """One of each process, which alone writes it."""
    own: int
    """Which of them is this process's."""

    @classmethod
    def of_file(cls, fd: int, at: int, n_processes: int, own: int) -> "Siblings":
        """Those in a file that all have open, from that address on."""
        places = [SharedPlace(fd, at + index * PLACE_BYTES) for index in range(n_processes + 1)]
        return cls(places[0], tuple(places[1:]), own)
