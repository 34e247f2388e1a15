"""Looking at an experiment and acting on it: the analysis of the moment, decisions that are kept, and what they change."""

import importlib.metadata
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
from sqlalchemy import insert, select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.running import ArmVersion
from mmserver.catalog.store import Store
from mmserver.errors import ExperimentStatusConflict, ExperimentUndecided, MmserverError, NotRecommended
from mmserver.experiments.analysing import Analysis, analyse
from mmserver.experiments.deciding import Decision, Design, Looks, Recommendation
from mmserver.experiments.experiments import (
    APPLIED,
    DRAFT,
    RUNNING,
    STOPPED,
    Applied,
    Experiment,
    get_experiment,
    list_experiments,
)
from mmserver.experiments.lifecycle import note_applied, stop_experiment
from mmserver.experiments.replaying import Inputs, evaluate, inputs_json
from mmserver.experiments.totals import ExperimentTotals
from mmserver.registry.finding import find_model, in_stage
from mmserver.storage.tables import ExperimentEvaluationRow
from mmserver.storage.times import text_from_datetime

Reason: TypeAlias = Literal["scheduled", "asked", "stopped", "applied"]
SCHEDULE = Actor("mmserver (experiments)")
"""Who acts where an experiment does by itself."""

log = logging.getLogger(__name__)


class Totals(Protocol):
    """Where the sums of experiments come from: `ObservationLog`."""

    def flush(self) -> None:
        """Take in what was logged until now."""

    def read_totals(self, experiment_key: int) -> ExperimentTotals:
        """The sums of one experiment."""

    def read_looks(self, experiment_key: int) -> int:
        """The number of the last look at them that was noted beside them."""

    def note_looks(self, experiment_key: int, n: int) -> None:
        """Note a look beside them."""


