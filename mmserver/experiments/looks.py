"""How an experiment's numbers moved from one kept evaluation to the next: what its charts over time are made from.

Read from what each decision was made from, so a chart shows what was known then; of many evaluations some are read, evenly
spread, the first and the last among them, so that it costs the same after a day and after a year.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import select

from mmserver.catalog.store import Store
from mmserver.experiments.comparisons import Difference
from mmserver.experiments.deciding import Recommendation, Verdict
from mmserver.experiments.effects import Mode, effect_of
from mmserver.experiments.evaluating import KeptDecision
from mmserver.experiments.intervals import Interval
from mmserver.experiments.policies import ClassicPolicy, Policy, SequentialPolicy
from mmserver.experiments.replaying import inputs_from
from mmserver.experiments.sequences import confidence_sequence
from mmserver.experiments.totals import ExperimentTotals
from mmserver.storage.tables import ExperimentEvaluationRow
from mmserver.storage.times import datetime_from_text

MAX_LOOKS = 150
"""More points than this cannot be told apart on a chart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one evaluation saw.

    Fields:
        effect: of the accuracy, as the policy measures it; None where nothing could be compared. sequence: where the truth
            lies at all looks at once, whichever the policy is.
        is_enough: whether there was enough of everything to conclude anything.
    """

    at: datetime
    reason: str
    verdict: Verdict
    is_enough: bool
    effect: float | None
    sequence: Interval | None
    n_control_units: int
    n_treatment_units: int


@dataclass(frozen=True, slots=True)
class KeptLook:
    """One row of the list of evaluations."""

    at: datetime
    reason: str
    recommendation: Recommendation
    code_version: str


class _StatedVerdict(msgspec.Struct):
    verdict: Verdict


class _Stated(msgspec.Struct):
    """Of a kept decision, what lists of experiments show."""

    recommendation: _StatedVerdict


def read_looks(store: Store, experiment_key: int) -> list[Look]:
    """At most MAX_LOOKS of the kept evaluations, in their order."""
    row = ExperimentEvaluationRow
    with store.database.read() as connection:
        ids = connection.execute(select(row.id).where(row.experiment_key == experiment_key).order_by(row.id)).scalars()
        chosen = evenly_spread(list(ids), MAX_LOOKS)
        query = select(row.at, row.reason, row.inputs, row.decision).where(row.id.in_(chosen)).order_by(row.id)
        rows = connection.execute(query).all()
    return [_kept_look(*found) for found in rows]


def list_kept_looks(store: Store, experiment_key: int, limit: int) -> list[KeptLook]:
    """The last decisions without their inputs, the newest first."""
    row = ExperimentEvaluationRow
    query = select(row.at, row.reason, row.decision, row.code_version).where(row.experiment_key == experiment_key)
    with store.database.read() as connection:
        rows = connection.execute(query.order_by(row.id.desc()).limit(limit)).all()
    return [
        KeptLook(
            datetime_from_text(at), reason, msgspec.json.decode(kept, type=KeptDecision).recommendation, code_version
        )
        for at, reason, kept, code_version in rows
    ]


def last_verdicts(store: Store, experiment_keys: Sequence[int]) -> dict[int, Verdict]:
    """What each was last found to be; without those that were never evaluated."""
    row = ExperimentEvaluationRow
    found: dict[int, Verdict] = {}
    with store.database.read() as connection:
        for key in experiment_keys:
            query = select(row.decision).where(row.experiment_key == key).order_by(row.id.desc()).limit(1)
            kept = connection.execute(query).scalar()
            if kept is not None:
                found[key] = msgspec.json.decode(kept, type=_Stated).recommendation.verdict
    return found


def look_of(
    totals: ExperimentTotals, policy: Policy, mode: Mode, recommendation: Recommendation, *, at: datetime, reason: str
) -> Look:
    """What a decision saw, from what it was made from."""
    effect = effect_of(totals, "accuracy", mode=mode)
    return Look(
        at=at,
        reason=reason,
        verdict=recommendation.verdict,
        is_enough=has_enough(recommendation),
        effect=shown_effect(totals, effect, policy),
        sequence=sequence_of(effect, policy),
        n_control_units=totals.control.n_units,
        n_treatment_units=totals.treatment.n_units,
    )


def has_enough(recommendation: Recommendation) -> bool:
    """Whether all minimums are reached, so that the numbers mean something."""
    return all(finding.holds for finding in recommendation.findings if finding.kind == "minimum")


def shown_effect(totals: ExperimentTotals, effect: Difference | None, policy: Policy) -> float | None:
    """The difference of accuracies that the policy goes by: `classic` pools all phases."""
    if isinstance(policy, SequentialPolicy):
        return None if effect is None else effect.estimate
    control, treatment = totals.control.accuracy.ratio, totals.treatment.accuracy.ratio
    return None if control is None or treatment is None else treatment - control


def sequence_of(effect: Difference | None, policy: Policy) -> Interval | None:
    """Where the true difference lies at all looks at once."""
    if effect is None:
        return None
    bounds = SequentialPolicy(alpha=policy.alpha) if isinstance(policy, ClassicPolicy) else policy
    return confidence_sequence(effect, n_star=float(bounds.planned_units), alpha=bounds.alpha)


def evenly_spread(values: Sequence[int], most: int) -> list[int]:
    """So many of them, the first and the last too."""
    if len(values) <= most:
        return list(values)
    last = len(values) - 1
    return [values[round(place * last / (most - 1))] for place in range(most)]


def _kept_look(at: str, reason: str, stored_inputs: str, stored_decision: str) -> Look:
    inputs = inputs_from(stored_inputs)
    recommendation = msgspec.json.decode(stored_decision, type=KeptDecision).recommendation
    moment = datetime_from_text(at)
    return look_of(inputs.totals, inputs.policy, inputs.design.mode, recommendation, at=moment, reason=reason)
