"""One request as it comes in: waitress's own parser, which here refuses what two readers could understand differently."""

import logging
import re
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Any

from waitress.parser import HTTPRequestParser, ParsingError
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver

from mmserver.errors import DiskFull, HostUnknown, MmserverError, UploadTooLarge
from mmserver.server.bodies import BodyBuffer, BodyRules
from mmserver.server.refusals import RequestRefused
from mmserver.storage.files import NO_SPACE

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 << 10
MAX_URI_BYTES = 8 << 10
MAX_FIELDS = 100
MAX_CHUNK_LINE_BYTES = 1 << 10
"""Of a chunk's size with its extensions, and of all trailers; waitress reads on without end, again and again from the start."""
_MAX_KNOWN_HEADS = 512
_MAX_KNOWN_BYTES = 2 << 10
FIELDS_OF_HEAD = (
    *("first_line", "command", "request_uri", "version", "headers"),
    *("proxy_scheme", "proxy_netloc", "path", "query", "fragment", "url_scheme"),
    *("connection_close", "expect_continue", "content_length"),
)
"""All that the parser learns from a head, its receiver of the body apart."""

_ODD = re.compile(rb"[^\t\r\n\x20-\x7e\x80-\xff]|\r\n[ \t]|(?<!\r)\n|\r(?=[^\n])")
"""Control characters, folded lines, and line ends that are only half of one."""
_ODD_START = re.compile(rb"(?:\r\n)*(?:[ \t\n\x0b\x0c]|\r[^\n])")
"""What waitress would strip from before a head; only empty lines may stand there."""
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n(?!.*\r\ntransfer-encoding:)", re.DOTALL)
_OTHER_CODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*(?!chunked\b)[a-z]")
"""Which waitress refuses as not implemented."""
_HOST = re.compile(r"([A-Za-z0-9._~%!$&'()*+;=-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")


class KnownHeads:
    """What heads say that were read before: a client sends the same one again and again; reading it costs half a prediction.

    The same bytes are the same head. Only those whose body, if any, has a length are kept.
    """

    def __init__(self) -> None:
        self._fields_by_head: dict[bytes, dict[str, Any]] = {}

    def find(self, head: bytes) -> dict[str, Any] | None:
        """The fields that reading it would give; the headers are the caller's own."""
        fields = self._fields_by_head.get(head)
        return None if fields is None else fields | {"headers": fields["headers"].copy()}

    def keep(self, head: bytes, request: "Request") -> None:
        """Remember a head that was read without fault."""
        if len(head) > _MAX_KNOWN_BYTES or request.chunked or request.expect_continue:
            return
        if len(self._fields_by_head) >= _MAX_KNOWN_HEADS:
            self._fields_by_head.clear()
        fields = {name: getattr(request, name) for name in FIELDS_OF_HEAD}
        self._fields_by_head[head] = fields | {"headers": request.headers.copy()}


