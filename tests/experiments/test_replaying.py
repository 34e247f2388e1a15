"""A stored decision is made again from what is stored beside it."""

import msgspec
import pytest
from experiments.made_totals import after, arm, design, shadow, split

from mmserver.experiments.deciding import Design, Looks
from mmserver.experiments.policies import ClassicPolicy, Policy, SequentialPolicy
from mmserver.experiments.replaying import (
    RULES_VERSION,
    evaluate,
    inputs_from,
    inputs_json,
    recommendation_json,
    replay,
)
from mmserver.experiments.totals import ExperimentTotals

CASES: dict[str, tuple[ExperimentTotals, Policy, Design]] = {
    "promote": (split(arm(9_000, seed=1), arm(1_000, accuracy=0.62, seed=2)), SequentialPolicy(), design()),
    "continue": (split(arm(900, seed=1), arm(100, seed=2)), SequentialPolicy(planned_units=700), design()),
    "invalid": (split(arm(900), arm(300)), ClassicPolicy(min_hours=1), design()),
    "classic": (split(arm(900), arm(100, accuracy=0.4)), ClassicPolicy(), design()),
    "shadow": (shadow(300, only_control=0.1, only_treatment=0.1), SequentialPolicy(), design(mode="shadow")),
    "nothing": (ExperimentTotals(), SequentialPolicy(max_hours=30), design(deadline_at=after(50))),
}


@pytest.mark.parametrize("name", list(CASES))
def test_a_decision_is_made_again_from_its_inputs(name: str) -> None:
    totals, policy, how = CASES[name]
    decision, inputs = evaluate(totals, policy=policy, design=how, now=after(100), looks=Looks(n=4, least_p=1 / 3))
    stored = inputs_json(inputs), recommendation_json(decision.recommendation)
    assert inputs_from(stored[0]) == inputs
    again = replay(*stored)
    assert again.is_same
    assert again.has_same_rules
    assert again.recommendation == decision.recommendation


def test_another_decision_than_the_inputs_lead_to_is_noticed() -> None:
    totals, policy, how = CASES["promote"]
    decision, inputs = evaluate(totals, policy=policy, design=how, now=after(100))
    forged = msgspec.structs.replace(decision.recommendation, action="rollback", verdict="rollback")
    assert not replay(inputs_json(inputs), recommendation_json(forged)).is_same


def test_a_decision_by_other_rules_says_so() -> None:
    totals, policy, how = CASES["promote"]
    decision, inputs = evaluate(totals, policy=policy, design=how, now=after(100))
    older = msgspec.structs.replace(inputs, rules_version=RULES_VERSION - 1)
    assert not replay(inputs_json(older), recommendation_json(decision.recommendation)).has_same_rules


def test_what_is_no_decision_is_refused() -> None:
    for wrong in ("{}", "[", '{"totals": 3}'):
        with pytest.raises(ValueError, match=r".+"):
            inputs_from(wrong)


def test_inputs_stay_small_however_many_symbols_there_are() -> None:
    totals, policy, how = CASES["promote"]
    _, inputs = evaluate(totals, policy=policy, design=how, now=after(100))
    assert len(inputs_json(inputs)) < 5_000
