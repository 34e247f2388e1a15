"""What is no request, or could be read in two ways, is refused and its connection closed; what is one is read in one way."""

import json
from typing import Any

import pytest

HOST = b"Host: localhost\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, id="CL and TE"),
        pytest.param(POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", 400, id="two lengths"),
        pytest.param(POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 400, id="one length twice"),
        pytest.param(POST + b"Content-Length: +5\r\n\r\nabcde", 400, id="+5"),
        pytest.param(POST + b"Content-Length: -1\r\n\r\n", 400, id="-1"),
        pytest.param(POST + b"Content-Length: 5_0\r\n\r\n", 400, id="5_0"),
        pytest.param(POST + "Content-Length: \u00b2\r\n\r\n".encode("latin-1"), 400, id="a digit that is not ASCII"),
        pytest.param(POST + b"Content-Length:\r\n\r\n", 400, id="an empty length"),
        pytest.param(POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, id="a length of 5000 digits"),
        pytest.param(b"GET http://[a HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="a bracket that is not closed"),
        pytest.param(POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501, id="xchunked"),
        pytest.param(POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, id="gzip, chunked"),
        pytest.param(POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400, id="chunked twice"),
        pytest.param(POST + b"Transfer-Encoding:\r\n\r\n", 400, id="an empty coding"),
        pytest.param(POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", 400, id="a vertical tab before chunked"),
        pytest.param(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, id="TE in HTTP/1.0"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n", 400, id="a bare LF after a size"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n", 400, id="a size 0x5"),
        pytest.param(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdefg\r\n0\r\n\r\n", 400, id="a chunk too long"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\r\n c\r\n\r\n", 400, id="a folded line"),
        pytest.param(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, id="a folded first line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400, id="a space before the colon"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\x00c\r\n\r\n", 400, id="NUL in a value"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\x1fc\r\n\r\n", 400, id="a control character in a value"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\rc\r\n\r\n", 400, id="a bare CR in a value"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X-A: b\nX-B: c\r\n\r\n", 400, id="a bare LF between fields"),
        pytest.param(b"GET / HTTP/1.1\nHost: localhost\n\n", 400, id="bare LF throughout"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"no colon\r\n\r\n", 400, id="no colon"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b": empty\r\n\r\n", 400, id="no name"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no Host"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, id="two hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, id="a list of hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, id="a path in Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, id="an empty Host"),
        pytest.param(b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="two spaces"),
        pytest.param(b"GET /a\x00b HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="NUL in the path"),
        pytest.param(b"get / HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="a method in lower case"),
        pytest.param(b"GET /\r\n\r\n", 400, id="HTTP/0.9"),
        pytest.param(b"GET ftp://a/b HTTP/1.1\r\n" + HOST + b"\r\n", 400, id="another scheme"),
        pytest.param(b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505, id="HTTP/2.0"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, id="TLS"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * (17 << 10) + b"\r\n\r\n", 431, id="a header of 17 KiB"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * (17 << 10), 431, id="a header of 17 KiB without end"),
        pytest.param(b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 1000 + b"\r\n", 431, id="1000 fields"),
        pytest.param(b"GET /" + b"a" * (9 << 10) + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, id="an address of 9 KiB"),
        pytest.param(b"GET /" + b"a" * (64 << 10), 414, id="an address without end"),
        pytest.param(POST + b"Content-Length: 99999999\r\n\r\n", 413, id="a body too large"),
        pytest.param(POST + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n", 413, id="a large body announced"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_its_connection_closed(site: Any, request_bytes: bytes, status: int) -> None:
    client = site.connect()
    answer = client.ask(request_bytes)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-content-type-options"] == "nosniff"
    problem = json.loads(answer.body)
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    client.socket.shutdown(1)
    assert client.is_closed()
    assert site.asked == []


@pytest.mark.parametrize(
    ("request_bytes", "asked"),
    [
        pytest.param(POST + b"Content-Length: 3\r\n\r\nabc", ("POST", "/echo", b"abc"), id="a length"),
        pytest.param(POST + b"Content-Length: 0\r\n\r\n", ("POST", "/echo", b""), id="no body"),
        pytest.param(
            POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;a=b\r\nde\r\n0\r\nX-T: 1\r\n\r\n",
            ("POST", "/echo", b"abcde"), id="chunks with extension and trailer",
        ),
        pytest.param(b"\r\n\r\nGET /a HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "/a", b""), id="after empty lines"),
        pytest.param(b"GET http://localhost/a?b HTTP/1.1\r\nHost: x\r\n\r\n", ("GET", "/a", b""), id="a whole address"),
        pytest.param(b"GET /a%20b%2Fc?d#e HTTP/1.1\r\n" + HOST + b"\r\n", ("GET", "/a b/c", b""), id="percent signs"),
        pytest.param(b"GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", ("GET", "/a", b""), id="an address as host"),
        pytest.param(b"GET /a HTTP/1.1\r\nHOST:localhost \t\r\n\r\n", ("GET", "/a", b""), id="spaces around a value"),
        pytest.param(b"GET /a HTTP/1.1\r\n" + HOST + b"Content_Length: 9\r\n\r\n", ("GET", "/a", b""), id="an underscore"),
        pytest.param(
            POST + b"Content-Length: 0\r\nExpect: 100-continue\r\n\r\n", ("POST", "/echo", b""), id="Expect without a body"
        ),
    ],
)  # fmt: skip
def test_what_is_a_request_is_read_whether_it_comes_at_once_or_byte_by_byte(
    site: Any, request_bytes: bytes, asked: Any
) -> None:
    client = site.connect()
    assert client.ask(request_bytes).status == 200
    for index in range(len(request_bytes)):
        client.send(request_bytes[index : index + 1])
    assert client.answer().status == 200
    assert client.ask(request_bytes).status == 200  # and the connection is where it should be
    assert site.asked == [asked] * 3


def test_a_body_that_was_announced_is_asked_for(site: Any) -> None:
    client = site.connect()
    assert client.ask(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n").status == 100
    assert client.ask(b"abc").body == b"/echo 3"


def test_a_refused_body_does_not_keep_its_sender_from_reading_why(site: Any) -> None:
    """Closing while bytes are unread would reset the connection, and the answer would be lost."""
    client = site.connect()
    client.send(POST + b"Content-Length: 9000000\r\n\r\n")
    for _ in range(40):
        client.send(b"x" * 50_000)
    assert client.answer().status == 413


def test_a_body_of_just_the_limit_is_taken_and_a_byte_more_is_not(sites: Any) -> None:
    site = sites(max_body_bytes=10)
    assert site.connect().ask(POST + b"Content-Length: 10\r\n\r\n0123456789").body == b"/echo 10"
    assert (
        site.connect().ask(POST + b"Transfer-Encoding: chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n").body == b"/echo 10"
    )
    assert site.connect().ask(POST + b"Content-Length: 11\r\n\r\n").status == 413
    assert site.connect().ask(POST + b"Transfer-Encoding: chunked\r\n\r\n9\r\n012345678\r\n2\r\n90").status == 413


def test_a_large_body_is_whole(site: Any) -> None:
    body = bytes(range(256)) * (5 << 12)
    client = site.connect()
    assert client.ask(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body).status == 200
    chunks = b"".join(b"%x\r\n%b\r\n" % (70_001, body[at : at + 70_001]) for at in range(0, 70_001 * 74, 70_001))
    assert client.ask(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n").status == 200
    assert [asked[2] for asked in site.asked] == [body, body[: 70_001 * 74]]


def test_only_trusted_hosts_are_answered_whatever_the_port(sites: Any) -> None:
    site = sites(trusted_hosts=("models.example", "[::1]"))

    def ask(head: bytes) -> Any:
        return site.connect().ask(head + b"\r\n\r\n")

    assert ask(b"GET / HTTP/1.1\r\nHost: Models.Example:6300").status == 200
    assert ask(b"GET / HTTP/1.1\r\nHost: [::1]:6300").status == 200
    assert ask(b"GET http://models.example/ HTTP/1.1\r\nHost: evil.example").status == 200
    for head in (
        b"GET / HTTP/1.1\r\nHost: evil.example",
        b"GET / HTTP/1.1\r\nHost: models.example.evil.example",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: models.example",
        b"GET / HTTP/1.0",
    ):
        refused = ask(head)
        assert (refused.status, json.loads(refused.body)["code"]) == (400, "host_unknown"), head


def test_a_refusal_under_v2_has_the_body_of_that_protocol_and_the_id_of_its_client(site: Any) -> None:
    answer = site.connect().ask(
        b"POST /v2/models/a/infer HTTP/1.1\r\n" + HOST + b"X-Request-ID: mine\r\nContent-Length: 2\r\n\r\n{}"
    )
    assert answer.headers["x-request-id"] == "mine"
    refused = site.connect().ask(
        b"POST /v2/models/a/infer HTTP/1.1\r\n"
        + HOST
        + b"X-Request-ID: mine\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    )
    assert refused.status == 400
    assert json.loads(refused.body)["error"]
    assert refused.headers["x-request-id"] == "mine"


def test_nothing_after_a_refused_request_is_answered(site: Any) -> None:
    client = site.connect()
    smuggled = b"GET /admin HTTP/1.1\r\n" + HOST + b"\r\n"
    assert (
        client.ask(POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled).status == 400
    )
    client.send(smuggled)
    client.socket.shutdown(1)
    assert client.is_closed()
    assert site.asked == []
