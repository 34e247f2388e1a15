"""The registry's pages: a registered model, one version of it, two side by side, stages of every model, and the form to upload."""

import urllib.parse
from collections import Counter
from typing import Any

import flask
from werkzeug.wrappers import Response

from mmserver.catalog import groups, history
from mmserver.catalog.catalog import Model
from mmserver.catalog.running import running_of
from mmserver.registry import comparing, stages, standing, versions
from mmserver.registry.finding import reference_from_text
from mmserver.registry.registering import register_version
from mmserver.registry.semantic_versions import precedence
from mmserver.web import registry_rows
from mmserver.web.current import current_actor, current_model_reader, current_store
from mmserver.web.figures import size
from mmserver.web.forms import CORRECTABLE, read_form, refused_form, uncached
from mmserver.web.listing import listing_from_request
from mmserver.web.registry_bodies import StageName, stage_name
from mmserver.web.registry_rows import model_path, version_path
from mmserver.web.registry_uploads import read_new_version_form
from mmserver.web.requests import query_text, refuse_parameter, required_text
from mmserver.web.responses import render_page
from mmserver.web.symbols import asked_version

STAGE_NAMES: tuple[StageName, ...] = ("Production", "Staging", "None", "Archived")
FACTORS_SHOWN = 500


# --- a model and its versions -----------------------------------------------------------------------------------------


def get_registered_model_page(model: Model) -> Response:
    """A registered model: what it serves and why, and its versions, newest first."""
    if query_text(flask.request, "version") or query_text(flask.request, "as_of"):
        return flask.redirect(version_path(model.name, asked_version(model.name).label))
    store = current_store()
    found = versions.list_versions(store, model.name)
    stage = _asked_stage()
    metrics = registry_rows.main_metrics(found)
    listing = listing_from_request(
        flask.request,
        found if stage is None else [version for version in found if stage_name(version.stage) == stage],
        registry_rows.version_columns(metrics),
        matches=registry_rows.matches_version,
        kept=("stage",),
    )
    return render_page(
        "registered.html",
        model=model,
        standing=standing.find_standing(store, model.name),
        listing=listing,
        metrics=metrics,
        n_versions=len(found),
        stage=stage,
        stage_names=STAGE_NAMES,
        n_by_stage=Counter(stage_name(version.stage) for version in found),
        experiments=running_of(store.catalog.experiments, model.name),
        parity_by_label={version.label: registry_rows.parity_from_report(version.parity) for version in listing.rows},
        read_only=store.read_only,
    )


def get_version_page(model_name: str, version: str) -> Response:
    """One version; of a watched model, which has a page for each of its symbols, the model as it was then."""
    store = current_store()
    reference = reference_from_text(version)
    model = store.model(model_name)
    if model.is_watched:
        return flask.redirect(flask.url_for("pages.get_model_page", model_name=model_name, version=reference))
    found = versions.get_version(store, model_name, reference)
    detail = groups.group_detail(store, found.group)
    return render_page(
        "registered_version.html",
        model=model,
        version=found,
        detail=detail,
        parity=registry_rows.parity_from_report(found.parity),
        forms=[registry_rows.form_report(found, one) for one in found.optimizations],
        why_no_forms=registry_rows.why_no_forms(found),
        downloads=store.payloads.forms(found.group),
        input_text=registry_rows.input_text(found),
        predict_command=registry_rows.predict_command(found, flask.request.url_root),
        factors_shown=FACTORS_SHOWN,
        read_only=store.read_only,
    )


# --- two versions -----------------------------------------------------------------------------------------------------


