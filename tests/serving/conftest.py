"""A prediction service on a real store, with trained models and models of a test plugin whose outputs a test can choose."""

import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor, Group
from mmserver.catalog.groups import find_group
from mmserver.catalog.refreshing import refresh_model
from mmserver.catalog.registering import register_model, remove_model
from mmserver.catalog.store import Store
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
from mmserver.serving.predictions import Asked, Prediction, Resolved, Serving
from mmserver.settings import Settings
from mmserver.storage.database import open_database
from mmserver.storage.schema import create_database

TEST = Actor("test")
FACTORS = ("momentum", "volume", "spread")

PLUGIN = '''
"""Linear models whose outputs a test chooses: `_weights.json` has a table of weights for each output."""
import json

import numpy as np

from mmserver import ArtifactFormat, ModelFile, hookimpl

switches = {}  # in the server's process only: what a test makes go wrong there


def parse(artifact):
    document = json.loads(artifact.data)
    return ModelFile(kind="weights", content=artifact.data, n_features=len(document["factors"]), n_outputs=1,
                     objective=document.get("objective", ""), library_version="1",
                     feature_names=tuple(document["factors"]), summary=document.get("summary", {}))


class WeightsPredictor:
    def __init__(self, model):
        document = json.loads(model.content)
        switches.get("loading", lambda document: None)(document)
        self.n_features = model.n_features
        self.size_bytes = document.get("size_bytes", 1000)
        self.accepts_missing = document.get("accepts_missing", False)
        self.weights = {name: np.array(rows, np.float32) for name, rows in document["outputs"].items()}

    def predict(self, rows):
        switches.get("predicting", lambda rows: None)(rows)
        return {name: (rows[:, None, :] * weights).sum(axis=2, dtype=np.float32) for name, weights in self.weights.items()}


@hookimpl
def mmserver_formats():
    return [ArtifactFormat(name="weights", suffix="_weights.json", role="model", parse=parse)]


@hookimpl
def mmserver_load_predictor(model):
    return WeightsPredictor(model) if model.kind == "weights" else None


@hookimpl
def mmserver_load_interpreter(model, info):
    return switches.get("interpreting", lambda model, info: None)(model, info)
'''


