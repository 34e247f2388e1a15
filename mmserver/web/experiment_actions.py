"""Pages that ask before an experiment is started, ramped, stopped or applied, and do it."""

from typing import Any

import flask
from werkzeug.wrappers import Response

from mmserver.errors import (
    MmserverError,
    ModelNotFound,
    NotRecommended,
    PreconditionFailed,
    VersionNotFound,
)
from mmserver.experiments import lifecycle
from mmserver.experiments.evaluating import analyse_experiment, apply_result, recommended_action, stop_and_report
from mmserver.experiments.experiments import DRAFT, RUNNING, Applied, Experiment, get_experiment
from mmserver.web.current import current_actor, current_experimenter, current_store
from mmserver.web.experiment_typing import SHARE, experiment_path, is_ticked, share_from_text, text_of_number
from mmserver.web.forms import CORRECTABLE, read_form, refused_form, uncached
from mmserver.web.requests import refuse_parameter
from mmserver.web.responses import render_page

ACTIONS: tuple[Applied, ...] = ("promote", "rollback", "keep")
_ACTION_PAGE = "experiment_action.html"
_RAMP_PAGE = "experiment_ramp.html"
_APPLY_PAGE = "experiment_apply.html"
_REFUSED = (*CORRECTABLE, PreconditionFailed, ModelNotFound, VersionNotFound)
"""What is said on the page that asked: its experiment is there, and what it is now stands beside it."""
_NO_FIELDS = {name: f".{name}" for name in ("deadline_at", "phase", "treatment_model", "treatment_version")}
"""Places that have no field on these pages: what is wrong there is said of the whole."""


# --- start and stop ---------------------------------------------------------------------------------------------------


def get_start_page(experiment_id: str) -> Response:
    """Ask once more before a draft runs."""
    return render_page(_ACTION_PAGE, action="start", **_shown(experiment_id))


def post_start(experiment_id: str) -> Response:
    """Let the draft run, then show it."""
    read_form(flask.request, ())
    try:
        lifecycle.start_experiment(current_store(), experiment_id, current_actor())
    except _REFUSED as error:
        return _refused(error, _ACTION_PAGE, {}, experiment_id, action="start")
    return flask.redirect(experiment_path(experiment_id), 303)


def get_stop_page(experiment_id: str) -> Response:
    """Ask once more before an experiment ends."""
    return render_page(_ACTION_PAGE, action="stop", **_shown(experiment_id))


def post_stop(experiment_id: str) -> Response:
    """End the experiment, then show it; one that has ended already is just shown."""
    read_form(flask.request, ())
    store = current_store()
    store.check_writable()
    stop_and_report(store, current_experimenter().log(), experiment_id, current_actor())
    return flask.redirect(experiment_path(experiment_id), 303)


# --- ramp -------------------------------------------------------------------------------------------------------------


def get_ramp_page(experiment_id: str) -> Response:
    """The form for another share, and what another share means."""
    shown = _shown(experiment_id)
    typed = {SHARE: text_of_number(shown["experiment"].treatment_weight), "redraw": ""}
    return uncached(render_page(_RAMP_PAGE, typed=typed, **shown))


def post_ramp(experiment_id: str) -> Response:
    """Go on with the share that was typed, then show the experiment; nothing where it is in another phase by now."""
    store = current_store()
    store.check_writable()
    typed = read_form(flask.request, (SHARE, "redraw", "phase"))
    try:
        lifecycle.ramp_experiment(
            store,
            experiment_id,
            share_from_text(typed[SHARE]),
            current_actor(),
            redraw=is_ticked("redraw", typed["redraw"]),
            from_phase=_phase(typed["phase"]),
            where=SHARE,
        )
    except _REFUSED as error:
        return _refused(error, _RAMP_PAGE, typed, experiment_id)
    return flask.redirect(experiment_path(experiment_id), 303)


def _phase(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        refuse_parameter("phase", "it is not as the page had it: open the page anew")
    return int(text)


# --- apply ------------------------------------------------------------------------------------------------------------


def get_apply_page(experiment_id: str) -> Response:
    """What is recommended and why, and the choice."""
    shown = _decision_shown(experiment_id)
    return uncached(render_page(_APPLY_PAGE, typed={"action": shown["recommended"] or "", "confirm": ""}, **shown))


def post_apply(experiment_id: str) -> Response:
    """Do what was chosen, if it is recommended or was confirmed, then show the experiment."""
    store = current_store()
    store.check_writable()
    typed = read_form(flask.request, ("action", "confirm"))
    try:
        chosen = next((one for one in ACTIONS if one == typed["action"]), None)
        if chosen is None:
            refuse_parameter("action", "choose one of the three")
        is_confirmed = is_ticked("confirm", typed["confirm"])
        apply_result(
            store,
            current_experimenter().log(),
            experiment_id,
            current_actor(),
            action=chosen,
            only_if_recommended=not is_confirmed,
        )
    except _REFUSED as error:
        shown = _decision_shown(experiment_id)
        fields = {NotRecommended.code: "confirm"}
        return uncached(refused_form(error, _APPLY_PAGE, typed, fields=fields, **shown))
    return flask.redirect(experiment_path(experiment_id), 303)


def _decision_shown(experiment_id: str) -> dict[str, Any]:
    shown = _shown(experiment_id)
    experiment: Experiment = shown["experiment"]
    if experiment.status == DRAFT:
        return {**shown, "recommendation": None, "recommended": None}
    analysis = analyse_experiment(current_store(), current_experimenter().log(), experiment)
    found = analysis.recommendation
    return {**shown, "recommendation": found, "recommended": recommended_action(found)}


# --- what the pages share ---------------------------------------------------------------------------------------------


def _shown(experiment_id: str) -> dict[str, Any]:
    store = current_store()
    experiment = get_experiment(store, experiment_id)
    return {
        "experiment": experiment,
        "is_running": experiment.status == RUNNING,
        "read_only": store.read_only,
    }


def _refused(
    error: MmserverError, page: str, typed: dict[str, str], experiment_id: str, **values: Any
) -> flask.Response:
    return uncached(refused_form(error, page, typed, fields=_NO_FIELDS, **values, **_shown(experiment_id)))
