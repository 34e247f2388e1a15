"""Parsing one file through the plugin that claims it, here or in the guarded process that a server uses."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.ingest import IngestedGroup
from mmserver.conversion.parity import ParityReport, compared
from mmserver.conversion.reading import ModelReader
from mmserver.formats import Artifact, ModelFile, ModelSource
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.settings import Settings

NETS = """
import torch
from mmserver import hookimpl


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv1d(4, 8, 3, padding=1), torch.nn.BatchNorm1d(8)
        self.gru, self.lstm = torch.nn.GRU(8, 8, batch_first=True), torch.nn.LSTM(8, 8, 2, batch_first=True)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, rows):
        found = torch.relu(self.norm(self.conv(rows.transpose(1, 2)))).transpose(1, 2)
        return torch.softmax(self.head(self.lstm(self.gru(found)[0])[0].mean(1)), -1)


@hookimpl
def mmserver_load_interpreter(model, info):
    return None
"""
LINEAR_MODELS = """
import numpy as np


class Linear:
    def __init__(self, weights, scale):
        self.weights, self.scale = weights, np.float32(scale)
        self.n_features, self.size_bytes = len(weights), 8 * len(weights)

    def predict(self, rows):
        return {"prediction": (rows * self.weights * self.scale).sum(axis=1, keepdims=True, dtype=np.float32)}


def linear(content, options):
    return Linear(np.array(content.split(), dtype=np.float32), options.get("scale", 1))
"""


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


@pytest.fixture(scope="session")
def guarded_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With a network's code, pickles of scikit-learn allowed, and limits that a test can wait for."""
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "nets.py").write_text(NETS)
    return Settings(
        plugins_dir=directory,
        allow_unpickling=("sklearn",),
        conversion_timeout_s=60.0,
        conversion_memory_bytes=4 << 30,
    )


@pytest.fixture(scope="session")
def linear_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An installed package that announces a model, and one that is broken."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "linear_models.py").write_text(LINEAR_MODELS)
    announced = directory / "linear_models-2.1.dist-info"
    announced.mkdir()
    (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-models\nVersion: 2.1\n")
    points = "[mmserver.custom_models]\nlinear = linear_models:linear\nbroken = not_there_at_all:make\n"
    (announced / "entry_points.txt").write_text(points)
    sys.path.append(str(directory))
    yield directory
    sys.path.remove(str(directory))
    sys.modules.pop("linear_models", None)


@pytest.fixture(scope="session")
def guarded_reader(guarded_settings: Settings, plugins: Plugins, linear_models: Path) -> Iterator[ModelReader]:
    """One for all tests: each library is imported once."""
    opened = ModelReader(guarded_settings, plugins, idle_s=600.0)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def read_guarded(guarded_reader: ModelReader, plugins: Plugins) -> Callable[..., IngestedGroup]:
    """What is stored of the model in a file; keywords are its options, `model_type` and other `files`."""

    def run(name: str, data: bytes, *, model_type: str | None = None, **options: Any) -> IngestedGroup:
        claim = plugins.model_format_for(name, model_type)
        assert claim is not None
        files = {name: data, **options.pop("files", {})}
        return guarded_reader.read(ModelSource(file_name=name, files=files, options=options), claim, info={})

    return run
