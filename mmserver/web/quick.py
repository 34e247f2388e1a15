"""Requests that are answered from memory in well under a millisecond, without Flask: one prediction for one row.

The same functions as in the views do the work; what is not plain (a slow model, a rare field, anything to be refused) gets no
answer here, and Flask's view then gives the full one. So there is one set of rules, and one place that renders errors.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

from mmserver.catalog.history import LATEST, PRODUCTION
from mmserver.catalog.symbols import ALL_SYMBOLS, comparable_symbol
from mmserver.errors import MmserverError
from mmserver.security.access import Access, Identity
from mmserver.serving.interpretation import NoInterpreter
from mmserver.serving.predictions import Prediction, Resolved, Serving
from mmserver.web.current import LateExperimenter
from mmserver.web.open_inference_bodies import BINARY_MEDIA_TYPE, HEADER_LENGTH
from mmserver.web.open_inference_infer import quick_infer
from mmserver.web.prediction_answers import item_from_prediction
from mmserver.web.prediction_bodies import PredictBody, asked_from_body, given, has_plain_features, plain_body
from mmserver.web.responses import JSON_MEDIA_TYPE, json_bytes

MAX_BODY_BYTES = 256 << 10
MAX_ROW_COST_NS = 300_000
"""A model that takes longer would keep other clients waiting; a thread may take it."""
PLAIN_MEDIA_TYPES = frozenset(
    {"", "application/json", "application/json; charset=utf-8", "application/json;charset=utf-8",
     "application/json; charset=UTF-8", "text/plain", "application/x-www-form-urlencoded"}
)  # fmt: skip
"""As clients write them; how else it can be written is for Flask to understand."""
_CURRENT = (None, LATEST, PRODUCTION)
NEEDS_FLASK = ("CONTENT_ENCODING", "SEC_FETCH_SITE", "ORIGIN")
"""Headers that may mean a refusal."""


class QuickAnswer(NamedTuple):
    """A whole answer: `headers` without Content-Length, Date and what `ResponseFrame` adds."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class QuickRequest(NamedTuple):
    """What a handler is asked; see `QuickRoutes.answer`."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    waited_ns: int
    may_take_long: bool
    identity: Identity | None = None
    """Whom its key stands for, where keys are asked for."""


QuickHandler: TypeAlias = Callable[[QuickRequest], QuickAnswer | None]

JSON_HEADERS = (("Content-Type", JSON_MEDIA_TYPE),)
BINARY_HEADERS = (("Content-Type", BINARY_MEDIA_TYPE),)


class QuickRoutes:
    """Called by the I/O thread for each complete request, and by a WSGI wrapper in front of Flask."""

    max_body_bytes = MAX_BODY_BYTES
    """The largest body that is answered without one's own thread."""

    def __init__(self, serving: Serving, experimenter: LateExperimenter, access: Access) -> None:
        self._access = access
        self._serving = serving
        self._experimenter = experimenter
        self._handlers: dict[str, QuickHandler] = {
            "/predict": partial(self._predict, False),
            "/api/ml/predict": partial(self._predict, True),
        }
        self._handlers_within: tuple[tuple[str, str, QuickHandler], ...] = (("/v2/models/", "/infer", self._infer),)
        """Beginning and end of paths, and their handler."""

    def is_candidate(self, method: str, path: str, query: str) -> bool:
        """Whether `answer` may know the request; a lookup, without reading the body."""
        return method == "POST" and not query and self._handler(path) is not None

    def answer(
        self,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        request_id: str,
        waited_ns: int = 0,
        *,
        may_take_long: bool = False,
    ) -> QuickAnswer | None:
        """The answer, or None where Flask has to give it: that is so for whatever could hold up other clients, unless it may
        take long because the calling thread is this request's own.

        `headers` has upper-case names with underscores: CONTENT_TYPE, CONTENT_ENCODING, …; `request_id` is what the answer's
        `X-Request-ID` says, for bodies that have it too; `waited_ns` is how long the request waited for a thread, for the
        statistics.
        """
        if len(body) > MAX_BODY_BYTES and not may_take_long:
            return None
        for name in NEEDS_FLASK:
            if name in headers:
                return None
        handler = self._handler(path)
        if handler is None:
            return None
        identity = None
        if self._access.is_enforced:
            identity = self._access.known(headers)
            if identity is None or not identity.has_scope("predict"):
                return None
        return handler(QuickRequest(path, headers, body, request_id, waited_ns, may_take_long, identity))

    def _handler(self, path: str) -> QuickHandler | None:
        handler = self._handlers.get(path)
        if handler is None:
            for beginning, end, within in self._handlers_within:
                if path.startswith(beginning) and path.endswith(end):
                    return within
        return handler

    def _predict(self, direction_codes: bool, request: QuickRequest) -> QuickAnswer | None:
        begun_ns = time.perf_counter_ns()
        if request.headers.get("CONTENT_TYPE", "") not in PLAIN_MEDIA_TYPES:
            return None
        asked = plain_body(request.body)
        if asked is None or asked.explain is True or not asked.features or not has_plain_features(asked):
            return None
        resolved = self._resolved(asked.symbol, given(asked.model_name), given(asked.model_version))
        if resolved is None or not _is_within_limits(request.identity, asked, resolved):
            return None
        most_ns = math.inf if request.may_take_long else MAX_ROW_COST_NS
        belongs, prediction = False, None
        if self._serving.store.catalog.experiments:
            belongs, prediction = self._in_experiment(asked, resolved, most_ns, request)
        if not belongs:
            prediction = self._of_model(asked, resolved, most_ns, begun_ns, request.waited_ns)
        if prediction is None:
            return None
        now = self._serving.store.now()
        item = item_from_prediction(prediction, begun_ns, now, direction_codes=direction_codes)
        return QuickAnswer("200 OK", JSON_HEADERS, json_bytes(item))

    def _of_model(
        self, body: PredictBody, resolved: Resolved, most_ns: float, begun_ns: int, waited_ns: int
    ) -> Prediction | None:
        """What the model that is meant gives; None where Flask has to ask it."""
        serving = self._serving
        loaded = serving.held(resolved)
        if loaded is None or loaded.row_cost_ns > most_ns:
            return None
        if isinstance(loaded.interpreter, NoInterpreter) or len(body.features) not in loaded.layout.lengths:  # type: ignore[arg-type]
            return None  # it is refused anyway, and would be counted twice; to say all that is wrong may take long
        try:
            row = loaded.layout.row(body.features)  # type: ignore[arg-type]  # of one shape: `has_plain_features` said so
            decision = serving.predict_row(resolved, loaded, row, begun_ns, waited_ns)
        except MmserverError:
            return None
        version = resolved.version
        prediction = Prediction(
            body.symbol,
            decision,
            version.model_name,
            version.label,
            serving.model_info(resolved, loaded),
            serving.new_prediction_id(),
        )
        if serving.observer is not None:
            serving.observer.answered(resolved, (body.symbol,), (prediction,), row, begun_ns)
        return prediction

    def _in_experiment(
        self, body: PredictBody, resolved: Resolved, most_ns: float, request: QuickRequest
    ) -> tuple[bool, Prediction | None]:
        """Whether the request may belong to a running experiment, and its answer; True and None where Flask has to give it.

        An answer is logged before it is given here. What is left to Flask was not logged, and gets the same arm there.
        """
        experimenter = self._experimenter.made
        if experimenter is None:
            return not self._serving.store.read_only, None
        asked = asked_from_body(body, None, request_id=request.request_id)
        try:
            assignment = experimenter.assigned(asked, resolved.version.model_name)
        except MmserverError:
            return True, None
        if assignment is None:
            return False, None
        try:
            arms = experimenter.ready_arms(asked, assignment, most_ns)
            if arms is not None:
                outcome = experimenter.scored(asked, assignment, request.waited_ns, arms)
                if not isinstance(outcome.answer, MmserverError):
                    return True, experimenter.kept(outcome)
        except MmserverError:
            pass  # it cannot be logged: Flask says so
        experimenter.hand_over(asked, assignment)
        return True, None

    def _infer(self, request: QuickRequest) -> QuickAnswer | None:
        path, headers, body, request_id, waited_ns, may_take_long, identity = request
        if identity is not None and identity.is_limited:
            return None  # which model a name means is found out within
        answer = quick_infer(
            self._serving,
            path,
            headers,
            body,
            request_id,
            waited_ns=waited_ns,
            may_take_long=may_take_long,
            experimenter=self._experimenter,
        )
        if answer is None:
            return None
        if answer.header_length is None:
            return QuickAnswer("200 OK", JSON_HEADERS, answer.body)
        return QuickAnswer("200 OK", (*BINARY_HEADERS, (HEADER_LENGTH, str(answer.header_length))), answer.body)

    def _resolved(self, symbol: str, model_name: str | None, version: str | None) -> Resolved | None:
        """What is meant, if memory alone can say it; after each change of the catalog that is a few microseconds more."""
        known = self._serving.known(symbol, model_name, version)
        if known is not None or model_name is None or version not in _CURRENT:
            return known
        model = self._serving.store.catalog.models.get(model_name)
        if model is None:
            return None
        keys_by_symbol = model.serving.group_keys_by_symbol
        keys = keys_by_symbol.get(comparable_symbol(symbol)) or keys_by_symbol.get(ALL_SYMBOLS, ())
        if len(keys) != 1:
            return None
        try:
            return self._serving.resolve(symbol, model_name, version)
        except MmserverError:  # nothing is in production, or all was retired
            return None


def _is_within_limits(identity: Identity | None, asked: PredictBody, resolved: Resolved) -> bool:
    """Whether a limited key is for this model; an experiment that is named might be another model's."""
    if identity is None or not identity.is_limited:
        return True
    return identity.may_use_model(resolved.version.model_name) and given(asked.experiment_id) is None
