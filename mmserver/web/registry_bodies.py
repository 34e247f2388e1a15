"""What the registry's routes take and answer, as types."""

import base64
import binascii
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec

from mmserver.registry import stage_names
from mmserver.registry.fields import Number
from mmserver.registry.versions import ListedVersion, RegisteredModel, VersionStage, WatchedVersion, size_mb
from mmserver.web.optimization_bodies import RegistryOptimization, item_from_optimization
from mmserver.web.requests import refuse_parameter

StageName: TypeAlias = Literal["Production", "Staging", "Archived", "None"]
_CURSOR_PREFIX = "after:"


# --- answers ----------------------------------------------------------------------------------------------------------


class RegistryVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version. Of a watched model, which has stages too, only the first two fields and the times are known here."""

    name: str
    version: str
    stage: StageName
    model_type: str | None = None
    description: str = ""
    metrics: dict[str, Number] = {}
    training_params: dict[str, Any] = {}
    tags: dict[str, str] = {}
    kind: str | None = None
    n_features: int | None = None
    input_shape: tuple[int, ...] | None = None
    factor_count: int | None = None
    size_mb: float | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    derived_from: str | None = None
    parity: dict[str, Any] | None = None
    optimizations: list[RegistryOptimization] = []
    created_at: datetime
    updated_at: datetime


class RegistryModel(msgspec.Struct, frozen=True, kw_only=True):
    """One registered model in a list."""

    name: str
    versions: int
    latest_version: str | None
    production_version: str | None
    staging_version: str | None
    updated_at: datetime


class RegistryModels(msgspec.Struct, frozen=True):
    """A page of registered models."""

    items: list[RegistryModel]
    next_cursor: str | None


class RegistryModelVersions(msgspec.Struct, frozen=True, kw_only=True):
    """One registered model with its versions."""

    name: str
    latest_version: str | None
    production_version: str | None
    staging_version: str | None
    versions: list[RegistryVersion]


def item_from_version(version: ListedVersion | WatchedVersion) -> RegistryVersion:
    """A version as answers show it."""
    stage = stage_name(version.stage)
    if not isinstance(version, ListedVersion):
        return RegistryVersion(
            name=version.model_name,
            version=version.label,
            stage=stage,
            created_at=version.created_at,
            updated_at=version.created_at,
        )
    return RegistryVersion(
        name=version.model_name,
        version=version.label,
        stage=stage,
        model_type=version.model_type,
        description=version.description,
        metrics=version.metrics,
        training_params=version.training_params,
        tags=version.tags,
        kind=version.kind,
        n_features=version.n_features,
        input_shape=version.input_shape,
        factor_count=version.factor_count,
        size_mb=size_mb(version.size_bytes),
        size_bytes=version.size_bytes,
        sha256=version.sha256,
        derived_from=version.derived_from,
        parity=version.parity,
        optimizations=[item_from_optimization(one) for one in version.optimizations],
        created_at=version.created_at,
        updated_at=version.updated_at,
    )


def item_from_model(model: RegisteredModel) -> RegistryModel:
    """A model as the list shows it."""
    return RegistryModel(
        name=model.name,
        versions=model.n_versions,
        latest_version=model.latest,
        production_version=model.production,
        staging_version=model.staging,
        updated_at=model.updated_at,
    )


def stage_name(stage: VersionStage | None) -> StageName:
    """The stage in the words of the API."""
    return stage_names.stage_name(stage).value


# --- bodies -----------------------------------------------------------------------------------------------------------


class NewVersionFields(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of a version that is registered, whichever way its files come.

    What may stand in an object is checked where it is kept, which names the member that does not fit.
    """

    name: str
    version: str
    model_type: str | None = None
    description: str = ""
    metrics: dict[str, Any] = {}
    training_params: dict[str, Any] = {}
    tags: dict[str, Any] = {}
    factors: list[str] | None = None
    info: dict[str, Any] = {}
    options: dict[str, Any] = {}
    derived_from: str | None = None
    sha256: str | None = None


class RegisterVersion(NewVersionFields, frozen=True, kw_only=True):
    """The body of `POST /api/ml/registry/models` that names files on the server."""

    path: str
    other_paths: list[str] = []


class SetStage(msgspec.Struct, frozen=True):
    """The body of `PUT …/stage`."""

    stage: str | None


class RollbackPromotion(msgspec.Struct, frozen=True, rename={"from_label": "from"}):
    """The body of `POST …/rollback`. Without `from`, the same request sent twice goes back two versions."""

    from_label: str | None = None


class UpdateMetrics(msgspec.Struct, frozen=True):
    """The body of `PATCH …/metrics`."""

    metrics: dict[str, Any]


class DescribeVersion(msgspec.Struct, frozen=True):
    """The body of `PATCH` on a version."""

    description: str | None = None
    tags: dict[str, Any] | None = None


# --- cursors ----------------------------------------------------------------------------------------------------------


def cursor_from_name(model_name: str) -> str:
    """An opaque cursor for what comes after the model of that name."""
    return base64.urlsafe_b64encode(f"{_CURSOR_PREFIX}{model_name}".encode()).decode().rstrip("=")


def name_from_cursor(cursor: str) -> str:
    """The name in a cursor that we gave.

    Raises:
        RequestInvalid: we did not give it.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith(_CURSOR_PREFIX):
        refuse_parameter("cursor", "not a cursor from this list")
    return text.removeprefix(_CURSOR_PREFIX)
