"""The one place where errors become responses: a branch of the tree gives the status, a leaf gives the code.

Under the API that is problem+json (RFC 9457), elsewhere a page. What is not an error of ours is a bug: it becomes `internal`
without any text of the exception, and the traceback is in the log under the request's id.

`python -m mmserver.web.errors` prints docs/errors.md.
"""

import html
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.exceptions import HTTPException

from mmserver import errors
from mmserver.web.framing import REQUEST_ID_KEY
from mmserver.web.responses import JSON_MEDIA_TYPE, json_bytes, printable_text

if TYPE_CHECKING:
    from mmserver.web.repeats import Repeats

log = logging.getLogger(__name__)

REPEATS_KEY = "mmserver.repeats"
PROBLEM_KEY = "mmserver.problem"
"""What was answered instead of what was asked for, in the request's environment."""
PROBLEM_MEDIA_TYPE = "application/problem+json"
CHALLENGES = ('Basic realm="mmserver", charset="UTF-8"', 'Bearer realm="mmserver"')
"""How to say who one is; each in a line of its own, as browsers understand no list."""
MAX_DETAIL = 4000

STATUS_BY_BRANCH: dict[type[errors.MmserverError], HTTPStatus] = {
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Gone: HTTPStatus.GONE,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.Invalid: HTTPStatus.BAD_REQUEST,
    errors.Unprocessable: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.PreconditionFailed: HTTPStatus.PRECONDITION_FAILED,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Exhausted: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.Corrupt: HTTPStatus.INTERNAL_SERVER_ERROR,
}

CODE_BY_HTTP_STATUS = {
    400: ("bad_request", "The request cannot be understood."),
    404: ("not_found", "No such address."),
    405: ("method_not_allowed", "The address does not take this method; `Allow` names those that it takes."),
    408: ("request_timeout", "The request took longer to arrive than `request_deadline_s` allows."),
    413: ("body_too_large", "The body is larger than `max_body_bytes`."),
    414: ("uri_too_long", "The address is longer than 8 KiB."),
    415: ("unsupported_media_type", "The body is not `application/json`, not UTF-8, or compressed."),
    431: ("headers_too_large", "The header is larger than 16 KiB, or has more than 100 lines."),
    500: ("internal", "A bug; the log has it under the `request_id`."),
    501: ("not_implemented", "The body comes in a transfer coding other than chunks."),
    505: ("http_version_not_supported", "The request is neither HTTP/1.0 nor HTTP/1.1."),
}
"""Errors of HTTP itself, raised by the framework: code and meaning by status."""

SCORING_CODES: Mapping[int, str] = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    410: "RESOURCE_DOES_NOT_EXIST",
    413: "REQUEST_LIMIT_EXCEEDED",
    415: "BAD_REQUEST",
    422: "INVALID_PARAMETER_VALUE",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}
"""`error_code` under `/invocations`, by status. Source: the error codes that MLflow's clients know."""

UNKNOWN_MODEL = "Request for unknown model"
UNKNOWN_MODEL_CODES = frozenset(
    ["group_has_no_model", "model_not_found", "symbol_ambiguous", "symbol_archived", "symbol_not_found", "version_not_found"]
)  # fmt: skip
"""How messages under `/v2` begin that are about a name. Source: Triton, whose clients' examples look for the words."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One error as clients see it."""

    status: HTTPStatus
    code: str
    detail: str
    errors: list[dict[str, str]]
    headers: Mapping[str, str]

    @property
    def title(self) -> str:
        """The code in words; the same for every occurrence."""
        return self.code.replace("_", " ").capitalize()

    def body(self, request_id: str) -> dict[str, Any]:
        """The members of the problem+json object."""
        members: dict[str, Any] = {
            "type": f"urn:mmserver:error:{self.code}",
            "title": self.title,
            "status": int(self.status),
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.errors:
            members["errors"] = self.errors
        return members


def register_errors(app: flask.Flask) -> None:
    """Let this module answer every error of the application, plugins' routes included."""
    app.register_error_handler(errors.MmserverError, _on_our_error)
    app.register_error_handler(HTTPException, _on_http_error)
    app.register_error_handler(Exception, _on_bug)


def status_of(error: type[errors.MmserverError]) -> HTTPStatus:
    """The status of the branch that the error is on; 500 for one on no branch."""
    for ancestor in error.__mro__:
        if ancestor in STATUS_BY_BRANCH:
            return STATUS_BY_BRANCH[ancestor]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def problem_from_error(error: errors.MmserverError) -> Problem:
    """One of our own errors as clients see it; where the server's own state is broken, the log has the details."""
    status = status_of(type(error))
    detail = _meaning(type(error)) if status == HTTPStatus.INTERNAL_SERVER_ERROR else _shortened(str(error))
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, errors.Unavailable) else {}
    return Problem(status, error.code, detail, error.values.get("errors", []), headers)


