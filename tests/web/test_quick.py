"""What is answered without Flask is what Flask answers: the same status and the same body, but for ids and times."""

import json
import struct
import threading
from collections.abc import Callable
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mmserver.catalog.catalog import Actor
from mmserver.catalog.refreshing import refresh_model
from mmserver.serving.features import RowLayout
from mmserver.web import open_inference_infer, quick
from mmserver.web.current import QUICK_KEY, SERVING_KEY
from mmserver.web.open_inference_bodies import HEADER_LENGTH, request_from_json

TEST = Actor("test")
NAMES = ("mom_1h", "vol_1d", "<script>alert(1)</script>")  # of the shared model `alpha`
ROW = [0.25, -1.5, 0.75]
BODY = {"symbol": "BTC/USDT", "features": ROW, "model_name": "alpha"}
JSON = {"CONTENT_TYPE": "application/json"}
ANY_MACHINE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
"""Checks that are left out: what is slow is the machine, and the fixtures are the same for all examples."""
PER_REQUEST = ("prediction_id", "latency_ms", "timestamp", "request_id")


@pytest.fixture(scope="module")
def routes(web: Any) -> quick.QuickRoutes:
    """The quick routes of the shared application, with both models loaded."""
    for symbol in ("BTCUSDT", "ETHUSDT"):
        assert web.client.post("/predict?flask=1", json={**BODY, "symbol": symbol}).status_code == 200
    made: quick.QuickRoutes = web.app.extensions[QUICK_KEY]()
    return made


def quickly(routes: quick.QuickRoutes, body: Any, path: str = "/predict", **headers: str) -> quick.QuickAnswer | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return routes.answer(path, {**JSON, **headers}, data, "mine")


def comparable(body: bytes) -> Any:
    document = msgspec.json.decode(body)
    return {name: value for name, value in document.items() if name not in PER_REQUEST}