class KeptDecision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision as it is kept beside its inputs; `looks` are what the next one goes on from."""

    recommendation: Recommendation
    looks: Looks


def analyse_experiment(store: Store, totals: Totals, experiment: Experiment) -> Analysis:
    """How the arms do as of now, or as of its end; nothing is kept.

    Raises:
        DatabaseBusy, DatabaseCorrupt, DiskFull, WritesStopped: of the observations' own file.
    """
    if not store.read_only:
        totals.flush()
    looks = _last_looks(store, experiment)
    return analyse(
        _sound_totals(totals, experiment, looks),
        policy=experiment.policy,
        design=design_of(experiment),
        now=_now(store, experiment),
        looks=looks,
    )


def evaluate_experiment(store: Store, totals: Totals, experiment: Experiment, reason: Reason) -> Decision:
    """Decide, and keep the decision with its inputs.

    Raises:
        as `analyse_experiment`; ReadOnly
    """
    decision, inputs = _decided(store, totals, experiment)
    _keep(store, experiment, decision, inputs, reason)
    return decision


def stop_and_report(store: Store, totals: Totals, experiment_id: str, by: Actor) -> tuple[Experiment, Analysis]:
    """End an experiment, keep a last decision, and give the final report; again, the report alone.

    Raises:
        ExperimentNotFound, ReadOnly; as `analyse_experiment`: it is stopped all the same.
    """
    before = get_experiment(store, experiment_id)
    experiment = stop_experiment(store, experiment_id, by)
    if before.status == RUNNING or _lacks_last_look(store, experiment):
        evaluate_experiment(store, totals, experiment, "stopped")
    return experiment, analyse_experiment(store, totals, experiment)


def apply_result(
    store: Store,
    totals: Totals,
    experiment_id: str,
    by: Actor,
    *,
    action: Applied | None = None,
    only_if_recommended: bool = False,
) -> tuple[Experiment, dict[str, Any]]:
    """Do what the decision of this moment says, or `action`; one that runs is stopped first. An experiment is applied once.

    promote: the treatment's version comes into production of its model. rollback and keep: the control stays; where the treatment
    is in production of the same model, the control takes its place. With `only_if_recommended`, `action` is done only where the decision
    says it too.

    Returns:
        the experiment, and what was changed in the registry: `promoted`, a model and version, or None

    Raises:
        ExperimentNotFound, ReadOnly, ModelNotFound, VersionNotFound
        ExperimentStatusConflict: it was never started, or was applied before.
        ExperimentUndecided: the decision is to go on, or the experiment is invalid, and no action is named.
        NotRecommended
    """
    experiment = get_experiment(store, experiment_id)
    if experiment.status in (DRAFT, APPLIED):
        instead = "start it first" if experiment.status == DRAFT else "a result is applied once"
        raise ExperimentStatusConflict(experiment_id=experiment_id, status=experiment.status, instead=instead)
    decision, inputs = _decided(store, totals, experiment)
    recommendation = decision.recommendation
    recommended = recommended_action(recommendation)
    chosen = action or recommended
    is_refused = chosen is None or (only_if_recommended and chosen != recommended)
    _keep(store, experiment, decision, inputs, "asked" if is_refused else "applied")
    if chosen is None:
        reason = f"{recommendation.verdict} ({'; '.join(recommendation.reasons)})"
        raise ExperimentUndecided(experiment_id=experiment_id, reason=reason)
    if is_refused:
        raise NotRecommended(experiment_id=experiment_id, action=chosen, verdict=recommendation.verdict)
    wanted = _wanted_in_production(store, experiment, chosen)
    promoted = None if wanted is None else {"model_name": wanted.model_name, "version": wanted.version}
    detail = {"promoted": promoted, "recommended": recommendation.verdict, "is_asked_for": action is not None}
    return note_applied(store, experiment_id, chosen, detail, by, promoting=wanted), detail


def evaluate_running(store: Store, totals: Callable[[], Totals]) -> None:
    """One look at each running experiment: keep the decision, and act on it where that is wanted. One's trouble is not another's.

    An experiment ends at its deadline; one with `auto` when it is decided. What somebody else has put into production meanwhile
    is left there.
    """
    for experiment in list_experiments(store, status=RUNNING):
        try:
            _look_at(store, totals(), experiment)
        except MmserverError as error:
            log.warning("experiment %s: %s", experiment.experiment_id, error)


def recommended_action(recommendation: Recommendation) -> Applied | None:
    """What a recommendation would have done; None where it is to go on, or means nothing."""
    if recommendation.verdict == "no_difference":
        return "keep"
    return None if recommendation.action == "continue" else recommendation.action


def design_of(experiment: Experiment) -> Design:
    """What its decision depends on of how it was set up."""
    return Design(
        started_at=experiment.started_at or experiment.created_at,
        treatment_weights=experiment.treatment_weights,
        mode=experiment.mode,
        deadline_at=experiment.deadline_at,
    )


# --- parts --------------------------------------------------------------------------------------------------------------


def _decided(store: Store, totals: Totals, experiment: Experiment) -> tuple[Decision, Inputs]:
    store.check_writable()
    totals.flush()
    looks = _last_looks(store, experiment)
    found = _sound_totals(totals, experiment, looks)
    decision, inputs = evaluate(
        found, policy=experiment.policy, design=design_of(experiment), now=_now(store, experiment), looks=looks
    )
    if not found.has_lost_observations:  # else the next look must find the same
        totals.note_looks(experiment.log_key, decision.looks.n)
    return decision, inputs


def _sound_totals(totals: Totals, experiment: Experiment, looks: Looks | None) -> ExperimentTotals:
    """The sums, marked where they are not those that the last look was made from, grown since.

    Phases that the experiment does not have are left out: they are of a database that an older copy has replaced.
    """
    found = totals.read_totals(experiment.log_key)
    known = {number: phase for number, phase in found.phases.items() if number in experiment.treatment_weights}
    has_lost = looks is not None and totals.read_looks(experiment.log_key) < looks.n
    return ExperimentTotals(phases=known, has_lost_observations=has_lost or len(known) < len(found.phases))


def _keep(store: Store, experiment: Experiment, decision: Decision, inputs: Inputs, reason: Reason) -> None:
    kept = KeptDecision(recommendation=decision.recommendation, looks=decision.looks)
    with store.database.write() as connection:
        connection.execute(
            insert(ExperimentEvaluationRow).values(
                experiment_key=experiment.key,
                at=text_from_datetime(store.now()),
                reason=reason,
                inputs=inputs_json(inputs).decode(),
                decision=msgspec.json.encode(kept).decode(),
                code_version=importlib.metadata.version("mmserver"),
            )
        )


def _look_at(store: Store, totals: Totals, experiment: Experiment) -> None:
    recommendation = evaluate_experiment(store, totals, experiment, "scheduled").recommendation
    chosen = recommended_action(recommendation)
    if experiment.auto and chosen is not None and experiment.overruled_by is None:
        apply_result(store, totals, experiment.experiment_id, SCHEDULE)
    elif experiment.deadline_at is not None and store.now() >= experiment.deadline_at:
        stop_and_report(store, totals, experiment.experiment_id, SCHEDULE)


def _wanted_in_production(store: Store, experiment: Experiment, chosen: Applied) -> ArmVersion | None:
    control, treatment = experiment.control, experiment.treatment
    if chosen == "promote":
        return treatment
    is_replaced = control.model_name == treatment.model_name and _is_in_production(store, experiment)
    return control if is_replaced else None


def _is_in_production(store: Store, experiment: Experiment) -> bool:
    with store.database.read() as connection:
        model = find_model(connection, experiment.treatment.model_name)
        present = in_stage(connection, model.id, "production")
    return present is not None and present.label == experiment.treatment.version


def _lacks_last_look(store: Store, experiment: Experiment) -> bool:
    """Whether it was stopped, and the process ended before the last decision was kept."""
    if experiment.status != STOPPED or experiment.started_at is None or experiment.stopped_at is None:
        return False
    query = select(ExperimentEvaluationRow.id).where(
        ExperimentEvaluationRow.experiment_key == experiment.key,
        ExperimentEvaluationRow.at >= text_from_datetime(experiment.stopped_at),
    )
    with store.database.read() as connection:
        return connection.execute(query.limit(1)).first() is None


def _last_looks(store: Store, experiment: Experiment) -> Looks | None:
    query = (
        select(ExperimentEvaluationRow.decision)
        .where(ExperimentEvaluationRow.experiment_key == experiment.key)
        .order_by(ExperimentEvaluationRow.id.desc())
        .limit(1)
    )
    with store.database.read() as connection:
        decision = connection.execute(query).scalar()
    return None if decision is None else msgspec.json.decode(decision, type=KeptDecision).looks


def _now(store: Store, experiment: Experiment) -> datetime:
    now = store.now()
    return now if experiment.stopped_at is None else min(now, experiment.stopped_at)
