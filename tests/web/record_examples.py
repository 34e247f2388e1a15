"""Records the examples of the API's description from a running demo server, so that they are what it really answers.

    MMSERVER_DEFAULT_MODEL=demo.SP500 ./start.sh --demo --background && .venv/bin/mmserver demo data/demo --retrain
    python -m tests.web.record_examples http://127.0.0.1:6300 > mmserver/web/api_description/examples.json

Requests are whole; of answers, long lists and texts are shortened. It removes the models `demo2` and `hybrid`, which it registers.
"""

import json
import sys
from pathlib import PurePosixPath
from typing import Any

import httpx

from mmserver.web.api_description.contents import OPERATIONS
from mmserver.web.api_description.document import path_of
from mmserver.web.api_description.registry import REGISTRY

MAX_ITEMS, MAX_TEXT, MAX_FIELDS = 2, 160, 30
LAST = {"register_model": 1, "retire_registry_version": 1, "remove_model": 2, "delete_registry_version": 2}
HYBRID = {"model_name": "hybrid", "version": "1.2.0"}
PAST = {"retire_registry_version": "1.1.0", "delete_registry_version": "1.1.0"}
SHOWN_ROOT = "/srv/models"
KNOWN = {"model_name": "demo", "symbol": "SP500", "venue": "binance-futures", "name": "demo.SP500", "version": "latest"}


def shortened(value: Any) -> Any:
    if isinstance(value, list):
        return [shortened(item) for item in value[:MAX_ITEMS]]
    if isinstance(value, dict):
        return {name: shortened(item) for name, item in list(value.items())[:MAX_FIELDS]}
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return value[:MAX_TEXT] + "…"
    return value


def recorded(client: httpx.Client) -> dict[str, Any]:
    manifest = client.get("/api/models/demo/model/SP500?format=manifest").raise_for_status().json()
    factors = manifest["feature_order"]
    whole = [row for row in manifest["golden"]["rows"] if None not in row]
    row = max(whole, key=lambda row: len(set(row)))
    by_name = {factor: round(value, 4) for factor, value in zip(factors, row, strict=True)}
    vector = list(by_name.values())
    item = client.get("/api/models/demo").json()
    old, new = (client.get("/api/models/demo/versions").json()["items"][at]["version"] for at in (-1, 0))
    root = str(PurePosixPath(item["root_path"]).parent)
    venues = client.get("/api/venues").json()["items"]
    tensor = {"name": "features", "shape": [1, len(vector)], "datatype": "FP32", "data": vector}
    one = {"symbol": "SP500", "features": by_name, "model_name": "demo"}
    batch = {"requests": [one, {"symbol": "UNKNOWN", "features": [0.1], "model_name": "demo"}]}
    table = {"dataframe_split": {"columns": factors, "data": [vector]}}
    bodies: dict[str, Any] = {
        "predict": one,
        "predict_batch": batch,
        "predict_coded": one,
        "predict_batch_coded": batch,
        "reload_ml_model": {"model_name": "demo", "version": "latest"},
        "reload_ml_model_by_name": {"version": "latest"},
        "register_model": {"model_name": "demo2", "root_path": item["root_path"]},
        "rollback_model": {"version": "latest"},
        "set_quantiles": {"pkl_path": venues[0]["pkl_path"]},
        "v2_infer": {"id": "1", "inputs": [tensor]},
        "v2_infer_of_version": {"id": "1", "inputs": [tensor]},
        "v2_index": {"ready": True},
        "v2_load": {"parameters": {}},
        "v2_unload": {"parameters": {}},
        "invoke": table,
        "invoke_model": table,
        "invoke_version": table,
    }
    bodies |= registry_bodies(client, item["root_path"], factors)
    csv = ",".join(factors) + "\n" + ",".join(map(str, vector)) + "\n"
    queries: dict[str, Any] = {
        "list_audit": {"actor": "anonymous*", "action": "model.registered"},
        "diff_versions": {"from": old, "to": new},
        "list_versions": {"limit": 1},
        "compare_registry_versions": {"version1": "1.0.0", "version2": "1.1.0"},
    }
    examples: dict[str, Any] = shortened(optimization_examples(client))
    trial = trial_versions(client, item["root_path"])
    examples |= shortened(experiment_examples(client, *trial, {**one, "model_name": "trial"}))
    client.delete("/api/models/trial").raise_for_status()
    for operation in sorted(OPERATIONS, key=lambda operation: LAST.get(operation.name, 0)):
        name = operation.name
        if name in examples:
            continue
        known = {
            **KNOWN,
            "model_name": {"invoke_model": "demo.SP500", "invoke_version": "demo.SP500", "remove_model": "demo2"}.get(
                name, "demo"
            ),
            **({**HYBRID, "version": PAST.get(name, "1.2.0")} if operation.tag == REGISTRY else {}),
        }
        address = path_of(operation.rule).format(**known)
        response = client.request(operation.method, address, params=queries.get(name), json=bodies.get(name))
        assert response.status_code < 300, (name, response.status_code, response.text)
        if name == "v2_unload":
            client.post("/v2/repository/models/demo.SP500/load").raise_for_status()
        if not response.content or name == "get_openapi":
            continue
        is_json = response.headers["content-type"] == "application/json" and response.text.strip()
        answer = shortened(response.json()) if is_json else response.text
        examples[name] = {"request": bodies[name], "response": answer} if name in bodies else {"response": answer}
        if bodies.get(name) is table:
            same = client.post(address, content=csv, headers={"Content-Type": "text/csv"}).raise_for_status()
            assert same.content == response.content
            examples[name]["request_csv"] = csv
    client.put("/api/ml/registry/models/hybrid/1.2.0/stage", json={"stage": "None"}).raise_for_status()
    client.delete("/api/models/hybrid").raise_for_status()
    text = json.dumps(examples).replace(root, SHOWN_ROOT)
    return dict(sorted(json.loads(text).items()))


