"""The body of a request as it comes in: of a length that is known, or in chunks."""

import io
import re
import tempfile
from http import HTTPStatus
from typing import IO

from mmserver.server.refusals import RequestRefused

MAX_IN_MEMORY_BYTES = 1 << 20
MAX_LINE_BYTES = 4096
MAX_TRAILER_BYTES = 8192

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n")


class Content:
    """Bytes that arrive piece by piece: in memory as long as they are few, then in a file without a name."""

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None

    def append(self, piece: bytes) -> None:
        """Add what came."""
        self.size += len(piece)
        if self._file is None and self.size > MAX_IN_MEMORY_BYTES:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the request)
            self._file.writelines(self._pieces)
            self._pieces = []
        if self._file is None:
            self._pieces.append(piece)
        else:
            self._file.write(piece)

    def in_memory(self) -> bytes:
        """All of it; only for what is no longer than `MAX_IN_MEMORY_BYTES`."""
        if len(self._pieces) != 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0]

    def stream(self) -> IO[bytes]:
        """All of it, to be read from its beginning."""
        if self._file is None:
            return io.BytesIO(self.in_memory())
        self._file.seek(0)
        return self._file

    def close(self) -> None:
        """Drop it."""
        if self._file is not None:
            self._file.close()


class MeasuredBody:
    """A body of a length that its head told."""

    def __init__(self, length: int) -> None:
        self.content = Content()
        self.is_complete = False
        self._missing = length

    def received(self, data: bytes) -> int:
        """Take what belongs to the body; returns how much that is."""
        if len(data) < self._missing:
            self._missing -= len(data)
            self.content.append(data)
            return len(data)
        self.content.append(data if len(data) == self._missing else data[: self._missing])
        self.is_complete = True
        return self._missing


class ChunkedBody:
    """A body in chunks, each after a line with its size; the last is empty, and trailing fields may follow."""

    def __init__(self, max_bytes: int) -> None:
        self.content = Content()
        self.is_complete = False
        self._max_bytes = max_bytes
        self._line = b""
        self._missing = 0
        self._take_line = self._take_size
        self._trailer_bytes = 0

    def received(self, data: bytes) -> int:
        """Take what belongs to the body; returns how much that is.

        Raises:
            RequestRefused: it is not in chunks, or longer than it may be.
        """
        position = 0
        while position < len(data) and not self.is_complete:
            if self._missing:
                piece = data[position : position + self._missing]
                self.content.append(piece)
                self._missing -= len(piece)
                position += len(piece)
                continue
            end = data.find(b"\n", position) + 1
            self._line += data[position : end or len(data)]
            if len(self._line) > MAX_LINE_BYTES:
                raise RequestRefused(HTTPStatus.BAD_REQUEST, "a line between chunks is too long")
            position = end or len(data)
            if end:
                line, self._line = self._line, b""
                self._take_line(line)
        return position

    def _take_size(self, line: bytes) -> None:
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "a chunk does not begin with its size")
        self._missing = int(match[1], 16)
        if self.content.size + self._missing > self._max_bytes:
            raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._take_line = self._take_chunk_end if self._missing else self._take_trailer

    def _take_chunk_end(self, line: bytes) -> None:
        if line != b"\r\n":
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "a chunk does not end where its size says")
        self._take_line = self._take_size

    def _take_trailer(self, line: bytes) -> None:
        """What it says is dropped: nothing here waits for the end of a body to learn about it."""
        self._trailer_bytes += len(line)
        if line == b"\r\n":
            self.is_complete = True
        elif _TRAILER.fullmatch(line) is None or self._trailer_bytes > MAX_TRAILER_BYTES:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "what follows the last chunk is no header")
