"""Stages of a model's versions: what is in production, what was there before, what waits in staging, what was retired.

A watched model has stages too: in production, a version is served whatever arrives in the directory, until it is taken out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import PRODUCTION, STAGING
from mmserver.catalog.running import check_not_in_experiment
from mmserver.catalog.store import Store
from mmserver.errors import NothingBefore, NotInProduction, RequestInvalid, VersionChanged, VersionInUse
from mmserver.formats import Event
from mmserver.registry.changes import announce, serve_what_is_due, touch, touch_model
from mmserver.registry.finding import REGISTERED, archived_at, check_registered, find_model, find_version, in_stage
from mmserver.registry.versions import StagedVersion, VersionStage, staged_version
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import AuditRow, PromotionRow, StageRow, VersionRow
from mmserver.storage.times import text_from_datetime

_STAGES: dict[str, VersionStage | None] = {
    "production": "production",
    "staging": "staging",
    "archived": "archived",
    "none": None,
}

_UPSERT = upsert(StageRow)
_PUT_IN_STAGE = _UPSERT.on_conflict_do_update(
    index_elements=["model_id", "stage"],
    set_={"version_id": _UPSERT.excluded.version_id, "since": _UPSERT.excluded.since},
)
_LEAVE_STAGES = (
    delete(StageRow)
    .where(StageRow.model_id == bindparam("of_model"), StageRow.version_id == bindparam("of_version"))
    .returning(StageRow.stage)
)
_LAST_PROMOTION = (
    select(PromotionRow.__table__)
    .where(PromotionRow.model_id == bindparam("model_id"))
    .order_by(PromotionRow.id.desc())
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class _Move:
    """A version that came into another stage."""

    version: Row[Any]
    stage: VersionStage | None
    action: str
    detail: dict[str, Any]
    serving_reason: str


_Mover: TypeAlias = Callable[[Connection, Row[Any], str], _Move | Row[Any]]
"""Decides and moves, in a transaction at that time; gives the version alone where there is nothing to change."""


def stage_from_text(text: str) -> VersionStage | None:
    """`Production`, `Staging`, `Archived` or `None`, in any case."""
    try:
        return _STAGES[text.casefold()]
    except KeyError:
        problem = "must be Production, Staging, Archived or None"
        raise RequestInvalid(f"stage: {problem}", errors=[{"loc": "stage", "msg": problem}]) from None


def set_stage(store: Store, model_name: str, reference: str, stage: VersionStage | None, by: Actor) -> StagedVersion:
    """Put a version into a stage; whatever was in production or staging before gives way. None: into no stage.

    Taken out of production, with nothing in its place, the model serves its newest version.

    Raises:
        As `promote`, `retire`.
    """
    if stage == "production":
        return promote(store, model_name, reference, by)
    if stage == "archived":
        return retire(store, model_name, reference, by)
    mover = _to_staging if stage == "staging" else _to_no_stage
    return _move(store, model_name, by, lambda connection, model, at: mover(connection, model, reference, at))


def promote(
    store: Store,
    model_name: str,
    reference: str,
    by: Actor,
    *,
    also: Callable[[Connection, str], None] | None = None,
) -> StagedVersion:
    """Put a version into production; the one that was there is archived, and one `rollback` away.

    `also` is done in the same transaction, before: where it raises, nothing is changed.

    Raises:
        ModelNotFound, VersionNotFound, ReadOnly
        DatabaseBusy, DiskFull: nothing was changed.
    """

    def to_production(connection: Connection, model: Row[Any], at: str) -> _Move | Row[Any]:
        if also is not None:
            also(connection, at)
        version = find_version(connection, model, reference)
        before = in_stage(connection, model.id, PRODUCTION)
        if before is not None and before.id == version.id:
            return version
        previous_id = _last_promotion(connection, model.id).id if before is not None else None
        _put_in_production(connection, model, version, before=before, previous_id=previous_id, at=at)
        detail = {"version": version.label, "before": before.label if before is not None else None}
        return _Move(version, "production", "version.promoted", detail, "promoted")

    return _move(store, model_name, by, to_production)


def rollback(store: Store, model_name: str, by: Actor, *, from_label: str | None = None) -> StagedVersion:
    """Undo the last promotion that was not undone: two calls go back two. Versions that were removed since are passed over.

    `from_label`: only from that version, so that the same wish sent twice goes back one; where it was rolled back just before,
    by whomever, nothing is changed.

    Raises:
        ModelNotFound, ReadOnly
        VersionChanged: something else came into production in place of `from_label`; nothing was changed.
        NotInProduction: there is nothing to go back from.
        NothingBefore: there is nothing to go back to.
    """

    def back(connection: Connection, model: Row[Any], at: str) -> _Move | Row[Any]:
        present = in_stage(connection, model.id, PRODUCTION)
        if present is None:
            raise NotInProduction(model_name=model_name)
        if from_label not in (None, present.label):
            if _last_change_of_production(connection, model) == ("version.rolled_back", from_label):
                return present
            raise VersionChanged(what=f"the production of {model_name}", current=present.label)
        promotion = promotion_before(connection, model.id, present.id)
        if promotion is None:
            raise NothingBefore(model_name=model_name, version=present.label)
        version = connection.execute(select(VersionRow.__table__).where(VersionRow.id == promotion.version_id)).one()
        _put_in_production(connection, model, version, before=present, previous_id=promotion.previous_id, at=at)
        detail = {"version": version.label, "before": present.label}
        return _Move(version, "production", "version.rolled_back", detail, "rolled_back")

    return _move(store, model_name, by, back)


def retire(store: Store, model_name: str, reference: str, by: Actor) -> StagedVersion:
    """Archive a version: it is served under its own label only.

    Raises:
        ModelNotFound, VersionNotFound, ReadOnly
        WrongModelKind: retention lets a watched model's versions go.
        VersionInUse: it is in production, or in a running experiment.
    """

    def to_archive(connection: Connection, model: Row[Any], at: str) -> _Move | Row[Any]:
        check_registered(model)
        version = find_version(connection, model, reference)
        check_not_in_production(connection, model, version)
        if archived_at(connection, version.id) is not None:
            return version
        check_not_in_experiment(connection, model.name, version.label)
        _leave_stages(connection, model, version)
        touch(connection, model, version.id, at, archived_at=at)
        return _Move(version, "archived", "version.retired", {"version": version.label}, "newest")

    return _move(store, model_name, by, to_archive)


def promotion_before(connection: Connection, model_id: int, present_id: int) -> Row[Any] | None:
    """What a rollback goes back to from the version that is in production; None where nothing is left of what was before it."""
    promotion = _last_promotion(connection, model_id)
    while promotion.version_id in (None, present_id):
        if promotion.previous_id is None:
            return None
        promotion = connection.execute(
            select(PromotionRow.__table__).where(PromotionRow.id == promotion.previous_id)
        ).one()
    return promotion


def check_not_in_production(connection: Connection, model: Row[Any], version: Row[Any]) -> None:
    """Raises VersionInUse for the version that is in production."""
    present = in_stage(connection, model.id, PRODUCTION)
    if present is not None and present.id == version.id:
        instead = "promote another version first, or take it out of production (stage None)"
        raise VersionInUse(model_name=model.name, version=version.label, use="in production", instead=instead)


def _to_staging(connection: Connection, model: Row[Any], reference: str, at: str) -> _Move | Row[Any]:
    version = find_version(connection, model, reference)
    before = in_stage(connection, model.id, STAGING)
    if before is not None and before.id == version.id:
        return version
    left = _leave_stages(connection, model, version)
    _put_in_stage(connection, model, STAGING, version, at)
    touch(connection, model, version.id, at, archived_at=None)
    if before is not None:
        touch(connection, model, before.id, at)
    detail = {"version": version.label, "before": before.label if before is not None else None, "left": left}
    return _Move(version, "staging", "version.staged", detail, "unstaged")


def _to_no_stage(connection: Connection, model: Row[Any], reference: str, at: str) -> _Move | Row[Any]:
    version = find_version(connection, model, reference)
    left = _leave_stages(connection, model, version)
    if left is None and archived_at(connection, version.id) is not None:
        left = "archived"
    if left is None:
        return version
    touch(connection, model, version.id, at, archived_at=None)
    return _Move(version, None, "version.unstaged", {"version": version.label, "left": left}, "unstaged")


def _move(store: Store, model_name: str, by: Actor, mover: _Mover) -> StagedVersion:
    """One transaction: the move, what is served from it, and the audit; then everybody is told."""
    store.check_writable()
    with store.changing(model_name):
        served: str | None = None
        with store.database.write() as connection:
            at = text_from_datetime(store.now())  # in here, so that times come in the order of the commits
            model = find_model(connection, model_name)
            moved = mover(connection, model, at)
            if isinstance(moved, _Move):
                if model.kind == REGISTERED:
                    touch_model(connection, model.id, at)
                if model.kind == REGISTERED or PRODUCTION in (moved.stage, moved.detail.get("left")):
                    served = serve_what_is_due(connection, model, at, moved.serving_reason)
                record_audit(connection, at=at, actor=by.name, action=moved.action, target=model_name,
                             detail=moved.detail, request_id=by.request_id)  # fmt: skip
            version_id = moved.version.id if isinstance(moved, _Move) else moved.id
            version = staged_version(connection, model, version_id)
        events = []
        if isinstance(moved, _Move):
            detail = {"stage": moved.stage}
            events.append(Event(kind="stage_changed", model_name=model_name, version=version.label, detail=detail))
        if served is not None:
            events.append(Event(kind="version_served", model_name=model_name, version=served))
        announce(store, model_name, events)
        return version


def _put_in_production(
    connection: Connection,
    model: Row[Any],
    version: Row[Any],
    *,
    before: Row[Any] | None,
    previous_id: int | None,
    at: str,
) -> None:
    """`before` is what gives way, `previous_id` the promotion that a rollback of this one goes back to."""
    _leave_stages(connection, model, version)
    _put_in_stage(connection, model, PRODUCTION, version, at)
    if before is not None:
        touch(connection, model, before.id, at, archived_at=at)
    touch(connection, model, version.id, at, archived_at=None)
    values = {"model_id": model.id, "version_id": version.id, "previous_id": previous_id, "since": at}
    connection.execute(insert(PromotionRow), values)


def _put_in_stage(connection: Connection, model: Row[Any], stage: str, version: Row[Any], at: str) -> None:
    values = {"model_id": model.id, "stage": stage, "version_id": version.id, "since": at}
    connection.execute(_PUT_IN_STAGE, values)


def _leave_stages(connection: Connection, model: Row[Any], version: Row[Any]) -> str | None:
    """The stage that it was in."""
    left = connection.execute(_LEAVE_STAGES, {"of_model": model.id, "of_version": version.id}).scalar()
    return None if left is None else str(left)


def _last_promotion(connection: Connection, model_id: int) -> Row[Any]:
    """What brought into production what is there now."""
    return connection.execute(_LAST_PROMOTION, {"model_id": model_id}).one()


def _last_change_of_production(connection: Connection, model: Row[Any]) -> tuple[str, str | None]:
    """What the audit calls it, and the version that gave way."""
    into_production = AuditRow.target == model.name, AuditRow.action.in_(("version.promoted", "version.rolled_back"))
    query = select(AuditRow.action, func.json_extract(AuditRow.detail, "$.before").label("before")).where(
        *into_production
    )
    row = connection.execute(query.order_by(AuditRow.id.desc()).limit(1)).one()
    return row.action, row.before
