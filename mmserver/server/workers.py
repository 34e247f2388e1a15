"""Several server processes: the supervisor holds the sockets and the data directory, and replaces workers that die."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from mmserver.catalog.opening import open_store
from mmserver.security.access import Access
from mmserver.server.board import Board
from mmserver.server.post import Post
from mmserver.server.process import GRACE_S, announce
from mmserver.server.signals import Wishes
from mmserver.server.sockets import Listeners
from mmserver.serving.cpus import cpus_for
from mmserver.settings import Settings
from mmserver.storage.data_dir import DataDir

LOOK_S = 1.0
RESTART_PAUSE_S = 1.0
MAX_RESTART_PAUSE_S = 30.0
SHORT_LIFE_S = 30.0
"""A worker that ends sooner may never have served: the pause before the next doubles each time, or starting would be all we do."""
END_TIMEOUT_S = GRACE_S + 5
HASTENED_END_S = 4.0
LASTING_EXIT_CODES = (2, 3, 4)
"""Of a worker that was refused (see `mmserver --help`): starting it again would not help."""
log = logging.getLogger(__name__)


def supervise(settings: Settings, listeners: Listeners) -> int:
    """Hold the data directory, keep the workers running, and end them together. Returns the exit code.

    What keeps a server from starting is found here first, once; a worker that is refused later on ends them all.
    """
    with open_store(settings) as store:
        access = Access(store.database, settings.auth)
    wishes = Wishes.of_signals()
    signal.signal(signal.SIGCHLD, lambda _number, _frame: wishes.wake())
    with ExitStack() as held:
        kept_open = []
        if settings.snapshot is None:
            # The workers hold the lock too: one that outlives a killed supervisor must not meet another server.
            kept_open.append(held.enter_context(DataDir(settings.data_dir).lock()).fileno())
        board = Board.create(settings.workers)
        held.callback(board.close)
        posts = _posts(settings, listeners, board)
        workers = [_Worker(settings, post, board, kept_open) for post in posts]
        announce(settings, listeners, access)
        code = 0
        while not code and not wishes.is_stopping:
            wishes.wait(LOOK_S)
            for worker in workers:
                code = code or worker.look()
        _end(workers, wishes)
    return code


def _end(workers: "Sequence[_Worker]", wishes: Wishes) -> None:
    """Let all finish what they have accepted; not for ever, and not for long when asked again."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + END_TIMEOUT_S
    was_hastened = False
    while any(worker.is_running() for worker in workers) and time.monotonic() < deadline:
        wishes.wait(LOOK_S)
        if wishes.is_hastened and not was_hastened:
            was_hastened = True
            deadline = min(deadline, time.monotonic() + HASTENED_END_S)
            for worker in workers:
                worker.terminate()
    for worker in workers:
        worker.kill()


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
        self._restart_at = 0.0
        self._n_short_lives = 0
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
            pause_s = self._pause_s()
            self._restart_at = time.monotonic() + pause_s
            log.error("worker %d ended with %s; starting another in %g s", self._process.pid, code, pause_s)
        if time.monotonic() >= self._restart_at:
            self._start()
        return 0

    def terminate(self) -> None:
        """Let it finish what it has accepted."""
        self._process.terminate()

    def is_running(self) -> bool:
        """Whether its process has not ended yet."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End it, if that has not happened."""
        self._process.kill()
        self._process.wait()

    def _pause_s(self) -> float:
        """How long to wait with another: not at all for one that has served long, or has ended soon for the first time."""
        lived_s = time.monotonic() - self._started_at
        self._n_short_lives = self._n_short_lives + 1 if lived_s < SHORT_LIFE_S else 0
        if self._n_short_lives <= 1:
            return 0.0
        return float(min(RESTART_PAUSE_S * 2 ** min(self._n_short_lives - 2, 16), MAX_RESTART_PAUSE_S))

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
