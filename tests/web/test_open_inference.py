"""The Open Inference Protocol v2: what its clients send is answered as they read it, and what they must not send is refused."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost
from werkzeug.test import TestResponse

from mmserver.catalog import registering
from mmserver.catalog.catalog import Actor
from mmserver.serving import predictors
from mmserver.web.current import QUICK_KEY

TEST = Actor("test")
HEADER = "Inference-Header-Content-Length"
NAME = "alpha.BTCUSDT"
INFER = f"/v2/models/{NAME}/infer"
ROWS = np.array([[0.25, -1.5, 3.0], [1e-3, np.nan, -0.1]], np.float32)
STATS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


def tensor(rows: Any = ROWS, name: str = "features", datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    """One input with JSON data; NaN as null."""
    values = np.asarray(rows)
    flat = [None if np.isnan(value) else value for value in values.reshape(-1).tolist()]
    return {"name": name, "shape": list(values.shape), "datatype": datatype, "data": flat, **more}


def binary_tensor(rows: Any = ROWS, name: str = "features", datatype: str = "FP32") -> tuple[dict[str, Any], bytes]:
    data = np.ascontiguousarray(rows).tobytes()
    declared = {"name": name, "shape": list(np.shape(rows)), "datatype": datatype}
    return {**declared, "parameters": {"binary_data_size": len(data)}}, data


def post(web: Any, body: Any, path: str = INFER, **options: Any) -> TestResponse:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    response: TestResponse = web.client.post(path, data=data, **options)
    return response


def post_binary(web: Any, head: dict[str, Any], *tails: bytes, path: str = INFER, **headers: str) -> TestResponse:
    text = json.dumps(head).encode()
    return post(web, text + b"".join(tails), path, headers={HEADER: str(len(text)), **headers})


def answer(response: TestResponse) -> Any:
    assert response.status_code == 200, response.text
    assert HEADER not in response.headers
    return response.get_json()


def binary_answer(response: TestResponse) -> tuple[Any, dict[str, Any]]:
    """The JSON of an answer, and the values of its outputs, wherever they are."""
    assert response.status_code == 200, response.text
    body = response.data
    n_json = int(response.headers[HEADER]) if HEADER in response.headers else len(body)
    head = json.loads(body[:n_json])
    start = n_json
    values = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            values[output["name"]] = np.array(output["data"], np.float32).reshape(output["shape"])
        else:
            assert "data" not in output
            found = np.frombuffer(body[start : start + size], "<f4")
            values[output["name"]] = found.reshape(output["shape"])
            start += size
    assert start == len(body)
    return head, values


def refused(response: TestResponse, status: int = 400) -> str:
    """The text of an error in the protocol's form."""
    assert response.status_code == status, response.text
    assert response.content_type == "application/json"
    said = response.get_json()
    assert isinstance(said["error"], str)
    assert said["request_id"] == response.headers["X-Request-ID"]
    assert said["code"]
    return str(said["error"])


@pytest.fixture(scope="module")
def booster(web: Any) -> xgboost.Booster:
    """The model of `alpha.BTCUSDT`, from its own file."""
    return xgboost.Booster(model_file=str(web.directory / "alpha" / "BTCUSDT_ret_1h_model.json"))


@pytest.fixture(scope="module")
def expected(booster: xgboost.Booster) -> Any:
    return booster.inplace_predict(ROWS)


# --- the server -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_says_its_name_version_and_extensions(web: Any, path: str) -> None:
    said = web.json(path)
    assert said["name"] == "mmserver"
    assert said["version"]
    assert {"binary_tensor_data", "model_repository", "statistics", "model_configuration"} <= set(said["extensions"])


def test_live_and_ready_have_bodies_for_those_who_read_them(web: Any) -> None:
    assert web.json("/v2/health/live") == {"live": True}
    assert web.json("/v2/health/ready") == {"ready": True, "live": True}


def test_it_is_not_ready_when_something_that_serving_needs_fails(make_web: Callable[..., Any], tmp_path: Path) -> None:
    made = make_web(tmp_path)
    from mmserver.web.health import CHECKS_KEY

    made.app.extensions[CHECKS_KEY] = {"disk": lambda: {"status": "failing"}}
    response = made.client.get("/v2/health/ready")
    assert (response.status_code, response.get_json()) == (503, {"ready": False, "live": True})


