"""Clients that want more than their share: of memory, of the I/O thread, of connections."""

import json
import socket
from typing import Any

import pytest

from mmserver.server.connections import MAX_UNSENT_BYTES
from mmserver.server.requests import MAX_CHUNK_LINE_BYTES

HOST = b"Host: localhost\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
MEGABYTE = 1_000_000


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), HOST)


def in_io_thread(channel: Any, _request: Any) -> bool:
    channel.service()
    return True


def in_pool(_channel: Any, _request: Any) -> bool:
    return False


# --- answers that are not read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answers", [in_io_thread, in_pool])
def test_who_asks_on_without_reading_holds_up_only_itself_and_little_memory(sites: Any, answers: Any) -> None:
    """All at once, these answers would be more than waitress lets a connection have, and its I/O thread would wait for itself."""
    site = sites(n_threads=1, inline=answers)
    client = site.connect()
    client.send(get(f"/large?{MEGABYTE}") * 300)
    site.until(lambda: any(channel.is_held_back for channel in site.server.active_channels.values()))
    unsent = max(channel.total_outbufs_len for channel in site.server.active_channels.values())
    assert unsent <= MAX_UNSENT_BYTES + MEGABYTE + 1000
    assert site.connect().ask(get("/other")).status == 200
    for _ in range(300):
        assert len(client.answer().body) == MEGABYTE
    assert client.ask(get("/after")).body == b"/after 0"


@pytest.mark.parametrize("answers", [in_io_thread, in_pool])
def test_who_leaves_while_its_next_request_is_held_back_leaves_nothing_behind(sites: Any, answers: Any) -> None:
    site = sites(n_threads=1, inline=answers)
    client = site.connect()
    client.send(get(f"/large?{MEGABYTE}") * 50)
    site.until(lambda: any(channel.is_held_back for channel in site.server.active_channels.values()))
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()
    site.clients.remove(client)
    site.until(lambda: not site.server.active_channels)
    assert site.connect().ask(get("/other")).status == 200
    assert len(site.asked) < 50


# --- the I/O thread ---------------------------------------------------------------------------------------------------


def test_urgent_data_ends_the_connection_and_does_not_busy_the_loop(site: Any, caplog: Any) -> None:
    client = site.connect()
    assert client.ask(get("/a")).status == 200
    client.socket.send(b"!", socket.MSG_OOB)
    assert client.is_closed()
    assert site.waits_idle()
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize(
    "endless", [pytest.param(b"5;a=" + b"b" * 4000, id="size line"), pytest.param(b"0\r\nA: " + b"b" * 4000, id="trailers")]
)  # fmt: skip
def test_what_stands_between_chunks_may_not_go_on_without_end(site: Any, endless: bytes) -> None:
    """It is no body, so no limit of bodies ends it, and each piece that comes is searched from its start."""
    assert len(endless) > MAX_CHUNK_LINE_BYTES
    client = site.connect()
    client.send(CHUNKED)
    answer = client.ask(endless)
    assert (answer.status, site.asked) == (400, [])
    assert "too long" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize("trailer", [b"A: b\nC: d", b"A: b\r\n c", b"A: \x00b", b"A: b\rc"])
def test_trailers_that_two_readers_could_end_in_two_places_are_refused(site: Any, trailer: bytes) -> None:
    assert site.connect().ask(CHUNKED + b"0\r\n" + trailer + b"\r\n\r\n").status == 400
    assert site.asked == []


@pytest.mark.parametrize("piecewise", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("before", [b" ", b"\t", b"\n", b"\x0b", b"\r\r", b"\r\n ", b"\r\n\r\n\n"], ids=repr)
def test_only_empty_lines_may_stand_before_a_request(site: Any, before: bytes, piecewise: bool) -> None:
    client = site.connect()
    data = before + get("/a")
    for piece in [data[at : at + 1] for at in range(len(before) + 1)] if piecewise else [data]:
        client.send(piece)
    assert client.answer().status == 400
    assert site.asked == []


# --- connections ------------------------------------------------------------------------------------------------------


def test_who_sends_only_empty_lines_is_not_there_for_ever(clock: Any, sites: Any) -> None:
    """Each pair of them is a request of which nothing comes, and what follows begins another."""
    site = sites(request_deadline_s=20.0, idle_timeout_s=20.0)
    client = site.connect()
    client.send(b"\r")
    site.until(lambda: site.server.active_channels)
    began_at = clock.now_s
    while site.server.active_channels:
        assert clock.now_s - began_at < 60
        try:
            client.send(b"\n\r\n\r")
        except OSError:
            break
        clock.pass_s(1)
        site.take_turns()


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_shut_its_side_and_is_refused_for_want_of_room_is_let_go(sites: Any, version: bytes) -> None:
    site = sites(n_threads=1, max_waiting=1)
    held = [site.connect() for _ in range(3)]
    held[0].send(get("/held"))
    site.until(lambda: site.asked)
    held[1].send(get("/held"))
    site.until(lambda: site.server.pool.n_waiting() == 1)
    last = held[2]
    last.send(get("/x") + b"GET /held HTTP/" + version + b"\r\n" + HOST + b"\r\n")
    last.socket.shutdown(socket.SHUT_WR)
    assert last.answer().status == 503
    site.gate.set()
    last._file.read()
    site.until(lambda: len(site.server.active_channels) == 2)


def test_what_came_before_a_malformed_request_is_answered_although_the_client_shut_its_side(site: Any) -> None:
    client = site.connect()
    client.send(get("/held") + b"nonsense\r\n\r\n")
    client.socket.shutdown(socket.SHUT_WR)
    site.until(lambda: site.asked)
    site.take_turns()
    site.gate.set()
    assert client.answer().body == b"/held 0"
    assert client.answer().status == 400
    assert client.is_closed()


def test_a_body_announced_behind_another_request_is_asked_for(sites: Any) -> None:
    def answer(channel: Any, _request: Any) -> bool:
        channel.answered(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", closes=False)
        return True

    client = sites(inline=answer).connect()
    client.send(get("/a") + b"POST /b HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert client.answer().body == b"ok"
    assert client.answer().status == 100
    assert client.ask(b"abc").body == b"ok"


def test_slow_clients_that_fill_the_house_are_let_go_for_those_who_wait_outside(clock: Any, sites: Any) -> None:
    """Long before the deadline that they have while there is room."""
    site = sites(connection_limit=4, request_deadline_s=3600.0)
    slow = [site.connect() for _ in range(4)]
    slow[0].send(b"GET /a")
    slow[1].send(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 500\r\n\r\nabc")
    slow[2].send(CHUNKED + b"5\r\nab")
    slow[3].send(get("/large?30000000"))
    site.until(lambda: len(site.server.active_channels) == 4)
    outside = site.connect()
    outside.send(get("/b"))
    for _ in range(12):
        site.take_turns()
        clock.pass_s(1)
    assert outside.answer().status == 200
    assert slow[0].answer().status == 408
