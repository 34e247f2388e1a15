"""`mmserver registry sync` and `import`, as a script runs them."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two versions as another program keeps them, one in production, and one that is torn."""
    import numpy as np
    import xgboost

    rows = np.random.default_rng(1).normal(size=(100, 2)).astype(np.float32)
    for n_trees, label in enumerate(("1.0.0", "1.1.0"), start=2):
        version = tmp_path / "tree" / "hybrid" / f"v{label}"
        version.mkdir(parents=True)
        model = xgboost.XGBRegressor(n_estimators=n_trees, max_depth=2, n_jobs=1).fit(rows, rows[:, 0])
        model.get_booster().save_model(version / "model.json")
        (version / "metadata.json").write_text(json.dumps({"version": label, "metrics": {"sharpe": n_trees}}))
    torn = tmp_path / "tree" / "hybrid" / "v1.2.0"
    torn.mkdir()
    (torn / "model.json").write_bytes((version / "model.json").read_bytes()[:-50])
    (tmp_path / "tree/hybrid/production").symlink_to("v1.0.0")
    return tmp_path / "tree"


def test_a_tree_is_imported_and_kept_as_a_directory_again(mmserver: Run, tree: Path, tmp_path: Path) -> None:
    done = mmserver("registry", "import", tree, code=1)
    assert done.stdout.splitlines()[:3] == [
        "registered: hybrid 1.0.0",
        "registered: hybrid 1.1.0",
        "staged: hybrid 1.0.0: Production",
    ]
    assert "skipped: hybrid 1.2.0: model.json: " in done.stdout
    mmserver("registry", "sync", code=2)  # no directory is set
    done = mmserver("registry", "sync", "--registry-dir", "models", "--json")
    assert json.loads(done.stdout)["written"] == ["hybrid/v1.0.0", "hybrid/v1.1.0"]
    assert os.readlink(tmp_path / "models/hybrid/production") == "v1.0.0"
    assert (tmp_path / "models/hybrid/production/model.json").read_bytes() == (
        tree / "hybrid/v1.0.0/model.json"
    ).read_bytes()
    mmserver("registry", "promote", "hybrid", "1.1.0", MMSERVER_REGISTRY_DIR=str(tmp_path / "models"))
    assert os.readlink(tmp_path / "models/hybrid/production") == "v1.1.0"
    assert mmserver("registry", "sync", "--registry-dir", "models").stdout == "nothing to do\n"


def test_what_cannot_be_synced_is_named_and_the_command_fails(mmserver: Run, tree: Path, tmp_path: Path) -> None:
    mmserver("registry", "import", tree, code=1)
    (tmp_path / "models/hybrid/v1.0.0").mkdir(parents=True)
    (tmp_path / "models/hybrid/v1.0.0/mine.txt").write_text("mine")
    done = mmserver("registry", "sync", "--registry-dir", "models", code=1)
    assert "problems: hybrid/v1.0.0: something else is there, and is left alone; move it away" in done.stdout
    assert (tmp_path / "models/hybrid/v1.0.0/mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("file", id="a file"),
        pytest.param("file/models", id="beneath a file"),
        pytest.param("/sys/mmserver", id="where nobody may write"),
    ],
)
def test_a_place_where_no_directory_can_be_is_a_wrong_setting(mmserver: Run, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no directory")
    refused = mmserver("registry", "sync", "--registry-dir", str(tmp_path / place), code=2)
    assert "MMSERVER_REGISTRY_DIR" in refused.stderr
    assert str(tmp_path / place).removesuffix("/models") in refused.stderr


def test_a_directory_that_is_not_there_is_refused(mmserver: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in ("nowhere", "file"):
        assert mmserver("registry", "import", path, code=2).stderr == f"mmserver: {path}: there is no such directory\n"
