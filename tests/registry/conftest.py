"""A registry on a real store, with small trained models in a format of a test plugin, and a clock that only moves on."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mmserver.catalog.catalog import Actor, Model
from mmserver.catalog.ingest import IngestedGroup, IngestRequest, SourceFile, ingest_group
from mmserver.catalog.leftovers import drop_unfinished
from mmserver.catalog.refreshing import refresh_model
from mmserver.catalog.registering import register_model
from mmserver.catalog.store import Store
from mmserver.catalog.symbols import ALL_SYMBOLS
from mmserver.formats import ModelFormat, ModelSource
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.registry.registering import NewVersion, Registered, register_version
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings
from mmserver.storage.audit import AuditEntry, list_audit
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import open_database
from mmserver.storage.schema import create_database

TEST = Actor("test")
FACTORS = ("momentum", "volume", "spread")

PLUGIN = '''
"""Registers XGBoost's own JSON text under a suffix that no other format has, and keeps what happens."""
from mmserver import ModelFormat, document_from_bytes, hookimpl, model_file_from_document

events = []


def read(source):
    return model_file_from_document(document_from_bytes(source.content), uses_best_iteration=False)


@hookimpl
def mmserver_model_formats():
    return [ModelFormat(name="tiny", suffixes=(".tiny",), read=read), ModelFormat(name="other", suffixes=(), read=read)]


@hookimpl
def mmserver_event(event):
    events.append(event)
