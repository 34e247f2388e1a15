"""`/api/models`: watched directories, registered, listed, refreshed and removed.

What changes models is imported when the first change is asked for; a process that only reads starts without it.
"""

from datetime import datetime

import flask
import msgspec

from mmserver.catalog.catalog import Catalog, Model
from mmserver.errors import ModelNotFound
from mmserver.security.scopes import IN_VIEW, needs
from mmserver.web.current import current_actor, current_store
from mmserver.web.guard import may_see_model
from mmserver.web.requests import query_flag, read_body
from mmserver.web.responses import json_response

blueprint = flask.Blueprint("models", __name__)


class ModelItem(msgspec.Struct, frozen=True, kw_only=True):
    """One model in a list. `stages` maps a stage to the version that is in it."""

    model_name: str
    root_path: str | None
    symbol_count: int
    group_count: int
    factor_count: int
    version: str
    stages: dict[str, str]
    registered_at: datetime
    refreshed_at: datetime
    status: str
    error: str | None


class RefusalItem(msgspec.Struct, frozen=True):
    """An artifact that is not served, and why; the last good content of its group is."""

    group_key: str
    file: str
    reason: str
    detail: str
    since: datetime
    attempts: int


class ModelDetail(ModelItem, frozen=True, kw_only=True):
    """One model by itself: as in the list, and what of its directory is refused."""

    newest_version: str
    refusals: list[RefusalItem]


class RegisterModel(msgspec.Struct, frozen=True):
    """The body of `POST /api/models`."""

    model_name: str
    root_path: str


def item_from_model(model: Model) -> ModelItem:
    """The model as lists show it."""
    serving = model.serving
    return ModelItem(
        model_name=model.name,
        root_path=model.root_path,
        symbol_count=len(serving.group_keys_by_symbol),
        group_count=len(serving.groups),
        factor_count=len(serving.factors),
        version=serving.label,
        stages={"production": serving.label, **model.stages} if model.is_watched else dict(model.stages),
        registered_at=model.registered_at,
        refreshed_at=model.refreshed_at,
        status=model.status,
        error=model.trouble,
    )


def find_model(catalog: Catalog, model_name: str) -> Model:
    """The model of that name.

    Raises:
        ModelNotFound: there is none.
    """
    model = catalog.models.get(model_name)
    if model is None:
        raise ModelNotFound(model_name=model_name)
    return model


@blueprint.get("/api/models")
@needs("read", IN_VIEW)
def list_models() -> flask.Response:
    """Every model that the key is for, by name."""
    models = current_store().catalog.models
    return json_response({"items": [item_from_model(models[name]) for name in sorted(models) if may_see_model(name)]})


@blueprint.post("/api/models")
@needs("manage")
def post_model() -> flask.Response:
    """Register a directory under a name; answers when its artifacts are served."""
    body = read_body(flask.request, RegisterModel)
    from mmserver.catalog.registering import register_model

    model = register_model(current_store(), body.model_name, body.root_path, current_actor())
    location = flask.url_for("models.get_model", model_name=model.name)
    return json_response(item_from_model(model), 201, {"Location": location})


@blueprint.get("/api/models/<model_name>")
@needs("read", "model_name")
def get_model(model_name: str) -> flask.Response:
    """One model, with what of its directory is refused and why."""
    model = find_model(current_store().catalog, model_name)
    refusals = [
        RefusalItem(
            group_key=refusal.group_key,
            file=refusal.file,
            reason=refusal.reason,
            detail=refusal.detail,
            since=refusal.since,
            attempts=refusal.attempts,
        )
        for refusal in model.refusals
    ]
    item = msgspec.structs.asdict(item_from_model(model))
    return json_response(ModelDetail(**item, newest_version=model.newest_label, refusals=refusals))


@blueprint.delete("/api/models/<model_name>")
@needs("manage", "model_name")
def delete_model(model_name: str) -> flask.Response:
    """Forget the model; a directory that it was read from is not touched."""
    from mmserver.registry.removing import delete_model

    delete_model(current_store(), model_name, current_actor())
    return flask.Response(status=204)


@blueprint.post("/api/models/<model_name>/refresh")
@needs("manage", "model_name")
def post_refresh(model_name: str) -> flask.Response:
    """Look at the directory now. `?accept_vanished=true` lets a frozen model lose what is gone."""
    from mmserver.catalog.refreshing import refresh_model

    result = refresh_model(
        current_store(), model_name, current_actor(), accept_vanished=query_flag(flask.request, "accept_vanished")
    )
    return json_response(
        {
            "model_name": result.model_name,
            "changed": result.changed,
            "version": result.version,
            "previous_version": result.previous_version,
            "added": result.added,
            "removed": result.removed,
            "updated": result.updated,
        }
    )
