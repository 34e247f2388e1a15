"""Attempts that were refused, in the audit trail: written a moment after the answer, which never waits for them nor fails by them.

Whoever is refused again and again fills no disk: so many are kept a minute of each actor and so many of all, and of the rest
their number. Where the trail cannot be written, they are let go and counted.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import flask
import msgspec

from mmserver.errors import MmserverError
from mmserver.security.keys import without_keys
from mmserver.storage.audit import REFUSED, record_audit
from mmserver.storage.database import Database
from mmserver.storage.times import text_from_datetime
from mmserver.web.current import REFUSALS_KEY, current_actor, current_store
from mmserver.web.errors import PROBLEM_KEY, Problem

WINDOW_S = 60.0
KEPT_OF_ACTOR = 20
"""How many of one actor's attempts are kept within a window."""
KEPT_AT_MOST, KEPT_REFILL_S = 200, 6.0
"""Of all actors: so many at once, and then one more each so many seconds; 10 MB a day at the worst."""
COUNTED_ACTORS = 256
"""Of how many actors the rest is counted apart; the memory that an attacker with many addresses can fill."""
NAMED_ACTORS = 5
"""How many of those get a row of their own, those with the most."""
OTHERS = "others"
WRITE_AFTER_S = 0.5
_MAX_TEXT = 200
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_CREDENTIALS = ("Authorization", "X-API-Key")
_CHANGES_NOTHING = ("/predict", "/invocations", "/infer", "/predict/batch", "/index", "/outcomes", "/outcomes/prices")
"""How the rules of routes end that take a body but change nothing that is audited."""

log = logging.getLogger(__name__)


class Attempt(msgspec.Struct, frozen=True):
    """One attempt, as it is kept: never its body, nor anything of its header but the request's id."""

    at: datetime
    actor: str
    target: str
    detail: dict[str, Any]
    request_id: str | None = None


class Refusals:
    """Keeps what is refused by one process; a thread writes it, and is there only while there is anything to write."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        *,
        read_only: bool = False,
    ) -> None:
        self._read_only = read_only
        self._database = database
        self._now = now
        self._clock = clock
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._ending = threading.Event()
        self._writer: threading.Thread | None = None
        self._kept: list[Attempt] = []
        self._n_by_actor: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._window_began = self._refilled = clock()
        self._budget = float(KEPT_AT_MOST)
        self._n_lost_unsaid = 0
        self.n_lost = 0
        """How many attempts could not be written."""

    def note(self, attempt: Attempt) -> None:
        """Keep it, or count it; returns at once."""
        with self._lock:
            if self._ending.is_set():
                return
            if self._read_only:
                self.n_lost += 1
                return
            now = self._clock()
            if now - self._window_began >= WINDOW_S and not self._left_out:
                self._n_by_actor.clear()
                self._window_began = now
            self._budget = min(KEPT_AT_MOST, self._budget + (now - self._refilled) / KEPT_REFILL_S)
            self._refilled = now
            actor = attempt.actor
            if actor not in self._n_by_actor and len(self._n_by_actor) >= COUNTED_ACTORS:
                actor = OTHERS
            self._n_by_actor[actor] += 1
            if self._n_by_actor[actor] <= KEPT_OF_ACTOR and self._budget >= 1:
                self._budget -= 1
                self._kept.append(attempt)
            else:
                self._left_out[actor] += 1
            if self._writer is None:
                self._start_writing()

    def write(self, *, ends_window: bool = False) -> None:
        """Write what is due: what was kept, and once a window is over, how many were not."""
        with self._writing:
            with self._lock:
                attempts = [*self._kept, *self._rest(ends_window=ends_window)]
                self._kept.clear()
            if attempts:
                self._put(attempts)

    def close(self) -> None:
        """Write all that there is; what comes after is let go."""
        with self._lock:
            self._ending.set()
            writer = self._writer
        if writer is not None:
            writer.join()
        self.write(ends_window=True)

    def _start_writing(self) -> None:
        writer = threading.Thread(target=self._write_all, name="refusals", daemon=True)
        try:
            writer.start()
        except RuntimeError:  # no more threads just now: the next attempt tries again
            return
        self._writer = writer

    def _write_all(self) -> None:
        while not self._ending.wait(WRITE_AFTER_S):
            try:
                self.write()
            except Exception:  # the thread must not end: nobody would start another
                log.exception("refused attempts could not be written")
            with self._lock:
                if not self._kept and not self._left_out:
                    self._writer = None
                    return

    def _rest(self, *, ends_window: bool) -> Iterator[Attempt]:
        now = self._clock()
        if not ends_window and now - self._window_began < WINDOW_S:
            return
        named = dict(self._left_out.most_common(NAMED_ACTORS))
        if n_others := self._left_out.total() - sum(named.values()):
            named[OTHERS] = named.get(OTHERS, 0) + n_others
        for actor, n_more in named.items():
            yield Attempt(self._now(), actor, "*", {"more": n_more, "within_s": round(now - self._window_began)})
        self._n_by_actor.clear()
        self._left_out.clear()
        self._window_began = now

    def _put(self, attempts: list[Attempt]) -> None:
        if self._n_lost_unsaid:
            said = {"more": self._n_lost_unsaid, "reason": "the trail could not be written"}
            attempts = [*attempts, Attempt(self._now(), "mmserver", "*", said)]
        try:
            with self._database.write() as connection:
                for one in attempts:
                    record_audit(connection, at=text_from_datetime(one.at), actor=one.actor, action=REFUSED,
                                 target=one.target, detail=one.detail, request_id=one.request_id)  # fmt: skip
        except MmserverError as error:
            if not self._n_lost_unsaid:  # once, until it works again
                log.warning("refused attempts cannot be written to the audit trail: %s", error)
            n_lost = len(attempts) - bool(self._n_lost_unsaid)
            self.n_lost += n_lost
            self._n_lost_unsaid += n_lost
        else:
            self._n_lost_unsaid = 0


def note_refusal(response: flask.Response) -> None:
    """Keep what was refused at a route that changes something; at any other, who had no leave to ask."""
    request = flask.request
    rule = request.url_rule
    if rule is None or not _is_of_interest(request, rule.rule, response.status_code):
        return
    actor = current_actor()
    problem: Problem | None = request.environ.get(PROBLEM_KEY)
    detail: dict[str, Any] = {"status": response.status_code, "code": problem.code if problem else "refused"}
    if problem is not None and problem.errors:
        detail["field"] = _text(problem.errors[0]["loc"])
    target = f"{request.method} {_text(without_keys(request.path))}"
    _refusals().note(Attempt(current_store().now(), actor.name, target, detail, actor.request_id))


def _is_of_interest(request: flask.Request, rule: str, status: int) -> bool:
    if request.method not in _SAFE_METHODS and not rule.endswith(_CHANGES_NOTHING):
        return True
    return status == 403 or (status == 401 and any(name in request.headers for name in _CREDENTIALS))


def _refusals() -> Refusals:
    extensions = flask.current_app.extensions
    if REFUSALS_KEY not in extensions:
        store = current_store()
        made = Refusals(store.database, store.now, read_only=store.read_only)
        extensions.setdefault(REFUSALS_KEY, made)  # of two threads' ones the first stays
    refusals: Refusals = extensions[REFUSALS_KEY]
    return refusals


def _text(text: str) -> str:
    """What a client sent as one line of what can be stored: it may name things by control characters or broken text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:_MAX_TEXT])
