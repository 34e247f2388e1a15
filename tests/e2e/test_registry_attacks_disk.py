"""A disk that is full when a registration or a promotion is to be written: 507, nothing half, and all goes on with room again."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = "/api/ml/registry/models"
MODEL = f"{ROOT}/hybrid"
KIB = 1 << 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk, where the kernel lets it")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def upload(server: Any, version: str, content: bytes, n_random_bytes: int = 0) -> httpx.Response:
    """With a second file that cannot be compressed; none so large that it would wait in a file."""
    files = [("file", ("model.json", content))]
    if n_random_bytes:
        files.append(("file", ("more.bin", os.urandom(n_random_bytes))))
    response: httpx.Response = server.client.post(ROOT, data={"name": "hybrid", "version": version}, files=files)
    return response


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(disk: Path, n_left: int) -> Path:
    """A file that leaves as many bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(max(0, free_bytes(disk) - n_left)))
    return ballast


def state(server: Any) -> Any:
    """What there is, what is served and predicted, and what the audit says of it."""
    found = server.get(MODEL)
    ask = {"model_name": "hybrid", "symbol": "ANY", "features": [0.1] * 5}
    answer = server.client.post("/predict", json=ask).json()
    versions = [(item["version"], item["stage"], item["updated_at"]) for item in found["versions"]]
    return versions, answer["model_version"], answer["prediction"], server.audit("hybrid")


def check_full(response: httpx.Response) -> None:
    assert (response.status_code, response.json()["code"]) == (507, "disk_full"), response.text


def test_a_full_disk_refuses_changes_and_predicts_on(servers: Any, artifacts: Any, small_disk: Path) -> None:
    server = servers.start(data_dir=small_disk / "data")
    assert upload(server, "1.0.0", artifacts.texts[0]).status_code == 201
    assert server.client.post(f"{MODEL}/1.0.0/promote").status_code == 200
    assert upload(server, "1.1.0", artifacts.texts[1]).status_code == 201
    before = state(server)
    ballast = fill(small_disk, 300 * KIB)
    check_full(upload(server, "1.2.0", artifacts.texts[2], 900 * KIB))
    assert state(server) == before
    ballast.unlink()
    ballast = fill(small_disk, 0)
    outcomes = set()
    for _ in range(50):  # the log of the database may have room that was written before
        response = server.client.patch(f"{MODEL}/1.1.0", json={"description": os.urandom(9000).hex()})
        outcomes.add(response.status_code)
        if response.status_code == 507:
            break
    assert outcomes <= {200, 507}
    check_full(response)
    full = state(server)
    response = server.client.post(f"{MODEL}/1.1.0/promote")
    if response.status_code != 200:  # so little may still find room
        check_full(response)
        assert state(server) == full
    ballast.unlink()
    assert server.client.post(f"{MODEL}/1.1.0/promote").status_code == 200
    assert upload(server, "1.2.0", artifacts.texts[2], 900 * KIB).status_code == 201
    assert [item["version"] for item in server.get(MODEL)["versions"]] == ["1.2.0", "1.1.0", "1.0.0"]
    assert server.query("PRAGMA integrity_check") == [("ok",)]
    server.kill()
    again = servers.start(data_dir=server.data_dir)
    assert again.get(MODEL)["production_version"] == "1.1.0"
    assert {path.name for path in server.data_dir.iterdir()} <= {
        *("loading", "snapshots", "state.db", "state.db-shm", "state.db-wal"),
    }