def get_compare_page(model_name: str) -> Response:
    """Two versions side by side; those that were ticked in the list of versions come as `version`, the older first here."""
    ticked = flask.request.args.getlist("version")
    if ticked:
        return _redirect_to_comparison(model_name, ticked)
    store = current_store()
    model = store.model(model_name)
    labels = [version.label for version in versions.list_versions(store, model_name)]
    references = [query_text(flask.request, name) for name in ("version1", "version2")]
    second = references[1] or labels[0]
    first = references[0] or labels[min(1, len(labels) - 1)]
    comparison = comparing.compare(store, model_name, reference_from_text(first), reference_from_text(second))
    both = [versions.get_version(store, model_name, label) for label in (comparison.version1, comparison.version2)]
    return render_page(
        "registered_compare.html",
        model=model,
        comparison=comparison,
        versions=both,
        labels=labels,
        metrics=registry_rows.metric_rows(comparison),
        is_reordered_only=registry_rows.is_reordered_only(comparison),
        parities=[registry_rows.parity_from_report(version.parity) for version in both],
        inputs=[registry_rows.input_text(version) for version in both],
    )


def _redirect_to_comparison(model_name: str, ticked: list[str]) -> Response:
    if len(ticked) != 2:
        refuse_parameter("version", f"tick exactly two versions to compare; {len(ticked)} came")
    found = [versions.get_version(current_store(), model_name, reference_from_text(label)) for label in ticked]
    older, newer = sorted((version.label for version in found), key=precedence)
    query = urllib.parse.urlencode({"version1": older, "version2": newer})
    return flask.redirect(f"{model_path(model_name)}/compare?{query}")


# --- stages -----------------------------------------------------------------------------------------------------------


def get_stage_page(model_name: str, version: str) -> Response:
    """Ask once more before a version, of a model of either kind, comes into another stage."""
    store = current_store()
    model = store.model(model_name)
    found = history.resolve_version(store, model_name, reference_from_text(version))
    to = stages.stage_from_text(required_text(flask.request, "to"))
    described = versions.get_staged_version(store, model_name, found.id)
    return render_page(
        "stage.html",
        model=model,
        version=found,
        present=stage_name(described.stage),
        to=stage_name(to),
        stages=model.stages,
        read_only=store.read_only,
    )


def post_stage(model_name: str, version: str) -> Response:
    """Put the version into the stage, then show the model."""
    stage = stages.stage_from_text(read_form(flask.request, ("stage",))["stage"])
    stages.set_stage(current_store(), model_name, reference_from_text(version), stage, current_actor())
    return flask.redirect(model_path(model_name), 303)


def get_rollback_page(model_name: str) -> Response:
    """Ask once more before what was in production before comes back."""
    store = current_store()
    model = store.model(model_name)
    now = standing.find_standing(store, model_name)
    return render_page("production_rollback.html", model=model, standing=now, read_only=store.read_only)


def post_rollback(model_name: str) -> Response:
    """Undo the last promotion, unless somebody else has just done so; then show the model."""
    from_label = read_form(flask.request, ("from",))["from"]
    stages.rollback(current_store(), model_name, current_actor(), from_label=from_label)
    return flask.redirect(model_path(model_name), 303)


# --- a new version ----------------------------------------------------------------------------------------------------


def get_register_page() -> Response:
    """The form that a version is uploaded with."""
    known = {name: query_text(flask.request, name) or "" for name in ("name", "derived_from")}
    return uncached(render_page("register.html", typed=known, **_form_facts()))


def post_register() -> Response:
    """Register what the form brings, then show the version; the form again with all that was typed where that is refused."""
    store = current_store()
    store.check_writable()
    typed: dict[str, str] = {}
    try:
        with current_model_reader().turn() as reader:
            new = read_new_version_form(flask.request, store.settings, typed)
            registered = register_version(store, reader, new, current_actor())
    except CORRECTABLE as error:
        return uncached(refused_form(error, "register.html", typed, **_form_facts()))
    return flask.redirect(version_path(new.model_name, registered.version.label), 303)


def _form_facts() -> dict[str, Any]:
    store = current_store()
    return {
        "formats": sorted(store.plugins.model_formats, key=lambda found: found.name),
        "max_size": size(store.settings.max_artifact_bytes),
        "read_only": store.read_only,
    }


# --- what is asked --------------------------------------------------------------------------------------------------------


def _asked_stage() -> StageName | None:
    text = query_text(flask.request, "stage")
    return None if text is None else stage_name(stages.stage_from_text(text))
