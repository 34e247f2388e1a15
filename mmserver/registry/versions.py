"""Registered models and their versions, read: one by a label, a stage or `latest`, or all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

import msgspec
from sqlalchemy import Connection, Row, Select, and_, func, select

from mmserver.catalog.catalog import Group
from mmserver.catalog.history import PRODUCTION, STAGING
from mmserver.catalog.loading import load_groups
from mmserver.catalog.store import Store
from mmserver.registry.fields import Number
from mmserver.registry.finding import find_model, find_registered_model, find_version, stages_of_model
from mmserver.registry.semantic_versions import precedence
from mmserver.storage.blobs import get_blobs
from mmserver.storage.tables import MembershipRow, OptimizationRow, RegisteredVersionRow, VersionRow
from mmserver.storage.times import datetime_from_text

VersionStage: TypeAlias = Literal["production", "staging", "archived"]


@dataclass(frozen=True, slots=True)
class Optimization:
    """What came of the last try to make a variant of a version. `label`: as what it was registered, if it was and still is."""

    variant: str
    label: str | None
    report: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of a registered model, and what was said of it. What it predicts never changes."""

    model_name: str
    label: str
    stage: VersionStage | None
    model_type: str
    """The name of the format that read it."""
    description: str
    metrics: dict[str, Number]
    training_params: dict[str, Any]
    tags: dict[str, str]
    sha256: str
    """Over the content that was handed in."""
    size_bytes: int
    """Of the files that were handed in."""
    kind: str
    """What predicts it: `onnx`, `xgboost`, …"""
    n_features: int
    input_shape: tuple[int, ...] | None
    factors: tuple[str, ...]
    derived_from: str | None
    parity: dict[str, Any] | None
    """How near the model comes to what it was converted or derived from; None where it is as it was made."""
    optimizations: tuple[Optimization, ...]
    """In the order of their variants' names."""
    created_at: datetime
    updated_at: datetime
    version_id: int
    group: Group


@dataclass(frozen=True, slots=True)
class WatchedVersion:
    """One version of a watched model, as far as stages go."""

    model_name: str
    label: str
    stage: VersionStage | None
    created_at: datetime
    version_id: int


StagedVersion: TypeAlias = RegisteredVersion | WatchedVersion


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """One registered model in a list. `latest` is what it serves; None where every version was retired."""

    name: str
    n_versions: int
    latest: str | None
    production: str | None
    staging: str | None
    updated_at: datetime


class _ModelFacts(msgspec.Struct, frozen=True):
    kind: str
    n_features: int
    input_shape: tuple[int, ...] | None = None
    summary: dict[str, Any] = {}


class _RecordFacts(msgspec.Struct, frozen=True):
    """The few members of a group's stored detail that a version shows; the long ones are passed over unread."""

    model: _ModelFacts


def list_models(store: Store, limit: int, after: str | None = None) -> list[RegisteredModel]:
    """Registered models in the order of their names, from the one after `after`."""
    models = [m for m in store.catalog.models.values() if not m.is_watched and (after is None or m.name > after)][
        :limit
    ]
    query = select(VersionRow.model_id, func.count()).where(VersionRow.model_id.in_([model.id for model in models]))
    with store.database.read() as connection:
        n_versions = {row[0]: row[1] for row in connection.execute(query.group_by(VersionRow.model_id))}
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


def list_versions(store: Store, model_name: str, stage: VersionStage | None = None) -> list[RegisteredVersion]:
    """All versions of a registered model, or those in a stage, newest first in the order of semantic versions.

    Raises:
        ModelNotFound, WrongModelKind
    """
    with store.database.read() as connection:
        model = find_registered_model(connection, model_name)
        found = _versions_from_rows(connection, model, connection.execute(_query(model.id)).all())
    wanted = [version for version in found if stage is None or version.stage == stage]
    return sorted(wanted, key=lambda version: precedence(version.label), reverse=True)


def get_version(store: Store, model_name: str, reference: str) -> RegisteredVersion:
    """The version that a label, a stage or `latest` means.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound
    """
    with store.database.read() as connection:
        model = find_registered_model(connection, model_name)
        return registered_version(connection, model, find_version(connection, model, reference).id)


