"""A real HTTP server around a small WSGI application, and clients that speak to it byte by byte."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from mmserver.server import connections, http_server, requests
from mmserver.server.connections import Channel
from mmserver.server.http_server import HttpServer, InlineAnswerer, Limits
from mmserver.server.pool import Pool
from mmserver.server.requests import Request
from mmserver.web.framing import ResponseFrame

FEW_S = 60.0
"""For what happens at once, unless the machine has something else to do."""
TURN_S = 0.05


class Clock:
    """The server's, in the place of the module `time`; it stands still while a test does not move it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all servers that are started after it."""
    made = Clock()
    for module in (connections, http_server, requests):
        monkeypatch.setattr(module, "time", made)
    return made


@dataclass
class Answer:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=FEW_S)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, *, to_head: bool = False) -> Answer:
        """Read one answer; to HEAD there is no body."""
        status_line = self._file.readline()
        assert status_line.startswith(b"HTTP/1."), status_line
        headers = {}
        while (line := self._file.readline()) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        status = int(status_line.split()[1])
        has_body = not to_head and status not in (204, 304)
        body = self._file.read(int(headers.get("content-length", 0))) if has_body else b""
        return Answer(status, headers, body)

    def ask(self, data: bytes, **options: Any) -> Answer:
        self.send(data)
        return self.answer(**options)

    def is_closed(self) -> bool:
        """Whether the server ends the connection; waits for that, and finds fault with bytes that nobody asked for."""
        try:
            rest = self._file.read(1)
        except ConnectionResetError:
            return True
        assert rest == b"", rest
        return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@dataclass
class Site:
    """A running server, and what its application was asked."""

    port: int
    server: HttpServer = field(init=False)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    """Requests to /held wait for it."""
    clients: list[Client] = field(default_factory=list)
    n_turns: int = 0

    def connect(self) -> Client:
        self.clients.append(Client(self.port))
        return self.clients[-1]

    def until(self, is_so: Callable[[], Any], timeout_s: float = FEW_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def take_turns(self, n_turns: int = 1) -> None:
        """Return once the I/O thread has taken so many turns, each with whatever had been sent before."""
        begun_at = self.n_turns
        self.until(lambda: self.n_turns > begun_at + n_turns)

    def settle(self) -> None:
        """Return once nothing is being worked on, and what that left was seen to."""
        pool = self.server.pool
        self.until(lambda: not pool.queue and not pool.active_count)
        self.take_turns()

    def waits_idle(self) -> bool:
        """Whether the I/O thread waits for something to happen; where it does not, it takes its turns in no time."""
        self.settle()
        self.take_turns(3)
        began = time.monotonic()
        self.take_turns(10)
        return time.monotonic() - began > 5 * TURN_S

    def application(self, environ: Any, start_response: Any) -> list[bytes]:
        """Says what it was asked; /held waits, /large is large, /broken breaks, /unchanged is 304, /stream has no length."""
        path = environ["PATH_INFO"]
        body = environ["wsgi.input"].read()
        self.asked.append((environ["REQUEST_METHOD"], path, body))
        if path == "/broken":
            raise ZeroDivisionError
        if path == "/held":
            assert self.gate.wait(FEW_S)
        if path == "/stream":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"a", b"b"]
        if path == "/unchanged":
            start_response("304 Not Modified", [])
            return []
        content = (
            b"x" * int(environ["QUERY_STRING"]) if path == "/large" else b"%s %d" % (path.encode("latin-1"), len(body))
        )
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))])
        return [content]


class Inline(InlineAnswerer):
    """Tries everything in the I/O thread."""

    def __init__(self, answer: Callable[[Channel, Request], bool]) -> None:
        self._answer = answer

    def knows(self, request: Request) -> bool:
        return True

    def answer(self, channel: Channel, request: Request) -> bool:
        return self._answer(channel, request)


Sites = Callable[..., Site]


@pytest.fixture
def sites() -> Iterator[Sites]:
    """Starts servers; all end with the test."""
    ends: list[Any] = []

    def start(
        *,
        n_threads: int = 2,
        max_waiting: int = 100,
        inline: Callable[[Channel, Request], bool] = lambda _channel, _request: False,
        **limits: Any,
    ) -> Site:
        running = _running(n_threads, max_waiting, inline, Limits(**limits))
        ends.append(running)
        return running.__enter__()

    yield start
    for running in ends:
        running.__exit__(None, None, None)


@contextmanager
def _running(
    n_threads: int, max_waiting: int, inline: Callable[[Channel, Request], bool], limits: Limits
) -> Iterator[Site]:
    listener = socket.create_server(("127.0.0.1", 0))
    pool = Pool(n_threads, max_waiting)
    site = Site(listener.getsockname()[1])
    site.server = server = HttpServer(ResponseFrame(site.application), listener, pool, limits, Inline(inline))
    ending = threading.Event()

    def serve() -> None:
        while not ending.is_set():
            server.turn(TURN_S)
            site.n_turns += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield site
    finally:
        site.gate.set()
        for client in site.clients:
            client.close()
        ending.set()
        thread.join()
        pool.shutdown(timeout=FEW_S)
        server.close()
        listener.close()


@pytest.fixture
def site(sites: Sites) -> Site:
    """One server with ordinary limits."""
    return sites()
