"""What the routes of experiments take and answer, as types."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from mmserver.experiments.analysing import Analysis
from mmserver.experiments.deciding import Verdict
from mmserver.experiments.experiments import Applied, Evaluation, Experiment, Mode, Status
from mmserver.experiments.planning import Plan, checked_plan, rest_of
from mmserver.experiments.policies import Policy
from mmserver.experiments.replaying import replay_kept

Moment: TypeAlias = Annotated[datetime, msgspec.Meta(tz=True)]


class NamespaceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share of a namespace's units, from `start` up to `end`: experiments in slices that are apart may run together."""

    name: str
    start: float
    end: float


class CreateExperiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /api/ml/experiments`.

    Fields:
        control_version, treatment_version: a label, `latest`, `production` or `staging`, which mean what they mean now.
        traffic_split: the control's share of the units.
        unit: what has one arm: `symbol|time-block`, `prediction`, `symbol`, or `unit_id`, which each request names.
        mode: `split`, or `shadow`: the control answers, and the treatment is asked beside it.
        block_s: how long a block of time is; None for the mode's own. horizon_s: how long after a prediction its outcome is known.
        policy: `sequential`, `classic`, or an object with `policy` and the numbers that are to be others.
        auto: whether its result is applied without asking. deadline_at: when it ends at the latest.
    """

    experiment_id: str
    control_model: str
    control_version: str
    treatment_model: str
    treatment_version: str
    traffic_split: float = 0.9
    unit: str = "symbol|time-block"
    mode: str = "split"
    block_s: float | None = None
    horizon_s: float = 0.0
    namespace: NamespaceBody | None = None
    policy: str | dict[str, Any] | None = None
    auto: bool = False
    deadline_at: Moment | None = None
    start: bool = True


class ChangeExperiment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `PATCH` on a draft: what is left out or null stays."""

    control_model: str | None = None
    control_version: str | None = None
    treatment_model: str | None = None
    treatment_version: str | None = None
    traffic_split: float | None = None
    unit: str | None = None
    mode: str | None = None
    block_s: float | None = None
    horizon_s: float | None = None
    namespace: NamespaceBody | None = None
    policy: str | dict[str, Any] | None = None
    auto: bool | None = None
    deadline_at: Moment | None = None


class RampExperiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST …/ramp`. `redraw`: draw all units anew, which a greater share of the control needs."""

    traffic_split: float
    redraw: bool = False


class ApplyExperiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST …/apply`, which may be left out: what to do, whatever is recommended."""

    action: Literal["promote", "rollback", "keep"] | None = None


class PhaseItem(msgspec.Struct, frozen=True):
    """A stretch with one share; `salt` is what units are drawn by."""

    phase: int
    traffic_split: float
    salt: str
    started_at: datetime | None


