"""The client for an event loop of asyncio."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from mmserver.client import models
from mmserver.client.calls import Blocking, Call, Flow, Found, Pause, Step
from mmserver.client.errors import ClientError, DeadlineExceeded, ServerUnavailable, error_from_httpx
from mmserver.client.methods import AsyncCaller, Calls
from mmserver.client.parts import KEEP_ALIVE_S, N_CONNECTIONS, ClientParts

T = TypeVar("T")


class ModelClient(ClientParts, Calls, AsyncCaller):
    """A server's API as coroutines, for one event loop.

    `async with ModelClient(url) as client:` watches the server's health in a task; without that, and without `initialize`,
    calls work just the same, and `available` is never true.
    """

    def _open(self) -> None:
        limits = httpx.Limits(
            max_connections=N_CONNECTIONS, max_keepalive_connections=N_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S
        )
        self._transport = httpx.AsyncHTTPTransport(verify=self._ssl_context or False, limits=limits, trust_env=False)
        self._closed = asyncio.Event()
        self._health: asyncio.Task[None] | None = None

    async def initialize(self) -> None:
        """Look whether the server is there, and go on looking; a server that is away is no error."""
        if not self._is_watching_health:
            self._is_watching_health = True
            await self._check_health()
            self._health = asyncio.create_task(self._watch_health(), name="mmserver-health")

    async def cleanup(self) -> None:
        """End everything, at once: calls that are under way fail, and watches end."""
        self._closed.set()
        if self._health is not None:
            self._health.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._health
        self._is_watching_health = False
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.cleanup()

    # --- how calls are made -------------------------------------------------------------------------------------------

    async def call(self, call: Call[T]) -> T:
        """Make one call, again where that is safe; all of it within its time."""
        requests = self._requests
        deadline_s = time.monotonic() + requests.total_s(call)
        n_failed = 0
        while True:
            try:
                return requests.value(call, await self._send(call, deadline_s))
            except ClientError as error:
                n_failed += 1
                left_s = deadline_s - time.monotonic()
                retries = call.retries or requests.retries
                pause_s = retries.pause_s(error, n_failed, left_s, is_repeatable=call.is_repeatable)
                if pause_s is None or self._closed.is_set():
                    if isinstance(error, ServerUnavailable):
                        self._availability.note_away(error)
                    raise
            await asyncio.sleep(pause_s)

    async def run(self, flow: Flow[T]) -> T:
        """Make the calls of a flow; what it returns."""
        try:
            step = next(flow)
            while True:
                try:
                    taken = await self._take(step)
                except ClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(taken)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            flow.close()

    async def iterate(self, flow: Flow[None]) -> AsyncGenerator[Any, None]:
        """What a flow finds, until it ends or the client is closed."""
        try:
            step = next(flow)
            while not self._closed.is_set():
                if isinstance(step, Found):
                    yield step.value
                    step = next(flow)
                    continue
                try:
                    taken = await self._unless_closed(step)
                except ClientError as error:
                    step = flow.throw(error)
                    continue
                if not self._closed.is_set():
                    step = flow.send(taken)
        except StopIteration:
            return
        finally:
            flow.close()

    async def _take(self, step: Step) -> Any:
        match step:
            case Call():
                return await self.call(step)
            case Pause():
                return await asyncio.sleep(step.seconds)
            case Blocking():
                return await asyncio.to_thread(step.work)
            case Found():
                raise TypeError("a call cannot find several values")

    async def _unless_closed(self, step: Step) -> Any:
        """What the step gives; None, with the step cancelled, as soon as the client is closed."""
        taking = asyncio.ensure_future(self._take(step))
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((taking, closing), return_when=asyncio.FIRST_COMPLETED)
            return taking.result() if taking.done() and not self._closed.is_set() else None
        finally:
            taking.cancel()
            closing.cancel()
            await asyncio.gather(taking, closing, return_exceptions=True)

    async def _send(self, call: Call[T], deadline_s: float) -> httpx.Response:
        left_s = deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                if call.upload is None:
                    return await self._exchange(call, self._requests.request(call, left_s))
                with self._requests.uploading(call, call.upload, left_s) as request:
                    return await self._exchange(call, request)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{call.method} {call.path}: the call's time is over") from error

    async def _exchange(self, call: Call[T], request: httpx.Request) -> httpx.Response:
        if self._closed.is_set():
            raise ServerUnavailable("the client is closed", was_sent=False)
        try:
            answer = await self._transport.handle_async_request(request)
            try:
                await answer.aread()
            finally:
                await answer.aclose()
        except httpx.RequestError as error:
            raise error_from_httpx(error, f"{call.method} {call.path}") from error
        return answer

    # --- health -------------------------------------------------------------------------------------------------------

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(self._health_interval_s)
            await self._check_health()

    async def _check_health(self) -> None:
        try:
            is_ready = await self.call(models.is_ready(timeout_s=self._health_timeout_s))
        except ClientError as error:
            self._availability.note_check(error, is_ready=False)
        else:
            self._availability.note_check(None, is_ready=is_ready)