def test_models_are_listed_by_group_under_names_that_are_found_again(web: Any) -> None:
    names = web.json("/v2/models")["models"]
    assert {"alpha.BTCUSDT", "alpha.ETHUSDT"} <= set(names)
    assert "alpha.SOLUSDT" not in names  # it has no model
    for name in names:
        assert web.json(f"/v2/models/{name}")["name"] == name


# --- one model --------------------------------------------------------------------------------------------------------


def test_metadata_say_what_goes_in_and_comes_out(web: Any) -> None:
    said = web.json(f"/v2/models/{NAME}")
    version = web.json("/api/models/alpha")["version"]
    assert said["versions"] == [version]
    assert said["platform"] == "mmserver_xgboost"
    assert said["inputs"] == [{"name": "features", "datatype": "FP32", "shape": [-1, 3]}]
    assert said["outputs"] == [
        {"name": "prediction", "datatype": "FP32", "shape": [-1]},
        {"name": "margin", "datatype": "FP32", "shape": [-1]},
    ]
    assert all(isinstance(value, str) for value in said["properties"].values())
    factors = web.json("/api/models/alpha/symbols/BTCUSDT")["factors"]
    joined = "".join(f"{factor}\n" for factor in factors).encode()
    assert said["properties"]["factors_sha256"] == hashlib.sha256(joined).hexdigest()
    assert web.json(f"/v2/models/{NAME}/versions/{version}") == said


def test_configuration_agrees_with_metadata_and_has_what_perf_analyzer_reads(web: Any) -> None:
    metadata, config = web.json(f"/v2/models/{NAME}"), web.json(f"/v2/models/{NAME}/config")
    assert config["name"] == metadata["name"]
    assert config["platform"] == metadata["platform"]
    assert config["max_batch_size"] == 0
    assert config["model_transaction_policy"]["decoupled"] is False
    assert config["response_cache"]["enable"] is False
    for configured, described in (("input", "inputs"), ("output", "outputs")):
        found = [(part["name"], part["data_type"], part["dims"]) for part in config[configured]]
        assert found == [(part["name"], f"TYPE_{part['datatype']}", part["shape"]) for part in metadata[described]]
        assert all(part["is_shape_tensor"] is False for part in config[configured])


def test_a_model_is_ready_if_it_predicts(web: Any) -> None:
    assert web.json(f"/v2/models/{NAME}/ready") == {"name": NAME, "ready": True}
    refused(web.client.get("/v2/models/alpha.SOLUSDT/ready"), 404)


@pytest.mark.parametrize("suffix", ["", "/ready", "/config", "/stats"])
@pytest.mark.parametrize(
    "name", ["nosuch", "alpha.NOSUCH", "alpha", "alpha.SOLUSDT", "alpha.", ".BTCUSDT", "alpha.BTCUSDT/versions/9"]
)
def test_an_unknown_model_is_404_in_the_words_that_clients_look_for(web: Any, name: str, suffix: str) -> None:
    assert refused(web.client.get(f"/v2/models/{name}{suffix}"), 404).startswith("Request for unknown model")


# --- inference in JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])  # fmt: skip
def test_json_is_answered_to_the_bit_whatever_the_media_type_says(
    web: Any, expected: Any, content_type: str | None
) -> None:
    said = answer(post(web, {"inputs": [tensor()]}, content_type=content_type))
    assert said["model_name"] == NAME
    assert said["model_version"] == web.json("/api/models/alpha")["version"]
    assert [output["name"] for output in said["outputs"]] == ["prediction", "margin"]
    for output in said["outputs"]:
        assert output["shape"] == [2]
        assert output["datatype"] == "FP32"
        assert np.float32(output["data"]).tobytes() == expected.tobytes()


def test_an_id_is_echoed_and_made_where_there_is_none(web: Any) -> None:
    assert answer(post(web, {"id": "my 1", "inputs": [tensor()]}))["id"] == "my 1"
    made = [answer(post(web, body))["id"] for body in ({"inputs": [tensor()]}, {"id": None, "inputs": [tensor()]})]
    assert all(isinstance(one, str) and one for one in made)
    assert made[0] != made[1]


def test_parameters_come_back_but_for_those_of_the_protocol(web: Any) -> None:
    own = {"text": "x", "flag": True, "whole": 7, "number": 0.5}
    body = {
        "parameters": {**own, "timeout": 5, "binary_data_output": False, "list": [1]},
        "inputs": [tensor(parameters={"content_type": "np"})],
        "outputs": [{"name": "margin", "parameters": {"tag": "m", "binary_data": False}}, {"name": "prediction"}],
    }
    said = answer(post(web, body))
    assert said["parameters"] == own
    assert said["outputs"][0]["parameters"] == {"tag": "m"}
    assert "parameters" not in said["outputs"][1]


