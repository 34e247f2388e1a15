"""What is served outside experiments is logged through every protocol, with the id that its outcomes are given by."""

import csv
import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.experiments.lifecycle import create_experiment
from mmserver.experiments.observations.journal import Journal
from mmserver.experiments.planning import checked_plan
from mmserver.web.current import EXPERIMENTER_KEY, QUICK_KEY, SERVING_KEY

TEST = Actor("test")
ROW = [0.25, -1.5, 0.75]
ROWS = [[0.25, -1.5, 0.75], [1.0, 2.0, -3.0], [-0.5, 0.0, 0.125]]
JSON = {"CONTENT_TYPE": "application/json"}
BODY = {"symbol": "BTC/USDT", "features": ROW, "model_name": "alpha"}
INFER = "/v2/models/alpha.BTCUSDT/infer"


@pytest.fixture
def open_lab(tmp_path: Path, make_web: Callable[..., Any], group_writer: Callable[..., None]) -> Iterator[Any]:
    """A function that opens an application with two models of one symbol; its log ends with the test."""
    opened: list[Any] = []

    def open_(share: float, **settings: Any) -> Any:
        web = make_web(tmp_path / "data", observations_sample=share, **settings)
        for seed, name in enumerate(("alpha", "beta")):
            group_writer(tmp_path / name, "BTCUSDT_ret", seed=seed)
            if not web.store.read_only:
                register_model(web.store, name, str(tmp_path / name), TEST)
        opened.append(web)
        return web

    yield open_
    for web in opened:
        web.app.extensions[EXPERIMENTER_KEY].close()


def v2_body(**parameters: Any) -> dict[str, Any]:
    tensor = {"name": "features", "shape": [3, 3], "datatype": "FP32", "data": [x for row in ROWS for x in row]}
    return {"inputs": [tensor], **({"parameters": parameters} if parameters else {})}


def quickly(web: Any, path: str, body: bytes, **headers: str) -> Any:
    return web.app.extensions[QUICK_KEY]().answer(path, JSON | headers, body, "mine")


def logged(web: Any) -> list[dict[str, Any]]:
    """The rows that are logged, oldest first."""
    log = web.app.extensions[EXPERIMENTER_KEY].log()
    log.flush()
    with log.store().read() as raw:
        cursor = raw.execute("SELECT * FROM predictions ORDER BY id")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def features(row: dict[str, Any]) -> list[float]:
    return np.frombuffer(row["features"], "<f4").tolist()


def by_flask(web: Any) -> list[str]:
    return [web.client.post("/predict?flask=1", json=BODY).json["prediction_id"]]


def by_quick(web: Any) -> list[str]:
    web.client.post("/predict?flask=1", json=BODY | {"model_name": "beta"})  # so that something is loaded
    return [msgspec.json.decode(quickly(web, "/predict", json.dumps(BODY).encode()).body)["prediction_id"]]


def by_ml(web: Any) -> list[str]:
    return [web.client.post("/api/ml/predict", json=BODY).json["prediction_id"]]


def by_batch(web: Any, path: str = "/predict/batch") -> list[str]:
    items = [{**BODY, "features": row} for row in ROWS]
    found = web.client.post(path, json={"requests": items, "max_batch_size": 2}).json["predictions"]
    return [item["prediction_id"] for item in found]


def by_ml_batch(web: Any) -> list[str]:
    return by_batch(web, "/api/ml/predict/batch")


def by_v2_json(web: Any) -> list[str]:
    name = web.client.post(f"{INFER}?flask=1", json=v2_body()).json["parameters"]["prediction_id"]
    return [f"{name}.{n}" for n in range(3)]


def by_v2_quick(web: Any) -> list[str]:
    name = msgspec.json.decode(quickly(web, INFER, json.dumps(v2_body()).encode()).body)["parameters"]["prediction_id"]
    return [f"{name}.{n}" for n in range(3)]


def by_v2_binary(web: Any) -> list[str]:
    data = struct.pack("<9f", *(x for row in ROWS for x in row))
    answer = web.client.post(INFER, data=data, headers={"Inference-Header-Content-Length": "0"})
    length = int(answer.headers["Inference-Header-Content-Length"])
    name = json.loads(answer.data[:length])["parameters"]["prediction_id"]
    return [f"{name}.{n}" for n in range(3)]


def by_invocations(web: Any) -> list[str]:
    answer = web.client.post("/models/alpha.BTCUSDT/invocations", json={"inputs": ROWS})
    return [f"{answer.headers['X-Prediction-Id']}.{n}" for n in range(3)]


