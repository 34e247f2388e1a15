"""Experiments on the registry's bench: real versions of small trained models, in a real database."""

from collections.abc import Callable
from typing import Any

import pytest

from mmserver.catalog.store import Store
from mmserver.experiments.experiments import Experiment
from mmserver.experiments.lifecycle import create_experiment
from mmserver.experiments.planning import checked_plan
from tests.registry.conftest import (  # noqa: F401 (fixtures)
    TEST,
    Bench,
    bench,
    contents,
    open_bench,
    read_before,
    registry_plugins,
    registry_sandbox,
    three,
)

Create = Callable[..., Experiment]


@pytest.fixture
def create() -> Create:
    """Creates an experiment of 1.0.0 against 1.9.0 of `hybrid`, and starts it."""

    def make(store: Store, experiment_id: str = "exp", *, start: bool = True, **changes: Any) -> Experiment:
        plan = {
            "control": ("hybrid", "1.0.0"),
            "treatment": ("hybrid", "1.9.0"),
            "treatment_weight": 0.1,
            **changes,
        }
        return create_experiment(store, checked_plan(experiment_id=experiment_id, **plan), TEST, start=start)

    return make
