"""The operations of the Open Inference Protocol v2 with its extensions."""

from collections.abc import Iterator
from typing import Any

from mmserver import errors
from mmserver.web.api_description import open_inference_answers as bodies
from mmserver.web.api_description.operations import (
    AS_OF,
    JSON,
    OF_A_PREDICTOR,
    OF_STORED_DATA,
    UNIT,
    Answer,
    Body,
    Operation,
    Parameter,
)
from mmserver.web.open_inference import IndexBody, RepositoryBody
from mmserver.web.open_inference_bodies import BINARY_MEDIA_TYPE, HEADER_LENGTH, InferRequest

OPEN_INFERENCE = "Open Inference Protocol v2"

_OF_A_NAME = (
    errors.ModelNotFound, errors.VersionNotFound, errors.SymbolNotFound, errors.SymbolAmbiguous, errors.GroupRefused,
    errors.GroupHasNoModel, errors.SymbolArchived, *OF_STORED_DATA,
)  # fmt: skip
_OF_A_PREDICTOR = (*_OF_A_NAME, *OF_A_PREDICTOR)
_OF_AN_INFERENCE = (
    *_OF_A_PREDICTOR, errors.TooManyRows, errors.FeaturesInvalid, errors.PredictionNotFinite, errors.PredictionFailed, errors.CrossSite,
)  # fmt: skip
_INFER = f"""\
One input `features`, FP32 or another number type, of shape [rows, dim], or as the metadata say [rows, timesteps, dim]; or one input for
each factor. null is missing where the model knows missing values. Tensors may follow the JSON as binary data: `{HEADER_LENGTH}` says
where they begin, and 0 that the body is one tensor's bytes. The body may be compressed with gzip or deflate.
In an experiment the answer's `parameters` have `variant`, `experiment_id`, `prediction_id` and, where the control answers in the
treatment's place, `fallback`; a unit may also be named in the request's `parameters`, as `unit_id`.
"""


def _with_and_without_version(
    method: str,
    end: str,
    name: str,
    summary: str,
    *,
    answers: tuple[Answer, ...],
    parameters: tuple[Parameter, ...] = (),
    **more: Any,
) -> Iterator[Operation]:
    """The same for what is served and for a version that is named in the path."""
    more["parameters"] = (AS_OF, *parameters)
    served = f"/v2/models/<name>{end}"
    yield Operation(method, served, name, OPEN_INFERENCE, summary, answers, **more)
    versioned = f"/v2/models/<name>/versions/<version>{end}"
    summary = f"{summary}, of a version"
    yield Operation(method, versioned, f"{name}_of_version", OPEN_INFERENCE, summary, answers, **more)


OPERATIONS: tuple[Operation, ...] = (
    *(
        Operation(
            "GET", rule, name, OPEN_INFERENCE, "The server and its extensions",
            answers=(Answer.json(bodies.ServerMetadata, "Name, version, extensions."),),
        )
        for rule, name in (("/v2", "v2_server"), ("/v2/", "v2_server_with_slash"))
    ),
    Operation(
        "GET", "/v2/health/live", "v2_live", OPEN_INFERENCE, "Whether the process answers",
        answers=(Answer.json(bodies.ServerLive, "It does."),),
    ),
    Operation(
        "GET", "/v2/health/ready", "v2_ready", OPEN_INFERENCE, "Whether models can be served",
        answers=(
            Answer.json(bodies.ServerReady, "They can."),
            Answer.json(bodies.ServerReady, "They cannot.", status=503),
        ),
    ),
    Operation(
        "GET", "/v2/models", "v2_models", OPEN_INFERENCE, "The names of all models",
        description="A model is one group: `MODEL.SYMBOL`.",
        answers=(Answer.json(bodies.TensorModelNames, "The names."),),
    ),
    *_with_and_without_version(
        "GET", "", "v2_model", "What a model takes and gives",
        answers=(Answer.json(bodies.TensorModelMetadata, "Inputs and outputs."),), errors=_OF_A_PREDICTOR,
    ),
    *_with_and_without_version(
        "GET", "/ready", "v2_model_ready", "Whether a model predicts",
        answers=(
            Answer.json(bodies.TensorModelReady, "It does."),
            Answer.json(bodies.TensorModelReady, "It does not: `error` says why.", status=503),
        ),
        errors=_OF_A_NAME,
    ),
    *_with_and_without_version(
        "POST", "/infer", "v2_infer", "Predict",
        answers=(
            Answer(
                200, "Predictions; binary where the request asks for that, after the JSON.",
                {JSON: bodies.InferResponse, BINARY_MEDIA_TYPE: {}},
                {HEADER_LENGTH: "How many bytes are JSON, where binary data follow."},
            ),
        ),
        errors=_OF_AN_INFERENCE,
        description=_INFER,
        parameters=(
            Parameter(
                HEADER_LENGTH, "How many bytes of the body are JSON, where binary data follow.",
                {"type": "integer", "minimum": 0}, "header",
            ),
            UNIT,
        ),
        body=Body({JSON: InferRequest, BINARY_MEDIA_TYPE: {}}),
    ),
    *_with_and_without_version(
        "GET", "/config", "v2_config", "A model's configuration",
        answers=(Answer.json(bodies.TensorModelConfiguration, "The configuration."),), errors=_OF_A_PREDICTOR,
    ),
    Operation(
        "GET", "/v2/models/stats", "v2_all_statistics", OPEN_INFERENCE, "Statistics of every model",
        answers=(Answer.json(bodies.StatisticsAnswer, "One entry a model."),),
    ),
    *_with_and_without_version(
        "GET", "/stats", "v2_statistics", "A model's statistics",
        answers=(Answer.json(bodies.StatisticsAnswer, "One entry."),), errors=_OF_A_NAME,
    ),
    Operation(
        "POST", "/v2/repository/index", "v2_index", OPEN_INFERENCE, "All models, and whether they predict",
        body=Body.json(IndexBody, is_required=False),
        answers=(Answer.json(list[bodies.IndexEntry], "One entry a model."),),
        errors=(errors.CrossSite,),
    ),
    Operation(
        "POST", "/v2/repository/models/<name>/load", "v2_load", OPEN_INFERENCE, "Load a model, anew if it is loaded",
        body=Body.json(RepositoryBody, is_required=False),
        answers=(Answer.json(bodies.LoadAnswer, "It is loaded."),),
        errors=(*_OF_A_PREDICTOR, errors.CrossSite),
    ),
    Operation(
        "POST", "/v2/repository/models/<name>/unload", "v2_unload", OPEN_INFERENCE,
        "Refuse to predict with a model until it is loaded again",
        body=Body.json(RepositoryBody, is_required=False),
        answers=(Answer.json(bodies.UnloadAnswer, "It is unloaded, in all workers of the server within 0.2 s."),),
        errors=(*_OF_A_NAME, errors.CrossSite),
    ),
)  # fmt: skip