def test_outputs_come_as_asked_for_and_in_that_order(web: Any, expected: Any) -> None:
    said = answer(post(web, {"inputs": [tensor()], "outputs": [{"name": "margin"}]}))
    assert [output["name"] for output in said["outputs"]] == ["margin"]
    said = answer(post(web, {"inputs": [tensor()], "outputs": []}))
    assert [output["name"] for output in said["outputs"]] == ["prediction", "margin"]


def test_nan_and_null_are_missing_values(web: Any, expected: Any) -> None:
    text = b'{"note":"NaN, \\"NaN\\"","inputs":[{"name":"features","shape":[2,3],"datatype":"FP32","data":[0.25,-1.5,3,1e-3,NaN,-0.1]}]}'
    said = answer(post(web, text))
    assert np.float32(said["outputs"][0]["data"]).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "datatype", ["FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL"]
)
def test_other_datatypes_become_float32(web: Any, booster: xgboost.Booster, datatype: str) -> None:
    numbers = [[1, 0, 1], [0, 1, 1]]
    expected = booster.inplace_predict(np.array(numbers, np.float32))
    data: Any = np.array(numbers, bool).tolist() if datatype == "BOOL" else numbers
    declared = {"name": "features", "shape": [2, 3], "datatype": datatype, "data": data}
    assert np.float32(answer(post(web, {"inputs": [declared]}))["outputs"][0]["data"]).tobytes() == expected.tobytes()


def test_inputs_may_be_given_by_factor_in_any_order(web: Any, expected: Any) -> None:
    factors = web.json("/api/models/alpha/symbols/BTCUSDT")["factors"]
    inputs = [tensor(ROWS[:, dim], name=factors[dim]) for dim in (2, 0, 1)]
    assert np.float32(answer(post(web, {"inputs": inputs}))["outputs"][0]["data"]).tobytes() == expected.tobytes()
    inputs[1] = tensor(ROWS[:, [0]], name=factors[0], datatype="FP64")
    assert np.float32(answer(post(web, {"inputs": inputs}))["outputs"][0]["data"]).tobytes() == expected.tobytes()
    assert "the input is missing" in refused(post(web, {"inputs": inputs[:2]}))
    assert "unexpected input" in refused(post(web, {"inputs": [*inputs, tensor([1.0, 2.0], name="rsi")]}))


def test_a_symbol_may_be_written_in_any_way(web: Any) -> None:
    body = {"inputs": [tensor()]}
    for name in ("alpha.BTC-USDT", "alpha.btc_usdt", "alpha.BTC%3AUSDT"):
        assert answer(post(web, body, f"/v2/models/{name}/infer"))["model_name"] == NAME


def test_a_version_may_be_named(web: Any) -> None:
    version = web.json("/api/models/alpha")["version"]
    for reference in (version, "latest", "production"):
        said = answer(post(web, {"inputs": [tensor()]}, f"/v2/models/{NAME}/versions/{reference}/infer"))
        assert said["model_version"] == version
    refused(post(web, {"inputs": [tensor()]}, f"/v2/models/{NAME}/versions/1/infer"), 404)


def test_a_model_may_be_asked_as_it_was_at_a_time(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    first = changing.store.model(name).serving
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=5)
    changing.client.post(f"/api/models/{name}/refresh")
    second = changing.store.model(name).serving
    path, body = f"/v2/models/{name}/infer", {"inputs": [tensor()]}
    now = answer(post(changing, body, path))
    then = answer(post(changing, body, path, query_string={"as_of": first.created_at.isoformat()}))
    assert (now["model_version"], then["model_version"]) == (second.label, first.label)
    assert now["outputs"] != then["outputs"]
    assert then["outputs"] == answer(post(changing, body, f"/v2/models/{name}/versions/{first.label}/infer"))["outputs"]
    metadata = changing.json(f"/v2/models/{name}?as_of={first.created_at.isoformat().replace('+', '%2B')}")
    assert metadata["properties"]["version"] == first.label
    assert metadata["versions"] == [second.label, first.label]
    refused(changing.client.get(f"/v2/models/{name}?as_of=2001-01-01T00:00:00Z"), 404)
    refused(changing.client.get(f"/v2/models/{name}?as_of=yesterday"))


