"""Answers that the server itself gives, without the application: what is no request, came too late, or is one too many."""

from http import HTTPStatus
from typing import Any

from waitress.task import Task

from mmserver.errors import DeadlinePassed, MmserverError, QueueFull
from mmserver.web.errors import CODE_BY_HTTP_STATUS, Problem, problem_content, problem_from_error
from mmserver.web.framing import DEFAULT_HEADERS


class RequestRefused(Exception):
    """What came is no request that this server takes; its connection is closed after the answer."""

    def __init__(self, status: HTTPStatus, detail: str = "") -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


def problem_from_refusal(error: Any) -> Problem:
    """The refusal, ours or one that waitress found, as clients see it."""
    if isinstance(error, MmserverError):
        return problem_from_error(error)
    if isinstance(error, RequestRefused):
        status, detail = error.status, error.detail
    else:
        status = HTTPStatus(error.code)
        detail = error.body if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_IMPLEMENTED) else ""
    code, meaning = CODE_BY_HTTP_STATUS[status]
    return Problem(status, code, detail or meaning, [], {})


def closes_connection(error: Any) -> bool:
    """Whether nobody can say where the next request would begin."""
    return not isinstance(error, DeadlinePassed | QueueFull)


class RefusalTask(Task):  # type: ignore[misc]
    """Writes a request's `error` as the answer to it."""

    complete = True

    def execute(self) -> None:
        """Called by waitress between `start` and `finish`."""
        front, request = self.channel.front, self.request
        problem = problem_from_refusal(request.error)
        if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(request.error, QueueFull):
            front.count_error()
        request_id = front.request_ids(request.headers.get("X_REQUEST_ID", ""))
        content, media_type = problem_content(problem, getattr(request, "path", ""), request_id)
        self.status = f"{problem.status.value} {problem.status.phrase}"
        self.response_headers = [
            *DEFAULT_HEADERS,
            *problem.headers.items(),
            ("Content-Type", media_type),
            ("X-Request-ID", request_id),
        ]
        self.content_length = len(content)
        if closes_connection(request.error) or front.is_stopping or request.connection_close:
            self.set_close_on_finish()
        self.write(b"" if getattr(request, "command", "") == "HEAD" else content)
