"""Ten times more than it can do, and clients that do their worst: the rest is refused at once, and nothing is lost for good."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

N_CLIENTS = 40
N_ROUNDS = 5
N_THREADS = 2
MAX_QUEUE = 4


@contextmanager
def together(work: Any, n_threads: int) -> Iterator[list[threading.Thread]]:
    """Runs it in threads, which end within the block or soon after it."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(n_threads)]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def ask_at_once(server: Any, clients: list[Any]) -> list[Any]:
    """Send a prediction by each; those that have an answer once the server has seen them all, the others being at work or waiting."""
    for client in clients:
        client.send_prediction()
    server.see_what_was_sent()
    answered = select.select([client.connection.sock for client in clients], [], [], 0)[0]
    return [client for client in clients if client.connection.sock in answered]


def has_lost_nothing(server: Any, slow_server: Any, clients: list[Any]) -> bool:
    """Whether all that can run or wait at once does: a thread that was lost would leave one of them without room."""
    with slow_server.hold():
        refused = ask_at_once(server, clients[: N_THREADS + MAX_QUEUE])
    statuses = [client.read().status for client in clients[: N_THREADS + MAX_QUEUE]]
    assert statuses.count(503) == len(refused)
    return set(statuses) == {200}


@pytest.mark.parametrize("inline", ["true", "false"])
def test_past_the_queue_all_is_refused_at_once_and_soon_after_all_is_answered_again(
    slow_server: Any, clients_of: Any, until: Any, free_port: Any, inline: str
) -> None:
    """Each is held at work or in the queue, or refused meanwhile."""
    probe_port = free_port()
    server = slow_server(
        MMSERVER_THREADS=str(N_THREADS),
        MMSERVER_MAX_QUEUE=str(MAX_QUEUE),
        MMSERVER_INLINE=inline,
        MMSERVER_PROBE_PORT=str(probe_port),
        MMSERVER_CONNECTION_LIMIT="60",
    )
    clients = clients_of(server, N_CLIENTS)
    # Where the I/O thread answers nothing by itself, probes have a port of their own.
    (live,) = clients_of(server, 1, **({} if inline == "true" else {"port": probe_port}))
    refused: list[Any] = []
    with slow_server.hold():
        unanswered = clients
        for _ in range(N_ROUNDS):
            unlucky = ask_at_once(server, unanswered)
            refused += [client.read() for client in unlucky]
            unanswered = unlucky
            assert live.ask("GET", "/livez").status == 200
        held = [client for client in clients if client not in unlucky]
        # How many wait is counted while threads take from the queue: one more may be let in for each.
        assert N_THREADS + MAX_QUEUE <= len(held) <= 2 * N_THREADS + MAX_QUEUE
    assert {one.status for one in refused} == {503}
    assert len(refused) >= N_ROUNDS * len(unlucky)
    assert {one.body["code"] for one in refused} == {"queue_full"}
    assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)
    answered = [client.read() for client in held]
    assert [one.status for one in answered] == [200] * len(held)
    assert {one.body["prediction"]["expected_return"] for one in answered} == {3.0}

    assert {client.predict().status for client in clients} == {200}
    until(lambda: has_lost_nothing(server, slow_server, clients), "it has room for as many as before")
    for client in clients:
        client.connection.close()
    again = clients_of(server, 55)
    assert {client.ask("GET", "/livez").status for client in again} == {200}
    until(lambda: server.get("/readyz")["checks"]["workers"]["refused"] >= len(refused), "they are counted")


def test_slow_clients_at_the_connection_limit_do_not_keep_others_out(
    slow_server: Any, clients_of: Any, slow_request: Any
) -> None:
    server = slow_server(
        MMSERVER_THREADS=str(N_THREADS),
        MMSERVER_MAX_QUEUE=str(MAX_QUEUE),
        MMSERVER_CONNECTION_LIMIT="12",
    )
    server.client.close()
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(12)]
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
    slow_server: Any, clients_of: Any, slow_request: Any, until: Any
) -> None:
    server = slow_server(
        MMSERVER_THREADS=str(N_THREADS), MMSERVER_MAX_QUEUE=str(MAX_QUEUE), MMSERVER_CONNECTION_LIMIT="10"
    )
    server.client.close()
    whole = slow_request.head + slow_request.body
    for round_ in range(60):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(whole[: (20, len(slow_request.head) + 5, len(whole))[round_ % 3]])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    clients = clients_of(server, 10)
    until(lambda: all(client.predict().status == 200 for client in clients), "nobody is refused")
    for client in clients[N_THREADS + MAX_QUEUE :]:
        client.connection.close()
    until(lambda: has_lost_nothing(server, slow_server, clients), "it has room for as many as before")
    assert server.stop() == 0
    assert " ERROR " not in server.log
