"""Predictions answered by the I/O thread itself: no task, no WSGI, no other thread.

Handing a request to a thread and its answer back costs several times what such a prediction costs (measured).
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from waitress.utilities import build_http_date

from mmserver.catalog.store import Store
from mmserver.server.connections import Channel
from mmserver.server.http_server import InlineAnswerer
from mmserver.server.requests import Request
from mmserver.web.framing import DEFAULT_HEADERS, RequestIds
from mmserver.web.payloads import is_quick

if TYPE_CHECKING:
    from mmserver.web.quick import QuickAnswer, QuickRoutes

_MAX_HEADS = 64
log = logging.getLogger(__name__)


class InlineAnswers(InlineAnswerer):
    """Answers predictions that `QuickRoutes` knows by themselves; payloads and `/livez` by the application; used by one thread."""

    def __init__(self, quick_routes: "Callable[[], QuickRoutes | None]", store: Store) -> None:
        """`quick_routes` gives None until they are ready."""
        self._quick_routes = quick_routes
        self._store = store
        self._request_ids = RequestIds()
        self._date = b""
        self._date_s = 0
        self._heads: dict[tuple[str, tuple[tuple[str, str], ...]], bytes] = {}

    def knows(self, request: Request) -> bool:
        """Whether it is worth a try."""
        if request.command == "POST":
            routes = self._quick_routes()
            return (
                routes is not None
                and routes.is_candidate("POST", request.path, request.query)
                and (request.chunked or request.content_length <= routes.max_body_bytes)
            )
        return request.command in ("GET", "HEAD") and (
            request.path == "/livez"
            or is_quick(self._store, request.path, request.query, request.headers.get("ACCEPT_ENCODING", ""))
        )

    def answer(self, channel: Channel, request: Request) -> bool:
        """Answer the connection's first request, which `knows` has let through; False leaves it to the pool."""
        if request.command != "POST":
            channel.service()
            return True
        routes = self._quick_routes()
        if routes is None:
            return False
        try:
            request_id = self._request_ids(request.headers.get("X_REQUEST_ID", ""))
            answer = routes.answer(request.path, request.headers, request.body(), request_id)
        except Exception:  # the last handler of this thread: the view meets the same, and answers `internal`
            log.exception("%s %s", request.command, request.path)
            return False
        if answer is None:
            request.headers["X_REQUEST_ID"] = (
                request_id  # whoever answers it goes on with what was begun under its name
            )
            return False
        closes = request.connection_close or channel.front.is_stopping
        channel.answered(self._bytes(answer, request, request_id, closes=closes), closes=closes)
        return True

    def _bytes(self, answer: "QuickAnswer", request: Request, request_id: str, *, closes: bool) -> bytes:
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
            request_id.encode(),
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