@dataclass
class Clock:
    """Monotonic seconds that only tests move."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Calendar:
    """The time of day, a second later at every look."""

    moment: datetime = datetime(2026, 11, 20, 14, 3, 22, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


@dataclass
class Desk:
    """A prediction service and the artifact directories that it serves; what tests do again and again, in one word each."""

    root: Path
    store: Store
    serving: Serving
    switches: dict[str, Any]
    clock: Clock
    model_pickles: dict[int, bytes]
    directories: dict[str, Path] = field(default_factory=dict)

    def write_trees(self, model_name: str, key: str, seed: int = 0, info: dict[str, Any] | None = None) -> None:
        """A trained regressor of three factors."""
        self._write(model_name, key, "model.pkl", self.model_pickles[seed], info)
        (self.directory(model_name) / f"{key}_factors.txt").write_text("\n".join(FACTORS) + "\n")

    def write_weights(
        self,
        model_name: str,
        key: str,
        outputs: dict[str, list[list[float]]] | None = None,
        *,
        factors: tuple[str, ...] = FACTORS,
        info: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """A linear model: one row of weights for each number of each output; the first factor itself, if not said otherwise."""
        outputs = outputs or {"prediction": [[1.0, *[0.0] * (len(factors) - 1)]]}
        document = {"factors": factors, "outputs": outputs, **more}
        self._write(model_name, key, "weights.json", json.dumps(document).encode(), info)

    def directory(self, model_name: str) -> Path:
        path = self.directories.setdefault(model_name, self.root / model_name)
        path.mkdir(exist_ok=True)
        return path

    def register(self, model_name: str = "alpha") -> None:
        register_model(self.store, model_name, str(self.directory(model_name)), TEST)

    def refresh(self, model_name: str = "alpha") -> None:
        self.clock.now += 10
        refresh_model(self.store, model_name, TEST, wait=self.clock.wait)

    def remove(self, model_name: str) -> None:
        remove_model(self.store, model_name, TEST)

    def delete(self, model_name: str, key: str) -> None:
        for path in self.directory(model_name).glob(f"{key}_*"):
            path.unlink()

    def group(self, symbol: str = "BTC", model_name: str = "alpha") -> Group:
        return find_group(self.store.model(model_name).serving, symbol)

    def resolved(self, symbol: str = "BTC", model_name: str = "alpha") -> Resolved:
        return self.serving.resolve(symbol, model_name)

    def predict(self, features: Any, symbol: str = "BTC", model_name: str | None = "alpha", **more: Any) -> Prediction:
        return self.serving.predict(Asked(symbol, features, model_name, **more))

    def _write(self, model_name: str, key: str, suffix: str, data: bytes, info: dict[str, Any] | None) -> None:
        directory = self.directory(model_name)
        (directory / f"{key}_{suffix}").write_bytes(data)
        if info is not None:
            (directory / f"{key}_info.pkl").write_bytes(pickle.dumps(info))


@pytest.fixture(scope="session")
def model_pickles() -> dict[int, bytes]:
    """Small trained regressors by seed, pickled as the producer does it."""
    import xgboost

    pickles = {}
    for seed in range(3):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(300, 3)).astype(np.float32)
        rows[rng.random(rows.shape) < 0.05] = np.nan
        labels = np.nan_to_num(rows) @ [0.5, -0.2, 0.1 * seed] + rng.normal(scale=0.1, size=300)
        model = xgboost.XGBRegressor(n_estimators=40, max_depth=3, n_jobs=1, random_state=seed)
        pickles[seed] = pickle.dumps(model.fit(rows, labels))
    return pickles


@pytest.fixture(scope="session")
def test_plugins_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "weights.py").write_text(PLUGIN)
    return directory


@pytest.fixture(scope="session")
def desk_plugins(test_plugins_dir: Path) -> Plugins:
    return load_plugins(test_plugins_dir)


@pytest.fixture(scope="session")
def desk_sandbox(test_plugins_dir: Path) -> Iterator[Sandbox]:
    limits = JobLimits(memory_bytes=1 << 30, cpu_s=10, wall_s=20.0)
    options = {"plugins_dir": str(test_plugins_dir)}
    with Sandbox("mmserver.catalog.ingest:handlers", options, n_workers=1, limits=limits) as opened:
        yield opened


@pytest.fixture
def switches(desk_plugins: Plugins) -> Iterator[dict[str, Any]]:
    """What the test plugin does in this process: `loading`, `predicting`, `interpreting`, each a function."""
    plugin: ModuleType = desk_plugins._manager.get_plugin("weights")
    found: dict[str, Any] = plugin.switches
    found.clear()
    yield found
    found.clear()


@pytest.fixture
def open_desk(
    tmp_path: Path,
    desk_plugins: Plugins,
    desk_sandbox: Sandbox,
    switches: dict[str, Any],
    model_pickles: dict[int, bytes],
) -> Iterator[Callable[..., Desk]]:
    """Opens a desk on this test's data directory; again for another process or after a restart."""
    opened: list[Store] = []

    def open_it(*, read_only: bool = False, **settings: Any) -> Desk:
        data_dir = tmp_path / "data"
        data_dir.mkdir(exist_ok=True)
        path = data_dir / "state.db"
        if not path.exists():
            create_database(path, datetime(2026, 1, 1, tzinfo=UTC))
        store = Store(
            settings=Settings(data_dir=data_dir, **settings),
            database=open_database(path, n_readers=12),
            plugins=desk_plugins,
            sandbox=desk_sandbox,
            read_only=read_only,
            now=Calendar(),
        )
        opened.append(store)
        clock = Clock()
        store.watches.clock = clock
        return Desk(tmp_path, store, Serving(store), switches, clock, model_pickles)

    yield open_it
    for store in opened:
        store.waiting.close()
        store.database.close()


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    """A desk with nothing registered yet."""
    return open_desk()
