"""A real server for the client, small real models for it, and sockets that misbehave."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mmserver.client import ModelClient, SyncModelClient
from tests.e2e.conftest import Artifacts, Server, Servers, artifacts, servers, shared_servers

__all__ = ["artifacts", "servers", "shared_servers"]

LONG_S = 60.0
"""What only somebody who waits in vain takes, on however slow a machine."""
Ask = Callable[..., Any]
"""`ask(url, lambda client: client.predict(…), **options)`: the same with either client."""


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """One call by a client that is made for it, and closed after it."""

    def ask_sync(url: str, call: Callable[[Any], Any], **options: Any) -> Any:
        client = SyncModelClient(url, **options)
        try:
            return call(client)
        finally:
            client.cleanup()

    def ask_async(url: str, call: Callable[[Any], Any], **options: Any) -> Any:
        async def run() -> Any:
            client = ModelClient(url, **options)
            try:
                return await call(client)
            finally:
                await client.cleanup()

        return asyncio.run(run())

    return ask_sync if request.param == "sync" else ask_async


@pytest.fixture(scope="session")
def server(shared_servers: Servers) -> Server:
    """One server for all tests that only add models of their own."""
    return shared_servers.start()


@pytest.fixture(scope="session")
def alpha(server: Server, artifacts: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that nobody changes: BTCUSDT and ETHUSDT."""
    directory = tmp_path_factory.mktemp("artifacts") / "alpha"
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 0)
    artifacts.write(directory, "ETHUSDT_mid_chg_1m", 1)
    server.register("alpha", directory)
    return "alpha"


Behaviour = Callable[[socket.socket, bytes], None]
"""What is done with a connection on which a request has arrived."""


class Misbehaving:
    """A listening socket; each request is handed to the behaviour, which may change while it runs."""

    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.requests: list[bytes] = []
        self.keep_bodies = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def paths(self) -> list[str]:
        """Method and path of each request."""
        return [request.split(b" HTTP/", 1)[0].decode() for request in self.requests]

    def close(self) -> None:
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while request := _read_request(connection, self.keep_bodies):
                self.requests.append(request)
                self.behave(connection, request)


def _read_request(connection: socket.socket, keep_body: bool) -> bytes:
    """Header and body of one request; empty at the end of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    n_read = len(body)
    while n_read < length:
        more = connection.recv(65536)
        if not more:
            return b""
        n_read += len(more)
        if keep_body:
            body += more
    return head + b"\r\n\r\n" + body


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; `_` in header names stands for `-`."""
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body)}",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.fixture
def misbehaving() -> Iterator[Callable[[Behaviour], Misbehaving]]:
    """Makes sockets that misbehave, and ends them."""
    made: list[Misbehaving] = []

    def make(behave: Behaviour) -> Misbehaving:
        made.append(Misbehaving(behave))
        return made[-1]

    yield make
    for one in made:
        one.close()


@contextmanager
def threads_end() -> Iterator[None]:
    """No thread of a client's outlives the block."""
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("mmserver")] == []


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's environment says must not matter."""
    for name in ("MMSERVER_URL", "MMSERVER_API_KEY", "ML_WEIGHT", "ML_MIN_CONFIDENCE"):
        monkeypatch.delenv(name, raising=False)
