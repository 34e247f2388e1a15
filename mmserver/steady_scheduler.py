"""An APScheduler that goes on when the wall clock is set back or forth.

APScheduler computes the next run from the wall clock; after the clock was set back by an hour nothing would run for that
hour. Here the wall clock is compared with the monotonic one before each look, and after a jump every job is due at once.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_STOPPED
from apscheduler.triggers.interval import IntervalTrigger

MAX_SLEEP_S = 1.0
JUMP_S = 2.0
MAX_RUNNING = 10
"""More than there are jobs: what looks for others' changes must not wait for those that take long."""


class SteadyScheduler:
    """Runs jobs at intervals, each in a thread of a small pool, never two runs of one job at once."""

    def __init__(
        self, wall_clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._scheduler = _JumpAwareScheduler(wall_clock, monotonic)
        logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)  # a run that was left out is made up for

    def every(self, name: str, interval_s: float, job: Callable[[], object]) -> None:
        """Run `job` every `interval_s` seconds, the first time after one interval; a run that is late is made up for once."""
        self._scheduler.add_job(
            job, IntervalTrigger(seconds=interval_s, timezone=UTC), id=name, name=name, max_instances=1, coalesce=True
        )

    def start(self) -> None:
        """Begin."""
        self._scheduler.start()

    def shutdown(self, *, wait: bool) -> None:
        """End; with `wait`, after the jobs that are running."""
        if self._scheduler.state != STATE_STOPPED:
            self._scheduler.shutdown(wait=wait)


class _JumpAwareScheduler(BackgroundScheduler):  # type: ignore[misc]
    def __init__(self, wall_clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        super().__init__(
            executors={"default": ThreadPoolExecutor(MAX_RUNNING)},
            job_defaults={"misfire_grace_time": None},
            timezone=UTC,
        )
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self._offset_s = wall_clock() - monotonic()

    def _main_loop(self) -> None:
        wait_s: float | None = 0.0
        while self.state != STATE_STOPPED:
            self._event.wait(MAX_SLEEP_S if wait_s is None else min(wait_s, MAX_SLEEP_S))
            self._event.clear()
            self._make_due_after_jump()
            wait_s = self._process_jobs()

    def _make_due_after_jump(self) -> None:
        offset_s = self._wall_clock() - self._monotonic()
        if abs(offset_s - self._offset_s) > JUMP_S:
            for job in self.get_jobs():
                job.modify(next_run_time=datetime.now(UTC))
        self._offset_s = offset_s