# --- the same as Flask ------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.floats(-5, 5).map(repr),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-3, 3).map(str),
    st.sampled_from(["null", "1e39", "3.4028235e38", "3.4028236e38", "1e-50", "-0.0", "9223372036854775807", "9223372036854775808",
                     "18446744073709551616", "1e19", "1e999", "NaN", "true", '"1"', "[1]"]),
)  # fmt: skip
VECTORS = st.lists(NUMBERS, min_size=2, max_size=4).map(lambda items: "[" + ", ".join(items) + "]")
BY_NAME = st.lists(st.tuples(st.sampled_from([*NAMES, "other"]), NUMBERS), min_size=2, max_size=4).map(
    lambda pairs: "{" + ",".join(f"{json.dumps(name)}: {value}" for name, value in pairs) + "}"
)
FEATURES = st.one_of(VECTORS, BY_NAME, VECTORS.map("[{}]".format), st.sampled_from(["[]", "{}", "[[]]", "null", '"x"']))
EXTRAS = st.sampled_from(
    ['"model_name": "alpha"', '"model_name": "nobody"', '"model_name": null', '"model_version": "latest"',
     '"model_version": "production"', '"model_version": "1.0"', '"model_version": 7', '"explain": false', '"explain": null',
     '"explain": 1', '"timestamp": "2024-01-15T10:30:00Z"', '"timestamp": "now"', '"unit_id": "bot-1"', '"other": {"a": [1]}',
     '"other": {"a": 1, "a": 2}', '"other": 1e999', '"symbol": "ETHUSDT"', '"model_type": "LSTM"', '"größe": "\\u00e9"']
)  # fmt: skip
SYMBOLS = st.sampled_from(
    ['"BTC/USDT"', '"btcusdt"', '"ETH-USDT"', '"SOLUSDT"', '"PEPEUSDT"', '"ZZZ"', '""', "7", '"BTC\\u002fUSDT"']
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Requests for a prediction, right in most places."""
    members = ['"symbol": ' + draw(SYMBOLS), '"features": ' + draw(FEATURES)]
    members += draw(st.lists(EXTRAS, max_size=2))
    if draw(st.booleans()):
        members.append('"model_name": "alpha"')
    data = ("{" + ", ".join(draw(st.permutations(members))) + "}").encode()
    return draw(st.sampled_from([data] * 8 + damaged(data)))


def damaged(data: bytes) -> list[bytes]:
    """What is done to JSON text on its way, or by those who mean harm; the second one is still the same JSON."""
    return [
        data[:-1],
        b" \t" + data + b"\r\n",
        data + b"x",
        data + data,
        b"\xef\xbb\xbf" + data,
        data.decode().encode("utf-16"),
        data.decode().encode("utf-16-le"),
        data.replace(b'"', b"'"),
        data.replace(b'"symbol"', b'"symbol\x00"').replace(b'"name"', b'"n\x00me"'),
        data.replace(b"U", b"\xff"),
        data.replace(b"U", b"\xed\xa0\x80"),
        data.replace(b":", b":" + b"[" * 2000, 1),
        data[:-1] + b',"deep":' + b"[" * 40 + b"]" * 40 + b"}",
        data[:-1] + b',"\\u0073ymbol":"ETHUSDT"}',
    ]


@settings(max_examples=500, deadline=None, suppress_health_check=ANY_MACHINE)
@given(bodies(), st.sampled_from(["/predict", "/api/ml/predict"]))
@example(json.dumps(BODY).encode(), "/predict")
@example(b'{"symbol":"BTCUSDT","features":[1,2,3],"model_name":"alpha","model_name":"beta"}', "/predict")
@example(b'{"symbol":"BTCUSDT","features":[1,2,18446744073709551616],"model_name":"alpha"}', "/predict")
def test_every_quick_answer_is_flasks_answer(web: Any, routes: quick.QuickRoutes, data: bytes, path: str) -> None:
    answer = quickly(routes, data, path)
    response = web.client.post(f"{path}?flask=1", data=data, content_type="application/json")
    assert response.status_code in (200, 400, 404, 422, 503), response.text
    if answer is None:
        return
    assert answer.status == "200 OK"
    assert response.status_code == 200, response.text
    assert list(msgspec.json.decode(answer.body)) == list(response.json)
    assert comparable(answer.body) == comparable(response.data)
    assert dict(answer.headers)["Content-Type"] == response.content_type


# The same of the Open Inference Protocol.

V2 = "/v2/models/alpha.BTCUSDT/infer"
TENSOR_NUMBERS = {
    "FP32": NUMBERS, "FP64": NUMBERS, "BOOL": st.sampled_from(["true", "false", "1", "null"]),
    "INT64": st.sampled_from(["1", "-2", "9007199254740993", "9223372036854775807", "9223372036854775808", "1.0", "null"]),
    "UINT8": st.sampled_from(["0", "255", "256", "-1"]), "BYTES": st.just('"1"'), "FP16": NUMBERS, "nosuch": NUMBERS,
}  # fmt: skip
OUTPUTS = st.sampled_from(
    ['[]', 'null', '[{"name":"prediction"}]', '[{"name":"margin"},{"name":"prediction"}]', '[{"name":"margin"},{"name":"margin"}]',
     '[{"name":"nosuch"}]', '[{"name":"margin","parameters":{"binary_data":true}}]', '[{"name":"margin","parameters":{"binary_data":1}}]',
     '[{"name":"prediction","parameters":{"own":"x","binary_data":true}},{"name":"margin"}]', "{}", "[1]"]
)  # fmt: skip
V2_EXTRAS = st.sampled_from(
    ['"id":"a"', '"id":""', '"id":7', '"id":null', '"parameters":{"own":1.5,"list":[1]}', '"parameters":{"binary_data_output":true}',
     '"parameters":{"own":NaN}', '"parameters":{"a":1,"a":2}', '"parameters":null', '"inputs":[]', '"x":{"y":[null]}', '"x":1e999']
)  # fmt: skip
SHAPES = st.sampled_from(
    [[1, 3]] * 8 + [[3], [3, 1], [1, 1, 3], [-1, 3], [0, 3], [0, 2**61], [2**63, 3], [2**62, 4], []]
)


@st.composite
def v2_requests(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """Inference requests, right in most places, and the header that says how much of them is JSON."""
    inputs, tails = [], []
    by_factor = draw(st.sampled_from([False, False, False, True]))
    names = draw(st.permutations(NAMES)) if by_factor else [draw(st.sampled_from(["features"] * 9 + ["other"]))]
    for name in names:
        datatype = draw(st.sampled_from(["FP32"] * 6 + sorted(TENSOR_NUMBERS)))
        shape = draw(st.sampled_from([[1], [1, 1], [1], [2]])) if by_factor else draw(SHAPES)
        n_elements = (shape[0] if shape else 1) if by_factor else 3
        declared = f'"name":{json.dumps(name)},"datatype":"{datatype}","shape":{shape}'
        if draw(st.sampled_from([False, False, True])):
            data = struct.pack(f"<{n_elements}f", *draw(st.lists(FLOATS, min_size=n_elements, max_size=n_elements)))
            size = draw(st.sampled_from([len(data)] * 8 + [0, 4, -4, 2**40, "true", '"12"']))
            inputs.append(f'{{{declared},"parameters":{{"binary_data_size":{size}}}}}')
            tails.append(data)
        else:
            elements = draw(st.lists(TENSOR_NUMBERS[datatype], min_size=n_elements, max_size=n_elements))
            text = "[" + ",".join(elements) + "]"
            inputs.append(f'{{{declared},"data":{draw(st.sampled_from([text] * 4 + ["[" + text + "]"]))}}}')
    members = [f'"inputs":[{",".join(inputs)}]', *draw(st.lists(V2_EXTRAS, max_size=2))]
    if draw(st.booleans()):
        members.append(f'"outputs":{draw(OUTPUTS)}')
    text_bytes = ("{" + ",".join(draw(st.permutations(members))) + "}").encode()
    text_bytes = draw(st.sampled_from([text_bytes] * 20 + damaged(text_bytes)))
    n_json = len(text_bytes)
    length = draw(
        st.sampled_from([str(n_json)] * 12 + [str(n_json - 1), "0", "-1", "", "1e3", str(2**64), f"{n_json} "])
    )
    headers = {HEADER_LENGTH: length} if tails or draw(st.booleans()) else {}
    return text_bytes + b"".join(tails), headers


FLOATS = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, 1e-45, 3.4028234663852886e38]))


@settings(max_examples=600, deadline=None, suppress_health_check=ANY_MACHINE)
@given(v2_requests())
@example((struct.pack("<6f", *ROW, *ROW), {HEADER_LENGTH: "0"}))
@example((b'{"inputs":[{"name":"features","datatype":"INT64","shape":[1,3],"data":[9007199254740993,1,2]}]}', {}))
def test_every_quick_inference_is_the_views(
    web: Any, routes: quick.QuickRoutes, request_of: tuple[bytes, dict[str, str]]
) -> None:
    data, headers = request_of
    keys = {name.upper().replace("-", "_"): value for name, value in headers.items()}
    answer = routes.answer(V2, keys, data, "mine")
    response = web.client.post(f"{V2}?flask=1", data=data, headers={"X-Request-ID": "mine", **headers})
    assert response.status_code < 500
    if answer is None:
        return
    assert (answer.status, response.status_code) == ("200 OK", 200)
    assert answer.body == response.data
    assert all(response.headers[name] == value for name, value in answer.headers)
    assert (HEADER_LENGTH in response.headers) == (HEADER_LENGTH in dict(answer.headers))


def make_known(web: Any) -> None:
    """Have the model's name resolved against the catalog of now, which the view does."""
    raw = struct.pack("<3f", *ROW)
    assert web.client.post(f"{V2}?flask=1", data=raw, headers={HEADER_LENGTH: "0"}).status_code == 200


def test_the_requests_that_are_made_up_are_answered_quickly_often_enough(web: Any, routes: quick.QuickRoutes) -> None:
    n_quick = 0
    make_known(web)

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(v2_requests())
    def count(made: tuple[bytes, dict[str, str]]) -> None:
        nonlocal n_quick
        data, headers = made
        keys = {name.upper().replace("-", "_"): value for name, value in headers.items()}
        n_quick += routes.answer(V2, keys, data, "mine") is not None

    count()
    assert n_quick >= 10


def test_the_wsgi_wrapper_answers_what_flask_answers(web: Any, routes: quick.QuickRoutes) -> None:
    fast, slow = (web.client.post(path, json=BODY) for path in ("/predict", "/predict?flask=1"))
    assert fast.status_code == slow.status_code == 200
    assert comparable(fast.data) == comparable(slow.data)
    names = {name.lower() for name in dict(slow.headers)} - {"vary"}  # Flask compresses long answers
    assert {name.lower() for name in dict(fast.headers)} == names


# --- what is quick, and what is not ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(BODY, id="vector"),
        pytest.param({**BODY, "features": dict(zip(NAMES, ROW, strict=True))}, id="by name"),
        pytest.param({**BODY, "features": dict(zip(reversed(NAMES), ROW, strict=True))}, id="by name in another order"),
        pytest.param({**BODY, "features": [0.25, None, 0.75]}, id="a missing value"),
        pytest.param({**BODY, "features": [ROW]}, id="a matrix of one row"),
        pytest.param({**BODY, "features": [1, 2, 3]}, id="integers"),
        pytest.param({**BODY, "model_version": "latest", "explain": False}, id="the latest version"),
        pytest.param(
            {**BODY, "timestamp": "2024-01-15T10:30:00Z", "unit_id": "u", "experiment_id": "e"}, id="more fields"
        ),
    ],
)
def test_ordinary_requests_need_no_flask(routes: quick.QuickRoutes, body: Any) -> None:
    assert quickly(routes, body) is not None
    assert quickly(routes, body, "/api/ml/predict") is not None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({**BODY, "explain": True}, id="to be explained"),
        pytest.param({**BODY, "symbol": "ZZZ"}, id="unknown symbol"),
        pytest.param({**BODY, "symbol": "SOLUSDT"}, id="no model"),
        pytest.param({**BODY, "model_name": "nobody"}, id="unknown model"),
        pytest.param({**BODY, "features": [1, 2]}, id="too few"),
        pytest.param({**BODY, "features": [1e39, 2, 3]}, id="beyond float32"),
        pytest.param({**BODY, "other": 1}, id="unknown field"),
        pytest.param({**BODY, "symbol": "BTC\\USDT"}, id="an escape"),
        pytest.param({**BODY, "features": [ROW, ROW]}, id="two rows"),
        pytest.param({"requests": [BODY]}, id="a batch"),
        pytest.param(json.dumps({**BODY, "unit_id": "u" * quick.MAX_BODY_BYTES}).encode(), id="large"),
        pytest.param(b"", id="empty"),
    ],
)
def test_what_is_not_plain_is_left_to_flask(routes: quick.QuickRoutes, body: Any) -> None:
    assert quickly(routes, body) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"CONTENT_TYPE": "multipart/form-data; boundary=x"},
        {"CONTENT_TYPE": "application/json; charset=latin-1"},
        {"CONTENT_TYPE": "text/csv"},
        {"CONTENT_ENCODING": "gzip"},
        {"ORIGIN": "https://evil.example"},
        {"SEC_FETCH_SITE": "cross-site"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_headers_that_may_mean_a_refusal_are_left_to_flask(routes: quick.QuickRoutes, headers: dict[str, str]) -> None:
    assert quickly(routes, BODY, **headers) is None


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_what_curl_sends_is_quick(routes: quick.QuickRoutes, content_type: str) -> None:
    assert quickly(routes, BODY, CONTENT_TYPE=content_type) is not None


@pytest.mark.parametrize(
    ("method", "path", "query", "is_one"),
    [
        ("POST", "/predict", "", True),
        ("POST", "/api/ml/predict", "", True),
        ("GET", "/predict", "", False),
        ("HEAD", "/predict", "", False),
        ("OPTIONS", "/predict", "", False),
        ("POST", "/predict", "as_of=2024-01-15T10:30:00Z", False),
        ("POST", "/predict/", "", False),
        ("POST", "/predict/batch", "", False),
        ("POST", "/api/models", "", False),
    ],
)
def test_candidates_are_known_by_method_and_path_alone(
    routes: quick.QuickRoutes, method: str, path: str, query: str, is_one: bool
) -> None:
    assert routes.is_candidate(method, path, query) == is_one


def test_a_slow_model_is_left_to_a_thread(routes: quick.QuickRoutes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "MAX_ROW_COST_NS", -1)
    assert quickly(routes, BODY) is None
    answer = routes.answer("/predict", JSON, json.dumps(BODY).encode(), "mine", may_take_long=True)
    assert answer is not None
    monkeypatch.undo()
    usual = quickly(routes, BODY)
    assert usual is not None
    assert comparable(answer.body) == comparable(usual.body)


@pytest.mark.parametrize("is_binary", [False, True], ids=["JSON", "binary"])
def test_many_rows_are_left_to_a_thread_which_answers_as_flask_does(
    web: Any, routes: quick.QuickRoutes, *, is_binary: bool
) -> None:
    make_known(web)
    rows = np.random.default_rng(3).normal(size=(5000, len(NAMES))).astype(np.float32)
    tensor: dict[str, Any] = {"name": "features", "shape": list(rows.shape), "datatype": "FP32"}
    head: dict[str, Any] = {"id": "mine", "inputs": [tensor]}
    if is_binary:
        tensor["parameters"] = {"binary_data_size": rows.nbytes}
        head["parameters"] = {"binary_data_output": True}
    else:
        tensor["data"] = rows.ravel().tolist()
    text = json.dumps(head).encode()
    body = text + rows.tobytes() if is_binary else text
    lengths = {HEADER_LENGTH: str(len(text))} if is_binary else {}
    headers = {name.upper().replace("-", "_"): value for name, value in lengths.items()}
    assert routes.answer(V2, headers, body, "mine") is None
    answer = routes.answer(V2, headers, body, "mine", may_take_long=True)
    assert answer is not None
    response = web.client.post(f"{V2}?flask=1", data=body, headers=lengths)
    assert (response.status_code, response.data) == (200, answer.body)
    assert dict(answer.headers).get(HEADER_LENGTH) == response.headers.get(HEADER_LENGTH)


def test_a_model_that_is_not_loaded_is_left_to_a_thread(changing: Any, routes: quick.QuickRoutes) -> None:
    body = {**BODY, "model_name": changing.directory.name}
    serving = changing.app.extensions[SERVING_KEY]()
    assert quickly(routes, body) is not None  # `alpha` has the same content: it is loaded once
    serving.unloading.unload(serving.resolve("BTCUSDT", changing.directory.name))
    assert quickly(routes, body) is None
    assert quickly(routes, BODY) is not None


@pytest.mark.parametrize(
    "features", [[0.5] * 50_000, {f"f{number}": 0.5 for number in range(20_000)}], ids=["list", "names"]
)
def test_far_too_many_features_are_left_to_a_thread_at_once(
    routes: quick.QuickRoutes, monkeypatch: pytest.MonkeyPatch, features: Any
) -> None:
    monkeypatch.setattr(RowLayout, "row", lambda *_: pytest.fail("said what is wrong with each"))
    assert quickly(routes, {**BODY, "features": features}) is None


def test_an_inference_of_many_inputs_is_left_to_a_thread(
    web: Any, routes: quick.QuickRoutes, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_known(web)

    def body(n: int) -> bytes:
        inputs = [{"name": str(at), "shape": [1], "datatype": "FP32", "data": [1]} for at in range(n)]
        return json.dumps({"inputs": inputs}).encode()

    read: list[bytes] = []
    monkeypatch.setattr(
        open_inference_infer, "request_from_json", lambda text: (read.append(text), request_from_json(text))[1]
    )
    assert routes.answer(V2, {}, body(open_inference_infer.MAX_QUICK_INPUTS), "mine") is None
    assert len(read) == 1
    assert routes.answer(V2, {}, body(open_inference_infer.MAX_QUICK_INPUTS + 1), "mine") is None
    assert len(read) == 1


# --- change -----------------------------------------------------------------------------------------------------------


def test_a_new_version_is_answered_at_once(
    changing: Any, routes: quick.QuickRoutes, group_writer: Callable[..., None]
) -> None:
    body = {**BODY, "model_name": changing.directory.name}
    before = changing.client.post("/predict", json=body).json
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=11)
    refresh_model(changing.store, changing.directory.name, TEST)
    label = changing.store.model(changing.directory.name).serving.label
    assert quickly(routes, body) is None  # not loaded yet
    after = changing.client.post("/predict", json=body).json
    assert after["model_version"] == label != before["model_version"]
    again = quickly(routes, body)
    assert again is not None
    assert comparable(again.body) == {name: value for name, value in after.items() if name not in PER_REQUEST}


def test_after_any_change_of_the_catalog_other_models_stay_quick(routes: quick.QuickRoutes, changing: Any) -> None:
    changing.store.reload()
    changing.store.reload_venues()
    assert quickly(routes, BODY) is not None


def test_quick_answers_are_counted_like_others(web: Any, routes: quick.QuickRoutes) -> None:
    serving = web.app.extensions[SERVING_KEY]()
    resolved = serving.resolve("BTCUSDT", "alpha")
    before = serving.statistics.of(resolved.version, resolved.group)
    assert quickly(routes, BODY) is not None
    after = serving.statistics.of(resolved.version, resolved.group)
    assert after.inference_count == before.inference_count + 1
    assert after.success.count == before.success.count + 1


def test_a_refused_request_is_counted_once(web: Any, routes: quick.QuickRoutes) -> None:
    serving = web.app.extensions[SERVING_KEY]()
    resolved = serving.resolve("BTCUSDT", "alpha")
    before = serving.statistics.of(resolved.version, resolved.group).fail.count
    assert web.client.post("/predict", json={**BODY, "features": [1, 2]}).status_code == 422
    assert serving.statistics.of(resolved.version, resolved.group).fail.count == before + 1


def test_many_threads_get_their_own_answers(web: Any, routes: quick.QuickRoutes) -> None:
    wrong: list[Any] = []

    def ask(number: int) -> None:
        body = {**BODY, "symbol": ("BTCUSDT", "ETHUSDT")[number % 2], "features": [number / 10, -number, 1]}
        expected = comparable(web.client.post("/predict?flask=1", json=body).data)
        for _ in range(50):
            answer = quickly(routes, body)
            if answer is None or comparable(answer.body) != expected:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


# --- the wrapper ------------------------------------------------------------------------------------------------------


class Pieces(BytesIO):
    """An input that gives less than it was asked for, as sockets do when the client is gone."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(None if size is None else min(size, 10))


@pytest.mark.parametrize("length", ["", "-1", "1e3", "99999999999999", "١٢", "0"])
def test_a_body_of_strange_length_is_left_to_flask(web: Any, length: str) -> None:
    environ = {
        "CONTENT_LENGTH": length,
        "wsgi.input": BytesIO(json.dumps(BODY).encode()),
        "CONTENT_TYPE": "application/json",
    }
    response = web.client.post("/predict", environ_overrides=environ)
    assert response.status_code in (200, 400, 413)


def test_a_body_that_ends_early_is_refused(web: Any, routes: quick.QuickRoutes) -> None:
    data = json.dumps(BODY).encode()
    environ = {"CONTENT_LENGTH": str(len(data)), "wsgi.input": Pieces(data), "CONTENT_TYPE": "application/json"}
    assert web.client.post("/predict", environ_overrides=environ).status_code == 400


def test_what_the_wrapper_read_is_there_for_flask(web: Any, routes: quick.QuickRoutes) -> None:
    response = web.client.post("/predict", json={**BODY, "explain": True})
    assert response.status_code == 200
    assert "contributions" in response.json


def test_other_requests_do_not_make_the_prediction_service(
    make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    fresh = make_web(tmp_path_factory.mktemp("fresh"))
    fresh.client.get("/api/models")
    fresh.client.post("/api/models", json={})
    fresh.client.get("/health")
    assert fresh.app.extensions[SERVING_KEY].made is None
    assert fresh.app.extensions[QUICK_KEY].made is None
