"""Every library's model is read where no file can be opened and no thread started: in the guarded process that a server uses."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid
from mmserver.formats import ModelSource
from mmserver.plugin_loading import load_plugins
from mmserver.settings import Settings

pytestmark = pytest.mark.slow
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
ROWS = np.random.default_rng(0).normal(size=(200, 4))
RETURNS = ROWS @ [1.0, 2.0, -1.0, 0.0]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """The stored description of the model in a file, read as a server reads it."""
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "nets.py").write_text(NETS)
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), plugins_dir=directory)
    plugins = load_plugins()
    reader = ModelReader(settings, plugins)

    def run(name: str, data: bytes, **options: Any) -> dict[str, Any]:
        claim = plugins.model_format_for(name)
        assert claim is not None
        group = reader.read(ModelSource(file_name=name, files={name: data}, options=options), claim, info={})
        described: dict[str, Any] = json.loads(group.detail)["model"]
        return described

    yield run
    reader.close()


def check_agrees(model: dict[str, Any]) -> None:
    parity = model["summary"]["parity"]
    assert (model["kind"], parity["passed"], parity["n_beyond"]) == ("onnx", True, 0)


def test_a_torch_network_is_exported_and_a_whole_one_refused(
    read: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (the extra torch)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (the extra torch)")
    namespace: dict[str, Any] = {"__name__": "nets"}
    exec(compile(NETS, "nets.py", "exec"), namespace)
    torch.manual_seed(0)
    network, file = namespace["Net"](), io.BytesIO()
    torch.save(network.state_dict(), file)
    check_agrees(read("a.pt", file.getvalue(), code="nets:Net", input_shape=[6, 4], output_names=["probabilities"]))
    damaged = io.BytesIO()
    torch.save({"network": torch.nn.Linear(4, 1)}, damaged)
    with pytest.raises(ArtifactInvalid, match="forbidden_global"):
        read("a.pt", damaged.getvalue(), code="nets:Net", input_shape=[6, 4])


def test_a_forest_that_wants_all_cores_is_converted_on_one(read: Callable[..., dict[str, Any]]) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed (the extra sklearn)")
    pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (the extra sklearn)")
    from sklearn import ensemble, linear_model, pipeline, preprocessing

    forest = ensemble.RandomForestClassifier(10, n_jobs=-1, random_state=0).fit(ROWS, RETURNS > 0)
    check_agrees(read("a.skops", skops.dumps(forest)))
    scaled = pipeline.make_pipeline(preprocessing.RobustScaler(), linear_model.ElasticNet()).fit(ROWS, RETURNS)
    check_agrees(read("a.skops", skops.dumps(scaled)))


def test_lightgbm_s_trees_are_converted(read: Callable[..., dict[str, Any]]) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="lightgbm is not installed (the extra lightgbm)")
    pytest.importorskip("onnx", reason="onnx is not installed (the extra lightgbm)")
    options = {"verbosity": -1, "num_threads": 1}
    model = lightgbm.train(options, lightgbm.Dataset(ROWS, RETURNS), 10).model_to_string().encode()
    described = read("a.txt", model)
    check_agrees(described)
    assert described["summary"]["accepts_missing"]


def test_catboost_s_trees_are_converted_and_a_wrong_conversion_refused(
    read: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    catboost = pytest.importorskip("catboost", reason="catboost is not installed (the extra catboost)")
    pytest.importorskip("onnx", reason="onnx is not installed (the extra catboost)")
    options = {"iterations": 10, "depth": 3, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    path = tmp_path / "a.cbm"
    catboost.CatBoostRegressor(**options).fit(ROWS, RETURNS).save_model(str(path))
    check_agrees(read("a.cbm", path.read_bytes()))
    wrong = catboost.CatBoostClassifier(**options, loss_function="MultiClassOneVsAll")
    wrong.fit(ROWS, np.digitize(RETURNS, (-1, 1))).save_model(str(path))
    with pytest.raises(ArtifactInvalid, match="parity_failed"):
        read("a.cbm", path.read_bytes())