# --- inference in binary ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", range(4))
def test_binary_both_ways_is_equal_to_the_bit(web: Any, expected: Any, padding: int) -> None:
    declared, data = binary_tensor()
    head = {"id": "x" * padding, "inputs": [declared], "parameters": {"binary_data_output": True}}
    response = post_binary(web, head, data)
    assert response.content_type == "application/octet-stream"
    said, values = binary_answer(response)
    assert said["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert values["prediction"].tobytes() == values["margin"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_floating_point_of_any_width_is_taken_in_binary(web: Any, booster: xgboost.Booster, datatype: str) -> None:
    rows = ROWS.astype({"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}[datatype])
    declared, data = binary_tensor(rows, datatype=datatype)
    _, values = binary_answer(post_binary(web, {"inputs": [declared]}, data))
    assert values["prediction"].tobytes() == booster.inplace_predict(rows.astype(np.float32)).tobytes()


def test_an_outputs_own_wish_beats_that_of_the_request(web: Any, expected: Any) -> None:
    for of_request in (True, False):
        body = {
            "inputs": [tensor()],
            "parameters": {"binary_data_output": of_request},
            "outputs": [
                {"name": "margin", "parameters": {"binary_data": True}},
                {"name": "prediction", "parameters": {"binary_data": False}},
            ],
        }
        said, values = binary_answer(post(web, body))
        assert ["data" in output for output in said["outputs"]] == [False, True]
        assert values["margin"].tobytes() == values["prediction"].tobytes() == expected.tobytes()


def test_json_and_binary_inputs_may_be_mixed(web: Any, expected: Any) -> None:
    factors = web.json("/api/models/alpha/symbols/BTCUSDT")["factors"]
    second, second_data = binary_tensor(ROWS[:, 1], name=factors[1])
    third, third_data = binary_tensor(ROWS[:, 2].astype(np.float64), name=factors[2], datatype="FP64")
    head = {"inputs": [third, tensor(ROWS[:, 0], name=factors[0]), second]}
    _, values = binary_answer(post_binary(web, head, third_data, second_data))
    assert values["prediction"].tobytes() == expected.tobytes()


def test_a_raw_body_is_the_one_input_and_all_outputs_come_back_binary(web: Any, expected: Any) -> None:
    response = post(web, ROWS.tobytes(), headers={HEADER: "0"})
    said, values = binary_answer(response)
    assert [output["parameters"] for output in said["outputs"]] == [{"binary_data_size": 8}] * 2
    assert values["prediction"].tobytes() == expected.tobytes()
    for size in (0, 4, 11, 13):
        assert "raw data" in refused(post(web, bytes(size), headers={HEADER: "0"}))


def test_the_header_may_cover_a_body_of_json_alone(web: Any, expected: Any) -> None:
    _, values = binary_answer(post_binary(web, {"inputs": [tensor()]}))
    assert values["prediction"].tobytes() == expected.tobytes()


# --- encodings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress), ("identity", bytes)])  # fmt: skip
def test_packed_requests_are_unpacked(web: Any, expected: Any, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    declared, data = binary_tensor()
    text = json.dumps({"inputs": [declared]}).encode()
    headers = {HEADER: str(len(text)), "Content-Encoding": encoding}
    _, values = binary_answer(post(web, pack(text + data), headers=headers))
    assert values["prediction"].tobytes() == expected.tobytes()


def test_an_encoding_that_is_not_known_is_415(web: Any) -> None:
    for encoding in ("br", "zstd", "gzip, gzip"):
        refused(post(web, {"inputs": [tensor()]}, headers={"Content-Encoding": encoding}), 415)


def test_a_small_body_that_unpacks_to_a_huge_one_is_refused(web: Any) -> None:
    bomb = gzip.compress(bytes(web.store.settings.max_body_bytes + 1))
    assert len(bomb) < 20_000
    refused(post(web, bomb, headers={"Content-Encoding": "gzip"}), 413)


@pytest.mark.parametrize(
    "damage", [lambda body: body[:-3], lambda body: body + b"x", lambda body: b"x" + body, lambda body: b""]
)
def test_a_damaged_packed_body_is_400(web: Any, damage: Callable[[bytes], bytes]) -> None:
    body = gzip.compress(json.dumps({"inputs": [tensor()]}).encode())
    refused(post(web, damage(body), headers={"Content-Encoding": "gzip"}))


@pytest.mark.parametrize(
    ("accepted", "used"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("deflate;q=1, gzip;q=0.5", "deflate"),
        ("br", None),
        ("zstd, br", None),
        ("*", None),
        ("gzip;q=0", None),
        ("", None),
    ],
)
def test_answers_are_packed_only_as_clients_of_the_protocol_unpack(web: Any, accepted: str, used: str | None) -> None:
    rows = np.zeros((300, 3), np.float32)
    declared, data = binary_tensor(rows)
    for wants_binary in (True, False):
        head = {"inputs": [declared], "parameters": {"binary_data_output": wants_binary}}
        response = post_binary(web, head, data, **{"Accept-Encoding": accepted})
        assert response.headers.get("Content-Encoding") == used
        body = {None: bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}[used](response.data)
        n_json = int(response.headers.get(HEADER, len(body)))
        assert json.loads(body[:n_json])["outputs"][0]["shape"] == [300]
        assert len(body) == n_json + (2 * 300 * 4 if wants_binary else 0)
    for path in ("/v2", f"/v2/models/{NAME}/config", "/v2/models/stats"):
        response = web.client.get(path, headers={"Accept-Encoding": "br, zstd"})
        assert "Content-Encoding" not in response.headers


# --- what is refused --------------------------------------------------------------------------------------------------

GOOD = '{"name":"features","shape":[1,3],"datatype":"FP32","data":[1,2,3]}'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="array"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="no inputs"),
        pytest.param('{"inputs":[]}', id="no input"),
        pytest.param('{"inputs":{}}', id="inputs no array"),
        pytest.param('{"inputs":[1]}', id="input no object"),
        pytest.param(f'{{"inputs":[{GOOD}]', id="cut off"),
        pytest.param(f'{{"inputs":[{GOOD}]}}x', id="text after it"),
        pytest.param(f'{{"inputs":[{GOOD}],"inputs":[{GOOD}]}}', id="inputs twice"),
        pytest.param('{"inputs":[' + GOOD[:-1] + ',"data":[4,5,6]}]}', id="data twice"),
        pytest.param('{"inputs":[' + GOOD[:-1] + ',"shape":[1,3]}]}', id="shape twice"),
        pytest.param('{"inputs":[' + GOOD[:-1] + ',"\\u0064ata":[4,5,6]}]}', id="data twice, once escaped"),
        pytest.param('{"parameters":{"a":1,"a":2},"inputs":[' + GOOD + "]}", id="parameter twice"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[-1,3]") + "]}", id="negative dimension"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[1.0,3]") + "]}", id="fractional dimension"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", '["1",3]') + "]}", id="dimension as text"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[true,3]") + "]}", id="dimension as flag"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[0,3]").replace("[1,2,3]", "[]") + "]}", id="no rows"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[3]") + "]}", id="one dimension"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[3,1]") + "]}", id="wrong dimension"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[]") + "]}", id="no dimension"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[" + "1," * 40 + "3]") + "]}", id="40 dimensions"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[9223372036854775807,3]") + "]}", id="element count overflow"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[6148914691236517206,3]") + "]}", id="count modulo 2^64"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,3]", "[1" + "0" * 5000 + ",3]") + "]}", id="dimension of 5000 digits"),
        pytest.param('{"inputs":[' + GOOD.replace("FP32", "BYTES") + "]}", id="BYTES"),
        pytest.param('{"inputs":[' + GOOD.replace("FP32", "FP16") + "]}", id="FP16 in JSON"),
        pytest.param('{"inputs":[' + GOOD.replace("FP32", "BF16") + "]}", id="BF16 in JSON"),
        pytest.param('{"inputs":[' + GOOD.replace("FP32", "FLOAT") + "]}", id="no datatype"),
        pytest.param('{"inputs":[' + GOOD.replace('"FP32"', "1") + "]}", id="datatype no text"),
        pytest.param('{"inputs":[' + GOOD.replace("features", "input-0") + "]}", id="unknown input"),
        pytest.param('{"inputs":[' + GOOD + "," + GOOD + "]}", id="input twice"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,2,3]", "[1,2]") + "]}", id="too few elements"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,2,3]", '[1,"2",3]') + "]}", id="text among numbers"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,2,3]", "[1,2,Infinity]") + "]}", id="Infinity"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,2,3]", "[1,2,1e39]") + "]}", id="beyond float32"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,2,3]", "[1,2,1e999]") + "]}", id="beyond float64"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,2,3]", "[[1,2],[3]]") + "]}", id="ragged"),
        pytest.param('{"inputs":[' + GOOD.replace(',"data":[1,2,3]', "") + "]}", id="no data"),
        pytest.param('{"inputs":[' + GOOD.replace('"data":[1,2,3]', '"data":null') + "]}", id="null data"),
        pytest.param('{"inputs":[' + GOOD + '],"outputs":[{"name":"nosuch"}]}', id="unknown output"),
        pytest.param('{"inputs":[' + GOOD + '],"outputs":[{"name":"margin"},{"name":"margin"}]}', id="output twice"),
        pytest.param('{"inputs":[' + GOOD + '],"outputs":[{}]}', id="output without name"),
        pytest.param('{"id":7,"inputs":[' + GOOD + "]}", id="id no text"),
        pytest.param('{"parameters":[],"inputs":[' + GOOD + "]}", id="parameters no object"),
        pytest.param('{"parameters":{"binary_data_output":1},"inputs":[' + GOOD + "]}", id="flag no flag"),
        pytest.param('{"parameters":{"a":NaN,"a":1},"inputs":[' + GOOD + "]}", id="NaN beside data, twice"),
        pytest.param('{"inputs":[' + GOOD[:-1] + ',"parameters":{"binary_data_size":12}}]}', id="size with data"),
        pytest.param('{"inputs":[{"name":"features","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}]}', id="size without the header"),
        pytest.param('{"inputs":[' + GOOD[:-1] + ',"parameters":{"shared_memory_region":"r"}}]}', id="shared memory"),
        pytest.param('{"inputs":[' + GOOD + '],"outputs":[{"name":"margin","parameters":{"classification":2}}]}', id="classification"),
        pytest.param('{"inputs":[' + GOOD + '],"x":"\\ud800"}', id="half a character"),
        pytest.param("{" + '"a":[' * 40 + "1" + "]" * 40 + "}", id="40 levels"),
        pytest.param("[" * 250_000 + "]" * 250_000, id="250000 arrays"),
        pytest.param('{"a":' * 250_000, id="250000 objects"),
        pytest.param('{"inputs":' + "[" * 250_000, id="250000 arrays as inputs"),
        pytest.param('{"inputs":[' + GOOD.replace("[1,2,3]", "[" * 250_000 + "1" + "]" * 250_000) + "]}", id="250000 levels of data"),
        pytest.param('{"inputs":[' + GOOD[:-1] + ',"parameters":{"a":' + "[" * 250_000 + "]" * 250_000 + "}}]}", id="250000 levels of parameters"),
    ],
)  # fmt: skip
def test_a_request_that_is_not_one_is_400_and_the_server_lives_on(web: Any, text: str) -> None:
    refused(post(web, text.encode()))
    assert web.json("/v2/health/live") == {"live": True}
    answer(post(web, f'{{"inputs":[{GOOD}]}}'.encode()))


