"""The frames between the server, the zygote and a job's child; everything is a length and then that many bytes.

Start (stream socket, server <-> zygote): the server sends one block with `Setup` as JSON, the zygote one block with `Ready`.
Per job (same socket): the server sends one byte with two descriptors, the child's end of the job socket and the zygote's
end of the status socket. The server ends a job by shutting down its end of the status socket; the zygote kills the child
and answers on it with one STATUS record, as it does when the child dies by itself. Either socket at its end without a
record means that the zygote died.
Job socket (server <-> child, the zygote keeps no end of it): two blocks come in, the handler's name and the request; the child
reads both to the end before it answers. One answer goes out: a byte that says its kind, then a block.

A block is an 8-byte big-endian length and the bytes. The child is not trusted: its answer is read with a deadline and a cap.
"""

import io
import select
import socket
import struct
import time
from typing import Any, BinaryIO

import msgspec

from mmserver.sandbox.limits import JobLimits

LENGTH = struct.Struct("!Q")
STATUS = struct.Struct("!BidQ")
"""Kind, wait status or errno, CPU time in seconds, peak resident bytes."""

STATUS_ENDED = 0
STATUS_NOT_FORKED = 1

ANSWER_RESULT = b"R"
ANSWER_ERROR = b"E"
ANSWER_NO_MEMORY = b"M"

MAX_ERROR_BYTES = 64 << 10


class Setup(msgspec.Struct, frozen=True):
    """What the zygote needs to know: `handlers` is "package.module:function", called with `options`."""

    handlers: str
    options: dict[str, Any]
    extra_paths: list[str]
    limits: JobLimits


class Ready(msgspec.Struct, frozen=True):
    """The zygote's only message: `problem` is empty when the handlers were loaded."""

    problem: str
    n_threads: int = 1


class ErrorAnswer(msgspec.Struct, frozen=True):
    """An error that a handler raised on purpose."""

    code: str
    values: dict[str, Any]


class GarbledAnswerError(Exception):
    """The other side broke the protocol; the message says how."""


class DeadlineReader(io.RawIOBase):
    """The receiving side of a socket as a raw stream whose reads end with TimeoutError at `deadline` (monotonic)."""

    def __init__(self, source: socket.socket, deadline: float) -> None:
        self._source = source
        self._poller = select.poll()
        self._poller.register(source, select.POLLIN)
        self._deadline = deadline

    def readable(self) -> bool:
        """A reader reads."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Wait for bytes and take what is there; 0 at the end, which a reset connection counts as too."""
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0 or not self._poller.poll(remaining_s * 1000):
            raise TimeoutError
        try:
            return self._source.recv_into(buffer)
        except ConnectionError:
            return 0


def send_block(target: socket.socket, body: bytes, deadline: float) -> None:
    """Send one block, or raise TimeoutError at `deadline` (monotonic)."""
    for part in (LENGTH.pack(len(body)), body):
        # The timeout of sendall is the time for all of it.
        target.settimeout(max(deadline - time.monotonic(), 0.001))
        target.sendall(part)


def read_block(source: BinaryIO, max_bytes: int) -> bytes | None:
    """The next block, or None where the stream ended first.

    Raises:
        GarbledAnswerError: the block says that it is longer than `max_bytes`; nothing was allocated for it.
    """
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size_bytes,) = LENGTH.unpack(head)
    if size_bytes > max_bytes:
        raise GarbledAnswerError(f"an answer of {size_bytes} bytes is over the limit of {max_bytes}")
    body = source.read(size_bytes)
    return body if len(body) == size_bytes else None


def read_answer(source: BinaryIO, max_result_bytes: int) -> tuple[bytes, bytes] | None:
    """The kind and body of a child's answer, or None where the child ended without a whole one.

    Raises:
        GarbledAnswerError: what came is not an answer.
        TimeoutError: the reader's deadline passed.
    """
    kind = source.read(1)
    if not kind:
        return None
    if kind not in {ANSWER_RESULT, ANSWER_ERROR, ANSWER_NO_MEMORY}:
        raise GarbledAnswerError("a garbled answer")
    body = read_block(source, max_result_bytes if kind == ANSWER_RESULT else MAX_ERROR_BYTES)
    return None if body is None else (kind, body)
