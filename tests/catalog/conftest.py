"""A real store on a data directory of its own, real artifact directories with trained models, and a clock that only the test moves."""

import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor, Catalog, Group, Model
from mmserver.catalog.groups import GroupDetail, find_group, group_detail
from mmserver.catalog.leftovers import drop_unfinished
from mmserver.catalog.refreshing import RefreshResult, poll_model, refresh_model
from mmserver.catalog.registering import register_model
from mmserver.catalog.store import Store
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings
from mmserver.storage.audit import AuditEntry, list_audit
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import open_database
from mmserver.storage.schema import create_database

TEST = Actor("test")
FACTORS = ("momentum", "volume", "spread")
SETTLE_S = 1.0


@dataclass
class Clock:
    """Monotonic seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Calendar:
    """The time of day, a second later at every look, so that labels tell what came first."""

    moment: datetime = datetime(2026, 11, 20, 14, 3, 22, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


@dataclass
class Artifacts:
    """One directory of artifacts as producers write it; the models are trained ones, told apart by their seed."""

    path: Path
    model_pickles: dict[int, bytes]

    def write(self, relpath: str, data: bytes) -> Path:
        path = self.path / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def write_group(
        self,
        key: str,
        seed: int = 0,
        *,
        factors: tuple[str, ...] = FACTORS,
        info: dict[str, Any] | None = None,
        ic: float = 0.02,
        without: tuple[str, ...] = (),
    ) -> None:
        """The four files of a group."""
        rows = [f"{factor},{ic + dim / 100},{ic / 2 + dim / 100}" for dim, factor in enumerate(factors)]
        files = {
            "factors.txt": "".join(f"{factor}\n" for factor in factors).encode(),
            "ic.csv": "\n".join(["factor,ic,kendall_tau", *rows, ""]).encode(),
            "info.pkl": pickle.dumps(info if info is not None else self.info(seed)),
            "model.pkl": self.model_pickles[seed],
        }
        for name, data in files.items():
            if name not in without:
                self.write(f"{key}_{name}", data)

    @staticmethod
    def info(seed: int) -> dict[str, Any]:
        """What the producer says of the training with that seed."""
        return {"dim": 3, "train_start": "2024-01-01", "train_end": "2024-06-30", "train_samples": 300, "seed": seed}

    def delete_group(self, key: str) -> None:
        for path in self.path.rglob(f"{key}_*"):
            path.unlink()


@dataclass
class Opened:
    """A store with one artifact directory; what tests do again and again, in one word each."""

    store: Store
    artifacts: Artifacts
    clock: Clock
    calendar: Calendar
    name: str = "alpha"

    @property
    def model(self) -> Model:
        return self.store.model(self.name)

    @property
    def catalog(self) -> Catalog:
        return self.store.catalog

    def register(self) -> Model:
        return register_model(self.store, self.name, str(self.artifacts.path), TEST)

    def poll(self, after_s: float = SETTLE_S) -> RefreshResult | None:
        """One look of the scheduler, `after_s` after the one before."""
        self.clock.now += after_s
        return poll_model(self.store, self.name)

    def settle(self) -> Model:
        """As many looks as any change needs."""
        for _ in range(7):
            self.poll()
        return self.model

    def refresh(self, **options: Any) -> RefreshResult:
        return refresh_model(self.store, self.name, TEST, wait=self.clock.wait, **options)

    def group(self, symbol: str) -> Group:
        return find_group(self.model.serving, symbol)

    def detail(self, symbol: str) -> GroupDetail:
        return group_detail(self.store, self.group(symbol))

    def seed(self, symbol: str) -> Any:
        """Which training is served for the symbol."""
        return self.detail(symbol).record.info["seed"]

    def refusals(self) -> dict[str, str]:
        return {refusal.group_key: refusal.reason for refusal in self.model.refusals}

    def audit(self) -> list[AuditEntry]:
        """All entries, oldest first."""
        with self.store.database.read() as connection:
            return list(reversed(list_audit(connection, 10_000)))

    def actions(self) -> list[str]:
        return [entry.action for entry in self.audit()]


@dataclass
class StoreFactory:
    """Opens and closes stores; the guarded worker is shared by all, as it keeps nothing between jobs."""

    data_dir: Path
    template: Path
    plugins: Plugins
    sandbox: Sandbox
    opened: list[Store] = field(default_factory=list)

    def __call__(self, *, calendar: Calendar | None = None, sandbox: Sandbox | None = None, **settings: Any) -> Store:
        path = DataDir(self.data_dir).database_path
        if not path.exists():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.template, path)
        settings.setdefault("watch_debounce_s", SETTLE_S)
        store = Store(
            settings=Settings(data_dir=self.data_dir, sandbox_workers=2, **settings),
            database=open_database(path, n_readers=6),
            plugins=self.plugins,
            sandbox=sandbox or self.sandbox,
            now=calendar or Calendar(),
        )
        drop_unfinished(store)
        self.opened.append(store)
        return store

    def close(self, store: Store) -> None:
        """All of it but the shared worker."""
        self.opened.remove(store)
        store.waiting.close()
        store.database.close()


@pytest.fixture(scope="session")
def model_pickles() -> dict[int, bytes]:
    """Small trained regressors by seed, pickled as the producer does it."""
    import xgboost

    pickles = {}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(300, 3)).astype(np.float32)
        rows[rng.random(rows.shape) < 0.05] = np.nan
        labels = np.nan_to_num(rows) @ [0.5, -0.2, 0.1 * seed] + rng.normal(scale=0.1, size=300)
        model = xgboost.XGBRegressor(n_estimators=4, max_depth=2, n_jobs=1, random_state=seed)
        pickles[seed] = pickle.dumps(model.fit(rows, labels))
    return pickles


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    return load_plugins()


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    limits = JobLimits(memory_bytes=1 << 30, cpu_s=10, wall_s=20.0)
    with Sandbox("mmserver.catalog.ingest:handlers", {}, n_workers=2, limits=limits) as opened:
        yield opened


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "mmserver.db"
    create_database(path, datetime(2026, 1, 1, tzinfo=UTC))
    return path


@pytest.fixture
def open_stores(tmp_path: Path, empty_database: Path, plugins: Plugins, sandbox: Sandbox) -> Iterator[StoreFactory]:
    """Opens stores on this test's data directory, and closes those left open."""
    factory = StoreFactory(tmp_path / "data", empty_database, plugins, sandbox)
    yield factory
    for store in list(factory.opened):
        factory.close(store)


