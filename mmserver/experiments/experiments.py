"""Experiments as values, read from the database: how each was set up, what became of it, and what was decided about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, cast

import msgspec
from sqlalchemy import Connection, Row, Select, select

from mmserver.catalog.running import ArmVersion, overruling_label
from mmserver.catalog.store import Store
from mmserver.errors import EvaluationNotFound, ExperimentNotFound
from mmserver.experiments.assignment import NamespaceSlice, UnitKind
from mmserver.experiments.policies import Policy, policy_from
from mmserver.storage.tables import ExperimentEvaluationRow, ExperimentPhaseRow, ExperimentRow
from mmserver.storage.times import datetime_from_text

Status: TypeAlias = Literal["draft", "running", "stopped", "applied"]
Mode: TypeAlias = Literal["split", "shadow"]
Applied: TypeAlias = Literal["promote", "rollback", "keep"]
"""keep: neither was better by what matters, so the control stays."""

DRAFT: Status = "draft"
RUNNING: Status = "running"
STOPPED: Status = "stopped"
APPLIED: Status = "applied"
STATUSES: tuple[Status, ...] = (DRAFT, RUNNING, STOPPED, APPLIED)


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of an experiment with one weight."""

    number: int
    salt: str
    treatment_weight: float
    started_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One experiment as it stands."""

    key: int
    log_key: int
    """Under which the observation log has it."""
    experiment_id: str
    control: ArmVersion
    treatment: ArmVersion
    mode: Mode
    unit: UnitKind
    block_s: float
    horizon_s: float
    slice: NamespaceSlice | None
    policy: Policy
    auto: bool
    status: Status
    applied: Applied | None
    phases: tuple[Phase, ...]
    created_at: datetime
    created_by: str
    started_at: datetime | None
    stopped_at: datetime | None
    applied_at: datetime | None
    deadline_at: datetime | None
    overruled_by: str | None
    """While it runs: what somebody has put into service in place of the control, so that requests get that."""

    @property
    def treatment_weight(self) -> float:
        """The treatment's share of the units, now or at its end."""
        return self.phases[-1].treatment_weight

    @property
    def treatment_weights(self) -> Mapping[int, float]:
        """By the phase's number."""
        return {phase.number: phase.treatment_weight for phase in self.phases}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One decision about an experiment; `inputs` decide the same again."""

    id: int
    at: datetime
    reason: str
    inputs: Mapping[str, Any]
    decision: Mapping[str, Any]
    code_version: str


def get_experiment(store: Store, experiment_id: str) -> Experiment:
    """One experiment.

    Raises:
        ExperimentNotFound
    """
    with store.database.read() as connection:
        return experiment_from_row(connection, find_experiment(connection, experiment_id))


def list_experiments(
    store: Store, *, status: Status | None = None, limit: int | None = None, before_key: int | None = None
) -> list[Experiment]:
    """The newest first; `before_key` is the key of the last one of the page before."""
    query = _all().order_by(ExperimentRow.id.desc()).limit(limit)
    if status is not None:
        query = query.where(ExperimentRow.status == status)
    if before_key is not None:
        query = query.where(ExperimentRow.id < before_key)
    with store.database.read() as connection:
        return [experiment_from_row(connection, row) for row in connection.execute(query).all()]


def list_evaluations(store: Store, key: int, limit: int) -> list[Evaluation]:
    """What was decided about an experiment, the newest first."""
    query = select(ExperimentEvaluationRow.__table__).where(ExperimentEvaluationRow.experiment_key == key)
    with store.database.read() as connection:
        rows = connection.execute(query.order_by(ExperimentEvaluationRow.id.desc()).limit(limit)).all()
    return [_evaluation(row) for row in rows]


def get_evaluation(store: Store, experiment: Experiment, evaluation_id: int) -> Evaluation:
    """One decision about an experiment.

    Raises:
        EvaluationNotFound
    """
    query = select(ExperimentEvaluationRow.__table__).where(
        ExperimentEvaluationRow.experiment_key == experiment.key, ExperimentEvaluationRow.id == evaluation_id
    )
    with store.database.read() as connection:
        row = connection.execute(query).one_or_none()
    if row is None:
        raise EvaluationNotFound(experiment_id=experiment.experiment_id, evaluation_id=evaluation_id)
    return _evaluation(row)


def find_experiment(connection: Connection, experiment_id: str) -> Row[Any]:
    """The experiment's row, for decisions inside of a transaction.

    Raises:
        ExperimentNotFound
    """
    row = connection.execute(_all().where(ExperimentRow.experiment_id == experiment_id)).one_or_none()
    if row is None:
        raise ExperimentNotFound(experiment_id=experiment_id[:200])
    return row


def experiment_from_row(connection: Connection, row: Row[Any]) -> Experiment:
    """The row with its phases."""
    query = select(ExperimentPhaseRow.__table__).where(ExperimentPhaseRow.experiment_key == row.id)
    phases = connection.execute(query.order_by(ExperimentPhaseRow.phase)).all()
    control = ArmVersion(row.control_model, row.control_version)
    return Experiment(
        key=row.id,
        log_key=row.log_key,
        experiment_id=row.experiment_id,
        control=control,
        treatment=ArmVersion(row.treatment_model, row.treatment_version),
        mode=cast(Mode, row.mode),
        unit=cast(UnitKind, row.unit),
        block_s=row.block_s,
        horizon_s=row.horizon_s,
        slice=slice_from_row(row),
        policy=policy_from(msgspec.json.decode(row.policy)),
        auto=bool(row.auto),
        status=cast(Status, row.status),
        applied=cast(Applied | None, row.applied),
        phases=tuple(
            Phase(phase.phase, phase.salt, phase.treatment_weight, _moment(phase.started_at)) for phase in phases
        ),
        created_at=datetime_from_text(row.created_at),
        created_by=row.created_by,
        started_at=_moment(row.started_at),
        stopped_at=_moment(row.stopped_at),
        applied_at=_moment(row.applied_at),
        deadline_at=_moment(row.deadline_at),
        overruled_by=overruling_label(connection, control, row.audit_id) if row.status == RUNNING else None,
    )


def slice_from_row(row: Row[Any]) -> NamespaceSlice | None:
    """Its share of a namespace; None where it shares its units with no other."""
    return None if row.namespace is None else NamespaceSlice(row.namespace, row.slice_start, row.slice_end)


def _evaluation(row: Row[Any]) -> Evaluation:
    return Evaluation(
        id=row.id,
        at=datetime_from_text(row.at),
        reason=row.reason,
        inputs=msgspec.json.decode(row.inputs),
        decision=msgspec.json.decode(row.decision),
        code_version=row.code_version,
    )


def _all() -> Select[*tuple[Any, ...]]:
    query: Select[*tuple[Any, ...]] = select(ExperimentRow.__table__)
    return query


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime_from_text(text)
