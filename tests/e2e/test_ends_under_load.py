"""The end of a server that has more to do than it can: what was accepted is answered, unless it is asked to hurry."""

import json
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.server.signals import SAME_WISH_S
from mmserver.server.workers import END_TIMEOUT_S


def is_shut(port: int) -> bool:
    """Whether nobody else is let in."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_under_load_answers_every_request_that_was_accepted(
    slow_server: Any, slow_request: Any, workers: str
) -> None:
    server = slow_server("--workers", workers, MMSERVER_MAX_QUEUE="100", GRACE_S="600")
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(24)]
    for client in clients:
        client.sendall(slow_request.head + slow_request.body)
    clients[0].recv(1, socket.MSG_PEEK)  # all came before, and most are still waiting for a thread
    server.process.send_signal(signal.SIGTERM)
    for client in clients:
        with client, client.makefile("rb") as file:
            head, _, content = file.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert json.loads(content)["prediction"]["expected_return"] == 3.0
    assert server.process.wait(60) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_sigterm_ends_it_without_those_who_still_wait_and_sighup_does_nothing(
    slow_server: Any, slow_request: Any, until: Callable[..., Any], workers: str
) -> None:
    server = slow_server("--workers", workers, MMSERVER_MAX_QUEUE="1000", MMSERVER_THREADS="1", GRACE_S="600")
    server.process.send_signal(signal.SIGHUP)
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(150)]
    for client in clients:
        client.sendall(slow_request.head + slow_request.body)
    with slow_server.hold():
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: is_shut(server.port), "it has heard the first")
        time.sleep(SAME_WISH_S + 0.1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0  # what is held is never answered
        assert time.monotonic() - began < END_TIMEOUT_S  # when a supervisor would kill its workers anyway
    for client in clients:
        client.close()
