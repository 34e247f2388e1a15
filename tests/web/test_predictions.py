"""`/predict`, `/api/ml/predict` and their batches: exactly the fields of the contract, and nothing unchecked in a model."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from mmserver.catalog import registering
from mmserver.catalog.catalog import Actor
from mmserver.catalog.refreshing import refresh_model

TEST = Actor("test")
ROW = [0.25, -1.5, 0.75]
NAMES = ("mom_1h", "vol_1d", "<script>alert(1)</script>")  # of the shared model `alpha`
BODY = {"symbol": "BTC/USDT", "features": ROW, "model_name": "alpha"}
ONE, ML = "/predict", "/api/ml/predict"
FLASK_ONLY = "?flask=1"  # any query keeps the quick routes out


def both(path: str) -> list[Any]:
    return [pytest.param(path, id="quick"), pytest.param(path + FLASK_ONLY, id="Flask")]


def expected_return(web: Any, row: list[float], group: str = "BTCUSDT_ret_1h", model: str = "alpha") -> float:
    """What XGBoost itself predicts from the file."""
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray((web.directory / model / f"{group}_model.json").read_bytes()))
    return float(booster.inplace_predict(np.array([row], np.float32))[0])


def post(web: Any, path: str, body: Any, status: int = 200, **headers: str) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = web.client.post(path, data=data, content_type="application/json", headers=headers)
    assert response.status_code == status, response.text
    return response.json


# --- one --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", both(ONE))
def test_an_answer_has_exactly_the_fields_that_clients_know(web: Any, path: str) -> None:
    before = datetime.now(UTC)
    answer = post(web, path, BODY)
    assert list(answer) == ["symbol", "prediction", "model_name", "model_version", "model_info", "variant", "prediction_id",
                            "latency_ms", "timestamp"]  # fmt: skip
    assert list(answer["prediction"]) == ["direction", "signal", "confidence", "probability", "expected_return"]
    assert {"version", "training_date", "accuracy"} <= set(answer["model_info"])
    assert answer["model_name"] == "alpha"
    assert answer["model_version"] == answer["model_info"]["version"] == web.store.model("alpha").serving.label
    assert answer["variant"] is None
    assert answer["prediction_id"]
    assert 0 < answer["latency_ms"] < 60_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", answer["timestamp"])
    assert before <= datetime.fromisoformat(answer["timestamp"]) <= datetime.now(UTC)


@pytest.mark.parametrize("path", both(ONE))
def test_the_prediction_is_the_models_own(web: Any, path: str) -> None:
    prediction = post(web, path, BODY)["prediction"]
    expected = expected_return(web, ROW)
    assert prediction["expected_return"] == expected
    assert prediction["direction"] == prediction["signal"] == ("BUY" if expected > 0 else "SELL")
    assert prediction["probability"] is None  # a regressor gives none


@pytest.mark.parametrize("path", both(ML))
def test_under_api_ml_the_direction_is_a_code(web: Any, path: str) -> None:
    for row in ([1.5, 0.0, 0.0], [-1.5, 0.0, 0.0]):
        word = post(web, ONE, {**BODY, "features": row})
        code = post(web, path, {**BODY, "features": row})
        expected = {"HOLD": 0, "BUY": 1, "SELL": 2}[word["prediction"]["direction"]]
        assert code["prediction"]["direction"] == code["prediction"]["signal"] == expected
        for same in ("confidence", "probability", "expected_return"):
            assert code["prediction"][same] == word["prediction"][same]
        assert code["model_info"] == word["model_info"]


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize("names", [NAMES, tuple(reversed(NAMES))], ids=["in order", "reversed"])
def test_features_by_name_are_put_in_the_models_order(web: Any, path: str, names: tuple[str, ...]) -> None:
    by_name = dict(zip(NAMES, ROW, strict=True))
    answer = post(web, path, {**BODY, "features": {name: by_name[name] for name in names}})
    assert answer["prediction"]["expected_return"] == expected_return(web, ROW)


def test_a_matrix_of_one_row_is_that_row(web: Any) -> None:
    assert post(web, ONE, {**BODY, "features": [ROW]})["prediction"]["expected_return"] == expected_return(web, ROW)


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize("features", [[0.25, None, 0.75], {NAMES[0]: 0.25, NAMES[1]: None, NAMES[2]: 0.75}], ids=["vector", "by name"])  # fmt: skip
def test_null_is_a_missing_value_to_a_model_that_knows_missing_values(web: Any, path: str, features: Any) -> None:
    answer = post(web, path, {**BODY, "features": features})
    assert answer["prediction"]["expected_return"] == expected_return(web, [0.25, float("nan"), 0.75])


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize("symbol", ["BTCUSDT", "btc-usdt", "BTC_USDT", "BTC:USDT", "btc/usdt"])
def test_symbols_are_found_however_they_are_written(web: Any, path: str, symbol: str) -> None:
    assert post(web, path, {**BODY, "symbol": symbol})["prediction"]["expected_return"] == expected_return(web, ROW)


@pytest.mark.parametrize("path", both(ONE))
def test_fields_that_nobody_knows_are_ignored(web: Any, path: str) -> None:
    body = {
        **BODY,
        "experiment_id": "e",
        "unit_id": "u",
        "timestamp": "2024-01-15T10:30:00Z",
        "strategy": {"x": [1, "y"]},
    }
    assert post(web, path, body)["prediction"]["expected_return"] == expected_return(web, ROW)


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "application/vnd.bot+json",
        "text/plain",
        "application/x-www-form-urlencoded",
        None,
    ],
)
def test_what_curl_sends_without_being_told_is_read_as_json(web: Any, path: str, content_type: str | None) -> None:
    response = web.client.post(path, data=json.dumps(BODY), content_type=content_type)
    assert response.status_code == 200, response.text
    assert response.content_type == "application/json"


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/csv"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_other_media_types_and_compressed_bodies_are_415(web: Any, path: str, headers: dict[str, str]) -> None:
    response = web.client.post(path, data=json.dumps(BODY), headers=headers)
    assert response.status_code == 415
    assert response.json["code"] == "unsupported_media_type"


@pytest.mark.parametrize("path", both(ONE))
def test_another_sites_page_predicts_nothing(web: Any, path: str) -> None:
    assert post(web, path, BODY, 403, **{"Sec-Fetch-Site": "cross-site"})["code"] == "cross_site"
    assert post(web, path, BODY, 403, Origin="https://evil.example")["code"] == "cross_site"


@pytest.mark.parametrize("path", [*both(ONE), *both(ML), pytest.param(ONE + "/batch", id="batch")])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 100_000, id="100000 brackets"),
        pytest.param(
            b'{"symbol":"BTCUSDT","features":[1,2,3],"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
            id="deep in an unknown field",
        ),
        pytest.param(b'{"x":' + b'{"x":' * 5000, id="objects deep in an unknown field"),
        pytest.param(b'{"requests":[],"x":' + b"[" * 5000 + b"]" * 5000 + b"}", id="deep beside requests"),
        pytest.param(b'{"symbol":"BTCUSDT","features":' + b"[" * 5000 + b"]" * 5000 + b"}", id="deep features"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[NaN,1,2]}', id="NaN"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[Infinity,1,2]}', id="Infinity"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[1e999,1,2]}', id="1e999"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[1,2,3],"x":1e999}', id="1e999 in an unknown field"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[1,2,3],"features":[3,2,1]}', id="features twice"),
        pytest.param(b'{"symbol":"BTCUSDT","features":{"mom_1h":1,"mom_1h":2,"vol_1d":3}}', id="a factor twice"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[1,2,3],"x":{"a":1,"a":1}}', id="twice in an unknown field"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[' + b"9" * 21 + b",1,2]}", id="21 digits"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[18446744073709551616,1,2]}', id="20 digits"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[' + b"9" * 5000 + b",1,2]}", id="5000 digits"),
        pytest.param(b'{"symbol":"\xff","features":[1,2,3]}', id="invalid UTF-8"),
        pytest.param('{"symbol":"BTCUSDT","features":[1,2,3]}'.encode("utf-16"), id="UTF-16"),
        pytest.param(b'\xef\xbb\xbf{"symbol":"BTCUSDT","features":[1,2,3]}', id="byte order mark"),
        pytest.param(b'{"symbol":"\\ud800","features":[1,2,3]}', id="lone surrogate"),
        pytest.param(b'{"symbol":"BTC\\u0000","features":[1,2,3]}', id="NUL"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[1,2,3]', id="torn"),
        pytest.param(b'{"symbol":"BTCUSDT","features":[1,2,3]}}', id="one bracket more"),
        pytest.param(b"symbol=BTCUSDT", id="a form"),
        pytest.param(b"", id="empty"),
    ],
)
def test_what_is_not_strict_json_is_400_and_reaches_no_model(web: Any, path: str, body: bytes) -> None:
    assert post(web, path, body, 400)["code"] == "request_invalid"


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize(
    ("change", "loc"),
    [
        pytest.param({"features": [1, "2", 3]}, "features[1]", id="text as number"),
        pytest.param({"features": [1, 2, True]}, "features[2]", id="bool as number"),
        pytest.param({"features": {"mom_1h": "1"}}, "features.mom_1h", id="text as number by name"),
        pytest.param({"features": "1,2,3"}, "features", id="text as features"),
        pytest.param({"symbol": 7}, "symbol", id="number as symbol"),
        pytest.param({"symbol": None}, "symbol", id="no symbol"),
        pytest.param({"symbol": "BTC" + "-" * 100_000 + "USDT"}, "symbol", id="long symbol"),
        pytest.param({"model_name": "m" * 1000}, "model_name", id="long model name"),
        pytest.param({"model_version": 1}, "model_version", id="number as version"),
        pytest.param({"timestamp": "yesterday"}, "timestamp", id="no time"),
    ],
)
def test_a_wrong_type_is_422_and_names_the_field(web: Any, path: str, change: dict[str, Any], loc: str) -> None:
    problem = post(web, path, {**BODY, **change}, 422)
    assert problem["code"] == "fields_invalid"
    assert problem["errors"][0]["loc"] == loc


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize("body", [[], 3, None, "BTCUSDT"], ids=["array", "number", "null", "text"])
def test_what_is_no_object_is_422(web: Any, path: str, body: Any) -> None:
    assert post(web, path, body, 422)["code"] == "fields_invalid"


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize(
    "features",
    [
        pytest.param([], id="none"),
        pytest.param([1, 2], id="one too few"),
        pytest.param([1, 2, 3, 4], id="one too many"),
        pytest.param({"mom_1h": 1, "vol_1d": 2}, id="a name missing"),
        pytest.param({**dict.fromkeys(NAMES, 1), "extra": 2}, id="a name too many"),
        pytest.param({"mom_1h": 1, "vol_1d": 2, "other": 3}, id="another name"),
        pytest.param([1e39, 2, 3], id="beyond float32"),
        pytest.param([-1e300, 2, 3], id="far beyond float32"),
        pytest.param([ROW, ROW], id="two rows for a model of one"),
        pytest.param([[]], id="an empty row"),
        pytest.param(None, id="null"),
    ],
)
def test_features_that_are_not_the_models_are_422_with_their_places(web: Any, path: str, features: Any) -> None:
    problem = post(web, path, {**BODY, "features": features}, 422)
    assert problem["code"] == "features_invalid"
    assert problem["errors"]
    assert all(error["loc"].startswith("features") for error in problem["errors"])


def test_a_routed_model_type_says_that_there_is_no_such_service(web: Any) -> None:
    problem = post(web, ONE, {"symbol": "BTCUSDT", "model_type": "LSTM", "data": [0.0, 0.01]}, 422)
    assert problem["code"] == "features_invalid"
    assert "LSTM" in problem["detail"]


def test_more_rows_than_one_request_may_have_are_413(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path: Any
) -> None:
    web = make_web(tmp_path, max_rows=4)
    group_writer(tmp_path / "m", "BTCUSDT_ret_1h", seed=1)
    registering.register_model(web.store, "m", str(tmp_path / "m"), TEST)
    item = {"symbol": "BTCUSDT", "features": ROW}
    assert post(web, ONE + "/batch", {"requests": [item] * 5}, 413)["code"] == "too_many_rows"
    assert post(web, ONE + "/batch", {"requests": [item] * 3 + [1, 2]}, 413)["code"] == "too_many_rows"
    assert len(post(web, ONE + "/batch", {"requests": [item] * 4})["predictions"]) == 4


def test_a_matrix_of_several_rows_is_refused_and_sent_to_the_batch(web: Any) -> None:
    matrix = {"symbol": "BTCUSDT", "features": [ROW] * 5}
    problem = post(web, ONE, matrix, 422)
    assert (problem["code"], problem["errors"][0]["loc"]) == ("features_invalid", "features")
    assert "5 rows, where the model takes one" in problem["detail"]
    found = post(web, ONE + "/batch", {"requests": [matrix, {"symbol": "BTCUSDT", "features": ROW}]})["predictions"]
    assert [item.get("error", {}).get("code") for item in found] == ["features_invalid", None]


@pytest.mark.parametrize("path", both(ONE))
@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        pytest.param({"model_name": "nobody"}, 404, "model_not_found", id="model"),
        pytest.param({"model_version": "9.9.9"}, 404, "version_not_found", id="version"),
        pytest.param({"symbol": "ZZZ"}, 404, "symbol_not_found", id="symbol"),
        pytest.param({"symbol": "SOLUSDT"}, 404, "group_has_no_model", id="no model"),
        pytest.param({"symbol": "PEPEUSDT"}, 503, "group_refused", id="refused artifact"),
        pytest.param({"symbol": ""}, 404, "symbol_not_found", id="empty symbol"),
        pytest.param({"model_name": "../../etc"}, 404, "model_not_found", id="path as model"),
    ],
)
def test_what_is_not_there_is_said(web: Any, path: str, change: dict[str, Any], status: int, code: str) -> None:
    response = web.client.post(path, json={**BODY, **change})
    assert (response.status_code, response.json["code"]) == (status, code)
    assert (int(response.headers.get("Retry-After", 0)) > 0) == (status == 503)


def test_a_symbol_that_was_taken_away_is_410_and_its_old_version_still_predicts(
    changing: Any, group_writer: Callable[..., None]
) -> None:
    name, store = changing.directory.name, changing.store
    group_writer(changing.directory, "ETHUSDT_ret_1h", seed=2)
    refresh_model(store, name, TEST)
    label = store.model(name).serving.label
    for file in changing.directory.glob("ETHUSDT*"):
        file.unlink()
    refresh_model(store, name, TEST, accept_vanished=True)
    body = {"symbol": "ETH/USDT", "features": ROW, "model_name": name}
    problem = post(changing, ONE, body, 410)
    assert problem["code"] == "symbol_archived"
    assert label in problem["detail"]
    assert post(changing, ONE, {**body, "model_version": label})["model_version"] == label


def test_a_version_and_a_moment_predict_as_they_did(changing: Any, group_writer: Callable[..., None]) -> None:
    name, store = changing.directory.name, changing.store
    body = {"symbol": "BTC/USDT", "features": ROW, "model_name": name}
    first = post(changing, ONE, body)
    moment = datetime.now(UTC)
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=9)
    refresh_model(store, name, TEST)
    second = post(changing, ONE, body)
    assert second["prediction"] != first["prediction"]
    for path, given in [
        (ONE, {"model_version": first["model_version"]}),
        (f"{ONE}?as_of={moment.isoformat().replace('+', '%2B')}", {}),
    ]:
        again = post(changing, path, {**body, **given})
        assert again["prediction"] == first["prediction"]
        assert again["model_version"] == first["model_version"]
    for version in ("latest", "production", second["model_version"]):
        assert post(changing, ONE, {**body, "model_version": version})["prediction"] == second["prediction"]
    before = datetime.now(UTC) - timedelta(days=400)
    assert post(changing, f"{ONE}?as_of={before:%Y-%m-%dT%H:%M:%SZ}", body, 404)["code"] == "version_not_found"
    assert post(changing, f"{ONE}?as_of=yesterday", body, 400)["code"] == "request_invalid"


@pytest.mark.parametrize("path", both(ONE))
def test_an_explanation_adds_up_to_the_prediction(web: Any, path: str) -> None:
    answer = post(web, path, {**BODY, "explain": True})
    assert "contributions" not in post(web, path, {**BODY, "explain": False})
    assert answer["contributions"]
    assert answer["prediction"]["expected_return"] == expected_return(web, ROW)


@pytest.mark.parametrize("path", [ONE, ML, ONE + "/batch", ML + "/batch"])
def test_only_post_is_taken(web: Any, path: str) -> None:
    for method in ("get", "put", "delete", "patch"):
        response = getattr(web.client, method)(path)
        assert response.status_code == 405
        assert "POST" in response.headers["Allow"]
    assert web.client.head(path).data == b""
    response = web.client.options(path)
    assert response.status_code == 200
    assert set(response.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


@pytest.mark.parametrize("path", both(ONE))
def test_answers_carry_the_headers_of_every_response(web: Any, path: str) -> None:
    response = web.client.post(path, json=BODY, headers={"X-Request-ID": "bot-7"})
    assert response.headers["X-Request-ID"] == "bot-7"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert int(response.headers["Content-Length"]) == len(response.data)


# --- many -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [ONE + "/batch", ML + "/batch"])
def test_a_batch_answers_in_the_order_asked_and_one_bad_item_spoils_no_other(web: Any, path: str) -> None:
    other = [-0.5, 0.5, 1.0]
    items = [
        BODY,
        {**BODY, "symbol": "ZZZ"},
        {**BODY, "symbol": "ETHUSDT", "features": dict(zip(NAMES, other, strict=True))},
        "no object",
        {**BODY, "features": [1, "2", 3]},
        {**BODY, "features": [1, 2]},
        {"symbol": "BTCUSDT", "model_name": "alpha"},
        {**BODY, "features": other},
        {"features": ROW},
    ]
    answer = post(web, path, {"requests": items})
    assert list(answer) == ["predictions", "timestamp"]
    found = answer["predictions"]
    assert [item.get("error", {}).get("code") for item in found] == [
        None, "symbol_not_found", None, "fields_invalid", "fields_invalid", "features_invalid", "features_invalid", None,
        "fields_invalid",
    ]  # fmt: skip
    assert [item["symbol"] is None for item in found] == [False, False, False, True, False, False, False, False, True]
    assert found[0]["prediction"]["expected_return"] == expected_return(web, ROW)
    assert found[2]["prediction"]["expected_return"] == expected_return(web, other, "ETHUSDT_ret_1h")
    assert found[7]["prediction"]["expected_return"] == expected_return(web, other)
    assert list(found[0]) == list(post(web, ONE, BODY))
    assert set(found[1]) == {"symbol", "error"}
    assert set(found[1]["error"]) == {"code", "detail"}
    assert found[4]["error"]["errors"] == [{"loc": "features[1]", "msg": "Expected `float`, got `str`"}]
    assert isinstance(found[0]["prediction"]["direction"], int) == path.startswith("/api/ml")
    assert len({item["prediction_id"] for item in found if "prediction_id" in item}) == 3


@pytest.mark.parametrize("size", [None, 1, 2, 32, 10_000])
def test_rows_predict_the_same_however_many_run_together(web: Any, size: int | None) -> None:
    rows = np.random.default_rng(5).normal(size=(40, 3)).round(3).tolist()
    items = [{**BODY, "symbol": ("BTCUSDT", "ETHUSDT")[index % 2], "features": row} for index, row in enumerate(rows)]
    found = post(web, ONE + "/batch", {"requests": items, "max_batch_size": size})["predictions"]
    alone = [post(web, ONE, item)["prediction"] for item in items]
    assert [item["prediction"] for item in found] == alone


def test_an_empty_batch_has_an_empty_answer(web: Any) -> None:
    assert post(web, ONE + "/batch", {"requests": []})["predictions"] == []


def test_the_batchs_version_is_for_items_that_name_none(changing: Any, group_writer: Callable[..., None]) -> None:
    name, store = changing.directory.name, changing.store
    first = store.model(name).serving.label
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=9)
    refresh_model(store, name, TEST)
    second = store.model(name).serving.label
    item = {"symbol": "BTCUSDT", "features": ROW, "model_name": name}
    found = post(
        changing, ONE + "/batch", {"requests": [item, {**item, "model_version": second}], "model_version": first}
    )["predictions"]
    assert [answer["model_version"] for answer in found] == [first, second]


@pytest.mark.parametrize(
    "body",
    [{}, {"requests": None}, {"requests": {}}, [], {"requests": [], "max_batch_size": 0}, {"requests": [], "max_batch_size": "8"}],
    ids=repr,
)  # fmt: skip
def test_a_batch_that_is_none_is_422_as_a_whole(web: Any, body: Any) -> None:
    assert post(web, ONE + "/batch", body, 422)["code"] == "fields_invalid"
