"""`/api/ml/experiments`: two versions compared on live requests."""

import base64
import binascii
import urllib.parse

import flask

from mmserver.errors import EvaluationNotFound
from mmserver.experiments import lifecycle
from mmserver.experiments.evaluating import analyse_experiment, apply_result, stop_and_report
from mmserver.experiments.experiments import (
    STATUSES,
    get_evaluation,
    get_experiment,
    list_evaluations,
    list_experiments,
)
from mmserver.experiments.planning import TRAFFIC_SPLIT, rest_of
from mmserver.web.current import current_actor, current_experimenter, current_store
from mmserver.web.experiment_bodies import (
    AppliedExperiment,
    ApplyExperiment,
    ChangeExperiment,
    CreateExperiment,
    EvaluationItems,
    ExperimentItems,
    Promoted,
    RampExperiment,
    again_from_evaluation,
    changed_plan,
    item_from_evaluation,
    item_from_experiment,
    plan_from_body,
    report_from_analysis,
)
from mmserver.web.experiment_standings import standing_of
from mmserver.web.late_routes import EXPERIMENTS_RULE
from mmserver.web.requests import query_number, query_text, read_body, refuse_parameter
from mmserver.web.responses import json_response

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
DEFAULT_EVALUATIONS = 20
MAX_EVALUATIONS = 500
_MAX_DIGITS = 18
_CURSOR_PREFIX = "experiments before:"


def post_experiment() -> flask.Response:
    """Set an experiment up; it runs at once unless `start` is false."""
    body = read_body(flask.request, CreateExperiment)
    experiment = lifecycle.create_experiment(current_store(), plan_from_body(body), current_actor(), start=body.start)
    location = f"{EXPERIMENTS_RULE}/{urllib.parse.quote(experiment.experiment_id)}"
    return json_response(item_from_experiment(experiment), 201, {"Location": location})


def get_experiments() -> flask.Response:
    """Experiments, the newest first, `limit` at a time; `?status=` gives those in a status."""
    limit = query_number(flask.request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    cursor = query_text(flask.request, "cursor")
    text = query_text(flask.request, "status")
    status = next((one for one in STATUSES if one == text), None)
    if text is not None and status is None:
        refuse_parameter("status", f"Expected one of {', '.join(STATUSES)}")
    before = None if cursor is None else _key_from_cursor(cursor)
    found = list_experiments(current_store(), status=status, limit=limit + 1, before_key=before)
    page = found[:limit]
    next_cursor = _cursor_from_key(page[-1].key) if len(found) > limit else None
    return json_response(ExperimentItems([item_from_experiment(one) for one in page], next_cursor))


def get_one(experiment_id: str) -> flask.Response:
    """One experiment, and what keeps its arms from answering."""
    return json_response(standing_of(get_experiment(current_store(), experiment_id)))


def patch_experiment(experiment_id: str) -> flask.Response:
    """Change a draft."""
    body = read_body(flask.request, ChangeExperiment)
    store = current_store()
    plan = changed_plan(get_experiment(store, experiment_id), body)
    return json_response(item_from_experiment(lifecycle.update_experiment(store, plan, current_actor())))


def post_start(experiment_id: str) -> flask.Response:
    """Let a draft run."""
    return json_response(
        item_from_experiment(lifecycle.start_experiment(current_store(), experiment_id, current_actor()))
    )


def post_ramp(experiment_id: str) -> flask.Response:
    """Go on with another share, in a new phase."""
    body = read_body(flask.request, RampExperiment)
    ramped = lifecycle.ramp_experiment(
        current_store(),
        experiment_id,
        rest_of(body.traffic_split),
        current_actor(),
        redraw=body.redraw,
        where=TRAFFIC_SPLIT,
    )
    return json_response(item_from_experiment(ramped))


def post_stop(experiment_id: str) -> flask.Response:
    """End an experiment; the final report."""
    store = current_store()
    store.check_writable()
    experiment, analysis = stop_and_report(store, current_experimenter().log(), experiment_id, current_actor())
    return json_response(report_from_analysis(experiment, analysis, store.now()))


def post_apply(experiment_id: str) -> flask.Response:
    """Do what is recommended, or what the body says."""
    body = read_body(flask.request, ApplyExperiment) if flask.request.content_length else ApplyExperiment()
    store = current_store()
    store.check_writable()
    log = current_experimenter().log()
    experiment, done = apply_result(store, log, experiment_id, current_actor(), action=body.action)
    promoted = None if done["promoted"] is None else Promoted(**done["promoted"])
    assert experiment.applied is not None  # noqa: S101 (it has just been)
    return json_response(
        AppliedExperiment(action=experiment.applied, promoted=promoted, experiment=item_from_experiment(experiment))
    )


def get_analysis(experiment_id: str) -> flask.Response:
    """How both arms do, how sure that is, and what to do."""
    store = current_store()
    experiment = get_experiment(store, experiment_id)
    analysis = analyse_experiment(store, current_experimenter().log(), experiment)
    return json_response(report_from_analysis(experiment, analysis, store.now()))


def get_evaluations(experiment_id: str) -> flask.Response:
    """The last decisions that were kept, with their inputs."""
    limit = query_number(flask.request, "limit", DEFAULT_EVALUATIONS, 1, MAX_EVALUATIONS)
    store = current_store()
    found = list_evaluations(store, get_experiment(store, experiment_id).key, limit)
    return json_response(EvaluationItems([item_from_evaluation(one) for one in found]))


def get_one_evaluation(experiment_id: str, evaluation_id: str) -> flask.Response:
    """One kept decision, made again."""
    store = current_store()
    experiment = get_experiment(store, experiment_id)
    if not (evaluation_id.isascii() and evaluation_id.isdecimal() and len(evaluation_id) <= _MAX_DIGITS):
        raise EvaluationNotFound(experiment_id=experiment_id, evaluation_id=evaluation_id[:_MAX_DIGITS])
    return json_response(again_from_evaluation(get_evaluation(store, experiment, int(evaluation_id))))


def _cursor_from_key(key: int) -> str:
    return base64.urlsafe_b64encode(f"{_CURSOR_PREFIX}{key}".encode()).decode().rstrip("=")


def _key_from_cursor(cursor: str) -> int:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    digits = text.removeprefix(_CURSOR_PREFIX)
    if digits == text or not digits.isdecimal() or len(digits) > _MAX_DIGITS:
        refuse_parameter("cursor", "not a cursor from this list")
    return int(digits)
