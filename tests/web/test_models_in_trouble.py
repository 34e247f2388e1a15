"""Predictions while their model is unloaded, does not load, is replaced or removed: a whole answer or a refusal by name, never half of one."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from mmserver.catalog.catalog import Actor
from mmserver.catalog.refreshing import refresh_model
from mmserver.catalog.registering import register_model, remove_model
from mmserver.catalog.stored_models import stored_content_sha256
from mmserver.serving.crash_ledger import DIRECTORY_NAME, MAX_CRASHES

TEST = Actor("test")
ROW = [0.25, -1.5, 0.75]


def model_text(parameters: dict[str, Any]) -> dict[str, Any]:
    rows = np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32)
    data = xgboost.DMatrix(rows, label=rows[:, 0])
    booster = xgboost.train({"max_depth": 2, "nthread": 1, **parameters}, data, num_boost_round=4)
    found: dict[str, Any] = json.loads(booster.save_raw("json"))
    return found


@pytest.fixture
def with_model(
    web: Any, tmp_path: Path, group_writer: Callable[..., None], request: pytest.FixtureRequest
) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Registers a model of this test's own from an XGBoost document; gives its name."""
    name = f"own-{abs(hash(request.node.nodeid))}"

    def register(document: dict[str, Any]) -> str:
        group_writer(tmp_path / name, "BTCUSDT_ret_1h", has_model=False)
        (tmp_path / name / "BTCUSDT_ret_1h_model.json").write_text(json.dumps(document))
        register_model(web.store, name, str(tmp_path / name), TEST)
        return name

    yield register
    if name in web.store.catalog.models:
        remove_model(web.store, name, TEST)


def ways(web: Any, name: str, row: Any = ROW) -> dict[str, Any]:
    """The responses to one row in every way of asking; none of them has a query but those that are to miss the quick routes."""
    body = {"symbol": "BTCUSDT", "features": row, "model_name": name}
    tensor = {"inputs": [{"name": "features", "shape": [1, 3], "datatype": "FP32", "data": row}]}
    v2 = f"/v2/models/{name}.BTCUSDT/infer"
    return {
        "quick": web.client.post("/predict", json=body),
        "view": web.client.post("/predict?flask=1", json=body),
        "codes": web.client.post("/api/ml/predict", json=body),
        "batch": web.client.post("/predict/batch", json={"requests": [body]}),
        "v2": web.client.post(v2, json=tensor),
        "v2 view": web.client.post(f"{v2}?flask=1", json=tensor),
        "scoring": web.client.post(f"/models/{name}.BTCUSDT/invocations", json={"inputs": [row]}),
    }


def all_refused(responses: dict[str, Any], status: int, code: str) -> None:
    (item,) = responses.pop("batch").json["predictions"]
    assert item["error"]["code"] == code
    for way, response in responses.items():
        assert (response.status_code, response.json["code"]) == (status, code), way
        assert (int(response.headers.get("Retry-After", 0)) > 0) == (status == 503), way


def all_answered(responses: dict[str, Any]) -> None:
    assert {way: response.status_code for way, response in responses.items()} == dict.fromkeys(responses, 200)
    (item,) = responses["batch"].json["predictions"]
    assert item["prediction"] == responses["view"].json["prediction"]


def test_an_unloaded_model_is_503_in_every_way_until_it_is_loaded(
    web: Any, with_model: Callable[[dict[str, Any]], str]
) -> None:
    name = with_model(model_text({}))
    all_answered(ways(web, name))
    assert web.client.post(f"/v2/repository/models/{name}/unload").status_code == 200
    all_refused(ways(web, name), 503, "not_ready")
    assert web.client.post(f"/v2/repository/models/{name}/load").status_code == 200
    all_answered(ways(web, name))


