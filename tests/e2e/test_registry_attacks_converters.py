"""Models that attack whoever reads them, sent to a real server: the worker ends, the reason is told and logged, serving goes on."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import socket
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = "/api/ml/registry/models"
MIB = 1 << 20
HOSTILE = '''
"""A format whose files say what its plugin does with whoever reads them."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from mmserver import ModelFile, ModelFormat, ModelSource, Predictor, hookimpl


def hoard():
    kept = []
    while True:
        kept.append(bytearray(1 << 28))


def shout():
    for stream in (sys.stdout, sys.stderr):
        for _ in range(1 << 6):
            stream.write("x" * (1 << 20))


def garble():
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"x" * 1000)
        except OSError:
            pass


def fail(text):
    raise ValueError(text)


DEEDS = {
    "exit": lambda: os._exit(0), "exit 3": lambda: os._exit(3), "leave": sys.exit,
    "interrupt": lambda: signal.raise_signal(signal.SIGINT), "segfault": lambda: ctypes.string_at(0), "abort": os.abort,
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM), "hang": lambda: time.sleep(1000),
    "hoard": hoard, "fork": os.fork, "thread": lambda: threading.Thread(target=hoard).start(),
    "connect": lambda: socket.create_connection(("127.0.0.1", 9)), "run": lambda: os.system("touch WAS_RUN"),
    "write": lambda: Path("WAS_RUN").touch(), "read": lambda: Path("/etc/passwd").read_text(), "garble": garble,
    "kill the parent": lambda: os.kill(os.getppid(), 9), "long error": lambda: fail("y" * (1 << 26)),
    "odd error": lambda: fail("\\ud800\\0\\x1b[31m"), "shout": shout, "nothing": lambda: None,
}


def read(source: ModelSource) -> ModelFile:
    DEEDS[source.content.decode()]()
    return ModelFile(
        kind="hostile_sum", content=source.content, n_features=2, n_outputs=1, objective="regression", library_version="1"
    )


