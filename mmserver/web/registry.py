"""`/api/ml/registry`: versions that are registered one by one, and the stages of all models."""

import urllib.parse

import flask

from mmserver.registry import annotating, comparing, removing, stages, versions
from mmserver.registry.finding import reference_from_text
from mmserver.registry.registering import register_version
from mmserver.registry.versions import StagedVersion
from mmserver.web.current import current_actor, current_model_reader, current_store
from mmserver.web.late_routes import REGISTER_RULE
from mmserver.web.registry_bodies import (
    DescribeVersion,
    RegistryModels,
    RegistryModelVersions,
    RollbackPromotion,
    SetStage,
    UpdateMetrics,
    cursor_from_name,
    item_from_model,
    item_from_version,
    name_from_cursor,
)
from mmserver.web.registry_uploads import read_new_version
from mmserver.web.requests import query_number, query_text, read_body, required_text
from mmserver.web.responses import json_response

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000


def post_model() -> flask.Response:
    """Register a version; 200 where the very same is there already."""
    store = current_store()
    store.check_writable()
    with current_model_reader().turn() as reader:
        new = read_new_version(flask.request, store.settings)
        registered = register_version(store, reader, new, current_actor())
    item = item_from_version(registered.version)
    location = f"{REGISTER_RULE}/{urllib.parse.quote(item.name)}/{urllib.parse.quote(item.version, safe='')}"
    return json_response(item, 201 if registered.is_new else 200, {"Location": location})


def get_models() -> flask.Response:
    """Registered models by name, `limit` at a time; `next_cursor` is null on the last page."""
    limit = query_number(flask.request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    cursor = query_text(flask.request, "cursor")
    after = None if cursor is None else name_from_cursor(cursor)
    found = versions.list_models(current_store(), limit + 1, after)
    page = found[:limit]
    next_cursor = cursor_from_name(page[-1].name) if len(found) > limit else None
    return json_response(RegistryModels([item_from_model(model) for model in page], next_cursor))


def get_model(model_name: str) -> flask.Response:
    """One model with its versions, newest first; `?stage=` gives those in a stage."""
    text = query_text(flask.request, "stage")
    stage = None if text is None else stages.stage_from_text(text)
    store = current_store()
    store.follow_commits()  # so that what is served and the versions are of one state
    found = versions.list_versions(store, model_name)
    model = store.model(model_name)
    wanted = [version for version in found if text is None or version.stage == stage]
    label_by_stage = {version.stage: version.label for version in found}
    body = RegistryModelVersions(
        name=model_name,
        latest_version=None if model.is_retired else model.serving.label,
        production_version=label_by_stage.get("production"),
        staging_version=label_by_stage.get("staging"),
        versions=[item_from_version(version) for version in wanted],
    )
    return json_response(body)


def get_version(model_name: str, version: str) -> flask.Response:
    """One version: its label, a stage or `latest`."""
    return _item(versions.get_version(current_store(), model_name, reference_from_text(version)))


def get_comparison(model_name: str) -> flask.Response:
    """Two versions side by side."""
    references = [reference_from_text(required_text(flask.request, name)) for name in ("version1", "version2")]
    return json_response(comparing.compare(current_store(), model_name, *references))


def put_stage(model_name: str, version: str) -> flask.Response:
    """Put a version into a stage, or into none."""
    body = read_body(flask.request, SetStage)
    stage = None if body.stage is None else stages.stage_from_text(body.stage)
    return _item(stages.set_stage(current_store(), model_name, reference_from_text(version), stage, current_actor()))


def post_promotion(model_name: str, version: str) -> flask.Response:
    """Put a version into production."""
    return _item(stages.promote(current_store(), model_name, reference_from_text(version), current_actor()))


def post_rollback(model_name: str) -> flask.Response:
    """Put back into production what was there before; with `from`, only from that version."""
    body = read_body(flask.request, RollbackPromotion) if flask.request.content_length else RollbackPromotion()
    return _item(stages.rollback(current_store(), model_name, current_actor(), from_label=body.from_label))


def post_retirement(model_name: str, version: str) -> flask.Response:
    """Archive a version."""
    return _item(stages.retire(current_store(), model_name, reference_from_text(version), current_actor()))


def patch_metrics(model_name: str, version: str) -> flask.Response:
    """Set some metrics, and remove those that are null."""
    body = read_body(flask.request, UpdateMetrics)
    store = current_store()
    return _item(
        annotating.update_metrics(store, model_name, reference_from_text(version), body.metrics, current_actor())
    )


def patch_version(model_name: str, version: str) -> flask.Response:
    """Change the description, and some tags."""
    body = read_body(flask.request, DescribeVersion)
    changed = annotating.annotate_version(
        current_store(),
        model_name,
        reference_from_text(version),
        current_actor(),
        description=body.description,
        tags=body.tags,
    )
    return _item(changed)


def delete_version(model_name: str, version: str) -> flask.Response:
    """Forget a version; with the last one the model is gone."""
    removing.delete_version(current_store(), model_name, version, current_actor())
    return flask.Response(status=204)


def _item(version: StagedVersion) -> flask.Response:
    return json_response(item_from_version(version))
