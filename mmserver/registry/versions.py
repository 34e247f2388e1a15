"""Registered models and their versions, read: one by a label, a stage or `latest`, or all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec
from sqlalchemy import Connection, Row, Select, and_, bindparam, func, select

from mmserver.catalog import history
from mmserver.catalog.catalog import Group
from mmserver.catalog.history import PRODUCTION, STAGING, VersionRecord
from mmserver.catalog.loading import load_groups
from mmserver.catalog.store import Store
from mmserver.registry.fields import Number
from mmserver.registry.finding import REGISTERED, find_model, find_registered_model, find_version, stages_of_model
from mmserver.registry.semantic_versions import precedence
from mmserver.storage.blobs import get_blob
from mmserver.storage.tables import MembershipRow, OptimizationRow, RegisteredVersionRow, VersionRow
from mmserver.storage.times import datetime_from_text

BYTES_A_MB = 1 << 20
_IDS_A_QUERY = 5000  # below SQLite's limit of bound values in one statement
VersionStage: TypeAlias = Literal["production", "staging", "archived"]


@dataclass(frozen=True, slots=True)
class Optimization:
    """What came of the last try to make a variant of a version. `label`: as what it was registered, if it was and still is."""

    variant: str
    label: str | None
    report: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedVersion:
    """One version of a registered model, and what was said of it. What it predicts never changes."""

    model_name: str
    label: str
    stage: VersionStage | None
    model_type: str
    """What its owner calls it, else the name of the format that read it."""
    description: str
    metrics: dict[str, Number]
    training_params: dict[str, Any]
    tags: dict[str, str]
    options: dict[str, Any]
    """What its format was told when it was registered."""
    sha256: str
    """Over the content that was handed in."""
    size_bytes: int
    """Of the files that were handed in."""
    kind: str
    """What predicts it: `onnx`, `xgboost`, …"""
    n_features: int
    input_shape: tuple[int, ...] | None
    factor_count: int
    derived_from: str | None
    parity: dict[str, Any] | None
    """How near the model comes to what it was converted or derived from; None where it is as it was made."""
    optimizations: tuple[Optimization, ...]
    """In the order of their variants' names."""
    created_at: datetime
    updated_at: datetime
    version_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion(ListedVersion):
    """The same with what predicts."""

    factors: tuple[str, ...]
    group: Group


@dataclass(frozen=True, slots=True)
class WatchedVersion:
    """One version of a watched model, as far as stages go."""

    model_name: str
    label: str
    stage: VersionStage | None
    created_at: datetime
    version_id: int


StagedVersion: TypeAlias = ListedVersion | WatchedVersion


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """One registered model in a list. `latest` is what it serves; None where every version was retired."""

    name: str
    n_versions: int
    latest: str | None
    production: str | None
    staging: str | None
    updated_at: datetime


class ModelFacts(msgspec.Struct, frozen=True):
    """What is stored of a model beside its content, as far as its version shows it."""

    kind: str
    n_features: int
    input_shape: tuple[int, ...] | None = None
    summary: dict[str, Any] = {}


class _RecordFacts(msgspec.Struct, frozen=True):
    """The few members of a group's stored detail that a version shows; the long ones are passed over unread."""

    model: ModelFacts


def list_models(store: Store, limit: int, after: str | None = None) -> list[RegisteredModel]:
    """Registered models in the order of their names, from the one after `after`."""
    models = [m for m in store.catalog.models.values() if not m.is_watched and (after is None or m.name > after)][
        :limit
    ]
    ids = [model.id for model in models]
    counted = select(VersionRow.model_id, func.count()).group_by(VersionRow.model_id)
    n_versions: dict[int, int] = {}
    with store.database.read() as connection:
        for first in range(0, len(ids), _IDS_A_QUERY):
            some = counted.where(VersionRow.model_id.in_(ids[first : first + _IDS_A_QUERY]))
            n_versions.update((row[0], row[1]) for row in connection.execute(some))
    return [
        RegisteredModel(
            name=model.name,
            n_versions=n_versions[model.id],
            latest=None if model.is_retired else model.serving.label,
            production=model.stages.get(PRODUCTION),
            staging=model.stages.get(STAGING),
            updated_at=model.refreshed_at,
        )
        for model in models
        if model.id in n_versions  # another process may just have removed it
    ]


def list_versions(store: Store, model_name: str, stage: VersionStage | None = None) -> list[ListedVersion]:
    """All versions of a registered model, or those in a stage, newest first in the order of semantic versions.

    Raises:
        ModelNotFound, WrongModelKind
    """
    with store.database.read() as connection:
        model = find_registered_model(connection, model_name)
        rows = connection.execute(_QUERY.where(VersionRow.model_id == model.id)).all()
        stages = stages_of_model(connection, model.id)
        optimizations = _optimizations(connection, _OF_MODEL, model.id)
    listed = (ListedVersion(**_listed(model, row, stages, optimizations)) for row in rows)
    wanted = [version for version in listed if stage is None or version.stage == stage]
    return sorted(wanted, key=lambda version: precedence(version.label), reverse=True)


def list_records(store: Store, model_name: str, limit: int) -> list[VersionRecord]:
    """The versions of any model, newest first: a watched model's as they came, a registered one's in the order of semantic versions.

    Raises:
        ModelNotFound
    """
    if store.model(model_name).is_watched:
        return history.list_versions(store, model_name, limit)
    records = history.list_versions(store, model_name, None)
    return sorted(records, key=lambda record: precedence(record.label), reverse=True)[:limit]


