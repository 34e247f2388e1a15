"""What a running server survives: torn and hostile files, vanished directories, and `kill -9` at any moment."""

import os
import pickle
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

N_GROUPS = 105
"""More than one batch, so that some are in the database before the rest is read."""


class Hostile:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


def model_text(server: Any, model_name: str, symbol: str) -> str:
    text: str = server.get(f"/api/models/{model_name}/model/{symbol}")["payload"]["model_json"]
    return text


@pytest.mark.parametrize("kind", ["torn", "hostile", "cyclic json", "fifo", "unreadable"])
def test_a_bad_file_leaves_the_last_good_content_served_and_its_reason_visible(
    server: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any], kind: str
) -> None:
    name = f"bad-{kind.replace(' ', '-')}"
    directory = tmp_path / "artifacts"
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 0)
    artifacts.write(directory, "ETHUSDT_mid_chg_1m", 0, form="json")
    server.register(name, directory)
    good = model_text(server, name, "BTCUSDT")
    path = directory / "BTCUSDT_mid_chg_1m_model.pkl"
    mark = tmp_path / "mark"
    if kind == "torn":
        path.write_bytes(artifacts.pickles[1][:-1000])
    elif kind == "hostile":
        artifacts.put(path, pickle.dumps(Hostile(mark)))
    elif kind == "cyclic json":
        path.unlink()
        text = artifacts.texts[1].replace(b'"left_children":[1', b'"left_children":[0', 1)
        assert text != artifacts.texts[1]
        artifacts.put(directory / "BTCUSDT_mid_chg_1m_model.json", text)
    elif kind == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        path.unlink()
        path.symlink_to(tmp_path / "nowhere")
    until(lambda: server.item(name)["status"] == "stale", "the bad file is noticed")
    assert model_text(server, name, "BTCUSDT") == good
    page = server.client.get(f"/ui/models/{name}").text
    assert "BTCUSDT_mid_chg_1m" in page.partition("Refused")[2]
    assert not mark.exists()
    readiness = server.client.get("/readyz")
    assert (readiness.status_code, readiness.json()["status"]) == (200, "degraded")

    # Its neighbour is not held back, and the next good file heals it.
    artifacts.write(directory, "ETHUSDT_mid_chg_1m", 2, form="json")
    until(lambda: model_text(server, name, "ETHUSDT") != good, "the neighbour is refreshed")
    if path.is_symlink() or path.is_fifo():
        path.unlink()
    (directory / "BTCUSDT_mid_chg_1m_model.json").unlink(missing_ok=True)
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 1)
    until(lambda: model_text(server, name, "BTCUSDT") != good, "the next good file is served")
    assert server.item(name)["status"] == "ok"
    assert server.client.delete(f"/api/models/{name}").status_code == 204


def test_a_refresh_by_hand_says_what_is_wrong_and_keeps_what_is_served(
    server: Any, artifacts: Any, tmp_path: Path
) -> None:
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m", 0)
    server.register("by-hand", tmp_path)
    good = model_text(server, "by-hand", "BTCUSDT")
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_5m", 1)
    refused = server.client.post("/api/models/by-hand/refresh")
    assert (refused.status_code, refused.json()["code"]) == (400, "symbol_ambiguous")
    item = server.item("by-hand")
    assert item["status"] == "stale"
    assert "BTCUSDT_mid_chg_1m and BTCUSDT_mid_chg_5m" in item["error"]
    assert model_text(server, "by-hand", "BTCUSDT") == good
    for path in tmp_path.glob("*_5m_*"):
        path.unlink()
    assert server.client.post("/api/models/by-hand/refresh").status_code == 200
    assert server.item("by-hand")["status"] == "ok"


def test_a_vanished_directory_freezes_the_model_and_empties_nothing(
    server: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    directory = tmp_path / "artifacts"
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 0)
    server.register("vanishing", directory)
    good = model_text(server, "vanishing", "BTCUSDT")
    directory.rename(tmp_path / "elsewhere")
    until(lambda: server.item("vanishing")["status"] == "frozen", "the loss is noticed")
    assert model_text(server, "vanishing", "BTCUSDT") == good
    (tmp_path / "elsewhere").rename(directory)
    until(lambda: server.item("vanishing")["status"] == "ok", "the directory is back")


