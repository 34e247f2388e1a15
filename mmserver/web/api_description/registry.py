"""The operations of the registry: versions that are registered one by one, and stages."""

from collections.abc import Mapping
from typing import Any

from mmserver import errors
from mmserver.registry.comparing import Comparison
from mmserver.web import registry_bodies as bodies
from mmserver.web.api_description.operations import (
    JSON,
    OF_A_CHANGE,
    OF_STORED_DATA,
    QUERY_TEXT,
    Answer,
    Body,
    Operation,
    Parameter,
)
from mmserver.web.late_routes import UPLOAD_MEDIA_TYPE
from mmserver.web.optimization_bodies import OptimizeVersion, RegistryOptimizations
from mmserver.web.registry import DEFAULT_LIMIT, MAX_LIMIT

REGISTRY = "Registry"

_ROOT = "/api/ml/registry/models"
_MODEL = f"{_ROOT}/<model_name>"
_VERSION = f"{_MODEL}/<version>"
_OF_A_MODEL = (errors.ModelNotFound, errors.WrongModelKind, *OF_STORED_DATA)
_OF_A_VERSION = (*_OF_A_MODEL, errors.VersionNotFound)
_CHANGES_STAGES = (errors.ModelNotFound, errors.VersionNotFound, errors.BlobCorrupt, errors.BlobNotFound, *OF_A_CHANGE)
_CHANGES_A_VERSION = (*_CHANGES_STAGES, errors.WrongModelKind)
_REFERENCE = {**QUERY_TEXT, "minLength": 1}
_STAGES_OF_WATCHED = "Models with a directory have stages too; of their versions little else is known here."


def _text(meaning: str) -> dict[str, Any]:
    return {"type": "string", "description": meaning}


