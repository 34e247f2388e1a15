"""What an operator takes out of service stays out of it, on a server that loads everything ahead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FEATURES = [0.5, -0.25, 1.5, 55.0, 1.0]
TENSOR = {"name": "features", "shape": [1, 5], "datatype": "FP32", "data": FEATURES}
OPERATED, OTHER = "alpha", "omega"  # in the order in which they are loaded


def is_loaded(server: Any, model_name: str) -> bool:
    """Whether what is served now of the model is in memory."""
    return bool(next(item["loaded"] for item in server.get("/api/ml/models") if item["name"] == model_name))


def statuses(server: Any, model_name: str) -> list[int]:
    """Of everything that predicts with the model, and whether it says that it is ready."""
    body = {"symbol": "BTCUSDT", "features": FEATURES, "model_name": model_name}
    path = f"/v2/models/{model_name}.BTCUSDT"
    return [
        server.client.post("/predict", json=body).status_code,
        server.client.post(f"{path}/infer", json={"inputs": [TENSOR]}).status_code,
        server.client.get(f"{path}/ready").status_code,
    ]


def operate(server: Any, what: str) -> None:
    answer = server.client.post(f"/v2/repository/models/{OPERATED}.BTCUSDT/{what}")
    assert answer.status_code == 200, answer.text


def test_an_unloaded_model_stays_so_through_new_versions_where_everything_is_loaded_ahead(
    servers: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    server = servers.start(MMSERVER_WARM="all")
    names = (OPERATED, OTHER)
    for number, name in enumerate(names):
        artifacts.write(tmp_path / name, "BTCUSDT_mid_chg_1m", number)
        server.register(name, tmp_path / name)
    until(lambda: all(is_loaded(server, name) for name in names), "all is loaded ahead")
    operate(server, "unload")
    until(lambda: not is_loaded(server, OPERATED), "its memory is given back")
    before = {name: server.item(name)["version"] for name in names}
    for number, name in enumerate(names):
        artifacts.write(tmp_path / name, "BTCUSDT_mid_chg_1m", 2, ic=0.1 + number / 10)
    until(lambda: all(server.item(name)["version"] != before[name] for name in names), "new versions of both")
    until(lambda: is_loaded(server, OTHER), "what is loaded after it is loaded")
    assert not is_loaded(server, OPERATED)
    assert statuses(server, OPERATED) == [503, 503, 503]
    assert statuses(server, OTHER) == [200, 200, 200]
    assert not is_loaded(server, OPERATED)
    operate(server, "load")
    assert is_loaded(server, OPERATED)
    assert statuses(server, OPERATED) == [200, 200, 200]
