"""The protocol's own clients against a running server: tritonclient, sync and aio, and KServe's; and what no client would send."""

import asyncio
import http.client
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.windows import window_outputs, write_plugin, write_window

NAME = "alpha.BTCUSDT"
INFER = f"/v2/models/{NAME}/infer"
HEADER = "Inference-Header-Content-Length"
ROWS = np.random.default_rng(7).normal(size=(6, 5)).astype(np.float32)
ROWS[0, 1] = ROWS[4, 4] = np.nan
KSERVE_CLIENT = Path(__file__).with_name("kserve_client.py")


@pytest.fixture(scope="module")
def expected(artifacts: Any) -> Any:
    """What the library itself predicts."""
    return pickle.loads(artifacts.pickles[0]).predict(ROWS)


@pytest.fixture
def client(server: Any, alpha: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


def features(rows: Any = ROWS, *, binary: bool = True, datatype: str = "FP32", module: Any = triton) -> Any:
    tensor = module.InferInput("features", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return tensor


# --- tritonclient -----------------------------------------------------------------------------------------------------


def test_triton_infers_with_its_defaults(client: Any, expected: Any) -> None:
    result = client.infer(NAME, [features()])
    assert result.as_numpy("prediction").tobytes() == expected.tobytes()
    assert result.as_numpy("margin").tobytes() == expected.tobytes()
    assert result.get_response()["id"]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_triton_infers_in_every_form(
    client: Any, expected: Any, binary_in: bool, binary_out: bool, packed: str
) -> None:
    outputs = [triton.InferRequestedOutput("prediction", binary_data=binary_out)]
    result = client.infer(
        NAME,
        [features(binary=binary_in)],
        outputs=outputs,
        request_id="my-1",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
        timeout=5_000_000,
        priority=1,
        query_params={"test_1": 1},
        headers={"test": "1"},
        parameters={"own": "x"},
    )
    assert result.as_numpy("prediction").tobytes() == expected.tobytes()
    assert result.as_numpy("margin") is None
    assert result.get_response()["id"] == "my-1"
    assert result.get_response()["parameters"] == {"own": "x"}


def test_triton_reads_packed_answers_long_enough_to_be_packed(client: Any, artifacts: Any) -> None:
    rows = np.tile(ROWS, (100, 1))
    expected = pickle.loads(artifacts.pickles[0]).predict(rows)
    for packed in ("gzip", "deflate"):
        for binary in (True, False):
            outputs = [triton.InferRequestedOutput("prediction", binary_data=binary)]
            result = client.infer(NAME, [features(rows)], outputs=outputs, response_compression_algorithm=packed)
            assert result.as_numpy("prediction").tobytes() == expected.tobytes()


def test_triton_mixes_binary_and_json_inputs_by_factor(client: Any, server: Any, expected: Any) -> None:
    factors = server.get("/api/models/alpha/symbols/BTCUSDT")["factors"]
    inputs = []
    for dim, factor in reversed(list(enumerate(factors))):
        tensor = triton.InferInput(factor, [len(ROWS), 1], "FP64")
        tensor.set_data_from_numpy(ROWS[:, [dim]].astype(np.float64), binary_data=dim % 2 == 0)
        inputs.append(tensor)
    outputs = [triton.InferRequestedOutput("margin", binary_data=False), triton.InferRequestedOutput("prediction")]
    result = client.infer(NAME, inputs, outputs=outputs)
    assert result.as_numpy("prediction").tobytes() == result.as_numpy("margin").tobytes() == expected.tobytes()


def test_triton_infers_asynchronously(client: Any, expected: Any) -> None:
    pending = [client.async_infer(NAME, [features()]) for _ in range(8)]
    assert all(asked.get_result().as_numpy("prediction").tobytes() == expected.tobytes() for asked in pending)


def test_triton_sees_health_metadata_configuration_and_statistics(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert not client.is_model_ready("nosuch")
    assert client.get_server_metadata()["name"] == "mmserver"
    metadata, config = client.get_model_metadata(NAME), client.get_model_config(NAME)
    assert metadata["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 5]}]
    assert [part["name"] for part in config["output"]] == [part["name"] for part in metadata["outputs"]]
    version = metadata["versions"][0]
    assert client.is_model_ready(NAME, version)
    client.infer(NAME, [features()], model_version=version)
    [stats] = client.get_inference_statistics(NAME, version)["model_stats"]
    assert (stats["name"], stats["version"]) == (NAME, version)
    assert NAME in [found["name"] for found in client.get_inference_statistics()["model_stats"]]


def test_triton_infers_windows_of_timesteps(servers: Any, tmp_path: Path) -> None:
    weights = write_window(tmp_path / "net", "BTCUSDT_ret_1h", (60, 110))
    server = servers.start("--plugins-dir", write_plugin(tmp_path / "plugins"))
    server.register("net", tmp_path / "net")
    windows = np.random.default_rng(5).normal(size=(3, 60, 110)).astype(np.float32)
    expected = window_outputs(weights, windows)[:, 0]
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.get_model_metadata("net")["inputs"][0]["shape"] == [-1, 60, 110]
        assert client.get_model_config("net")["input"][0]["dims"] == [-1, 60, 110]
        for binary_in in (True, False):
            for n_rows in (1, 3):  # one row may be answered by the thread of all connections
                sent = windows[:n_rows]
                result = client.infer("net.BTCUSDT", [features(sent, binary=binary_in)])
                assert result.as_numpy("prediction").tobytes() == expected[:n_rows].tobytes()
        with pytest.raises(InferenceServerException, match=r"takes \[-1,60,110\]"):
            client.infer("net", [features(windows.reshape(3, -1))])


def test_triton_is_told_what_is_wrong(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.get_model_metadata("wrong_model_name")
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.infer("wrong_model_name", [features()])
    with pytest.raises(InferenceServerException, match="failed to load"):
        client.load_model("wrong_model_name")
    with pytest.raises(InferenceServerException, match=r"takes \[-1,5\]"):
        client.infer(NAME, [features(ROWS[:, :4])])
    with pytest.raises(InferenceServerException, match="nosuch: unexpected output"):
        client.infer(NAME, [features()], outputs=[triton.InferRequestedOutput("nosuch")])


def test_triton_controls_the_repository(client: Any, server: Any, artifacts: Any, tmp_path: Path) -> None:
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m")
    server.register("controlled", tmp_path)
    [found] = [item for item in client.get_model_repository_index() if item["name"] == "controlled.BTCUSDT"]
    assert found["state"] == "READY"
    client.infer("controlled", [features()])
    client.unload_model("controlled")
    assert not client.is_model_ready("controlled.BTCUSDT")
    with pytest.raises(InferenceServerException):
        client.infer("controlled", [features()])
    for config in (None, json.dumps({"max_batch_size": 8})):
        client.load_model("controlled", config=config)
        client.infer("controlled", [features()])


def test_aio_triton_infers_binary_json_and_packed(server: Any, alpha: str, expected: Any) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_server_live()
            assert await client.is_model_ready(NAME)
            assert (await client.get_model_metadata(NAME))["name"] == NAME
            assert await client.get_model_repository_index()
            for binary in (True, False):
                for packed in (None, "gzip", "deflate"):
                    result = await client.infer(
                        NAME, [features(binary=binary, module=triton_aio)], request_compression_algorithm=packed
                    )
                    assert result.as_numpy("prediction").tobytes() == expected.tobytes()
            rows = np.tile(ROWS, (100, 1))
            result = await client.infer(NAME, [features(rows, module=triton_aio)])
            assert result.as_numpy("prediction").tobytes() == np.tile(expected, 100).tobytes()
            with pytest.raises(InferenceServerException, match="Request for unknown model"):
                await client.get_model_metadata("wrong_model_name")

    asyncio.run(ask())


# --- KServe -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kserve_python() -> str:
    """A Python with KServe's client, which pins other packages to versions of its own."""
    named = os.environ.get("MMSERVER_TEST_KSERVE")
    python = named or sys.executable
    probe = subprocess.run([python, "-c", "import kserve"], capture_output=True, text=True, timeout=120, check=False)
    if probe.returncode and named:
        pytest.fail(f"MMSERVER_TEST_KSERVE names a Python without kserve: {probe.stderr[-500:]}")
    if probe.returncode:
        pytest.skip(
            "kserve is not here: install it in an environment of its own, and set MMSERVER_TEST_KSERVE to its python"
        )
    return python


def test_kserves_client_infers_in_every_form(server: Any, alpha: str, expected: Any, kserve_python: str) -> None:
    asked = json.dumps({"url": server.url, "model": NAME, "rows": np.where(np.isnan(ROWS), None, ROWS).tolist()})
    done = subprocess.run(
        [kserve_python, KSERVE_CLIENT], input=asked, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["health"] == {"live": True, "ready": True, "model_ready": True, "unknown_ready": False}
    assert len(said["predictions"]) == 6
    for form, prediction in said["predictions"].items():
        assert np.float32(prediction).tobytes() == expected.tobytes(), form
    assert "Request for unknown model" in said["unknown_model"]


# --- what no client would send ----------------------------------------------------------------------------------------


class Raw:
    """Requests byte by byte, each followed by a look whether the server lives."""

    def __init__(self, port: int) -> None:
        self._port = port

    def post(self, body: Any, path: str = INFER, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", path, body, sent, encode_chunked=not isinstance(body, bytes))
            response = connection.getresponse()
            status, said = response.status, response.read()
            connection.request("GET", "/v2/health/live")
            live = connection.getresponse()
            assert (live.status, live.read()) == (200, b'{"live":true}')
        except http.client.RemoteDisconnected:
            connection.close()
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().read() == b'{"live":true}'
        finally:
            connection.close()
        return status, said

    def refused(self, body: Any, path: str = INFER, **headers: str) -> int:
        status, said = self.post(body, path, **headers)
        assert isinstance(json.loads(said)["error"], str)
        return status


@pytest.fixture
def raw(server: Any, alpha: str) -> Raw:
    return Raw(server.port)


def request_text(shape: list[int], **parameters: Any) -> bytes:
    tensor = {"name": "features", "shape": shape, "datatype": "FP32", "parameters": parameters}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()


def test_a_raw_body_is_answered(raw: Raw, expected: Any) -> None:
    status, said = raw.post(ROWS.tobytes(), **{HEADER.replace("-", "_"): "0"})
    assert status == 200
    assert expected.tobytes() in said


def test_a_request_in_chunks_is_answered(raw: Raw, expected: Any) -> None:
    text = request_text([6, 5], binary_data_size=120)
    body = text + ROWS.tobytes()
    chunks = (body[start : start + 13] for start in range(0, len(body), 13))
    status, said = raw.post(chunks, Transfer_Encoding="chunked", **{HEADER.replace("-", "_"): str(len(text))})
    assert status == 200
    assert expected.tobytes() in said


@pytest.mark.parametrize(
    ("shape", "size", "tail"),
    [
        pytest.param([6, 5], 120, 119, id="a byte short"),
        pytest.param([6, 5], 120, 121, id="a byte over"),
        pytest.param([6, 5], 2**32 + 120, 120, id="size modulo 2^32"),
        pytest.param([6, 5], 2**64 + 120, 120, id="size modulo 2^64"),
        pytest.param([6, 5], -120, 120, id="negative size"),
        pytest.param([2**62 + 6, 5], 120, 120, id="count modulo 2^64"),
        pytest.param([2**31, 2**31], 0, 0, id="count overflow"),
        pytest.param([-6, -5], 120, 120, id="negative dimensions"),
        pytest.param([30], 120, 120, id="one dimension"),
    ],
)
def test_sizes_that_do_not_agree_are_400(raw: Raw, shape: list[int], size: int, tail: int) -> None:
    text = request_text(shape, binary_data_size=size)
    assert raw.refused(text + bytes(tail), **{HEADER.replace("-", "_"): str(len(text))}) == 400


@pytest.mark.parametrize("length", ["-1", "99999", "1", "x", "18446744073709551616"])
def test_a_header_length_out_of_range_is_400(raw: Raw, length: str) -> None:
    text = request_text([6, 5], binary_data_size=120)
    assert raw.refused(text + ROWS.tobytes(), **{HEADER.replace("-", "_"): length}) == 400


@pytest.mark.parametrize("depth", [33, 101, 250_000])
def test_json_however_deep_is_400(raw: Raw, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for text in (nested, b'{"inputs":' + nested + b"}", b'{"parameters":{"a":' + nested + b"}}"):
        assert raw.refused(text, Content_Type="application/json") == 400


def test_an_output_named_twice_is_400(raw: Raw) -> None:
    body = {"inputs": [{"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [0] * 5}]}
    outputs = [{"name": "prediction"}, {"name": "prediction"}]
    assert raw.refused(json.dumps({**body, "outputs": outputs}).encode()) == 400


def test_a_body_that_is_too_large_is_413_in_the_protocols_form(raw: Raw) -> None:
    assert raw.refused(bytes(9 << 20)) == 413
    assert raw.refused((bytes(1 << 16) for _ in range(144)), Transfer_Encoding="chunked") == 413


def test_addresses_and_methods_that_are_not_there_are_told_in_the_protocols_form(raw: Raw) -> None:
    assert raw.refused(b"", "/v2/nosuch") == 404
    assert raw.refused(b"", "/v2/health/live") == 405
