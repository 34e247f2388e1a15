"""Snapshots beside a running server, and serving from one file alone."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

PATHS = (
    "/api/models",
    "/api/models/alpha",
    "/api/models/alpha/symbols",
    "/api/models/alpha/factors",
    "/api/models/alpha/symbols/BTCUSDT",
    "/api/models/alpha/model/BTCUSDT",
    "/api/models/alpha/model/BTCUSDT?format=manifest",
    "/api/models/alpha/versions",
    "/api/venues",
    "/api/venues/gate-futures/quantiles",
    "/api/venues/gate-futures/quantiles/BTCUSDT",
)
PAGE_BYTES = 4096


@pytest.fixture
def taken(
    servers: Any, artifacts: Any, tmp_path: Path, mmserver: Callable[..., Any]
) -> tuple[Path, dict[str, Any], list[str]]:
    """A snapshot taken beside a running server, what that server answered, and the two versions that it knew; nothing
    else is left of it."""
    import pickle

    directory = tmp_path / "artifacts"
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 0)
    server = servers.start(data_dir=tmp_path / "state")
    server.register("alpha", directory)
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 1)
    assert server.client.post("/api/models/alpha/refresh").status_code == 200
    row = {"symbol": "BTCUSDT", "medium_notional_threshold": 1.5, "large_notional_threshold": 2}
    (tmp_path / "q.pkl").write_bytes(pickle.dumps([row]))
    put = server.client.put("/api/venues/gate-futures/quantiles", json={"pkl_path": str(tmp_path / "q.pkl")})
    assert put.status_code == 200
    answers = {path: server.get(path) for path in PATHS}
    versions = [item["version"] for item in server.get("/api/models/alpha/versions")["items"]]
    path = Path(mmserver("snapshot", "create", "--data-dir", tmp_path / "state").stdout.strip())
    assert path.parent == tmp_path / "state/snapshots"
    assert "is whole" in mmserver("snapshot", "verify", path).stdout
    assert server.stop() == 0
    kept = path.rename(tmp_path / "one.snapshot")
    shutil.rmtree(directory)
    return kept, answers, versions


@pytest.mark.parametrize("workers", ["1", "2"])
def test_one_file_serves_everything_and_changes_nothing(
    servers: Any, tmp_path: Path, taken: tuple[Path, dict[str, Any], list[str]], workers: str
) -> None:
    path, answers, versions = taken
    shutil.rmtree(tmp_path / "state")
    content = path.read_bytes()
    path.chmod(0o444)
    server = servers.start("--snapshot", path, "--read-only", "--workers", workers, data_dir=tmp_path / "unused")
    for asked, answer in answers.items():
        assert server.get(asked) == answer, asked
    old = server.get("/api/models/alpha/model/BTCUSDT", params={"version": versions[-1]})
    assert old["payload"] != answers["/api/models/alpha/model/BTCUSDT"]["payload"]
    etag = server.client.get("/api/models/alpha/model/BTCUSDT").headers["ETag"]
    known = server.client.get("/api/models/alpha/model/BTCUSDT", headers={"If-None-Match": etag})
    assert known.status_code == 304
    for page in ("/ui/", "/ui/models/alpha", "/ui/models/alpha/symbols/BTCUSDT", "/ui/venues/gate-futures", "/readyz"):
        assert server.client.get(page).status_code == 200, page

    body: dict[str, Any] = {"model_name": "beta", "root_path": str(tmp_path)}
    refused = [
        server.client.post("/api/models", json=body),
        server.client.delete("/api/models/alpha"),
        server.client.post("/api/models/alpha/refresh"),
        server.client.post("/api/models/alpha/rollback", json={"version": versions[-1]}),
        server.client.put("/api/venues/gate-futures/quantiles", json={"pkl_path": str(tmp_path / "q.pkl")}),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(403, "read_only")] * 5
    assert server.stop() == 0
    assert path.read_bytes() == content
    assert not (tmp_path / "unused").exists()
    assert sorted(tmp_path.glob("one.snapshot*")) == [path]


def test_a_restored_snapshot_is_the_state_of_its_moment(
    servers: Any, tmp_path: Path, taken: tuple[Path, dict[str, Any], list[str]], mmserver: Callable[..., Any]
) -> None:
    path, answers, _ = taken
    server = servers.start(data_dir=tmp_path / "state", MMSERVER_WATCH_ENABLED="false")
    assert server.client.delete("/api/models/alpha").status_code == 204
    refused = mmserver("snapshot", "restore", path, "--data-dir", tmp_path / "state", check=False)
    assert refused.returncode == 3
    assert "another mmserver is using" in refused.stderr
    assert server.stop() == 0

    restored = mmserver("snapshot", "restore", path, "--data-dir", tmp_path / "state")
    assert "the database that was there is" in restored.stdout
    again = servers.start(data_dir=tmp_path / "state", MMSERVER_WATCH_ENABLED="false")
    for asked, answer in answers.items():
        assert again.get(asked) == answer, asked
    assert list((tmp_path / "state").glob("state.db.broken-*"))


def test_a_damaged_snapshot_is_named_and_not_served(
    servers: Any, tmp_path: Path, taken: tuple[Path, dict[str, Any], list[str]], mmserver: Callable[..., Any]
) -> None:
    path, _, _ = taken
    content = bytearray(path.read_bytes())
    for end in range(PAGE_BYTES, len(content) + 1, PAGE_BYTES):  # a single byte may be one that SQLite does not use
        content[end - 1] ^= 0xFF
    path.write_bytes(content)
    found = mmserver("snapshot", "verify", path, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert str(path) in found.stderr
    path.write_bytes(b"no snapshot")
    server = servers.start("--snapshot", path, "--read-only", wait=False)
    assert server.process.wait(60) not in (0, 1)
    assert str(path) in server.log


def test_each_change_is_in_a_snapshot_soon_and_the_oldest_go(
    servers: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any], mmserver: Callable[..., Any]
) -> None:
    artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m")
    server = servers.start(data_dir=tmp_path / "state", MMSERVER_SNAPSHOT_INTERVAL_S="0.3", MMSERVER_SNAPSHOT_KEEP="2")

    def newest_count() -> int:
        """How many models the newest snapshot has; -1 while there is none."""
        there = [path for path in (tmp_path / "state/snapshots").glob("*") if ".tmp" not in path.name]
        if not there:
            return -1
        with closing(sqlite3.connect(f"file:{max(there)}?mode=ro", uri=True)) as connection:
            count: int = connection.execute("SELECT count(*) FROM models").fetchone()[0]
        return count

    for n_models, name in enumerate(("alpha", "beta", "gamma"), start=1):
        server.register(name, tmp_path / "artifacts")
        until(lambda n_models=n_models: newest_count() == n_models, f"a snapshot with {name}")
    assert server.stop() == 0
    listed = json.loads(mmserver("snapshot", "list", "--data-dir", tmp_path / "state", "--json").stdout)["items"]
    assert [row["n_models"] for row in listed] == [3, 2]
    assert "is whole" in mmserver("snapshot", "verify", listed[0]["path"]).stdout
