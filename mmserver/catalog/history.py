"""Versions of a model through time: which one a reference or a moment means, going back to one, and letting old ones go."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, insert, or_, select

from mmserver.catalog.catalog import Actor, Model, Version
from mmserver.catalog.running import running_labels
from mmserver.catalog.store import Store
from mmserver.errors import PinnedByStage, VersionNotFound
from mmserver.formats import Event
from mmserver.storage.audit import record_audit
from mmserver.storage.blobs import delete_orphan_blobs
from mmserver.storage.tables import AuditRow, MembershipRow, PromotionRow, ServingRow, StageRow, VersionRow
from mmserver.storage.times import datetime_from_text, text_from_datetime

LATEST = "latest"
PRODUCTION = "production"
STAGING = "staging"
CURRENT = (None, LATEST, PRODUCTION)
"""References to what a model serves now, whichever version that is."""

_LEAVING = ("version.staged", "version.unstaged")
"""What the audit calls it when a version leaves production and no other takes its place; `left` says what it left."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One line of a model's history. `added`, `removed`, `updated` are group keys, against the version before."""

    version_id: int
    seq: int
    label: str
    created_at: datetime
    reason: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    updated: tuple[str, ...]
    is_serving: bool
    stages: tuple[str, ...]
    """What is in production of a watched model is what it serves, unless a stage says otherwise."""


def resolve_version(
    store: Store, model_name: str, reference: str | None = None, as_of: datetime | None = None
) -> Version:
    """The version that a label, a stage or `latest` means; with `as_of`, the one that was served at that moment.

    A watched model's latest is what it serves, also after a rollback, and so is what is in production. What was in staging at an
    earlier moment is not kept.

    Raises:
        ModelNotFound: there is no such model.
        VersionNotFound: no such label, nothing is in the stage, nothing was served yet then, or it was let go since.
    """
    model = store.model(model_name)
    if as_of is not None:
        return store.version(model, _version_id_as_of(store, model, reference, as_of))
    if reference in CURRENT:
        check_current(model, reference)
        return model.serving
    if reference == STAGING:
        reference = model.stages.get(STAGING)
        if reference is None:
            raise VersionNotFound(model_name=model_name, which="in staging")
    if reference == model.serving.label:
        return model.serving
    with store.database.read() as connection:
        version_id = connection.execute(
            select(VersionRow.id).where(VersionRow.model_id == model.id, VersionRow.label == reference)
        ).scalar()
    if version_id is None:
        raise VersionNotFound(model_name=model_name, which=repr(reference))
    return store.version(model, version_id)


def check_current(model: Model, reference: str | None) -> None:
    """Raises VersionNotFound where a registered model has nothing that the moving reference could mean."""
    if model.is_watched:
        return
    if model.is_retired:
        raise VersionNotFound(model_name=model.name, which="that was not retired")
    if reference == PRODUCTION and PRODUCTION not in model.stages:
        raise VersionNotFound(model_name=model.name, which="in production")


def list_versions(
    store: Store, model_name: str, limit: int | None, before_seq: int | None = None
) -> list[VersionRecord]:
    """The model's history, newest first; all of it where there is no limit."""
    model = store.model(model_name)
    query = select(VersionRow.__table__).where(VersionRow.model_id == model.id)
    if before_seq is not None:
        query = query.where(VersionRow.seq < before_seq)
    with store.database.read() as connection:
        rows = connection.execute(query.order_by(VersionRow.seq.desc()).limit(limit)).all()
    return [_record_from_row(row, model) for row in rows]


def rollback_model(store: Store, model_name: str, reference: str, by: Actor) -> Model:
    """Serve an earlier version until the files change again.

    Raises:
        ModelNotFound, VersionNotFound
        PinnedByStage: its stages say what it serves.
        ReadOnly: this instance changes nothing.
    """
    store.check_writable()
    store.follow_commits()
    store.model(model_name)
    with store.changing(model_name):
        version = resolve_version(store, model_name, reference)
        model = store.model(model_name)
        if not model.is_watched or PRODUCTION in model.stages:
            raise PinnedByStage(model_name=model_name, version=model.stages.get(PRODUCTION, model.serving.label))
        if version.id != model.serving.id:
            at = text_from_datetime(store.now())
            with store.database.write() as connection:
                append_serving(
                    connection,
                    model_id=model.id,
                    version_id=version.id,
                    version_label=version.label,
                    since=at,
                    reason="rolled_back",
                )
                detail = {"from": model.serving.label, "to": version.label}
                record_audit(connection, at=at, actor=by.name, action="model.rolled_back", target=model_name,
                             detail=detail, request_id=by.request_id)  # fmt: skip
            model = store.reload_model(model_name)
            store.plugins.notify(Event(kind="version_served", model_name=model_name, version=version.label))
        return model


def append_serving(connection: Connection, **values: Any) -> None:
    """From `since` on the model serves that version; `values` are ServingRow's columns without the id."""
    connection.execute(insert(ServingRow), values)


