"""What a decision rested on, kept beside it, from which the same decision is made again.

The rules have a number that changes whenever the same inputs may lead to another decision: an old decision that is not made
again by newer rules is then no contradiction.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from mmserver.experiments.deciding import Decision, Design, Looks, Recommendation, decide
from mmserver.experiments.policies import Policy
from mmserver.experiments.totals import ExperimentTotals

RULES_VERSION = 1
"""Raise it with every change of the rules, of what they measure, or of how a reason is said."""


class Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """All that one decision was made from, and by which rules.

    Fields:
        totals: without what is only shown. looks: those before this one.
    """

    totals: ExperimentTotals
    policy: Policy
    design: Design
    now: datetime
    looks: Looks
    rules_version: int = RULES_VERSION


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A decision made again.

    Fields:
        recommendation: None where the inputs are not what the rules of today ask for.
        is_same: whether it says the same, reasons and numbers too. has_same_rules: whether rules of that number made it.
    """

    recommendation: Recommendation | None
    is_same: bool
    has_same_rules: bool


def evaluate(
    totals: ExperimentTotals, *, policy: Policy, design: Design, now: datetime, looks: Looks | None = None
) -> tuple[Decision, Inputs]:
    """Decide, and give what is to be stored beside the decision."""
    inputs = Inputs(totals=totals.for_deciding, policy=policy, design=design, now=now, looks=looks or Looks())
    return decided_again(inputs), inputs


def inputs_json(inputs: Inputs) -> bytes:
    """The inputs as they are stored; numbers come back to the last digit."""
    return msgspec.json.encode(inputs)


def inputs_from(stored: bytes | str) -> Inputs:
    """The inputs that were stored.

    Raises:
        ValueError: they are none.
    """
    return msgspec.json.decode(stored, type=Inputs)


def recommendation_json(recommendation: Recommendation) -> bytes:
    """A recommendation as it is stored."""
    return msgspec.json.encode(recommendation)


def decided_again(inputs: Inputs) -> Decision:
    """The decision of such inputs, by the rules of today."""
    return decide(inputs.totals, policy=inputs.policy, design=inputs.design, now=inputs.now, looks=inputs.looks)


def replay(stored_inputs: bytes | str, stored_recommendation: bytes | str) -> Replay:
    """Make a stored decision again, and compare.

    Raises:
        ValueError: what is stored is no decision.
    """
    inputs = inputs_from(stored_inputs)
    before = msgspec.json.decode(stored_recommendation, type=Recommendation)
    again = decided_again(inputs).recommendation
    return Replay(
        recommendation=again,
        is_same=again == before,
        has_same_rules=inputs.rules_version == RULES_VERSION,
    )


def replay_kept(inputs: Mapping[str, Any], decision: Mapping[str, Any]) -> Replay:
    """The same of an evaluation as it was kept, by whatever rules."""
    try:
        return replay(msgspec.json.encode(inputs), msgspec.json.encode(decision["recommendation"]))
    except ValueError:  # other rules may have asked for other numbers
        return Replay(recommendation=None, is_same=False, has_same_rules=inputs.get("rules_version") == RULES_VERSION)
