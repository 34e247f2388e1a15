"""What one process has open: the database, the plugins, the guarded worker, and the catalog that is served right now."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy.exc import NoResultFound

from mmserver.catalog.catalog import Catalog, Model, Version
from mmserver.catalog.loading import load_catalog, load_model, load_venues, load_version
from mmserver.catalog.payloads import Payloads
from mmserver.catalog.running import load_running
from mmserver.errors import ModelNotFound, Overloaded, ReadOnly, VersionNotFound
from mmserver.plugin_loading import Plugins
from mmserver.sandbox.level import SandboxLevel
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings
from mmserver.storage.database import Database

if TYPE_CHECKING:
    from mmserver.catalog.shown import ShownModel
    from mmserver.catalog.watches import Watches

log = logging.getLogger(__name__)
_MAX_OLD_VERSIONS = 16


def utc_now() -> datetime:
    """The time now, aware."""
    return datetime.now(UTC)


class Store:
    """Readers take `catalog` once per request; whoever changes something commits it and then replaces `catalog` whole."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        plugins: Plugins,
        sandbox: Sandbox,
        read_only: bool = False,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings = settings
        self.database = database
        self.plugins = plugins
        self.sandbox = sandbox
        self.read_only = read_only
        self.now = now
        self.payloads = Payloads(database, plugins, settings.payload_cache_bytes)
        self.waiting = WaitingClients(settings.max_waiters)
        self.catalog = Catalog()
        self.tested_level: SandboxLevel | None = None
        self.shown: dict[str, ShownModel] = {}
        self._reload_lock = threading.Lock()
        self._changed = threading.Condition()
        self._model_locks: dict[str, threading.RLock] = {}
        self._old_versions: dict[int, Version] = {}
        self._old_versions_lock = threading.Lock()
        self._seen_data_version = database.data_version()
        self.reload()

    @cached_property
    def watches(self) -> "Watches":
        """What this process knows of the watched directories; made, and its modules imported, by the first look at one."""
        from mmserver.catalog.watches import Watches

        return Watches(self.database, self.settings, self.plugins)

    def reload(self) -> None:
        """Read what is committed and serve it; what did not change is kept as the objects that it is."""
        with self._reload_lock:
            self._seen_data_version = self.database.data_version()
            with self.database.read() as connection:
                catalog = load_catalog(connection, self.catalog)
            self._swap(catalog)

    def reload_model(self, model_name: str) -> Model:
        """As `reload`, for one model that this process has just changed."""
        with self._reload_lock:
            with self.database.read() as connection:
                model = load_model(connection, model_name, self.catalog.models.get(model_name))
                experiments = load_running(connection)
            if model is None:
                raise ModelNotFound(model_name=model_name)
            self._swap(replace(self.catalog.with_model(model), experiments=experiments))
            return model

    def reload_experiments(self) -> None:
        """As `reload`, for the running experiments."""
        with self._reload_lock:
            with self.database.read() as connection:
                experiments = load_running(connection)
            self._swap(replace(self.catalog, experiments=experiments))

    def reload_venues(self) -> None:
        """As `reload`, for the venues."""
        with self._reload_lock:
            with self.database.read() as connection:
                venues = load_venues(connection, self.catalog.venues)
            self._swap(replace(self.catalog, venues=venues))

    def drop_model(self, model_name: str) -> None:
        """Stop serving a model that was removed."""
        with self._reload_lock:
            self._swap(self.catalog.without_model(model_name))

    def follow_commits(self) -> bool:
        """Reload if anybody committed since the last look; True if so. Cheap enough to call several times a second."""
        if self.database.data_version() == self._seen_data_version:
            return False
        self.reload()
        return True

    def model(self, model_name: str) -> Model:
        """The model as it is served now.

        Raises:
            ModelNotFound: there is none of that name.
        """
        model = self.catalog.models.get(model_name)
        if model is None:
            raise ModelNotFound(model_name=model_name)
        return model

    def version(self, model: Model, version_id: int) -> Version:
        """Any version of the model, the old ones from a small cache.

        Raises:
            VersionNotFound: retention has just let it go.
        """
        if model.serving.id == version_id:
            return model.serving
        version = self._old_versions.get(version_id)
        if version is None:
            try:
                with self.database.read() as connection:
                    version = load_version(connection, model.name, version_id, model.serving)
            except NoResultFound as error:
                raise VersionNotFound(model_name=model.name, which=f"number {version_id} any more") from error
            with self._old_versions_lock:
                while len(self._old_versions) >= _MAX_OLD_VERSIONS:
                    self._old_versions.pop(next(iter(self._old_versions)))
                self._old_versions[version_id] = version
        return version

    def sandbox_level(self) -> dict[str, object]:
        """How artifacts are guarded while they are read; `unknown` until the self-test at start has run."""
        level = self.tested_level
        return {"name": level.name, "steps": dict(level.steps)} if level else {"name": "unknown", "steps": {}}

    def check_writable(self) -> None:
        """Raises ReadOnly on an instance that may not change anything."""
        if self.read_only:
            raise ReadOnly()

    @contextmanager
    def changing(self, model_name: str) -> Iterator[None]:
        """Holds the model's lock: one change of a model at a time in this process.

        A change may wait long, for others or for files to settle; its thread counts as a waiting client's, so that
        those who only read are answered meanwhile.

        Raises:
            Overloaded: somebody else is changing it, and too many wait already.
        """
        lock = self._model_lock(model_name)
        with self.waiting.one_more() as may_wait:
            if not lock.acquire(blocking=may_wait):
                raise Overloaded(what=f"changes of {model_name}")
            try:
                yield
            finally:
                lock.release()

    @contextmanager
    def changing_if_free(self, model_name: str) -> Iterator[bool]:
        """As `changing`, without waiting: yields False where somebody else is changing it."""
        lock = self._model_lock(model_name)
        is_free = lock.acquire(blocking=False)
        try:
            yield is_free
        finally:
            if is_free:
                lock.release()

    def wait_for_change(self, is_changed: Callable[[Catalog], bool], timeout_s: float) -> bool:
        """Block until the condition holds for the catalog, or the time is up, or too many wait already; returns whether it holds."""
        deadline = time.monotonic() + timeout_s
        with self.waiting.one_more() as may_wait:
            while not is_changed(self.catalog):
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0 or not may_wait or self.waiting.is_closed:
                    return False
                with self._changed:
                    if not is_changed(self.catalog):
                        self._changed.wait(remaining_s)
        return True

    def wake_waiting(self) -> None:
        """Make every waiting client look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the worker and close the database; waiting clients are answered first."""
        self.waiting.close()
        self.wake_waiting()
        self.sandbox.close()
        self.database.close()

    def _model_lock(self, model_name: str) -> threading.RLock:
        with self._reload_lock:
            return self._model_locks.setdefault(model_name, threading.RLock())

    def _swap(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.wake_waiting()


class WaitingClients:
    """Counts the clients that hold a thread while they wait, and tells the server, which adds a thread for each."""

    def __init__(self, limit: int) -> None:
        self.on_count: Callable[[int], None] = lambda _: None
        self.is_closed = False
        self._limit = limit
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def one_more(self) -> Iterator[bool]:
        """Yields whether this client may wait."""
        with self._lock:
            may_wait = self._count < self._limit
            if may_wait:
                self._count += 1
                self.on_count(self._count)
        try:
            yield may_wait
        finally:
            if may_wait:
                with self._lock:
                    self._count -= 1
                    self.on_count(self._count)

    def close(self) -> None:
        """Nobody may wait from now on."""
        self._limit = 0
        self.is_closed = True
