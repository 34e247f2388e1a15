"""The clockwork behind the jobs: it goes on when somebody sets the clock, and one job's trouble is not another's."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import apscheduler.schedulers.base
import pytest

from mmserver import steady_scheduler
from mmserver.app import boot_clock
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError
from mmserver.jobs import Jobs
from mmserver.plugin_loading import load_plugins
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings
from mmserver.steady_scheduler import SteadyScheduler
from mmserver.storage.database import open_database
from mmserver.storage.lease import Lease
from mmserver.storage.schema import create_database

HANDLERS = "mmserver.catalog.ingest:handlers"
HOSTILE_HANDLERS = Path(__file__).parent / "sandbox"


class WallClock:
    """The wall clock that the scheduler sees, which somebody may set."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def __call__(self) -> float:
        return self.now(UTC).timestamp()

    def now(self, tz: tzinfo | None = None) -> datetime:
        """In the place of `datetime.now`."""
        return datetime.now(tz) + self.offset


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    """The clock of APScheduler and of our own part of it."""
    clock = WallClock()
    for module in (apscheduler.schedulers.base, steady_scheduler):
        monkeypatch.setattr(module, "datetime", clock)
    return clock


class Counter:
    """Counts calls, and lets a test wait for the next ones."""

    def __init__(self) -> None:
        self._called = threading.Semaphore(0)

    def __call__(self) -> None:
        self._called.release()

    def wait(self, times: int, timeout_s: float = 60) -> bool:
        deadline = time.monotonic() + timeout_s
        return all(self._called.acquire(timeout=max(0, deadline - time.monotonic())) for _ in range(times))

    def pending(self) -> int:
        """How often it was called since the last wait."""
        n = 0
        while self._called.acquire(blocking=False):
            n += 1
        return n


@pytest.mark.parametrize(
    "jump",
    [
        pytest.param(timedelta(hours=-1), id="back an hour"),
        pytest.param(timedelta(hours=1), id="on an hour"),
        pytest.param(timedelta(days=3650), id="on ten years"),
        pytest.param(timedelta(days=-3650), id="back ten years"),
    ],
)
def test_jobs_go_on_at_their_interval_whatever_the_wall_clock_does(wall_clock: WallClock, jump: timedelta) -> None:
    scheduler = SteadyScheduler(wall_clock)
    often, rarely = Counter(), Counter()
    scheduler.every("often", 0.05, often)
    scheduler.every("rarely", 3600, rarely)
    scheduler.start()
    try:
        assert often.wait(3)
        wall_clock.offset = jump
        assert often.wait(10)
        assert rarely.wait(1), "after a jump each job is due once"
        begun = time.monotonic()
        often.pending()
        assert often.wait(10)
        assert time.monotonic() - begun > 0.3, "the runs that the jump seemed to leave out are not made up for"
        assert rarely.pending() == 0
    finally:
        scheduler.shutdown(wait=True)


def test_a_job_that_takes_longer_than_its_interval_does_not_run_twice_at_once() -> None:
    scheduler = SteadyScheduler()
    runs: list[int] = []
    finished, go_on = Counter(), threading.Semaphore(0)

    def job() -> None:
        runs.append(threading.get_ident())
        go_on.acquire(timeout=60)
        runs.remove(threading.get_ident())
        finished()

    others = Counter()
    scheduler.every("slow", 0.05, job)
    scheduler.every("other", 0.05, others)
    scheduler.start()
    try:
        for _ in range(3):
            assert others.wait(5)  # several intervals of the slow one
            assert len(runs) <= 1
            go_on.release()
            assert finished.wait(1)
    finally:
        go_on.release(10)
        scheduler.shutdown(wait=True)


# --- the jobs of a process ------------------------------------------------------------------------------------------------


@pytest.fixture
def make_jobs(tmp_path: Path) -> Iterator[Callable[..., Jobs]]:
    """Jobs on one real database, each with a store of its own as a process has; `shared` ones claim the lease."""
    path = tmp_path / "state.db"
    create_database(path, datetime.now(UTC))
    opened: list[tuple[Jobs, Store]] = []

    def make(
        *,
        shared: bool = False,
        read_only: bool = False,
        ttl_s: float = 15.0,
        handlers: str = HANDLERS,
        options: Any = None,
    ) -> Jobs:
        database = open_database(path, n_readers=4)
        settings = Settings(data_dir=tmp_path, watch_interval_s=0.05, snapshot_interval_s=0.05, snapshot_keep=2)
        sandbox = Sandbox(handlers, options or {}, n_workers=1, extra_paths=[HOSTILE_HANDLERS])
        store = Store(
            settings=settings, database=database, plugins=load_plugins(), sandbox=sandbox, read_only=read_only
        )
        lease = Lease(database, "jobs", f"process {len(opened)}", ttl_s, boot_clock) if shared else None
        jobs = Jobs(store, tmp_path / "snapshots", lease)
        opened.append((jobs, store))
        return jobs

    (tmp_path / "snapshots").mkdir()
    yield make
    for _, store in opened:
        store.close()


