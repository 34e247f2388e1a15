"""Predictions answered by the I/O thread itself: no task, no WSGI, no other thread.

Handing a request to a thread and its answer back costs several times what such a prediction costs (measured).
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from waitress.utilities import build_http_date

from mmserver.server.connections import Channel
from mmserver.server.requests import Request
from mmserver.web.framing import DEFAULT_HEADERS, RequestIds

if TYPE_CHECKING:
    from mmserver.web.quick import QuickAnswer, QuickRoutes

_MAX_HEADS = 64
log = logging.getLogger(__name__)


class InlineAnswers:
    """Answers what `QuickRoutes` knows; used by one thread."""

    def __init__(self, quick_routes: "Callable[[], QuickRoutes | None]") -> None:
        """`quick_routes` gives None until they are ready."""
        self._quick_routes = quick_routes
        self._request_ids = RequestIds()
        self._heads: dict[tuple[str, tuple[tuple[str, str], ...]], bytes] = {}
        self._date = b""
        self._date_s = 0

    def __call__(self, channel: Channel, request: Request) -> bool:
        """Answer the connection's first request, or leave it to others."""
        routes = self._quick_routes()
        if routes is None or not routes.is_candidate(request.command, request.path, request.query):
            return False
        content = request.content
        if content is not None and content.size > routes.max_body_bytes:
            return False
        try:
            answer = routes.answer(request.path, request.headers, b"" if content is None else content.in_memory())
        except Exception:  # the last handler of this thread: the view meets the same, and answers `internal`
            log.exception("%s %s", request.command, request.path)
            return False
        if answer is None:
            return False
        closes = request.closes or channel.server.is_stopping
        channel.answered(self._bytes(answer, request, closes=closes), closes=closes)
        return True

    def _bytes(self, answer: "QuickAnswer", request: Request, *, closes: bool) -> bytes:
        """The whole answer, with the headers that `ResponseFrame` and waitress would give it."""
        now_s = int(time.time())
        if now_s != self._date_s:
            self._date_s = now_s
            self._date = build_http_date(now_s).encode()
        connection = b""
        if closes:
            connection = b"Connection: close\r\n"
        elif request.version == "1.0":
            connection = b"Connection: Keep-Alive\r\n"
        return b"HTTP/%b %b%d\r\nDate: %b\r\nX-Request-ID: %b\r\n%b\r\n%b" % (
            request.version.encode(),
            self._heads.get(answer[:2]) or self._head(answer),
            len(answer.body),
            self._date,
            self._request_ids(request.headers.get("X_REQUEST_ID", "")).encode(),
            connection,
            answer.body,
        )

    def _head(self, answer: "QuickAnswer") -> bytes:
        """Status and headers up to the length; a few different ones are answered again and again."""
        given = {name.lower() for name, _ in answer.headers}
        missing = [(name, value) for name, value in DEFAULT_HEADERS if name.lower() not in given]
        fields = "".join(f"{name}: {value}\r\n" for name, value in (*answer.headers, *missing))
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        head = self._heads[answer[:2]] = f"{answer.status}\r\n{fields}Content-Length: ".encode("latin-1")
        return head
