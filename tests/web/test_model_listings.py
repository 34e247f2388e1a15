"""Models and health in the words of earlier services."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.catalog import history, registering
from mmserver.catalog.catalog import Actor
from mmserver.catalog.refreshing import refresh_model

TEST = Actor("test")
INFO = {"dim": 3, "metrics": {"ic": 0.03, "accuracy": 0.625}, "training_date": "2025-11-01"}


@pytest.fixture(scope="module")
def one_group(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """A store of this module's own with model `solo`, one group, which no test changes."""
    directory = tmp_path_factory.mktemp("solo")
    web = make_web(directory)
    group_writer(directory / "solo", "BTCUSDT_ret_1h", info=INFO, seed=1)
    registering.register_model(web.store, "solo", str(directory / "solo"), TEST)
    return web


def listed(items: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(item for item in items if item["name"] == name)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_the_bare_list_says_what_each_model_serves(one_group: Any) -> None:
    (item,) = one_group.json("/api/ml/models")
    size = (one_group.directory / "solo" / "BTCUSDT_ret_1h_model.json").stat().st_size
    assert item == {
        "name": "solo",
        "version": one_group.store.model("solo").serving.label,
        "stage": "Production",
        "model_type": "xgboost",
        "metrics": {"ic": 0.03, "accuracy": 0.625},
        "size_mb": pytest.approx(size / 2**20, abs=1e-6),
        "loaded": False,
    }


def test_a_version_of_several_groups_has_no_metrics_of_its_own(web: Any) -> None:
    item = listed(web.json("/api/ml/models"), "alpha")
    assert item["metrics"] == {}
    assert item["model_type"] == "xgboost"
    assert item["size_mb"] > 0
    item = listed(web.json("/models")["models"], "alpha")
    assert item["accuracy"] is None
    assert item["training_date"] is None


def test_models_have_their_features_and_what_their_info_file_says(one_group: Any) -> None:
    (item,) = one_group.json("/models")["models"]
    assert item == {
        "name": "solo",
        "version": one_group.store.model("solo").serving.label,
        "status": "ok",
        "accuracy": 0.625,
        "training_date": "2025-11-01",
        "features": list(one_group.store.model("solo").serving.factors),
    }


def test_versions_of_a_model_come_newest_first_with_their_own_facts(
    changing: Any, group_writer: Callable[..., None]
) -> None:
    name, store = changing.directory.name, changing.store
    group_writer(changing.directory, "BTCUSDT_ret_1h", info=INFO, seed=1)
    refresh_model(store, name, TEST)
    first = store.model(name).serving.label
    newer = {**INFO, "metrics": {"accuracy": 0.7}, "training_date": "2025-12-01"}
    group_writer(changing.directory, "BTCUSDT_ret_1h", info=newer, seed=2)
    refresh_model(store, name, TEST)
    second = store.model(name).serving.label
    found = changing.json(f"/models/{name}/versions?limit=2")
    assert found == {
        "model_name": name,
        "versions": [
            {"version": second, "status": "production", "accuracy": 0.7, "training_date": "2025-12-01"},
            {"version": first, "status": "archived", "accuracy": 0.625, "training_date": "2025-11-01"},
        ],
    }
    history.rollback_model(store, name, first, TEST)
    found = changing.json(f"/models/{name}/versions?limit=2")
    assert [item["status"] for item in found["versions"]] == ["archived", "production"]
    assert listed(changing.json("/models")["models"], name)["accuracy"] == 0.625
    assert len(changing.json(f"/models/{name}/versions")["versions"]) == 3


def test_versions_of_an_unknown_model_are_404(web: Any) -> None:
    response = web.client.get("/models/nobody/versions")
    assert response.status_code == 404
    assert response.json["code"] == "model_not_found"


def test_lists_of_many_models_ask_the_database_a_few_times_and_then_not_at_all(
    web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/api/ml/models", "/models"):
        web.json(path)
    monkeypatch.setattr(type(web.store.database), "read", pytest.fail)
    for path in ("/api/ml/models", "/models"):
        assert web.json(path)


# --- health -----------------------------------------------------------------------------------------------------------


def test_health_says_in_other_words_what_readyz_says(one_group: Any) -> None:
    health = one_group.json("/health")
    ready = one_group.json("/readyz")
    assert health["status"] == {"ok": "healthy", "degraded": "degraded"}[ready["status"]]
    assert health["checks"] == ready["checks"]
    assert health["models_loaded"] == 0
    assert health["uptime_seconds"] >= 0


def test_health_is_unhealthy_when_the_database_is_not_there(one_group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmserver.errors import DatabaseBusy

    def fail(_: Any) -> int:
        raise DatabaseBusy

    monkeypatch.setattr(type(one_group.store.database), "data_version", fail)
    for path in ("/health", "/api/ml/health"):
        response = one_group.client.get(path)
        assert response.status_code == 503
        assert response.json["status"] == "unhealthy"
        assert int(response.headers["Retry-After"]) > 0


def test_uptime_grows(web: Any) -> None:
    first = web.json("/health")["uptime_seconds"]
    deadline = time.monotonic() + 60
    while web.json("/health")["uptime_seconds"] <= first:
        assert time.monotonic() < deadline


def test_ml_health_names_what_is_loaded(one_group: Any) -> None:
    health = one_group.json("/api/ml/health")
    assert set(health) == {
        "status",
        "timestamp",
        "loaded_models",
        "active_experiments",
        "observations",
        "uptime_seconds",
    }
    assert health["loaded_models"] == []
    assert health["active_experiments"] == 0
    assert health["timestamp"].endswith("Z")


@pytest.mark.parametrize("path", ["/health", "/api/ml/health", "/api/ml/models", "/models", "/models/alpha/versions"])
def test_head_has_no_body_and_options_name_the_methods(web: Any, path: str) -> None:
    response = web.client.head(path)
    assert response.status_code in (200, 503)
    assert response.data == b""
    response = web.client.options(path)
    assert response.status_code == 200
    assert set(response.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    response = web.client.delete(path)
    assert response.status_code == 405
    assert "GET" in response.headers["Allow"]


# --- reload -----------------------------------------------------------------------------------------------------------

ROW = [0.25, -1.5, 0.75]


def test_what_was_asked_for_once_is_loaded(changing: Any) -> None:
    name = changing.directory.name
    body = {"symbol": "BTCUSDT", "features": ROW, "model_name": name}
    assert changing.client.post("/predict", json=body).status_code == 200
    assert listed(changing.json("/api/ml/models"), name)["loaded"] is True
    health = changing.json("/api/ml/health")
    assert f"{name}:{changing.store.model(name).serving.label}" in health["loaded_models"]
    assert changing.json("/health")["models_loaded"] >= 1


@pytest.mark.parametrize("by_path", [True, False], ids=["named in the path", "named in the body"])
def test_a_reload_says_what_was_loaded(changing: Any, by_path: bool) -> None:
    name = changing.directory.name
    response = reload(changing, name, by_path)
    assert response.status_code == 200, response.text
    assert response.json == {
        "status": "reloaded",
        "model_name": name,
        "version": changing.store.model(name).serving.label,
        "loaded": ["BTCUSDT_ret_1h"],
        "failed": [],
    }


def reload(web: Any, name: str, by_path: bool = True, **body: str) -> Any:
    if by_path:
        return web.client.post(f"/api/ml/models/{name}/reload", **({"json": body} if body else {}))
    return web.client.post("/api/ml/models/reload", json={"model_name": name, **body})


def test_a_reload_serves_what_lies_in_the_directory_now(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    body = {"symbol": "BTCUSDT", "features": ROW, "model_name": name}
    before = changing.client.post("/predict", json=body).json
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=12)
    answer = reload(changing, name).json
    after = changing.client.post("/predict", json=body).json
    assert answer["version"] == after["model_version"] != before["model_version"]
    assert after["prediction"] != before["prediction"]
    assert reload(changing, name, version=before["model_version"]).json["version"] == before["model_version"]
    assert changing.client.post("/predict", json=body).json["model_version"] == after["model_version"]


def test_a_reload_of_what_cannot_be_used_keeps_the_last_good_version(changing: Any) -> None:
    name = changing.directory.name
    body = {"symbol": "BTCUSDT", "features": ROW, "model_name": name}
    before = changing.client.post("/predict", json=body).json
    (changing.directory / "BTCUSDT_ret_1h_model.json").write_text('{"learner": ')
    response = reload(changing, name)
    assert response.status_code == 400
    assert response.json["code"] == "artifact_invalid"
    assert changing.client.post("/predict", json=body).json["prediction"] == before["prediction"]


@pytest.mark.parametrize("by_path", [True, False])
def test_a_reload_of_what_is_not_there_is_404(web: Any, by_path: bool) -> None:
    assert reload(web, "nobody", by_path).json["code"] == "model_not_found"
    response = reload(web, "alpha", by_path, version="9.9.9")
    assert (response.status_code, response.json["code"]) == (404, "version_not_found")
    assert web.client.post("/api/ml/models/reload", json={}).status_code == 400


def test_no_request_fails_or_sees_half_a_model_while_models_are_reloaded(
    changing: Any, group_writer: Callable[..., None]
) -> None:
    name, client = changing.directory.name, changing.client
    body = {"symbol": "BTCUSDT", "features": ROW, "model_name": name}
    first = client.post("/predict", json=body).json
    seen: list[Any] = []
    is_over = threading.Event()

    def ask(path: str) -> None:
        while not is_over.is_set():
            response = client.post(path, json=body)
            seen.append((response.status_code, response.json.get("model_version"), response.json.get("prediction")))

    threads = [threading.Thread(target=ask, args=(path,)) for path in ("/predict", "/predict?flask=1")]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while not seen:
        assert time.monotonic() < deadline
    for seed in range(20, 25):
        group_writer(changing.directory, "BTCUSDT_ret_1h", seed=seed)
        assert reload(changing, name).status_code == 200
        assert reload(changing, name).status_code == 200
    is_over.set()
    for thread in threads:
        thread.join(60)
    predictions = {version: prediction for _, version, prediction in seen if version}
    assert {status for status, _, _ in seen} == {200}
    assert all(prediction == predictions[version] for _, version, prediction in seen)
    assert first["model_version"] in predictions
    assert len({str(prediction) for prediction in predictions.values()}) == len(predictions) > 1
