"""Importing from a real MLflow registry in a SQLite file; MLflow writes it in a process of its own."""

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.catalog.store import Store
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ExtraMissing, ModelNotFound, NameInvalid, RequestInvalid
from mmserver.registry.mlflow_models import import_mlflow_model
from mmserver.registry.taking_over import TakenOver
from mmserver.registry.versions import get_version, list_versions
from mmserver.settings import Settings
from tests.cli.commands import run

TEST = Actor("test")
is_installed = importlib.util.find_spec("mlflow") is not None
needs_mlflow = [
    pytest.mark.skipif(not is_installed, reason="needs MLflow (the extra mlflow)"),
    pytest.mark.filterwarnings("ignore"),  # MLflow's own
]

WRITER = """
import os, sys
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
import mlflow, numpy as np, pandas as pd, xgboost
import mlflow.xgboost, mlflow.pyfunc
from mlflow.models import infer_signature
uri, artifacts = sys.argv[1:]
mlflow.set_tracking_uri(uri)
mlflow.set_registry_uri(uri)
mlflow.set_experiment(experiment_id=mlflow.create_experiment("trading", artifact_location=artifacts))
client = mlflow.MlflowClient(uri, uri)
client.create_registered_model("hybrid")
rows = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 2)), columns=["mom_1h", "vol_1d"])

def save(n, flavour=mlflow.xgboost, model_format="json"):
    model = xgboost.XGBRegressor(n_estimators=n, max_depth=2, n_jobs=1).fit(rows, rows["mom_1h"])
    with mlflow.start_run() as run:
        mlflow.log_metrics({"sharpe": 1.0 + n})
        mlflow.log_params({"n_estimators": n})
        mlflow.set_tags({"desk": "fx"})
        info = mlflow.xgboost.log_model(model, name="model", model_format=model_format, signature=infer_signature(rows, model.predict(rows)))
    return client.create_model_version("hybrid", info.model_uri, run.info.run_id, tags={"reviewed": "yes"}, description=f"with {n} trees")

save(2)
save(3, model_format="ubj")
save(4)

class Other(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

with mlflow.start_run() as run:
    info = mlflow.pyfunc.log_model(name="model", python_model=Other())
client.create_model_version("hybrid", info.model_uri, run.info.run_id)
client.set_registered_model_alias("hybrid", "Champion", "2")
client.set_registered_model_alias("hybrid", "challenger", "3")
client.transition_model_version_stage("hybrid", "1", "Archived")
print(xgboost.XGBRegressor(n_estimators=3, max_depth=2, n_jobs=1).fit(rows, rows["mom_1h"]).predict(rows[:1])[0])
"""


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow registry with four versions of `hybrid`: the last one is Python code."""
    directory = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{directory}/mlflow.db"
    command = [sys.executable, "-W", "ignore", "-c", WRITER, uri, f"file://{directory}/artifacts"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return uri


FLAVOURS = """
import json, os, sys
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
import lightgbm, mlflow, numpy as np, onnx, pandas as pd
import mlflow.lightgbm, mlflow.onnx, mlflow.sklearn
from mlflow.models import infer_signature
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LinearRegression
uri, artifacts, directory = sys.argv[1:]
mlflow.set_tracking_uri(uri)
mlflow.set_registry_uri(uri)
mlflow.set_experiment(experiment_id=mlflow.create_experiment("flavours", artifact_location=artifacts))
client = mlflow.MlflowClient(uri, uri)
rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 2)).astype("float32"), columns=["mom_1h", "vol_1d"])
target = rows["mom_1h"] + 2 * rows["vol_1d"]

def save(name, flavour, model, **options):
    with mlflow.start_run() as run:
        mlflow.log_metric("ic", 0.5)
        mlflow.log_param("rows", 200)
        described = dict(signature=infer_signature(rows, target), pip_requirements=[], **options)
        path = f"{directory}/{name}{run.info.run_id}"
        flavour.save_model(model, path, **described)
        mlflow.log_artifacts(path, "deep/er/model")  # where releases before 3 put a model: beneath its run
        source = f"{run.info.artifact_uri}/deep/er/model"
    if name not in {model.name for model in client.search_registered_models()}:
        client.create_registered_model(name)
    return client.create_model_version(name, source, run.info.run_id).version

