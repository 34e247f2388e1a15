"""`mmserver …` as a script runs it, and small real artifacts to run it on."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
