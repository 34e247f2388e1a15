"""The operations of the catalog: watched models, their groups, payloads and versions, and venues."""

from mmserver import errors
from mmserver.catalog.diffing import VersionDiff
from mmserver.web.api_description import catalog_bodies as bodies
from mmserver.web.api_description.operations import (
    AS_OF,
    ETAG,
    GROUP_KEY,
    IF_NONE_MATCH,
    JSON,
    OF_A_CHANGE,
    OF_STORED_DATA,
    QUERY_TEXT,
    VERSION,
    VERSION_PARAMETERS,
    Answer,
    AnyOf,
    Body,
    Operation,
    Parameter,
)
from mmserver.web.models import ModelDetail, ModelItem, RegisterModel
from mmserver.web.payloads import MAX_WAIT_S
from mmserver.web.venues import SetQuantiles
from mmserver.web.versions import DEFAULT_LIMIT, MAX_LIMIT, RollbackModel

MODELS = "Models"
GROUPS = "Symbols and factors"
VERSIONS = "Versions"
VENUES = "Venues"

_OF_A_VERSION = (errors.ModelNotFound, errors.VersionNotFound, *OF_STORED_DATA)
_OF_A_GROUP = (*_OF_A_VERSION, errors.SymbolNotFound, errors.SymbolAmbiguous, errors.GroupRefused)
_OF_A_LOOK = (
    errors.DirectoryInvalid,
    errors.AmbiguousSymbols,
    errors.StillChanging,
    errors.SandboxUnavailable,
    errors.Overloaded,
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", "/api/models", "list_models", MODELS, "Every model",
        answers=(Answer.json(bodies.ModelList, "Every model, by name."),),
    ),
    Operation(
        "POST", "/api/models", "register_model", MODELS, "Register a directory of artifacts",
        description="Answers when its artifacts are served, which needs at least one group that can be.",
        body=Body.json(RegisterModel),
        answers=(
            Answer.json(
                ModelItem, "The model is served.", status=201, headers={"Location": "The model's address."}
            ),
        ),
        errors=(
            errors.NameInvalid, errors.OutsideRoots, errors.NothingParseable, errors.ModelNameTaken, *_OF_A_LOOK,
            *OF_A_CHANGE,
        ),
    ),
    Operation(
        "GET", "/api/models/<model_name>", "get_model", MODELS, "One model, and what of its directory is refused",
        answers=(Answer.json(ModelDetail, "The model."),),
        errors=(errors.ModelNotFound,),
    ),
    Operation(
        "DELETE", "/api/models/<model_name>", "remove_model", MODELS, "Forget a model",
        description="The directory that it was read from is not touched. A registered model with a version in production is not forgotten.",
        answers=(Answer(204, "The model is forgotten."),),
        errors=(errors.ModelNotFound, errors.VersionInUse, *OF_A_CHANGE),
    ),
    Operation(
        "POST", "/api/models/<model_name>/refresh", "refresh_model", MODELS, "Look at the directory now",
        description="Waits until files have settled. If nothing of what changed can be used, the last good version goes on "
        "being served.",
        parameters=(
            Parameter(
                "accept_vanished", "`true`: files that are missing are meant to be gone.",
                {"type": "boolean", "default": False},
            ),
        ),
        answers=(Answer.json(bodies.RefreshResult, "What changed."),),
        errors=(errors.ModelNotFound, errors.WrongModelKind, errors.ArtifactInvalid, *_OF_A_LOOK, *OF_A_CHANGE),
    ),
    Operation(
        "GET", "/api/models/<model_name>/symbols", "list_symbols", GROUPS, "Every group of a version",
        parameters=VERSION_PARAMETERS,
        answers=(Answer.json(bodies.SymbolList, "The version's groups."),),
        errors=_OF_A_VERSION,
    ),
    Operation(
        "GET", "/api/models/<model_name>/factors", "list_factors", GROUPS, "Every factor of a version",
        parameters=VERSION_PARAMETERS,
        answers=(Answer.json(bodies.FactorUnion, "The version's factors."),),
        errors=_OF_A_VERSION,
    ),
    Operation(
        "GET", "/api/models/<model_name>/symbols/<path:symbol>", "get_symbol", GROUPS, "All about one group",
        parameters=(GROUP_KEY, *VERSION_PARAMETERS),
        answers=(Answer.json(bodies.SymbolDetail, "The group."),),
        errors=_OF_A_GROUP,
    ),
    Operation(
        "GET", "/api/models/<model_name>/model/<path:symbol>", "get_payload", GROUPS, "The model, to be downloaded",
        description="What bots download. Compressed as `Accept-Encoding` asks (`gzip`, `zstd`, `br`). The entity tag names the "
        "content; `If-None-Match` with it is answered by 304. `wait` with the tag answers when something else is served.",
        parameters=(
            Parameter(
                "format",
                "`payload`; `manifest`; or the model alone: `json` (XGBoost JSON), `ubj` (UBJSON), and what plugins add.",
                {**QUERY_TEXT, "default": "payload"}, example="payload",
            ),
            GROUP_KEY, VERSION, AS_OF,
            Parameter(
                "wait", f"How many seconds to wait for other content than `etag`; more than {MAX_WAIT_S:g} are taken as "
                f"{MAX_WAIT_S:g}. Not with a fixed `version` or `as_of`.", {"type": "number", "minimum": 0, "default": 0},
            ),
            Parameter("etag", "The tag that the client has; the same as in `If-None-Match`.", QUERY_TEXT),
            IF_NONE_MATCH,
        ),
        answers=(
            Answer(
                200, "The payload, or another form of the model.",
                {
                    JSON: AnyOf((bodies.PayloadAnswer, bodies.PayloadManifest, bodies.XgboostModel)),
                    "application/vnd.xgboost.ubj": {},
                },
                _PAYLOAD_HEADERS := {
                    "ETag": "Weak; names the content, the same for every encoding.",
                    "X-Model-Version": "The version's label.",
                    "X-Group-Key": "The group's key, percent-encoded where it is not ASCII.",
                },
            ),
            Answer(304, "The client has it already.", headers=_PAYLOAD_HEADERS),
        ),
        errors=(*_OF_A_GROUP, errors.GroupHasNoModel, errors.NotConvertible),
    ),
    Operation(
        "GET", "/api/models/<model_name>/versions", "list_versions", VERSIONS, "A model's history, newest first",
        parameters=(
            Parameter(
                "limit", "How many at most.",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            ),
            Parameter("cursor", "`next_cursor` of the page before.", QUERY_TEXT),
        ),
        answers=(Answer.json(bodies.VersionList, "A page of the history."),),
        errors=(errors.ModelNotFound, *OF_STORED_DATA),
    ),
    Operation(
        "GET", "/api/models/<model_name>/diff", "diff_versions", VERSIONS, "What differs between two versions",
        parameters=(
            Parameter("from", "The older version.", {**QUERY_TEXT, "minLength": 1}, is_required=True, example="latest"),
            Parameter("to", "The newer version.", {**QUERY_TEXT, "minLength": 1}, is_required=True, example="latest"),
        ),
        answers=(Answer.json(VersionDiff, "The groups that differ; equal ones are left out."),),
        errors=_OF_A_VERSION,
    ),
    Operation(
        "POST", "/api/models/<model_name>/rollback", "rollback_model", VERSIONS, "Serve an older version",
        description="Until the files change again. A rollback makes no version.",
        body=Body.json(RollbackModel),
        answers=(Answer.json(ModelItem, "The model, which serves that version."),),
        errors=(errors.ModelNotFound, errors.VersionNotFound, errors.PinnedByStage, *OF_A_CHANGE),
    ),
    Operation(
        "GET", "/api/venues", "list_venues", VENUES, "Every venue that has thresholds",
        answers=(Answer.json(bodies.VenueList, "Every venue, by name."),),
    ),
    Operation(
        "PUT", "/api/venues/<venue>/quantiles", "set_quantiles", VENUES, "Read a venue's thresholds from a file",
        description="The file is watched from now on. A bad file leaves the venue what it had.",
        parameters=(
            Parameter(
                "If-Match", "The tag of a table, or `*`: only if that is what is in force.", {"type": "string"}, "header"
            ),
        ),
        body=Body.json(SetQuantiles),
        answers=(Answer.json(bodies.VenueUpdated, "The thresholds are served."),),
        errors=(
            errors.VenueUnknown, errors.QuantilesInvalid, errors.OutsideRoots, errors.DirectoryInvalid,
            errors.SandboxUnavailable, errors.ArtifactUnstable, errors.VersionChanged, *OF_A_CHANGE,
        ),
    ),
    Operation(
        "GET", "/api/venues/<venue>/quantiles", "get_quantiles", VENUES, "A venue's thresholds",
        parameters=(IF_NONE_MATCH,),
        answers=(
            Answer.json(bodies.VenueTable, "The venue's table.", headers=ETAG),
            Answer(304, "The client has it already.", headers=ETAG),
        ),
        errors=(errors.VenueNotFound,),
    ),
    Operation(
        "GET", "/api/venues/<venue>/quantiles/<path:symbol>", "get_symbol_quantiles", VENUES,
        "One symbol's thresholds",
        answers=(Answer.json(bodies.VenueSymbol, "The thresholds, in quote notional."),),
        errors=(errors.VenueNotFound, errors.VenueSymbolNotFound),
    ),
)  # fmt: skip