trees = lightgbm.train({"verbose": -1, "num_threads": 1}, lightgbm.Dataset(rows, target), num_boost_round=3)
line = LinearRegression().fit(rows, target)
weights = numpy_helper.from_array(np.array([[1.0], [2.0]], "float32"), "weights")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "weights"], ["return"])], "line",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
    [helper.make_tensor_value_info("return", TensorProto.FLOAT, ["n", 1])], [weights],
)
graph = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
save("boosted", mlflow.lightgbm, trees)
save("linear", mlflow.sklearn, line, serialization_format="skops")
save("linear", mlflow.sklearn, line, serialization_format="cloudpickle")
save("graph", mlflow.onnx, graph, save_as_external_data=False)
save("graph", mlflow.onnx, onnx.ModelProto.FromString(graph.SerializeToString()), save_as_external_data=True)
row = rows[:1]
print(json.dumps({
    "row": row.to_numpy()[0].tolist(), "boosted": trees.predict(row)[0], "linear": float(line.predict(row)[0]),
    "graph": float(row["mom_1h"].iloc[0] + 2 * row["vol_1d"].iloc[0]),
}))
"""


@pytest.fixture(scope="session")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """An MLflow registry with a model of each other flavour, the row that they were asked for, and what they said."""
    for package in ("lightgbm", "onnx", "skl2onnx", "skops"):
        pytest.importorskip(package, reason=f"{package} is not installed (the extras onnx, sklearn, lightgbm)")
    directory = tmp_path_factory.mktemp("flavours")
    uri = f"sqlite:///{directory}/mlflow.db"
    command = [sys.executable, "-W", "ignore", "-c", FLAVOURS, uri, f"file://{directory}/artifacts", str(directory)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return uri, json.loads(done.stdout)


def predicted(settings: Settings, name: str, row: list[float], place: Path) -> float:
    """What version 1 answers for the row."""
    rows = place / "rows.csv"
    rows.write_text("mom_1h,vol_1d\n" + ",".join(map(str, row)) + "\n")
    done = run("predict", name, "ANY", "--features", rows, "--json", "--data-dir", settings.data_dir)
    return float(json.loads(done.stdout)["prediction"]["expected_return"])


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", sandbox_workers=1)


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    with open_store(settings) as opened:
        yield opened


@pytest.fixture
def imported(settings: Settings, store: Store) -> Iterator[Callable[..., TakenOver]]:
    with closing(ModelReader(settings, store.plugins)) as reader:
        yield lambda uri, name="hybrid", **more: import_mlflow_model(store, reader, uri, name, TEST, **more)


def test_without_mlflow_the_extra_is_named(imported: Callable[..., TakenOver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"mmserver\[mlflow\]"):
        imported("sqlite:///nowhere.db")


class TestWithMlflow:
    pytestmark = needs_mlflow

    def test_versions_come_with_what_was_measured_and_their_stages(
        self, tracking_uri: str, store: Store, imported: Callable[..., TakenOver]
    ) -> None:
        done = imported(tracking_uri)
        assert done.registered == ["hybrid 2.0.0", "hybrid 1.0.0", "hybrid 3.0.0"]
        stages = {version.label: version.stage for version in list_versions(store, "hybrid")}
        assert stages == {"3.0.0": "staging", "2.0.0": "production", "1.0.0": "archived"}
        version = get_version(store, "hybrid", "production")
        assert (version.kind, version.model_type, version.factors) == ("xgboost", "xgboost", ("mom_1h", "vol_1d"))
        assert (version.metrics, version.training_params) == ({"sharpe": 4.0}, {"n_estimators": "3"})
        assert version.description == "with 3 trees"
        assert version.tags.items() >= {"desk": "fx", "reviewed": "yes", "mlflow.version": "2"}.items()
        assert len(version.tags["mlflow.run_id"]) == 32

    def test_what_cannot_be_read_is_named(self, tracking_uri: str, imported: Callable[..., TakenOver]) -> None:
        (skipped,) = imported(tracking_uri).skipped
        assert skipped.startswith("hybrid 4.0.0: hybrid version 4: unsupported: of python_function none is read here")

    def test_a_second_import_changes_nothing(self, tracking_uri: str, imported: Callable[..., TakenOver]) -> None:
        imported(tracking_uri)
        again = imported(tracking_uri)
        assert (again.registered, again.staged, len(again.unchanged)) == ([], [], 3)

    def test_it_can_have_another_name_here(
        self, tracking_uri: str, store: Store, imported: Callable[..., TakenOver]
    ) -> None:
        imported(tracking_uri, model_name="alpha")
        assert list(store.catalog.models) == ["alpha"]

    def test_a_model_that_is_not_there_and_a_name_that_cannot_be_here(
        self, tracking_uri: str, imported: Callable[..., TakenOver]
    ) -> None:
        with pytest.raises(ModelNotFound, match="other"):
            imported(tracking_uri, "other")
        with pytest.raises(NameInvalid):
            imported(tracking_uri, "../other")

    @pytest.mark.parametrize(
        "name",
        [
            pytest.param("boosted", id="lightgbm"),
            pytest.param("linear", id="sklearn"),
            pytest.param("graph", id="onnx"),
        ],
    )
    def test_each_flavour_predicts_here_what_it_predicted_there(
        self,
        name: str,
        flavours: tuple[str, dict[str, Any]],
        settings: Settings,
        store: Store,
        imported: Callable[..., TakenOver],
        tmp_path: Path,
    ) -> None:
        uri, said = flavours
        assert f"{name} 1.0.0" in imported(uri, name).registered
        version = get_version(store, name, "1.0.0")
        assert (version.kind, version.factors) == ("onnx", ("mom_1h", "vol_1d"))
        assert (version.metrics, version.training_params) == ({"ic": 0.5}, {"rows": "200"})
        assert predicted(settings, name, said["row"], tmp_path) == pytest.approx(said[name], rel=1e-5)

    def test_weights_beside_an_onnx_model_come_along(
        self, flavours: tuple[str, dict[str, Any]], imported: Callable[..., TakenOver]
    ) -> None:
        done = imported(flavours[0], "graph")
        assert (sorted(done.registered), done.skipped) == (["graph 1.0.0", "graph 2.0.0"], [])

    def test_a_pickle_of_scikit_learn_is_left_out_with_what_to_do_instead(
        self, flavours: tuple[str, dict[str, Any]], imported: Callable[..., TakenOver]
    ) -> None:
        (skipped,) = imported(flavours[0], "linear").skipped
        assert skipped.startswith(
            "linear 2.0.0: model.pkl: unsupported: a pickle would run as code; save the model with skops"
        )

    def test_a_registry_that_cannot_be_asked(self, imported: Callable[..., TakenOver], tmp_path: Path) -> None:
        with pytest.raises(RequestInvalid, match="MLflow at nonsense://x"):
            imported("nonsense://x")
        with pytest.raises(RequestInvalid, match="there is no such file"):
            imported(f"sqlite:///{tmp_path}/misspelt.db")
        assert not (tmp_path / "misspelt.db").exists()

    def test_a_server_that_is_not_there_is_tried_a_few_times_only(self, imported: Callable[..., TakenOver]) -> None:
        n_calls = 0
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def hang_up() -> None:
                nonlocal n_calls
                with contextlib.suppress(OSError):  # how it ends
                    while True:
                        listening.accept()[0].close()
                        n_calls += 1

            thread = threading.Thread(target=hang_up)
            thread.start()
            try:
                with pytest.raises(RequestInvalid, match=r"MLflow at http://127\.0\.0\.1"):
                    imported(f"http://127.0.0.1:{listening.getsockname()[1]}")
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                thread.join()
        assert 1 <= n_calls <= 4

    def test_the_command_line_imports_and_tells(self, tracking_uri: str, tmp_path: Path) -> None:
        program = "import sys; from mmserver.cli.main import main; main(sys.argv[1:])"
        arguments: list[Any] = [
            "registry",
            "import-mlflow",
            tracking_uri,
            "hybrid",
            "--data-dir",
            tmp_path / "cli",
            "--json",
        ]
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1, done.stderr  # one was skipped
        assert len(json.loads(done.stdout)["registered"]) == 3
        assert [path.name for path in tmp_path.iterdir()] == ["cli"]  # MLflow made no database of its own
