"""What may be done to an experiment, each in one transaction with its audit: draft, start, ramp, stop, and note what was applied.

An experiment that has started is changed no more, except by a ramp (a new phase) and by its end: what it measured would be of
two different things.
"""

import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, func, insert, select, update

from mmserver.catalog.catalog import Actor
from mmserver.catalog.running import ArmVersion
from mmserver.catalog.store import Store
from mmserver.errors import (
    ExperimentConflict,
    ExperimentStatusConflict,
    ExperimentTaken,
    RequestInvalid,
    VersionChanged,
)
from mmserver.experiments.assignment import HASH_VERSION, salt_of
from mmserver.experiments.experiments import (
    APPLIED,
    DRAFT,
    RUNNING,
    STOPPED,
    Applied,
    Experiment,
    experiment_from_row,
    find_experiment,
    get_experiment,
    slice_from_row,
)
from mmserver.experiments.planning import Plan, checked_weight, given_share, resolved_arms
from mmserver.registry import stages
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import AuditRow, ExperimentPhaseRow, ExperimentRow
from mmserver.storage.times import text_from_datetime

_MAX_LOG_KEY = 1 << 62


def create_experiment(store: Store, plan: Plan, by: Actor, *, start: bool) -> Experiment:
    """Set an experiment up; with `start` it runs at once, or nothing is left of it.

    Raises:
        ExperimentTaken: there is one of that name, whatever became of it.
        ModelNotFound, VersionNotFound: of an arm.
        RequestInvalid: both arms are the same, or have no symbol in common.
        ExperimentConflict: as `start_experiment`.
        ReadOnly, DatabaseBusy, DiskFull: nothing was changed.
    """

    def create(connection: Connection, at: str) -> None:
        taken = select(ExperimentRow.id).where(ExperimentRow.experiment_id == plan.experiment_id)
        if connection.execute(taken).first() is not None:
            raise ExperimentTaken(experiment_id=plan.experiment_id)
        values = _values_of_plan(connection, plan)
        values |= {"status": DRAFT, "created_at": at, "created_by": by.name, "hash_version": HASH_VERSION}
        values["log_key"] = secrets.randbelow(_MAX_LOG_KEY)
        key = connection.execute(insert(ExperimentRow).values(values).returning(ExperimentRow.id)).scalar_one()
        first = {"experiment_key": key, "phase": 1, "salt": salt_of(plan.experiment_id, 1)}
        connection.execute(insert(ExperimentPhaseRow).values({**first, "treatment_weight": plan.treatment_weight}))
        _audit(connection, at, by, "experiment.created", plan.experiment_id, detail=_detail(plan, values))
        if start:
            _start(connection, plan.experiment_id, at, by)

    return _change(store, plan.experiment_id, create)


def update_experiment(store: Store, plan: Plan, by: Actor) -> Experiment:
    """Set a draft up anew, all of it.

    Raises:
        ExperimentNotFound
        ExperimentStatusConflict: it has started.
        ModelNotFound, VersionNotFound, RequestInvalid, ReadOnly
    """

    def change(connection: Connection, at: str) -> None:
        row = _in_status(connection, plan.experiment_id, (DRAFT,), "only a draft may be changed; ramp it or stop it")
        values = _values_of_plan(connection, plan)
        connection.execute(update(ExperimentRow).where(ExperimentRow.id == row.id).values(values))
        connection.execute(
            update(ExperimentPhaseRow)
            .where(ExperimentPhaseRow.experiment_key == row.id)
            .values(treatment_weight=plan.treatment_weight)
        )
        _audit(connection, at, by, "experiment.changed", plan.experiment_id, detail=_detail(plan, values))

    return _change(store, plan.experiment_id, change)


def start_experiment(store: Store, experiment_id: str, by: Actor) -> Experiment:
    """Let a draft run: from now on requests for the control's model are put into its arms.

    Raises:
        ExperimentNotFound
        ExperimentStatusConflict: it has started before.
        ExperimentConflict: another running experiment has the same control model, and both could meet on one unit.
        ModelNotFound, VersionNotFound: an arm is gone.
        RequestInvalid: its deadline is over.
    """
    return _change(store, experiment_id, lambda connection, at: _start(connection, experiment_id, at, by))


