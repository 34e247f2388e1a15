"""The whole description: which operations there are, and what is said about all of them."""

import json
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

from mmserver.settings import Settings
from mmserver.web.api_description import (
    audit,
    catalog,
    experiments,
    health,
    listings,
    open_inference,
    predictions,
    registry,
    scoring,
)
from mmserver.web.api_description.document import build_document
from mmserver.web.api_description.operations import Operation
from mmserver.web.api_description.prediction_bodies import REFERRED_TO
from mmserver.web.requests import MAX_JSON_DEPTH

OPERATIONS: tuple[Operation, ...] = (
    *predictions.OPERATIONS,
    *listings.OPERATIONS,
    *catalog.OPERATIONS,
    *registry.OPERATIONS,
    *experiments.OPERATIONS,
    *open_inference.OPERATIONS,
    *scoring.OPERATIONS,
    *audit.OPERATIONS,
    *health.OPERATIONS,
)
TAGS: Mapping[str, str] = {
    predictions.PREDICTION: "From a symbol and its features to a decision.",
    listings.SERVED_MODELS: "Models and health in the words of earlier services.",
    catalog.MODELS: "Directories of artifacts that are watched and served.",
    catalog.GROUPS: "What a version of a model holds for each symbol.",
    catalog.VERSIONS: "A model through time.",
    registry.REGISTRY: "Versions that are registered one by one, and stages of all models.",
    experiments.EXPERIMENTS: "Two versions compared on live requests, and what came of predictions.",
    catalog.VENUES: "Order-size thresholds by venue and symbol.",
    open_inference.OPEN_INFERENCE: "For the clients of that protocol: tensors in, tensors out.",
    scoring.SCORING: "For the clients of MLflow and SageMaker: a table in, predictions out.",
    audit.AUDIT: "Who changed what, and what was refused.",
    health.HEALTH: "Whether the server answers and can do its work.",
}

_DESCRIPTION = """\
A model manager and model server for trading models.

- JSON in, JSON out, UTF-8. Unknown fields are ignored, but refused by
  name in experiments. Refused are malformed JSON, names given twice, `NaN`, `Infinity`,
  integers beyond 64 bits, NUL in texts, and more than {depth} levels. A body has at most {max_body_bytes:,} bytes, a prediction
  {max_rows:,} rows.
- Errors are `application/problem+json` (RFC 9457); `code` is stable. Under `/v2` they are `{{"error", "code", "request_id"}}`,
  under `/invocations` `{{"error_code", "message", "code", "request_id"}}`. 503 carries `Retry-After`.
- Every response has `X-Request-ID`. Times are RFC 3339 UTC.
- Symbols compare without `/`, `-`, `_`, `:` and case: `btc-usdt` finds `BTCUSDT`. In a path, a slash may be written as it is.
- A version is named by its label, or as `latest`, `production` or `staging`; `as_of` is a time and means what was served then.
- `GET` routes answer `HEAD` too. What is no HTTP, too long or too slow is refused before it reaches a route: 408, 414, 431,
  501, 505; an address that there is not is 404, a method that it does not take 405.
"""


def api_document(settings: Settings) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server with these settings."""
    info = {
        "title": "mmserver",
        "version": metadata.version("mmserver"),
        "description": _DESCRIPTION.format(
            depth=MAX_JSON_DEPTH, max_body_bytes=settings.max_body_bytes, max_rows=settings.max_rows
        ),
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    return build_document(OPERATIONS, TAGS, info, load_examples(), REFERRED_TO)


def load_examples() -> dict[str, Any]:
    """By an operation's name, a `request`, the same as `request_csv` where a table may be, and the `response` that a real server
    gave to it, long ones shortened with `…`.
    """
    text = (resources.files("mmserver.web.api_description") / "examples.json").read_bytes()
    examples: dict[str, Any] = json.loads(text)
    return examples