@pytest.fixture(scope="session")
def open_beneath(
    empty_database: Path, plugins: Plugins, sandbox: Sandbox, model_pickles: dict[int, bytes]
) -> Iterator[Callable[..., Opened]]:
    """Opens a store beneath a directory, with an empty artifact directory, for tests that share one."""
    opened: list[tuple[StoreFactory, Store]] = []

    def open_it(directory: Path, **settings: Any) -> Opened:
        factory = StoreFactory(directory / "data", empty_database, plugins, sandbox)
        artifacts = Artifacts(directory / "alpha", model_pickles)
        artifacts.path.mkdir()
        clock, calendar = Clock(), Calendar()
        store = factory(calendar=calendar, **settings)
        store.watches.clock = clock
        opened.append((factory, store))
        return Opened(store, artifacts, clock, calendar)

    yield open_it
    for factory, store in opened:
        factory.close(store)


@pytest.fixture
def make_artifacts(tmp_path: Path, model_pickles: dict[int, bytes]) -> Callable[[str], Artifacts]:
    """An empty artifact directory of that name."""

    def make(name: str) -> Artifacts:
        path = tmp_path / "artifacts" / name
        path.mkdir(parents=True)
        return Artifacts(path, model_pickles)

    return make


@pytest.fixture
def artifacts(make_artifacts: Callable[[str], Artifacts]) -> Artifacts:
    return make_artifacts("alpha")


@pytest.fixture
def open_alpha(open_stores: StoreFactory, artifacts: Artifacts) -> Callable[..., Opened]:
    """Opens a store that knows the artifact directory, nothing registered yet; again after `close` for a restart."""

    def open_it(calendar: Calendar | None = None, **settings: Any) -> Opened:
        calendar = calendar or Calendar()
        store = open_stores(calendar=calendar, **settings)
        clock = Clock()
        store.watches.clock = clock
        return Opened(store, artifacts, clock, calendar)

    return open_it


@pytest.fixture
def alpha(open_alpha: Callable[..., Opened]) -> Opened:
    """A store with nothing registered yet."""
    return open_alpha()


@pytest.fixture
def registered(alpha: Opened) -> Opened:
    """Model `alpha` with BTC, ETH, SOL and XRP, of trainings 0, 1, 2 and 3, and two looks since."""
    for seed, symbol in enumerate(("BTC", "ETH", "SOL", "XRP")):
        alpha.artifacts.write_group(f"{symbol}_ret_1h", seed)
    alpha.register()
    alpha.poll(5.0)
    return alpha


@pytest.fixture
def restart(open_stores: StoreFactory, open_alpha: Callable[..., Opened]) -> Callable[..., Opened]:
    """Close the store and open another on the same data directory."""

    def again(opened: Opened, **settings: Any) -> Opened:
        open_stores.close(opened.store)
        return open_alpha(opened.calendar, **settings)

    return again
