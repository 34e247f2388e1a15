"""What real processes serve outside experiments is logged before it is answered, through every protocol, and outlives a kill."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ROW = [0.1, -0.2, 0.3, 0.4, -0.5]
N_ROWS = 400


def ask_all(server: Any, name: str) -> list[str]:
    """Predictions through every protocol; the ids by which their answers name them."""
    with httpx.Client(base_url=server.url, timeout=60.0) as client:
        body = {"symbol": "BTCUSDT", "features": ROW, "model_name": name}
        ids = [client.post("/predict", json=body).raise_for_status().json()["prediction_id"] for _ in range(20)]
        for path in ("/predict/batch", "/api/ml/predict/batch"):
            found = client.post(path, json={"requests": [body] * N_ROWS}).raise_for_status().json()["predictions"]
            ids += [item["prediction_id"] for item in found]
        tensor = {"name": "features", "shape": [N_ROWS, len(ROW)], "datatype": "FP32", "data": ROW * N_ROWS}
        infer = f"/v2/models/{name}.BTCUSDT/infer"
        answer = client.post(infer, json={"inputs": [tensor]}).raise_for_status().json()
        ids += [f"{answer['parameters']['prediction_id']}.{n}" for n in range(N_ROWS)]
        asked = {"inputs": [{**tensor, "parameters": {"binary_data_size": 4 * len(ROW) * N_ROWS}}]}
        del asked["inputs"][0]["data"]
        text = json.dumps(asked).encode()
        length = {"Inference-Header-Content-Length": str(len(text))}
        answer = (
            client.post(infer, content=text + bytes(4 * len(ROW) * N_ROWS), headers=length).raise_for_status().json()
        )
        ids += [f"{answer['parameters']['prediction_id']}.{n}" for n in range(N_ROWS)]
        scored = client.post(f"/models/{name}/invocations", json={"inputs": [ROW] * N_ROWS}).raise_for_status()
        return ids + [f"{scored.headers['X-Prediction-Id']}.{n}" for n in range(N_ROWS)]


def report_on(server: Any, ids: list[str]) -> Any:
    outcomes = [{"prediction_id": name, "label": "BUY"} for name in ids]
    return httpx.post(f"{server.url}/api/ml/outcomes", json=outcomes, timeout=120.0).raise_for_status().json()


def test_every_row_outlives_a_kill_and_two_processes_with_a_smaller_sample_log_that_share(
    servers: Any, artifacts: Any, tmp_path: Path, mmserver: Callable[..., Any]
) -> None:
    server = servers.start(MMSERVER_OBSERVATIONS_SAMPLE="1")
    artifacts.write(tmp_path / "seen", "BTCUSDT_mid_chg_1m", 0)
    server.register("seen", tmp_path / "seen")
    ids = ask_all(server, "seen")
    server.kill()
    again = servers.start("--workers", "2", data_dir=server.data_dir, MMSERVER_OBSERVATIONS_SAMPLE="0.1")
    report = report_on(again, ids)
    assert (report["n_accepted"], report["n_unknown"]) == (len(ids), 0)
    sampled = ask_all(again, "seen")
    report = report_on(again, sampled)
    n_logged = report["n_accepted"]
    assert n_logged + report["n_unknown"] == len(sampled)
    assert abs(n_logged - 0.1 * len(sampled)) < 5 * math.sqrt(len(sampled) * 0.1 * 0.9)
    assert again.stop() == 0
    [row] = json.loads(mmserver("observations", "models", "--data-dir", server.data_dir, "--json").stdout)["items"]
    assert (row["model_name"], row["n_predictions"]) == ("seen", len(ids) + n_logged)
    assert row["n_labelled"] == row["n_predictions"]