class ExperimentItem(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment. `overruled_by`: somebody has put this version into service since it started, and requests get that."""

    experiment_id: str
    status: Status
    control_model: str
    control_version: str
    treatment_model: str
    treatment_version: str
    traffic_split: float
    mode: Mode
    unit: str
    block_s: float
    horizon_s: float
    namespace: NamespaceBody | None
    policy: Policy
    auto: bool
    phases: list[PhaseItem]
    applied: Applied | None
    overruled_by: str | None
    created_at: datetime
    created_by: str
    started_at: datetime | None
    stopped_at: datetime | None
    applied_at: datetime | None
    deadline_at: datetime | None


class ExperimentItems(msgspec.Struct, frozen=True):
    """A page of experiments, the newest first."""

    items: list[ExperimentItem]
    next_cursor: str | None


class ExperimentReport(Analysis, frozen=True, kw_only=True):
    """The analysis, and what it is of; `at` is when it was made."""

    experiment: ExperimentItem
    at: datetime


class Promoted(msgspec.Struct, frozen=True):
    """What was put into production."""

    model_name: str
    version: str


class AppliedExperiment(msgspec.Struct, frozen=True, kw_only=True):
    """What was done: `promoted` is null where everything stays as it is."""

    action: Applied
    promoted: Promoted | None
    experiment: ExperimentItem


class EvaluationItem(msgspec.Struct, frozen=True, kw_only=True):
    """A decision that was kept, with its exact inputs."""

    id: int
    at: datetime
    reason: str
    decision: dict[str, Any]
    inputs: dict[str, Any]
    code_version: str


class EvaluationAgain(msgspec.Struct, frozen=True, kw_only=True):
    """A kept decision, made again from its inputs by the rules of this server."""

    evaluation: EvaluationItem
    verdict: Verdict | None
    is_same: bool
    has_same_rules: bool


class EvaluationItems(msgspec.Struct, frozen=True):
    """The last decisions, the newest first."""

    items: list[EvaluationItem]


def plan_from_body(body: CreateExperiment) -> Plan:
    """The plan that the body asks for.

    Raises:
        RequestInvalid: a part of it does not fit.
    """
    return checked_plan(
        experiment_id=body.experiment_id,
        control=(body.control_model, body.control_version),
        treatment=(body.treatment_model, body.treatment_version),
        treatment_weight=rest_of(body.traffic_split),
        mode=body.mode,
        unit=body.unit,
        block_s=body.block_s,
        horizon_s=body.horizon_s,
        namespace=_slice(body.namespace),
        policy=body.policy,
        auto=body.auto,
        deadline_at=body.deadline_at,
    )


def changed_plan(experiment: Experiment, body: ChangeExperiment) -> Plan:
    """The plan of an experiment, but for what the body names.

    Raises:
        RequestInvalid: a part of it does not fit.
    """
    item = item_from_experiment(experiment)
    before = CreateExperiment(
        **{name: getattr(item, name) for name in CreateExperiment.__struct_fields__ if name not in ("policy", "start")},
        policy=msgspec.to_builtins(item.policy),
    )
    named = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not None}
    return plan_from_body(msgspec.structs.replace(before, **named))


def item_from_experiment(experiment: Experiment) -> ExperimentItem:
    """The experiment as answers show it."""
    part = experiment.slice
    return ExperimentItem(
        experiment_id=experiment.experiment_id,
        status=experiment.status,
        control_model=experiment.control.model_name,
        control_version=experiment.control.version,
        treatment_model=experiment.treatment.model_name,
        treatment_version=experiment.treatment.version,
        traffic_split=rest_of(experiment.treatment_weight),
        mode=experiment.mode,
        unit=experiment.unit,
        block_s=experiment.block_s,
        horizon_s=experiment.horizon_s,
        namespace=None if part is None else NamespaceBody(part.namespace, part.start, part.end),
        policy=experiment.policy,
        auto=experiment.auto,
        phases=[
            PhaseItem(phase.number, rest_of(phase.treatment_weight), phase.salt, phase.started_at)
            for phase in experiment.phases
        ],
        applied=experiment.applied,
        overruled_by=experiment.overruled_by,
        created_at=experiment.created_at,
        created_by=experiment.created_by,
        started_at=experiment.started_at,
        stopped_at=experiment.stopped_at,
        applied_at=experiment.applied_at,
        deadline_at=experiment.deadline_at,
    )


def report_from_analysis(experiment: Experiment, analysis: Analysis, at: datetime) -> ExperimentReport:
    """The analysis as answers show it."""
    return ExperimentReport(
        **msgspec.structs.asdict(analysis), experiment=item_from_experiment(experiment), at=at.astimezone(UTC)
    )


def item_from_evaluation(evaluation: Evaluation) -> EvaluationItem:
    """A kept decision as answers show it."""
    return EvaluationItem(
        id=evaluation.id,
        at=evaluation.at,
        reason=evaluation.reason,
        decision=dict(evaluation.decision),
        inputs=dict(evaluation.inputs),
        code_version=evaluation.code_version,
    )


def again_from_evaluation(evaluation: Evaluation) -> EvaluationAgain:
    """A kept decision, and the same made again."""
    again = replay_kept(evaluation.inputs, evaluation.decision)
    return EvaluationAgain(
        evaluation=item_from_evaluation(evaluation),
        verdict=None if again.recommendation is None else again.recommendation.verdict,
        is_same=again.is_same,
        has_same_rules=again.has_same_rules,
    )


def _slice(namespace: NamespaceBody | None) -> tuple[str, float, float] | None:
    return None if namespace is None else (namespace.name, namespace.start, namespace.end)
