"""The client for an event loop of asyncio."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from mmserver.client import models
from mmserver.client.calls import Blocking, Call, Flow, Found, Pause, Step
from mmserver.client.errors import ClientError, DeadlineExceeded, ServerUnavailable, error_from_httpx
from mmserver.client.methods import AsyncCaller, Calls
from mmserver.client.parts import KEEP_ALIVE_S, N_CONNECTIONS, ClientParts
from mmserver.client.sessions import Session

T = TypeVar("T")
OTHER_LOOP = "this client was used in another event loop; cleanup(), there if it still runs, and initialize() open it in this one"


class AsyncSession(Session):
    """Connections for an event loop, and the task that watches the server's health."""

    closed: asyncio.Event

    def __init__(self, transport: httpx.AsyncHTTPTransport) -> None:
        super().__init__()
        self.transport = transport
        self.closed = asyncio.Event()
        self._health: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def check_open(self) -> None:
        """Whether anything may be asked by it, here.

        Raises:
            ClientClosed
            RuntimeError: another event loop has its connections.
        """
        super().check_open()
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise RuntimeError(OTHER_LOOP)

    def abandon(self) -> None:
        """Leave it to the parent, in a forked process, whose event loop it belongs to: here is nothing to do."""

    def start(self, watch_health: Coroutine[Any, Any, None]) -> None:
        """Watch the server's health in a task."""
        self._health = asyncio.create_task(watch_health, name="mmserver-health")

    async def pause(self, seconds: float) -> None:
        """Wait, until it is closed at the longest."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.closed.wait()

    async def close(self) -> None:
        """End everything, at once."""
        if self._loop not in (None, asyncio.get_running_loop()) and not self._loop.is_closed():
            raise RuntimeError(OTHER_LOOP)
        self.closed.set()
        if self._loop is not None and self._loop.is_closed():
            return  # what belonged to it ended with it
        try:
            if self._health is not None:
                self._health.cancel()
                await asyncio.wait((self._health,))  # raises if we are cancelled, and not for its being cancelled
        finally:
            await self.transport.aclose()


class ModelClient(ClientParts[AsyncSession], Calls, AsyncCaller):
    """A server's API as coroutines, for one event loop.

    `async with ModelClient(url) as client:` watches the server's health in a task; without that, and without `initialize`,
    calls work just the same, and `available` is never true.
    """

    def _new_session(self) -> AsyncSession:
        limits = httpx.Limits(
            max_connections=N_CONNECTIONS, max_keepalive_connections=N_CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S
        )
        verify = self._ssl_context or False
        return AsyncSession(httpx.AsyncHTTPTransport(verify=verify, limits=limits, trust_env=False))

    async def initialize(self) -> None:
        """Look whether the server is there, and go on looking; a server that is away is no error. Opens a closed client again."""
        session = self._reopened_session()
        session.check_open()
        with session.beginning_to_watch() as is_first:
            if is_first:
                await self._check_health(session)
                self._begin_watching(session)

    async def cleanup(self) -> None:
        """End everything, at once: calls that are under way fail, and watches end.

        Calls raise ClientClosed from now on, until `initialize`.
        """
        await self._session_here().close()

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
        return await self._call(self._session_here(), call)

    async def _call(self, session: AsyncSession, call: Call[T]) -> T:
        requests = self._requests
        deadline_s = time.monotonic() + requests.total_s(call)
        n_failed = 0
        while True:
            try:
                return requests.value(call, await self._send(session, call, deadline_s))
            except ClientError as error:
                n_failed += 1
                left_s = deadline_s - time.monotonic()
                retries = call.retries or requests.retries
                pause_s = retries.pause_s(error, n_failed, left_s, is_repeatable=call.is_repeatable)
                if pause_s is None:
                    if isinstance(error, ServerUnavailable):
                        session.availability.note_away(error)
                    raise
            await session.pause(pause_s)

    async def run(self, flow: Flow[T]) -> T:
        """Make the calls of a flow; what it returns."""
        session = self._session_here()
        try:
            step = next(flow)
            while True:
                try:
                    taken = await self._take(session, step)
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
                    taken = await self._unless_closed(session, step)
                except ClientError as error:
                    step = flow.throw(error)
                    continue
                if not session.is_closed():
                    step = flow.send(taken)
        except StopIteration:
            return
        finally:
            flow.close()

    async def _take(self, session: AsyncSession, step: Step) -> Any:
        match step:
            case Call():
                return await self._call(session, step)
            case Pause():
                return await session.pause(step.seconds)
            case Blocking():
                return await asyncio.to_thread(step.work)
            case Found():
                raise TypeError("a call cannot find several values")

    async def _unless_closed(self, session: AsyncSession, step: Step) -> Any:
        """What the step gives; None, with the step cancelled, as soon as the client is closed."""
        taking = asyncio.ensure_future(self._take(session, step))
        closing = asyncio.ensure_future(session.closed.wait())
        try:
            await asyncio.wait((taking, closing), return_when=asyncio.FIRST_COMPLETED)
            return taking.result() if taking.done() and not session.is_closed() else None
        finally:
            taking.cancel()
            closing.cancel()
            await asyncio.gather(taking, closing, return_exceptions=True)

    async def _send(self, session: AsyncSession, call: Call[T], deadline_s: float) -> httpx.Response:
        session.check_open()
        left_s = deadline_s - time.monotonic()
        try:
            async with asyncio.timeout(left_s):
                if call.upload is None:
                    return await self._exchange(session, call, self._requests.request(call, left_s))
                with self._requests.uploading(call, call.upload, left_s) as request:
                    return await self._exchange(session, call, request)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{call.method} {call.path}: the call's time is over") from error

    async def _exchange(self, session: AsyncSession, call: Call[T], request: httpx.Request) -> httpx.Response:
        try:
            answer = await session.transport.handle_async_request(request)
            try:
                await answer.aread()
            finally:
                await answer.aclose()
        except httpx.RequestError as error:
            session.check_open()
            raise error_from_httpx(error, f"{call.method} {call.path}") from error
        return answer

    # --- health -------------------------------------------------------------------------------------------------------

    def _session_here(self) -> AsyncSession:
        return super()._session_here() if _running_loop() is not None else self._session

    def _begin_watching(self, session: AsyncSession) -> None:
        session.start(self._watch_health(session))

    async def _watch_health(self, session: AsyncSession) -> None:
        while not session.is_closed():
            await session.pause(self._health_interval_s)
            await self._check_health(session)

    async def _check_health(self, session: AsyncSession) -> None:
        try:
            is_ready = await self._call(session, models.is_ready(timeout_s=self._health_timeout_s))
        except ClientError as error:
            session.availability.note_away(error)
        except Exception as error:  # noqa: BLE001 (a bot must not trade without a watch for the rest of its days)
            session.availability.note_failed_check(error)
        else:
            session.availability.note_check(is_ready=is_ready)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
