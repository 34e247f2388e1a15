"""The server's side of one zygote: starting it, handing it jobs, and what became of each of them."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time

import msgspec

from mmserver.errors import Invalid, MmserverError, SandboxUnavailable, Undecodable, WorkerCrashed, error_from_code
from mmserver.sandbox import frames
from mmserver.sandbox.limits import JobLimits

START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 3.0
"""How long a zygote may take to kill and report a child, or to end; after that it is killed itself."""
_STDERR_BYTES = 4096
_BOOT = "import sys; sys.path.extend(p for p in sys.argv[1:] if p not in sys.path); import mmserver.sandbox.zygote as z; z.main()"


class ZygoteDiedError(Exception):
    """The zygote ended under a job; the job was perhaps not begun."""


class ZygoteProcess:
    """A running zygote. Threads may run jobs on it at the same time."""

    def __init__(self, setup: frames.Setup, start_timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it; jobs have to wait until `get_ready` has returned.

        Raises:
            SandboxUnavailable: it cannot be started.
        """
        self.n_threads = 0
        self._control, theirs = socket.socketpair()
        try:
            with theirs:
                self._stderr_fd, self._process = _spawn(theirs)
        except OSError as error:
            self._control.close()
            raise SandboxUnavailable(reason=f"it cannot be started: {error}") from error
        self._setup = setup
        self._start_timeout_s = start_timeout_s

    def get_ready(self) -> None:
        """Wait until its handlers are loaded; else it is closed.

        Raises:
            SandboxUnavailable: they cannot be loaded, or it was killed meanwhile; the reason has its last words.
        """
        try:
            self.n_threads = self._wait_until_ready(self._setup)
        except BaseException:
            self.close()
            raise

    def kill(self) -> None:
        """End it at once, also for a thread that waits for it; it is still to be closed."""
        self._process.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it runs still."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it and every child, and wait until it is gone; a second call does nothing."""
        # The end of the control socket is the order to end.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._control.close()
        if self._stderr_fd >= 0:
            os.close(self._stderr_fd)
            self._stderr_fd = -1

    def run_job(self, job: str, request: bytes, timeout_s: float, limits: JobLimits) -> bytes:
        """The handler's bytes.

        Raises:
            ZygoteDiedError: see there.
            WorkerCrashed: the child died, took too long, or answered what is no answer.
            SandboxUnavailable: no child could be forked.
            Invalid: what the handler raised.
        """
        deadline = time.monotonic() + timeout_s
        data, their_data = socket.socketpair()
        status, their_status = socket.socketpair()
        with data, status:
            with their_data, their_status:
                self._hand_over(their_data, their_status)
            try:
                answer = _exchange(data, job, request, deadline, limits.max_result_bytes)
            except TimeoutError as error:
                self._end_of_job(status, limits)
                raise WorkerCrashed(how=f"timeout after {timeout_s:g} s") from error
            except frames.GarbledAnswerError as error:
                raise WorkerCrashed(how=str(error)) from error
            if answer is None:
                raise WorkerCrashed(how=self._end_of_job(status, limits))
        return _result(answer, limits)

    def _hand_over(self, their_data: socket.socket, their_status: socket.socket) -> None:
        try:
            # One byte with its descriptors is one send: threads need no lock.
            socket.send_fds(self._control, [b"J"], [their_data.fileno(), their_status.fileno()])
        except OSError as error:
            raise ZygoteDiedError from error

    def _end_of_job(self, status: socket.socket, limits: JobLimits) -> str:
        """Have the child killed if it lives, and say how it ended."""
        with contextlib.suppress(OSError):
            status.shutdown(socket.SHUT_WR)
        with io.BufferedReader(frames.DeadlineReader(status, time.monotonic() + _END_TIMEOUT_S)) as incoming:
            try:
                record = incoming.read(frames.STATUS.size)
            except TimeoutError:
                self._process.kill()
                record = b""
        if len(record) < frames.STATUS.size:
            raise ZygoteDiedError
        kind, number, cpu_s, peak_bytes = frames.STATUS.unpack(record)
        if kind == frames.STATUS_NOT_FORKED:
            raise SandboxUnavailable(reason=f"no process can be forked: {os.strerror(number)}")
        return _how(number, cpu_s, peak_bytes, limits)

    def _wait_until_ready(self, setup: frames.Setup) -> int:
        deadline = time.monotonic() + self._start_timeout_s
        try:
            frames.send_block(self._control, msgspec.json.encode(setup), deadline)
            self._control.settimeout(None)
            with io.BufferedReader(frames.DeadlineReader(self._control, deadline)) as incoming:
                block = frames.read_block(incoming, frames.MAX_ERROR_BYTES)
        except TimeoutError:
            raise SandboxUnavailable(reason=f"it was not ready after {self._start_timeout_s:g} s") from None
        except OSError:
            block = None
        if block is None:
            self._process.wait(_END_TIMEOUT_S)
            raise SandboxUnavailable(reason=f"it ended while it started: {self._last_words()}")
        ready = msgspec.json.decode(block, type=frames.Ready)
        if ready.problem:
            raise SandboxUnavailable(reason=ready.problem)
        return ready.n_threads

    def _last_words(self) -> str:
        try:
            text = os.read(self._stderr_fd, 1 << 16)
        except BlockingIOError:
            text = b""
        return text[-_STDERR_BYTES:].decode("utf-8", "replace").strip() or f"status {self._process.returncode}"


