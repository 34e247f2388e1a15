"""The operations of the scoring protocol that MLflow and SageMaker share."""

from dataclasses import replace
from typing import Any

from mmserver import errors
from mmserver.web.api_description import scoring_bodies as bodies
from mmserver.web.api_description.operations import (
    AS_OF,
    JSON,
    MODEL_NAME,
    OF_A_PREDICTOR,
    OF_STORED_DATA,
    UNIT,
    Answer,
    AnyOf,
    Body,
    Operation,
)
from mmserver.web.invocations import CSV_MEDIA_TYPE, PARQUET_MEDIA_TYPE

SCORING = "Scoring protocol"

_TABLE = Body(
    {
        JSON: AnyOf((bodies.DataframeSplit, bodies.DataframeRecords, bodies.Instances, bodies.Inputs)),
        CSV_MEDIA_TYPE: {"type": "string"},
        PARQUET_MEDIA_TYPE: {},
    },
    "Columns are found by factor name; more columns than the model has factors are left out. CSV has a header line.",
)
_NAME = replace(
    MODEL_NAME, meaning="A group as `MODEL.SYMBOL`; `MODEL` alone where it has one group.", example="demo.SP500"
)
_OF_A_TABLE = (
    errors.ModelNotFound, errors.VersionNotFound, errors.SymbolNotFound, errors.SymbolAmbiguous, errors.SymbolArchived,
    errors.GroupRefused, errors.FeaturesInvalid, errors.TooManyRows, *OF_A_PREDICTOR,
    errors.PredictionNotFinite, errors.PredictionFailed, errors.CrossSite, *OF_STORED_DATA,
)  # fmt: skip
_SHARED: dict[str, Any] = {
    "body": _TABLE,
    "answers": (
        Answer.json(
            bodies.Scores,
            "One entry for each row.",
            headers={
                "X-Model-Version": "The label of the version that predicted.",
                "X-Variant": "`control` or `treatment`: the arm that answered, in an experiment.",
                "X-Experiment-Id": "The experiment, percent-encoded where not ASCII.",
                "X-Prediction-Id": "By what outcomes are given later, in an experiment or where what is served is observed; of several rows, "
                "the n-th from 0 is `{prediction_id}.{n}`.",
                "X-Fallback": "The code of the error for which the control answers in the treatment's place.",
            },
        ),
    ),
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", "/invocations", "invoke", SCORING, "Score a table with the default model",
        description="`default_model`, or the only model that there is.",
        parameters=(AS_OF, UNIT), errors=(*_OF_A_TABLE, errors.NoDefaultModel), **_SHARED,
    ),
    Operation(
        "POST", "/models/<model_name>/invocations", "invoke_model", SCORING, "Score a table with a model",
        description="The name is `MODEL.SYMBOL`, or `MODEL` where it has one group, and may end in `@VERSION`.",
        parameters=(_NAME, AS_OF, UNIT), errors=_OF_A_TABLE, **_SHARED,
    ),
    Operation(
        "POST", "/models/<model_name>/versions/<version>/invocations", "invoke_version", SCORING,
        "Score a table with a version of a model",
        description="The name is `MODEL.SYMBOL`, or `MODEL` where it has one group.",
        parameters=(_NAME, AS_OF, UNIT), errors=_OF_A_TABLE, **_SHARED,
    ),
    Operation(
        "GET", "/ping", "ping", SCORING, "Whether anything can be predicted",
        answers=(
            Answer(200, "Something can. The body is an empty line, as the protocol has it.", {JSON: None}),
            Answer(404, "Nothing can.", {JSON: None}),
        ),
    ),
    Operation(
        "GET", "/version", "get_version", SCORING, "The program's version",
        answers=(Answer(200, "The version as bare text.", {"text/plain": {"type": "string"}}),),
    ),
)  # fmt: skip