def problem_from_http_error(error: HTTPException) -> Problem:
    """An error of HTTP itself as clients see it; its headers (`Allow`, …) are kept."""
    status = HTTPStatus(error.code or 500)
    code, meaning = CODE_BY_HTTP_STATUS.get(status, (f"http_{int(status)}", status.phrase))
    detail = error.description if status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE and error.description else meaning
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return Problem(status, code, detail, [], headers)


def _on_our_error(error: errors.MmserverError) -> flask.Response:
    problem = problem_from_error(error)
    if isinstance(error, errors.Unavailable):
        _log_unavailable(problem.code, error)
    elif problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s %s [%s]: %s: %s", *_what_was_asked(), problem.code, error)
    return _response(problem)


def _log_unavailable(code: str, error: errors.Unavailable) -> None:
    """As a warning, but once a minute: clients that are told to try again do, and the answer says all that the log would."""
    said = f"{code}: {error}"
    is_due, left_out = _repeats().note(said, code)
    for said_before, n_left_out in left_out:
        log.warning("%s: %d times more since that was logged", said_before, n_left_out)
    log.log(logging.WARNING if is_due else logging.DEBUG, "%s %s [%s]: %s", *_what_was_asked(), said)


def _repeats() -> "Repeats":
    """What this application's log has told; made for the first, so that nobody imports it to start."""
    extensions = flask.current_app.extensions
    if REPEATS_KEY not in extensions:
        from mmserver.web.repeats import Repeats

        extensions.setdefault(REPEATS_KEY, Repeats())  # of two threads' ones the first stays
    repeats: Repeats = extensions[REPEATS_KEY]
    return repeats


def _on_http_error(error: HTTPException) -> flask.Response:
    return _response(problem_from_http_error(error))


def _on_bug(error: Exception) -> flask.Response:
    log.error("%s %s [%s]", *_what_was_asked(), exc_info=error)
    code, meaning = CODE_BY_HTTP_STATUS[500]
    return _response(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, code, meaning, [], {}))


def _response(problem: Problem) -> flask.Response:
    response = _rendered(problem)
    if problem.status == HTTPStatus.UNAUTHORIZED:
        for challenge in CHALLENGES:
            response.headers.add("WWW-Authenticate", challenge)
    return response


def _rendered(problem: Problem) -> flask.Response:
    flask.request.environ[PROBLEM_KEY] = problem
    if wants_page(flask.request):
        page = printable_text(flask.render_template("error.html", problem=problem.body(_request_id())))
        return flask.Response(page, problem.status, problem.headers, content_type="text/html; charset=utf-8")
    content, media_type = problem_content(problem, flask.request.path, _request_id())
    is_unfit_table = problem.status == HTTPStatus.UNPROCESSABLE_ENTITY and _is_scoring(flask.request.path)
    status = HTTPStatus.BAD_REQUEST if is_unfit_table else problem.status  # that protocol knows no 422
    return flask.Response(content, status, problem.headers, content_type=media_type)