class Sum:
    n_features = 2
    size_bytes = 1

    def predict(self, rows):
        return {"prediction": rows.sum(axis=1, keepdims=True)}


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    return [ModelFormat(name="hostile", suffixes=(".hostile",), read=read)]


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    return Sum() if model.kind == "hostile_sum" else None
'''


@pytest.fixture(scope="module")
def was_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an attack that succeeds leaves."""
    directory = tmp_path_factory.mktemp("open to all")
    directory.chmod(0o777)
    return directory / "was-run"


@pytest.fixture(scope="module")
def server(shared_servers: Any, artifacts: Any, was_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With limits that a test can wait for, and `good` 1.0.0 in production."""
    plugins = tmp_path_factory.mktemp("plugins")
    (plugins / "hostile.py").write_text(HOSTILE.replace("WAS_RUN", str(was_run)))
    limits = {"MMSERVER_CONVERSION_TIMEOUT_S": "8", "MMSERVER_CONVERSION_MEMORY_BYTES": "1GiB"}
    started = shared_servers.start("--plugins-dir", plugins, MMSERVER_MAX_ARTIFACT_BYTES="32MiB", **limits)
    assert upload(started, "good", "model.json", artifacts.texts[0]).status_code == 201
    assert started.client.post(f"{ROOT}/good/1.0.0/promote").status_code == 200
    return started


def upload(server: Any, name: str, file_name: str, content: bytes, version: str = "1.0.0", **fields: Any) -> Any:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    data = {"name": name, "version": version, **texts}
    return server.client.post(ROOT, data=data, files={"file": (file_name, content)}, timeout=120)


def refused(server: Any, file_name: str, content: bytes, **fields: Any) -> str:
    """The reason, once it is sure that nothing else changed."""
    response = upload(server, "attack", file_name, content, **fields)
    assert (response.status_code, response.json()["code"]) == (400, "artifact_invalid"), response.text
    detail: str = response.json()["detail"]
    assert detail.startswith(f"{file_name}: ")
    assert len(detail) < 2000
    assert server.client.get(f"{ROOT}/attack").status_code == 404
    ask = {"model_name": "good", "symbol": "ANY", "features": [0.1] * 5}
    assert server.client.post("/predict", json=ask).json()["model_version"] == "1.0.0"
    assert server.client.get("/livez").status_code == 200
    return detail.removeprefix(f"{file_name}: ")


def check_next_is_read(server: Any, name: str) -> None:
    """The next model of the same format is registered, in the worker that the attack had."""
    response = upload(server, name, "m.hostile", b"nothing")
    assert response.status_code in (200, 201), response.text
    assert response.json()["n_features"] == 2


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        pytest.param("exit", "crashed(exited with 0 and no answer)", id="leaves-at-once"),
        pytest.param("exit 3", "crashed(exited with 3 and no answer)", id="leaves-with-a-status"),
        pytest.param("segfault", "crashed(SIGSEGV)", id="segfault"),
        pytest.param("abort", "crashed(SIGABRT)", id="abort"),
        pytest.param("hang", "crashed(timeout after 8 s)", id="hangs"),
        pytest.param("hoard", "crashed(", id="all-memory"),
        pytest.param("garble", "crashed(a garbled", id="writes-into-the-answer"),
    ],
)
def test_a_converter_that_crashes_or_hangs_is_ended_and_its_reason_told_and_logged(
    server: Any, until: Any, deed: str, reason: str
) -> None:
    line = "reading m.hostile as hostile: the process that read it died: "
    before = server.log.count(line)
    assert refused(server, "m.hostile", deed.encode()).startswith(reason)
    until(lambda: server.log.count(line) == before + 1, "a line in the log")
    check_next_is_read(server, f"after-{deed.replace(' ', '-')}")


@pytest.mark.parametrize(
    "deed",
    ["fork", "thread", "connect", "run", "write", "read", "kill the parent", "terminate"],
)
def test_a_converter_that_reaches_out_is_refused(server: Any, was_run: Path, deed: str) -> None:
    reason = refused(server, "m.hostile", deed.encode())
    assert reason.startswith(("crashed(SIG", "malformed: PermissionError", "malformed: LookupError"))
    assert not was_run.exists()
    check_next_is_read(server, f"after-{deed.replace(' ', '-')}")


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        pytest.param("leave", "handler_failed: SystemExit", id="SystemExit"),
        pytest.param("interrupt", "", id="SIGINT"),
        pytest.param("long error", "malformed: ValueError: yyy", id="an-error-of-64-MiB"),
        pytest.param("odd error", "malformed: ValueError", id="an-error-with-half-a-character"),
    ],
)
def test_an_error_of_any_kind_names_the_file(server: Any, deed: str, reason: str) -> None:
    assert refused(server, "m.hostile", deed.encode()).startswith(reason)
    check_next_is_read(server, f"after-{deed.replace(' ', '-')}")


def test_what_a_converter_prints_goes_nowhere(server: Any) -> None:
    n_before = len(server.log)
    assert upload(server, "shouting", "m.hostile", b"shout").status_code == 201
    assert len(server.log) - n_before < 10_000


class Call:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = (function, arguments)

    def __reduce__(self) -> Any:
        return self.called


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(
            lambda path: pickle.dumps(Call(os.system, f"touch '{path}'")),
            "forbidden_global: posix.system",
            id="a-shell",
        ),
        pytest.param(
            lambda path: pickle.dumps(Call(exec, f"open({str(path)!r}, 'w')")), "forbidden_global: builtins", id="code"
        ),
        pytest.param(lambda _: pickle.dumps(Call(exec, "while True: pass")), "forbidden_global", id="a-loop"),
        pytest.param(lambda _: pickle.dumps(Call(bytes, 1 << 36)), "malformed", id="64-GiB"),
        pytest.param(lambda _: b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little"), "torn", id="1-TiB-announced"),
        pytest.param(lambda _: b"\x80\x04" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".", "", id="a-million-lists"),
        pytest.param(lambda _: b"\x80\x04" + b"(" * 10**6 + b".", "too_complex", id="a-million-marks"),
        pytest.param(
            lambda _: b"\x80\x04\x8b" + (4 * 10**6).to_bytes(4, "little") + b"\x7f" * 4 * 10**6 + b".",
            "too_large",
            id="a-number-of-4-MB",
        ),
        pytest.param(lambda _: b"\x80\x04K\x01r\xff\xff\xff\xff.", "", id="a-high-memo"),
        pytest.param(lambda _: gzip.compress(bytes(48 * MIB)), "too_large", id="gzip-of-zeros"),
        pytest.param(lambda _: zlib.compress(bytes(48 * MIB)), "too_large", id="zlib-of-zeros"),
        pytest.param(lambda _: bz2.compress(bytes(48 * MIB)), "too_large", id="bz2-of-zeros"),
        pytest.param(lambda _: lzma.compress(bytes(48 * MIB), preset=0), "too_large", id="xz-of-zeros"),
    ],
)
def test_a_pickle_bomb_is_refused_and_not_run(
    server: Any, was_run: Path, make: Callable[[Path], bytes], reason: str
) -> None:
    assert refused(server, "model.pkl", make(was_run)).startswith(reason)
    assert not was_run.exists()


def looping(n_trips: int | None) -> bytes:
    """A graph that adds something to the row again and again: as often as said, or as its largest number says."""
    import onnx_graphs as graphs
    from onnx import TensorProto, helper

    rows, answer = {"rows": (TensorProto.FLOAT, ["n", 5])}, {"y": (TensorProto.FLOAT, ["n", 5])}
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Add", ["v", "one"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 5]),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, ["n", 5]),
        ],
    )
    numbers = {"one": np.full((1, 5), 1e-9, np.float32), "yes": np.array(True)}
    nodes = [helper.make_node("Loop", ["trips", "yes", "rows"], ["y"], body=body)]
    if n_trips is None:
        largest = helper.make_node("ReduceMax", ["rows"], ["largest"], keepdims=0)
        nodes = [largest, helper.make_node("Cast", ["largest"], ["trips"], to=TensorProto.INT64), *nodes]
    else:
        numbers["trips"] = np.array(n_trips, np.int64)
    return graphs.saved(graphs.graph(nodes, rows, answer, numbers))


def test_a_graph_that_never_ends_or_takes_all_memory_is_refused(server: Any) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (the extra onnx)")
    import onnx_graphs as graphs
    from onnx import TensorProto, helper

    rows, answer = {"rows": (TensorProto.FLOAT, ["n", 5])}, {"y": (TensorProto.FLOAT, ["n", 5])}
    assert refused(server, "model.onnx", looping(1 << 62)).startswith("crashed(")
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["largest"], keepdims=0),
        helper.make_node("Add", ["rows", "largest"], ["y"]),
    ]
    greedy = graphs.graph(nodes, rows, answer, {"size": np.array([25_000_000_000], np.int64)})
    assert refused(server, "model.onnx", graphs.saved(greedy)).startswith(("malformed", "not_runnable", "crashed("))
    wide = graphs.dense()
    wide.graph.initializer[0].dims[0] = 1 << 40
    assert refused(server, "model.onnx", graphs.saved(wide)).startswith("malformed")
    assert upload(server, "dense", "model.onnx", graphs.saved(graphs.dense())).status_code == 201


def test_a_row_that_keeps_a_graph_busy_for_ever_keeps_nobody_else_waiting(servers: Any, artifacts: Any) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (the extra onnx)")
    server = servers.start()
    assert upload(server, "good", "model.json", artifacts.texts[0]).status_code == 201
    assert upload(server, "looping", "model.onnx", looping(None)).status_code == 201
    ask = {"model_name": "good", "symbol": "ANY", "features": [0.1] * 5}

    def body(number: float) -> dict[str, Any]:
        return {"inputs": [{"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [number] * 5}]}

    for _ in range(3):  # loaded by the first, and answered at once from then on
        assert server.client.post("/v2/models/looping/infer", json=body(2.0)).status_code == 200
        assert server.client.post("/predict", json=ask).status_code == 200
    content = json.dumps(body(1e15)).encode()
    head = f"POST /v2/models/looping/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + content)
        for _ in range(20):
            assert server.client.get("/livez").status_code == 200
            assert server.client.post("/predict", json=ask).json()["model_version"] == "1.0.0"


def test_rows_that_keep_every_thread_busy_for_ever_are_stopped_and_said_to_have_been(servers: Any) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (the extra onnx)")
    server = servers.start("--threads", "2", MMSERVER_PREDICTION_TIMEOUT_S="1s")
    assert upload(server, "looping", "model.onnx", looping(None)).status_code == 201

    def ask(number: float) -> Any:
        tensor = {"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [number] * 5}
        return server.client.post("/v2/models/looping/infer", json={"inputs": [tensor]}, timeout=120)

    with ThreadPoolExecutor(6) as clients:
        refusals = list(clients.map(ask, [1e15] * 6))
    assert [response.status_code for response in refusals] == [503] * 6
    assert all("was stopped after 1 s" in response.text for response in refusals)
    assert all("Retry-After" in response.headers for response in refusals)
    assert ask(2.0).status_code == 200
    assert server.client.get("/models").status_code == 200
