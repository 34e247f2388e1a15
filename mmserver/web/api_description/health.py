"""The operations that say how the server is, and the description itself."""

from mmserver.web.api_description import catalog_bodies as bodies
from mmserver.web.api_description.operations import ETAG, IF_NONE_MATCH, JSON, Answer, Operation

HEALTH = "Health"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/livez", "get_livez", HEALTH, "Whether the process answers",
        answers=(Answer(200, "It does.", {"text/plain": {"type": "string"}}),),
    ),
    Operation(
        "GET", "/readyz", "get_readyz", HEALTH, "Whether models can be served",
        answers=(
            Answer.json(bodies.Readiness, "They can: `ok`, or `degraded` where something else is wrong."),
            Answer.json(bodies.Readiness, "They cannot: `failing`.", status=503, headers={}),
        ),
    ),
    Operation(
        "GET", "/openapi.json", "get_openapi", HEALTH, "This description",
        parameters=(IF_NONE_MATCH,),
        answers=(
            Answer(200, "OpenAPI 3.1.", {JSON: {"type": "object", "required": ["openapi", "info", "paths"]}}, ETAG),
            Answer(304, "The client has it already.", headers=ETAG),
        ),
    ),
)  # fmt: skip