def problem_content(problem: Problem, path: str, request_id: str) -> tuple[bytes, str]:
    """The body in the form that clients of this path expect, and its media type."""
    said: dict[str, Any]
    if path.startswith("/ui/"):
        return _plain_page(problem, request_id), "text/html; charset=utf-8"
    if path == "/v2" or path.startswith("/v2/"):
        said = {"error": _open_inference_text(problem, path), "code": problem.code, "request_id": request_id}
        return json_bytes(said), JSON_MEDIA_TYPE
    if _is_scoring(path):
        error_code = SCORING_CODES.get(problem.status, problem.code.upper())
        said = {"error_code": error_code, "message": problem.detail, "code": problem.code, "request_id": request_id}
        if problem.errors:
            said["errors"] = problem.errors
        return json_bytes(said), JSON_MEDIA_TYPE
    return json_bytes(problem.body(request_id)), PROBLEM_MEDIA_TYPE


def _plain_page(problem: Problem, request_id: str) -> bytes:
    """For people whose request never came to the application, which has the templates."""
    was_too_large = problem.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    again = "<p>Go back to change it and try again: what you typed is still there.</p>" if was_too_large else ""
    title, detail = html.escape(problem.title), html.escape(problem.detail)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>'
        f'{title} · mmserver</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"></head><body><main><h1>{title}</h1><p>{detail}</p>{again}'
        f"<p>Code <code>{problem.code}</code>, request <code>{html.escape(request_id)}</code></p>"
        '<p><a href="/ui/">All models</a></p></main></body></html>'
    ).encode()


def wants_page(request: flask.Request) -> bool:
    """Whether a person is asking: for a page of ours, or outside the API with HTML preferred."""
    if request.path == "/" or request.path.startswith("/ui/"):
        return True
    if request.path.startswith(("/api/", "/v2", "/predict")) or _is_scoring(request.path):
        return False
    return request.accept_mimetypes.best_match(["application/json", "text/html"], "application/json") == "text/html"


def _open_inference_text(problem: Problem, path: str) -> str:
    """The detail in the wording that clients of the protocol look for; it has to be a string, which they print."""
    text = f"{UNKNOWN_MODEL}: {problem.detail}" if problem.code in UNKNOWN_MODEL_CODES else problem.detail
    if path.startswith("/v2/repository/models/") and path.endswith("/load"):
        return f"failed to load {path[len('/v2/repository/models/') : -len('/load')]!r}: {text}"
    return text


def _is_scoring(path: str) -> bool:
    return path.endswith("/invocations")


def _what_was_asked() -> tuple[str, str, str]:
    return flask.request.method, flask.request.path[:200].encode("unicode_escape").decode(), _request_id()


def _request_id() -> str:
    return str(flask.request.environ.get(REQUEST_ID_KEY, "-"))


def _meaning(error: type[errors.MmserverError]) -> str:
    return (error.__doc__ or error.template).partition("\n")[0]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 1] + "…"


# --- the docs page ----------------------------------------------------------------------------------------------------

_DOCS_HEAD = """# Error codes

This page is generated: `python -m mmserver.web.errors > docs/errors.md`.

Every error of the API is `application/problem+json` (RFC 9457): `type` (`urn:mmserver:error:` and the code), `title`,
`status`, `detail`, `code` and `request_id`; a refused body or parameter adds `errors`, a list of `{"loc", "msg"}`. `code`
is stable: branch on it, not on `detail`. 503 carries `Retry-After`. The pages show the same as HTML.

| code | status | meaning |
|---|---|---|
"""


def errors_markdown() -> str:
    """The page docs/errors.md, whole."""
    rows = {(code, int(status)): meaning for code, status, meaning in _documented()}
    return _DOCS_HEAD + "".join(f"| `{code}` | {status} | {rows[code, status]} |\n" for code, status in sorted(rows))


def _documented() -> Iterator[tuple[str, int, str]]:
    for error in _leaves(errors.MmserverError.__subclasses__()):
        yield error.code, status_of(error), _meaning(error)
    for status, (code, meaning) in CODE_BY_HTTP_STATUS.items():
        yield code, status, meaning


def _leaves(found: Iterable[type[errors.MmserverError]]) -> Iterator[type[errors.MmserverError]]:
    for error in found:
        if error.__subclasses__():
            yield from _leaves(error.__subclasses__())
        elif error.__module__ == errors.__name__:
            yield error


if __name__ == "__main__":
    sys.stdout.write(errors_markdown())
