"""The operations of experiments, and of what came of predictions."""

from collections.abc import Mapping
from typing import Any

from mmserver import errors
from mmserver.experiments.observations.reports import OutcomeReport, PriceReport
from mmserver.web import experiment_bodies as bodies
from mmserver.web.api_description.operations import (
    CSV,
    JSON,
    OF_A_CHANGE,
    OF_STORED_DATA,
    QUERY_TEXT,
    Answer,
    Body,
    Operation,
    Parameter,
)
from mmserver.web.experiment_standings import ExperimentStanding
from mmserver.web.experiments import DEFAULT_EVALUATIONS, DEFAULT_LIMIT, MAX_EVALUATIONS, MAX_LIMIT
from mmserver.web.outcomes import PARQUET_MEDIA_TYPE, PricesBody

EXPERIMENTS = "Experiments"

_ROOT = "/api/ml/experiments"
_ONE = f"{_ROOT}/<experiment_id>"
_OF_ONE = (errors.ExperimentNotFound, *OF_STORED_DATA)
_OF_A_LOG = (*_OF_ONE, errors.DiskFull, errors.WritesStopped)
_CHANGES_ONE = (errors.ExperimentNotFound, *OF_A_CHANGE)
_ENDS_ONE = (*_CHANGES_ONE, errors.BlobCorrupt, errors.BlobNotFound)
_SETS_UP = (errors.ModelNotFound, errors.VersionNotFound, errors.NameInvalid)


def _object(meaning: str) -> dict[str, Any]:
    return {"type": "object", "description": meaning}


