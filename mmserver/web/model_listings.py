"""Models as clients of other servers list them, `/health` in their words, and hot reload."""

import flask
import msgspec

from mmserver.catalog import history
from mmserver.catalog.catalog import Group, Model, Version
from mmserver.registry.said import Said, ServedSaid, said_of_versions
from mmserver.registry.versions import list_records, size_mb
from mmserver.serving.model_facts import NOTHING, ModelFacts, said_accuracy, told_by
from mmserver.web.current import (
    SERVING_KEY,
    LateServing,
    current_actor,
    current_experimenter,
    current_serving,
    current_store,
    record_by_current_actor,
)
from mmserver.web.errors import problem_from_error
from mmserver.web.health import RETRY_AFTER_S, run_checks, uptime_s
from mmserver.web.registry_bodies import StageName
from mmserver.web.requests import query_number, read_body
from mmserver.web.responses import json_response

FACTS_KEY = "mmserver.model_facts"
SAID_KEY = "mmserver.served_said"
DEFAULT_LIMIT = 500
MAX_LIMIT = 5000
HEALTH_WORDS = {"ok": "healthy", "degraded": "degraded", "failing": "unhealthy"}


class ReloadModel(msgspec.Struct, frozen=True):
    """The body of `POST /api/ml/models/reload`."""

    model_name: str
    version: str | None = None


class ReloadVersion(msgspec.Struct, frozen=True):
    """The body of `POST /api/ml/models/{model_name}/reload`, which may be left out."""

    version: str | None = None


# --- health -----------------------------------------------------------------------------------------------------------


def get_health() -> flask.Response:
    """200 while models can be served, degraded ones included; 503 when something that serving needs is failing."""
    status, checks = run_checks(flask.current_app)
    return _health(status, {
        "models_loaded": len(_loaded_group_ids()), "uptime_seconds": uptime_s(flask.current_app), "checks": checks,
    })  # fmt: skip


def get_ml_health() -> flask.Response:
    """The same, with the names of what is loaded."""
    status, _ = run_checks(flask.current_app)
    store = current_store()
    loaded = _loaded_group_ids()
    names = [f"{model.name}:{model.serving.label}" for model in store.catalog.models.values()
             if _is_loaded(model.serving, loaded)]  # fmt: skip
    n_experiments = sum(len(running) for running in store.catalog.experiments.values())
    return _health(status, {
        "timestamp": store.now(), "loaded_models": names, "active_experiments": n_experiments,
        "observations": current_experimenter().log.status, "uptime_seconds": uptime_s(flask.current_app),
    })  # fmt: skip


def _health(status: str, rest: dict[str, object]) -> flask.Response:
    body = {"status": HEALTH_WORDS[status], **rest}
    if status == "failing":
        return json_response(body, 503, {"Retry-After": str(RETRY_AFTER_S)})
    return json_response(body)


# --- lists ------------------------------------------------------------------------------------------------------------


def get_ml_models() -> flask.Response:
    """The served version of every model: a bare list."""
    models = list(current_store().catalog.models.values())
    facts = _model_facts()
    sizes = facts.sizes_bytes(model.serving for model in models)
    told = facts.of_groups([group.detail_sha256 for model in models if (group := told_by(model.serving))])
    said = _served_said().of_models(models)
    loaded = _loaded_group_ids()
    items = []
    for model in models:
        version = model.serving
        group = told_by(version)
        known = told[group.detail_sha256] if group else NOTHING
        registered = said.get(version.id)
        metrics = known.metrics if len(version.groups) == 1 else {}
        items.append({
            "name": model.name,
            "version": version.label,
            "stage": _stage(model),
            "model_type": registered.model_type if registered else known.kind,
            "metrics": registered.metrics if registered else metrics,
            "size_mb": size_mb(sizes[version.id]),
            "loaded": _is_loaded(version, loaded),
        })  # fmt: skip
    return json_response(items)


def get_models() -> flask.Response:
    """The served version of every model, with the names of its features."""
    models = list(current_store().catalog.models.values())
    facts = _model_facts().of_groups([group.detail_sha256 for model in models if (group := _only_group(model.serving))])
    said = _served_said().of_models(models)
    items = []
    for model in models:
        only = _only_group(model.serving)
        known = facts[only.detail_sha256] if only else NOTHING
        items.append({
            "name": model.name,
            "version": model.serving.label,
            "status": model.status,
            "accuracy": said_accuracy(said.get(model.serving.id), known.accuracy),
            "training_date": known.training_date,
            "features": model.serving.factors,
        })  # fmt: skip
    return json_response({"models": items})


