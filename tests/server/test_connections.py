"""What a connection lives through: pipelining, slow and vanished clients, more requests than there is room for."""

import json
import socket
from typing import Any

import pytest

from mmserver.server.connections import SLOWEST_BYTES_A_S

HOST = b"Host: localhost\r\n"
FULL_S = 30.0
"""The deadline of these tests."""


def get(path: str, *fields: bytes, version: bytes = b"1.1") -> bytes:
    return b"GET %b HTTP/%b\r\n%b%b\r\n" % (path.encode(), version, HOST, b"".join(field + b"\r\n" for field in fields))


# --- answers in order -------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_their_order(site: Any) -> None:
    client = site.connect()
    client.send(b"".join(get(f"/{number}") for number in range(50)))
    assert [client.answer().body for _ in range(50)] == [b"/%d 0" % number for number in range(50)]


def test_requests_that_come_while_one_is_worked_on_are_answered_after_it(site: Any) -> None:
    client = site.connect()
    client.send(get("/held"))
    site.until(lambda: site.asked)
    client.send(get("/next"))
    site.take_turns()  # the server has noticed it by now, and nothing may come of that
    site.gate.set()
    assert client.answer().body == b"/held 0"
    assert client.answer().body == b"/next 0"


def test_a_request_pipelined_behind_another_with_a_body_is_read_from_where_the_body_ends(site: Any) -> None:
    client = site.connect()
    client.send(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc" + get("/b"))
    assert [client.answer().body for _ in range(2)] == [b"/a 3", b"/b 0"]


def test_head_has_the_header_of_get_and_no_body(site: Any) -> None:
    client = site.connect()
    head = client.ask(b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n", to_head=True)
    got = client.ask(get("/a"))
    assert head.headers["content-length"] == got.headers["content-length"] == "4"
    assert got.body == b"/a 0"


def test_head_of_what_has_no_length_ends_with_the_header(site: Any) -> None:
    client = site.connect()
    assert client.ask(b"HEAD /stream HTTP/1.1\r\n" + HOST + b"\r\n", to_head=True).status == 200
    assert client.is_closed()


def test_a_304_leaves_the_connection_open(site: Any) -> None:
    client = site.connect()
    for _ in range(3):
        answer = client.ask(get("/unchanged"))
        assert answer.status == 304
        assert "connection" not in answer.headers


@pytest.mark.parametrize(
    ("request_bytes", "says", "closes"),
    [
        pytest.param(get("/a"), None, False, id="1.1"),
        pytest.param(get("/a", b"Connection: close"), "close", True, id="1.1 close"),
        pytest.param(get("/a", b"Connection: TE, Close"), "close", True, id="1.1 close among others"),
        pytest.param(get("/a", version=b"1.0"), "close", True, id="1.0"),
        pytest.param(get("/a", b"Connection: Keep-Alive", version=b"1.0"), "Keep-Alive", False, id="1.0 keep-alive"),
    ],
)
def test_the_connection_ends_when_the_client_says_so(
    site: Any, request_bytes: bytes, says: str | None, closes: bool
) -> None:
    client = site.connect()
    assert client.ask(request_bytes).headers.get("connection") == says
    if closes:
        assert client.is_closed()
    else:
        assert client.ask(request_bytes).status == 200


def test_a_bug_is_answered_without_its_text_and_the_connection_ends(site: Any, caplog: Any) -> None:
    client = site.connect()
    answer = client.ask(get("/broken"))
    problem = json.loads(answer.body)
    assert (answer.status, problem["code"]) == (500, "internal")
    assert "Zero" not in answer.body.decode()
    assert client.is_closed()
    assert "ZeroDivisionError" in caplog.text
    assert site.server.n_errors == 1
    assert site.connect().ask(get("/a")).status == 200


def test_a_client_that_shuts_its_side_gets_its_answer(site: Any) -> None:
    client = site.connect()
    client.send(get("/held"))
    client.socket.shutdown(socket.SHUT_WR)
    site.until(lambda: site.asked)
    site.take_turns()
    site.gate.set()
    assert client.answer().body == b"/held 0"
    assert client.is_closed()


# --- clients that vanish ----------------------------------------------------------------------------------------------


def reset(client: Any) -> None:
    """Vanish with an RST, as a killed process does with unread bytes."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client._file.close()
    client.socket.close()


def test_a_client_that_vanishes_in_the_middle_leaves_no_error_and_no_busy_loop(site: Any, caplog: Any) -> None:
    waiting, reading, sending = site.connect(), site.connect(), site.connect()
    waiting.send(get("/held"))
    reading.send(get("/large?30000000"))
    sending.send(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 100\r\n\r\nabc")
    site.until(lambda: len(site.asked) == 2)
    for client in (waiting, reading, sending):
        reset(client)
    site.until(lambda: not site.server.active_channels)
    site.gate.set()
    assert site.waits_idle()
    assert site.connect().ask(get("/a")).status == 200
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


def test_a_request_whose_client_is_gone_before_its_turn_is_not_worked_on(sites: Any) -> None:
    site = sites(n_threads=1)
    first, second = site.connect(), site.connect()
    first.send(get("/held"))
    site.until(lambda: site.asked)
    second.send(get("/second"))
    site.until(lambda: site.server.pool.n_waiting() == 1)
    reset(second)
    site.until(lambda: len(site.server.active_channels) == 1)
    site.gate.set()
    assert first.answer().status == 200
    assert site.connect().ask(get("/third")).status == 200
    assert [path for _, path, _ in site.asked] == ["/held", "/third"]


# --- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(get("/" + "a" * 500), id="header"),
        pytest.param(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 500\r\n\r\n" + b"x" * 500, id="body"),
        pytest.param(
            b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100, id="chunks"
        ),
    ],
)
def test_a_request_that_drips_in_is_ended_at_the_deadline(clock: Any, sites: Any, request_bytes: bytes) -> None:
    site = sites(request_deadline_s=FULL_S)
    client = site.connect()
    half = request_bytes.find(b"\r\n\r\n") + 4 if b"POST" in request_bytes else 10
    client.send(request_bytes[:half])
    for byte in request_bytes[half : half + int(FULL_S) - 1]:
        site.take_turns()
        (channel,) = site.server.active_channels.values()
        assert channel.request is not None
        clock.pass_s(1)
        client.send(bytes([byte]))
    site.take_turns()
    assert not channel.is_unreadable
    clock.pass_s(2)
    answer = client.answer()
    assert answer.status == 408
    assert json.loads(answer.body)["code"] == "request_timeout"
    site.until(lambda: clock.pass_s(1) or not site.server.active_channels)
    assert site.asked == []


def test_a_connection_that_never_asks_is_closed_at_the_deadline(clock: Any, sites: Any) -> None:
    site = sites(request_deadline_s=FULL_S)
    client = site.connect()
    site.until(lambda: site.server.active_channels)
    clock.pass_s(FULL_S - 1)
    site.take_turns()
    assert site.server.active_channels
    clock.pass_s(2)
    assert client.is_closed()


def test_an_idle_connection_is_closed_after_its_timeout_and_not_before(clock: Any, sites: Any) -> None:
    site = sites(request_deadline_s=FULL_S, idle_timeout_s=2 * FULL_S)
    client = site.connect()
    for _ in range(2):
        assert client.ask(get("/a")).status == 200
        site.settle()
        clock.pass_s(2 * FULL_S - 1)
        site.take_turns()
    clock.pass_s(2)
    assert client.is_closed()


def test_a_client_that_never_reads_is_dropped_and_holds_no_thread_meanwhile(clock: Any, sites: Any) -> None:
    site = sites(request_deadline_s=FULL_S, n_threads=1)
    deaf = site.connect()
    deaf.send(get("/large?30000000"))
    site.until(lambda: site.asked)
    other = site.connect()
    assert other.ask(get("/a")).status == 200
    site.settle()  # who leaves while the answer is being given is let go a sweep later
    other.close()
    site.clients.remove(other)
    site.until(lambda: len(site.server.active_channels) == 1)
    site.until(lambda: clock.pass_s(1) or not site.server.active_channels)


def test_a_client_that_reads_steadily_gets_all_of_a_large_answer_past_the_deadline(clock: Any, sites: Any) -> None:
    site = sites(request_deadline_s=FULL_S)
    client = site.connect()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    size = 40_000_000
    client.send(get(f"/large?{size}"))
    began_at, n_read = clock.now_s, 0
    while n_read < size:
        piece = client.socket.recv(1 << 20)
        assert piece, f"cut after {n_read} bytes"
        n_read += len(piece)
        clock.pass_s(len(piece) / (2 * SLOWEST_BYTES_A_S))
    assert clock.now_s - began_at > 2 * FULL_S


def test_a_request_that_is_worked_on_for_longer_than_the_deadline_is_answered(clock: Any, sites: Any) -> None:
    site = sites(request_deadline_s=FULL_S)
    client = site.connect()
    client.send(get("/held"))
    site.until(lambda: site.asked)
    clock.pass_s(3 * FULL_S)
    site.take_turns()
    site.gate.set()
    assert client.answer().status == 200


# --- more than there is room for --------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_takes_requests_again_when_it_has_room(sites: Any) -> None:
    site = sites(n_threads=1, max_waiting=2)
    held = [site.connect() for _ in range(3)]
    for number, client in enumerate(held):
        client.send(get("/held"))
        site.until(lambda: site.asked and site.server.pool.n_waiting() == number)  # noqa: B023
    refused = site.connect()
    answer = refused.ask(get("/a", b"X-Request-ID: mine"))  # while all others are held
    assert (answer.status, json.loads(answer.body)["code"]) == (503, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"] == "mine"
    site.gate.set()
    assert [client.answer().status for client in held] == [200] * 3
    assert refused.ask(get("/a")).status == 200
    assert site.server.n_refused == 1


def test_a_request_that_waited_past_the_deadline_is_not_worked_on(clock: Any, sites: Any) -> None:
    site = sites(n_threads=1, request_deadline_s=FULL_S)
    first, second = site.connect(), site.connect()
    first.send(get("/held"))
    site.until(lambda: site.asked)
    second.send(get("/late"))
    site.until(lambda: site.server.pool.n_waiting() == 1)
    clock.pass_s(FULL_S + 1)
    site.gate.set()
    assert first.answer().status == 200
    answer = second.answer()
    assert (answer.status, json.loads(answer.body)["code"]) == (503, "deadline_passed")
    assert [path for _, path, _ in site.asked] == ["/held"]
    assert second.ask(get("/again")).status == 200


def test_past_the_connection_limit_others_wait_and_are_let_in_when_one_leaves(sites: Any) -> None:
    site = sites(connection_limit=2)
    busy = [site.connect(), site.connect()]
    for client in busy:
        client.send(get("/held"))
    site.until(lambda: len(site.asked) == 2)
    late = site.connect()
    late.send(get("/a"))
    site.take_turns()
    assert len(site.server.active_channels) == 2
    site.gate.set()
    busy[0].answer()
    busy[0].close()
    assert late.answer().status == 200
    site.clients.remove(busy[0])


def test_idle_connections_make_room_for_those_who_wait_at_the_door(sites: Any) -> None:
    site = sites(connection_limit=3)
    idle = [site.connect() for _ in range(3)]
    for client in idle:
        client.ask(get("/a"))
    assert site.connect().ask(get("/b")).status == 200
