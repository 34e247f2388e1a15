"""What can go wrong with a call, as one tree: the server refused it (`ServerError`), could not be reached, or took too long.

What the caller did wrong before anything was sent is a plain ValueError or TypeError.
"""

from http import HTTPStatus
from typing import Any

import httpx
import msgspec

MAX_SHOWN = 500
"""Characters of an answer that is no error of mmserver's, such as a proxy's page."""


class ClientError(Exception):
    """Any call can raise these."""


class ClientClosed(ClientError):
    """Nothing is asked: `cleanup` has ended this client, before the call or during it. `initialize` opens it again."""


class ServerUnavailable(ClientError):
    """No answer: nobody listens, or the connection broke. `was_sent` says whether the server can have seen the request."""

    def __init__(self, reason: str, *, was_sent: bool = True) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class DeadlineExceeded(ClientError):
    """The time for the call is over; the server may still work on it, unless `was_sent` is false."""

    def __init__(self, reason: str, *, was_sent: bool = True) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class AnswerInvalid(ClientError):
    """There is an answer, and it is not what this call is answered with: something else than mmserver answers there."""


class ServerError(ClientError):
    """The server's own no. `code` is stable, `detail` says more, `errors` names the places, the log has the `request_id`."""

    def __init__(  # noqa: PLR0917 (so that it can be pickled)
        self,
        status: int,
        code: str,
        detail: str,
        errors: tuple[dict[str, str], ...] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, errors, request_id, retry_after_s)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.request_id = request_id
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        places = "".join(f"; {error.get('loc', '')}: {error.get('msg', '')}" for error in self.errors[:3])
        return f"{self.status} {self.code}: {self.detail}{places}"


class RequestRefused(ServerError):
    """400, 413, 415, 422: the request itself is wrong; the same one would be refused again."""


class NotAuthenticated(ServerError):
    """401: there is no valid API key with it."""


class Forbidden(ServerError):
    """403: the key has no right to it, or the server changes nothing."""


class NotFound(ServerError):
    """404, 405, 410, 501: no such model, version, symbol, venue, or no such route in this server's release."""


class Conflict(ServerError):
    """409, 412: what is there now does not allow it."""


class ServerBusy(ServerError):
    """429, 502, 503, 504: not now; `retry_after_s` says when to ask again, where the server knows."""


class ServerFailed(ServerError):
    """500, 507: the server's own trouble; its log has it under the `request_id`."""


_CLASS_BY_STATUS: dict[int, type[ServerError]] = {
    400: RequestRefused,
    401: NotAuthenticated,
    403: Forbidden,
    404: NotFound,
    405: NotFound,
    409: Conflict,
    410: NotFound,
    412: Conflict,
    413: RequestRefused,
    415: RequestRefused,
    422: RequestRefused,
    429: ServerBusy,
    500: ServerFailed,
    501: NotFound,
    502: ServerBusy,
    503: ServerBusy,
    504: ServerBusy,
    507: ServerFailed,
}


class _Problem(msgspec.Struct, frozen=True):
    """The members of problem+json that count, and what `/v2` and `/invocations` have in their place."""

    code: str | None = None
    detail: str | None = None
    title: str | None = None
    errors: list[dict[str, str]] = []
    request_id: str | None = None
    error: str | None = None
    message: str | None = None


_decode_problem = msgspec.json.Decoder(_Problem).decode


def error_from_answer(answer: httpx.Response) -> ServerError:
    """The error that an answer with such a status stands for, whoever wrote it."""
    try:
        problem = _decode_problem(answer.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = " ".join(answer.content[: 4 * MAX_SHOWN].decode("utf-8", "replace").split())[:MAX_SHOWN]
        problem = _Problem(detail=text or None)
    status = answer.status_code
    kind = _CLASS_BY_STATUS.get(status, ServerFailed if status >= 500 else ServerError)
    return kind(
        status,
        problem.code or f"http_{status}",
        problem.detail or problem.error or problem.message or problem.title or _phrase(status),
        tuple(problem.errors),
        problem.request_id or answer.headers.get("X-Request-ID"),
        _retry_after_s(answer.headers.get("Retry-After")),
    )


def error_from_httpx(error: httpx.RequestError, asked: str) -> ClientError:
    """What httpx found, in our words. `asked`: method and path."""
    said = f"{asked}: {type(error).__name__}: {error}"
    match error:
        case httpx.PoolTimeout():
            return DeadlineExceeded(f"{asked}: all connections of this client are in use", was_sent=False)
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return ServerUnavailable(said, was_sent=False)
        case httpx.TimeoutException():
            return DeadlineExceeded(said)
        case httpx.DecodingError():
            return AnswerInvalid(said)
        case _:
            return ServerUnavailable(said)


def is_away(error: ClientError) -> bool:
    """Whether the server as a whole cannot be had now, rather than one model of it, or one request."""
    if isinstance(error, ServerBusy):
        return error.status in (502, 504) or error.code in _BUSY_AS_A_WHOLE
    return isinstance(error, ServerUnavailable | DeadlineExceeded | AnswerInvalid)


def is_transient(error: ClientError) -> bool:
    """Whether the same question may well have an answer later: it was not understood and refused, nor is the client closed."""
    if isinstance(error, ServerError):
        return not isinstance(error, NotFound) and (error.status in _REFUSED_FOR_NOW or not 400 <= error.status < 500)
    return not isinstance(error, ClientClosed)


_REFUSED_FOR_NOW = (408, 425, 429)
_BUSY_AS_A_WHOLE = frozenset({"overloaded", "queue_full", "deadline_passed", "http_503", "http_429"})
"""Codes of 429 and 503 that are about the whole server; the others are about a model."""


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"


def _retry_after_s(value: Any) -> float | None:
    """Seconds; a date is not understood, for it needs two clocks that agree."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit():
        return None
    return float(value[:9])
