"""Ten times more than it can do, and clients that do their worst: the rest is refused at once, and nothing is lost for good."""

import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

N_CLIENTS = 40
PAUSE_S = 0.1
"""Of a client that was refused; together they ask ten times as often as two threads can answer."""
OVERLOAD_S = 2.0
N_THREADS = 2
MAX_QUEUE = 4


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def together(work: Any, n_threads: int) -> Iterator[list[threading.Thread]]:
    """Runs it in threads, which end within the block or soon after it."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize("inline", ["true", "false"])
def test_past_the_queue_all_is_refused_at_once_and_soon_after_all_is_answered_again(
    slow_server: Any, clients_of: Any, inline: str
) -> None:
    probe_port = free_port()
    server = slow_server(
        MMSERVER_THREADS=str(N_THREADS),
        MMSERVER_MAX_QUEUE=str(MAX_QUEUE),
        MMSERVER_INLINE=inline,
        MMSERVER_PROBE_PORT=str(probe_port),
        MMSERVER_CONNECTION_LIMIT="60",
    )
    seen: list[Any] = []
    clients = clients_of(server, N_CLIENTS)
    ends_at = time.monotonic() + OVERLOAD_S

    def ask_on(number: int) -> None:
        while time.monotonic() < ends_at:
            seen.append(clients[number].predict())
            if seen[-1].status != 200:
                time.sleep(PAUSE_S)

    # Where the I/O thread answers nothing by itself, probes have a port of their own.
    (live,) = clients_of(server, 1, **({} if inline == "true" else {"port": probe_port}))
    with together(ask_on, N_CLIENTS):
        while time.monotonic() < ends_at:
            alive = live.ask("GET", "/livez")
            assert (alive.status, alive.took_s < 2) == (200, True)
            time.sleep(0.05)
    refused = [one for one in seen if one.status == 503]
    answered = [one for one in seen if one.status == 200]
    assert len(refused) + len(answered) == len(seen)
    assert len(refused) > 3 * len(answered) > 0
    assert {one.body["code"] for one in refused} == {"queue_full"}
    assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)
    assert statistics.median(one.took_s for one in refused) < 0.05
    assert {one.body["prediction"]["expected_return"] for one in answered} == {3.0}

    began = time.monotonic()
    assert {client.predict().status for client in clients} == {200}
    assert time.monotonic() - began < 10
    # All that can run or wait at once does: a thread that was lost would leave one of them without room.
    at_once: list[Any] = []
    with together(lambda number: at_once.append(clients[number].predict()), N_THREADS + MAX_QUEUE):
        pass
    assert [one.status for one in at_once] == [200] * (N_THREADS + MAX_QUEUE)
    for client in clients:
        client.connection.close()
    again = clients_of(server, 55)
    assert {client.ask("GET", "/livez").status for client in again} == {200}
    assert server.get("/readyz")["checks"]["workers"]["refused"] > 0


def test_slow_clients_at_the_connection_limit_do_not_keep_others_out(
    slow_server: Any, clients_of: Any, slow_request: Any
) -> None:
    server = slow_server(
        MMSERVER_THREADS=str(N_THREADS),
        MMSERVER_MAX_QUEUE=str(MAX_QUEUE),
        MMSERVER_CONNECTION_LIMIT="12",
        MMSERVER_REQUEST_DEADLINE_S="2",
    )
    server.client.close()
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(12)]
    ending = threading.Event()
    for client in slow[:4]:
        client.sendall(b"POST /predict HTTP/1.1\r\nX: ")
    for client in slow[4:8]:
        client.sendall(slow_request.head.replace(b"Length: ", b"Length: 1"))
    for client in slow[8:]:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)

    def drip(_number: int) -> None:
        while not ending.wait(0.2):
            for client in slow[:8]:
                try:
                    client.sendall(b"x")
                except OSError:
                    continue  # it has been let go

    with together(drip, 1):
        try:
            for _ in range(3):
                (other,) = clients_of(server, 1)
                assert other.predict().status == 200
                other.connection.close()
        finally:
            ending.set()
    for client in slow:
        client.close()
    assert [client.predict().status for client in clients_of(server, 12)] == [200] * 12


def test_clients_that_leave_in_the_middle_take_no_thread_and_no_connection_with_them(
    slow_server: Any, clients_of: Any, slow_request: Any
) -> None:
    server = slow_server(
        MMSERVER_THREADS=str(N_THREADS), MMSERVER_MAX_QUEUE=str(MAX_QUEUE), MMSERVER_CONNECTION_LIMIT="10"
    )
    server.client.close()
    whole = slow_request.head + slow_request.body
    for round_ in range(60):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(whole[: (20, len(slow_request.head) + 5, len(whole))[round_ % 3]])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    clients = clients_of(server, 10)
    deadline = time.monotonic() + 10
    while any(client.predict().status != 200 for client in clients):
        assert time.monotonic() < deadline
    at_once: list[int] = []
    with together(lambda number: at_once.append(clients[number].predict().status), N_THREADS + MAX_QUEUE):
        pass
    assert at_once == [200] * (N_THREADS + MAX_QUEUE)
    assert server.stop() == 0
    assert " ERROR " not in server.log
