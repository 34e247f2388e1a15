"""What is kept of an experiment comes back from JSON as it was."""

from typing import Any

import msgspec
import pytest

from mmserver.experiments.classification import ConfusionCounts
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.moments import CoMoments, Moments
from mmserver.experiments.rates import Rate

STATES = {
    "moments": Moments.from_values([1e-4, 1.1e-4, 1e-4 / 3]),
    "comoments": CoMoments.from_values([1.0, 2.0, 4.0], [0.1, 0.2, -0.3]),
    "rate": Rate(3, 7),
    "latencies": Latencies.from_ms([0.2, 1.0, 1.0, 35.0]),
    "labels": ConfusionCounts(((1, 0, 2), (0, 3, 0), (1, 1, 1))),
}


@pytest.mark.parametrize("name", list(STATES))
def test_a_state_comes_back_from_json_as_it_was(name: str) -> None:
    state: Any = STATES[name]
    again = msgspec.json.decode(msgspec.json.encode(state), type=type(state))
    assert again == state
    assert again.merge(type(state)()) == state.merge(type(state)()) == state


@pytest.mark.parametrize("name", list(STATES))
def test_the_state_of_nothing_changes_nothing(name: str) -> None:
    state: Any = STATES[name]
    assert type(state)().merge(state) == state
