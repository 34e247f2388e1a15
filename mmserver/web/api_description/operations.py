"""What the description says of one route: an operation with its parameters, body, answers and errors, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from mmserver import errors
from mmserver.errors import MmserverError
from mmserver.web.raw_answers import MAX_UNIT_ID_LENGTH, UNIT_ID

JSON = "application/json"
CSV = "text/csv"
Schema: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """A body of one of several types, which msgspec only describes where they are tagged."""

    types: tuple[type[msgspec.Struct], ...]


TypeOrSchema: TypeAlias = Any
"""A type that msgspec can describe, an `AnyOf`, or a schema as it is to stand in the document; None where nothing is said."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter in the path, the query or the headers of a request."""

    name: str
    meaning: str
    schema: Schema
    place: Literal["path", "query", "header"] = "query"
    is_required: bool = False
    example: str | int | float | bool | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent with a request: its type in each media type that is taken; None where any bytes of that type are."""

    types: Mapping[str, TypeOrSchema]
    meaning: str = ""
    is_required: bool = True

    @classmethod
    def json(cls, body_type: type[msgspec.Struct], meaning: str = "", *, is_required: bool = True) -> "Body":
        """A JSON body."""
        return cls({JSON: body_type}, meaning, is_required)


@dataclass(frozen=True, slots=True)
class Answer:
    """One successful answer; `types` is empty where there is no body. `headers` maps names to what they say."""

    status: int
    meaning: str
    types: Mapping[str, TypeOrSchema] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(
        cls, body_type: Any, meaning: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> "Answer":
        """A JSON answer."""
        return cls(status, meaning, {JSON: body_type}, headers or {})


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error of HTTP itself, which the framework raises: see `CODE_BY_HTTP_STATUS`."""

    status: int


AnyError: TypeAlias = type[MmserverError] | HttpError
UNKNOWN_ADDRESS = HttpError(404)
BODY_TOO_LARGE = HttpError(413)
UNSUPPORTED_MEDIA_TYPE = HttpError(415)
ADDRESS_TOO_LONG = HttpError(414)
HEADERS_TOO_LARGE = HttpError(431)
BUG = HttpError(500)

ANYWHERE: tuple[AnyError, ...] = (errors.HostUnknown, errors.KeyInAddress, errors.DeadlinePassed, errors.QueueFull, BUG)
"""What any request may be answered with, whatever it asks for."""
OPEN_RULES = frozenset({"/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"})
"""What needs no key, whatever the settings say."""
OF_A_KEY: tuple[AnyError, ...] = (
    errors.KeyRequired, errors.NoKeyExists, errors.KeyMalformed, errors.KeyRefused, errors.ScopeMissing, errors.OutsideKeyLimits,
)  # fmt: skip
"""Of everything else, where keys are asked for."""
OF_A_QUERY: tuple[AnyError, ...] = (errors.RequestInvalid,)
OF_A_BODY: tuple[AnyError, ...] = (errors.RequestInvalid, BODY_TOO_LARGE, UNSUPPORTED_MEDIA_TYPE)
OF_STORED_DATA: tuple[AnyError, ...] = (
    errors.DatabaseBusy, errors.DatabaseCorrupt, errors.BlobCorrupt, errors.BlobNotFound
)  # fmt: skip
"""Where the database is read."""
OF_A_PREDICTOR: tuple[AnyError, ...] = (
    errors.GroupHasNoModel, errors.PredictorUnloadable, errors.NotReady, errors.PredictionTooLong
)  # fmt: skip
"""Where a model is run, or loaded to be run."""
OF_A_CHANGE: tuple[AnyError, ...] = (
    errors.ReadOnly, errors.CrossSite, errors.DatabaseBusy, errors.DatabaseCorrupt, errors.WritesStopped, errors.DiskFull,
    errors.ModelChanged,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one route; `rule` is Flask's. The parameters in the path are found by their names; one among `parameters`
    is meant instead.
    """

    method: str
    rule: str
    name: str
    tag: str
    summary: str
    answers: tuple[Answer, ...]
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None
    errors: tuple[AnyError, ...] = ()


# --- parameters that several operations share -----------------------------------------------------------------------

TEXT: Schema = {"type": "string"}
MODEL_NAME = Parameter("model_name", "The model's name.", TEXT, "path", is_required=True, example="demo")
SYMBOL = Parameter(
    "symbol", "The symbol; `/`, `-`, `_`, `:` and case do not matter.", TEXT, "path", is_required=True, example="SP500"
)
VENUE = Parameter("venue", "The venue.", TEXT, "path", is_required=True, example="binance-futures")
PATH_PARAMETERS: Mapping[str, Parameter] = {
    **{parameter.name: parameter for parameter in (MODEL_NAME, SYMBOL, VENUE)},
    "name": Parameter(
        "name", "A group as `MODEL.SYMBOL`; `MODEL` alone where it has one group.", TEXT, "path", is_required=True,
        example="demo.SP500",
    ),
    "evaluation_id": Parameter(
        "evaluation_id", "The `id` of the evaluation.", TEXT, "path", is_required=True, example="17"
    ),
    "experiment_id": Parameter(
        "experiment_id", "The experiment's name.", TEXT, "path", is_required=True, example="sp500-v2"
    ),
    "version": Parameter(
        "version", "A version: its label, `latest`, `production` or `staging`.", TEXT, "path", is_required=True, example="latest"
    ),
}  # fmt: skip
QUERY_TEXT: Schema = {"type": "string", "maxLength": 512, "pattern": r"^[^\x00-\x1f\x7f-\x9f]*$"}
"""Printable, as far as a pattern of every dialect can say it."""
VERSION = Parameter(
    "version",
    "A version's label, `latest`, `production` or `staging`; without it what is served now.",
    QUERY_TEXT,
    example="latest",
)
AS_OF = Parameter(
    "as_of", "An RFC 3339 time with its offset: what was served then.", {"type": "string", "format": "date-time"}
)
VERSION_PARAMETERS = (VERSION, AS_OF)
GROUP_KEY = Parameter("group_key", "Which group, where several share the symbol.", QUERY_TEXT)
IF_NONE_MATCH = Parameter(
    "If-None-Match", "The tag that the client has: answered by 304 if it still holds.", TEXT, "header"
)
UNIT = Parameter(
    UNIT_ID, "The unit whose arm answers, in an experiment by `unit_id`. ASCII.",
    {"type": "string", "maxLength": MAX_UNIT_ID_LENGTH}, "header",
)  # fmt: skip
ETAG: Mapping[str, str] = {"ETag": "Names the content."}
