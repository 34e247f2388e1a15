"""What is in production under attack, on a real server: it is not deleted, not retired, and never gone, whatever comes at once."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

ROOT = "/api/ml/registry/models"
VERSIONS = ("1.0.0", "1.1.0", "1.2.0")
N_THREADS = 8
N_CHANGES = 40
"""Of each thread."""


@pytest.fixture(scope="module")
def server(shared_servers: Any) -> Any:
    return shared_servers.start()


def register(client: httpx.Client, name: str, version: str, content: bytes) -> httpx.Response:
    files = {"file": ("model.json", content)}
    return client.post(ROOT, data={"name": name, "version": version}, files=files)


def three(server: Any, artifacts: Any, name: str) -> str:
    """A model of three versions, the first in production; its address."""
    for version, content in zip(VERSIONS, artifacts.texts, strict=True):
        assert register(server.client, name, version, content).status_code == 201
    assert server.client.post(f"{ROOT}/{name}/1.0.0/promote").status_code == 200
    return f"{ROOT}/{name}"


def check_conflict(response: httpx.Response, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (409, code), response.text


def served(server: Any, name: str) -> Any:
    ask = {"model_name": name, "symbol": "ANY", "features": [0.1] * 5}
    return server.client.post("/predict", json=ask).json()["model_version"]


def test_what_is_in_production_is_neither_deleted_nor_retired(server: Any, artifacts: Any) -> None:
    address = three(server, artifacts, "kept")
    for path in (f"{address}/1.0.0", f"/api/models/{'kept'}"):
        check_conflict(server.client.delete(path), "version_in_use")
    check_conflict(server.client.post(f"{address}/1.0.0/retire"), "version_in_use")
    for stage in ("Archived", "archived"):
        check_conflict(server.client.put(f"{address}/1.0.0/stage", json={"stage": stage}), "version_in_use")
    for reference in ("production", "latest", "Production"):
        assert server.client.delete(f"{address}/{reference}").status_code == 400
    found = server.get(address)
    assert (found["production_version"], len(found["versions"]), served(server, "kept")) == ("1.0.0", 3, "1.0.0")


def test_an_archived_version_is_promoted_and_a_rollback_past_the_first_changes_nothing(
    server: Any, artifacts: Any
) -> None:
    address = three(server, artifacts, "stack")
    check_conflict(server.client.post(f"{address}/rollback"), "nothing_before")
    for version in ("1.1.0", "1.2.0", "1.0.0"):  # the last was archived by the first of them
        assert server.client.post(f"{address}/{version}/promote").json()["stage"] == "Production"
    for version in ("1.2.0", "1.1.0", "1.0.0"):
        assert server.client.post(f"{address}/rollback").json()["version"] == version
        assert served(server, "stack") == version
    for _ in range(2):
        check_conflict(server.client.post(f"{address}/rollback"), "nothing_before")
        assert served(server, "stack") == "1.0.0"


def test_a_rollback_does_not_bring_back_what_was_deleted(server: Any, artifacts: Any) -> None:
    address = three(server, artifacts, "gone")
    for version in ("1.1.0", "1.2.0"):
        assert server.client.post(f"{address}/{version}/promote").status_code == 200
    assert server.client.delete(f"{address}/1.1.0").status_code == 204
    assert server.client.post(f"{address}/rollback").json()["version"] == "1.0.0"
    assert [item["version"] for item in server.get(address)["versions"]] == ["1.2.0", "1.0.0"]
    assert served(server, "gone") == "1.0.0"


def test_promotions_and_deletions_at_once_always_leave_one_in_production(server: Any, artifacts: Any) -> None:
    """Eight threads promote, delete, retire, roll back and register again, while a ninth looks."""
    address = three(server, artifacts, "contested")
    contents = dict(zip(VERSIONS, artifacts.texts, strict=True))
    is_over, looks = threading.Event(), []
    allowed = {"promote": {200, 404}, "delete": {204, 404, 409}, "retire": {200, 404, 409}, "again": {200, 201}}
    allowed["rollback"] = {200, 409}

    def change(seed: int) -> set[tuple[str, int]]:
        """What came of each kind of change."""
        chosen, seen = random.Random(seed), set()  # so that a failure can be repeated
        with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
            for _ in range(N_CHANGES):
                version, what = chosen.choice(VERSIONS), chosen.choice(sorted(allowed))
                if what == "again":
                    response = register(client, "contested", version, contents[version])
                elif what == "delete":
                    response = client.delete(f"{address}/{version}")
                elif what == "rollback":
                    response = client.post(f"{address}/rollback")
                else:
                    response = client.post(f"{address}/{version}/{what}")
                assert response.status_code in allowed[what], (what, response.text)
                seen.add((what, response.status_code))
        return seen

    def look() -> None:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as client:
            while not is_over.is_set() or not looks:
                found = client.get(address).json()
                stages = [item["stage"] for item in found["versions"]]
                labels = {item["version"] for item in found["versions"] if item["stage"] == "Production"}
                looks.append((stages.count("Production"), labels == {found["production_version"]}))
                ask = {"model_name": "contested", "symbol": "ANY", "features": [0.1] * 5, "version": "production"}
                looks.append((1, client.post("/predict", json=ask).status_code == 200))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with ThreadPoolExecutor(N_THREADS) as pool:
            outcomes = set().union(*pool.map(change, range(N_THREADS)))
    finally:
        is_over.set()
        watcher.join()
    assert set(looks) == {(1, True)}
    assert {("promote", 200), ("delete", 204), ("delete", 409), ("again", 201)} <= outcomes
    found = server.get(address)
    rows = server.query(
        "SELECT v.label FROM stages s JOIN versions v ON v.id = s.version_id JOIN models m ON m.id = s.model_id "
        "WHERE m.name = 'contested' AND s.stage = 'production'"
    )
    assert rows == [(found["production_version"],)]
    assert served(server, "contested") == found["production_version"]
    assert server.query("PRAGMA foreign_key_check") == []
