"""Importing from a real MLflow registry in a SQLite file; MLflow writes it in a process of its own."""

import importlib.util
import json
import subprocess
import sys
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

    def test_a_registry_that_cannot_be_asked(self, imported: Callable[..., TakenOver]) -> None:
        with pytest.raises(RequestInvalid, match="MLflow at nonsense://x"):
            imported("nonsense://x")

    def test_the_command_line_imports_and_tells(self, tracking_uri: str, tmp_path: Path) -> None:
        run = "import sys; from mmserver.cli.main import main; main(sys.argv[1:])"
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
            [sys.executable, "-c", run, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1, done.stderr  # one was skipped
        assert len(json.loads(done.stdout)["registered"]) == 3
        assert [path.name for path in tmp_path.iterdir()] == ["cli"]  # MLflow made no database of its own
