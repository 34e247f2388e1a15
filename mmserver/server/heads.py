"""The head of a request, from bytes to values, with one meaning for each: what two readers could take differently is refused.

This stands in for waitress's own parser, which lets through what proxies read otherwise (a length beside chunks, folded lines,
several hosts) and looks at the header line by line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

from mmserver.errors import HostUnknown
from mmserver.server.refusals import RequestRefused

MAX_HEAD_BYTES = 16 << 10
MAX_URI_BYTES = 8 << 10
MAX_FIELDS = 100
END = b"\r\n\r\n"

_MAX_REMEMBERED = 512
_MAX_REMEMBERED_BYTES = 1024
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])\r\n")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)\r\n")
_FIELD_MARKS = len(b":\r\n")
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?#].*)?", re.IGNORECASE)
_HOST = re.compile(r"([A-Za-z0-9._~%!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A request's first line and header.

    `headers` has upper-case names with underscores, as WSGI has them; nobody changes it: equal heads share one.
    """

    method: str
    uri: str
    path: str
    """Percent-decoded, its bytes as Latin-1."""
    query: str
    version: str
    """`1.0` or `1.1`."""
    headers: Mapping[str, str]
    content_length: int
    is_chunked: bool
    expects_continue: bool
    closes: bool
    """The connection ends after the answer, because the client says so or knows no better."""


class HeadReader:
    """Reads heads under one server's rules; used by one thread.

    Clients send the same head again and again, so the newest ones are remembered: the same bytes mean the same.
    """

    def __init__(self, *, trusted_hosts: tuple[str, ...] = (), max_body_bytes: int) -> None:
        self._trusted_hosts = frozenset(host.lower() for host in trusted_hosts)
        self._max_body_bytes = max_body_bytes
        self._remembered: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """The head whose bytes these are, up to and with the empty line.

        Raises:
            RequestRefused: it is not HTTP, ambiguous, or asks for what is not done here.
            HostUnknown: it is meant for somebody else.
        """
        head = self._remembered.get(block)
        if head is None:
            head = self._read(block)
            if len(block) <= _MAX_REMEMBERED_BYTES:
                if len(self._remembered) >= _MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[block] = head
        return head

    def _read(self, block: bytes) -> Head:
        method, uri, version, rest = _split_request_line(block)
        headers = _headers(rest)
        authority, target = _authority_and_target(method, uri)
        if authority is not None:
            headers["HOST"] = authority
        self._check_host(headers.get("HOST"), version)
        content_length, is_chunked = self._framing(headers, version)
        path, _, query = target.partition(b"#")[0].partition(b"?")
        options = {option.strip().lower() for option in headers.pop("CONNECTION", "").split(",")}
        closes = "close" in options or (version == "1.0" and "keep-alive" not in options)
        if closes or version == "1.0":
            headers["CONNECTION"] = "close" if closes else "keep-alive"
        return Head(
            method=method,
            uri=uri.decode("latin-1"),
            path=(unquote_to_bytes(path) if b"%" in path else path).decode("latin-1"),
            query=query.decode("latin-1"),
            version=version,
            headers=headers,
            content_length=content_length,
            is_chunked=is_chunked,
            expects_continue=version == "1.1" and headers.get("EXPECT", "").lower() == "100-continue",
            closes=closes,
        )

    def _check_host(self, host: str | None, version: str) -> None:
        if host is None and (version == "1.1" or self._trusted_hosts):
            raise _bad("the Host header is missing") if version == "1.1" else HostUnknown()
        if host is not None:
            match = _HOST.fullmatch(host)
            if match is None:
                raise _bad("the Host header is not one host, with or without a port")
            if self._trusted_hosts and match[1].lower().rstrip(".") not in self._trusted_hosts:
                raise HostUnknown()

    def _framing(self, headers: dict[str, str], version: str) -> tuple[int, bool]:
        """How long the body is, and whether it comes in chunks."""
        encoding, length = headers.pop("TRANSFER_ENCODING", None), headers.get("CONTENT_LENGTH")
        if encoding is not None:
            if length is not None:
                raise _bad("Content-Length and Transfer-Encoding exclude each other")
            if version == "1.0":
                raise _bad("HTTP/1.0 has no Transfer-Encoding")
            codings = [coding.strip(" \t").lower() for coding in encoding.split(",")]
            if codings != ["chunked"]:
                if "" in codings or codings.count("chunked") > 1:
                    raise _bad("Transfer-Encoding is invalid")
                raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, "the only Transfer-Encoding is chunked")
            return 0, True
        if length is None:
            return 0, False
        if _LENGTH.fullmatch(length) is None:
            raise _bad("Content-Length is not one number")
        if int(length) > self._max_body_bytes:
            raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return int(length), False


def check_unfinished_head(begun: bytes) -> None:
    """Refuse early what cannot become a head any more.

    Raises:
        RequestRefused
    """
    if begun.count(b"\n") != begun.count(b"\r\n"):
        raise _bad("lines end with CR LF")
    if b"\r\n" not in begun and len(begun) > MAX_URI_BYTES:
        raise RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG)
    if len(begun) > MAX_HEAD_BYTES:
        raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


def _split_request_line(block: bytes) -> tuple[str, bytes, str, bytes]:
    """Method, URI, version, and the fields."""
    match = _REQUEST_LINE.match(block)
    if match is None:
        raise _bad("the request line is not HTTP")
    method, uri = match[1].decode("ascii"), match[2]
    if match[3] != b"1":
        raise RequestRefused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if len(uri) > MAX_URI_BYTES:
        raise RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG)
    if len(block) > MAX_HEAD_BYTES:
        raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if method != method.upper():
        raise _bad("methods are upper case")
    return method, uri, "1.0" if match[4] == b"0" else "1.1", block[match.end() : -2]


def _headers(fields: bytes) -> dict[str, str]:
    """The fields by name; several of one name are joined by commas.

    Names with underscores are left out: their WSGI names are those of others with hyphens.
    """
    found = _FIELD.findall(fields)
    if sum(len(name) + len(value) + _FIELD_MARKS for name, value in found) != len(fields):
        raise _bad("a header line is not `name: value`")
    if len(found) > MAX_FIELDS:
        raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    headers: dict[str, str] = {}
    for name, value in found:
        if b"_" in name:
            continue
        key = name.upper().replace(b"-", b"_").decode("ascii")
        text = value.strip(b" \t").decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers


def _authority_and_target(method: str, uri: bytes) -> tuple[str | None, bytes]:
    if uri.startswith(b"/") or (uri == b"*" and method == "OPTIONS"):
        return None, uri
    match = _ABSOLUTE.fullmatch(uri)
    if match is None:
        raise _bad("the URI is neither a path nor an http address")
    target = match[2] or b"/"
    return match[1].decode("latin-1"), target if target.startswith(b"/") else b"/" + target


def _bad(detail: str) -> RequestRefused:
    return RequestRefused(HTTPStatus.BAD_REQUEST, detail)