_REPORT: Mapping[str, Any] = {
    "type": "object",
    "required": [
        "experiment", "at", "control", "treatment", "improvement", "tests", "health", "progress", "by_symbol", "by_day",
        "recommendation", "other_policy", "looks",
    ],
    "properties": {
        "experiment": _object("The experiment, as `GET …/{experiment_id}` gives it."),
        "at": {"type": "string", "format": "date-time", "description": "When this was made, UTC."},
        "control": _object("How the control does: counts, accuracy, returns, latencies, errors; null where nothing is known."),
        "treatment": _object("The same of the treatment."),
        "improvement": _object("By name of the number: treatment less control, absolute and relative, with bounds."),
        "tests": _object("How sure the differences are: at all looks at once, and if looked at once."),
        "health": _object("Whether it can be trusted: the sample ratio, units in both arms, outcomes that are missing."),
        "progress": _object("How far it is."),
        "by_symbol": {"type": "array", "items": {"type": "object"}, "description": "Both arms on each symbol."},
        "by_day": {"type": "array", "items": {"type": "object"}, "description": "Both arms on each day, UTC."},
        "recommendation": {
            "type": "object",
            "description": "What to do, and why, in words and as data.",
            "required": ["action", "reasons"],
            "properties": {
                "action": {"enum": ["promote", "rollback", "continue"], "description": "What to do."},
                "reasons": {"type": "array", "items": {"type": "string"}, "description": "Why, in sentences."},
            },
        },
        "other_policy": _object("What the other policy would recommend of the same numbers."),
        "looks": _object("What earlier looks found, as far as it still counts."),
    },
}  # fmt: skip
_OUTCOME: Mapping[str, Any] = {
    "type": "object",
    "required": ["prediction_id"],
    "properties": {
        "prediction_id": {"type": "string", "description": "The prediction's, as its answer had it."},
        "realized_return": {"type": ["number", "null"], "description": "The symbol's return over the horizon."},
        "label": {"enum": ["BUY", "SELL", "HOLD", 0, 1, 2, None], "description": "What would have been right."},
        "at": {"type": ["string", "number", "null"], "description": "When it was known; without it, now."},
    },
}
_OUTCOMES = Body({
    JSON: {"anyOf": [_OUTCOME, {"type": "array", "minItems": 1, "items": _OUTCOME}]},
    CSV: {"type": "string"},
    PARQUET_MEDIA_TYPE: {"type": "string", "format": "binary"},
})  # fmt: skip

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", _ROOT, "create_experiment", EXPERIMENTS, "Compare two versions on live requests",
        description="It runs at once unless `start` is false. Requests for the control's model that name no version get the version "
        "of their unit's arm, until the experiment is stopped or somebody puts another version into production.",
        body=Body.json(bodies.CreateExperiment),
        answers=(
            Answer.json(
                bodies.ExperimentItem, "The experiment.", status=201, headers={"Location": "The experiment's address."}
            ),
        ),
        errors=(errors.ExperimentTaken, errors.ExperimentConflict, *_SETS_UP, *OF_A_CHANGE),
    ),
    Operation(
        "GET", _ROOT, "list_experiments", EXPERIMENTS, "Experiments, the newest first",
        parameters=(
            Parameter(
                "status", "Only those in this status.",
                {"type": "string", "enum": ["draft", "running", "stopped", "applied"]},
            ),
            Parameter(
                "limit", "How many at most.",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            ),
            Parameter("cursor", "`next_cursor` of the page before.", QUERY_TEXT),
        ),
        answers=(Answer.json(bodies.ExperimentItems, "A page of the list."),),
        errors=OF_STORED_DATA,
    ),
    Operation(
        "GET", _ONE, "get_experiment", EXPERIMENTS, "One experiment",
        answers=(Answer.json(ExperimentStanding, "The experiment, and what keeps its arms from answering now."),),
        errors=_OF_ONE,
    ),
    Operation(
        "PATCH", _ONE, "change_experiment", EXPERIMENTS, "Change a draft",
        description="What has started is changed no more, except by a ramp.",
        body=Body.json(bodies.ChangeExperiment),
        answers=(Answer.json(bodies.ExperimentItem, "The draft."),),
        errors=(errors.ExperimentStatusConflict, *_SETS_UP, *_CHANGES_ONE),
    ),
    Operation(
        "POST", f"{_ONE}/start", "start_experiment", EXPERIMENTS, "Let a draft run",
        answers=(Answer.json(bodies.ExperimentItem, "The running experiment."),),
        errors=(errors.ExperimentStatusConflict, errors.ExperimentConflict, *_SETS_UP, *_CHANGES_ONE),
    ),
    Operation(
        "POST", f"{_ONE}/ramp", "ramp_experiment", EXPERIMENTS, "Go on with another share",
        description="A new phase begins. With a smaller share of the control no treated unit goes back; a greater one draws all units "
        "anew, which `redraw` must say.",
        body=Body.json(bodies.RampExperiment),
        answers=(Answer.json(bodies.ExperimentItem, "The experiment, in its new phase."),),
        errors=(errors.ExperimentStatusConflict, *_CHANGES_ONE),
    ),
    Operation(
        "POST", f"{_ONE}/stop", "stop_experiment", EXPERIMENTS, "End an experiment",
        description="Requests get what the model serves from then on. Sent again, it gives the report again.",
        answers=(Answer.json(_REPORT, "The final report."),),
        errors=_CHANGES_ONE,
    ),
    Operation(
        "POST", f"{_ONE}/apply", "apply_experiment", EXPERIMENTS, "Do what is recommended",
        description="Promote the treatment, or keep the control. An experiment that runs is stopped first. `action` overrules "
        "the recommendation.",
        body=Body.json(bodies.ApplyExperiment, is_required=False),
        answers=(Answer.json(bodies.AppliedExperiment, "What was done."),),
        errors=(
            errors.ExperimentUndecided, errors.ExperimentStatusConflict, errors.ModelNotFound, errors.VersionNotFound,
            *_ENDS_ONE,
        ),
    ),
    Operation(
        "GET", f"{_ONE}/analysis", "analyse_experiment", EXPERIMENTS, "How both arms do, and what that recommends",
        description="As of now, and right however often it is looked at under the policy `sequential`.",
        answers=(Answer.json(_REPORT, "The analysis."),),
        errors=_OF_A_LOG,
    ),
    Operation(
        "GET", f"{_ONE}/evaluations", "list_evaluations", EXPERIMENTS, "Decisions that were kept",
        description="The newest first, each with the exact numbers that it was made from.",
        parameters=(
            Parameter(
                "limit", "How many at most.",
                {"type": "integer", "minimum": 1, "maximum": MAX_EVALUATIONS, "default": DEFAULT_EVALUATIONS},
            ),
        ),
        answers=(Answer.json(bodies.EvaluationItems, "The decisions."),),
        errors=_OF_ONE,
    ),
    Operation(
        "GET", f"{_ONE}/evaluations/<evaluation_id>", "replay_evaluation", EXPERIMENTS, "A kept decision, made again",
        description="From its own inputs, by the rules of this server. Where the rules are the same, the decision must be, reasons and "
        "numbers too.",
        answers=(Answer.json(bodies.EvaluationAgain, "The decision, and whether it is made again."),),
        errors=(errors.EvaluationNotFound, *_OF_ONE),
    ),
    Operation(
        "POST", f"{_ONE}/outcomes", "add_outcomes", EXPERIMENTS, "Say what came of predictions",
        description="One outcome, or a list; a CSV or Parquet file with the same columns. What is wrong with one is in the report and "
        "stops no other; the same outcome again changes nothing.",
        body=_OUTCOMES,
        answers=(Answer.json(OutcomeReport, "What came of the outcomes."),),
        errors=(errors.TooManyRows, errors.ExtraMissing, *_CHANGES_ONE),
    ),
    Operation(
        "POST", "/api/ml/outcomes", "add_any_outcomes", EXPERIMENTS, "Say what came of any predictions",
        description="As for an experiment, of all predictions that were logged: those of every experiment, and those outside experiments "
        "that were observed.",
        body=_OUTCOMES,
        answers=(Answer.json(OutcomeReport, "What came of the outcomes."),),
        errors=(errors.TooManyRows, errors.ExtraMissing, *OF_A_CHANGE),
    ),
    Operation(
        "POST", "/api/ml/outcomes/prices", "add_prices", EXPERIMENTS, "Let outcomes be computed from prices",
        description="Each prediction whose horizon the prices reach gets the return of its symbol.",
        body=Body.json(PricesBody),
        answers=(Answer.json(PriceReport, "What came of the prices."),),
        errors=OF_A_CHANGE,
    ),
)  # fmt: skip
