"""Several server processes: the supervisor holds the sockets and the data directory, and replaces workers that die."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from mmserver.app import open_store
from mmserver.server.board import Board
from mmserver.server.post import Post
from mmserver.server.process import GRACE_S, announce, stop_on_signals
from mmserver.server.sockets import Listeners
from mmserver.serving.cpus import cpus_for
from mmserver.settings import Settings
from mmserver.storage.data_dir import DataDir

RESTART_PAUSE_S = 1.0
"""Between two starts of one worker: one that cannot start must not be tried all the time."""
END_TIMEOUT_S = GRACE_S + 5
LASTING_EXIT_CODES = (2, 3, 4)
"""Of a worker that was refused (see `mmserver --help`): starting it again would not help."""
log = logging.getLogger(__name__)


def supervise(settings: Settings, listeners: Listeners) -> int:
    """Hold the data directory, keep the workers running, and end them together. Returns the exit code.

    What keeps a server from starting is found here first, once; a worker that is refused later on ends them all.
    """
    with open_store(settings):
        pass
    news = threading.Event()
    stopping = stop_on_signals(news)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: news.set())
    with ExitStack() as held:
        kept_open = []
        if settings.snapshot is None:
            # The workers hold the lock too: one that outlives a killed supervisor must not meet another server.
            kept_open.append(held.enter_context(DataDir(settings.data_dir).lock()).fileno())
        board = Board.create(settings.workers)
        held.callback(board.close)
        posts = _posts(settings, listeners, board)
        workers = [_Worker(settings, post, board, kept_open) for post in posts]
        announce(settings, listeners)
        code = 0
        while not code and not stopping.is_set():
            news.wait(RESTART_PAUSE_S)
            news.clear()
            for worker in workers:
                code = code or worker.look()
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
    return code


def _posts(settings: Settings, listeners: Listeners, board: Board) -> list[Post]:
    cpus = cpus_for(settings.workers) if settings.pin_cpus else ()
    return [
        Post(
            listener_fd=listeners.main[slot % len(listeners.main)].fileno(),
            board_fd=board.fd,
            probe_fd=listeners.probe.fileno() if listeners.probe is not None else None,
            slot=slot,
            cpu=cpus[slot] if cpus else None,
        )
        for slot in range(settings.workers)
    ]


class _Worker:
    """One slot, and the process that fills it."""

    def __init__(self, settings: Settings, post: Post, board: Board, kept_open: Sequence[int]) -> None:
        self._settings = settings
        self._post = post
        self._board = board
        self._kept_open = kept_open
        self._is_missed = False
        self._start()

    def look(self) -> int:
        """Start another process if this one has ended; or returns the exit code for which that would not help."""
        code = self._process.poll()
        if code is None:
            return 0
        if not self._is_missed:
            self._is_missed = True
            self._board.clear(self._post.slot)
            if code in LASTING_EXIT_CODES:
                return code
            log.error("worker %d ended with %s; starting another", self._process.pid, code)
        if time.monotonic() - self._started_at >= RESTART_PAUSE_S:
            self._start()
        return 0

    def terminate(self) -> None:
        """Let it finish what it has accepted."""
        self._process.terminate()

    def wait(self) -> None:
        """Wait until it has; not for ever."""
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        post = self._post
        inherited = [fd for fd in (post.listener_fd, post.board_fd, post.probe_fd) if fd is not None]
        arguments = [sys.executable, "-m", "mmserver.cli.worker", msgspec.json.encode(post).decode()]
        self._process = subprocess.Popen(  # noqa: S603 (our own module)
            arguments,
            stdin=subprocess.PIPE,
            pass_fds=[*inherited, *self._kept_open],
            env={"OMP_NUM_THREADS": "1", **os.environ},  # the workers are the threads; an operator may say otherwise
        )
        self._started_at = time.monotonic()
        self._is_missed = False
        assert self._process.stdin is not None  # noqa: S101 (it was asked for)
        with contextlib.suppress(BrokenPipeError):  # it is gone already, and will be missed at the next look
            self._process.stdin.write(msgspec.json.encode(self._settings, enc_hook=str) + b"\n")
            self._process.stdin.flush()
