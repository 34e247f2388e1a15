"""`Sandbox`: runs jobs on untrusted bytes in guarded children, a few at a time, and starts what died again."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mmserver.errors import SandboxUnavailable, WorkerCrashed
from mmserver.sandbox.frames import Setup
from mmserver.sandbox.level import SandboxLevel, self_test
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.process import START_TIMEOUT_S, ZygoteDiedError, ZygoteProcess

MAX_STARTS = 5
STARTS_WINDOW_S = 60.0
"""A zygote that had to be started MAX_STARTS times within the window is not started again until the window has passed."""


class Sandbox:
    """Runs handlers on bytes in processes of their own; threads may share it.

    Nothing is started before the first job or `start`. One zygote forks the children of all jobs, at most `n_workers` at a time.
    A process that forks makes its own Sandbox afterwards.
    """

    def __init__(
        self,
        handlers: str,
        options: Mapping[str, Any],
        *,
        n_workers: int = 2,
        limits: JobLimits | None = None,
        extra_paths: Sequence[Path] = (),
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Say what is to be run.

        handlers: "package.module:function"; the zygote calls the function with `options` (JSON values) and gets the handlers
            by name, each from request bytes to result bytes. What the function imports is trusted, and it imports everything
            that a job will need: a child opens no file, so a module that it asks for first is not found.
        extra_paths: directories that the zygote imports from, after this process's own.
        start_timeout_s: for those imports; the zygote ends itself after two minutes of them, whatever is said here.
        """
        self._setup = Setup(
            handlers=handlers,
            options=dict(options),
            extra_paths=[str(path.absolute()) for path in extra_paths],
            limits=limits or JobLimits(),
        )
        self._start_timeout_s = start_timeout_s
        self._slots = threading.BoundedSemaphore(n_workers)
        self._starting = threading.Lock()
        self._testing = threading.Lock()
        self._zygote: ZygoteProcess | None = None
        self._begun: ZygoteProcess | None = None
        self._started_at_s: deque[float] = deque(maxlen=MAX_STARTS)
        self._last_problem = "it died"
        self._level: SandboxLevel | None = None
        self._is_closed = False

    def start(self) -> None:
        """Start the zygote now, so that the first job does not wait for its imports.

        Raises:
            SandboxUnavailable: the handlers cannot be loaded, or no process can be started.
        """
        self._live_zygote()

    def run(self, job: str, request: bytes, *, timeout_s: float | None = None) -> bytes:
        """Run the handler named `job` on `request` in a new child; wait for a free place first.

        timeout_s: of this job once it has a place; the limits' `wall_s` when None.

        Raises:
            Invalid: the handler raised it; any other error of a handler comes as Undecodable("handler_failed", …).
            WorkerCrashed: the child died, exceeded a limit, or did not answer properly.
            SandboxUnavailable: no child can be started, or the sandbox was closed.
        """
        limits = self._setup.limits
        with self._slots:
            # A zygote that dies is no verdict on the job: somebody may have killed it. Twice is.
            for _ in range(2):
                zygote = self._live_zygote()
                with contextlib.suppress(ZygoteDiedError):
                    return zygote.run_job(job, request, limits.wall_s if timeout_s is None else timeout_s, limits)
                self._discard(zygote)
            raise WorkerCrashed(how="the zygote died with it, twice")

    def level(self) -> SandboxLevel:
        """How jobs are guarded here, found by attacks in real children; done once and kept."""
        with self._testing:
            if self._level is None:
                n_threads = self._live_zygote().n_threads
                self._level = self_test(self.run, n_threads)
            return self._level

    def close(self) -> None:
        """End every process; jobs under way and later ones raise SandboxUnavailable."""
        self._is_closed = True
        begun = self._begun
        if begun is not None:
            begun.kill()  # who waits for its imports holds the lock
        with self._starting:
            zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _live_zygote(self) -> ZygoteProcess:
        with self._starting:
            if self._is_closed:
                raise SandboxUnavailable(reason="it was closed")
            if self._zygote is not None and not self._zygote.is_alive():
                self._zygote.close()
                self._zygote = None
            if self._zygote is None:
                self._zygote = self._new_zygote()
            return self._zygote

    def _new_zygote(self) -> ZygoteProcess:
        now_s = time.monotonic()
        if len(self._started_at_s) == MAX_STARTS and now_s - self._started_at_s[0] < STARTS_WINDOW_S:
            raise SandboxUnavailable(
                reason=f"{MAX_STARTS} starts within {STARTS_WINDOW_S:g} s were not enough; the last: {self._last_problem}"
            )
        self._started_at_s.append(now_s)
        try:
            self._begun = zygote = ZygoteProcess(self._setup, self._start_timeout_s)
            if self._is_closed:
                zygote.kill()  # `close` may not have seen it
            zygote.get_ready()
        except SandboxUnavailable as error:
            self._last_problem = str(error.values["reason"])
            raise
        finally:
            self._begun = None
        return zygote

    def _discard(self, zygote: ZygoteProcess) -> None:
        with self._starting:
            if self._zygote is not zygote:
                return
            self._zygote = None
        zygote.close()