@pytest.mark.parametrize("body", [b"\xff\xfe", b"\xef\xbb\xbf{}", b"\0", b'{"inputs":[{"name":"\xff"}]}', b"\x1f\x8b"])
def test_bytes_that_are_no_text_are_400(web: Any, body: bytes) -> None:
    refused(post(web, body))


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "1e3", "", "0x10", "99999999999999999999", "٣", "9" * 5000])
def test_a_header_length_that_is_out_of_range_is_400(web: Any, value: str) -> None:
    assert HEADER in refused(post(web, {"inputs": [tensor()]}, headers={HEADER: value}))


def test_a_header_length_that_cuts_the_json_is_400(web: Any) -> None:
    declared, data = binary_tensor()
    text = json.dumps({"inputs": [declared]}).encode()
    for wrong in (1, len(text) - 1, len(text) + 1, len(text) + len(data)):
        refused(post(web, text + data, headers={HEADER: str(wrong)}))
    refused(post(web, text + data, headers={HEADER: str(len(text) + len(data) + 1)}))


@pytest.mark.parametrize("size", [0, 23, 25, 2**32 + 24, 2**64 + 24, -24, True, "24", 24.0, None, [24]])
def test_a_binary_size_that_is_not_that_of_the_data_is_400(web: Any, size: Any) -> None:
    declared, data = binary_tensor()
    refused(post_binary(web, {"inputs": [{**declared, "parameters": {"binary_data_size": size}}]}, data))