def ramp_experiment(
    store: Store,
    experiment_id: str,
    treatment_weight: float,
    by: Actor,
    *,
    redraw: bool = False,
    from_phase: int | None = None,
    where: str = "treatment_share",
) -> Experiment:
    """Go on with another weight, in a new phase. A greater one only adds treated units; for a smaller one, and with `redraw` for
    any, the units are drawn anew.

    Args:
        from_phase: the phase that whoever asks has seen; any where it is None.
        where: the field that the weight was given in, for what is said of it; see `given_share`.

    Raises:
        ExperimentNotFound
        ExperimentStatusConflict: it does not run.
        RequestInvalid: the weight is not within 0 and 1, or smaller without `redraw`: treated units would go back.
        VersionChanged: it is in another phase than `from_phase`.
    """
    checked_weight(treatment_weight, where)

    def ramp(connection: Connection, at: str) -> None:
        row = _in_status(connection, experiment_id, (RUNNING,), "only a running experiment has a ramp")
        phases = select(ExperimentPhaseRow.__table__).where(ExperimentPhaseRow.experiment_key == row.id)
        last = connection.execute(phases.order_by(ExperimentPhaseRow.phase.desc()).limit(1)).one()
        if treatment_weight == last.treatment_weight and not redraw:
            return
        if from_phase not in (None, last.phase):
            now = f"phase {last.phase}, where the treatment has {last.treatment_weight:g} of the units,"
            raise VersionChanged(what=f"experiment {experiment_id}", current=now)
        if treatment_weight < last.treatment_weight and not redraw:
            before, after = (given_share(weight, where) for weight in (last.treatment_weight, treatment_weight))
            problem = f"it is {before:g} now; with {after:g} treated units would go back: draw all units anew (redraw), or stop"
            raise RequestInvalid(f"{where}: {problem}", errors=[{"loc": where, "msg": problem}])
        phase = last.phase + 1
        salt = salt_of(experiment_id, phase) if redraw else last.salt
        values = {"phase": phase, "salt": salt, "treatment_weight": treatment_weight, "started_at": at}
        connection.execute(insert(ExperimentPhaseRow).values(experiment_key=row.id, **values))
        detail = {
            "before": last.treatment_weight,
            "treatment_weight": treatment_weight,
            "phase": phase,
            "redraw": redraw,
        }
        _audit(connection, at, by, "experiment.ramped", experiment_id, detail=detail)

    return _change(store, experiment_id, ramp)


def stop_experiment(store: Store, experiment_id: str, by: Actor) -> Experiment:
    """End it: requests get what the model serves from now on. A draft is ended too; one that has ended stays as it is.

    Raises:
        ExperimentNotFound, ReadOnly, DatabaseBusy, DiskFull
    """

    def stop(connection: Connection, at: str) -> None:
        row = find_experiment(connection, experiment_id)
        if row.status not in (STOPPED, APPLIED):
            _stop(connection, row, at, by)

    return _change(store, experiment_id, stop)


def note_applied(
    store: Store,
    experiment_id: str,
    applied: Applied,
    detail: dict[str, Any],
    by: Actor,
    *,
    promoting: ArmVersion | None = None,
) -> Experiment:
    """Note what is made of its result, and put `promoting` into production, both or neither; one that runs is stopped.

    Raises:
        ExperimentNotFound, ModelNotFound, VersionNotFound
        ExperimentStatusConflict: it was never started, or something was applied before.
    """

    def note(connection: Connection, at: str) -> None:
        row = _in_status(connection, experiment_id, (RUNNING, STOPPED), "a result is applied once, after its start")
        if row.status == RUNNING:
            _stop(connection, row, at, by)
        _set(connection, row.id, status=APPLIED, applied_at=at, applied=applied)
        _audit(connection, at, by, "experiment.applied", experiment_id, detail={"action": applied, **detail})

    if promoting is None:
        return _change(store, experiment_id, note)
    stages.promote(store, promoting.model_name, promoting.version, by, also=note)
    store.reload_experiments()
    return get_experiment(store, experiment_id)


# --- parts --------------------------------------------------------------------------------------------------------------


