"""Requests that are answered from memory in well under a millisecond, without Flask: one prediction for one row.

The same functions as in the views do the work; what is not plain (a slow model, a rare field, anything to be refused) gets no
answer here, and Flask's view then gives the full one. So there is one set of rules, and one place that renders errors.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mmserver.serving.predictions import Serving

MAX_BODY_BYTES = 256 << 10


class QuickAnswer(NamedTuple):
    """A whole answer: `headers` without Content-Length, Date and what `ResponseFrame` adds."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class QuickRoutes:
    """Called by the I/O thread for each complete request, and by a WSGI wrapper in front of Flask."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def is_candidate(self, method: str, path: str, query: str) -> bool:
        """Whether `answer` may know the request; a lookup, without reading the body."""
        raise NotImplementedError

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> QuickAnswer | None:
        """The answer, or None where Flask has to give it.

        `headers` has upper-case names with underscores: CONTENT_TYPE, CONTENT_ENCODING, …
        """
        raise NotImplementedError