def registry_bodies(client: httpx.Client, root: str, factors: list[str]) -> dict[str, Any]:
    """What is sent to the registry, once two versions are there and were in production one after the other."""
    address = "/api/ml/registry/models"
    said = {"description": "Five days of the S&P 500", "training_params": {"n_estimators": 120, "max_depth": 4}}
    for version, symbol, ic in (("1.0.0", "SP500", 0.031), ("1.1.0", "NASDAQ", 0.034)):
        path = f"{root}/{symbol}_ret_5d_model.pkl"
        body = {"name": "hybrid", "version": version, "path": path, "metrics": {"ic": ic}, **said}
        client.post(address, json=body).raise_for_status()
        client.post(f"{address}/hybrid/{version}/promote").raise_for_status()
    path = f"{root}/SP500_ret_5d_model.pkl"
    new = {"name": "hybrid", "version": "1.2.0", "path": path, "metrics": {"ic": 0.036}, "factors": factors, **said}
    return {
        "register_version": new,
        "rollback_registry_model": {"from": "1.1.0"},
        "set_registry_stage": {"stage": "Staging"},
        "describe_registry_version": {"description": "The same with better factors", "tags": {"desk": "equity"}},
        "update_registry_metrics": {"metrics": {"sharpe": 1.4, "ic": None}},
    }


def trial_versions(client: httpx.Client, root: str) -> list[tuple[str, str]]:
    """Two versions of a model `trial`."""
    for version, symbol in (("1.0.0", "SP500"), ("1.1.0", "NASDAQ")):
        body = {"name": "trial", "version": version, "path": f"{root}/{symbol}_ret_5d_model.pkl"}
        client.post("/api/ml/registry/models", json=body).raise_for_status()
    return [("trial", "1.0.0"), ("trial", "1.1.0")]


def experiment_examples(
    client: httpx.Client, control: tuple[str, str], treatment: tuple[str, str], one: dict[str, Any]
) -> dict[str, Any]:
    """From a draft to what is applied, with predictions and outcomes on the way."""
    address = "/api/ml/experiments"
    exact = f"{address}/sp500-v2"
    plan = {
        "experiment_id": "sp500-v2",
        **{"control_model": control[0], "control_version": control[1]},
        **{"treatment_model": treatment[0], "treatment_version": treatment[1]},
        **{"traffic_split": 0.9, "auto": False, "start": False},
    }
    found: dict[str, Any] = {}

    def ask(name: str, method: str, path: str, body: Any = None) -> Any:
        answer = client.request(method, path, json=body).raise_for_status().json()
        found[name] = {"response": answer} if body is None else {"request": body, "response": answer}
        return answer

    ask("create_experiment", "POST", address, plan)
    ask("change_experiment", "PATCH", exact, {"traffic_split": 0.8})
    ask("start_experiment", "POST", f"{exact}/start")
    ask("ramp_experiment", "POST", f"{exact}/ramp", {"traffic_split": 0.5})
    predicted = client.post("/predict/batch", json={"requests": [one] * 4}).raise_for_status().json()["predictions"]
    ids = [item["prediction_id"] for item in predicted]
    outcomes = [{"prediction_id": name, "realized_return": 0.004, "label": "BUY"} for name in ids]
    ask("add_outcomes", "POST", f"{exact}/outcomes", outcomes)
    price = {"symbol": one["symbol"], "price": 6021.5, "time": predicted[0]["timestamp"]}
    ask("add_any_outcomes", "POST", "/api/ml/outcomes", outcomes[:1])
    ask("add_prices", "POST", "/api/ml/outcomes/prices", {"prices": [price]})
    ask("get_experiment", "GET", exact)
    ask("list_experiments", "GET", address)
    ask("analyse_experiment", "GET", f"{exact}/analysis")
    ask("stop_experiment", "POST", f"{exact}/stop")
    ask("apply_experiment", "POST", f"{exact}/apply", {"action": "keep"})
    ask("list_evaluations", "GET", f"{exact}/evaluations?limit=1")
    last = client.get(f"{exact}/evaluations?limit=1").raise_for_status().json()["items"][0]["id"]
    ask("replay_evaluation", "GET", f"{exact}/evaluations/{last}")
    return found


def optimization_examples(client: httpx.Client) -> dict[str, Any]:
    """Of a small network: the other models here are trees."""
    from tests.conversion.networks import recurrent

    model, address = "/api/models/network", "/api/ml/registry/models"
    said, file = {"name": "network", "version": "1.0.0"}, ("network.onnx", recurrent(hidden=256))
    client.post(address, data=said, files={"file": file}).raise_for_status()
    wish = {"variants": ["fp32", "int8_dynamic"], "benchmark": True}
    done = client.post(f"{address}/network/1.0.0/optimize", json=wish).raise_for_status().json()
    listed = client.get(f"{address}/network/1.0.0/optimizations").raise_for_status().json()
    client.delete(model).raise_for_status()
    return {
        "optimize_registry_version": {"request": wish, "response": done},
        "list_registry_optimizations": {"response": listed},
    }


if __name__ == "__main__":
    with httpx.Client(base_url=sys.argv[1], trust_env=False, timeout=60) as opened:
        lines = [
            json.dumps(name) + ":" + json.dumps(example, ensure_ascii=False, separators=(",", ":"))
            for name, example in recorded(opened).items()
        ]
        print("{\n" + ",\n".join(lines) + "\n}")