def test_readers_see_one_good_version_or_the_next_while_a_file_grows(
    server: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """The model file is written in place, piece by piece; nobody gets an error or a third state."""
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m", 0)
    server.register("growing", tmp_path)
    old = model_text(server, "growing", "BTCUSDT")
    seen: list[str] = []
    stop = threading.Event()

    def read() -> None:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            while not stop.is_set():
                answer = client.get("/api/models/growing/model/BTCUSDT")
                seen.append(answer.json()["payload"]["model_json"] if answer.status_code == 200 else answer.text)

    reader = threading.Thread(target=read)
    reader.start()
    content = artifacts.pickles[1]
    with (tmp_path / "BTCUSDT_mid_chg_1m_model.pkl").open("wb", buffering=0) as file:
        for start in range(0, len(content), len(content) // 12 + 1):
            file.write(content[start : start + len(content) // 12 + 1])
            stop.wait(0.1)
    until(lambda: model_text(server, "growing", "BTCUSDT") != old, "the whole file is served")
    stop.set()
    reader.join(60)
    new = model_text(server, "growing", "BTCUSDT")
    assert set(seen) <= {old, new}
    assert seen[0] == old


# --- kill -9 ------------------------------------------------------------------------------------------------------------


def is_whole(server: Any, model_name: str) -> bool:
    """Whether the model is there, in full; False if it is not there at all. Anything between fails."""
    found = server.client.get(f"/api/models/{model_name}/symbols")
    actions = server.audit(model_name)
    if found.status_code == 404:
        assert actions == []
        return False
    assert actions[0] == "model.registered"
    for entry in found.json()["symbols"]:
        assert model_text(server, model_name, entry["symbol"])
    return True


def test_kill_9_during_registration_leaves_all_or_nothing(servers: Any, artifacts: Any, tmp_path: Path) -> None:
    directory = tmp_path / "artifacts"
    for index in range(N_GROUPS):
        artifacts.write(directory, f"C{index:03}USDT_mid_chg_1m", index % 3)
    data_dir = tmp_path / "state"
    acknowledged = 0
    random_ = random.Random(7)
    for attempt in range(4):
        server = servers.start(data_dir=data_dir)
        name = f"killed-{attempt}"
        answers: list[int] = []

        def register(url: str = server.url, name: str = name, answers: list[int] = answers) -> None:
            body = {"model_name": name, "root_path": str(directory)}
            try:
                answers.append(httpx.post(f"{url}/api/models", json=body, timeout=60, trust_env=False).status_code)
            except httpx.HTTPError:
                return

        client = threading.Thread(target=register)
        client.start()
        client.join(0.3 + 1.2 * random_.random() if attempt < 3 else 60)
        server.kill()
        client.join(60)

        again = servers.start(data_dir=data_dir)
        whole = is_whole(again, name)
        if answers == [201]:
            assert whole, "an acknowledged registration is lost"
            acknowledged += 1
        if whole:
            assert again.item(name)["group_count"] == N_GROUPS
        else:
            assert again.register(name, directory)["group_count"] == N_GROUPS  # nothing half there is in its way
        assert again.query("PRAGMA foreign_key_check") == []
        assert again.stop() == 0
    assert acknowledged >= 1


def test_kill_9_during_refresh_loses_no_acknowledged_version(servers: Any, artifacts: Any, tmp_path: Path) -> None:
    directory = tmp_path / "artifacts"
    keys = [f"C{index:03}USDT_mid_chg_1m" for index in range(N_GROUPS)]
    for key in keys:
        artifacts.write(directory, key, 0)
    data_dir = tmp_path / "state"
    server = servers.start(data_dir=data_dir, MMSERVER_WATCH_ENABLED="false")
    server.register("refreshed", directory)
    random_ = random.Random(11)
    for attempt in range(3):
        before = server.item("refreshed")["version"]
        for key in keys:
            artifacts.write(directory, key, (attempt + 1) % 3)
        answers: list[Any] = []

        def refresh(url: str = server.url, answers: list[Any] = answers) -> None:
            try:
                answer = httpx.post(f"{url}/api/models/refreshed/refresh", timeout=60, trust_env=False)
                answers.append(answer.json())
            except httpx.HTTPError:
                return

        client = threading.Thread(target=refresh)
        client.start()
        client.join(0.2 + 1.5 * random_.random())
        server.kill()
        client.join(60)

        server = servers.start(data_dir=data_dir, MMSERVER_WATCH_ENABLED="false")
        item = server.item("refreshed")
        n_refreshed = server.audit("refreshed").count("model.refreshed")
        n_versions = len(server.get("/api/models/refreshed/versions")["items"])
        assert n_versions == n_refreshed + 1
        if answers:
            assert item["version"] == answers[0]["version"]
        texts = {model_text(server, "refreshed", key.partition("_")[0]) for key in keys[::20]}
        assert len(texts) == 1, "groups of two generations are served as one version"
        if item["version"] == before:
            assert server.client.post("/api/models/refreshed/refresh").json()["changed"]
        assert server.query("PRAGMA foreign_key_check") == []
    assert server.stop() == 0


def test_a_removed_directory_does_not_keep_the_server_from_starting(
    servers: Any, artifacts: Any, tmp_path: Path
) -> None:
    artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m")
    server = servers.start(data_dir=tmp_path / "state")
    server.register("homeless", tmp_path / "artifacts")
    good = model_text(server, "homeless", "BTCUSDT")
    assert server.stop() == 0
    shutil.rmtree(tmp_path / "artifacts")
    again = servers.start(data_dir=tmp_path / "state")
    assert model_text(again, "homeless", "BTCUSDT") == good
