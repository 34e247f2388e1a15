"""Forms that change what is said of a registered version, and the one that forgets a version; both ask before they do."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import flask
import msgspec
from werkzeug.wrappers import Response

from mmserver.errors import RequestInvalid
from mmserver.registry import annotating, removing, versions
from mmserver.registry.fields import checked_description, checked_metrics, checked_tags
from mmserver.registry.finding import reference_from_text
from mmserver.registry.versions import ListedVersion, RegisteredVersion
from mmserver.web.current import current_actor, current_store
from mmserver.web.forms import CORRECTABLE, lines_of, read_form, refused_form, uncached
from mmserver.web.registry_bodies import stage_name
from mmserver.web.registry_rows import version_path
from mmserver.web.requests import refuse_parameter, strict_json
from mmserver.web.responses import render_page

EDITED = ("description", "metrics", "tags")
_PAGE = "registered_edit.html"


# --- what is said of a version ----------------------------------------------------------------------------------------


def get_edit_page(model_name: str, version: str) -> Response:
    """The description, metrics and tags of a version, to be changed."""
    found = versions.get_version(current_store(), model_name, reference_from_text(version))
    return uncached(render_page(_PAGE, typed=_typed(found), **_shown(found)))


def post_edit(model_name: str, version: str) -> Response:
    """Say just that from now on, then show the version; where somebody else said something meanwhile, show both first."""
    store = current_store()
    store.check_writable()
    found = versions.get_version(store, model_name, reference_from_text(version))
    typed = read_form(flask.request, (*EDITED, "seen"))
    try:
        metrics = checked_metrics(_object("metrics", typed["metrics"]))
        tags = checked_tags(_object("tags", typed["tags"]))
        description = checked_description(lines_of(typed["description"]))
        if typed["seen"] != _fingerprint(found):
            return _changed_meanwhile(found, typed)
        by = current_actor()
        annotating.update_metrics(store, model_name, found.label, _changes(found.metrics, metrics), by)
        annotating.annotate_version(
            store, model_name, found.label, by, description=description, tags=_changes(found.tags, tags)
        )
    except CORRECTABLE as error:
        return uncached(refused_form(error, _PAGE, typed, **_shown(found)))
    return flask.redirect(version_path(model_name, found.label), 303)


def _shown(found: RegisteredVersion) -> dict[str, Any]:
    store = current_store()
    return {
        "model": store.model(found.model_name),
        "version": found,
        "seen": _fingerprint(found),
        "read_only": store.read_only,
    }


def _typed(found: ListedVersion) -> dict[str, str]:
    """What the form is filled with."""
    return {"description": found.description, "metrics": _text(found.metrics), "tags": _text(found.tags)}


def _text(said: Mapping[str, Any]) -> str:
    return json.dumps(said, indent=2, ensure_ascii=False) if said else ""


def _object(name: str, text: str) -> Any:
    """What was typed as JSON; an empty field says nothing."""
    if not text.strip():
        return {}
    try:
        return strict_json(text.encode("utf-8", "surrogatepass"))
    except RequestInvalid as error:
        problem = error.values["errors"][0]
        refuse_parameter(name, f"{problem['loc']}: {problem['msg']}" if problem["loc"] else problem["msg"])


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What differs, in the way that changes are asked for: None for what is gone."""
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    return {**changed, **{name: None for name in before if name not in after}}


def _fingerprint(found: ListedVersion) -> str:
    """Of everything that the form would overwrite."""
    said = msgspec.json.encode([found.description, found.metrics, found.tags], order="deterministic")
    return hashlib.sha256(said).hexdigest()


def _changed_meanwhile(found: RegisteredVersion, typed: Mapping[str, str]) -> Response:
    response = render_page(_PAGE, typed=typed, now=_typed(found), **_shown(found))
    response.status_code = 412
    return uncached(response)


# --- forgetting a version ---------------------------------------------------------------------------------------------


def get_removal_page(model_name: str, version: str) -> Response:
    """Ask once more before a version is forgotten, and say what stands against it."""
    store = current_store()
    found = versions.get_version(store, model_name, reference_from_text(version))
    listed = versions.list_versions(store, model_name)
    return render_page(
        "registered_removal.html",
        model=store.model(model_name),
        version=found,
        stage=stage_name(found.stage),
        derived=[one.label for one in listed if one.derived_from == found.label and one.label != found.label],
        is_last=len(listed) == 1,
        read_only=store.read_only,
    )


def post_removal(model_name: str, version: str) -> Response:
    """Forget the version, then show the model, or all models where that was its last version."""
    read_form(flask.request, ())
    store = current_store()
    store.check_writable()
    if versions.get_version(store, model_name, reference_from_text(version)).label != version:
        refuse_parameter("version", "name the label of the version that is to be forgotten")
    removing.delete_version(store, model_name, version, current_actor())
    if model_name in store.catalog.models:
        return flask.redirect(flask.url_for("pages.get_model_page", model_name=model_name), 303)
    return flask.redirect(flask.url_for("pages.get_models_page"), 303)
