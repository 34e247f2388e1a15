"""Answers that the server itself gives, without the application: what is no request, came too late, or is one too many."""

from http import HTTPStatus
from typing import Any

from waitress.task import Task

from mmserver.errors import MmserverError
from mmserver.web.errors import CODE_BY_HTTP_STATUS, Problem, problem_content, problem_from_error
from mmserver.web.framing import DEFAULT_HEADERS


class RequestRefused(Exception):
    """What came is no request that this server takes; its connection is closed after the answer."""

    def __init__(self, status: HTTPStatus, detail: str = "") -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


def problem_from_refusal(error: RequestRefused | MmserverError) -> Problem:
    """The refusal as clients see it."""
    if isinstance(error, MmserverError):
        return problem_from_error(error)
    code, meaning = CODE_BY_HTTP_STATUS[error.status]
    return Problem(error.status, code, error.detail or meaning, [], {})


class RefusalTask(Task):  # type: ignore[misc]
    """Writes a problem as the answer to one request."""

    complete = True

    def __init__(self, channel: Any, request: Any, problem: Problem, *, closes: bool) -> None:
        super().__init__(channel, request)
        self._problem = problem
        self._closes = closes

    def execute(self) -> None:
        """Called by waitress between `start` and `finish`."""
        problem, server = self._problem, self.channel.server
        request_id = server.request_ids(self.request.headers.get("X_REQUEST_ID", ""))
        content, media_type = problem_content(problem, self.request.path, request_id)
        self.status = f"{problem.status.value} {problem.status.phrase}"
        self.response_headers = [
            *DEFAULT_HEADERS,
            *problem.headers.items(),
            ("Content-Type", media_type),
            ("X-Request-ID", request_id),
        ]
        self.content_length = len(content)
        if self._closes or server.is_stopping:
            self.set_close_on_finish()
        self.write(b"" if self.request.command == "HEAD" else content)
