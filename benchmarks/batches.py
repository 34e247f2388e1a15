"""256 rows of the wide model a request: as binary tensors and as JSON by the Open Inference Protocol, and as single requests in a batch.

python -m benchmarks.batches [--smoke]
"""

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.contest import Contender, Rules, interleaved
from benchmarks.data_dirs import make_data_dir
from benchmarks.load import Asked
from benchmarks.measuring import Goal, machine, print_goals, print_table
from benchmarks.servers import SMOKE_OPTIONS, Server, mmserver
from benchmarks.subject import MODEL_NAME, N_ROWS, Subject, make_subject

RULES = Rules(n_connections=(1, 4), n_rounds=3, round_s=3.0)
SMOKE_RULES = Rules(n_connections=(2,), n_rounds=1, round_s=1.0, warm_up_s=0.0)
BINARY, V2_JSON, BATCH = "/v2/…/infer, binary tensors", "/v2/…/infer, JSON", "/predict/batch"
GOALS_ROWS_PER_S = {BINARY: 150_000, V2_JSON: 30_000, BATCH: None}
LENGTH_HEADER = "Inference-Header-Content-Length"
JSON = {"Content-Type": "application/json"}
Rows = npt.NDArray[np.float32]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batches", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round")
    is_smoke = parser.parse_args(arguments).smoke
    rules = SMOKE_RULES if is_smoke else RULES
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        subject = make_subject(work, is_small=is_smoke)
        make_data_dir(work / "data", {MODEL_NAME: subject.artifacts})
        with mmserver(work / "data", *(SMOKE_OPTIONS if is_smoke else ())) as server:
            contenders = [
                Contender(BINARY, server, _binary(server, subject.rows)),
                Contender(V2_JSON, server, _v2_json(server, subject.rows)),
                Contender(BATCH, server, _batch(server, subject)),
            ]
            for contender, read in zip(contenders, (_read_binary, _read_v2_json, _read_batch), strict=True):
                _check(contender, read, subject.expected)
            results = interleaved(contenders, rules)
    print(f"\n{machine()}; {rules}; {subject.description}")
    rows, goals = [], []
    for contender in contenders:
        rates = {}
        for n in rules.n_connections:
            figures = results[contender.name, n]
            rates[n] = figures.requests_per_s * N_ROWS
            cpu_us = figures.cpu_s_per_request / N_ROWS * 1e6
            rows.append(
                (
                    contender.name,
                    len(contender.asked.body),
                    n,
                    rates[n],
                    figures.p50_s * 1e3,
                    figures.p99_s * 1e3,
                    cpu_us,
                )
            )
        what = f"rows/s by {contender.name}, {N_ROWS} rows a request"
        goals.append(Goal(what, max(rates.values()), at_least=GOALS_ROWS_PER_S[contender.name]))
    columns = ("what", "bytes/request", "connections", "rows/s", "p50 ms", "p99 ms", "CPU µs/row")
    print_table(f"{N_ROWS} rows a request, {results[BINARY, rules.n_connections[0]].tool}", columns, rows)
    print_goals(goals)


def _infer(server: Server) -> str:
    return f"{server.url}/v2/models/{MODEL_NAME}/infer"


def _binary(server: Server, rows: Rows) -> Asked:
    tensor = {"name": "features", "shape": list(rows.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": rows.nbytes}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(header))}
    return Asked(_infer(server), headers, "POST", header + rows.tobytes())


def _v2_json(server: Server, rows: Rows) -> Asked:
    tensor = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    return Asked(_infer(server), JSON, "POST", json.dumps({"inputs": [tensor]}).encode())


def _batch(server: Server, subject: Subject) -> Asked:
    asked = {"symbol": subject.symbol, "model_name": MODEL_NAME}
    requests = [asked | {"features": row} for row in subject.rows.tolist()]
    return Asked(server.url + "/predict/batch", JSON, "POST", json.dumps({"requests": requests}).encode())


def _read_binary(received: bytes, headers: Any) -> Rows:
    length = int(headers[LENGTH_HEADER])
    outputs = json.loads(received[:length])["outputs"]
    at = length
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        if output["name"] == "prediction":
            return np.frombuffer(received[at : at + size], "<f4")
        at += size
    raise SystemExit(f"no output is called prediction: {outputs}")


def _read_v2_json(received: bytes, headers: Any) -> Rows:
    outputs = json.loads(received)["outputs"]
    return np.array(next(output["data"] for output in outputs if output["name"] == "prediction"), np.float32)


def _read_batch(received: bytes, headers: Any) -> Rows:
    predictions = json.loads(received)["predictions"]
    return np.array([one["prediction"]["expected_return"] for one in predictions], np.float32)


def _check(contender: Contender, read: Callable[[bytes, Any], Rows], expected: Rows) -> None:
    """Raises SystemExit where one bit of one row is not what XGBoost predicts."""
    asked = contender.asked
    request = urllib.request.Request(asked.url, asked.body, asked.headers, method=asked.method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        found = read(answer.read(), answer.headers)
    if found.shape != expected.shape or not np.array_equal(found, expected):
        raise SystemExit(f"{contender.name} predicts something else than XGBoost in {(found != expected).sum()} rows")


if __name__ == "__main__":
    main()
