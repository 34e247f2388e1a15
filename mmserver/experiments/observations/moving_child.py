"""The process that moves for servers on one data directory: it moves until its server ends, however that ends.

Started by `moving_process.py` with a pipe as standard input that nobody writes to; what it has to say are lines of JSON.
"""

import ctypes
import logging
import os
import select
import signal
import sys
from contextlib import suppress

import msgspec

from mmserver.experiments.observations.moving import Moving, MovingOptions

NICENESS = 5
"""Whoever asks for a prediction goes before; it is not starved for that."""
_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class Setup(msgspec.Struct, frozen=True):
    """What the process is started with.

    Fields:
        lock_fd: the lock of whoever moves, open and held; the file's text is the present problem, for other servers.
    """

    options: MovingOptions
    parent_pid: int
    lock_fd: int


class TurnEnded(msgspec.Struct, frozen=True, tag=True):
    """One turn's result; damage since the last."""

    problem: str | None
    n_damaged_bytes: int


class LogLine(msgspec.Struct, frozen=True, tag=True):
    """What the server is to log."""

    level: int
    logger: str
    text: str


_encode = msgspec.json.Encoder().encode


def main() -> None:
    """Move until the server is gone."""
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    _end_with(setup.parent_pid)
    _take_cpus(setup.parent_pid)
    os.nice(NICENESS)
    logging.basicConfig(level=logging.INFO, handlers=[_ToServer()])
    moving = Moving(setup.options)
    told: str | None = ""
    pause_s = 0.0
    while not select.select([0], [], [], pause_s)[0]:
        pause_s = moving.take_turn()
        _tell(TurnEnded(moving.problem, moving.n_damaged_bytes))
        moving.n_damaged_bytes = 0
        if moving.problem != told:
            told = moving.problem
            _write_problem(setup.lock_fd, told or "")
    moving.close()


class _ToServer(logging.Handler):
    """Hands each record to the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it as a line, its traceback too."""
        _tell(LogLine(record.levelno, record.name, self.format(record)))


def _tell(line: TurnEnded | LogLine) -> None:
    data = _encode(line) + b"\n"
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        sys.exit(0)


def _write_problem(lock_fd: int, problem: str) -> None:
    with suppress(OSError):  # on a full disk other servers do not learn of it
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, problem.encode(), 0)


def _end_with(parent_pid: int) -> None:
    """Be killed when the thread that started this ends, also while a move takes long: what was not committed is moved again."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(0)


def _take_cpus(parent_pid: int) -> None:
    """All CPUs of the server; not the one that its Python is kept on, as the thread that started this is, if there is another."""
    if not hasattr(os, "sched_setaffinity"):
        return
    inherited, of_server = os.sched_getaffinity(0), os.sched_getaffinity(parent_pid)
    with suppress(OSError):
        os.sched_setaffinity(0, of_server - inherited if len(inherited) == 1 and of_server - inherited else of_server)
