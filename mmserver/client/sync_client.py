"""The client for threads."""

import threading
import time
from collections.abc import Callable, Generator
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from mmserver.client import models
from mmserver.client.calls import Blocking, Call, Flow, Found, Pause, Step
from mmserver.client.deadlines import DeadlineTransport
from mmserver.client.errors import ClientError, ServerUnavailable, error_from_httpx
from mmserver.client.methods import Calls, SyncCaller
from mmserver.client.parts import KEEP_ALIVE_S, N_CONNECTIONS, ClientParts
from mmserver.client.sessions import Session

T = TypeVar("T")


class SyncSession(Session):
    """Connections for threads, and the thread that watches the server's health."""

    closed: threading.Event

    def __init__(self, transport: DeadlineTransport) -> None:
        super().__init__()
        self.transport = transport
        self.closed = threading.Event()
        self._health: threading.Thread | None = None

    def abandon(self) -> None:
        """Leave it to the parent, in a forked process."""
        self.transport.abandon()

    def start(self, watch_health: Callable[[], None]) -> None:
        """Watch the server's health in a thread."""
        self._health = threading.Thread(target=watch_health, name="mmserver-health", daemon=True)
        self._health.start()

    def close(self) -> None:
        """End everything, at once."""
        self.closed.set()
        self.transport.close()
        if self._health is not None and self._health is not threading.current_thread():
            self._health.join()


class SyncModelClient(ClientParts[SyncSession], Calls, SyncCaller):
    """A server's API as plain methods; any number of threads may share one client.

    `with SyncModelClient(url) as client:` watches the server's health in a thread of its own; without that, and without
    `initialize`, calls work just the same, and `available` is never true.
    """

    def _new_session(self) -> SyncSession:
        return SyncSession(DeadlineTransport(self._ssl_context, N_CONNECTIONS, KEEP_ALIVE_S))

    def initialize(self) -> None:
        """Look whether the server is there, and go on looking; a server that is away is no error. Opens a closed client again."""
        session = self._reopened_session()
        with session.beginning_to_watch() as is_first:
            if is_first:
                self._check_health(session)
                self._begin_watching(session)

    def cleanup(self) -> None:
        """End everything, at once: calls that are under way in other threads fail, and watches end.

        Calls raise ClientClosed from now on, until `initialize`.
        """
        self._session_here().close()

    def __enter__(self) -> Self:
        self.initialize()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cleanup()

    # --- how calls are made -------------------------------------------------------------------------------------------

    def call(self, call: Call[T]) -> T:
        """Make one call, again where that is safe; all of it within its time."""
        return self._call(self._session_here(), call)

    def _call(self, session: SyncSession, call: Call[T]) -> T:
        requests = self._requests
        deadline_s = time.monotonic() + requests.total_s(call)
        n_failed = 0
        while True:
            try:
                return requests.value(call, self._send(session, call, deadline_s))
            except ClientError as error:
                n_failed += 1
                left_s = deadline_s - time.monotonic()
                retries = call.retries or requests.retries
                pause_s = retries.pause_s(error, n_failed, left_s, is_repeatable=call.is_repeatable)
                if pause_s is None:
                    if isinstance(error, ServerUnavailable):
                        session.availability.note_away(error)
                    raise
                session.closed.wait(pause_s)

    def run(self, flow: Flow[T]) -> T:
        """Make the calls of a flow; what it returns."""
        session = self._session_here()
        try:
            step = next(flow)
            while True:
                try:
                    taken = self._take(session, step)
                except ClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(taken)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            flow.close()

    def iterate(self, flow: Flow[None]) -> Generator[Any, None, None]:
        """What a flow finds, until it ends or the client is closed."""
        session = self._session_here()
        session.check_open()
        try:
            step = next(flow)
            while not session.is_closed():
                if isinstance(step, Found):
                    yield step.value
                    step = next(flow)
                    continue
                try:
                    taken = self._take(session, step)
                except ClientError as error:
                    if session.is_closed():
                        return
                    step = flow.throw(error)
                else:
                    step = flow.send(taken)
        except StopIteration:
            return
        finally:
            flow.close()

    def _take(self, session: SyncSession, step: Step) -> Any:
        match step:
            case Call():
                return self._call(session, step)
            case Pause():
                return session.closed.wait(step.seconds)
            case Blocking():
                return step.work()
            case Found():
                raise TypeError("a call cannot find several values")

    def _send(self, session: SyncSession, call: Call[T], deadline_s: float) -> httpx.Response:
        session.check_open()
        left_s = deadline_s - time.monotonic()
        if call.upload is not None:
            with self._requests.uploading(call, call.upload, left_s) as request:
                return self._exchange(session, call, request, deadline_s)
        return self._exchange(session, call, self._requests.request(call, left_s), deadline_s)

    def _exchange(
        self, session: SyncSession, call: Call[T], request: httpx.Request, deadline_s: float
    ) -> httpx.Response:
        try:
            with session.transport.within(deadline_s):
                answer = session.transport.handle_request(request)
                try:
                    answer.read()
                finally:
                    answer.close()
        except httpx.RequestError as error:
            session.check_open()
            raise error_from_httpx(error, f"{call.method} {call.path}") from error
        return answer

    # --- health -------------------------------------------------------------------------------------------------------

    def _begin_watching(self, session: SyncSession) -> None:
        session.start(partial(self._watch_health, session))

    def _watch_health(self, session: SyncSession) -> None:
        while not session.closed.wait(self._health_interval_s):
            self._check_health(session)

    def _check_health(self, session: SyncSession) -> None:
        try:
            is_ready = self._call(session, models.is_ready(timeout_s=self._health_timeout_s))
        except ClientError as error:
            session.availability.note_away(error)
        except Exception as error:  # noqa: BLE001 (a bot must not trade without a watch for the rest of its days)
            session.availability.note_failed_check(error)
        else:
            session.availability.note_check(is_ready=is_ready)
