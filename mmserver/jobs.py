"""What runs by the clock: watching directories and venues, snapshots, retention, and following other processes' commits."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mmserver.catalog.history import apply_retention
from mmserver.catalog.store import Store
from mmserver.errors import MmserverError, ModelNotFound, SandboxUnavailable
from mmserver.storage.audit import SNAPSHOTS_DROPPED, newest_change_id, record_audit_alone
from mmserver.storage.lease import Lease
from mmserver.storage.times import text_from_datetime

if TYPE_CHECKING:
    from mmserver.steady_scheduler import SteadyScheduler
    from mmserver.watching.identities import FileIdentity

FOLLOW_INTERVAL_S = 0.1  # what one process changes, clients of another see within twice that
MAX_SILENCE_S = 15.0
MAX_UNWATCHED_S = 60.0  # one look may take long: a scan has 30 seconds, and new artifacts are read in it
LEASE_INTERVAL_S = 5.0
RETENTION_INTERVAL_S = 3600.0
REGISTRY_INTERVAL_S = 0.5  # others' commits are in the registry's directory soon after
EXPERIMENTS_INTERVAL_S = 300.0  # a decision of each running experiment is kept so often
SETTLE_SLACK_S = 0.05  # clocks and sleeps may disagree by that much
KeepUp: TypeAlias = Callable[[Callable[[], bool]], object]
"""Gets what tells whether the jobs are being stopped, so that a long run can end early."""

log = logging.getLogger(__name__)


class Jobs:
    """The scheduled jobs of one process. With a lease, only its holder watches; everybody follows."""

    def __init__(self, store: Store, snapshots_dir: Path | None, lease: Lease | None = None) -> None:
        self._store = store
        self._snapshots_dir = snapshots_dir
        self._lease = lease
        self._holds_lease = lease is None
        self._pending_venues: dict[str, FileIdentity] = {}
        self._scheduler: SteadyScheduler | None = None
        self._keep_up: KeepUp | None = None
        self._follow_others: Callable[[], object] | None = None
        self._evaluate: Callable[[], object] | None = None
        self._starting = threading.Thread(target=self._start, name="jobs-start", daemon=True)
        self._testing = threading.Thread(target=self._test_guard, name="sandbox-test", daemon=True)
        self._looked_at = self._watched_at = time.monotonic()
        self._snapshot_audit_id = -1
        self._stopping = threading.Event()

    def start(
        self,
        keep_up: KeepUp | None = None,
        follow: Callable[[], object] | None = None,
        evaluate: Callable[[], object] | None = None,
    ) -> None:
        """Start the jobs in threads of their own; returns at once.

        `keep_up` is called right after the start and then often: what is held beside the catalog follows it there. So is
        `follow`, which never takes long: it sees what other processes say beside their commits. `evaluate` looks at the running
        experiments, in one process only.
        """
        self._keep_up = keep_up
        self._follow_others = follow
        self._evaluate = evaluate
        self._starting.start()

    def stop(self) -> None:
        """Let the job that is running finish, and start no other.

        A self-test of the sandbox that is under way is not waited for: it ends with the sandbox.
        """
        self._stopping.set()
        self._starting.join()
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=True)
        if self._lease is not None and self._holds_lease:
            self._contained("release", self._lease.release)()

    def check(self) -> Mapping[str, Any]:
        """For `/readyz`: `failing` when nothing runs at all, so that even others' commits are missed; `degraded` when the
        directories were not looked at for long, as on a file system that does not answer.
        """
        now = time.monotonic()
        silence_s, unwatched_s = now - self._looked_at, now - self._watched_at
        settings = self._store.settings
        runs_watch = self._holds_lease and settings.watch_enabled and not self._store.read_only
        is_stuck = runs_watch and unwatched_s > MAX_UNWATCHED_S + 3 * settings.watch_interval_s
        status = "failing" if silence_s >= MAX_SILENCE_S else "degraded" if is_stuck else "ok"
        found = {"status": status, "runs_watch": self._holds_lease, "silence_s": round(silence_s, 1)}
        return {**found, "unwatched_s": round(unwatched_s, 1)} if runs_watch else found

    def watch(self) -> None:
        """One look at everything that is watched; one model's trouble is not another's.

        What is found changing is looked at again as soon as it can have settled, not only at the next interval.
        """
        from mmserver.catalog.venues import poll_venue

        models = self._store.catalog.models
        for model_name in [name for name, model in models.items() if model.is_watched]:
            self._contained(f"model {model_name}", partial(self._poll, model_name))()
        settling = self._store.watches.settling()
        if settling and not self._stopping.wait(self._store.settings.watch_debounce_s + SETTLE_SLACK_S):
            for model_name in [name for name, model in models.items() if model.id in settling]:
                self._contained(f"model {model_name}", partial(self._poll, model_name))()
        for venue in list(self._store.catalog.venues):
            self._contained(f"venue {venue}", partial(poll_venue, self._store, venue, self._pending_venues))()
        self._watched_at = time.monotonic()

    def snapshot(self) -> None:
        """Take a snapshot and let the oldest go; nothing, if nothing was changed since the last one."""
        if self._snapshots_dir is None:
            return
        from mmserver.storage.snapshots import create_snapshot, rotate_snapshots

        with self._store.database.read() as connection:
            newest_id = newest_change_id(connection)
        if newest_id == self._snapshot_audit_id:
            return
        create_snapshot(self._store.database, self._snapshots_dir, self._store.now())
        self._snapshot_audit_id = newest_id
        dropped = rotate_snapshots(self._snapshots_dir, self._store.settings.snapshot_keep)
        if dropped:
            detail = {"files": [path.name for path in dropped]}
            record_audit_alone(self._store.database, at=text_from_datetime(self._store.now()), actor="mmserver",
                               action=SNAPSHOTS_DROPPED, target=str(self._snapshots_dir), detail=detail,
                               request_id=None)  # fmt: skip

    def _start(self) -> None:
        from mmserver.steady_scheduler import SteadyScheduler

        settings = self._store.settings
        scheduler = SteadyScheduler()
        scheduler.every("follow", FOLLOW_INTERVAL_S, self._contained("follow", self._follow))
        if self._follow_others is not None:
            scheduler.every("follow others", FOLLOW_INTERVAL_S, self._contained("follow others", self._follow_others))
        if self._keep_up is not None:
            keep_up = partial(self._keep_up, self._stopping.is_set)
            scheduler.every("keep up", FOLLOW_INTERVAL_S, self._contained("keep up", keep_up))
        if self._lease is not None:
            self._contained("lease", self._renew)()
            scheduler.every("lease", LEASE_INTERVAL_S, self._contained("lease", self._renew))
        if not self._store.read_only:
            from mmserver.conversion.job_directories import remove_leftovers

            self._contained("leftovers", remove_leftovers)()
            if settings.watch_enabled:
                scheduler.every("watch", settings.watch_interval_s, self._held("watch", self.watch))
            if settings.snapshot_interval_s:
                scheduler.every("snapshot", settings.snapshot_interval_s, self._held("snapshot", self.snapshot))
            if settings.registry_dir is not None:
                from mmserver.registry.layout import Follower

                follow = Follower(self._store, self._stopping.is_set).follow
                scheduler.every("registry directory", REGISTRY_INTERVAL_S, self._held("registry directory", follow))
            if self._evaluate is not None:
                evaluate = self._held("experiments", self._evaluate)
                scheduler.every("experiments", EXPERIMENTS_INTERVAL_S, evaluate)
            scheduler.every("retention", RETENTION_INTERVAL_S, self._held("retention", self._retain))
        self._scheduler = scheduler
        scheduler.start()
        if not self._stopping.is_set():
            self._testing.start()

    def _follow(self) -> None:
        self._store.follow_commits()
        self._looked_at = time.monotonic()

    def _poll(self, model_name: str) -> None:
        from mmserver.catalog.refreshing import poll_model

        try:
            poll_model(self._store, model_name)
        except ModelNotFound:
            return  # removed since the list was made

    def _retain(self) -> None:
        apply_retention(self._store)

    def _renew(self) -> None:
        if self._lease is not None:
            self._holds_lease = self._lease.acquire_or_renew()

    def _test_guard(self) -> None:
        self._contained("sandbox self-test", self._test_sandbox)()

    def _test_sandbox(self) -> None:
        if self._store.read_only or self._store.tested_level is not None:
            return
        try:
            self._store.tested_level = self._store.sandbox.level()
        except SandboxUnavailable:
            if not self._stopping.is_set():
                raise

    def _held(self, name: str, job: Callable[[], object]) -> Callable[[], None]:
        contained = self._contained(name, job)

        def run() -> None:
            if self._holds_lease:
                contained()
            else:
                self._watched_at = time.monotonic()  # somebody else's duty, until the lease comes here

        return run

    def _contained(self, name: str, job: Callable[[], object]) -> Callable[[], None]:
        """The job with its errors logged: expected ones in one line, others with their traceback."""

        def run() -> None:
            try:
                job()
            except MmserverError as error:
                log.warning("%s: %s", name, error)
            except Exception:
                log.exception("%s failed", name)

        return run