_UPLOAD: Mapping[str, Any] = {
    "type": "object",
    "required": ["name", "version", "file"],
    "properties": {
        "name": _text("The model's name."),
        "version": _text("The version's label, a semantic version such as `1.1.0`."),
        "model_type": _text("What you call it; a format's name where the file's name does not say which it is."),
        "description": _text("What it is, in words."),
        "derived_from": _text("The label of the version that it is another form of."),
        "metrics": _text("JSON: numbers by name."),
        "training_params": _text("JSON: an object."),
        "tags": _text("JSON: texts by name."),
        "factors": _text("JSON: the names of the model's inputs, in input order."),
        "info": _text("JSON: an object with what else is known of the training."),
        "options": _text("JSON: an object with what the format asks for."),
        "sha256": _text("SHA-256 of the first file, hex: what arrived otherwise is refused."),
        "file": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "The model's file, then those that belong to it, each a part with its `filename`.",
        },
    },
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST", _ROOT, "register_version", REGISTRY, "Register a version of a model",
        description="Upload its files, or name them on the server. The model is read in a guarded process, converted where its "
        "format needs that, and must predict what its own library predicts. A version never changes: the same content again is "
        "answered by 200, other content under a label that is taken by 409. The version is served at once where nothing is in "
        "production and it is the newest.",
        body=Body(
            {JSON: bodies.RegisterVersion, UPLOAD_MEDIA_TYPE: _UPLOAD},
            "Files together have at most `max_artifact_bytes`.",
        ),
        answers=(
            Answer.json(
                bodies.RegistryVersion, "The version is registered.", status=201,
                headers=(location := {"Location": "The version's address."}),
            ),
            Answer.json(bodies.RegistryVersion, "The very same was registered before.", headers=location),
        ),
        errors=(
            errors.NameInvalid, errors.VersionInvalid, errors.VersionTaken, errors.WrongModelKind, errors.OutsideRoots,
            errors.ArtifactInvalid, errors.ArtifactUnstable, errors.ExtraMissing, errors.UploadTooLarge,
            errors.SandboxUnavailable, errors.Overloaded, errors.BlobCorrupt, errors.BlobNotFound, *OF_A_CHANGE,
        ),
    ),
    Operation(
        "GET", _ROOT, "list_registry_models", REGISTRY, "Registered models, by name",
        parameters=(
            Parameter(
                "limit", "How many at most.",
                {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
            ),
            Parameter("cursor", "`next_cursor` of the page before.", QUERY_TEXT),
        ),
        answers=(Answer.json(bodies.RegistryModels, "A page of the list."),),
        errors=OF_STORED_DATA,
    ),
    Operation(
        "GET", _MODEL, "get_registry_model", REGISTRY, "A registered model's versions",
        description="Newest first in the order of semantic versions: `1.10.0` is newer than `1.9.0`.",
        parameters=(
            Parameter(
                "stage", "Only versions in this stage: `Production`, `Staging`, `Archived` or `None`.", QUERY_TEXT,
            ),
        ),
        answers=(Answer.json(bodies.RegistryModelVersions, "The model."),),
        errors=_OF_A_MODEL,
    ),
    Operation(
        "GET", f"{_MODEL}/compare", "compare_registry_versions", REGISTRY, "Two versions side by side",
        parameters=(
            Parameter("version1", "The first version.", _REFERENCE, is_required=True, example="1.0.0"),
            Parameter("version2", "The version that is held against it.", _REFERENCE, is_required=True, example="latest"),
        ),
        answers=(Answer.json(Comparison, "What differs."),),
        errors=_OF_A_VERSION,
    ),
    Operation(
        "POST", f"{_MODEL}/rollback", "rollback_registry_model", REGISTRY, "Undo the last promotion",
        description="With `from`, the version that is in production, the same request may be sent again: it changes nothing then. "
        f"Without it, two requests go back two. {_STAGES_OF_WATCHED}",
        body=Body.json(bodies.RollbackPromotion, is_required=False),
        answers=(Answer.json(bodies.RegistryVersion, "The version that is in production again."),),
        errors=(errors.NotInProduction, errors.NothingBefore, errors.VersionChanged, *_CHANGES_STAGES),
    ),
    Operation(
        "GET", _VERSION, "get_registry_version", REGISTRY, "One version",
        answers=(Answer.json(bodies.RegistryVersion, "The version."),),
        errors=_OF_A_VERSION,
    ),
    Operation(
        "PATCH", _VERSION, "describe_registry_version", REGISTRY, "Change the description and tags of a version",
        description="What is left out stays. A tag that is null is removed.",
        body=Body.json(bodies.DescribeVersion),
        answers=(Answer.json(bodies.RegistryVersion, "The version."),),
        errors=_CHANGES_A_VERSION,
    ),
    Operation(
        "DELETE", _VERSION, "delete_registry_version", REGISTRY, "Forget a version",
        description="Named by its label only. With the last version the model is forgotten.",
        answers=(Answer(204, "The version is forgotten."),),
        errors=(errors.RequestInvalid, errors.VersionInUse, *_CHANGES_A_VERSION),
    ),
    Operation(
        "PUT", f"{_VERSION}/stage", "set_registry_stage", REGISTRY, "Put a version into a stage",
        description="Whatever was in production is archived, whatever was in staging is in no stage then. A watched model serves "
        f"the version in production, whatever arrives, until that is in no stage. {_STAGES_OF_WATCHED}",
        body=Body.json(bodies.SetStage),
        answers=(Answer.json(bodies.RegistryVersion, "The version, in that stage."),),
        errors=(errors.VersionInUse, *_CHANGES_A_VERSION),
    ),
    Operation(
        "POST", f"{_VERSION}/promote", "promote_registry_version", REGISTRY, "Put a version into production",
        description=f"At every moment one version at most is in production. {_STAGES_OF_WATCHED}",
        answers=(Answer.json(bodies.RegistryVersion, "The version, in production."),),
        errors=_CHANGES_STAGES,
    ),
    Operation(
        "POST", f"{_VERSION}/retire", "retire_registry_version", REGISTRY, "Archive a version",
        description="It answers to its own label only.",
        answers=(Answer.json(bodies.RegistryVersion, "The version, archived."),),
        errors=(errors.VersionInUse, *_CHANGES_A_VERSION),
    ),
    Operation(
        "PATCH", f"{_VERSION}/metrics", "update_registry_metrics", REGISTRY, "Set metrics of a version",
        description="Metrics that are not named stay; one that is null is removed.",
        body=Body.json(bodies.UpdateMetrics),
        answers=(Answer.json(bodies.RegistryVersion, "The version."),),
        errors=_CHANGES_A_VERSION,
    ),
    Operation(
        "POST", f"{_VERSION}/optimize", "optimize_registry_version", REGISTRY, "Make smaller and quicker forms of a version",
        description="Each form of an ONNX model is made in a process of its own, run beside the version on the same rows, and "
        "kept out with the reason if it is bigger, slower or gives something else. What passes is registered as "
        "`LABEL+fp32`, `LABEL+int8` or `LABEL+int8-static`, which is neither served nor promoted by that. The answer comes when "
        "all is done, which may take minutes; one model at a time is optimised.",
        body=Body.json(OptimizeVersion),
        answers=(Answer.json(RegistryOptimizations, "What came of the forms that were asked for."),),
        errors=(
            errors.NotOptimizable, errors.ExtraMissing, errors.Overloaded, errors.FeaturesInvalid,
            errors.GroupHasNoModel, *_CHANGES_A_VERSION,
        ),
    ),
    Operation(
        "GET", f"{_VERSION}/optimizations", "list_registry_optimizations", REGISTRY,
        "What came of the forms of a version",
        description="The last try of each form.",
        answers=(Answer.json(RegistryOptimizations, "The forms that were tried."),),
        errors=_OF_A_VERSION,
    ),
)  # fmt: skip
