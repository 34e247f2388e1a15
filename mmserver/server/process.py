"""One server process: the application, its connections and threads, from its start to its clean end."""

import logging
import os
import resource
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import flask

from mmserver.app import RUNTIME_KEY, Runtime, create_app
from mmserver.security.access import Access
from mmserver.server.board import Board, Status
from mmserver.server.http_server import HttpServer, Limits
from mmserver.server.inline import InlineAnswers
from mmserver.server.pool import Pool
from mmserver.server.probes import probe_server
from mmserver.server.signals import Wishes
from mmserver.server.sockets import Listeners
from mmserver.serving.cpus import keep_this_thread_on, leave_cpu, put_this_thread_first, threads_kept_on
from mmserver.settings import Settings
from mmserver.web.current import ACCESS_KEY, QUICK_KEY

GRACE_S = 10.0
DOOR_S = 1.0  # clients that reconnect at once would keep it open for good
LOOP_S = 0.5
BEAT_S = 1.0
SWITCH_INTERVAL_S = 0.0005
"""How long a thread of the pool may keep the interpreter from the I/O thread, which asks for it several times a request."""
OTHER_FILES = 512
"""Files that are open besides connections: the database, artifacts, pipes to other processes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """What tells one worker from the others, and what all share."""

    board: Board
    slot: int = 0
    cpu: int | None = None
    """The one that Python runs on; None leaves that to the system."""
    is_one_of_several: bool = False


def serve_here(settings: Settings, listeners: Listeners, place: Place) -> None:
    """Serve from this process."""
    several = place.is_one_of_several
    with threads_kept_on(place.cpu):
        app = create_app(
            settings,
            owns_data_dir=not several,
            shares_jobs=several,
            checks={"workers": place.board.check},
            siblings=place.board.siblings(place.slot) if several else None,
        )
    if not several:
        leave_cpu(place.cpu)
    try:
        if not several:
            announce(settings, listeners, app.extensions[ACCESS_KEY])
        with probe_server(app, listeners.probe):
            serve_app(app, settings, listeners.main[0], place)
    finally:
        app.extensions[RUNTIME_KEY].close()


def serve_app(app: flask.Flask, settings: Settings, listener: socket.socket, place: Place) -> None:
    """Answer requests on the socket until a signal comes."""
    runtime: Runtime = app.extensions[RUNTIME_KEY]
    quick = app.extensions[QUICK_KEY]
    allow_open_files(settings.connection_limit + OTHER_FILES)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    wishes = Wishes.of_signals()
    pool = Pool(settings.threads, settings.max_queue, partial(keep_this_thread_on, place.cpu))
    runtime.store.waiting.on_count = lambda n_waiting: pool.set_thread_count(settings.threads + n_waiting)
    inline = InlineAnswers(lambda: quick.made if settings.inline else None, runtime.store)
    server = HttpServer(app, listener, pool, Limits.of(settings), inline)

    def run() -> None:
        keep_this_thread_on(place.cpu)
        put_this_thread_first()
        beat = Beat(place, server)
        while not wishes.is_stopping:
            server.turn(LOOP_S)
            beat()
        server.is_stopping = True
        runtime.store.waiting.close()
        runtime.store.wake_waiting()
        _drain(server, listener, wishes, is_shared=settings.workers > 1 and not hasattr(socket, "SO_REUSEPORT"))

    if settings.inline:
        threading.Thread(target=quick, name="quick routes", daemon=True).start()
    with ThreadPoolExecutor(1, thread_name_prefix="io") as threads:
        io_thread = threads.submit(run)
        io_thread.add_done_callback(lambda _: wishes.stop())  # should it ever fail, so must the process
        while not io_thread.done():
            wishes.wait(LOOP_S)  # a signal that comes just before it waits does not end the waiting
            server.wake()
        io_thread.result()
    pool.shutdown(cancel_pending=True, timeout=1)
    server.close()
    place.board.clear(place.slot)


class Beat:
    """Writes once a second what there is to say of this process."""

    def __init__(self, place: Place, server: HttpServer) -> None:
        self._place = place
        self._server = server
        self._started_at = time.time()
        self._next_at = 0.0

    def __call__(self) -> None:
        """Write, if it is time."""
        server = self._server
        if server.now < self._next_at:
            return
        self._next_at = server.now + BEAT_S
        status = Status(
            pid=os.getpid(),
            started_at=self._started_at,
            beat_at=server.now,
            requests=server.n_requests,
            errors=server.n_errors,
            refused=server.n_refused,
            waiting=server.pool.n_waiting(),
            connections=len(server.active_channels),
        )
        self._place.board.write(self._place.slot, status)


def announce(settings: Settings, listeners: Listeners, access: Access) -> None:
    """Say where to find the server, once its state is open, and who else can."""
    host, port = listeners.main[0].getsockname()[:2]
    log.info("serving on http://%s:%d, state in %s", host, port, settings.snapshot or settings.data_dir)
    if access.is_locked_out:
        log.warning("API keys are required, and none exists: mmserver keys create --scope admin --label NAME makes one")
    elif settings.auth == "off":
        log.warning("auth is off: everybody who can reach port %d can read and change models", port)
    elif not access.is_enforced and not host.startswith("127.") and host != "::1":
        log.warning("no API key exists: everybody who can reach port %d can read and change models", port)


def allow_open_files(n_wanted: int) -> None:
    """Raise this process's own limit of open files, as far as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n_wanted:
        allowed = n_wanted if hard == resource.RLIM_INFINITY else min(n_wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < n_wanted:
            log.warning("only %d files may be open (ulimit -n): fewer connections than connection_limit fit", allowed)


def _drain(server: HttpServer, listener: socket.socket, wishes: Wishes, *, is_shared: bool) -> None:
    """Take in who had connected, and answer what they asked, for as long as the grace period lasts; nobody else is let in."""
    deadline = time.monotonic() + GRACE_S
    door_closes_at = time.monotonic() + DOOR_S
    while server.has_visitors() and time.monotonic() < door_closes_at:
        server.turn(0)
    if not is_shared:
        listener.shutdown(socket.SHUT_RDWR)  # closing would not do: the supervisor has it open too
    server.stop_listening()
    server.turn(0)
    while server.active_channels and time.monotonic() < deadline and not wishes.is_hastened:
        server.close_idle()
        server.turn(0.05)
