"""The process that forks a child for every job: it imports what handlers need, never sees a job's bytes, has one thread.

Started by `process.py` with `python -I -m`, an empty environment, its control socket as standard input and no other descriptor.
It ends, and all its children with it, when the server's end of the control socket closes, however that came.
`frames.py` says what goes over the sockets. The child talks to the server directly, so that a child that was taken over can
lie in its own answer only.
"""

import codecs
import contextlib
import gc
import importlib
import io
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

import msgspec

from mmserver.errors import MmserverError, Undecodable
from mmserver.sandbox import frames
from mmserver.sandbox.hardening import Hardener, set_not_dumpable
from mmserver.sandbox.level import probes

NICENESS = 5
"""Whoever asks for a prediction does not wait for somebody's files to be read."""
SETUP_LIMIT_S = 120
"""The zygote ends if its handlers' imports take longer, also when the server that would notice is gone."""
MAX_SETUP_BYTES = 16 << 20
MAX_TEXT = 2000
_JOB_FD = 3
_ENCODINGS = (
    "ascii",
    "latin-1",
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "utf-32-le",
    "utf-32-be",
    "cp1252",
    "cp437",
)
"""The last is that of names in zip archives, as most programs but PyTorch write them."""

Handlers = Mapping[str, Callable[[bytes], bytes]]


def main() -> None:
    """Load the handlers, say so, and serve jobs until the server goes."""
    # The default action of SIGALRM is to end the process, whatever an import is stuck in.
    signal.alarm(SETUP_LIMIT_S)
    # The thread that started this may be kept on one CPU; the main thread of the server is not.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    with control, control.makefile("rb") as incoming:
        block = frames.read_block(incoming, MAX_SETUP_BYTES)
        if block is None:
            return
        setup = msgspec.json.decode(block, type=frames.Setup)
        handlers, problem = _load(setup)
        # A child opens no file, so what Python would import on first use must be here.
        for encoding in _ENCODINGS:
            codecs.lookup(encoding)
        if problem is None:
            hardener = Hardener(setup.limits)
            hardener.leave_namespaces()
            set_not_dumpable()
        os.nice(NICENESS)  # not before: a server that starts or ends waits for what is above
        ready = frames.Ready(problem=problem or "", n_threads=_n_threads())
        frames.send_block(control, msgspec.json.encode(ready), time.monotonic() + SETUP_LIMIT_S)
        if problem is not None:
            return
        control.settimeout(None)
        signal.alarm(0)
        gc.collect()
        gc.freeze()
        _Zygote(control, null, handlers, hardener).serve()


def _load(setup: frames.Setup) -> tuple[Handlers, str | None]:
    sys.path.extend(path for path in setup.extra_paths if path not in sys.path)
    module_name, _, function_name = setup.handlers.partition(":")
    try:
        return dict(getattr(importlib.import_module(module_name), function_name)(setup.options)), None
    except Exception as error:  # noqa: BLE001  plugins are loaded here; the server raises what this says
        return {}, f"{setup.handlers}: {type(error).__name__}: {error}"[:MAX_TEXT]


def _n_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208  no Path is wanted of it
    except OSError:
        return 1


