"""The one place that knows every part: opens the state, and makes the WSGI application around it."""

import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import flask

from mmserver.catalog.leftovers import drop_unfinished
from mmserver.catalog.store import Store
from mmserver.errors import SettingInvalid
from mmserver.jobs import Jobs
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.sandbox.level import LevelName
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings, load_settings
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import Database, open_database
from mmserver.storage.lease import Lease
from mmserver.storage.schema import check_schema, upgrade_database
from mmserver.web.blueprints import register_web
from mmserver.web.current import MODEL_READER_KEY, QUICK_KEY, SERVING_KEY
from mmserver.web.health import Check

if TYPE_CHECKING:
    from mmserver.serving.siblings import Siblings

RUNTIME_KEY = "mmserver.runtime"
LEASE_NAME = "jobs"
LEASE_TTL_S = 15.0
PREDICTIONS = "mmserver.web.predictions"
LEVELS: tuple[LevelName, ...] = ("rlimits-only", "partial", "full")
log = logging.getLogger(__name__)


class Runtime:
    """What an application has open besides its store; `close` ends all of it in the right order."""

    def __init__(self, store: Store, jobs: Jobs, opened: ExitStack) -> None:
        self.store = store
        self.jobs = jobs
        self._opened = opened

    def close(self) -> None:
        """Stop the jobs, answer waiting clients, and close the database."""
        self._opened.close()


def create_app(
    settings: Settings | None = None,
    *,
    owns_data_dir: bool = True,
    shares_jobs: bool = False,
    checks: Mapping[str, Check] = MappingProxyType({}),
    siblings: "Siblings | None" = None,
) -> flask.Flask:
    """The application, its state open and its scheduled jobs running; `app.extensions[RUNTIME_KEY].close()` ends it.

    `owns_data_dir`: take the data directory's lock; a worker whose supervisor holds it does not. `shares_jobs`: several
    processes serve one state, and the jobs run in the one that holds the lease. `checks`: what `/readyz` shows of the server
    around the application. `siblings`: what several processes of one server tell each other.

    Raises:
        SettingInvalid, DataDirLocked, DatabaseCorrupt, SchemaTooNew, PluginInvalid: why it cannot start; SettingInvalid
            also where the sandbox does not reach the level that is required.
    """
    settings = settings or load_settings({}, os.environ, None)
    with ExitStack() as opened:
        store = opened.enter_context(open_store(settings, owns_data_dir=owns_data_dir))
        lease = None
        if shares_jobs and not store.read_only:
            lease = Lease(store.database, LEASE_NAME, f"pid {os.getpid()}", LEASE_TTL_S, boot_clock)
        snapshots_dir = None if settings.snapshot else DataDir(settings.data_dir).snapshots_dir
        jobs = Jobs(store, snapshots_dir, lease)
        app = flask.Flask("mmserver.web", static_folder=None)
        register_web(app, store, store.plugins, checks={"jobs": jobs.check, **checks}, siblings=siblings)
        opened.callback(app.extensions[MODEL_READER_KEY].close)
        jobs.start(partial(_keep_serving_up, app), partial(_follow_siblings, app) if siblings else None)
        opened.callback(jobs.stop)
        app.extensions[RUNTIME_KEY] = Runtime(store, jobs, opened.pop_all())
        return app


class OpenStore:
    """A store as a context manager: opened on entering, closed with everything beneath it on leaving."""

    def __init__(self, settings: Settings, *, owns_data_dir: bool) -> None:
        self._settings = settings
        self._owns_data_dir = owns_data_dir
        self._opened = ExitStack()

    def __enter__(self) -> Store:
        with ExitStack() as opened:
            plugins = load_plugins(self._settings.plugins_dir, self._settings.execution_providers)
            database = self._database(opened)
            opened.callback(database.close)
            is_read_only = self._settings.read_only or self._settings.snapshot is not None
            store = Store(
                settings=self._settings,
                database=database,
                plugins=plugins,
                sandbox=_sandbox(self._settings, plugins),
                read_only=is_read_only,
            )
            opened.callback(store.close)
            _require_sandbox(store)
            if self._owns_data_dir and not is_read_only:
                drop_unfinished(store)
            self._opened = opened.pop_all()
            return store

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _database(self, opened: ExitStack) -> Database:
        settings = self._settings
        if settings.snapshot is not None:
            database = open_database(_existing(settings.snapshot), read_only=True, n_readers=settings.threads + 4)
            check_schema(database)
            return database
        data_dir = DataDir(settings.data_dir)
        data_dir.create()
        if self._owns_data_dir:
            opened.enter_context(data_dir.lock())
            data_dir.remove_leftovers()
            upgrade_database(data_dir.database_path, data_dir.snapshots_dir)
        elif not data_dir.database_path.exists():
            with data_dir.lock():
                upgrade_database(data_dir.database_path, data_dir.snapshots_dir)
        database = open_database(data_dir.database_path, n_readers=settings.threads + 4)
        check_schema(database)
        return database


def _keep_serving_up(app: flask.Flask, is_stopping: Callable[[], bool]) -> None:
    """Import what predicts, the first time, so that no request waits for it; then load what the catalog and the settings ask for."""
    importlib.import_module(PREDICTIONS)
    app.extensions[QUICK_KEY]()
    app.extensions[SERVING_KEY]().warming.keep_up(is_stopping)


def _follow_siblings(app: flask.Flask) -> None:
    """Nothing, before there is anything that predicts: it takes over what holds when it is made."""
    serving = app.extensions[SERVING_KEY].made
    if serving is not None:
        serving.follow()


def open_store(settings: Settings, *, owns_data_dir: bool = True) -> OpenStore:
    """The state, to be used in a `with` block; the command line works on it beside a running server with
    `owns_data_dir=False`.
    """
    return OpenStore(settings, owns_data_dir=owns_data_dir)


def boot_clock() -> float:
    """Seconds since the machine started: the same in all its processes, never set back."""

    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _sandbox(settings: Settings, plugins: Plugins) -> Sandbox:
    return Sandbox(
        "mmserver.catalog.ingest:handlers",
        {"plugins_dir": str(settings.plugins_dir) if settings.plugins_dir else None},
        n_workers=settings.sandbox_workers,
        limits=JobLimits(
            memory_bytes=settings.sandbox_memory_bytes,
            cpu_s=max(1, int(settings.sandbox_timeout_s)),
            wall_s=settings.sandbox_timeout_s,
        ),
    )


def _require_sandbox(store: Store) -> None:
    """Test the sandbox now, not in the background, where the settings ask for more than limits."""
    wanted = store.settings.require_sandbox
    if store.read_only or wanted == LEVELS[0]:
        return
    store.tested_level = found = store.sandbox.level()
    if LEVELS.index(found.name) < LEVELS.index(wanted):
        lacking = "; ".join(f"{step}: {outcome}" for step, outcome in found.steps.items() if outcome != "on")
        reason = f"{wanted!r} is required, but this machine gives {found.name!r} ({lacking})"
        raise SettingInvalid(setting="MMSERVER_REQUIRE_SANDBOX", reason=reason)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SettingInvalid(setting="--snapshot", reason=f"no file is at {path}")
    return path
