"""`mmserver …` as a script runs it, and small real artifacts to run it on."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import run as run_here

COMMAND = Path(sys.executable).with_name("mmserver")
FACTORS = ("mom_1h", "vol_1d")


@pytest.fixture
def mmserver(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """`mmserver …` in a process of its own, in an empty working directory; it ends with the code that is expected."""

    def run(*arguments: str | Path, code: int = 0, **environ: str) -> "subprocess.CompletedProcess[str]":
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MMSERVER_")}
        done = subprocess.run(
            [COMMAND, *map(str, arguments)],
            cwd=tmp_path,
            env={**inherited, "MMSERVER_WATCH_DEBOUNCE_S": "0.1", "MMSERVER_SANDBOX_WORKERS": "1", **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def models() -> list[bytes]:
    """Two small regressors, pickled."""
    import xgboost

    random = np.random.default_rng(1)
    rows = random.normal(size=(100, len(FACTORS))).astype(np.float32)
    return [
        pickle.dumps(xgboost.XGBRegressor(n_estimators=n, max_depth=2, n_jobs=1).fit(rows, rows[:, 0])) for n in (2, 3)
    ]


@pytest.fixture
def write_group(models: list[bytes]) -> Callable[..., None]:
    """Write the four files of a group; `model` says which of the two models."""

    def write(directory: Path, group_key: str, model: int = 0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        files = {
            "factors.txt": "\n".join(FACTORS).encode(),
            "ic.csv": b"factor,ic,kendall_tau\nmom_1h,0.02,0.01\nvol_1d,0.03,0.02\n",
            "info.pkl": pickle.dumps({"dim": 2, "train_samples": 100}),
            "model.pkl": models[model],
        }
        for name, content in files.items():
            (directory / f"{group_key}_{name}").write_bytes(content)

    return write


@pytest.fixture(scope="session")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with versions 1.0.0, in production, and 2.0.0 of `hybrid`; copy it before changing it."""
    import xgboost

    place = tmp_path_factory.mktemp("two_versions")
    random = np.random.default_rng(1)
    rows = random.normal(size=(100, len(FACTORS))).astype(np.float32)
    for n_trees, label in ((2, "1.0.0"), (3, "2.0.0")):
        model = xgboost.XGBRegressor(n_estimators=n_trees, max_depth=2, n_jobs=1).fit(rows, rows[:, 0])
        (place / "model.json").write_bytes(bytes(model.get_booster().save_raw("json")))
        run_here("registry", "register", "hybrid", label, place / "model.json", "--data-dir", place / "data")
    run_here("registry", "promote", "hybrid", "1.0.0", "--data-dir", place / "data")
    return place / "data"