def test_bytes_that_belong_to_no_input_are_400(web: Any) -> None:
    declared, data = binary_tensor()
    assert "belong to no input" in refused(post_binary(web, {"inputs": [declared]}, data, b"\0"))
    assert "belong to no input" in refused(post_binary(web, {"inputs": [tensor()]}, data))


def test_more_rows_than_one_request_may_have_are_413(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path: Path
) -> None:
    made = make_web(tmp_path, max_rows=2)
    group_writer(tmp_path / "small", "BTC_ret_1h")
    registering.register_model(made.store, "small", str(tmp_path / "small"), TEST)
    path = "/v2/models/small/infer"
    answer(post(made, {"inputs": [tensor()]}, path))
    assert "3 rows" in refused(post(made, {"inputs": [tensor(np.zeros((3, 3)))]}, path), 413)
    refused(post(made, bytes(36), path, headers={HEADER: "0"}), 413)
    refused(post(made, b"x" * (made.store.settings.max_body_bytes + 1), path), 413)


def test_errors_of_http_itself_have_the_protocols_form(web: Any) -> None:
    for path in ("/v2/nosuch", "/v2/models/a/b/c", f"/v2/models/{NAME}/nosuch", "/v2/models/alpha.BTC/USDT/infer"):
        refused(web.client.get(path), 404)
    response = web.client.get(INFER)
    refused(response, 405)
    assert "POST" in response.headers["Allow"]
    refused(web.client.post("/v2"), 405)
    refused(web.client.get("/v2/logging"), 404)


