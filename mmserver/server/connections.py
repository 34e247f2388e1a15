"""One client's connection: requests come in through the I/O thread, a thread of the pool or the I/O thread answers them.

It is waitress's channel with another way in (`Request`), an end for everything that a client may drag out, and fewer ways
between threads: a pool's thread sends what it made by itself, and calls the I/O thread only where that has something to do.
Who may touch what: while the pool has the first request, only the pool's thread changes `requests` and writes; at all other
times only the I/O thread does.
"""

import contextlib
import logging
import select
import socket
import time
from enum import Enum, auto
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, Any

from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.task import WSGITask

from mmserver.errors import DeadlinePassed
from mmserver.server.refusals import RefusalTask, RequestRefused, problem_from_refusal
from mmserver.server.requests import Request
from mmserver.web.errors import Problem

if TYPE_CHECKING:
    from mmserver.server.http_server import HttpServer

RECEIVE_BYTES = 1 << 16
LINGER_S = 2.0
"""How long the rest of a refused request is read and dropped, so that its sender gets to read why."""
LARGE_BYTES = 1 << 16
SLOWEST_BYTES_A_S = 256 << 10
"""A client that is not slower than this may take longer than the deadline: it moves much, not slowly."""
log = logging.getLogger(__name__)


class Overdue(Enum):
    """What a connection's time is up for."""

    REQUEST = auto()
    """A request that came too slowly: it gets an answer."""
    CONNECTION = auto()


