"""One client's connection: waitress's channel, which can answer in the I/O thread and lets no client drag anything out."""

import logging
import socket
import time
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from waitress.channel import HTTPChannel
from waitress.task import WSGITask

from mmserver.errors import DeadlinePassed
from mmserver.server.refusals import RefusalTask, RequestRefused, closes_connection
from mmserver.server.requests import Request
from mmserver.web.framing import WAITED_NS_KEY

if TYPE_CHECKING:
    from mmserver.server.http_server import HttpServer

FIRST_READ_BYTES = 16 << 10
"""Of what may be many small requests; of a body that has begun, `recv_bytes` are taken at once."""
MAX_UNSENT_BYTES = 1 << 20
"""What a client may leave unread and still have its next request answered; it holds its own requests up, not our memory."""
LINGER_S = 2.0
"""How long the rest of a refused request is read and dropped, so that its sender gets to read why."""
SLOWEST_BYTES_A_S = 256 << 10
"""A client that is not slower than this may take longer than the deadline: it moves much, not slowly."""
log = logging.getLogger(__name__)


class Overdue(Enum):
    """What a connection's time is up for."""

    REQUEST = auto()
    """A request that came too slowly: it gets an answer."""
    CONNECTION = auto()


class Task(WSGITask):  # type: ignore[misc]
    """One request for the application."""

    close_on_finish: bool
    chunked_response: bool

    def get_environment(self) -> dict[str, Any]:
        """Called by waitress when the request's turn has come."""
        environ: dict[str, Any] = super().get_environment()
        environ[WAITED_NS_KEY] = int((time.monotonic() - self.request.completed_at) * 1e9)
        return environ

    def build_response_header(self) -> bytes:
        """Says, once the server is stopping, that no other answer will follow, and does not close after a 304.

        waitress 3.0 closes the connection after every answer without a body; a bot that asks "changed?" a thousand times would
        connect a thousand times.
        """
        front: HttpServer = self.channel.front
        if front.is_stopping:
            self.set_close_on_finish()
        if self.status.startswith("5"):
            front.count_error()
        if self.request.connection_close:
            self.set_close_on_finish()
        may_stay_open = self.version == "1.1" and not (self.has_body or self.close_on_finish)
        header: bytes = super().build_response_header()
        if self.request.command == "HEAD":
            self.chunked_response = False  # or the end of a body would follow
        if may_stay_open:
            self.close_on_finish = False
            header = header.replace(b"\r\nConnection: close", b"", 1)
        return header

    def write(self, data: bytes) -> None:
        """The application's bytes; none to who asked for the header only."""
        super().write(b"" if self.request.command == "HEAD" else data)


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection, and where it is between its requests."""

    task_class = Task
    error_task_class = RefusalTask
    requests: list[Request]
    request: Request | None
    waits_inline = False
    """Its first request is for the I/O thread to answer."""
    is_unreadable = False
    """What comes after a refused request is not read as one."""
    is_half_closed = False
    is_held_back = False
    """Its next request waits until the client has read more of its answers."""
    discards_since: float | None = None
    """The answer is sent, and what the client still sends is dropped."""

    def __init__(self, front: "HttpServer", *arguments: Any, **keywords: Any) -> None:
        self.front = front
        self.parser_class = front.new_request
        self.idle_since = time.monotonic()
        self.n_answered = 0
        self._sending: _Sending | None = None
        super().__init__(*arguments, **keywords)

    # --- the I/O thread ---

    def handle_read(self) -> None:
        """Take what came, and answer at once what is for this thread to answer."""
        data = self.recv(self.adj.recv_bytes if self.is_unreadable else FIRST_READ_BYTES)
        if self.is_unreadable:
            return
        self.received(data)
        if len(data) == FIRST_READ_BYTES and self.request is not None and self.request.body_rcv is not None:
            self.received(self.recv(self.adj.recv_bytes))
        self._answer_inline()
        if self.total_outbufs_len and not self.requests:
            self.handle_write()

    def handle_expt(self) -> None:
        """Urgent data, which no request has, and which the loop would report for ever."""
        self.handle_close()

    def recv(self, buffer_size: int) -> bytes:
        """As waitress's, but for a client that shuts its side and still waits for an answer."""
        try:
            data: bytes = self.socket.recv(buffer_size)
        except BlockingIOError:
            return b""
        except OSError:
            self.handle_close()
            return b""
        if not data:
            with self.requests_lock:
                self.is_half_closed = bool(self.requests)
                if self.requests:
                    self.requests[-1].connection_close = True
            if not self.is_half_closed:
                self.handle_close()
        return data

    def readable(self) -> bool:
        """Whether bytes can be taken now."""
        return not self.is_half_closed and bool(super().readable())

    def received(self, data: bytes) -> bool:
        """Make requests of the bytes."""
        n_before = len(self.requests)
        is_taken: bool = super().received(data)
        self.front.n_requests += max(0, len(self.requests) - n_before)
        self.is_unreadable = any(r.error is not None and closes_connection(r.error) for r in self.requests)
        return is_taken

    def writable(self) -> bool:
        """Whether there is something to send, or to go on with once that is sent."""
        return bool(self.is_held_back or super().writable())

    def handle_write(self) -> None:
        """Send what is left, then close if that was the end."""
        if self.close_when_flushed and self.is_unreadable and not self.total_outbufs_len and not self.will_close:
            self._begin_to_discard()
        else:
            super().handle_write()
        if self.is_held_back and self.connected and self.total_outbufs_len <= MAX_UNSENT_BYTES:
            self.is_held_back = False
            self.server.add_task(self)
            self._answer_inline()

    def handle_close(self) -> None:
        """Close it, and drop what came of a request."""
        if self.request is not None:
            self.request.close()
        if self.is_held_back:
            self._drop_requests()
        super().handle_close()

    def answered(self, answer: bytes, *, closes: bool) -> None:
        """Send the answer to the first request, which no thread of the pool has seen."""
        sent = 0 if self.total_outbufs_len else self.send(answer)
        if not self.connected:
            return
        self.n_answered += 1
        self.idle_since = self.front.now
        if sent < len(answer):
            self.write_soon(answer[sent:])
        with self.requests_lock:
            self.requests.pop(0).close()
            if closes:
                self.close_when_flushed = True
                self._drop_requests()
            elif self.requests:
                self.server.add_task(self)
            elif self.request is not None and self.request.expect_continue and self.request.headers_finished:
                self.send_continue()

    def is_idle(self) -> bool:
        """Whether nothing is going on: between two requests, or before the first."""
        return not self.requests and self.request is None and not self.total_outbufs_len

    def overdue(self, now: float, deadline_s: float, idle_timeout_s: float) -> Overdue | None:
        """What the connection has had its time for; called about once a second."""
        if self.discards_since is not None:
            return Overdue.CONNECTION if now - self.discards_since > LINGER_S else None
        if self.total_outbufs_len:
            self._sending = self._sending or _Sending(now, self.total_outbufs_len)
            return Overdue.CONNECTION if self._sending.is_overdue(now, self.total_outbufs_len, deadline_s) else None
        self._sending = None
        if self.requests:
            return None
        if self.is_half_closed:
            return Overdue.CONNECTION
        if self.request is not None:
            allowed_s = deadline_s + self.request.n_received / SLOWEST_BYTES_A_S
            is_late = now - self.request.begun_at > allowed_s
            has_only_begun = now - self.idle_since > idle_timeout_s + allowed_s  # again and again, with empty lines
            return Overdue.REQUEST if is_late or has_only_begun else None
        timeout_s = idle_timeout_s if self.n_answered else min(idle_timeout_s, deadline_s)
        return Overdue.CONNECTION if now - self.idle_since > timeout_s else None

    def refuse_slow_request(self) -> None:
        """Say that the request took too long to arrive, and read no more of it."""
        request, self.request = self.request, None
        if request is None:
            return
        request.error = RequestRefused(HTTPStatus.REQUEST_TIMEOUT)
        self.is_unreadable = True
        self.requests.append(request)
        self.service()
        self.handle_write()

    # --- whoever answers ---

    def service(self) -> None:
        """Answer the first request, unless it waited too long for that."""
        request = self.requests[0]
        waited_s = time.monotonic() - request.completed_at
        if request.error is None and waited_s > self.front.limits.request_deadline_s:
            request.error = DeadlinePassed(waited_s=waited_s)
        super().service()
        self.n_answered += 1
        self.idle_since = time.monotonic()

    # --- parts ---

    def _answer_inline(self) -> None:
        while self.waits_inline and self.connected:
            self.waits_inline = False
            self.front.answer_inline(self)

    def _drop_requests(self) -> None:
        for request in self.requests:
            request.close()
        self.requests = []

    def _begin_to_discard(self) -> None:
        self.close_when_flushed = False
        self.discards_since = time.monotonic()
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()


class _Sending:
    """How an answer gets away: it may take the deadline, and longer only as long as much of it is taken."""

    def __init__(self, now: float, n_left: int) -> None:
        self._since = self._moved_at = now
        self._n_left = n_left
        self._n_moved = 0

    def is_overdue(self, now: float, n_left: int, deadline_s: float) -> bool:
        if n_left < self._n_left:
            self._n_moved += self._n_left - n_left
            self._moved_at = now
        self._n_left = n_left
        allowed_s = deadline_s + self._n_moved / SLOWEST_BYTES_A_S
        return now - self._moved_at > deadline_s or now - self._since > allowed_s
