"""The operations on models and health as clients of other servers know them."""

from mmserver import errors
from mmserver.web.api_description import listing_bodies as bodies
from mmserver.web.api_description.operations import OF_STORED_DATA, Answer, Body, Operation, Parameter
from mmserver.web.model_listings import DEFAULT_LIMIT, MAX_LIMIT, ReloadModel, ReloadVersion

SERVED_MODELS = "Served models"

_OF_A_RELOAD = (errors.ModelNotFound, errors.VersionNotFound, errors.CrossSite, *OF_STORED_DATA)
_RELOAD = (
    "What is loaded goes on answering until its successor is ready, and stays if that does not load: see `failed`."
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/models", "list_served_models", SERVED_MODELS, "The served version of every model, with its features",
        answers=(Answer.json(bodies.GatewayModels, "Every model."),),
        errors=OF_STORED_DATA,
    ),
    Operation(
        "GET", "/models/<model_name>/versions", "list_served_versions", SERVED_MODELS, "The versions of one model",
        parameters=(
            Parameter(
                "limit", "How many at most.",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            ),
        ),
        answers=(Answer.json(bodies.GatewayVersions, "The versions, newest first."),),
        errors=(errors.ModelNotFound, *OF_STORED_DATA),
    ),
    Operation(
        "GET", "/api/ml/models", "list_ml_models", SERVED_MODELS, "The served version of every model: a bare list",
        answers=(Answer.json(list[bodies.MlModel], "Every model."),),
        errors=OF_STORED_DATA,
    ),
    Operation(
        "POST", "/api/ml/models/reload", "reload_ml_model", SERVED_MODELS, "Load a model anew, named in the body",
        description=_RELOAD,
        body=Body.json(ReloadModel),
        answers=(Answer.json(bodies.Reloaded, "What was loaded, and what was not."),),
        errors=_OF_A_RELOAD,
    ),
    Operation(
        "POST", "/api/ml/models/<model_name>/reload", "reload_ml_model_by_name", SERVED_MODELS,
        "Load a model anew, named in the path",
        description=_RELOAD,
        body=Body.json(ReloadVersion, is_required=False),
        answers=(Answer.json(bodies.Reloaded, "What was loaded, and what was not."),),
        errors=_OF_A_RELOAD,
    ),
    Operation(
        "GET", "/health", "get_health", SERVED_MODELS, "Whether models can be served, and every check",
        answers=(
            Answer.json(bodies.Health, "They can: `healthy`, or `degraded` where something else is wrong."),
            Answer.json(bodies.Health, "They cannot: `unhealthy`.", status=503),
        ),
    ),
    Operation(
        "GET", "/api/ml/health", "get_ml_health", SERVED_MODELS, "Whether models can be served, and what is loaded",
        answers=(
            Answer.json(bodies.MlHealth, "They can: `healthy`, or `degraded` where something else is wrong."),
            Answer.json(bodies.MlHealth, "They cannot: `unhealthy`.", status=503),
        ),
    ),
)  # fmt: skip
