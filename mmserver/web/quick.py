"""Requests that are answered from memory in well under a millisecond, without Flask: one prediction for one row.

The same functions as in the views do the work; what is not plain (a slow model, a rare field, anything to be refused) gets no
answer here, and Flask's view then gives the full one. So there is one set of rules, and one place that renders errors.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

from mmserver.serving.predictions import Serving
from mmserver.web.prediction_answers import item_from_prediction
from mmserver.web.prediction_bodies import given, has_plain_features, plain_body
from mmserver.web.responses import JSON_MEDIA_TYPE, json_bytes

MAX_BODY_BYTES = 256 << 10
PLAIN_MEDIA_TYPES = frozenset(
    {"", "application/json", "application/json; charset=utf-8", "application/json;charset=utf-8",
     "application/json; charset=UTF-8", "text/plain", "application/x-www-form-urlencoded"}
)  # fmt: skip
"""As clients write them; how else it can be written is for Flask to understand."""
NEEDS_FLASK = ("CONTENT_ENCODING", "SEC_FETCH_SITE", "ORIGIN")
"""Headers that may mean a refusal."""


class QuickAnswer(NamedTuple):
    """A whole answer: `headers` without Content-Length, Date and what `ResponseFrame` adds."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


QuickHandler: TypeAlias = Callable[[str, Mapping[str, str], bytes], QuickAnswer | None]
"""Called with the path, the headers and the body."""

JSON_HEADERS = (("Content-Type", JSON_MEDIA_TYPE),)


class QuickRoutes:
    """Called by the I/O thread for each complete request, and by a WSGI wrapper in front of Flask."""

    max_body_bytes = MAX_BODY_BYTES

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._trusted_hosts = frozenset(host.lower() for host in serving.store.settings.trusted_hosts)
        self._handlers: dict[str, QuickHandler] = {
            "/predict": partial(self._predict, False),
            "/api/ml/predict": partial(self._predict, True),
        }
        self._handlers_within: tuple[tuple[str, str, QuickHandler], ...] = ()
        """Beginning and end of paths, and their handler."""

    def is_candidate(self, method: str, path: str, query: str) -> bool:
        """Whether `answer` may know the request; a lookup, without reading the body."""
        return method == "POST" and not query and self._handler(path) is not None

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> QuickAnswer | None:
        """The answer, or None where Flask has to give it.

        `headers` has upper-case names with underscores: CONTENT_TYPE, CONTENT_ENCODING, …
        """
        if len(body) > MAX_BODY_BYTES:
            return None
        for name in NEEDS_FLASK:
            if name in headers:
                return None
        if self._trusted_hosts and headers.get("HOST", "").partition(":")[0].lower() not in self._trusted_hosts:
            return None
        handler = self._handler(path)
        return None if handler is None else handler(path, headers, body)

    def _handler(self, path: str) -> QuickHandler | None:
        handler = self._handlers.get(path)
        if handler is None:
            for beginning, end, within in self._handlers_within:
                if path.startswith(beginning) and path.endswith(end):
                    return within
        return handler

    def _predict(
        self, direction_codes: bool, _path: str, headers: Mapping[str, str], body: bytes
    ) -> QuickAnswer | None:
        started = time.perf_counter()
        if headers.get("CONTENT_TYPE", "") not in PLAIN_MEDIA_TYPES:
            return None
        asked = plain_body(body)
        if asked is None or asked.explain is True or not asked.features or not has_plain_features(asked):
            return None
        prediction = self._serving.predict_row(
            asked.symbol, asked.features, given(asked.model_name), given(asked.model_version)
        )
        if prediction is None:
            return None
        item = item_from_prediction(prediction, started, self._serving.store.now(), direction_codes=direction_codes)
        return QuickAnswer("200 OK", JSON_HEADERS, json_bytes(item))
