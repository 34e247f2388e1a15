"""The registry of a real server process: uploads over the wire, a disk that fills up, and what is left of either."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = "/api/ml/registry/models"
LIMITED = ("bash", "-c", 'ulimit -f 20000; exec "$@"', "bash")
"""Runs a command whose files cannot grow beyond 20 MB; what processes share in memory is one, too."""


def upload(server: Any, content: bytes, version: str = "1.0.0", **fields: str) -> Any:
    return server.client.post(
        ROOT, data={"name": "hybrid", "version": version, **fields}, files={"file": ("model.json", content)}
    )


def open_without_name(server: Any) -> list[str]:
    """The files without a name that the process has open in its data directory."""
    found = []
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith(f"{server.data_dir}/") and target.endswith("(deleted)"):
            found.append(target)
    return found


@pytest.fixture
def server(servers: Any) -> Any:
    return servers.start(MMSERVER_MAX_ARTIFACT_BYTES="8MiB")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk, where the kernel lets it")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_model_s_whole_life(server: Any, artifacts: Any) -> None:
    sha256 = hashlib.sha256(artifacts.texts[0]).hexdigest()
    assert upload(server, artifacts.texts[0], sha256=sha256, metrics='{"ic": 0.03}').status_code == 201
    assert upload(server, artifacts.texts[1], "1.1.0").status_code == 201
    ask = {"model_name": "hybrid", "symbol": "ANY", "features": [0.1] * 5}

    def answers() -> tuple[int, Any]:
        """Asked twice: the second time what is loaded answers without Flask."""
        responses = [server.client.post("/predict", json=ask) for _ in range(3)]
        assert len({(response.status_code, response.json().get("model_version")) for response in responses}) == 1
        return responses[0].status_code, responses[0].json().get("model_version")

    assert answers() == (200, "1.1.0")
    for path, version in (("1.0.0/promote", "1.0.0"), ("1.1.0/promote", "1.1.0"), ("rollback", "1.0.0")):
        response = server.client.post(f"{ROOT}/hybrid/{path}")
        assert (response.status_code, response.json()["version"]) == (200, version)
        assert answers() == (200, version)
    assert server.client.post(f"{ROOT}/hybrid/1.0.0/retire").status_code == 409
    assert server.client.put(f"{ROOT}/hybrid/1.0.0/stage", json={"stage": "none"}).status_code == 200
    for version in ("1.0.0", "1.1.0"):
        assert server.client.post(f"{ROOT}/hybrid/{version}/retire").status_code == 200
    assert answers() == (404, None)
    tensor = {"inputs": [{"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [0.1] * 5}]}
    assert server.client.post("/v2/models/hybrid/infer", json=tensor).status_code == 404
    assert server.client.get("/api/models/hybrid/model/ANY").status_code == 404
    assert server.client.get("/ui/models/hybrid").status_code == 200
    for version in ("1.0.0", "1.1.0"):
        assert server.client.delete(f"{ROOT}/hybrid/{version}").status_code == 204
    assert server.get("/api/models") == {"items": []}
    assert server.audit("hybrid") == [
        *("version.registered", "version.registered", "version.promoted", "version.promoted", "version.rolled_back"),
        *("version.unstaged", "version.retired", "version.removed", "version.removed"),
    ]


def test_what_was_registered_outlives_a_kill(server: Any, artifacts: Any, servers: Any) -> None:
    item = upload(server, artifacts.texts[0]).json()
    assert server.client.post(f"{ROOT}/hybrid/1.0.0/promote").status_code == 200
    server.kill()
    again = servers.start(data_dir=server.data_dir)
    found = again.get(f"{ROOT}/hybrid/production")
    assert (found["sha256"], found["stage"]) == (item["sha256"], "Production")


def test_an_upload_that_is_cut_off_at_half_leaves_nothing(server: Any, artifacts: Any, until: Any) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="model.json"\r\n\r\n' + b" " * 4_000_000
    head = f"POST {ROOT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
        until(lambda: open_without_name(server), "the upload waits in a file")
    until(lambda: not open_without_name(server), "the file is gone")
    assert server.get(ROOT)["items"] == []
    assert {path.name for path in server.data_dir.iterdir()} <= {
        "state.db",
        "state.db-wal",
        "state.db-shm",
        "snapshots",
    }
    assert server.audit("hybrid") == []
    assert upload(server, artifacts.texts[0]).status_code == 201


def test_an_upload_over_the_limit_is_refused_before_it_is_sent(server: Any) -> None:
    head = f"POST {ROOT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
        answer = connection.recv(65536)
    assert b" 413 " in answer.split(b"\r\n", 1)[0]
    response = upload(server, bytes(8 << 20) + b" ")
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large")
    assert "8388608 bytes that max_artifact_bytes allows" in response.json()["detail"]
    assert upload(server, bytes(8 << 20)).json()["code"] == "artifact_invalid"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files with bash's ulimit")
def test_a_file_that_may_not_grow_is_a_full_disk(servers: Any, artifacts: Any, until: Any) -> None:
    server = servers.start(before=LIMITED)
    for _ in range(2):
        response = upload(server, bytes(25_000_000))
        assert (response.status_code, response.json()["code"]) == (507, "disk_full")
    until(lambda: not open_without_name(server), "the file is gone")
    assert upload(server, artifacts.texts[0]).status_code == 201


def test_a_disk_that_fills_up_during_an_upload_costs_nothing_but_the_upload(
    servers: Any, artifacts: Any, until: Any, small_disk: Path
) -> None:
    server = servers.start(data_dir=small_disk / "data")
    assert upload(server, artifacts.texts[0]).status_code == 201
    free = os.statvfs(small_disk).f_bavail
    response = upload(server, bytes(5_000_000), "1.1.0")
    assert (response.status_code, response.json()["code"]) == (507, "disk_full")
    until(lambda: not open_without_name(server), "the file is gone")
    until(lambda: os.statvfs(small_disk).f_bavail >= free - 20, "the disk has room again")
    assert [item["version"] for item in server.get(f"{ROOT}/hybrid")["versions"]] == ["1.0.0"]
    assert upload(server, artifacts.texts[1], "1.1.0").status_code == 201
    assert server.stop() == 0