# --- the repository ---------------------------------------------------------------------------------------------------


def index(web: Any, body: bytes = b"") -> dict[str, Any]:
    response = web.client.post("/v2/repository/index", data=body)
    assert response.status_code == 200, response.text
    return {item["name"]: item for item in response.get_json()}


def test_the_index_needs_no_body_and_no_media_type(web: Any) -> None:
    found = index(web)[NAME]
    version = web.json("/api/models/alpha")["version"]
    assert found == {"name": NAME, "version": version, "state": "READY", "reason": ""}
    assert index(web, b"{}") == index(web, b'{"ready":true}') == index(web, b'{"ready":false}') == index(web)
    for body in (b"x", b"[]", b'{"ready":1}'):
        refused(web.client.post("/v2/repository/index", data=body))


def test_an_unloaded_model_predicts_no_more_until_it_is_loaded(changing: Any) -> None:
    name = f"{changing.directory.name}.BTCUSDT"
    path, base = f"/v2/models/{name}/infer", f"/v2/repository/models/{name}"
    answer(post(changing, {"inputs": [tensor()]}, path))
    unloaded = changing.client.post(f"{base}/unload", data=b'{"parameters":{"unload_dependents":false}}')
    assert unloaded.status_code == 200
    refused(post(changing, {"inputs": [tensor()]}, path), 503)
    assert changing.client.get(f"/v2/models/{name}/ready").status_code == 503
    assert "unloaded" in refused(changing.client.get(f"/v2/models/{name}"), 404)
    assert "unloaded" in refused(changing.client.get(f"/v2/models/{name}/config"), 404)
    assert index(changing)[name]["state"] == "UNAVAILABLE"
    assert index(changing)[name]["reason"]
    assert name not in index(changing, b'{"ready":true}')
    for body in (b"", b"{}", b'{"parameters":{"config":"{}"}}'):
        assert changing.client.post(f"{base}/load", data=body).status_code == 200
        answer(post(changing, {"inputs": [tensor()]}, path))
    assert index(changing)[name]["state"] == "READY"


def test_what_cannot_be_loaded_says_so_in_the_words_that_clients_look_for(web: Any) -> None:
    for name in ("nosuch", "alpha.SOLUSDT"):
        assert "failed to load" in refused(web.client.post(f"/v2/repository/models/{name}/load", data=b"{}"), 404)
        refused(web.client.post(f"/v2/repository/models/{name}/unload", data=b"{}"), 404)
    body = b'{"parameters":{"file:1/model.onnx":"AAAA"}}'
    assert "failed to load" in refused(web.client.post(f"/v2/repository/models/{NAME}/load", data=body))


# --- statistics -------------------------------------------------------------------------------------------------------


def stats(web: Any, name: str) -> Any:
    [found] = web.json(f"/v2/models/{name}/stats")["model_stats"]
    return found


