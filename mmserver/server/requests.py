"""One request as it comes in over a connection; waitress's tasks and our own answers read it."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO

from mmserver.errors import HostUnknown
from mmserver.server.bodies import ChunkedBody, Content, MeasuredBody
from mmserver.server.heads import END, HeadReader, check_unfinished_head
from mmserver.server.refusals import RequestRefused

_EMPTY_LINES = re.compile(rb"(?:\r\n)+")


class Request:
    """Takes bytes until the request is complete, or `error` says what it cannot be.

    The names without underscores are those that waitress 3.0 gives its own parser.
    """

    version = "1.1"
    command = ""
    path = ""
    query = ""
    request_uri = ""
    url_scheme = "http"
    closes = True
    expect_continue = False
    completed = False
    error: RequestRefused | HostUnknown | None = None
    completed_at = 0.0
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, heads: HeadReader, max_body_bytes: int, now: float) -> None:
        self.begun_at = now
        self.received_bytes = 0
        self._heads = heads
        self._max_body_bytes = max_body_bytes
        self._begun = b""
        self._body: MeasuredBody | ChunkedBody | None = None

    def received(self, data: bytes) -> int:
        """Take what belongs to this request; returns how much of the data that is."""
        self.received_bytes += len(data)
        try:
            if self._body is None:
                return self._take_head(data)
            consumed = self._body.received(data)
            self.completed = self._body.is_complete
        except (RequestRefused, HostUnknown) as error:
            self.error = error
            self.completed = True
            return len(data)
        if self.completed and isinstance(self._body, ChunkedBody):
            self.headers = {**self.headers, "CONTENT_LENGTH": str(self._body.content.size)}
        return consumed

    @property
    def content(self) -> Content | None:
        """The body, if there is one."""
        return self._body.content if self._body is not None else None

    def get_body_stream(self) -> IO[bytes]:
        """The body, for WSGI."""
        return (self.content or Content()).stream()

    def close(self) -> None:
        """Drop the body."""
        if self._body is not None:
            self._body.content.close()

    def _take_head(self, data: bytes) -> int:
        begun = self._begun + data if self._begun else data
        if begun.startswith(b"\r\n"):  # some clients send that after a body
            begun = _EMPTY_LINES.sub(b"", begun, 1)
        end = begun.find(END) + len(END)
        if end < len(END):
            check_unfinished_head(begun)
            self._begun = begun
            return len(data)
        head = self._heads.read(begun[:end])
        self._begun = b""
        self.version = head.version
        self.command = head.method
        self.path = head.path
        self.query = head.query
        self.request_uri = head.uri
        self.headers = head.headers
        self.closes = head.closes
        if head.is_chunked:
            self._body = ChunkedBody(self._max_body_bytes)
        elif head.content_length:
            self._body = MeasuredBody(head.content_length)
        else:
            self.completed = True
        self.expect_continue = head.expects_continue and not self.completed
        return len(data) - (len(begun) - end)
