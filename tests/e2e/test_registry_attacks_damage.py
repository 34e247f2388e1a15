"""Damaged files of every format, sent to a real server: refused with the file named, nothing kept, production unmoved.

A cut file is always seen. A flipped bit may lie where a format has no checksum, and make another whole model of it: who says
the hash of what was written is told of every one.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.samples import SAMPLES, Sample

ROOT = "/api/ml/registry/models"
SHARES = (0.02, 0.3, 0.7, 0.95)
N_FLIPS = 6
N_ROUNDS = 50
MIB = 1 << 20
ROUND_BYTES = 2 << 20


@pytest.fixture(scope="module")
def server(shared_servers: Any) -> Any:
    return shared_servers.start(MMSERVER_ALLOW_UNPICKLING="sklearn", MMSERVER_MAX_ARTIFACT_BYTES="16MiB")


def upload(server: Any, name: str, files: dict[str, bytes], version: str, **fields: Any) -> Any:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    parts = [("file", (file_name, content)) for file_name, content in files.items()]
    return server.client.post(ROOT, data={"name": name, "version": version, **texts}, files=parts)


def predicted(server: Any, name: str, n_features: int) -> Any:
    """The bits of three rows, with the version that they are of."""
    rows = np.random.default_rng(3).normal(size=(3, n_features)).astype(np.float32)
    tensor = {"name": "features", "shape": [3, n_features], "datatype": "FP32", "data": rows.ravel().tolist()}
    response = server.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]})
    assert response.status_code == 200, response.text
    return response.json()["model_version"], [output["data"] for output in response.json()["outputs"]]


def in_production(server: Any, name: str, files: dict[str, bytes], **fields: Any) -> Any:
    """Register what is whole as 1.0.0, promote it; what it predicts."""
    response = upload(server, name, files, "1.0.0", **fields)
    assert response.status_code == 201, response.text
    assert server.client.post(f"{ROOT}/{name}/1.0.0/promote").status_code == 200
    return predicted(server, name, response.json()["n_features"])


def check_unmoved(server: Any, name: str, before: Any) -> None:
    found = server.get(f"{ROOT}/{name}")
    assert [item["version"] for item in found["versions"]] == ["1.0.0"]
    assert found["production_version"] == "1.0.0"
    n_features = found["versions"][0]["n_features"]
    assert predicted(server, name, n_features) == before


def flipped(whole: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(whole)
    changed[at] ^= 1 << bit
    return bytes(changed)


def check_damage(server: Any, name: str, files: dict[str, bytes], damaged: str, **fields: Any) -> None:
    """Cut and change one of the files, and see that production does not move."""
    before = in_production(server, name, files, **fields)
    whole, random = files[damaged], np.random.default_rng(17)
    for share in SHARES:
        response = upload(server, name, {**files, damaged: whole[: int(share * len(whole))]}, "2.0.0", **fields)
        assert (response.status_code, response.json()["code"]) == (400, "artifact_invalid"), response.text
        assert damaged in response.json()["detail"]
        check_unmoved(server, name, before)
    said = hashlib.sha256(next(iter(files.values()))).hexdigest()
    for _ in range(N_FLIPS):
        other = {**files, damaged: flipped(whole, int(random.integers(len(whole))), int(random.integers(8)))}
        if damaged == next(iter(files)):
            response = upload(server, name, other, "2.0.0", **fields, sha256=said)
            assert (response.status_code, response.json()["errors"][0]["loc"]) == (400, "sha256"), response.text
            check_unmoved(server, name, before)
    response = upload(server, name, other, "2.0.0", **fields)
    if response.status_code == 201:  # another whole model, which nobody has promoted
        assert response.json()["sha256"] != server.get(f"{ROOT}/{name}/1.0.0")["sha256"]
        assert predicted(server, name, response.json()["n_features"]) == before
        assert server.client.delete(f"{ROOT}/{name}/2.0.0").status_code == 204
    else:
        assert (response.status_code, response.json()["code"]) == (400, "artifact_invalid"), response.text
        assert any(file_name in response.json()["detail"] for file_name in files)
    check_unmoved(server, name, before)


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])
def test_a_damaged_file_leaves_production_as_it_was(server: Any, sample: Sample) -> None:
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    fields = {"options": sample.options} | ({"model_type": sample.model_type} if sample.model_type else {})
    files = {sample.file_name: sample.make()}
    if sample.name.startswith("sklearn-") and not sample.file_name.endswith(".skops"):
        tried = upload(server, "tried", files, "1.0.0", **fields)
        if "may be unpickled" in tried.text or "unsupported" in tried.text:
            pytest.skip("pickles are run only where the guard of the worker is whole")
    check_damage(server, sample.name, files, sample.file_name, **fields)


def test_damaged_weights_beside_a_graph_leave_production_as_it_was(server: Any) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (the extra onnx)")
    import onnx_graphs as graphs

    graph, weights = graphs.with_weights_outside(graphs.dense(), "weights.bin")
    check_damage(server, "onnx-outside", {"a.onnx": graph, "weights.bin": weights}, "weights.bin")


def test_an_archive_that_unpacks_to_a_quarter_of_a_gigabyte_is_refused(server: Any) -> None:
    sample = next(sample for sample in SAMPLES if sample.file_name.endswith(".skops"))
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    before = in_production(server, "archives", {"a.skops": sample.make()})
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", bytes(256 * MIB))
    response = upload(server, "archives", {"a.skops": bomb.getvalue()}, "2.0.0")
    assert (response.status_code, response.json()["code"]) == (400, "artifact_invalid"), response.text
    assert "a.skops" in response.json()["detail"]
    check_unmoved(server, "archives", before)


def n_descriptors(server: Any) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def resident_bytes(server: Any) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks into /proc")
def test_refused_uploads_leave_no_file_no_descriptor_and_no_memory(servers: Any, artifacts: Any, until: Any) -> None:
    """Sends 100 MB in fifty uploads after ten others, and finds less than half of that kept."""
    server = servers.start()
    whole = artifacts.texts[0]
    before = in_production(server, "kept", {"a.json": whole})
    torn = whole[: len(whole) // 2]

    def refuse(n_rounds: int) -> None:
        for number in range(n_rounds):
            damaged = torn if number % 2 else torn + b" " * ROUND_BYTES * 2
            response = upload(server, "kept", {"a.json": damaged}, "2.0.0")
            assert (response.status_code, response.json()["code"]) == (400, "artifact_invalid"), response.text

    refuse(10)
    n_open, n_resident = n_descriptors(server), resident_bytes(server)
    refuse(N_ROUNDS)
    until(lambda: n_descriptors(server) <= n_open, "the descriptors are given back")
    assert resident_bytes(server) - n_resident < N_ROUNDS * ROUND_BYTES / 2
    check_unmoved(server, "kept", before)
    names = {path.name for path in server.data_dir.iterdir()}
    assert names <= {"loading", "snapshots", "state.db", "state.db-shm", "state.db-wal"}
    assert not os.listdir(server.data_dir / "snapshots")
