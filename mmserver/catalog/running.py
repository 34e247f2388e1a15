"""Experiments that run now, as the catalog has them: what a request needs to know to be put into an arm.

They are part of the catalog, so that every process follows them when it follows the commits of others, and a request that has
taken one catalog sees models and experiments of one moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, and_, func, or_, select

from mmserver.errors import VersionInUse
from mmserver.storage.tables import (
    AuditRow,
    ExperimentPhaseRow,
    ExperimentRow,
    ModelRow,
    RegisteredVersionRow,
    ServingRow,
    VersionRow,
)

RUNNING = "running"
NO_EXPERIMENTS: Mapping[str, tuple["RunningExperiment", ...]] = MappingProxyType({})
_INTO_SERVICE = ("version.promoted", "version.rolled_back", "model.rolled_back")
_LEAVING = ("version.staged", "version.unstaged")
"""What the audit calls it when somebody says what a model serves; the second only where it was `left` by production."""


@dataclass(frozen=True, slots=True)
class ArmVersion:
    """What an arm predicts with: a model's version, by its label."""

    model_name: str
    version: str


@dataclass(frozen=True, slots=True)
class RunningExperiment:
    """One running experiment, in its present phase."""

    log_key: int
    """Under which the observation log has it."""
    experiment_id: str
    control: ArmVersion
    treatment: ArmVersion
    mode: str
    unit: str
    block_s: float
    horizon_s: float
    namespace: tuple[str, float, float] | None
    """Its share of a namespace: name, start and end."""
    phase: int
    salt: str
    treatment_weight: float
    overruled_by: str | None = None
    """What somebody has put into service of the control's model since the start, in place of the control: requests get that."""
    treatment_trouble: str | None = None
    """Why its treatment's version cannot answer: `version_archived` or `version_not_found`."""


def load_running(connection: Connection) -> Mapping[str, tuple[RunningExperiment, ...]]:
    """By the control's model, those that began first first."""
    found: dict[str, list[RunningExperiment]] = {}
    for row in connection.execute(_RUNNING).all():
        one = _experiment_from_row(connection, row)
        found.setdefault(one.control.model_name, []).append(one)
    return MappingProxyType({name: tuple(ones) for name, ones in found.items()}) if found else NO_EXPERIMENTS


def running_of(
    experiments: Mapping[str, tuple[RunningExperiment, ...]], model_name: str
) -> tuple[RunningExperiment, ...]:
    """Those that have the model in one of their arms."""
    return tuple(
        one
        for ones in experiments.values()
        for one in ones
        if model_name in (one.control.model_name, one.treatment.model_name)
    )


def overruling_label(connection: Connection, control: ArmVersion, audit_id: int | None) -> str | None:
    """What the control's model serves, if somebody had a say in that after that row of the audit, and it is not the control.

    A version that is served because it arrived overrules nothing.
    """
    said = (
        select(AuditRow.id)
        .where(
            AuditRow.target == control.model_name,
            AuditRow.id > (audit_id or 0),
            or_(
                AuditRow.action.in_(_INTO_SERVICE),
                and_(AuditRow.action.in_(_LEAVING), func.json_extract(AuditRow.detail, "$.left") == "production"),
            ),
        )
        .limit(1)
    )
    if connection.execute(said).first() is None:
        return None
    served = (
        select(ServingRow.version_label)
        .join(ModelRow, ModelRow.id == ServingRow.model_id)
        .where(ModelRow.name == control.model_name)
        .order_by(ServingRow.id.desc())
        .limit(1)
    )
    label = connection.execute(served).scalar()
    return None if label == control.version else label


def running_labels(connection: Connection, model_name: str) -> set[str]:
    """Versions of the model that running experiments predict with."""
    labels: set[str] = set()
    for name, label in (
        (ExperimentRow.control_model, ExperimentRow.control_version),
        (ExperimentRow.treatment_model, ExperimentRow.treatment_version),
    ):
        query = select(label).where(ExperimentRow.status == RUNNING, name == model_name)
        labels.update(connection.execute(query).scalars())
    return labels


def check_not_in_experiment(connection: Connection, model_name: str, version: str | None = None) -> None:
    """Raises VersionInUse for a version that a running experiment predicts with; for any of the model, if none is named."""
    arms = (
        (ExperimentRow.control_model, ExperimentRow.control_version, "the control"),
        (ExperimentRow.treatment_model, ExperimentRow.treatment_version, "the treatment"),
    )
    for name, label, arm in arms:
        query = select(ExperimentRow.experiment_id, label.label("version"))
        query = query.where(ExperimentRow.status == RUNNING, name == model_name)
        query = query if version is None else query.where(label == version)
        row = connection.execute(query.order_by(ExperimentRow.id).limit(1)).one_or_none()
        if row is not None:
            use = f"{arm} of the running experiment {row.experiment_id}"
            raise VersionInUse(model_name=model_name, version=row.version, use=use, instead="stop that first")


def _experiment_from_row(connection: Connection, row: Row[Any]) -> RunningExperiment:
    control = ArmVersion(row.control_model, row.control_version)
    treatment = ArmVersion(row.treatment_model, row.treatment_version)
    return RunningExperiment(
        log_key=row.log_key,
        experiment_id=row.experiment_id,
        control=control,
        treatment=treatment,
        mode=row.mode,
        unit=row.unit,
        block_s=row.block_s,
        horizon_s=row.horizon_s,
        namespace=None if row.namespace is None else (row.namespace, row.slice_start, row.slice_end),
        phase=row.phase,
        salt=row.salt,
        treatment_weight=row.treatment_weight,
        overruled_by=overruling_label(connection, control, row.audit_id),
        treatment_trouble=_trouble(connection, treatment),
    )


def _trouble(connection: Connection, arm: ArmVersion) -> str | None:
    query = (
        select(VersionRow.id, RegisteredVersionRow.archived_at)
        .join(ModelRow, ModelRow.id == VersionRow.model_id)
        .outerjoin(RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id)
        .where(ModelRow.name == arm.model_name, VersionRow.label == arm.version)
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        return "version_not_found"
    return None if row.archived_at is None else "version_archived"


def _running_query() -> Any:
    phases = ExperimentPhaseRow.__table__.alias()
    last = select(func.max(phases.c.phase)).where(phases.c.experiment_key == ExperimentRow.id).scalar_subquery()
    return (
        select(
            ExperimentRow.__table__,
            ExperimentPhaseRow.phase,
            ExperimentPhaseRow.salt,
            ExperimentPhaseRow.treatment_weight,
        )
        .join(ExperimentPhaseRow, ExperimentPhaseRow.experiment_key == ExperimentRow.id)
        .where(ExperimentRow.status == RUNNING, ExperimentPhaseRow.phase == last)
        .order_by(ExperimentRow.started_at, ExperimentRow.id)
    )


_RUNNING = _running_query()