class _Zygote:
    """The loop of the zygote: take jobs, kill those given up, report those that ended."""

    def __init__(self, control: socket.socket, null_fd: int, handlers: Handlers, hardener: Hardener) -> None:
        self._control = control
        self._null_fd = null_fd
        self._handlers = handlers
        self._hardener = hardener
        self._pid = os.getpid()
        self._status_fds: dict[int, int] = {}
        self._poller = select.poll()
        self._poller.register(control, select.POLLIN)
        # SIGCHLD writes to the pipe; a pidfd would be simpler, but not every kernel has it.
        self._wake_fd, wake_write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._wake_fd, select.POLLIN)
        signal.set_wakeup_fd(wake_write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> None:
        """Until the control socket ends; no child is left behind."""
        is_wanted = True
        while is_wanted:
            for fd, _ in self._poller.poll():
                if fd == self._control.fileno():
                    is_wanted = self._take_job()
                elif fd == self._wake_fd:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_fd, 4096)
                else:
                    self._give_up(fd)
            self._report_ended()
        # Nothing is reported of these: the server shall see that the zygote ended, not that the jobs failed.
        for pid in self._status_fds:
            _kill(pid)
            os.waitpid(pid, 0)

    def _take_job(self) -> bool:
        _, fds, _, _ = socket.recv_fds(self._control, 1, 2)
        if len(fds) != 2:
            return False
        job_fd, status_fd = fds
        try:
            pid = os.fork()
        except OSError as error:
            _send(status_fd, frames.STATUS.pack(frames.STATUS_NOT_FORKED, error.errno or 0, 0.0, 0))
            os.close(status_fd)
        else:
            if pid == 0:
                self._run_child(job_fd)
            self._status_fds[pid] = status_fd
            self._poller.register(status_fd, select.POLLIN)
        os.close(job_fd)
        return True

    def _give_up(self, status_fd: int) -> None:
        self._poller.unregister(status_fd)
        for pid, known_fd in self._status_fds.items():
            if known_fd == status_fd:
                _kill(pid)

    def _report_ended(self) -> None:
        for pid in list(self._status_fds):
            # WNOWAIT keeps the process id taken until its group was killed too.
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                _kill(pid)
                self._report(pid)

    def _report(self, pid: int) -> None:
        _, wait_status, usage = os.wait4(pid, 0)
        cpu_s, peak_bytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
        status_fd = self._status_fds.pop(pid)
        _send(status_fd, frames.STATUS.pack(frames.STATUS_ENDED, wait_status, cpu_s, peak_bytes))
        with contextlib.suppress(KeyError):
            self._poller.unregister(status_fd)
        os.close(status_fd)

    def _run_child(self, job_fd: int) -> NoReturn:
        """Everything here happens in the child, which never returns to the loop."""
        exit_code = 1
        try:
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(job_fd, _JOB_FD)
            for fd in (0, 1, 2):
                os.dup2(self._null_fd, fd)
            os.closerange(_JOB_FD + 1, os.sysconf("SC_OPEN_MAX"))
            with io.BufferedReader(io.FileIO(_JOB_FD, "rb", closefd=False)) as incoming:
                self._hardener.harden(self._pid)
                _serve_one(incoming, {**self._handlers, **probes(self._hardener.steps)})
            exit_code = 0
        finally:
            os._exit(exit_code)


def _serve_one(incoming: BinaryIO, handlers: Handlers) -> None:
    """Read the job to its end, run it, answer."""
    name = frames.read_block(incoming, MAX_SETUP_BYTES)
    request = None if name is None else frames.read_block(incoming, sys.maxsize)
    if name is None or request is None:
        return
    kind, body = _answer(handlers, name.decode(), request)
    _write_all(kind + frames.LENGTH.pack(len(body)))
    _write_all(body)


def _answer(handlers: Handlers, name: str, request: bytes) -> tuple[bytes, bytes]:
    handler = handlers.get(name)
    try:
        if handler is None:
            raise Undecodable("handler_failed", f"no handler is named {name!r}")
        return frames.ANSWER_RESULT, bytes(handler(request))
    except MmserverError as error:
        return frames.ANSWER_ERROR, _error_answer(error)
    except MemoryError:
        return frames.ANSWER_NO_MEMORY, b""
    except BaseException as error:  # noqa: BLE001  plugins run here; whatever they raise is the job's failure
        return frames.ANSWER_ERROR, _error_answer(Undecodable("handler_failed", f"{type(error).__name__}: {error}"))


def _error_answer(error: MmserverError) -> bytes:
    values = {str(name): _plain(value) for name, value in error.values.items()}
    body = msgspec.json.encode(frames.ErrorAnswer(code=error.code, values=values))
    if len(body) <= frames.MAX_ERROR_BYTES:
        return body
    return _error_answer(Undecodable("handler_failed", f"{type(error).__name__}: {error}"))


def _plain(value: Any) -> Any:
    """What JSON can say of a value in an error, bounded."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(str(key))): _plain(item) for key, item in value.items()}
    return str(value)[:MAX_TEXT].encode("utf-8", "backslashreplace").decode()


def _write_all(body: bytes) -> None:
    rest = memoryview(body)
    while rest:
        rest = rest[os.write(_JOB_FD, rest) :]


def _kill(pid: int) -> None:
    """Kill a child that is not reaped yet, and what it started."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _send(fd: int, record: bytes) -> None:
    # The server closes its end when it has a whole answer.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        os.write(fd, record)


if __name__ == "__main__":
    main()