'''


@dataclass
class Calendar:
    """The time of day, a second later at every look."""

    moment: datetime = datetime(2026, 11, 20, 14, 3, 22, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


@dataclass
class TinyReader:
    """Reads a tree model with the catalog's own ingestion, in this process; counts what it had to read.

    It remembers what it read: a process that was forked off must not run XGBoost, whose threads it does not have.
    """

    plugins: Plugins
    answers: dict[Any, IngestedGroup]
    n_reads: int = 0

    def read(
        self, source: ModelSource, claim: ModelFormat, *, factors: tuple[str, ...] | None, info: dict[str, Any]
    ) -> IngestedGroup:
        assert claim in self.plugins.model_formats
        self.n_reads += 1
        key = (source.content, factors, str(info))
        if key not in self.answers:
            self.answers[key] = self._ingested(source, factors, info)
        return self.answers[key]

    def _ingested(self, source: ModelSource, factors: tuple[str, ...] | None, info: dict[str, Any]) -> IngestedGroup:
        files = [SourceFile("all_model.json", source.content), SourceFile("all_info.pkl", pickle.dumps(info))]
        if factors:
            files.append(SourceFile("all_factors.txt", "".join(f"{name}\n" for name in factors).encode()))
        group = ingest_group(IngestRequest("all", tuple(files)), self.plugins)
        return msgspec.structs.replace(group, symbol=ALL_SYMBOLS, return_name="")


@dataclass
class Bench:
    """A store and what registers versions in it; what tests do again and again, in one word each."""

    store: Store
    reader: TinyReader
    calendar: Calendar
    contents: dict[int, bytes]
    root: Path
    events: list[Any] = field(default_factory=list)

    def new(self, label: str, seed: int = 0, model_name: str = "hybrid", **more: Any) -> NewVersion:
        options = more.pop("options", {})
        files = {"hybrid.tiny": self.contents[seed], **more.pop("files", {})}
        source = ModelSource(file_name="hybrid.tiny", files=files, options=options)
        return NewVersion(model_name=model_name, label=label, source=source, **{"factors": FACTORS, **more})

    def register(self, label: str, seed: int = 0, model_name: str = "hybrid", **more: Any) -> Registered:
        return register_version(self.store, self.reader, self.new(label, seed, model_name, **more), TEST)

    def read(self, *seeds: int) -> None:
        """Let the reader know these contents, so that forked processes can register them."""
        for seed in seeds:
            new = self.new("1.0.0", seed)
            claim = self.store.plugins.model_format_for(new.source.file_name)
            assert claim is not None
            self.reader.read(new.source, claim, factors=new.factors, info={})

    def register_all(self, *labels: str) -> None:
        """Each with other content."""
        for seed, label in enumerate(labels):
            self.register(label, seed)

    @property
    def model(self) -> Model:
        return self.store.model("hybrid")

    @property
    def served(self) -> str:
        return self.model.serving.label

    def watch(self, seed: int = 0) -> Model:
        """A watched model `alpha` with one group."""
        self.write_watched(seed)
        return register_model(self.store, "alpha", str(self.root / "alpha"), TEST)

    def write_watched(self, seed: int) -> None:
        (self.root / "alpha").mkdir(exist_ok=True)
        (self.root / "alpha" / "BTC_ret_model.json").write_bytes(self.contents[seed])

    def refresh(self) -> str:
        """Looks at the directory again; gives the label of its newest version."""
        clock = [self.store.watches.clock() + 100]
        self.store.watches.clock = lambda: clock[0]

        def wait(seconds: float) -> None:
            clock[0] += seconds

        refresh_model(self.store, "alpha", TEST, wait=wait)
        return self.store.model("alpha").newest_label

    def audit(self) -> list[AuditEntry]:
        """All entries, oldest first."""
        with self.store.database.read() as connection:
            return list(reversed(list_audit(connection, 100_000)))

    def actions(self) -> list[str]:
        return [entry.action for entry in self.audit()]

    def count(self, table: Any) -> int:
        from sqlalchemy import func, select

        with self.store.database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


@pytest.fixture(scope="session")
def contents() -> dict[int, bytes]:
    """Small trained regressors by seed, as XGBoost JSON."""
    import xgboost

    found = {}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(200, 3)).astype(np.float32)
        model = xgboost.XGBRegressor(n_estimators=3, max_depth=2, n_jobs=1, random_state=seed)
        model.fit(rows, rows @ [0.5, -0.2, 0.1 * seed])
        found[seed] = bytes(model.get_booster().save_raw("json"))
    return found


@pytest.fixture(scope="session")
def read_before() -> dict[Any, IngestedGroup]:
    """What readers of all tests have read."""
    return {}


@pytest.fixture(scope="session")
def registry_plugins(tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "tiny.py").write_text(PLUGIN)
    return load_plugins(directory)


@pytest.fixture(scope="session")
def registry_sandbox() -> Iterator[Sandbox]:
    """For watched models."""
    limits = JobLimits(memory_bytes=1 << 30, cpu_s=10, wall_s=20.0)
    with Sandbox("mmserver.catalog.ingest:handlers", {}, n_workers=1, limits=limits) as opened:
        yield opened


@pytest.fixture
def open_bench(
    tmp_path: Path,
    registry_plugins: Plugins,
    registry_sandbox: Sandbox,
    contents: dict[int, bytes],
    read_before: dict[Any, IngestedGroup],
) -> Iterator[Callable[..., Bench]]:
    """Opens a bench on this test's data directory; again for another process or after a restart."""
    opened: list[Store] = []
    calendar = Calendar()

    def open_it(data_dir: Path | None = None, *, read_only: bool = False, **settings: Any) -> Bench:
        data_dir = data_dir or tmp_path / "data"
        data_dir.mkdir(exist_ok=True)
        path = DataDir(data_dir).database_path
        if not path.exists():
            create_database(path, datetime(2026, 1, 1, tzinfo=UTC))
        store = Store(
            settings=Settings(data_dir=data_dir, watch_debounce_s=1.0, **settings),
            database=open_database(path, n_readers=6),
            plugins=registry_plugins,
            sandbox=registry_sandbox,
            read_only=read_only,
            now=calendar,
        )
        if not read_only:
            drop_unfinished(store)
        opened.append(store)
        events = registry_plugins._manager.get_plugin("tiny").events
        events.clear()
        return Bench(store, TinyReader(registry_plugins, read_before), calendar, contents, tmp_path, events)

    yield open_it
    for store in opened:
        store.waiting.close()
        store.database.close()


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    """A bench with nothing registered yet."""
    return open_bench()


@pytest.fixture
def three(bench: Bench) -> Bench:
    """Model `hybrid` with 1.0.0, 1.9.0 and 1.10.0, of trainings 0, 1 and 2, registered in another order."""
    bench.register("1.9.0", 1)
    bench.register("1.10.0", 2)
    bench.register("1.0.0", 0)
    bench.events.clear()
    return bench
