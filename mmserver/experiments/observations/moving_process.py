"""The server's side of the process that moves: one for a data directory, started when there is something to move.

Its lock is passed to it, so that it is held for exactly as long as it lives; another server starts the next where it died with its own.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from mmserver.experiments.observations.journal import lock_now
from mmserver.experiments.observations.moving import Moving, MovingOptions
from mmserver.experiments.observations.moving_child import LogLine, Setup, TurnEnded

LOCK_NAME = "mover.lock"
MAX_DEATHS = 3
"""In a row; then the server moves by itself for a while."""
RESTART_PAUSE_S = 1.0
RETRY_S = 300.0
LONG_LIFE_S = 60.0
"""Who has lived as long did not die of what it was started with."""
_END_TIMEOUT_S = 10.0
_MAX_PROBLEM_BYTES = 4096
_BOOT = (
    "import sys; sys.path.extend(p for p in sys.argv[2:] if p not in sys.path); "
    "import mmserver.experiments.observations.moving_child as child; child.main()"
)
_decode: Callable[[bytes], TurnEnded | LogLine] = msgspec.json.Decoder(TurnEnded | LogLine).decode

log = logging.getLogger(__name__)


class MovingProcess:
    """A running process that moves.

    Args:
        lock_fd: the lock that it holds from now on.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, options: MovingOptions, lock_fd: int) -> None:
        setup = Setup(options, os.getpid(), lock_fd)
        paths = [path for path in sys.path if os.path.isabs(path)]  # noqa: PTH117
        environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ}
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            [sys.executable, "-I", "-B", "-c", _BOOT, msgspec.json.encode(setup).decode(), *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            pass_fds=[lock_fd],
            start_new_session=True,
        )
        self._rest = b""
        os.set_blocking(self._out_fd, False)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll()

    def read(self) -> list[TurnEnded | LogLine]:
        """What it has said since this was last asked; what is no line of ours comes from the interpreter, and is a warning."""
        said = self._rest
        with suppress(BlockingIOError):
            while part := os.read(self._out_fd, 1 << 16):
                said += part
        *lines, self._rest = said.split(b"\n")
        return [_said(line) for line in lines if line]

    def close(self) -> list[TurnEnded | LogLine]:
        """End it, after its present turn, and wait until it is gone.

        Returns:
            the last of what it had to say
        """
        said = self._rest
        try:
            said += self._process.communicate(timeout=_END_TIMEOUT_S)[0]  # which closes its standard input first
        except subprocess.TimeoutExpired:
            self._process.kill()
            said += self._process.communicate()[0]
        return [_said(line) for line in said.split(b"\n") if line]

    @property
    def _out_fd(self) -> int:
        assert self._process.stdout is not None  # noqa: S101 (it was asked for)
        return self._process.stdout.fileno()


class MovingSupervisor:
    """Sees that somebody moves: a process of this server, or of another on the data directory, or, where none can, the caller."""

    def __init__(self, moving: Moving) -> None:
        self._moving = moving
        self._process: MovingProcess | None = None
        self._n_deaths = 0
        self._start_at = 0.0
        self._problem: str | None = None

    @property
    def pid(self) -> int | None:
        """The process id of this server's own; None where it has none."""
        return None if self._process is None else self._process.pid

    def take_turn(self) -> float:
        """Look after the process, start it if there is something to move, or move.

        Returns:
            seconds until the next turn
        """
        try:
            return self._take_turn()
        except Exception as error:
            if self._problem != str(error):
                log.warning("the process that moves observations cannot be looked after: %s", error, exc_info=error)
            self._problem = str(error)
            return self._moving.take_turn()

    def _take_turn(self) -> float:
        if self._process is not None:
            self._listen(self._process)
        n_unmoved = self._moving.say_unmoved()
        if self._process is not None:
            return self._moving.options.interval_s
        return self._take_turn_alone(n_unmoved)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            process, self._process = self._process, None
            self._hear(process.close())

    def _take_turn_alone(self, n_unmoved: int) -> float:
        interval_s = self._moving.options.interval_s
        lock_fd = self._open_lock()
        try:
            if lock_fd is not None and not lock_now(lock_fd):
                self._moving.problem = _problem_in(lock_fd)
                return interval_s
            if lock_fd is not None:
                os.ftruncate(lock_fd, 0)  # what its last holder had trouble with
            has_to_wait = time.monotonic() < self._start_at
            if lock_fd is None or not n_unmoved or (has_to_wait and self._n_deaths >= MAX_DEATHS):
                return self._moving.take_turn()
            if has_to_wait or self._start(lock_fd):
                return interval_s
        finally:
            if lock_fd is not None:
                os.close(lock_fd)
        return self._moving.take_turn()

    def _start(self, lock_fd: int) -> bool:
        try:
            self._process = MovingProcess(self._moving.options, lock_fd)
        except OSError as error:
            log.warning("no process that moves observations can be started (%s): this one does it", error)
            self._n_deaths = MAX_DEATHS
            self._start_at = time.monotonic() + RETRY_S
            return False
        return True

    def _listen(self, process: MovingProcess) -> None:
        status = process.status
        self._hear(process.read())
        if status is not None:
            self._note_death(process, status)

    def _hear(self, lines: Iterable[TurnEnded | LogLine]) -> None:
        for said in lines:
            if isinstance(said, LogLine):
                logging.getLogger(said.logger).log(said.level, "%s", said.text)
            else:
                self._moving.problem = said.problem
                self._moving.n_damaged_bytes += said.n_damaged_bytes

    def _note_death(self, process: MovingProcess, status: int) -> None:
        lived_s = time.monotonic() - process.started_at
        self.close()
        self._n_deaths = 1 if lived_s >= LONG_LIFE_S else self._n_deaths + 1
        if self._n_deaths < MAX_DEATHS:
            pause_s = RESTART_PAUSE_S * (self._n_deaths - 1)
            log.warning("the process that moves observations ended with %d; another is started", status)
        else:
            pause_s = RETRY_S
            log.warning(
                "the process that moves observations ended with %d, the %d. time in a row: this one does it for %g s",
                status, self._n_deaths, pause_s,
            )  # fmt: skip
        self._start_at = time.monotonic() + pause_s

    def _open_lock(self) -> int | None:
        folder = self._moving.folder
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return None


def _said(line: bytes) -> TurnEnded | LogLine:
    try:
        return _decode(line)
    except msgspec.DecodeError:
        return LogLine(logging.WARNING, __name__, line.decode("utf-8", "replace"))


def _problem_in(lock_fd: int) -> str | None:
    return os.pread(lock_fd, _MAX_PROBLEM_BYTES, 0).decode("utf-8", "replace") or None
