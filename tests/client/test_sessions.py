"""A client is opened, closed and opened again, by whoever and whenever: it says which it is, and nothing is left over."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpcore
import pytest
from httpcore._backends.sync import SyncStream

from mmserver.client import ClientClosed, ModelClient, SignalValidator, SyncModelClient
from tests.client.conftest import LONG_S, Ask, Misbehaving, answer, threads_end
from tests.e2e.conftest import wait_until

Make = Callable[..., Misbehaving]
READY = answer("200 OK", b'{"status":"ok"}')
MODELS = answer("200 OK", b"[]")


def serve(connection: socket.socket, request: bytes) -> None:
    """A healthy server without models."""
    connection.sendall(READY if b"/readyz" in request else MODELS)


CALLS = [
    pytest.param(lambda c: c.list_models(), id="call"),
    pytest.param(lambda c: c.download_model("m", "X"), id="download"),
    pytest.param(lambda c: c.health_check(), id="health"),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_client_says_that_it_is_closed_and_how_to_open_it(
    call: Callable[[Any], Any], misbehaving: Make, cache_dir: Path, ask: Ask
) -> None:
    def closed(client: Any) -> Any:
        if isinstance(client, SyncModelClient):
            client.cleanup()
            return call(client)

        async def run() -> Any:
            await client.cleanup()
            return await call(client)

        return run()

    server = misbehaving(serve)
    with pytest.raises(ClientClosed, match=r"closed by cleanup\(\); initialize\(\) opens it again"):
        ask(server.url, closed, cache_dir=cache_dir)
    assert server.requests == []


def test_a_client_that_is_opened_again_works_as_the_first_time(misbehaving: Make) -> None:
    server = misbehaving(serve)
    client = SyncModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=0.05)
    with threads_end():
        for _ in range(3):
            client.initialize()
            assert (client.available, client.is_initialized, client.list_models()) == (True, True, [])
            n_asked = len(server.requests)
            wait_until(lambda n_asked=n_asked: len(server.requests) > n_asked, "another look at the server's health")
            client.cleanup()
            client.cleanup()
            assert (client.available, client.is_initialized) == (False, False)
            with pytest.raises(ClientClosed):
                client.list_models()
            with pytest.raises(RuntimeError, match="initialize"):
                SignalValidator(client).decide("X", "BUY", 0.5, [1.0])


def test_an_async_client_that_is_opened_again_works_as_the_first_time_also_in_another_event_loop(
    misbehaving: Make,
) -> None:
    server = misbehaving(serve)
    client = ModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=0.05)

    async def use() -> None:
        await client.initialize()
        assert (client.available, client.is_initialized, await client.list_models()) == (True, True, [])
        n_asked = len(server.requests)
        while len(server.requests) <= n_asked:
            await asyncio.sleep(0.01)
        await client.cleanup()
        await client.cleanup()
        assert (client.available, client.is_initialized) == (False, False)
        with pytest.raises(ClientClosed):
            await client.list_models()
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("mmserver")] == []

    async def twice() -> None:
        await use()
        await use()

    asyncio.run(asyncio.wait_for(twice(), 2 * LONG_S))
    asyncio.run(asyncio.wait_for(use(), 2 * LONG_S))


def test_a_watch_of_a_closed_client_does_not_begin(misbehaving: Make) -> None:
    client = SyncModelClient(misbehaving(serve).url)
    client.cleanup()
    with pytest.raises(ClientClosed):
        next(client.watch("m", "X"))

    async def run() -> None:
        client = ModelClient(misbehaving(serve).url)
        await client.cleanup()
        with pytest.raises(ClientClosed):
            await anext(client.watch("m", "X"))

    asyncio.run(run())


def test_a_watch_that_was_closed_stays_so_when_the_client_is_opened_again(misbehaving: Make) -> None:
    arrived = threading.Event()

    def hang(_: socket.socket, request: bytes) -> None:
        if b"/model/" in request:
            arrived.set()

    server = misbehaving(hang)
    client, seen = SyncModelClient(server.url, health_timeout_s=0.05), []
    watching = threading.Thread(target=lambda: seen.extend(client.watch("m", "X")))
    watching.start()
    assert arrived.wait(LONG_S)
    client.cleanup()
    client.initialize()
    watching.join(LONG_S)
    assert not watching.is_alive()
    assert seen == []
    client.cleanup()


def test_threads_that_open_one_client_at_once_share_its_connections_and_one_watch(misbehaving: Make) -> None:
    server = misbehaving(serve)
    client = SyncModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=3600)
    with threads_end():
        client.cleanup()
        threads = [threading.Thread(target=client.initialize) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        assert client.list_models() == []
        assert server.paths().count("GET /readyz") == 1
        client.cleanup()


def test_whoever_is_cancelled_while_a_client_is_closed_is_cancelled_and_the_client_is_closed(misbehaving: Make) -> None:
    server = misbehaving(serve)

    async def run() -> None:
        client = ModelClient(server.url, health_timeout_s=LONG_S)
        await client.initialize()
        closing = asyncio.create_task(client.cleanup())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        with pytest.raises(ClientClosed):
            await client.list_models()
        assert [task for task in asyncio.all_tasks() if task.get_name().startswith("mmserver")] == []
        async with client:
            assert await client.list_models() == []

    asyncio.run(run())


def test_whoever_is_cancelled_while_a_client_is_opened_can_open_it_later(misbehaving: Make) -> None:
    arrived = threading.Event()
    server = misbehaving(lambda *_: arrived.set())

    async def run() -> None:
        client = ModelClient(server.url, health_timeout_s=LONG_S)
        opening = asyncio.create_task(client.initialize())
        while not arrived.is_set():
            await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert not client.is_initialized
        server.behave = serve
        async with client:
            assert client.available

    asyncio.run(run())


def test_no_socket_is_closed_under_a_thread_that_reads_from_it(
    misbehaving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number would be given to the next one that is opened, and the thread would wait on that."""
    reading, closed = threading.Event(), threading.Event()
    sockets: list[tuple[socket.socket, bool]] = []
    read = SyncStream.read

    def read_late(stream: Any, *args: Any, **options: Any) -> Any:
        reading.set()
        assert closed.wait(LONG_S)
        sockets.append((stream._sock, stream._sock.fileno() >= 0))
        return read(stream, *args, **options)

    monkeypatch.setattr(SyncStream, "read", read_late)
    client, caught = SyncModelClient(misbehaving(lambda *_: None).url), []

    def ask() -> None:
        with pytest.raises(ClientClosed) as raised:
            client.list_models()
        caught.append(raised)

    thread = threading.Thread(target=ask)
    thread.start()
    assert reading.wait(LONG_S)
    client.cleanup()
    closed.set()
    thread.join(LONG_S)
    assert len(caught) == 1
    [(used, was_open)] = sockets
    assert was_open
    assert used.fileno() == -1, "it is left open"