def test_statistics_count_what_was_asked_with_every_key_that_perf_analyzer_reads(changing: Any) -> None:
    name = f"{changing.directory.name}.BTCUSDT"
    before = stats(changing, name)
    assert {"name", "version", "inference_count", "execution_count", "last_inference", "batch_stats"} <= set(before)
    assert set(before["inference_stats"]) == set(STATS)
    assert all(before["inference_stats"][key] == {"count": 0, "ns": 0} for key in STATS)
    path = f"/v2/models/{name}/infer"
    for _ in range(3):
        answer(post(changing, {"inputs": [tensor()]}, path))
    refused(post(changing, {"inputs": []}, path))
    after = stats(changing, name)
    assert (after["inference_count"], after["execution_count"]) == (6, 3)
    assert after["last_inference"] > 1_600_000_000_000
    counts = {key: after["inference_stats"][key]["count"] for key in STATS}
    assert counts == {**dict.fromkeys(STATS, 3), "fail": 1, "cache_hit": 0, "cache_miss": 0}
    spent = after["inference_stats"]
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert spent["success"]["ns"] == sum(spent[key]["ns"] for key in parts) > 0
    assert after in changing.json("/v2/models/stats")["model_stats"]


# --- without Flask ----------------------------------------------------------------------------------------------------


def quick(web: Any, body: bytes, path: str = INFER, **headers: str) -> Any:
    return web.app.extensions[QUICK_KEY]().answer(path, headers, body, "mine")


def test_quick_answers_are_those_of_the_view(web: Any) -> None:
    declared, data = binary_tensor(ROWS[:1])
    head = {"id": "1", "parameters": {"own": 1}, "inputs": [declared], "outputs": [{"name": "margin"}]}
    text, binary_head = (json.dumps({"id": "1", "inputs": [tensor(ROWS[:1])]}).encode(), json.dumps(head).encode())
    with_binary = json.dumps({**head, "parameters": {"binary_data_output": True}}).encode()
    for body, n_json in (
        (text, None),
        (binary_head + data, len(binary_head)),
        (with_binary + data, len(with_binary)),
        (ROWS[:1].tobytes(), 0),
    ):
        headers = {} if n_json is None else {HEADER: str(n_json)}
        viewed = post(web, body, headers={"Sec-Fetch-Site": "none", "X-Request-ID": "mine", **headers})
        assert viewed.status_code == 200
        answered = quick(web, body, **{key.upper().replace("-", "_"): headers[key] for key in headers})
        assert answered.status == "200 OK"
        assert answered.body == viewed.data
        assert all(viewed.headers[name] == value for name, value in answered.headers)
        assert (HEADER in viewed.headers) == (HEADER in dict(answered.headers))


def test_a_model_that_no_memory_is_kept_for_is_loaded_once_a_request(
    make_web: Callable[..., Any], tmp_path: Path, group_writer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_web(tmp_path, predictor_cache_bytes=0)
    group_writer(tmp_path / "m", "BTCUSDT_ret_1h", seed=1)
    registering.register_model(small.store, "m", str(tmp_path / "m"), TEST)
    reads: list[Any] = []
    real = predictors.stored_model
    monkeypatch.setattr(predictors, "stored_model", lambda *a: (reads.append(a), real(*a))[1])
    answer(post(small, f'{{"inputs":[{GOOD}]}}'.encode(), "/v2/models/m/infer"))
    assert len(reads) == 1


def test_what_is_not_plain_is_left_to_the_view(web: Any) -> None:
    good = f'{{"inputs":[{GOOD}]}}'.encode()
    post(web, good)
    assert quick(web, good) is not None
    assert quick(web, good, CONTENT_ENCODING="gzip") is None
    assert quick(web, good[:-1]) is None
    assert quick(web, good.replace(b"1,2,3", b"1,2")) is None
    assert quick(web, json.dumps({"inputs": [tensor(np.zeros((1000, 3)))]}).encode()) is None
    twenty = json.dumps({"inputs": [tensor(np.zeros((20, 3)))]}).encode()
    assert quick(web, twenty, ACCEPT_ENCODING="gzip") is None
    for path in ("/v2/models/alpha.NOSUCH/infer", "/v2/models//infer", "/v2/models/a/b/c/infer", "/v2/models/infer"):
        assert quick(web, good, path) is None


def test_a_model_that_is_not_loaded_is_left_to_the_view(changing: Any, web: Any) -> None:
    path = f"/v2/models/{changing.directory.name}.BTCUSDT/infer"
    good = f'{{"inputs":[{GOOD}]}}'.encode()
    assert quick(changing, good, path) is None
    answer(post(changing, good, path))
    assert quick(changing, good, path) is not None
    changing.client.post(f"/v2/repository/models/{changing.directory.name}/unload")
    assert quick(changing, good, path) is None
    answer(post(web, good))
    assert quick(web, good) is not None, "another model has the same content"