def _start(connection: Connection, experiment_id: str, at: str, by: Actor) -> None:
    row = _in_status(connection, experiment_id, (DRAFT,), "it starts once; make another to go on")
    resolved_arms(connection, (row.control_model, row.control_version), (row.treatment_model, row.treatment_version))
    _check_apart(connection, row)
    if row.deadline_at is not None and row.deadline_at <= at:
        problem = f"{row.deadline_at} is over"
        raise RequestInvalid(f"deadline_at: {problem}", errors=[{"loc": "deadline_at", "msg": problem}])
    audit_id = connection.execute(select(func.max(AuditRow.id))).scalar()
    _set(connection, row.id, status=RUNNING, started_at=at, audit_id=audit_id)
    connection.execute(
        update(ExperimentPhaseRow).where(ExperimentPhaseRow.experiment_key == row.id).values(started_at=at)
    )
    _audit(connection, at, by, "experiment.started", experiment_id, detail={"model_name": row.control_model})


def _stop(connection: Connection, row: Row[Any], at: str, by: Actor) -> None:
    _set(connection, row.id, status=STOPPED, stopped_at=at)
    _audit(connection, at, by, "experiment.stopped", row.experiment_id, detail={"status": row.status})


def _check_apart(connection: Connection, row: Row[Any]) -> None:
    """Raises ExperimentConflict where another running experiment could want the same request."""
    query = select(ExperimentRow.__table__).where(
        ExperimentRow.status == RUNNING, ExperimentRow.control_model == row.control_model, ExperimentRow.id != row.id
    )
    ours = slice_from_row(row)
    for other in connection.execute(query.order_by(ExperimentRow.id)).all():
        theirs = slice_from_row(other)
        if ours is None or theirs is None or ours.namespace != theirs.namespace:
            reason = "put both into disjoint slices of one namespace, or stop the other"
        elif (row.unit, row.block_s) != (other.unit, other.block_s):
            reason = f"in one namespace the unit must be the same, and its is {other.unit} with blocks of {other.block_s:g} s"
        elif ours.overlaps(theirs):
            reason = f"its slice of the namespace {theirs.namespace} is {theirs.start:g} to {theirs.end:g}"
        else:
            continue
        raise ExperimentConflict(
            experiment_id=row.experiment_id, model_name=row.control_model, other_id=other.experiment_id, reason=reason
        )


def _change(store: Store, experiment_id: str, changer: Callable[[Connection, str], None]) -> Experiment:
    """One transaction; then this process goes by it, and the others soon after."""
    store.check_writable()
    with store.database.write() as connection:
        changer(connection, text_from_datetime(store.now()))
        experiment = experiment_from_row(connection, find_experiment(connection, experiment_id))
    store.reload_experiments()
    return experiment


def _in_status(connection: Connection, experiment_id: str, statuses: tuple[str, ...], instead: str) -> Row[Any]:
    row = find_experiment(connection, experiment_id)
    if row.status not in statuses:
        raise ExperimentStatusConflict(experiment_id=experiment_id, status=row.status, instead=instead)
    return row


def _values_of_plan(connection: Connection, plan: Plan) -> dict[str, Any]:
    """The columns that the plan sets, its arms as labels."""
    control, treatment = resolved_arms(connection, plan.control, plan.treatment)
    part = plan.slice
    return {
        "experiment_id": plan.experiment_id,
        "control_model": control.model_name,
        "control_version": control.version,
        "treatment_model": treatment.model_name,
        "treatment_version": treatment.version,
        "mode": plan.mode,
        "unit": plan.unit,
        "block_s": plan.block_s,
        "horizon_s": plan.horizon_s,
        "namespace": part.namespace if part else None,
        "slice_start": part.start if part else None,
        "slice_end": part.end if part else None,
        "policy": msgspec.json.encode(plan.policy).decode(),
        "auto": int(plan.auto),
        "deadline_at": _text(plan.deadline_at),
    }


def _detail(plan: Plan, values: dict[str, Any]) -> dict[str, Any]:
    kept = ("control_model", "control_version", "treatment_model", "treatment_version", "mode", "unit", "deadline_at")
    detail = {name: values[name] for name in kept}
    return {**detail, "treatment_weight": plan.treatment_weight, "auto": plan.auto, "policy": plan.policy.name}


def _set(connection: Connection, key: int, **values: Any) -> None:
    connection.execute(update(ExperimentRow).where(ExperimentRow.id == key).values(values))


def _audit(connection: Connection, at: str, by: Actor, action: str, target: str, *, detail: dict[str, Any]) -> None:
    record_audit(
        connection, at=at, actor=by.name, action=action, target=target, detail=detail, request_id=by.request_id
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else text_from_datetime(moment)
