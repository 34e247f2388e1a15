"""The one place that knows every part: opens the state, and makes the WSGI application around it."""

import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import flask

from mmserver.catalog.opening import open_store
from mmserver.catalog.store import Store
from mmserver.jobs import Jobs
from mmserver.settings import Settings, load_settings
from mmserver.storage.data_dir import DataDir
from mmserver.storage.lease import Lease
from mmserver.web.blueprints import register_web
from mmserver.web.current import (
    ACCESS_KEY,
    EXPERIMENTER_KEY,
    MODEL_READER_KEY,
    QUICK_KEY,
    REFUSALS_KEY,
    SERVING_KEY,
    STORE_KEY,
)
from mmserver.web.health import Check

if TYPE_CHECKING:
    from mmserver.serving.siblings import Siblings

RUNTIME_KEY = "mmserver.runtime"
LEASE_NAME = "jobs"
LEASE_TTL_S = 15.0
PREDICTIONS = "mmserver.web.predictions"
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
        opened.callback(_close_refusals, app)
        opened.callback(app.extensions[EXPERIMENTER_KEY].close)
        opened.callback(app.extensions[MODEL_READER_KEY].close)
        follow = partial(_follow, app)
        jobs.start(partial(_keep_up, app), follow, partial(_evaluate_experiments, app))
        opened.callback(jobs.stop)
        app.extensions[RUNTIME_KEY] = Runtime(store, jobs, opened.pop_all())
        return app


def _close_refusals(app: flask.Flask) -> None:
    """Write what was refused last; there is nothing to close where nothing was."""
    refusals = app.extensions.get(REFUSALS_KEY)
    if refusals is not None:
        refusals.close()


def _keep_up(app: flask.Flask, is_stopping: Callable[[], bool]) -> None:
    """Write down which keys were used; import what predicts, the first time, so that no request waits for it; then load what the catalog and the settings ask for."""
    app.extensions[ACCESS_KEY].note_uses()
    importlib.import_module(PREDICTIONS)
    app.extensions[QUICK_KEY]()
    app.extensions[EXPERIMENTER_KEY].keep_up()
    app.extensions[SERVING_KEY]().warming.keep_up(is_stopping)


def _evaluate_experiments(app: flask.Flask) -> None:
    """Nothing, and nothing imported, while no experiment runs."""
    store: Store = app.extensions[STORE_KEY]
    if store.catalog.experiments:
        from mmserver.experiments.evaluating import evaluate_running

        evaluate_running(store, app.extensions[EXPERIMENTER_KEY].log)


def _follow(app: flask.Flask) -> None:
    """Take over which keys there are now, and what other processes say of predictions: nothing of that, before there is anything
    that predicts.
    """
    app.extensions[ACCESS_KEY].follow()
    serving = app.extensions[SERVING_KEY].made
    if serving is not None:
        serving.follow()


def boot_clock() -> float:
    """Seconds since the machine started: the same in all its processes, never set back."""

    return time.clock_gettime(time.CLOCK_BOOTTIME)
