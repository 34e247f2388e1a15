"""`/livez` and `/readyz`: whether the process answers, and whether it can do its work."""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flask

from mmserver.catalog.store import Store
from mmserver.errors import MmserverError
from mmserver.security.scopes import needs
from mmserver.web.guard import may_see_details
from mmserver.web.responses import json_response

blueprint = flask.Blueprint("health", __name__)

CHECKS_KEY = "mmserver.checks"
STARTED_KEY = "mmserver.started"
RETRY_AFTER_S = 2
Check: TypeAlias = Callable[[], Mapping[str, Any]]
"""Gives at least `status`: `ok`, `degraded` (models are served all the same) or `failing` (they are not)."""


def store_checks(store: Store) -> dict[str, Check]:
    """What a store alone can say about itself."""
    return {
        "catalog": lambda: {
            "status": "ok", "models": len(store.catalog.models), "venues": len(store.catalog.venues),
            "read_only": store.read_only,
        },
        "database": lambda: _database(store),
        "models": lambda: _statuses({model.name: model.status for model in store.catalog.models.values()}),
        "venues": lambda: _statuses({venue.name: venue.status for venue in store.catalog.venues.values()}),
        "sandbox": lambda: _sandbox(store),
    }  # fmt: skip


@blueprint.get("/livez")
@needs("open")
def get_livez() -> flask.Response:
    """200 as long as requests are answered at all."""
    return flask.Response("ok\n", content_type="text/plain; charset=utf-8")


@blueprint.get("/readyz")
@needs("open")
def get_readyz() -> flask.Response:
    """200 while models can be served, degraded ones included; 503 when something that serving needs is failing.

    What the checks found names models, and is for those who may read.
    """
    status, found = run_checks(flask.current_app)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == "failing" else {}
    said = {"status": status, "checks": found} if may_see_details() else {"status": status}
    return json_response(said, 503 if status == "failing" else 200, headers)


def run_checks(app: flask.Flask) -> tuple[str, Mapping[str, Mapping[str, Any]]]:
    """The worst word of all checks, and what each of them says."""
    checks: Mapping[str, Check] = app.extensions[CHECKS_KEY]
    found = {name: _outcome(check) for name, check in checks.items()}
    words = {str(outcome["status"]) for outcome in found.values()}
    if "failing" in words:
        return "failing", found
    return ("degraded" if words != {"ok"} else "ok"), found


def uptime_s(app: flask.Flask) -> float:
    """Seconds since this process began to serve."""
    started: float = app.extensions[STARTED_KEY]
    return round(time.monotonic() - started, 3)


def _outcome(check: Check) -> Mapping[str, Any]:
    try:
        return check()
    except MmserverError as error:
        return {"status": "failing", "code": error.code}


def _database(store: Store) -> Mapping[str, Any]:
    store.database.data_version()
    return {"status": "ok"}


def _statuses(words: Mapping[str, str]) -> Mapping[str, Any]:
    return {"status": "ok" if set(words.values()) <= {"ok"} else "degraded", "items": words}


def _sandbox(store: Store) -> Mapping[str, Any]:
    """Without the guarded worker nothing new is read, but what is there goes on being served."""
    if store.read_only:
        return {"status": "ok", "level": "not needed: read-only"}
    try:
        level = store.sandbox.level()
    except MmserverError as error:
        return {"status": "degraded", "code": error.code}
    return {"status": "ok", "level": level.name, "steps": level.steps}
