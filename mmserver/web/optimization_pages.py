"""The page that forms of a registered version are asked for on, and that says how far they are; it is reloaded to see more."""

from typing import Any

import flask
from werkzeug.wrappers import Response

from mmserver.registry.finding import reference_from_text
from mmserver.registry.optimizing import SUFFIXES, Wish, label_of_form
from mmserver.registry.versions import RegisteredVersion, get_version
from mmserver.web import registry_rows
from mmserver.web.current import current_actor, current_model_reader, current_store
from mmserver.web.forms import CORRECTABLE, read_form, refused_form, uncached
from mmserver.web.optimization_runs import Run, last_run, start_run
from mmserver.web.requests import refuse_parameter
from mmserver.web.responses import render_page

_PAGE = "registered_optimize.html"
_FIRST_TICKED = ("int8_dynamic",)


def get_optimize_page(model_name: str, version: str) -> Response:
    """What was asked for last and what came of it so far, and the form to ask with."""
    found = get_version(current_store(), model_name, reference_from_text(version))
    return uncached(render_page(_PAGE, typed={}, ticked=_FIRST_TICKED, **_shown(found)))


def post_optimize(model_name: str, version: str) -> Response:
    """Begin to make the forms that were ticked, then show how far they are."""
    store = current_store()
    store.check_writable()
    found = get_version(store, model_name, reference_from_text(version))
    typed = read_form(flask.request, ("benchmark",), repeated=("variants",))
    ticked = flask.request.form.getlist("variants")
    try:
        if not ticked:
            refuse_parameter("variants", "tick one at least")
        if typed["benchmark"] not in ("", "true"):
            refuse_parameter("benchmark", "Expected true")
        wish = Wish(variants=ticked, benchmark=bool(typed["benchmark"]))
        start_run(store, current_model_reader().turn, found, wish, current_actor())
    except CORRECTABLE as error:
        return uncached(refused_form(error, _PAGE, typed, ticked=ticked, **_shown(found)))
    return flask.redirect(f"{registry_rows.version_path(model_name, found.label)}/optimize", 303)


def _shown(found: RegisteredVersion) -> dict[str, Any]:
    store = current_store()
    run = last_run(store, found)
    return {
        "model": store.model(found.model_name),
        "version": found,
        "run": run,
        "made": _made(found, run),
        "forms": {name: (registry_rows.form_name(name), label_of_form(found.label, name)) for name in SUFFIXES},
        "why_not": registry_rows.why_no_forms(found),
        "read_only": store.read_only,
    }


def _made(found: RegisteredVersion, run: Run | None) -> dict[str, registry_rows.FormReport]:
    """The reports that the run has given so far, by form."""
    if run is None:
        return {}
    return {
        one.variant: registry_rows.form_report(found, one)
        for one in found.optimizations
        if one.variant in run.variants and one.created_at >= run.started_at
    }
