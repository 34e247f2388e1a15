"""The form that an experiment is set up with, and the one that a draft is changed with."""

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any

import flask
import msgspec
from werkzeug.wrappers import Response

from mmserver.catalog.store import Store
from mmserver.errors import (
    ExperimentConflict,
    ExperimentTaken,
    MmserverError,
    ModelNotFound,
    NotFound,
    VersionNotFound,
)
from mmserver.experiments import lifecycle
from mmserver.experiments.experiments import DRAFT, Experiment, get_experiment
from mmserver.experiments.policies import SequentialPolicy
from mmserver.registry.versions import list_records
from mmserver.web.current import current_actor, current_store
from mmserver.web.experiment_bodies import ChangeExperiment, changed_plan, item_from_experiment, plan_from_body
from mmserver.web.experiment_typing import (
    FIELDS,
    FIRST_TYPED,
    NUMBERS,
    PLACES,
    body_from_typed,
    experiment_path,
    text_of_number,
    typed_from_experiment,
)
from mmserver.web.forms import CORRECTABLE, read_form, refused_form, uncached
from mmserver.web.requests import query_text
from mmserver.web.responses import render_page

_CREATE_PAGE = "experiment_create.html"
_EDIT_PAGE = "experiment_edit.html"
_AT_ONCE, _LATER = "now", "later"
_MODELS_WITH_VERSIONS = 100
_VERSIONS_OF_A_MODEL = 30
_VERSIONS_OFFERED = 400
_FIELD_BY_CODE: Mapping[str, str] = {
    **PLACES,
    ExperimentTaken.code: "experiment_id",
    ExperimentConflict.code: "control_model",
}


# --- a new experiment -------------------------------------------------------------------------------------------------


def get_create_page() -> Response:
    """The form, filled in with what the query says of it."""
    asked = {name: query_text(flask.request, name) for name in FIELDS}
    typed = {**FIRST_TYPED, **{name: text for name, text in asked.items() if text is not None}, "start": _AT_ONCE}
    return uncached(render_page(_CREATE_PAGE, typed=typed, **_form_facts(typed)))


def post_create() -> Response:
    """Set the experiment up, then show it; the form again with all that was typed where that is refused."""
    store = current_store()
    store.check_writable()
    typed = read_form(flask.request, (*FIELDS, "start"))
    try:
        plan = plan_from_body(body_from_typed(typed))
        made = lifecycle.create_experiment(store, plan, current_actor(), start=typed["start"] != _LATER)
    except (*CORRECTABLE, ModelNotFound, VersionNotFound) as error:
        return uncached(_refused(error, _CREATE_PAGE, typed))
    return flask.redirect(experiment_path(made.experiment_id), 303)


# --- a draft ----------------------------------------------------------------------------------------------------------


def get_edit_page(experiment_id: str) -> Response:
    """How a draft is set up, to be changed."""
    experiment = get_experiment(current_store(), experiment_id)
    typed = typed_from_experiment(experiment)
    return uncached(render_page(_EDIT_PAGE, typed=typed, **_shown(experiment), **_form_facts(typed)))


def post_edit(experiment_id: str) -> Response:
    """Set the draft up like that, then show it; where somebody else changed it meanwhile, show both first."""
    store = current_store()
    store.check_writable()
    experiment = get_experiment(store, experiment_id)
    typed = read_form(flask.request, (*FIELDS, "seen"))
    typed["experiment_id"] = experiment_id
    try:
        plan = plan_from_body(body_from_typed(typed))
        if plan != changed_plan(experiment, ChangeExperiment()):
            if experiment.status == DRAFT and typed["seen"] != _fingerprint(experiment):
                return _changed_meanwhile(experiment, typed)
            lifecycle.update_experiment(store, plan, current_actor())
    except (*CORRECTABLE, ModelNotFound, VersionNotFound) as error:
        return uncached(_refused(error, _EDIT_PAGE, typed, **_shown(experiment)))
    return flask.redirect(experiment_path(experiment_id), 303)


def _shown(experiment: Experiment) -> dict[str, Any]:
    return {"experiment": experiment, "seen": _fingerprint(experiment)}


def _fingerprint(experiment: Experiment) -> str:
    """Of everything that the form would overwrite."""
    said = msgspec.json.encode(item_from_experiment(experiment), order="deterministic")
    return hashlib.sha256(said).hexdigest()


def _changed_meanwhile(experiment: Experiment, typed: Mapping[str, str]) -> Response:
    now = {name: text for name, text in typed_from_experiment(experiment).items() if text != typed[name]}
    response = render_page(_EDIT_PAGE, typed=typed, now=now, **_shown(experiment), **_form_facts(typed))
    response.status_code = 412
    return uncached(response)


# --- parts of both ----------------------------------------------------------------------------------------------------


def _refused(error: MmserverError, page: str, typed: dict[str, str], **values: Any) -> flask.Response:
    fields = {**_FIELD_BY_CODE, **({error.code: _missing_arm(error, typed)} if isinstance(error, NotFound) else {})}
    return refused_form(error, page, typed, fields=fields, **values, **_form_facts(typed))


def _missing_arm(error: NotFound, typed: Mapping[str, str]) -> str:
    """The field that names what is not there. The control is looked up first."""
    part = "version" if isinstance(error, VersionNotFound) else "model"
    arms = [arm for arm in ("control", "treatment") if typed[f"{arm}_model"] == error.values.get("model_name")]
    if part == "version" and len(arms) > 1:
        named = [arm for arm in arms if typed[f"{arm}_version"] in str(error)]
        arms = named or arms
    return f"{arms[0] if arms else 'control'}_{part}"


def _form_facts(typed: Mapping[str, str]) -> dict[str, Any]:
    store = current_store()
    return {
        "models": {name: name for name in sorted(store.catalog.models)},
        "versions": _offered_versions(store, (typed["control_model"], typed["treatment_model"])),
        "numbers": [
            (name, "" if default is None else text_of_number(default), *SequentialPolicy.LIMITS[name])
            for name, default in NUMBERS.items()
        ],
        "read_only": store.read_only,
    }


def _offered_versions(store: Store, first: tuple[str, ...]) -> list[tuple[str, str]]:
    """Labels, and what is said beside each: those of the models that are chosen first."""
    known = store.catalog.models
    names = [*dict.fromkeys(name for name in first if name in known), *sorted(set(known) - set(first))]
    offered: list[tuple[str, str]] = []
    for name in names[:_MODELS_WITH_VERSIONS]:
        with contextlib.suppress(ModelNotFound):  # removed just now
            records = list_records(store, name, _VERSIONS_OF_A_MODEL)
            offered += [(record.label, ", ".join((name, *record.stages))) for record in records]
        if len(offered) >= _VERSIONS_OFFERED:
            break
    return offered[:_VERSIONS_OFFERED]