def apply_retention(store: Store) -> int:
    """Let go of watched models' versions beyond `keep_versions` that are older than `keep_days`, never of the newest, the one
    that is served, or one that is in a stage or in a running experiment.

    Returns:
        how many versions went; their groups and blobs go where no other version has them.
    """
    oldest = text_from_datetime(store.now() - timedelta(days=store.settings.keep_days))
    dropped = 0
    for model in [model for model in store.catalog.models.values() if model.is_watched]:
        with store.changing(model.name), store.database.write() as connection:
            oldest_kept_seq = connection.execute(
                select(VersionRow.seq)
                .where(VersionRow.model_id == model.id)
                .order_by(VersionRow.seq.desc())
                .offset(store.settings.keep_versions - 1)
                .limit(1)
            ).scalar()
            if oldest_kept_seq is None:
                continue  # it has fewer
            served = _served_version_id(connection, model.id)
            doomed = connection.execute(
                delete(VersionRow).where(
                    VersionRow.model_id == model.id,
                    VersionRow.seq < oldest_kept_seq,
                    VersionRow.created_at < oldest,
                    VersionRow.id != served,
                    VersionRow.id.not_in(select(StageRow.version_id).where(StageRow.model_id == model.id)),
                    VersionRow.label.not_in(running_labels(connection, model.name)),
                )
            ).rowcount
            if doomed:
                _drop_memberships_of_no_version(connection, model.id)
                record_audit(connection, at=text_from_datetime(store.now()), actor="mmserver", action="versions.dropped",
                             target=model.name, detail={"versions": doomed}, request_id=None)  # fmt: skip
                dropped += doomed
    if dropped:
        with store.database.write() as connection:
            delete_orphan_blobs(connection)
    return dropped


def _drop_memberships_of_no_version(connection: Connection, model_id: int) -> None:
    """Memberships whose whole interval holds no version any more."""
    within = (
        select(VersionRow.id)
        .where(
            VersionRow.model_id == MembershipRow.model_id,
            VersionRow.seq >= MembershipRow.first_seq,
            or_(MembershipRow.last_seq.is_(None), VersionRow.seq <= MembershipRow.last_seq),
        )
        .exists()
    )
    connection.execute(delete(MembershipRow).where(MembershipRow.model_id == model_id, ~within))


def _served_version_id(connection: Connection, model_id: int) -> int | None:
    return connection.execute(
        select(ServingRow.version_id).where(ServingRow.model_id == model_id).order_by(ServingRow.id.desc()).limit(1)
    ).scalar_one()


def _version_id_as_of(store: Store, model: Model, reference: str | None, as_of: datetime) -> int:
    at = text_from_datetime(as_of)
    missing = VersionNotFound(model_name=model.name, which=f"{reference or LATEST!r} as of {at}")
    if reference == STAGING:
        raise VersionNotFound(
            model_name=model.name, which=f"in staging as of {at} (only of production it is kept what was there when)"
        )
    with store.database.read() as connection:
        if reference == PRODUCTION and not model.is_watched:
            found = _id_in_production_as_of(connection, model, at)
        elif reference in CURRENT:
            served = connection.execute(
                select(ServingRow.version_id, ServingRow.version_label)
                .where(ServingRow.model_id == model.id, ServingRow.since <= at)
                .order_by(ServingRow.id.desc())
                .limit(1)
            ).one_or_none()
            if served is not None and served.version_id is None:
                why = "retention let it go" if model.is_watched else "it was removed"
                raise VersionNotFound(model_name=model.name, which=f"{served.version_label!r} any more ({why})")
            found = served.version_id if served else None
        else:
            found = connection.execute(
                select(VersionRow.id).where(
                    VersionRow.model_id == model.id, VersionRow.label == reference, VersionRow.created_at <= at
                )
            ).scalar()
    if found is None:
        raise missing
    return int(found)


def _id_in_production_as_of(connection: Connection, model: Model, at: str) -> int | None:
    """What was promoted last until then, if it was still there.

    What a registered model served does not tell: without anything in production that is its newest version, and a promotion of
    what is served already changes nothing. When a version left production with no other in its place, only the audit says.
    """
    promotion = connection.execute(
        select(PromotionRow.version_id, PromotionRow.since)
        .where(PromotionRow.model_id == model.id, PromotionRow.since <= at)
        .order_by(PromotionRow.id.desc())
        .limit(1)
    ).one_or_none()
    if promotion is None:
        return None
    left = select(AuditRow.id).where(
        AuditRow.target == model.name,
        AuditRow.action.in_(_LEAVING),
        AuditRow.at > promotion.since,
        AuditRow.at <= at,
        func.json_extract(AuditRow.detail, "$.left") == PRODUCTION,
    )
    if connection.execute(left.limit(1)).first() is not None:
        return None
    if promotion.version_id is None:
        raise VersionNotFound(model_name=model.name, which=f"in production as of {at} any more (it was removed)")
    found: int = promotion.version_id
    return found


def _record_from_row(row: Row[Any], model: Model) -> VersionRecord:
    is_serving = row.id == model.serving.id
    stages = [stage for stage, label in model.stages.items() if label == row.label]
    if is_serving and model.is_watched and PRODUCTION not in stages:
        stages.append(PRODUCTION)

    def keys(text: str) -> tuple[str, ...]:
        return msgspec.json.decode(text, type=tuple[str, ...])

    return VersionRecord(
        version_id=row.id,
        seq=row.seq,
        label=row.label,
        created_at=datetime_from_text(row.created_at),
        reason=row.reason,
        added=keys(row.added),
        removed=keys(row.removed),
        updated=keys(row.updated),
        is_serving=is_serving,
        stages=tuple(sorted(stages)),
    )
