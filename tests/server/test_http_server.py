"""The door: who is let in and when, what is left alone, and what ends the loop."""

import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmserver.server.http_server import LET_IN_A_TURN, HttpServer, Limits
from mmserver.server.pool import Pool

GET = b"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Door:
    """A server that takes turns only when a test says so, and those who come to it."""

    def __init__(self, **limits: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._pool = Pool(1, 10)
        self._visitors: list[socket.socket] = []
        self.server = HttpServer(self._application, self._listener, self._pool, Limits(**limits))

    def visit(self, n_visitors: int) -> list[socket.socket]:
        new = [socket.create_connection(self._listener.getsockname(), timeout=60) for _ in range(n_visitors)]
        self._visitors += new
        return new

    def n_inside_after_a_turn(self) -> int:
        self.server.turn(0.1)
        return len(self.server.active_channels)

    def close(self) -> None:
        for visitor in self._visitors:
            visitor.close()
        self._pool.shutdown(timeout=60)
        self.server.close()
        self._listener.close()

    @staticmethod
    def _application(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "0")])
        return []


@pytest.fixture
def doors() -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def make(**limits: Any) -> Door:
        made.append(Door(**limits))
        return made[-1]

    yield make
    for door in made:
        door.close()


def test_all_who_connect_at_once_are_let_in_within_one_turn(doors: Any) -> None:
    door = doors()
    door.visit(64)
    assert door.n_inside_after_a_turn() == 64


def test_a_crowd_is_let_in_over_several_turns_so_that_those_inside_are_answered_between(doors: Any) -> None:
    door = doors()
    door.visit(LET_IN_A_TURN + 30)
    assert door.n_inside_after_a_turn() == LET_IN_A_TURN
    assert door.n_inside_after_a_turn() == LET_IN_A_TURN + 30


def test_no_more_are_let_in_than_the_connection_limit(doors: Any) -> None:
    door = doors(connection_limit=10)
    door.visit(20)
    assert [door.n_inside_after_a_turn() for _ in range(3)] == [10, 10, 10]
    assert door.server.has_visitors()


def test_waitress_closes_no_idle_connection_by_its_own_clock(site: Any) -> None:
    """It compares a wall clock with times that other clocks may have given, each `cleanup_interval`."""
    client = site.connect()
    assert client.ask(GET).status == 200
    waitress_server = site.server._server
    for channel in site.server.active_channels.values():
        channel.last_activity = 0.0
    waitress_server.next_channel_cleanup = 0
    site.until(lambda: waitress_server.next_channel_cleanup)
    site.take_turns(3)
    assert client.ask(GET).status == 200


def test_without_files_for_connections_it_waits_idle_and_lets_in_whoever_waited_once_there_are(
    doors: Any, caplog: Any
) -> None:
    door = doors()
    visitors = door.visit(3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_lowest_free_fd(), hard))
    try:
        begun, n_turns = time.monotonic(), 0
        while time.monotonic() - begun < 1.5:
            assert door.n_inside_after_a_turn() == 0
            n_turns += 1
        assert n_turns < 1000  # where it does not wait, it takes tens of thousands
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [record.getMessage() for record in caplog.records if "nobody else is let in" in record.message] != []
    deadline = time.monotonic() + 60
    while door.n_inside_after_a_turn() < 3:
        assert time.monotonic() < deadline
    visitors[0].sendall(GET)
    while not select.select(visitors[:1], [], [], 0)[0]:
        door.server.turn(0.1)
        assert time.monotonic() < deadline
    assert visitors[0].recv(100).startswith(b"HTTP/1.1 200")


def test_the_loop_ends_with_an_error_when_its_own_socket_fails(doors: Any) -> None:
    """waitress would close it, and run on with nobody to answer."""
    door = doors()
    door.server._listener.shutdown(socket.SHUT_RDWR)
    with pytest.raises(RuntimeError, match="own socket"):
        door.n_inside_after_a_turn()


def _lowest_free_fd() -> int:
    with open(os.devnull) as file:
        return file.fileno()