def until(is_so: Callable[[], object]) -> bool:
    """Whether it is so within a minute."""
    deadline = time.monotonic() + 60
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_the_check_fails_when_nothing_is_looked_at_any_more(
    make_jobs: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs()
    jobs.start()
    assert until(lambda: jobs.check()["silence_s"] < 1)
    assert jobs.check()["status"] == "ok"
    jobs.stop()
    now = time.monotonic()
    monkeypatch.setattr("mmserver.jobs.time.monotonic", lambda: now + 60)
    found = jobs.check()
    assert (found["status"], found["runs_watch"]) == ("failing", True)
    assert found["silence_s"] >= 59


def test_only_the_holder_of_the_lease_takes_snapshots_and_the_next_takes_over(
    make_jobs: Callable[..., Jobs], tmp_path: Path
) -> None:
    first, second = make_jobs(shared=True), make_jobs(shared=True)
    first.start()
    assert until(lambda: first.check()["runs_watch"])
    second.start()
    assert until(lambda: list((tmp_path / "snapshots").glob("*.snapshot")))
    assert not second.check()["runs_watch"]
    first.stop()
    assert until(lambda: second.check()["runs_watch"])
    second.stop()


def test_a_read_only_process_follows_and_does_nothing_else(make_jobs: Callable[..., Jobs], tmp_path: Path) -> None:
    jobs = make_jobs(read_only=True)
    jobs.start()
    assert until(lambda: jobs.check()["silence_s"] < 0.5)
    jobs.stop()
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_jobs_that_are_stopped_at_once_do_not_start_later(make_jobs: Callable[..., Jobs], tmp_path: Path) -> None:
    jobs = make_jobs()
    jobs.start()
    jobs.stop()
    assert "APScheduler" not in {thread.name for thread in threading.enumerate()}


def test_the_end_does_not_wait_for_the_self_test_of_the_sandbox(
    make_jobs: Callable[..., Jobs], caplog: pytest.LogCaptureFixture
) -> None:
    def testing() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "sandbox-test"]

    jobs = make_jobs(handlers="hostile_handlers:make", options={"hang": True})
    jobs.start()
    assert until(testing)
    jobs.stop()
    [thread] = testing()  # it imports something that never ends
    jobs._store.sandbox.close()
    thread.join(60)
    assert not thread.is_alive()
    assert jobs._store.tested_level is None
    assert "sandbox" not in caplog.text


def test_a_snapshot_that_failed_is_taken_at_the_next_occasion(make_jobs: Callable[..., Jobs], tmp_path: Path) -> None:
    jobs = make_jobs()
    snapshots = tmp_path / "snapshots"
    snapshots.rmdir()
    snapshots.touch()  # no directory can be made there
    with pytest.raises((MmserverError, OSError)):
        jobs.snapshot()
    snapshots.unlink()
    snapshots.mkdir()
    jobs.snapshot()
    jobs.snapshot()
    assert len(list(snapshots.glob("*.snapshot"))) == 1


def test_the_check_tells_when_one_look_does_not_come_to_its_end(
    make_jobs: Callable[..., Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = make_jobs()
    jobs.watch()
    assert jobs.check()["status"] == "ok"
    now = time.monotonic()
    monkeypatch.setattr("mmserver.jobs.time.monotonic", lambda: now + 100)
    monkeypatch.setattr(jobs, "_looked_at", now + 100)
    assert jobs.check()["status"] == "degraded"


def test_what_optimisations_of_an_ended_process_left_goes_at_the_start(
    make_jobs: Callable[..., Jobs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmserver.conversion.job_directories import PREFIX, job_directory

    temporary = tmp_path / "temporary"
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    (temporary / f"{PREFIX}left").mkdir(parents=True)
    (temporary / f"{PREFIX}left" / "request").write_bytes(b"half a model")
    with job_directory() as used:
        jobs = make_jobs()
        jobs.start()
        assert until(lambda: list(temporary.iterdir()) == [used])
        jobs.stop()
        assert used.is_dir()
