"""A real store with real small models behind the real WSGI application."""

import csv
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flask
import numpy as np
import pytest
from werkzeug.test import Client

from mmserver.catalog import registering, venues
from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.plugin_loading import load_plugins
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings
from mmserver.storage.database import open_database
from mmserver.storage.schema import create_database
from mmserver.web.blueprints import register_web
from mmserver.web.current import MODEL_READER_KEY, REFUSALS_KEY

HOSTILE = "<script>alert(1)</script>"
FACTORS = ("mom_1h", "vol_1d", HOSTILE)
INFO = {
    "dim": 3,
    "train_start": "2024-01-01",
    "train_end": "2024-12-31",
    "train_samples": 400,
    "metrics": {"ic": 0.0312345678, "rmse": None},
    "note": '"><img src=x onerror=alert(1)>',
}
TEST = Actor("test")


@pytest.fixture(scope="module", autouse=True)
def steady_costs() -> Iterator[None]:
    """Every model takes 20 µs a row, whatever else this machine does: what is quick enough for the quick routes is always."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mmserver.serving.predictors._timed_ns", lambda engine, row: 20_000)
        yield


@dataclass(frozen=True)
class Web:
    """An application, its store, and a client that keeps no cookies."""

    app: flask.Flask
    store: Store
    client: Client
    directory: Path

    def json(self, path: str, **options: Any) -> Any:
        """The JSON body of a GET that must succeed."""
        response = self.client.get(path, **options)
        assert response.status_code == 200, response.text
        return response.json


def write_group(
    directory: Path,
    group_key: str,
    *,
    factors: tuple[str, ...] = FACTORS,
    info: dict[str, Any] | None = None,
    seed: int = 0,
    has_model: bool = True,
) -> None:
    """Write one group's files, the model from a real training."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{group_key}_factors.txt").write_text("\n".join(factors) + "\n")
    rng = np.random.default_rng(seed)
    with (directory / f"{group_key}_ic.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["factor", "ic", "kendall_tau", "n"])
        for dim, factor in enumerate(factors):
            ic = round(float(rng.normal(0, 0.05)), 6)
            writer.writerow([factor, ic, "" if dim == 1 else round(ic * 0.66, 6), 400])
    (directory / f"{group_key}_info.pkl").write_bytes(pickle.dumps(INFO if info is None else info, protocol=4))
    if has_model:
        (directory / f"{group_key}_model.json").write_bytes(model_json(len(factors), seed))


def model_json(n_features: int, seed: int) -> bytes:
    """A small regressor as XGBoost writes it."""
    import xgboost

    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(200, n_features)).astype(np.float32)
    labels = rows[:, 0] + rng.normal(scale=0.1, size=200)
    data = xgboost.DMatrix(rows, label=labels)
    booster = xgboost.train({"max_depth": 2, "nthread": 1, "seed": seed}, data, num_boost_round=4)
    return bytes(booster.save_raw("json"))


@pytest.fixture(scope="session")
def make_web() -> Iterator[Callable[..., Web]]:
    """A function that opens a store under a directory and puts the web layer before it."""
    opened: list[tuple[flask.Flask, Store]] = []

    def make(
        directory: Path,
        *,
        plugins: Any = None,
        plugins_dir: Path | None = None,
        read_only: bool = False,
        **settings: Any,
    ) -> Web:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "mmserver.db"
        if not path.exists():
            create_database(path, datetime.now(UTC))
        chosen = Settings(data_dir=directory, watch_debounce_s=0.0, **settings)
        found = plugins or load_plugins(plugins_dir)
        store = Store(
            settings=chosen,
            database=open_database(path),
            plugins=found,
            sandbox=Sandbox(
                "mmserver.catalog.ingest:handlers",
                {"plugins_dir": str(plugins_dir)} if plugins_dir else {},
                n_workers=2,
            ),
            read_only=read_only,
        )
        app = flask.Flask("mmserver", static_folder=None)
        register_web(app, store, found)
        opened.append((app, store))
        return Web(app, store, app.test_client(use_cookies=False), directory)

    yield make
    for app, store in opened:
        if REFUSALS_KEY in app.extensions:
            app.extensions[REFUSALS_KEY].close()
        app.extensions[MODEL_READER_KEY].close()
        store.close()


@pytest.fixture(scope="session")
def group_writer() -> Callable[..., None]:
    """`write_group`, for tests that make artifacts of their own."""
    return write_group


@pytest.fixture(scope="session")
def xgboost_text() -> Callable[[int, int], bytes]:
    """`model_json`, for models that are registered."""
    return model_json


@pytest.fixture(scope="session")
def web(make_web: Callable[..., Web], tmp_path_factory: pytest.TempPathFactory) -> Web:
    """Shared by tests that change nothing that others look at.

    Model `alpha`: BTCUSDT and ETHUSDT with models, SOLUSDT without one, PEPE/1 refused. Venue `binance-futures`.
    """
    made = make_web(tmp_path_factory.mktemp("web"))
    artifacts = made.directory / "alpha"
    write_group(artifacts, "BTCUSDT_ret_1h", seed=1)
    write_group(artifacts, "ETHUSDT_ret_1h", seed=2)
    write_group(artifacts, "SOLUSDT_ret_1h", seed=3, has_model=False)
    write_group(artifacts, "PEPEUSDT_ret_1h", seed=4, has_model=False)
    (artifacts / "PEPEUSDT_ret_1h_model.pkl").write_bytes(pickle.dumps(threading.Thread.start))
    registering.register_model(made.store, "alpha", str(artifacts), TEST)
    quantiles = made.directory / "binance_futures_quantiles.pkl"
    rows = [
        {"symbol": symbol, "medium_notional_threshold": medium, "large_notional_threshold": 4 * medium}
        for symbol, medium in (("BTCUSDT", 250_000.5), ("ETHUSDT", np.float64(90_000.0)), (HOSTILE, 10))
    ]
    quantiles.write_bytes(pickle.dumps(rows, protocol=4))
    venues.set_quantiles(made.store, "binance-futures", str(quantiles), TEST)
    return made


@pytest.fixture
def changing(make_web: Callable[..., Web], web: Web, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Web]:
    """A model of this test's own in the shared store, named after the test; its directory is `changing.directory`."""
    name = f"own-{abs(hash(request.node.nodeid))}"
    directory = tmp_path / name
    write_group(directory, "BTCUSDT_ret_1h", seed=1)
    registering.register_model(web.store, name, str(directory), TEST)
    yield Web(web.app, web.store, web.client, directory)
    if name in web.store.catalog.models:
        registering.remove_model(web.store, name, TEST)
