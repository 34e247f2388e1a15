"""The client for threads."""

import threading
import time
from collections.abc import Generator
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from mmserver.client import models
from mmserver.client.calls import Blocking, Call, Flow, Found, Pause, Step
from mmserver.client.deadlines import DeadlineTransport
from mmserver.client.errors import ClientError, ServerUnavailable, error_from_httpx
from mmserver.client.methods import Calls, SyncCaller
from mmserver.client.parts import KEEP_ALIVE_S, N_CONNECTIONS, ClientParts

T = TypeVar("T")


class SyncModelClient(ClientParts, Calls, SyncCaller):
    """A server's API as plain methods; any number of threads may share one client.

    `with SyncModelClient(url) as client:` watches the server's health in a thread of its own; without that, and without
    `initialize`, calls work just the same, and `available` is never true.
    """

    def _open(self) -> None:
        self._transport = DeadlineTransport(self._ssl_context, N_CONNECTIONS, KEEP_ALIVE_S)
        self._closed = threading.Event()
        self._health: threading.Thread | None = None

    def initialize(self) -> None:
        """Look whether the server is there, and go on looking; a server that is away is no error."""
        if self._health is None:
            self._is_watching_health = True
            self._check_health()
            self._health = threading.Thread(target=self._watch_health, name="mmserver-health", daemon=True)
            self._health.start()

    def cleanup(self) -> None:
        """End everything, at once: calls that are under way in other threads fail, and watches end."""
        self._closed.set()
        self._transport.close()
        if self._health is not None and self._health is not threading.current_thread():
            self._health.join()
        self._is_watching_health = False

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
        requests = self._requests
        deadline_s = time.monotonic() + requests.total_s(call)
        n_failed = 0
        while True:
            try:
                return requests.value(call, self._send(call, deadline_s))
            except ClientError as error:
                n_failed += 1
                left_s = deadline_s - time.monotonic()
                retries = call.retries or requests.retries
                pause_s = retries.pause_s(error, n_failed, left_s, is_repeatable=call.is_repeatable)
                if pause_s is None or self._closed.wait(pause_s):
                    if isinstance(error, ServerUnavailable):
                        self._availability.note_away(error)
                    raise

    def run(self, flow: Flow[T]) -> T:
        """Make the calls of a flow; what it returns."""
        try:
            step = next(flow)
            while True:
                try:
                    taken = self._take(step)
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
        try:
            step = next(flow)
            while not self._closed.is_set():
                if isinstance(step, Found):
                    yield step.value
                    step = next(flow)
                    continue
                try:
                    taken = self._take(step)
                except ClientError as error:
                    if self._closed.is_set():
                        return
                    step = flow.throw(error)
                else:
                    step = flow.send(taken)
        except StopIteration:
            return
        finally:
            flow.close()

    def _take(self, step: Step) -> Any:
        match step:
            case Call():
                return self.call(step)
            case Pause():
                return self._closed.wait(step.seconds)
            case Blocking():
                return step.work()
            case Found():
                raise TypeError("a call cannot find several values")

    def _send(self, call: Call[T], deadline_s: float) -> httpx.Response:
        left_s = deadline_s - time.monotonic()
        if call.upload is not None:
            with self._requests.uploading(call, call.upload, left_s) as request:
                return self._exchange(call, request, deadline_s)
        return self._exchange(call, self._requests.request(call, left_s), deadline_s)

    def _exchange(self, call: Call[T], request: httpx.Request, deadline_s: float) -> httpx.Response:
        if self._closed.is_set():
            raise ServerUnavailable("the client is closed", was_sent=False)
        try:
            with self._transport.within(deadline_s):
                answer = self._transport.handle_request(request)
                try:
                    answer.read()
                finally:
                    answer.close()
        except httpx.RequestError as error:
            raise error_from_httpx(error, f"{call.method} {call.path}") from error
        return answer

    # --- health -------------------------------------------------------------------------------------------------------

    def _watch_health(self) -> None:
        while not self._closed.wait(self._health_interval_s):
            self._check_health()

    def _check_health(self) -> None:
        try:
            is_ready = self.call(models.is_ready(timeout_s=self._health_timeout_s))
        except ClientError as error:
            self._availability.note_check(error, is_ready=False)
        else:
            self._availability.note_check(None, is_ready=is_ready)
