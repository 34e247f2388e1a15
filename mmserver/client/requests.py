"""Calls as httpx requests, and answers as values or errors: all of it that does not wait, so both clients share it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import httpx

from mmserver.client.calls import JSON, Call, Upload
from mmserver.client.errors import error_from_answer
from mmserver.client.options import Address, Retries, Timeouts

T = TypeVar("T")
FILE_PART = "file"


class Requests:
    """What all requests to one server have in common, made once."""

    def __init__(self, address: Address, timeouts: Timeouts, retries: Retries) -> None:
        self.address = address
        self.timeouts = timeouts
        self.retries = retries
        self._headers = {"User-Agent": "mmserver-client"}
        if address.api_key is not None:
            self._headers["Authorization"] = f"Bearer {address.api_key}"
        self._prefix = address.url
        self._json_headers = httpx.Headers(self._headers | dict(JSON))
        self._url_by_path: dict[str, httpx.URL] = {"/predict": httpx.URL(address.url + "/predict")}
        self._timeout = self._extensions(timeouts.read_s, timeouts.total_s)

    def total_s(self, call: Call[T]) -> float:
        """How long the whole call may take."""
        total_s = call.total_s
        if total_s is None:
            return self.timeouts.total_s
        if not total_s > 0:
            raise ValueError(f"timeout_s must be a positive number of seconds, not {total_s!r}")
        return total_s

    @contextmanager
    def uploading(self, call: Call[T], upload: Upload, left_s: float) -> Iterator[httpx.Request]:
        """The request of an upload; its files are open in the block."""
        with ExitStack() as opened:
            files = [
                (FILE_PART, (path.name, opened.enter_context(path.open("rb")), "application/octet-stream"))
                for path in upload.files
            ]
            yield httpx.Request(
                call.method,
                self._url(call),
                headers=self._headers_of(call),
                data=dict(upload.fields),
                files=files,
                extensions=self._extensions(call.read_s or self.timeouts.read_s, left_s),
            )

    def request(self, call: Call[T], left_s: float) -> httpx.Request:
        """The request of any other call."""
        if call.read_s is None and left_s >= self.timeouts.read_s:
            extensions = self._timeout
        else:
            extensions = self._extensions(call.read_s or self.timeouts.read_s, left_s)
        url = self._url_by_path.get(call.path) if not call.query else None
        return httpx.Request(
            call.method,
            url or self._url(call),
            headers=self._json_headers if call.headers is JSON else self._headers_of(call),
            content=call.content,
            extensions=extensions.copy(),
        )

    def value(self, call: Call[T], answer: httpx.Response) -> T:
        """What the answer means; it has been read.

        Raises:
            ServerError: the server says no.
            AnswerInvalid: it says something that it never would.
        """
        if answer.is_success or answer.status_code in call.also:
            return call.decode(answer)
        raise error_from_answer(answer)

    def _url(self, call: Call[T]) -> httpx.URL:
        return httpx.URL(f"{self._prefix}{call.path}?{call.query}" if call.query else self._prefix + call.path)

    def _headers_of(self, call: Call[T]) -> dict[str, str]:
        return self._headers | dict(call.headers)

    def _extensions(self, read_s: float, left_s: float) -> dict[str, dict[str, float]]:
        """httpx's timeouts, none beyond what is left for the call."""
        timeouts = self.timeouts
        named = {"connect": timeouts.connect_s, "read": read_s, "write": timeouts.write_s, "pool": timeouts.pool_s}
        return {"timeout": {name: min(seconds, left_s) for name, seconds in named.items()}}