def get_version(store: Store, model_name: str, reference: str) -> RegisteredVersion:
    """The version that a label, a stage or `latest` means.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound
    """
    with store.database.read() as connection:
        model = find_registered_model(connection, model_name)
        return registered_version(connection, model, find_version(connection, model, reference).id)


def get_staged_version(store: Store, model_name: str, version_id: int) -> StagedVersion:
    """The version of that id, of a model of either kind.

    Raises:
        ModelNotFound
    """
    with store.database.read() as connection:
        return staged_version(connection, find_model(connection, model_name), version_id)


def staged_version(connection: Connection, model: Row[Any], version_id: int) -> StagedVersion:
    """The version of that id, of a model of either kind."""
    if model.kind == REGISTERED:
        return listed_version(connection, model, version_id)
    row = connection.execute(select(VersionRow.__table__).where(VersionRow.id == version_id)).one()
    stage = stages_of_model(connection, model.id).get(version_id)
    return WatchedVersion(
        model_name=model.name,
        label=row.label,
        stage=stage_of(stage, None),
        created_at=datetime_from_text(row.created_at),
        version_id=version_id,
    )


def listed_version(connection: Connection, model: Row[Any], version_id: int) -> ListedVersion:
    """As `registered_version`, for those who do not ask what predicts."""
    row = connection.execute(_ONE, {"version_id": version_id}).one()
    stages = stages_of_model(connection, model.id)
    return ListedVersion(**_listed(model, row, stages, _optimizations(connection, _OF_VERSION, version_id)))


def registered_version(connection: Connection, model: Row[Any], version_id: int) -> RegisteredVersion:
    """The version of that id, which must be there."""
    of_version = and_(MembershipRow.model_id == VersionRow.model_id, MembershipRow.first_seq == VersionRow.seq)
    query = _QUERY.add_columns(MembershipRow.group_id).join(MembershipRow, of_version)
    row = connection.execute(query.where(VersionRow.id == version_id)).one()
    stages = stages_of_model(connection, model.id)
    optimizations = _optimizations(connection, _OF_VERSION, version_id)
    group = load_groups(connection, [row.group_id])[row.group_id]
    return RegisteredVersion(**_listed(model, row, stages, optimizations), factors=group.factors, group=group)


def size_mb(size_bytes: int) -> float:
    """As answers and files say it: in units of 2**20 bytes."""
    return round(size_bytes / BYTES_A_MB, 6)


def model_facts(connection: Connection, group: Group) -> ModelFacts:
    """What a version shows of the model that the group was made of."""
    return msgspec.json.decode(get_blob(connection, group.detail_sha256), type=_RecordFacts).model


_QUERY: Select[*tuple[Any, ...]] = select(
    VersionRow.label, VersionRow.created_at, VersionRow.factor_count, RegisteredVersionRow.__table__
).join(RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id)
_ONE = _QUERY.where(VersionRow.id == bindparam("version_id"))


def _listed(
    model: Row[Any], row: Row[Any], stages: Mapping[int, str], optimizations: Mapping[int, list[Optimization]]
) -> dict[str, Any]:
    """The fields of a ListedVersion."""
    decode = msgspec.json.decode
    return {
        "model_name": model.name,
        "label": row.label,
        "stage": stage_of(stages.get(row.version_id), row.archived_at),
        "model_type": row.model_type,
        "description": row.description,
        "metrics": decode(row.metrics),
        "training_params": decode(row.training_params),
        "tags": decode(row.tags),
        "options": decode(row.options),
        "sha256": row.content_sha256,
        "size_bytes": row.size_bytes,
        "kind": row.kind,
        "n_features": row.n_features,
        "input_shape": None if row.input_shape is None else decode(row.input_shape, type=tuple[int, ...]),
        "factor_count": row.factor_count,
        "derived_from": row.derived_from,
        "parity": None if row.parity is None else decode(row.parity),
        "optimizations": tuple(optimizations.get(row.version_id, ())),
        "created_at": datetime_from_text(row.created_at),
        "updated_at": datetime_from_text(row.updated_at),
        "version_id": row.version_id,
    }


_RESULT = VersionRow.__table__.alias("result")
_OPTIMIZATIONS: Select[*tuple[Any, ...]] = (
    select(OptimizationRow.__table__, _RESULT.c.label)
    .join(VersionRow, VersionRow.id == OptimizationRow.version_id)
    .outerjoin(_RESULT, _RESULT.c.id == OptimizationRow.result_id)
    .order_by(OptimizationRow.version_id, OptimizationRow.variant)
)
_OF_MODEL = _OPTIMIZATIONS.where(VersionRow.model_id == bindparam("of"))
_OF_VERSION = _OPTIMIZATIONS.where(OptimizationRow.version_id == bindparam("of"))


def _optimizations(connection: Connection, query: Select[*tuple[Any, ...]], of: int) -> dict[int, list[Optimization]]:
    """Of all versions of a model, or of one, by version id."""
    found: dict[int, list[Optimization]] = {}
    for row in connection.execute(query, {"of": of}):
        one = Optimization(
            variant=row.variant,
            label=row.label,
            report=msgspec.json.decode(row.report),
            created_at=datetime_from_text(row.created_at),
        )
        found.setdefault(row.version_id, []).append(one)
    return found


def stage_of(stage: str | None, archived_at: str | None) -> VersionStage | None:
    """The stage that a version is in; retired is one too."""
    if stage == "production":
        return "production"
    if stage == "staging":
        return "staging"
    return "archived" if archived_at is not None else None
