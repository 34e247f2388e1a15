"""Running the application under waitress: one process that ends cleanly, or several that share one listening socket."""

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import flask
import msgspec
import waitress.wasyncore
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher

from mmserver.app import RUNTIME_KEY, Runtime, create_app
from mmserver.errors import SettingInvalid
from mmserver.settings import Settings
from mmserver.storage.data_dir import DataDir
from mmserver.storage.schema import upgrade_database
from mmserver.web.payloads import is_quick

GRACE_S = 10.0
LOOP_S = 0.5
RESTART_PAUSE_S = 1.0
MAX_IN_MEMORY_BYTES = 256 << 20
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


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted."""
    if settings.workers == 1:
        app = create_app(settings)
        try:
            serve_app(app, settings, listener)
        finally:
            app.extensions[RUNTIME_KEY].close()
    else:
        _supervise(settings, listener)


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
    channels: dict[int, waitress.wasyncore.dispatcher] = {}
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
    while not stopping.is_set():
        waitress.wasyncore.loop(timeout=LOOP_S, map=channels, use_poll=True, count=1)
        dispatcher.answer_quick_ones()
    server.close()
    runtime.store.waiting.close()
    runtime.store.wake_waiting()
    _drain(channels)
    dispatcher.shutdown(cancel_pending=True, timeout=1)


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


def _drain(channels: "dict[int, waitress.wasyncore.dispatcher]") -> None:
    """Send what was accepted, for as long as the grace period lasts."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        busy = [
            channel
            for channel in list(channels.values())
            if getattr(channel, "requests", None) or getattr(channel, "total_outbufs_len", 0)
        ]
        if not busy:
            return
        waitress.wasyncore.loop(timeout=0.05, map=channels, use_poll=True, count=1)


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopping


def _supervise(settings: Settings, listener: socket.socket) -> None:
    """Hold the data directory, keep the workers running, and end them together."""
    data_dir = DataDir(settings.data_dir)
    data_dir.create()
    with data_dir.lock():
        data_dir.remove_leftovers()
        upgrade_database(data_dir.database_path, data_dir.snapshots_dir)
        stopping = _stop_on_signals()
        listener.set_inheritable(True)
        workers = [_start_worker(settings, listener) for _ in range(settings.workers)]
        while not stopping.wait(RESTART_PAUSE_S):
            for index, worker in enumerate(workers):
                if worker.poll() is not None:
                    log.error("worker %d ended with %s; starting another", worker.pid, worker.returncode)
                    workers[index] = _start_worker(settings, listener)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(GRACE_S + 5)
            except subprocess.TimeoutExpired:
                worker.kill()


def _start_worker(settings: Settings, listener: socket.socket) -> "subprocess.Popen[bytes]":
    arguments = [sys.executable, "-m", "mmserver.cli.worker", str(listener.fileno())]
    worker = subprocess.Popen(arguments, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])  # noqa: S603
    assert worker.stdin is not None  # noqa: S101 (it was asked for)
    worker.stdin.write(msgspec.json.encode(settings, enc_hook=str) + b"\n")
    worker.stdin.flush()
    return worker
