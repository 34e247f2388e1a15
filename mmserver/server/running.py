"""Running the application under waitress: one process that ends cleanly, or several that share one listening socket."""

import contextlib
import logging
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any

import flask
import msgspec
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher, WSGITask

from mmserver.app import RUNTIME_KEY, Runtime, create_app, open_store
from mmserver.errors import SettingInvalid
from mmserver.settings import Settings
from mmserver.storage.data_dir import DataDir
from mmserver.web.payloads import is_quick

GRACE_S = 10.0
DOOR_S = 1.0  # clients that reconnect at once would keep it open for good
LOOP_S = 0.5
RESTART_PAUSE_S = 1.0
MAX_IN_MEMORY_BYTES = 256 << 20
LASTING_EXIT_CODES = (2, 3, 4)
"""Of a worker that was refused (see `mmserver --help`): starting it again would not help."""
log = logging.getLogger(__name__)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound TCP socket.

    Raises:
        SettingInvalid: the address is taken, or not one of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise SettingInvalid(setting=f"--host {host} --port {port}", reason=error.strerror or str(error)) from error
    return listener


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted. Returns the exit code."""
    if settings.workers > 1:
        return _supervise(settings, listener)
    app = create_app(settings)
    try:
        _announce(settings, listener)
        serve_app(app, settings, listener)
    finally:
        app.extensions[RUNTIME_KEY].close()
    return 0


def serve_as_worker(settings: Settings, listener: socket.socket) -> None:
    """One of several processes; the supervisor holds the data directory."""
    app = create_app(settings, owns_data_dir=False, shares_jobs=True)
    try:
        serve_app(app, settings, listener)
    finally:
        app.extensions[RUNTIME_KEY].close()


def serve_app(app: flask.Flask, settings: Settings, listener: socket.socket) -> None:
    """Answer requests on the socket until a signal comes."""
    runtime: Runtime = app.extensions[RUNTIME_KEY]
    channels: dict[int, wasyncore.dispatcher] = {}
    dispatcher = QuickFirstDispatcher(partial(is_quick, runtime.store))
    dispatcher.set_thread_count(settings.threads)
    server = create_server(
        app,
        map=channels,
        _dispatcher=dispatcher,
        sockets=[listener],
        threads=settings.threads,
        ident=None,
        clear_untrusted_proxy_headers=True,
        channel_timeout=75,
        connection_limit=1000,
        max_request_header_size=16 << 10,
        max_request_body_size=settings.max_body_bytes,
        outbuf_overflow=MAX_IN_MEMORY_BYTES,
        outbuf_high_watermark=MAX_IN_MEMORY_BYTES,
        asyncore_use_poll=True,
    )
    dispatcher.silence_trigger_of(server)
    runtime.store.waiting.on_count = lambda n_waiting: dispatcher.set_thread_count(settings.threads + n_waiting)
    stopping = _stop_on_signals()
    server.channel_class = _channel_class(stopping)

    def turn(timeout_s: float) -> None:
        wasyncore.loop(timeout=timeout_s, map=channels, use_poll=True, count=1)
        dispatcher.answer_quick_ones()

    while not stopping.is_set():
        turn(LOOP_S)
    runtime.store.waiting.close()
    runtime.store.wake_waiting()
    _drain(server, turn)
    dispatcher.shutdown(cancel_pending=True, timeout=1)
    wasyncore.close_all(channels)


class QuickFirstDispatcher(ThreadedTaskDispatcher):  # type: ignore[misc]
    """Answers requests that need no waiting in the I/O thread itself, and hands the others to the pool.

    Handing a request to a thread and its answer back costs several times what a payload from memory costs (measured).
    """

    def __init__(self, is_quick: Callable[[str, str, str], bool]) -> None:
        super().__init__()
        self._is_quick = is_quick
        self._quick: list[Any] = []
        self._io_thread = threading.get_ident()

    def add_task(self, task: Any) -> None:
        """Called by a channel for its first request, from whichever thread has finished the one before."""
        request = task.requests[0]
        if (
            threading.get_ident() == self._io_thread
            and request.error is None
            and request.command in ("GET", "HEAD")
            and self._is_quick(request.path, request.query, request.headers.get("ACCEPT_ENCODING", ""))
        ):
            self._quick.append(task)
        else:
            super().add_task(task)

    def answer_quick_ones(self) -> None:
        """Answer what came in during the last turn of the loop; called by the I/O thread between two turns."""
        while self._quick:
            waiting, self._quick = self._quick, []
            for channel in waiting:
                channel.service()

    def silence_trigger_of(self, server: Any) -> None:
        """The I/O thread need not be woken by itself."""
        pull_trigger = server.pull_trigger

        def pull_trigger_of_others() -> None:
            if threading.get_ident() != self._io_thread:
                pull_trigger()

        server.pull_trigger = pull_trigger_of_others


def _channel_class(stopping: threading.Event) -> type[HTTPChannel]:
    """Connections whose answers say, once the server is stopping, that no other will follow.

    waitress 3.0 closes the connection after every answer without a body; a bot that asks "changed?" a thousand times would
    connect a thousand times.
    """

    class Task(WSGITask):  # type: ignore[misc]
        close_on_finish: bool

        def build_response_header(self) -> bytes:
            if stopping.is_set():
                self.set_close_on_finish()
            asked_to_close = self.request.headers.get("CONNECTION", "").lower() == "close"
            may_stay_open = self.version == "1.1" and not (self.has_body or self.close_on_finish or asked_to_close)
            header: bytes = super().build_response_header()
            if may_stay_open:
                self.close_on_finish = False
                header = header.replace(b"\r\nConnection: close", b"", 1)
            return header

    class Channel(HTTPChannel):  # type: ignore[misc]
        task_class = Task

    return Channel


def _drain(server: TcpWSGIServer, turn: Callable[[float], None]) -> None:
    """Take in who had connected, and answer what they asked, for as long as the grace period lasts; nobody else is let in.

    The server's trigger stays open until the end: its threads say by it that an answer is ready.
    """
    deadline = time.monotonic() + GRACE_S
    door = select.poll()
    door.register(server.socket, select.POLLIN)
    door_closes_at = time.monotonic() + DOOR_S
    while door.poll(0) and time.monotonic() < door_closes_at:
        turn(0)
    wasyncore.dispatcher.close(server)
    turn(0)
    while server.active_channels and time.monotonic() < deadline:
        for channel in list(server.active_channels.values()):
            if not channel.requests and channel.request is None:
                channel.close_when_flushed = True
        turn(0.05)


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping


def _announce(settings: Settings, listener: socket.socket) -> None:
    """Say where to find the server, once its state is open, and who else can."""
    host, port = listener.getsockname()[:2]
    log.info("serving on http://%s:%d, state in %s", host, port, settings.snapshot or settings.data_dir)
    if not host.startswith("127.") and host != "::1":
        log.warning("no API key exists: everybody who can reach port %d can read and change models", port)


def _supervise(settings: Settings, listener: socket.socket) -> int:
    """Hold the data directory, keep the workers running, and end them together.

    What keeps a server from starting is found here first, once; a worker that is refused later on ends them all.
    """
    with open_store(settings):
        pass
    stopping = _stop_on_signals()
    with ExitStack() as held:
        inherited = [listener.fileno()]
        if settings.snapshot is None:
            # The workers hold the lock too: one that outlives a killed supervisor must not meet another server.
            inherited.append(held.enter_context(DataDir(settings.data_dir).lock()).fileno())
        workers = [_start_worker(settings, inherited) for _ in range(settings.workers)]
        _announce(settings, listener)
        code = 0
        while not code and not stopping.wait(RESTART_PAUSE_S):
            for index, worker in enumerate(workers):
                if worker.poll() is None:
                    continue
                if worker.returncode in LASTING_EXIT_CODES:
                    code = worker.returncode
                    break
                log.error("worker %d ended with %s; starting another", worker.pid, worker.returncode)
                workers[index] = _start_worker(settings, inherited)
        _end(workers)
    return code


def _end(workers: "list[subprocess.Popen[bytes]]") -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        try:
            worker.wait(GRACE_S + 5)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _start_worker(settings: Settings, inherited: Sequence[int]) -> "subprocess.Popen[bytes]":
    """A worker that gets the listening socket, the first of the descriptors, and keeps the others open."""
    arguments = [sys.executable, "-m", "mmserver.cli.worker", str(inherited[0])]
    worker = subprocess.Popen(arguments, stdin=subprocess.PIPE, pass_fds=inherited)  # noqa: S603
    assert worker.stdin is not None  # noqa: S101 (it was asked for)
    with contextlib.suppress(BrokenPipeError):  # it is gone already, and will be missed at the next look
        worker.stdin.write(msgspec.json.encode(settings, enc_hook=str) + b"\n")
        worker.stdin.flush()
    return worker
