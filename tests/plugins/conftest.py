"""Parsing one file through the plugin that claims it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.conversion.parity import ParityReport, compared
from mmserver.formats import Artifact, ModelFile, ModelSource
from mmserver.plugin_loading import Plugins, load_plugins


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture(scope="session")
def parse(plugins: Plugins) -> Callable[..., Any]:
    """What the plugin makes of a file of that name and those bytes."""

    def run(name: str, data: bytes, *, quantiles: bool = False) -> Any:
        claim = plugins.format_for(name, quantiles=quantiles)
        assert claim is not None
        return claim.parse(Artifact(name=name, group_key="", data=data))

    return run


@pytest.fixture(scope="session")
def read_model(plugins: Plugins) -> Callable[..., ModelFile]:
    """What the format of that name makes of a registered file and its options."""

    def run(model_type: str, data: bytes, **options: Any) -> ModelFile:
        claim = plugins.model_format_for("a", model_type)
        assert claim is not None
        return claim.read(ModelSource(file_name="a", files={"a": data}, options=options))

    return run


@pytest.fixture(scope="session")
def parity(plugins: Plugins) -> Callable[[ModelFile], ParityReport]:
    """How near what runs the model comes to what its source gave for the probe rows."""

    def run(model: ModelFile) -> ParityReport:
        predictor = plugins.load_predictor(model)
        assert predictor is not None
        assert model.probes is not None
        assert model.conversion is not None
        rows = np.array(model.probes.rows, dtype=np.float32)
        expected = {name: np.array(values, dtype=np.float32) for name, values in model.probes.outputs.items()}
        return compared(expected, predictor.predict(rows), model.conversion, "here")

    return run