def get_model_versions(model_name: str) -> flask.Response:
    """The versions of one model, newest first."""
    store = current_store()
    model = store.model(model_name)
    limit = query_number(flask.request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    records = list_records(store, model_name, limit)
    facts = _model_facts().of_versions_with_one_group(model.id, [record.seq for record in records])
    said = {} if model.is_watched else said_of_versions(store.database, [record.version_id for record in records])
    items = []
    for record in records:
        known = facts.get(record.seq, NOTHING)
        registered = said.get(record.version_id)
        items.append({
            "version": record.label,
            "status": _status(record, registered),
            "accuracy": said_accuracy(registered, known.accuracy),
            "training_date": known.training_date,
        })  # fmt: skip
    return json_response({"model_name": model.name, "versions": items})


def _stage(model: Model) -> StageName:
    """The stage of what is served; a watched model's served version is in production without being put there."""
    if model.is_watched or history.PRODUCTION in model.stages:
        return "Production"
    if model.stages.get(history.STAGING) == model.serving.label:
        return "Staging"
    return "Archived" if model.is_retired else "None"


def _status(record: history.VersionRecord, registered: Said | None) -> str:
    """Of a version among others: what it is there for. Of a watched model all that is not served is past."""
    for stage in (history.PRODUCTION, history.STAGING):
        if stage in record.stages:
            return stage
    return "none" if registered is not None and not registered.is_archived else "archived"


# --- reload -----------------------------------------------------------------------------------------------------------


def post_ml_reload() -> flask.Response:
    """Load a model anew, named in the body."""
    body = read_body(flask.request, ReloadModel)
    return _reload(body.model_name, body.version)


def post_ml_model_reload(model_name: str) -> flask.Response:
    """Load a model anew, named in the path; a body may name its version."""
    version = read_body(flask.request, ReloadVersion).version if flask.request.content_length else None
    return _reload(model_name, version)


def _reload(model_name: str, reference: str | None) -> flask.Response:
    """Look at the directory, then load anew what predicts; what was loaded answers until its successor is ready, and stays if
    that does not load.
    """
    store = current_store()
    if reference in history.CURRENT and store.model(model_name).is_watched and not store.read_only:
        from mmserver.catalog.refreshing import refresh_model

        refresh_model(store, model_name, current_actor())
    version = history.resolve_version(store, model_name, reference)
    serving = current_serving()
    reloaded = serving.predictors.reload(version.groups.values())
    serving.unloading.allow_all(version.model_name)
    failed = []
    for group_key, error in reloaded.failed.items():
        problem = problem_from_error(error)
        failed.append({"group_key": group_key, "code": problem.code, "detail": problem.detail})
    detail = {"version": version.label, "loaded": len(reloaded.loaded), "failed": len(failed)}
    record_by_current_actor("model.reloaded", version.model_name, detail)
    return json_response({
        "status": "failed" if failed else "reloaded",
        "model_name": version.model_name,
        "version": version.label,
        "loaded": reloaded.loaded,
        "failed": failed,
    })  # fmt: skip


# --- what is loaded, and what is known ----------------------------------------------------------------------------------


def _loaded_group_ids() -> frozenset[int]:
    """Asked of a process that has not predicted yet, this imports nothing."""
    late: LateServing = flask.current_app.extensions[SERVING_KEY]
    if late.made is None:
        return frozenset()
    return frozenset(loaded.group.id for loaded in late.made.predictors.loaded())


def _is_loaded(version: Version, loaded: frozenset[int]) -> bool:
    """Whether any model of the version is ready to run."""
    return bool(loaded) and any(group.id in loaded for group in version.groups.values())


def _only_group(version: Version) -> Group | None:
    """The group of a version that has one; facts of one among several would be no facts of the version."""
    return next(iter(version.groups.values())) if len(version.groups) == 1 else None


def _model_facts() -> ModelFacts:
    extensions = flask.current_app.extensions
    if FACTS_KEY not in extensions:
        extensions[FACTS_KEY] = ModelFacts(current_store().database)
    facts: ModelFacts = extensions[FACTS_KEY]
    return facts


def _served_said() -> ServedSaid:
    extensions = flask.current_app.extensions
    if SAID_KEY not in extensions:
        extensions[SAID_KEY] = ServedSaid(current_store().database)
    said: ServedSaid = extensions[SAID_KEY]
    return said