def by_invocations_of_one_row(web: Any) -> list[str]:
    answer = web.client.post("/models/alpha.BTCUSDT/invocations", json={"inputs": [ROW]})
    return [answer.headers["X-Prediction-Id"]]


WAYS = (
    by_flask, by_ml, by_batch, by_ml_batch, by_v2_json, by_v2_binary, by_invocations, by_invocations_of_one_row,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_row_is_logged_once_as_it_was_answered(open_lab: Callable[..., Any], way: Callable[[Any], Any]) -> None:
    web = open_lab(1.0)
    ids = way(web)
    check_rows(web, logged(web), ids)


@pytest.mark.parametrize("way", [by_quick, by_v2_quick], ids=lambda way: way.__name__)
def test_what_is_answered_without_flask_is_logged_once_too(
    open_lab: Callable[..., Any], way: Callable[[Any], Any]
) -> None:
    web = open_lab(1.0)
    by_flask(web)  # which loads it
    by_v2_json(web)  # which finds it by its name
    n_before = len(logged(web))
    ids = way(web)
    rows = [row for row in logged(web)[n_before:] if row["model_name"] == "alpha"]
    check_rows(web, rows, ids)


def check_rows(web: Any, rows: list[dict[str, Any]], ids: list[str]) -> None:
    assert [row["prediction_id"] for row in rows] == ids
    assert [features(row) for row in rows] == ROWS[: len(ids)]
    label = web.store.model("alpha").serving.label
    for row in rows:
        known = (row["model_name"], row["version"], row["symbol"], row["experiment"], row["error"])
        assert known == ("alpha", label, "btcusdt", None, None)
        answer = web.client.post("/api/ml/predict", json={**BODY, "features": features(row)}).json["prediction"]
        assert row["direction"] == answer["direction"]
        assert row["expected_return"] == pytest.approx(answer["expected_return"])


def test_without_a_sample_nothing_is_logged_and_answers_of_the_protocols_name_no_prediction(
    open_lab: Callable[..., Any],
) -> None:
    web = open_lab(0.0)
    for way in (by_flask, by_ml, by_batch):
        way(web)
    assert "parameters" not in web.client.post(INFER, json=v2_body()).json
    answer = web.client.post("/models/alpha.BTCUSDT/invocations", json={"inputs": ROWS})
    assert "X-Prediction-Id" not in answer.headers
    assert web.app.extensions[SERVING_KEY]().observer is None
    assert web.json("/api/ml/health")["observations"] is None
    assert not (web.directory / "observations").exists()


def test_a_v2_client_keeps_its_own_parameters_beside_the_id(open_lab: Callable[..., Any]) -> None:
    answer = open_lab(1.0).client.post(INFER, json=v2_body(desk="7")).json
    assert set(answer["parameters"]) == {"desk", "prediction_id"}
    assert answer["parameters"]["desk"] == "7"


def test_an_answer_that_flask_has_to_pack_is_logged_once(open_lab: Callable[..., Any]) -> None:
    web = open_lab(1.0)
    by_v2_json(web)
    rows = [x for _ in range(14) for x in ROW]
    body = {"inputs": [{"name": "features", "shape": [14, 3], "datatype": "FP32", "data": rows}]}
    assert quickly(web, INFER, json.dumps(body).encode(), ACCEPT_ENCODING="gzip") is None
    assert len(logged(web)) == 3
    assert web.client.post(INFER, json=body, headers={"Accept-Encoding": "gzip"}).status_code == 200
    assert len(logged(web)) == 3 + 14
    assert quickly(web, INFER, json.dumps(body).encode()) is not None
    assert len(logged(web)) == 3 + 28


def test_what_is_in_an_experiment_is_logged_for_it_alone(open_lab: Callable[..., Any]) -> None:
    web = open_lab(1.0)
    plan = {"control": ("alpha", "latest"), "treatment": ("beta", "latest"), "treatment_weight": 0.5}
    create_experiment(web.store, checked_plan(experiment_id="exp", unit="prediction", **plan), TEST, start=True)
    inside = [*by_flask(web), *by_batch(web), *by_v2_json(web), *by_invocations(web)]
    outside = web.client.post("/predict", json=BODY | {"model_name": "beta"}).json["prediction_id"]
    rows = {row["prediction_id"]: row["experiment"] for row in logged(web)}
    assert [rows.pop(name) is not None for name in inside] == [True] * len(inside)
    assert rows == {outside: None}


def test_failures_of_the_server_are_logged_with_their_code_and_mistakes_of_clients_are_not(
    open_lab: Callable[..., Any],
) -> None:
    web = open_lab(1.0)
    wrong = {**BODY, "features": [1.0]}
    for body in (wrong, {**BODY, "symbol": "NONE"}, {**BODY, "model_version": "7"}):
        assert web.client.post("/predict", json=body).status_code in (404, 422)
    assert web.client.post("/predict/batch", json={"requests": [wrong]}).json["predictions"][0]["error"]
    assert web.client.post(INFER, json={"inputs": []}).status_code == 400
    assert logged(web) == []
    assert web.client.post("/v2/repository/models/alpha.BTCUSDT/unload", json={}).status_code == 200
    assert web.client.post("/predict", json=BODY).status_code == 503
    assert web.client.post("/predict/batch", json={"requests": [BODY]}).json["predictions"][0]["error"]
    assert web.client.post(INFER, json=v2_body()).status_code == 503
    assert web.client.post("/models/alpha.BTCUSDT/invocations", json={"inputs": ROWS}).status_code == 503
    rows = logged(web)
    assert [(row["error"], row["direction"], row["symbol"]) for row in rows] == [("not_ready", None, "btcusdt")] * 4
    [day] = web.app.extensions[EXPERIMENTER_KEY].log().read_model_days("alpha")
    assert (day.totals.n_predictions, day.totals.n_errors, day.totals.average_latency_ms) == (4, 4, None)


def test_what_cannot_be_kept_is_dropped_and_counted_and_everything_is_answered(open_lab: Callable[..., Any]) -> None:
    web = open_lab(1.0)
    by_flask(web)
    log = web.app.extensions[EXPERIMENTER_KEY].log()
    log.journal = Journal(web.directory / "observations", limit_bytes=1)
    log.journal.set_unmoved(10)
    answered = [*by_flask(web), *by_ml(web), *by_batch(web), *by_v2_json(web), *by_invocations(web)]
    assert web.json("/api/ml/health")["observations"]["n_dropped"] == len(answered) == 11


def test_a_read_only_server_logs_nothing(open_lab: Callable[..., Any]) -> None:
    open_lab(0.0)
    reader = open_lab(1.0, read_only=True)
    assert len(by_flask(reader)) == 1
    assert not (reader.directory / "observations").exists()


def test_outcomes_are_taken_of_every_protocol_in_every_form(open_lab: Callable[..., Any]) -> None:
    web = open_lab(1.0)
    one, some, named = by_flask(web), by_v2_json(web), by_invocations(web)
    address = "/api/ml/outcomes"
    assert web.client.post(address, json={"prediction_id": one[0], "label": "BUY"}).json["n_accepted"] == 1
    listed = [{"prediction_id": name, "realized_return": 0.01} for name in (*some, "nobody's")]
    report = web.client.post(address, json=listed).json
    assert (report["n_accepted"], report["n_unknown"], report["errors"][0]["index"]) == (3, 1, 3)
    text = io.StringIO()
    csv.writer(text).writerows([["prediction_id", "label"], *([name, "SELL"] for name in named)])
    sent = web.client.post(address, data=text.getvalue(), content_type="text/csv").json
    assert (sent["n_accepted"], sent["errors"]) == (3, [])
    again = web.client.post(address, json=listed).json
    assert (again["n_accepted"], again["n_duplicates"]) == (0, 3)
    [day] = web.app.extensions[EXPERIMENTER_KEY].log().read_model_days("alpha")
    assert (day.totals.n_predictions, day.totals.n_labelled, day.totals.n_returns) == (7, 7, 3)


def test_with_a_horizon_an_early_outcome_is_refused_and_prices_find_the_symbol_however_it_is_spelt(
    open_lab: Callable[..., Any],
) -> None:
    web = open_lab(1.0, observations_horizon_s=3600.0)
    [name] = by_flask(web)
    assert web.client.post("/api/ml/outcomes", json={"prediction_id": name, "label": 1}).json["n_premature"] == 1
    log = web.app.extensions[EXPERIMENTER_KEY].log()
    log.flush()
    with log.store().write() as raw:  # as if it had been predicted two hours ago
        raw.execute("UPDATE predictions SET at_us = at_us - 7200000000, due_us = due_us - 7200000000")
        [(at_us, due_us)] = raw.execute("SELECT at_us, due_us FROM predictions").fetchall()
    prices = [
        {"symbol": "BTC-USDT", "price": price, "time": moment(at)} for price, at in ((100.0, at_us), (110.0, due_us))
    ]
    assert web.client.post("/api/ml/outcomes/prices", json={"prices": prices}).json["n_outcomes"] == 1


def moment(at_us: int) -> str:
    return str(np.datetime64(at_us, "us")) + "Z"