def test_a_model_that_does_not_load_is_503_in_every_way_until_it_is_reloaded(
    web: Any, with_model: Callable[[dict[str, Any]], str]
) -> None:
    name = with_model(model_text({"booster": "dart", "rate_drop": 0.5}))
    (group,) = web.store.model(name).serving.groups.values()
    ledger = web.store.settings.data_dir / DIRECTORY_NAME
    ledger.mkdir(exist_ok=True)
    for number in range(MAX_CRASHES):  # what processes leave that die while they load it
        (ledger / f"{stored_content_sha256(web.store.database, group)}.{number}").touch()
    all_refused(ways(web, name), 503, "predictor_unloadable")
    all_refused(ways(web, name), 503, "predictor_unloadable")
    assert web.client.post(f"/api/ml/models/{name}/reload").json["status"] == "reloaded"
    all_answered(ways(web, name))


def test_a_removed_model_is_404_in_every_way(web: Any, with_model: Callable[[dict[str, Any]], str]) -> None:
    name = with_model(model_text({}))
    all_answered(ways(web, name))
    remove_model(web.store, name, TEST)
    all_refused(ways(web, name), 404, "model_not_found")


def test_a_sum_of_leaves_beyond_float32_is_an_error_in_every_way(
    web: Any, with_model: Callable[[dict[str, Any]], str]
) -> None:
    document = model_text({})
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        for node, left in enumerate(tree["left_children"]):
            if left == -1:
                tree["split_conditions"][node] = 3e38
    name = with_model(document)
    all_refused(ways(web, name), 500, "prediction_not_finite")


def test_while_a_model_is_replaced_reloaded_and_removed_every_answer_is_one_versions_own(
    web: Any, group_writer: Callable[..., None], changing: Any
) -> None:
    name, directory = changing.directory.name, changing.directory
    seen: list[tuple[str, int, str, Any]] = []
    stop = threading.Event()

    def ask() -> None:
        client = web.app.test_client(use_cookies=False)
        body = {"symbol": "BTCUSDT", "features": ROW, "model_name": name}
        tensor = {"inputs": [{"name": "features", "shape": [1, 3], "datatype": "FP32", "data": ROW}]}
        while not stop.is_set():
            for way, path in (("quick", "/predict"), ("view", "/predict?flask=1")):
                found = client.post(path, json=body)
                is_one = found.status_code == 200
                said = found.json["model_version"] if is_one else found.json["code"]
                value = found.json["prediction"]["expected_return"] if is_one else None
                seen.append((way, found.status_code, said, value))
            found = client.post(f"/v2/models/{name}.BTCUSDT/infer", json=tensor)
            is_one = found.status_code == 200
            said = found.json["model_version"] if is_one else found.json["code"]
            seen.append(("v2", found.status_code, said, found.json["outputs"][0]["data"][0] if is_one else None))

    def value_by_version() -> tuple[str, float]:
        answer = web.client.post("/predict", json={"symbol": "BTCUSDT", "features": ROW, "model_name": name}).json
        return answer["model_version"], answer["prediction"]["expected_return"]

    known = dict([value_by_version()])
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for seed in (11, 12, 13):
            group_writer(directory, "BTCUSDT_ret_1h", seed=seed)
            refresh_model(web.store, name, TEST)
            known.update([value_by_version()])
            assert web.client.post(f"/api/ml/models/{name}/reload").status_code == 200
        remove_model(web.store, name, TEST)
        n_before = len(seen)
        while len(seen) < n_before + 50 and any(thread.is_alive() for thread in threads):
            stop.wait(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert len(known) == 4
    assert len(set(known.values())) == 4
    for way, status, said, value in seen:
        if status == 200:
            assert value == known[said], way
        else:
            assert (status, said) in ((404, "model_not_found"), (404, "group_has_no_model")), way
    assert {said for _, status, said, _ in seen if status == 200} >= set(list(known)[:1])
    assert 404 in {status for _, status, _, _ in seen[n_before:]}
    gone = web.client.post("/predict", json={"symbol": "BTCUSDT", "features": ROW, "model_name": name})
    assert gone.status_code == 404
