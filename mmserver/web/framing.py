"""What every response carries, whoever made it: the request's id and the security headers, added at the WSGI border.

It stands outside Flask because it must also cover plugins' routes and errors, and costs a few microseconds there.
"""

import itertools
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

REQUEST_ID_KEY = "mmserver.request_id"
WAITED_NS_KEY = "mmserver.waited_ns"
"""How long the request waited for a thread, where the server says it."""
_SANE_REQUEST_ID = re.compile(r"(?!mm_)[A-Za-z0-9._-]{1,128}")
"""No key that somebody put there by mistake: it would be in answers and logs."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DEFAULT_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("Cache-Control", "no-store"),
)
"""Sent unless the response brings its own; the policy is on JSON too, where it costs nothing and stops sniffed markup."""
_DEFAULTS_BY_KEY = {name.lower(): (name, value) for name, value in DEFAULT_HEADERS}


class RequestIds:
    """Names requests: by the client's own word if it is sane, else by one that no other request of any process has."""

    def __init__(self) -> None:
        self._process_id = secrets.token_hex(6)
        self._numbers = itertools.count()  # its next is atomic

    def __call__(self, wanted: str) -> str:
        """The id of a request that came with this `X-Request-ID`, empty if with none."""
        if wanted and _SANE_REQUEST_ID.fullmatch(wanted) is not None:
            return wanted
        return f"{self._process_id}{next(self._numbers):08x}"


class ResponseFrame:
    """A WSGI application around another: names the request and completes the headers of its response."""

    def __init__(self, application: "WSGIApplication") -> None:
        self._application = application
        self._request_ids = RequestIds()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request."""
        request_id = self._request_ids(environ.get("HTTP_X_REQUEST_ID", ""))
        environ[REQUEST_ID_KEY] = request_id

        def start_framed(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            given = {name.lower() for name, _ in headers}
            missing = [pair for key, pair in _DEFAULTS_BY_KEY.items() if key not in given]
            return start_response(status, [*headers, *missing, ("X-Request-ID", request_id)], exc_info)

        return self._application(environ, start_framed)