def staged_version(store: Store, model_name: str, version_id: int) -> StagedVersion:
    """The version, of a model of either kind."""
    with store.database.read() as connection:
        model = find_model(connection, model_name)
        if model.kind == "registered":
            return registered_version(connection, model, version_id)
        row = connection.execute(select(VersionRow.__table__).where(VersionRow.id == version_id)).one()
        stage = stages_of_model(connection, model.id).get(version_id)
    return WatchedVersion(
        model_name=model_name,
        label=row.label,
        stage=_stage(stage, None),
        created_at=datetime_from_text(row.created_at),
        version_id=version_id,
    )


def registered_version(connection: Connection, model: Row[Any], version_id: int) -> RegisteredVersion:
    """The version of that id, which must be there."""
    row = connection.execute(_query(model.id).where(VersionRow.id == version_id)).one()
    return _versions_from_rows(connection, model, [row])[0]


def _query(model_id: int) -> Select[*tuple[Any, ...]]:
    of_version = and_(MembershipRow.model_id == VersionRow.model_id, MembershipRow.first_seq == VersionRow.seq)
    return (
        select(VersionRow.label, VersionRow.created_at, MembershipRow.group_id, RegisteredVersionRow.__table__)
        .join(RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id)
        .join(MembershipRow, of_version)
        .where(VersionRow.model_id == model_id)
    )


def _versions_from_rows(connection: Connection, model: Row[Any], rows: Sequence[Row[Any]]) -> list[RegisteredVersion]:
    stages = stages_of_model(connection, model.id)
    groups = load_groups(connection, sorted({row.group_id for row in rows}))
    optimizations = _optimizations(connection, model.id, rows[0].version_id if len(rows) == 1 else None)
    details = get_blobs(connection, {group.detail_sha256 for group in groups.values()})
    facts = {group_id: _facts(details[group.detail_sha256]) for group_id, group in groups.items()}
    return [
        RegisteredVersion(
            model_name=model.name,
            label=row.label,
            stage=_stage(stages.get(row.version_id), row.archived_at),
            model_type=row.model_type,
            description=row.description,
            metrics=msgspec.json.decode(row.metrics),
            training_params=msgspec.json.decode(row.training_params),
            tags=msgspec.json.decode(row.tags),
            sha256=row.content_sha256,
            size_bytes=row.size_bytes,
            kind=facts[row.group_id].kind,
            n_features=facts[row.group_id].n_features,
            input_shape=facts[row.group_id].input_shape,
            factors=groups[row.group_id].factors,
            derived_from=row.derived_from,
            parity=msgspec.json.decode(row.parity) if row.parity else facts[row.group_id].summary.get("parity"),
            optimizations=tuple(optimizations.get(row.version_id, ())),
            created_at=datetime_from_text(row.created_at),
            updated_at=datetime_from_text(row.updated_at),
            version_id=row.version_id,
            group=groups[row.group_id],
        )
        for row in rows
    ]


def _optimizations(connection: Connection, model_id: int, only_id: int | None) -> dict[int, list[Optimization]]:
    """Of all versions of a model, or of one, by version id."""
    result = VersionRow.__table__.alias("result")
    query = (
        select(OptimizationRow.__table__, result.c.label)
        .join(VersionRow, VersionRow.id == OptimizationRow.version_id)
        .outerjoin(result, result.c.id == OptimizationRow.result_id)
        .where(VersionRow.model_id == model_id)
        .order_by(OptimizationRow.version_id, OptimizationRow.variant)
    )
    if only_id is not None:
        query = query.where(OptimizationRow.version_id == only_id)
    found: dict[int, list[Optimization]] = {}
    for row in connection.execute(query):
        one = Optimization(
            variant=row.variant,
            label=row.label,
            report=msgspec.json.decode(row.report),
            created_at=datetime_from_text(row.created_at),
        )
        found.setdefault(row.version_id, []).append(one)
    return found


def _stage(stage: str | None, archived_at: str | None) -> VersionStage | None:
    if stage == "production":
        return "production"
    if stage == "staging":
        return "staging"
    return "archived" if archived_at is not None else None


def _facts(detail: bytes) -> _ModelFacts:
    return msgspec.json.decode(detail, type=_RecordFacts).model