# --- the watching of health -------------------------------------------------------------------------------------------


class Broken:
    """The library beneath, failing in a way that it never says it would, while `is_so`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_so = True
        self.n_met = 0
        for backend in (httpcore.SyncBackend, httpcore.AnyIOBackend):
            monkeypatch.setattr(backend, "connect_tcp", self._failing(backend.connect_tcp))

    def _failing(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        def connect_or_fail(*args: Any, **options: Any) -> Any:
            if self.is_so:
                self.n_met += 1
                raise LookupError("nobody expects this")
            return connect(*args, **options)

        return connect_or_fail


def serve_once(connection: socket.socket, _: bytes) -> None:
    """Healthy; each question needs a connection of its own."""
    connection.sendall(answer("200 OK", b'{"status":"ok"}', Connection="close"))
    connection.close()


def said_at(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [record.levelno for record in caplog.records if "cannot be asked for" in record.getMessage()]


def test_the_watching_of_health_survives_whatever_is_raised_and_says_so_once(
    misbehaving: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broken, server = Broken(monkeypatch), misbehaving(serve_once)
    with threads_end(), SyncModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=0.02) as client:
        wait_until(lambda: broken.n_met >= 3, "checks that fail")
        assert not client.available
        broken.is_so = False
        wait_until(lambda: client.available, "the server to be available")
        broken.is_so = True
        wait_until(lambda: not client.available, "the server to be away again")
    levels = said_at(caplog)
    assert levels[0] == logging.WARNING
    assert set(levels[1:]) == {logging.DEBUG}


def test_the_watching_of_health_in_a_task_survives_whatever_is_raised_and_says_so_once(
    misbehaving: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broken, server = Broken(monkeypatch), misbehaving(serve_once)

    async def run() -> None:
        async with ModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=0.02) as client:
            for is_broken in (True, False, True):
                broken.is_so, broken.n_met = is_broken, 0
                while client.available is is_broken or broken.n_met < 3 * is_broken:
                    await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 2 * LONG_S))
    levels = said_at(caplog)
    assert levels[0] == logging.WARNING
    assert set(levels[1:]) == {logging.DEBUG}
