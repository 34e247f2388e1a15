"""An httpx transport for threads in which a call's deadline holds for every single read and write.

httpx's read timeout begins anew with each byte: a server that drips one every few seconds would hold a thread for hours. An
event loop can cancel; a thread cannot, so here no operation on a socket waits beyond the deadline, and closing the client
wakes whoever waits.
"""

import contextlib
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx


class Deadline(threading.local):
    """When the call that this thread is making must be over, on the monotonic clock; infinity while there is none."""

    at_s: float = float("inf")


class DeadlineTransport(httpx.BaseTransport):
    """Connections of one client. The deadline is the calling thread's own, set by `within`."""

    def __init__(self, ssl_context: ssl.SSLContext | None, n_connections: int, keep_alive_s: float) -> None:
        self._deadline = Deadline()
        self._backend = _Backend(self._deadline)
        self._lock = threading.Lock()
        self._n_calls = 0
        self._is_closed = False
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context,
            max_connections=n_connections,
            max_keepalive_connections=n_connections,
            keepalive_expiry=keep_alive_s,
            network_backend=self._backend,
        )

    @contextmanager
    def within(self, at_s: float) -> Iterator[None]:
        """What this thread does in the block is over at that time."""
        with self._lock:
            self._n_calls += 1
        self._deadline.at_s = at_s
        try:
            yield
        finally:
            self._deadline.at_s = float("inf")
            with self._lock:
                self._n_calls -= 1
                is_last = self._is_closed and not self._n_calls
            if is_last:
                self._pool.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; its body and the answer's are streams."""
        url = request.url
        asked = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx():
            answer = self._pool.handle_request(asked)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Body(answer.stream), extensions=answer.extensions
        )

    def close(self) -> None:
        """End every connection, and wake every thread that waits on one: its call fails.

        The sockets are closed when the last such call has ended: the number of one that is closed under a thread is given to the
        next file or socket that anybody opens, on which that thread would wait.
        """
        with self._lock:
            self._is_closed = True
            is_last = not self._n_calls
        self._backend.shut_down()
        if is_last:
            self._pool.close()

    def abandon(self) -> None:
        """Close this process's copies of the sockets; the process that it was forked from goes on using its own."""
        self._backend.abandon()


class _Body(httpx.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


_OURS: dict[type[Exception], type[httpx.TransportError]] = {
    kind: getattr(httpx, kind.__name__)
    for kind in (
        httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.LocalProtocolError, httpcore.PoolTimeout,
        httpcore.ReadError, httpcore.ReadTimeout, httpcore.RemoteProtocolError, httpcore.WriteError, httpcore.WriteTimeout,
    )
}  # fmt: skip
"""httpx's errors have the names of httpcore's."""


@contextmanager
def _as_httpx() -> Iterator[None]:
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise _OURS.get(type(error), httpx.TransportError)(str(error)) from error


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._sockets = httpcore.SyncBackend()
        self._open: weakref.WeakSet[_Stream] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._is_shut = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> "_Stream":
        left_s = _left_s(self._deadline, timeout, httpcore.ConnectTimeout)
        return self.kept(self._sockets.connect_tcp(host, port, left_s, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def kept(self, stream: httpcore.NetworkStream) -> "_Stream":
        """The stream, known to `shut_down`."""
        made = _Stream(stream, self._deadline, self)
        with self._lock:
            if self._is_shut:
                stream.close()
                raise httpcore.ConnectError("the client is closed")
            self._open.add(made)
        return made

    def shut_down(self) -> None:
        with self._lock:
            self._is_shut = True
            streams = list(self._open)
        for stream in streams:
            stream.shut_down()

    def abandon(self) -> None:
        for stream in list(self._open):  # without the lock: see `Session.successor`
            stream.abandon()


class _Stream(httpcore.NetworkStream):
    """A connection on which nothing waits longer than the calling thread's deadline allows."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline, backend: _Backend) -> None:
        self._stream = stream
        self._deadline = deadline
        self._backend = backend
        self._lock = threading.Lock()
        self._is_closed = False

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(self._deadline, timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left_s(self._deadline, timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "_Stream":
        left_s = _left_s(self._deadline, timeout, httpcore.ConnectTimeout)
        return self._backend.kept(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def shut_down(self) -> None:
        """End it from another thread: whoever reads gets the end of the stream."""
        connection = self._stream.get_extra_info("socket")
        with self._lock:
            if isinstance(connection, socket.socket) and not self._is_closed:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def abandon(self) -> None:
        """Close this process's copy of it, after a fork."""
        self._stream.close()


def _left_s(deadline: Deadline, timeout_s: float | None, late: type[httpcore.TimeoutException]) -> float | None:
    if deadline.at_s == float("inf"):
        return timeout_s
    left_s = deadline.at_s - time.monotonic()
    if left_s <= 0:
        raise late("the call's time is over")
    return left_s if timeout_s is None else min(left_s, timeout_s)
