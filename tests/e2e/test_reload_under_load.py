"""Predictions while models are loaded anew and replaced on disk: each is wholly of one version, the one that it names."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

N_CLIENTS = 4
GROUP_KEY = "BTCUSDT_mid_chg_1m"
FEATURES = [0.5, -1.0, 0.25, 0.0, 1.5]
BODY = {"symbol": "BTCUSDT", "model_name": "alpha", "features": FEATURES}
RELOADS = (("/api/ml/models/reload", {"model_name": "alpha"}), ("/api/ml/models/alpha/reload", None))
N_CHANGES = 3


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_prediction_is_of_the_version_it_names_while_models_are_reloaded_and_replaced(
    servers: Any, artifacts: Any, clients_of: Any, tmp_path: Path, until: Callable[..., Any], workers: str
) -> None:
    directory = tmp_path / "artifacts"
    artifacts.write(directory, GROUP_KEY, 0)
    server = servers.start("--workers", workers)
    server.register("alpha", directory)
    (looking,) = clients_of(server, 1)
    expected: dict[str, float] = {}
    """What each version predicts, learned while nothing changes."""

    def current() -> tuple[str, float]:
        seen = looking.ask("POST", "/predict", BODY)
        assert seen.status == 200, seen.body
        return seen.body["model_version"], seen.body["prediction"]["expected_return"]

    def is_new() -> bool:
        return current()[0] not in expected

    until(lambda: looking.ask("POST", "/predict", BODY).status == 200, "the model is known")
    label, value = current()
    expected[label] = value
    ending = threading.Event()
    seen: list[Any] = []
    reloaded: list[Any] = []

    def predict_on(client: Any) -> None:
        while not ending.is_set():
            seen.append(client.ask("POST", "/predict", BODY))
            time.sleep(0.002)

    def reload_on(client: Any) -> None:
        while not ending.is_set():
            for path, body in RELOADS:
                reloaded.append(client.ask("POST", path, body))
            time.sleep(0.05)

    clients = clients_of(server, N_CLIENTS + 1)
    for client in clients:  # each is one worker's for good, and that may not know the new model yet
        until(lambda: client.ask("POST", "/predict", BODY).status == 200, "the model is known")  # noqa: B023
    threads = [threading.Thread(target=predict_on, args=(client,)) for client in clients[1:]]
    threads.append(threading.Thread(target=reload_on, args=(clients[0],)))
    for thread in threads:
        thread.start()
    try:
        for change in range(N_CHANGES):
            until(lambda: any(one.body.get("model_version") == label for one in seen), "a client has met it")  # noqa: B023
            model = (change + 1) % 2
            artifacts.put(directory / f"{GROUP_KEY}_model.pkl", artifacts.pickles[model])
            until(is_new, "a new version predicts")
            label, value = current()
            expected[label] = value
            until(lambda: len(reloaded) >= 2 * (change + 1), "both ways to reload were taken again")  # noqa: B023
    finally:
        ending.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)

    values = list(expected.values())
    assert len(expected) == N_CHANGES + 1
    assert values[0] == values[2] != values[1] == values[3]
    assert {one.status for one in seen} == {200}
    assert {one.status for one in reloaded} == {200}
    assert {one.body["status"] for one in reloaded} == {"reloaded"}
    wrong = [
        one.body for one in seen if one.body["prediction"]["expected_return"] != expected[one.body["model_version"]]
    ]
    assert wrong == []
    assert {one.body["model_version"] for one in seen} >= set(list(expected)[:-1])
    assert server.stop() == 0
    assert " ERROR " not in server.log
