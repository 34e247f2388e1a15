"""Policies: defaults, and numbers that are refused by their names."""

import math
from typing import Any

import msgspec
import pytest

from mmserver.experiments.policies import ClassicPolicy, Policy, PolicyInvalid, SequentialPolicy, policy_from


def test_a_policy_without_a_name_is_sequential_with_the_documented_numbers() -> None:
    policy = policy_from({})
    assert isinstance(policy, SequentialPolicy)
    assert (policy.alpha, policy.min_accuracy_gain, policy.max_accuracy_loss) == (0.05, 0.02, 0.05)
    assert (policy.max_latency_increase_ms, policy.max_error_rate_increase) == (2.0, 0.5)
    assert (policy.min_samples, policy.min_units, policy.min_hours) == (100, 30, 24.0)


def test_classic_is_chosen_by_its_name() -> None:
    policy = policy_from({"policy": "classic", "min_hours": 48})
    assert policy == ClassicPolicy(min_hours=48)
    assert policy.name == "classic"


FIELDS = sorted({*SequentialPolicy.__struct_fields__, *ClassicPolicy.__struct_fields__})


def test_every_number_has_limits() -> None:
    assert sorted(SequentialPolicy.LIMITS) == FIELDS


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("side", ["below", "above", "text", "true"])
def test_a_number_that_is_none_is_refused_by_its_name(name: str, side: str) -> None:
    least, most = SequentialPolicy.LIMITS[name]
    wrong = {"below": least - 1, "above": most + 1, "text": "many", "true": True}[side]
    with pytest.raises(PolicyInvalid, match=name) as refused:
        policy_from({name: int(wrong) if side in {"below", "above"} and wrong == int(wrong) else wrong})
    assert refused.value.part == name


@pytest.mark.parametrize("name", FIELDS)
def test_what_is_not_finite_is_refused_by_its_name(name: str) -> None:
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=name):
            SequentialPolicy(**{name: wrong})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        pytest.param({"alfa": 0.1}, "alfa", id="unknown field"),
        pytest.param({"policy": "bayes"}, "bayes", id="unknown policy"),
        pytest.param({"policy": "classic", "planned_units": 10}, "planned_units", id="another policy's field"),
        pytest.param({"min_hours": 48, "max_hours": 24}, "max_hours", id="an end before the minimum"),
        pytest.param([], "object", id="a list"),
    ],
)
def test_what_is_no_policy_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy_from(value)


@pytest.mark.parametrize(
    "policy", [SequentialPolicy(alpha=0.1), ClassicPolicy(max_hours=720)], ids=["sequential", "classic"]
)
def test_a_policy_comes_back_from_json_as_it_was(policy: Policy) -> None:
    assert policy_from(msgspec.json.decode(msgspec.json.encode(policy))) == policy