class Request(HTTPRequestParser):  # type: ignore[misc]
    """Takes bytes until the request is complete, or `error` says what it cannot be."""

    chunked: bool
    expect_continue: bool
    content_length: int
    headers: dict[str, str]
    proxy_scheme: str
    proxy_netloc: str
    error: Any
    """What waitress refuses it with, or one of ours (see `refusals.problem_from_refusal`)."""

    def __init__(self, bodies: BodyRules, trusted_hosts: Collection[str], known_heads: KnownHeads, adj: Any) -> None:
        super().__init__(adj)
        self.begun_at = time.monotonic()
        self.completed_at = 0.0
        self.n_received = 0
        self._bodies = bodies
        self._max_body_bytes = bodies.max_bytes
        self._trusted_hosts = trusted_hosts
        self._known_heads = known_heads
        self._refusal: RequestRefused | MmserverError | None = None

    def received(self, data: bytes) -> int:
        """Take what belongs to this request; returns how much of the data that is."""
        self.n_received += len(data)
        if self.body_rcv is None and _ODD_START.match(self.header_plus + data):
            self._refuse(RequestRefused(HTTPStatus.BAD_REQUEST, "only empty lines may stand before a request"))
            consumed = len(data)
        else:
            consumed = self._received(data)
        if self.body_rcv is not None and not self._refusal:
            if len(self.body_rcv) > self._max_body_bytes:
                self._refuse(self._too_large())
            elif self.chunked:
                self._check_chunks(self.body_rcv)
        elif not self.headers_finished:
            self._check_begun(data)
        if self.completed:
            self.completed_at = time.monotonic()
            self.error = self._refusal or self.error
            self.expect_continue = self.expect_continue and self.error is None
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        """Called once by waitress with the whole head, or with a stand-in for one that is too large."""
        if self.header_bytes_received >= self.adj.max_request_header_size:
            super().parse_header(header_plus)
            return
        known = self._known_heads.find(header_plus)
        if known is not None:
            self.__dict__.update(known)
            if self.content_length:
                self.body_rcv = FixedStreamReceiver(self.content_length, self._new_buffer())
            return
        try:
            self._parse_strictly(header_plus)
        except (RequestRefused, MmserverError) as refusal:
            self._refusal = refusal
            raise ParsingError("refused") from refusal
        self._known_heads.keep(header_plus, self)

    def body(self) -> bytes:
        """The whole body, which stays there to be read again."""
        if self.body_rcv is None:
            return b""
        buffer = self.body_rcv.getbuf()
        content: bytes = buffer.get(len(buffer))
        return content

    def _received(self, data: bytes) -> int:
        """As waitress's; what cannot be written to the file that a large body waits in becomes a refusal."""
        try:
            consumed: int = super().received(data)
        except OSError as error:
            log.warning("a body cannot be kept until it is whole: %s", error.strerror)
            lacks_space = error.errno in NO_SPACE
            self._refuse(DiskFull() if lacks_space else RequestRefused(HTTPStatus.INTERNAL_SERVER_ERROR))
            return len(data)
        return consumed

    def _new_buffer(self) -> BodyBuffer:
        """For the body of the request whose head was just read."""
        uploads = self._bodies.uploads
        if uploads is None or not uploads.takes(self.command, self.path, self.headers.get("CONTENT_TYPE", "")):
            return BodyBuffer(self.adj.inbuf_overflow)
        self._max_body_bytes = uploads.max_bytes
        return BodyBuffer(self.adj.inbuf_overflow, uploads.directory)

    def _too_large(self) -> RequestRefused | MmserverError:
        uploads = self._bodies.uploads
        if uploads is not None and self._max_body_bytes == uploads.max_bytes:
            return UploadTooLarge(what="the upload", setting="max_artifact_bytes", limit_bytes=uploads.max_file_bytes)
        return RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def _refuse(self, refusal: RequestRefused | MmserverError) -> None:
        self._refusal = refusal
        self.completed = True

    def _check_begun(self, data: bytes) -> None:
        """Find in a head that is not whole yet what no more bytes can mend."""
        if self.completed:
            if self.error is not None and b"\r\n" not in self.header_plus + data:
                self._refuse(RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG))
        elif _ODD.search(self.header_plus, max(0, len(self.header_plus) - len(data) - 2)):
            self._refuse(RequestRefused(HTTPStatus.BAD_REQUEST, "the header has control characters or folded lines"))

    def _check_chunks(self, receiver: ChunkedReceiver) -> None:
        """Refuse what stands between chunks, or after them, without being one."""
        if max(len(receiver.control_line), len(receiver.trailer)) > MAX_CHUNK_LINE_BYTES:
            self._refuse(RequestRefused(HTTPStatus.BAD_REQUEST, "a chunk's size line, or the trailers, are too long"))
        elif receiver.completed and _ODD.search(receiver.trailer):
            self._refuse(RequestRefused(HTTPStatus.BAD_REQUEST, "the trailers have control characters or folded lines"))

    def _parse_strictly(self, head: bytes) -> None:
        if _ODD.search(head):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "the header has control characters or folded lines")
        if head.count(b"\r\n") > MAX_FIELDS + 2:
            raise RequestRefused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if head.find(b"\r\n") > MAX_URI_BYTES:
            raise RequestRefused(HTTPStatus.REQUEST_URI_TOO_LONG)
        lowered = head.lower()
        if b"\r\ntransfer-encoding:" in lowered and not _CHUNKED.search(lowered) and not _OTHER_CODING.search(lowered):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "Transfer-Encoding is not just chunked")
        self._parse_as_waitress(head)
        if self.version not in ("1.0", "1.1"):
            status = HTTPStatus.HTTP_VERSION_NOT_SUPPORTED if self.version else HTTPStatus.BAD_REQUEST
            raise RequestRefused(status)
        if self.proxy_scheme not in ("", "http", "https"):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "the address is of another scheme")
        if self.body_rcv is not None:
            self.body_rcv.buf = self._new_buffer()
        if self.content_length > self._max_body_bytes:
            raise self._too_large()
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "Content-Length and Transfer-Encoding cannot stand together")
        if self.version == "1.0" and "TRANSFER_ENCODING" in self.headers:
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding")
        self._check_host()
        if "close" in self.headers.get("CONNECTION", "").lower():
            self.connection_close = any(
                option.strip().lower() == "close" for option in self.headers["CONNECTION"].split(",")
            )
        if self.expect_continue and not self.chunked and not self.content_length:
            self.expect_continue = False  # nothing is held back, and waitress would wait for it

    def _parse_as_waitress(self, head: bytes) -> None:
        try:
            super().parse_header(head)
        except ValueError as error:  # Python's own, of a length of thousands of digits or a bracket in an address
            detail = "its address, or the length of its body, cannot be read"
            raise RequestRefused(HTTPStatus.BAD_REQUEST, detail) from error

    def _check_host(self) -> None:
        host = self.headers.get("HOST")
        found = _HOST.fullmatch(host) if host is not None else None
        if found is None and (host is not None or self.version == "1.1"):
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "the Host header is missing, or is not one host")
        if self._trusted_hosts:
            addressed = _HOST.fullmatch(self.proxy_netloc) if self.proxy_netloc else found
            if addressed is None or addressed[1].lower() not in self._trusted_hosts:
                raise HostUnknown()