def _spawn(control: socket.socket) -> tuple[int, subprocess.Popen[bytes]]:
    environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    # Its telemetry would be a second thread at the fork, and nobody's business.
    environment["ORT_DISABLE_TELEMETRY"] = "1"
    # Interpreters outside the system's directories find their libraries by it.
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    # A pipe that is full drops what is written: it keeps the first 64 KiB, and nobody waits.
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        process = subprocess.Popen(  # noqa: S603  our own interpreter and module
            [sys.executable, "-I", "-B", "-c", _BOOT, *(path for path in sys.path if os.path.isabs(path))],  # noqa: PTH117
            stdin=control.fileno(),
            stdout=write_fd,
            stderr=write_fd,
            env=environment,
            cwd="/",
            close_fds=True,
            start_new_session=True,
        )
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)
    return read_fd, process


def _exchange(
    data: socket.socket, job: str, request: bytes, deadline: float, max_result_bytes: int
) -> tuple[bytes, bytes] | None:
    with contextlib.suppress(ConnectionError):
        frames.send_block(data, job.encode(), deadline)
        frames.send_block(data, request, deadline)
    with io.BufferedReader(frames.DeadlineReader(data, deadline)) as incoming:
        return frames.read_answer(incoming, max_result_bytes)


def _result(answer: tuple[bytes, bytes], limits: JobLimits) -> bytes:
    kind, body = answer
    if kind == frames.ANSWER_RESULT:
        return body
    if kind == frames.ANSWER_NO_MEMORY:
        raise WorkerCrashed(how=f"out of memory (limit {limits.memory_bytes >> 20} MiB)")
    raise _raised(body)


def _raised(body: bytes) -> MmserverError:
    """The handler's error; a child that was taken over cannot claim that the server's disk is full."""
    try:
        sent = msgspec.json.decode(body, type=frames.ErrorAnswer)
        error = error_from_code(sent.code, sent.values)
    except (msgspec.MsgspecError, RecursionError, TypeError, KeyError, ValueError, IndexError, AttributeError):
        return WorkerCrashed(how="a garbled error")
    if isinstance(error, Invalid):
        return error
    return Undecodable("handler_failed", f"{sent.code}: {error}")


def _how(wait_status: int, cpu_s: float, peak_bytes: int, limits: JobLimits) -> str:
    code = os.waitstatus_to_exitcode(wait_status)
    if code >= 0:
        return f"exited with {code} and no answer"
    number = -code
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and cpu_s >= limits.cpu_s):
        return f"{name} (over {limits.cpu_s} s of CPU time)"
    if number == signal.SIGKILL:
        return f"{name} (memory: {peak_bytes >> 20} MiB were in use)"
    return name
