"""Heads that were read before say the same again, and nothing of one request is left for another."""

from typing import Any

import pytest
from waitress.adjustments import Adjustments

from mmserver.server import requests
from mmserver.server.bodies import BodyRules
from mmserver.server.requests import FIELDS_OF_HEAD, MAX_HEAD_BYTES, KnownHeads, Request

MAX_BODY_BYTES = 1000
HOST = b"Host: localhost\r\n"
ADJUSTMENTS = Adjustments(max_request_header_size=MAX_HEAD_BYTES)
OWN = {"begun_at", "completed_at", "body_rcv", "_known_heads"}
"""What two requests that say the same still do not share."""


def read(data: bytes, known: KnownHeads, trusted_hosts: frozenset[str] = frozenset()) -> Request:
    """What comes of the bytes, in one piece as they arrive."""
    request = Request(BodyRules(MAX_BODY_BYTES), trusted_hosts, known, ADJUSTMENTS)
    while data and not request.completed:
        data = data[request.received(data) :]
    return request


def said(request: Request) -> dict[str, Any]:
    names = {*FIELDS_OF_HEAD, *vars(request)} - OWN
    found = {name: getattr(request, name, "missing") for name in names}
    return found | {"body": request.body(), "error": repr(request.error), "_refusal": repr(request._refusal)}


def n_known(known: KnownHeads) -> int:
    return len(known._fields_by_head)


WHOLE = [
    pytest.param(b"GET /a%20b?c=%41#d HTTP/1.1\r\n" + HOST + b"Accept: */*\r\n\r\n", id="GET"),
    pytest.param(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc", id="POST"),
    pytest.param(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n", id="POST of nothing"),
    pytest.param(b"GET /a HTTP/1.0\r\n\r\n", id="1.0"),
    pytest.param(b"GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", id="1.0 keep-alive"),
    pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", id="close"),
    pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: TE, Close\r\n\r\n", id="close among others"),
    pytest.param(b"GET http://localhost:80/a?b HTTP/1.1\r\n" + HOST + b"\r\n", id="a whole address"),
    pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"X-A: 1\r\nX-A: 2\r\nX_A: 3\r\n\r\n", id="a field twice"),
    pytest.param(b"\r\nGET /a HTTP/1.1\r\n" + HOST + b"\r\n", id="after an empty line"),
]


@pytest.mark.parametrize("trusted_hosts", [frozenset(), frozenset({"localhost"})], ids=["any host", "trusted hosts"])
@pytest.mark.parametrize("data", WHOLE)
def test_a_head_that_was_read_before_gives_the_same_request_in_every_attribute(
    data: bytes, trusted_hosts: frozenset[str]
) -> None:
    known = KnownHeads()
    fresh, first, again = (read(data, heads, trusted_hosts) for heads in (KnownHeads(), known, known))
    assert said(again) == said(first) == said(fresh)
    assert again.completed
    assert (again.body_rcv is None) == (fresh.body_rcv is None)
    is_refused = trusted_hosts and b"Host" not in data
    assert n_known(known) == (0 if is_refused else 1)
    assert bool(fresh.error) == bool(is_refused)


@pytest.mark.parametrize("data", WHOLE)
def test_the_fields_that_are_kept_are_all_that_a_head_sets(data: bytes) -> None:
    """Otherwise a head from memory would lack something, and no other test knows what."""
    request = Request(BodyRules(MAX_BODY_BYTES), (), KnownHeads(), ADJUSTMENTS)
    request._parse_strictly(data.lstrip().partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    before = vars(Request(BodyRules(MAX_BODY_BYTES), (), KnownHeads(), ADJUSTMENTS))
    set_by_head = {name for name, value in vars(request).items() if name not in before or before[name] != value}
    assert set_by_head - {"begun_at", "_known_heads", "body_rcv"} <= set(FIELDS_OF_HEAD)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /a HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + HOST + b"\r\n", id="two hosts"),
        pytest.param(b"GET /a HTTP/2.0\r\n" + HOST + b"\r\n", id="2.0"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n", id="a space before the colon"),
        pytest.param(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 1001\r\n\r\n", id="a body too large"),
        pytest.param(b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\n", id="+1"),
        pytest.param(b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", id="gzip"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"A: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n", id="too large"),
    ],
)
@pytest.mark.parametrize("trusted_hosts", [frozenset(), frozenset({"localhost"})], ids=["any host", "trusted hosts"])
def test_a_head_that_was_refused_is_refused_every_time(data: bytes, trusted_hosts: frozenset[str]) -> None:
    known = KnownHeads()
    for _ in range(3):
        refused = read(data, known, trusted_hosts)
        assert refused.completed
        assert refused.error is not None
    assert n_known(known) == 0


@pytest.mark.parametrize(
    "field", [b"Transfer-Encoding: chunked", b"Expect: 100-continue\r\nContent-Length: 2", b"A: " + b"a" * 3000]
)
def test_heads_that_say_less_than_all_or_are_long_are_not_kept(field: bytes) -> None:
    known = KnownHeads()
    for _ in range(2):
        request = Request(BodyRules(MAX_BODY_BYTES), (), known, ADJUSTMENTS)
        request.received(b"POST /a HTTP/1.1\r\n" + HOST + field + b"\r\n\r\n")
        assert request.error is None
        assert request.headers_finished
        assert request.chunked == (b"chunked" in field)
        assert request.expect_continue == (b"Expect" in field)
    assert n_known(known) == 0


def test_heads_that_never_come_again_take_no_more_memory_than_some() -> None:
    known = KnownHeads()
    for number in range(3 * requests._MAX_KNOWN_HEADS):
        assert read(b"GET /%d HTTP/1.1\r\n" % number + HOST + b"\r\n", known).path == f"/{number}"
        assert n_known(known) <= requests._MAX_KNOWN_HEADS
    assert requests._MAX_KNOWN_HEADS * requests._MAX_KNOWN_BYTES <= 2 << 20


def test_bodies_under_one_head_are_each_their_own() -> None:
    known = KnownHeads()
    head = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n"
    bodies = [b"abc", b"def", b"ghi"]
    made = [read(head + body, known) for body in bodies]
    assert [request.body() for request in made] == bodies
    assert [request.get_body_stream().read() for request in made] == bodies
    half = Request(BodyRules(MAX_BODY_BYTES), (), known, ADJUSTMENTS)
    assert half.received(head + b"x") == len(head)
    half.received(b"x")
    assert not half.completed
    assert read(head + b"jkl", known).body() == b"jkl"
    half.received(b"yz")
    assert half.body() == b"xyz"


def test_headers_of_requests_with_one_head_are_each_their_own() -> None:
    known = KnownHeads()
    data = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
    for _ in range(3):
        request = read(data, known)
        assert request.headers == {"HOST": "localhost"}
        request.headers["HOST"] = request.headers["ADDED"] = "changed"


def test_a_head_that_differs_in_one_byte_is_another_head() -> None:
    known = KnownHeads()
    for length, body in ((3, b"abc"), (2, b"ab"), (3, b"xyz")):
        head = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % length
        assert read(head + body, known).body() == body
    assert n_known(known) == 2
