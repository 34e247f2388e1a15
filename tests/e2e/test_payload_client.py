"""What bots download, read by a client that knows nothing of mmserver: plain Python, which proves its loader first."""

import base64
import gzip
import json
import struct
from pathlib import Path
from typing import Any

import brotli
import httpx
import numpy as np
import pytest
import zstandard

DECODERS = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    "identity": bytes,
}


def f32(value: float) -> float:
    """The nearest float32, as a Python number; beyond their range, infinity."""
    try:
        found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
    return found


def margin(model: Any, row: list[float | None]) -> float:
    """XGBoost's sum for one row of a single-output model, by the rules that the manifest states and nothing else."""
    learner = model["learner"]
    text = learner["learner_model_param"]["base_score"].strip("[]")
    objective = learner["objective"]["name"]
    base = float(text)
    total = f32(np.log(base / (1 - base))) if objective == "binary:logistic" else f32(base)
    for tree in learner["gradient_booster"]["model"]["trees"]:
        node = 0
        while tree["left_children"][node] != -1:
            value = row[tree["split_indices"][node]]
            if value is None:
                goes_left = bool(tree["default_left"][node])
            else:
                goes_left = f32(value) < f32(tree["split_conditions"][node])
            node = tree["left_children" if goes_left else "right_children"][node]
        total = f32(total + f32(tree["split_conditions"][node]))
    return total


def prove(server: Any, model_name: str, symbol: str) -> int:
    """Load the model, and hold every golden row against it; returns how many rows agreed."""
    url = f"/api/models/{model_name}/model/{symbol}"
    manifest = server.get(url, params={"format": "manifest"})
    model = json.loads(server.get(url)["payload"]["model_json"])
    golden = manifest["golden"]
    for row, expected in zip(golden["rows"], golden["outputs"]["margin"], strict=True):
        assert margin(model, row) == f32(expected[0])
    return len(golden["rows"])


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT", "SOLUSDT"])
def test_a_client_in_plain_python_proves_its_loader_with_the_golden_rows(server: Any, alpha: str, symbol: str) -> None:
    assert prove(server, alpha, symbol) >= 32


def test_the_golden_rows_of_real_models_prove_the_same_loader(server: Any, shared_artifacts: Path) -> None:
    server.register("daily", shared_artifacts / "daily_5d")
    assert sum(prove(server, "daily", symbol) for symbol in ("SP500", "NASDAQ", "WTI")) >= 96


@pytest.mark.parametrize("directory", ["daily_5d", "daily_5d_retrained", "kinds", "wide", "xgboost_1_7", "xgboost_2_1"])
def test_every_real_model_predicts_what_its_writer_did(server: Any, shared_artifacts: Path, directory: str) -> None:
    """Downloaded as JSON and as UBJSON, loaded into XGBoost: bit-equal to the library that wrote the pickle."""
    import xgboost

    server.register(f"golden-{directory}", shared_artifacts / directory)
    cases = sorted((shared_artifacts / "golden").glob(f"{directory}__*.json"))
    assert cases
    for path in cases:
        case = json.loads(path.read_text())
        group_key = path.stem.partition("__")[2]
        url = f"/api/models/golden-{directory}/model/{group_key.partition('_')[0]}"
        rows = np.array([[np.nan if cell is None else cell for cell in row] for row in case["rows"]], dtype=np.float32)
        expected = np.array(case["native"], dtype=np.float32)
        if expected.ndim == 2 and expected.shape[1] == 2:  # its predict_proba gives both; the model only the second
            expected = expected[:, 1]
        texts = [
            server.get(url)["payload"]["model_json"].encode(),
            server.client.get(url, params={"format": "json"}).content,
            server.client.get(url, params={"format": "ubj"}).content,
        ]
        for text in texts:
            booster = xgboost.Booster()
            booster.load_model(bytearray(text))
            booster.set_param({"nthread": 1})
            found = booster.inplace_predict(rows, validate_features=False)
            assert np.array_equal(np.asarray(found, np.float32).reshape(expected.shape), expected), path.name


@pytest.mark.parametrize("encoding", DECODERS)
def test_every_encoding_carries_the_same_payload_under_one_tag(server: Any, alpha: str, encoding: str) -> None:
    url = f"/api/models/{alpha}/model/BTCUSDT"
    with server.client.stream("GET", url, headers={"Accept-Encoding": encoding}) as response:
        raw = b"".join(response.iter_raw())
    assert response.headers.get("Content-Encoding", "identity") == encoding
    assert response.headers["Vary"] == "Accept-Encoding"
    assert int(response.headers["Content-Length"]) == len(raw)
    decoded = DECODERS[encoding](raw)
    assert decoded == server.client.get(url, headers={"Accept-Encoding": "identity"}).content
    assert response.headers["ETag"] == server.client.get(url).headers["ETag"]

    head = server.client.head(url, headers={"Accept-Encoding": encoding})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == response.headers["Content-Length"]

    known = server.client.get(url, headers={"Accept-Encoding": encoding, "If-None-Match": response.headers["ETag"]})
    assert (known.status_code, known.content) == (304, b"")
    assert known.headers["ETag"] == response.headers["ETag"]
    assert known.headers["X-Model-Version"] == server.item(alpha)["version"]


def test_the_metadata_and_the_dimensions_come_with_the_model(server: Any, alpha: str) -> None:
    body = server.get(f"/api/models/{alpha}/model/eth-usdt")
    assert (body["model_name"], body["symbol"], body["group_key"]) == (alpha, "ETHUSDT", "ETHUSDT_mid_chg_1m")
    metadata = body["payload"]["metadata"]
    expected = {"dim": 5, "train_start": "2024-01-01", "train_end": "2024-06-30", "train_samples": 300, "number": 1}
    assert expected.items() <= metadata.items()
    assert [entry["dim"] for entry in body["payload"]["dim_factors"]] == [0, 1, 2, 3, 4]


def test_the_manifest_names_the_hashes_of_the_forms(server: Any, alpha: str) -> None:
    import hashlib

    url = f"/api/models/{alpha}/model/BTCUSDT"
    hashes = server.get(url, params={"format": "manifest"})["sha256"]
    assert set(hashes) == {"json", "ubj"}
    for form, sha256 in hashes.items():
        downloaded = server.client.get(url, params={"format": form})
        assert hashlib.sha256(downloaded.content).hexdigest() == sha256
        assert "attachment" in downloaded.headers["Content-Disposition"]


@pytest.mark.parametrize(
    "query", [{"format": "exe"}, {"wait": "x"}, {"wait": "nan"}, {"wait": "-1"}, {"as_of": "noon"}]
)
def test_a_query_that_makes_no_sense_is_a_problem(server: Any, alpha: str, query: dict[str, str]) -> None:
    response: httpx.Response = server.client.get(f"/api/models/{alpha}/model/BTCUSDT", params=query)
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_basic_client_of_the_standard_library_needs_nothing_else(server: Any, alpha: str) -> None:
    """As a bot might: urllib, no keep-alive, gzip by hand."""
    import urllib.request

    request = urllib.request.Request(
        f"{server.url}/api/models/{alpha}/model/BTCUSDT",
        headers={"Accept-Encoding": "gzip", "Authorization": "Basic " + base64.b64encode(b"bot:x").decode()},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        body = json.loads(gzip.decompress(response.read()))
    assert json.loads(body["payload"]["model_json"])["learner"]