class Channel(HTTPChannel):  # type: ignore[misc]
    """One connection, and where it is between its requests."""

    server: "HttpServer"
    requests: list[Request]
    request: Request | None
    current_outbuf_count: int
    is_muted = False
    """Something came while it could not be read; the I/O thread waits for word that it can."""
    asked_for = select.EPOLLIN
    """What the kernel is to tell of it."""
    discards_since: float | None = None
    """The answer is sent, and what the client still sends is dropped."""

    def __init__(self, server: "HttpServer", connection: socket.socket, address: Any) -> None:
        self.idle_since = server.now
        self.n_answered = 0
        self.is_unreadable = False
        self._sending: _Sending | None = None
        super().__init__(server, connection, address, server.adj, map=server.active_channels)

    # --- the I/O thread ---

    def handle_read(self) -> None:
        """Take what came."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.handle_close()
        elif self.discards_since is None:
            self.received(data)

    def received(self, data: bytes) -> bool:
        """Make requests of the bytes, and begin to answer the first if none is being answered."""
        with self.requests_lock:
            if self.will_close or self.close_when_flushed or self.is_unreadable:
                return False
            was_idle = not self.requests
            self._take(data)
        if was_idle and self.requests:
            self.server.begin(self)
        return True

    def readable(self) -> bool:
        """Whether bytes can be taken now."""
        return self.discards_since is not None or not (
            self.requests or self.total_outbufs_len or self.close_when_flushed or self.will_close
        )

    def is_idle(self) -> bool:
        """Whether nothing is going on: between two requests, or before the first."""
        return not self.requests and self.request is None and not self.total_outbufs_len

    def handle_close(self) -> None:
        """Close it, and drop what came of a request."""
        if self.request is not None:
            self.request.close()
        super().handle_close()

    def handle_write(self) -> None:
        """Send what is left, then close if that was the end."""
        if self.close_when_flushed and not self.total_outbufs_len and self.is_unreadable:
            self._begin_to_discard()
        elif self.discards_since is None:
            super().handle_write()

    def needs_writing(self) -> bool:
        """Whether the I/O thread has something to send or to end now."""
        if self.discards_since is not None:
            return False
        if self.requests and self.total_outbufs_len < self.adj.send_bytes:
            return bool(self.will_close)  # the pool's thread sends what it has when it is done
        return bool(self.writable())

    def answered(self, answer: bytes, *, closes: bool) -> None:
        """Send the answer to the first request, which the pool never had."""
        sent = 0 if self.total_outbufs_len else self.send(answer)
        self.n_answered += 1
        self.idle_since = self.server.now
        if sent < len(answer) and self.connected:
            self.write_soon(answer[sent:])
        if closes:
            self.close_when_flushed = True
            self._drop_requests()
        elif self.requests:
            self.requests.pop(0).close()

    def overdue(self, now: float, deadline_s: float, idle_timeout_s: float) -> Overdue | None:
        """What the connection has had its time for; called about once a second."""
        if self.discards_since is not None:
            return Overdue.CONNECTION if now - self.discards_since > LINGER_S else None
        if self.total_outbufs_len and not (self.requests and self.total_outbufs_len < self.adj.send_bytes):
            self._sending = self._sending or _Sending(now, self.total_outbufs_len)
            return Overdue.CONNECTION if self._sending.is_overdue(now, self.total_outbufs_len, deadline_s) else None
        self._sending = None
        if self.requests:
            return None
        if self.request is not None:
            allowed_s = deadline_s + self.request.received_bytes / SLOWEST_BYTES_A_S
            return Overdue.REQUEST if now - self.request.begun_at > allowed_s else None
        timeout_s = idle_timeout_s if self.n_answered else min(idle_timeout_s, deadline_s)
        return Overdue.CONNECTION if now - self.idle_since > timeout_s else None

    def refuse_slow_request(self) -> None:
        """Say that the request took too long to arrive, and read no more of it."""
        assert self.request is not None  # noqa: S101 (it is what was found overdue)
        self.request.error = RequestRefused(HTTPStatus.REQUEST_TIMEOUT)
        self.requests.append(self.request)
        self.request = None
        self.is_unreadable = True
        self.answer_first()

    # --- whoever answers ---

    def service(self) -> None:
        """Answer the first request; called by the pool."""
        if self.answer_first():
            self.server.pool.add_task(self)
        elif self.is_muted or self.total_outbufs_len or self.close_when_flushed or self.will_close:
            self.server.attend(self)

    def answer_first(self, problem: Problem | None = None) -> bool:
        """Answer the first request, by the application or with a problem. Returns whether there is another."""
        request = self.requests[0]
        task = self._run(self._task(request, problem), request)
        if problem is None and task.status.startswith("5"):
            self.server.count_error()
        self._flush()
        self.n_answered += 1
        with self.requests_lock:
            self.idle_since = time.monotonic()
            if task.close_on_finish or not self.connected:
                self.close_when_flushed = True
                self._drop_requests()
                return False
            if self.current_outbuf_count > 0:
                self.current_outbuf_count = self.adj.outbuf_high_watermark  # the next answer gets its own buffer
            self.requests.pop(0).close()
            if not self.requests and self.request is not None and self.request.expect_continue:
                self.send_continue()
            return bool(self.requests)

    def write_soon(self, data: Any) -> int:
        """Queue bytes to be sent; large ones as they are, not as a copy."""
        if isinstance(data, bytes) and len(data) >= LARGE_BYTES:
            data = _Bytes(data)
        n_bytes: int = super().write_soon(data)
        return n_bytes

    # --- parts ---

    def _take(self, data: bytes) -> None:
        server = self.server
        while data:
            request = self.request
            if request is None:
                request = self.request = Request(server.heads, server.limits.max_body_bytes, server.now)
            n_taken = request.received(data)
            if request.expect_continue and not self.requests:
                self.send_continue()
            if request.completed:
                request.completed_at = server.now
                server.n_requests += 1
                self.requests.append(request)
                self.request = None
                if request.error is not None:
                    self.is_unreadable = True
                    return
            if n_taken >= len(data):
                return
            data = data[n_taken:]

    def _task(self, request: Request, problem: Problem | None) -> Any:
        if request.error is not None:
            return RefusalTask(self, request, problem_from_refusal(request.error), closes=True)
        if problem is None:
            waited_s = time.monotonic() - request.completed_at
            if waited_s <= self.server.limits.request_deadline_s:
                return Task(self, request)
            problem = problem_from_refusal(DeadlinePassed(waited_s=waited_s))
        return RefusalTask(self, request, problem, closes=request.closes)

    def _run(self, task: Any, request: Request) -> Any:
        """Returns the task that answered, if any did."""
        try:
            if self.connected:
                task.service()
        except ClientDisconnected:
            log.debug("the client of %s is gone", request.path)
        except Exception:  # the last handler: a thread of the pool must live
            log.exception("%s %s", request.command, request.path)
            if not task.wrote_header:
                problem = problem_from_refusal(RequestRefused(HTTPStatus.INTERNAL_SERVER_ERROR))
                task = RefusalTask(self, request, problem, closes=True)
                with contextlib.suppress(ClientDisconnected):
                    task.service()
            task.close_on_finish = True
        return task

    def _flush(self) -> None:
        """Send what the answer's thread has not sent yet; what the client does not take stays for the I/O thread."""
        with self.outbuf_lock:
            if self.connected and self.total_outbufs_len:
                self._flush_exception(self._flush_some, do_close=False)

    def _drop_requests(self) -> None:
        for request in self.requests:
            request.close()
        self.requests = []

    def _begin_to_discard(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.handle_close()
            return
        self.discards_since = self.server.now


class Task(WSGITask):  # type: ignore[misc]
    """One request for the application."""

    close_on_finish: bool

    def build_response_header(self) -> bytes:
        """Says, once the server is stopping, that no other answer will follow, and does not close after a 304.

        waitress 3.0 closes the connection after every answer without a body; a bot that asks "changed?" a thousand times would
        connect a thousand times.
        """
        server = self.channel.server
        if server.is_stopping:
            self.set_close_on_finish()
        asked_to_close = self.request.headers.get("CONNECTION", "") == "close"
        may_stay_open = self.version == "1.1" and not (self.has_body or self.close_on_finish or asked_to_close)
        header: bytes = super().build_response_header()
        if may_stay_open:
            self.close_on_finish = False
            header = header.replace(b"\r\nConnection: close", b"", 1)
        return header

    def write(self, data: bytes) -> None:
        """The application's bytes; none to who asked for the header only."""
        super().write(b"" if self.request.command == "HEAD" else data)


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


class _Bytes(ReadOnlyFileBasedBuffer):  # type: ignore[misc]
    """Bytes to be sent from where they are; waitress's own buffers copy them, once in and once for every piece that is sent."""

    def __init__(self, content: bytes) -> None:
        super().__init__(BytesIO())
        self._rest = memoryview(content)
        self.remain = len(content)

    def get(self, numbytes: int = -1, skip: bool = False) -> memoryview:
        return self._rest[:numbytes] if numbytes >= 0 else self._rest

    def skip(self, numbytes: int, allow_prune: int = 0) -> None:
        self._rest = self._rest[numbytes:]
        self.remain = len(self._rest)

    def close(self) -> None:
        self._rest = memoryview(b"")
        self.remain = 0
