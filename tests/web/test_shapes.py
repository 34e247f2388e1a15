"""Models whose one row is several timesteps: every protocol gives what the model gives, and refuses any other shape."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog import registering
from mmserver.catalog.catalog import Actor
from mmserver.web.current import QUICK_KEY
from mmserver.web.quick import QuickRoutes
from tests.windows import window_outputs, write_plugin, write_window

TEST = Actor("test")
SHAPE = (60, 110)
N_FEATURES = 6600
HEADER = "Inference-Header-Content-Length"
WINDOWS = np.random.default_rng(3).normal(size=(3, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def windows(make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models `net` (a return), `classes` (logits of three), `small` (explains itself, takes missing values), `deep`."""
    directory = tmp_path_factory.mktemp("windows")
    made = make_web(directory / "data", plugins_dir=write_plugin(directory / "plugins"), max_rows=4)
    made_weights = {
        "net": write_window(directory / "net", "BTCUSDT_ret_1h", SHAPE),
        "classes": write_window(
            directory / "classes", "BTCUSDT_label", SHAPE, n_outputs=3, output="logits", objective=""
        ),
        "small": write_window(directory / "small", "ETHUSDT_ret_1h", (4, 3), accepts_missing=True, explains=True),
        "deep": write_window(directory / "deep", "SOLUSDT_ret_1h", (2, 1, 3)),
    }
    for name in made_weights:
        registering.register_model(made.store, name, str(directory / name), TEST)
    return made, made_weights


@pytest.fixture
def web(windows: Any) -> Any:
    return windows[0]


@pytest.fixture
def weights(windows: Any) -> Any:
    return windows[1]


def predict(web: Any, features: Any, status: int = 200, *, path: str = "/predict", **more: Any) -> Any:
    body = {"symbol": "BTCUSDT", "model_name": "net", "features": features, **more}
    response = web.client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json


def infer(web: Any, shape: Any, data: Any, name: str = "net", **more: Any) -> Any:
    tensor = {"name": "features", "datatype": "FP32", "shape": list(shape), "data": data}
    return web.client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor], **more})


def quick_routes(web: Any) -> QuickRoutes:
    routes: QuickRoutes = web.app.extensions[QUICK_KEY]()
    return routes


def numbers(windows: Any) -> list[Any]:
    """As JSON has them: float32 that its decimal text gives back."""
    listed: list[Any] = np.asarray(windows, np.float32).tolist()
    return listed


# --- /predict ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/predict", "/api/ml/predict"])
@pytest.mark.parametrize("is_flat", [False, True], ids=["matrix", "flat"])
def test_a_matrix_of_timesteps_is_predicted_as_the_model_does(web: Any, weights: Any, path: str, is_flat: bool) -> None:
    for window, expected in zip(WINDOWS, window_outputs(weights["net"], WINDOWS), strict=True):
        found = predict(web, numbers(window.reshape(-1) if is_flat else window), path=path)["prediction"]
        assert np.float32(found["expected_return"]) == expected[0]
        assert found["direction"] in ("BUY" if expected[0] > 0 else "SELL", 1 if expected[0] > 0 else 2)


def test_three_classes_become_directions_with_the_confidence_of_their_logits(web: Any, weights: Any) -> None:
    for window, logits in zip(WINDOWS, window_outputs(weights["classes"], WINDOWS).astype(np.float64), strict=True):
        found = predict(web, numbers(window), model_name="classes")["prediction"]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert found["direction"] == ["HOLD", "BUY", "SELL"][int(logits.argmax())]
        assert found["confidence"] == found["probability"] == pytest.approx(shares.max())


@pytest.mark.parametrize(
    ("features", "loc", "why"),
    [
        pytest.param(numbers(WINDOWS[0][:59]), "features", "60 timesteps, each of 110 features", id="a timestep short"),
        pytest.param(numbers(WINDOWS[0].T), "features", "found 110 timesteps", id="transposed"),
        pytest.param([*numbers(WINDOWS[0][:59]), [1.0] * 109], "features[59]", "110 numbers are expected, found 109", id="ragged"),
        pytest.param([1.0] * 6599, "features", "found 6599", id="flat, one short"),
        pytest.param([1.0] * 110, "features", "found 110", id="one timestep"),
        pytest.param({"factor_0": 1.0}, "features", "no features by name", id="by name"),
        pytest.param([[None] * 110] * 60, "features[0][0]", "6600 features have no value", id="all missing"),
        pytest.param([*numbers(WINDOWS[0][:3]), [*[0.0] * 7, 1e39, *[0.0] * 102], *numbers(WINDOWS[0][4:])], "features[3][7]", "factor_7 of timestep 3 is not finite", id="too large"),
    ],
)  # fmt: skip
def test_another_shape_is_422_and_says_which_is_expected(web: Any, features: Any, loc: str, why: str) -> None:
    problem = predict(web, features, 422)
    assert (problem["code"], problem["errors"][0]["loc"]) == ("features_invalid", loc)
    assert why in problem["detail"]


def test_features_of_more_dimensions_than_a_matrix_are_422(web: Any) -> None:
    assert predict(web, numbers(WINDOWS[:1]), 422)["code"] == "fields_invalid"
    assert predict(web, {"factor_0": [1.0] * 60}, 422)["code"] == "fields_invalid"


def test_a_deeper_model_takes_its_numbers_flat(web: Any, weights: Any) -> None:
    window = WINDOWS[0].reshape(-1)[:6].reshape(1, 2, 1, 3)
    found = predict(web, numbers(window.reshape(-1)), model_name="deep", symbol="SOLUSDT")["prediction"]
    assert np.float32(found["expected_return"]) == window_outputs(weights["deep"], window)[0, 0]
    problem = predict(web, numbers(window.reshape(2, 3)), 422, model_name="deep", symbol="SOLUSDT")
    assert "2 × 1 × 3 numbers: send its 6 numbers in one flat list" in problem["detail"]


def test_a_matrix_counts_as_one_row_of_a_batch(web: Any, weights: Any) -> None:
    item = {"symbol": "BTCUSDT", "model_name": "net"}
    bad = {**item, "features": numbers(WINDOWS[0][:59])}
    body = {"requests": [*({**item, "features": numbers(window)} for window in WINDOWS), bad]}
    found = web.client.post("/predict/batch", json=body).json["predictions"]
    returns = [np.float32(answer["prediction"]["expected_return"]) for answer in found[:3]]
    assert returns == window_outputs(weights["net"], WINDOWS)[:, 0].tolist()
    assert found[3]["error"]["errors"][0]["loc"] == "features"
    too_many = web.client.post("/predict/batch", json={"requests": [bad] * 5})
    assert (too_many.status_code, too_many.json["code"]) == (413, "too_many_rows")


def test_missing_values_reach_a_model_that_knows_them(web: Any, weights: Any) -> None:
    window = numbers(WINDOWS[0][:4, :3])
    window[2][1] = None
    known = np.array([[np.nan if cell is None else cell for cell in line] for line in window], np.float32)
    found = predict(web, window, symbol="ETHUSDT", model_name="small")["prediction"]
    assert np.float32(found["expected_return"]) == window_outputs(weights["small"], np.nan_to_num(known)[None])[0, 0]


def test_an_explanation_has_one_number_for_each_timestep_of_a_factor(web: Any, weights: Any) -> None:
    window = WINDOWS[0][:4, :3]
    answer = predict(web, numbers(window), symbol="ETHUSDT", model_name="small", explain=True)
    moved = answer["contributions"]
    assert moved["base"] == 0
    assert list(moved["factors"]) == ["factor_0", "factor_1", "factor_2"]
    for dim in range(3):
        expected = window[:, dim].astype(np.float64) * weights["small"][0, :, dim]
        assert moved["factors"][f"factor_{dim}"] == pytest.approx(expected.tolist(), rel=1e-6)
    total = sum(value for values in moved["factors"].values() for value in values)
    assert total == pytest.approx(answer["prediction"]["expected_return"], rel=1e-5)


def test_a_model_whose_library_cannot_explain_says_so(web: Any) -> None:
    assert predict(web, numbers(WINDOWS[0]), 422, explain=True)["code"] == "not_explainable"


@pytest.mark.parametrize("is_flat", [False, True], ids=["matrix", "flat"])
def test_the_quick_route_gives_what_flask_gives(web: Any, is_flat: bool) -> None:
    features = numbers(WINDOWS[1].reshape(-1) if is_flat else WINDOWS[1])
    flasks = predict(web, features)
    body = json.dumps({"symbol": "BTCUSDT", "model_name": "net", "features": features}).encode()
    quick = quick_routes(web).answer("/predict", {}, body, "id", may_take_long=True)
    assert quick is not None
    assert json.loads(quick.body)["prediction"] == flasks["prediction"]


# --- Open Inference ---------------------------------------------------------------------------------------------------


def test_metadata_and_configuration_say_the_shape(web: Any) -> None:
    for name, shape in (("net", [-1, 60, 110]), ("deep", [-1, 2, 1, 3])):
        metadata, config = web.json(f"/v2/models/{name}"), web.json(f"/v2/models/{name}/config")
        assert metadata["inputs"] == [{"name": "features", "datatype": "FP32", "shape": shape}]
        assert config["input"][0]["dims"] == shape


@pytest.mark.parametrize("is_nested", [False, True], ids=["flat data", "nested data"])
def test_json_tensors_are_inferred_to_the_bit(web: Any, weights: Any, is_nested: bool) -> None:
    answer = infer(web, WINDOWS.shape, numbers(WINDOWS if is_nested else WINDOWS.reshape(-1)))
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json["outputs"][0]["data"], np.float32)
    assert found.tobytes() == window_outputs(weights["net"], WINDOWS)[:, 0].tobytes()


@pytest.mark.parametrize("has_json", [True, False], ids=["binary tensor", "raw body"])
@pytest.mark.parametrize("is_quick", [True, False], ids=["inline", "flask"])
def test_binary_tensors_are_inferred_to_the_bit(web: Any, weights: Any, has_json: bool, is_quick: bool) -> None:
    web.client.post("/v2/repository/models/net/load")
    data = WINDOWS.tobytes()
    tensor = {
        "name": "features",
        "datatype": "FP32",
        "shape": list(WINDOWS.shape),
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor]}).encode() if has_json else b""
    path = "/v2/models/net/infer"
    if is_quick:
        headers = {HEADER.upper().replace("-", "_"): str(len(head))}
        quick = quick_routes(web).answer(path, headers, head + data, "id", may_take_long=True)
        assert quick is not None
        body, length = quick.body, dict(quick.headers).get(HEADER)
    else:
        answer = web.client.post(path, data=head + data, headers={HEADER: str(len(head))})
        assert answer.status_code == 200, answer.text
        body, length = answer.data, answer.headers.get(HEADER)
    expected = window_outputs(weights["net"], WINDOWS)[:, 0]
    if has_json:
        found = np.array(json.loads(body)["outputs"][0]["data"], np.float32)
    else:
        found = np.frombuffer(body[int(str(length)) :], "<f4")
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(3, 6600), (3, 110, 60), (1, 180, 110), (1, 3, 60, 110), (3, 60, 11, 10)])
def test_tensors_of_another_shape_are_400_and_say_which_is_expected(web: Any, shape: tuple[int, ...]) -> None:
    answer = infer(web, shape, numbers(WINDOWS.reshape(-1)))
    assert answer.status_code == 400
    assert "the model takes [-1,60,110]" in answer.json["error"]


def test_a_body_of_raw_data_that_is_no_whole_window_is_400(web: Any) -> None:
    answer = web.client.post("/v2/models/net/infer", data=b"\0" * 4 * 6599, headers={HEADER: "0"})
    assert answer.status_code == 400
    assert "a row of 6600 FP32 takes 26400" in answer.json["error"]


def test_windows_are_rows_to_the_limit(web: Any) -> None:
    four = np.concatenate([WINDOWS, WINDOWS[:1]])
    assert infer(web, four.shape, numbers(four.reshape(-1))).status_code == 200
    five = np.concatenate([four, WINDOWS[:1]])
    assert infer(web, five.shape, numbers(five.reshape(-1))).status_code == 413


# --- /invocations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["instances", "inputs"])
def test_nested_rows_are_scored_as_the_model_does(web: Any, weights: Any, field: str) -> None:
    answer = web.client.post("/models/net/invocations", json={field: numbers(WINDOWS)})
    assert answer.status_code == 200, answer.text
    found = np.array(answer.json["predictions"], np.float32)
    assert found.tobytes() == window_outputs(weights["net"], WINDOWS)[:, 0].tobytes()
    assert web.client.post("/models/net/invocations", json={field: []}).json == {"predictions": []}


def test_a_window_is_scored_by_the_path_of_a_version_too(web: Any, weights: Any) -> None:
    label = web.store.catalog.models["deep"].serving.label
    window = WINDOWS[0].reshape(-1)[:6].reshape(1, 2, 1, 3)
    answer = web.client.post(f"/models/deep/versions/{label}/invocations", json={"inputs": numbers(window)})
    assert np.float32(answer.json["predictions"][0]) == window_outputs(weights["deep"], window)[0, 0]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param({"instances": numbers(WINDOWS[0][:3])}, "instances[0]", id="timesteps alone"),
        pytest.param({"instances": numbers(WINDOWS.reshape(3, -1))}, "instances[0]", id="flat"),
        pytest.param({"dataframe_split": {"data": numbers(WINDOWS[0])}}, "60 × 110 numbers", id="split"),
        pytest.param({"dataframe_records": [{"factor_0": 1.0}]}, "60 × 110 numbers", id="records"),
        pytest.param({"inputs": {"factor_0": [1.0]}}, "60 × 110 numbers", id="columns"),
        pytest.param({"instances": [[*numbers(WINDOWS[0])[:59], [None] * 110]]}, "110 features have no value", id="missing"),
    ],
)  # fmt: skip
def test_tables_and_other_shapes_are_400_for_a_model_of_windows(web: Any, body: Any, why: str) -> None:
    answer = web.client.post("/models/net/invocations", json=body)
    assert (answer.status_code, answer.json["code"]) == (400, "features_invalid")
    assert why in answer.json["message"]


def test_csv_is_400_for_a_model_of_windows(web: Any) -> None:
    answer = web.client.post("/models/net/invocations", data="factor_0\n1\n", content_type="text/csv")
    assert (answer.status_code, answer.json["code"]) == (400, "features_invalid")
    assert "60 × 110 numbers" in answer.json["message"]


def test_too_many_windows_are_413(web: Any) -> None:
    answer = web.client.post("/models/net/invocations", json={"instances": numbers(WINDOWS[[0] * 5])})
    assert answer.json["error_code"] == "REQUEST_LIMIT_EXCEEDED"


# --- the catalog ------------------------------------------------------------------------------------------------------


def test_the_factors_name_the_last_axis(web: Any) -> None:
    found = web.json("/api/models/net/symbols/BTCUSDT")
    assert (found["dim"], len(found["factors"]), found["model"]["n_features"]) == (110, 110, N_FEATURES)
    assert found["model"]["input_shape"] == [60, 110]


@pytest.mark.parametrize("change", [{"factors": ["a"] * 2}, {"shape": [60, 0]}], ids=["factors", "no columns"])
def test_a_shape_that_does_not_fit_is_refused_by_name(web: Any, tmp_path: Path, change: dict[str, Any]) -> None:
    write_window(tmp_path, "BTCUSDT_ret_1h", (4, 3))
    path = tmp_path / "BTCUSDT_ret_1h_window.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    answer = web.client.post("/api/models", json={"model_name": "wrong", "root_path": str(tmp_path)})
    assert answer.status_code == 400
    assert "BTCUSDT_ret_1h" in answer.json["detail"]


# --- ONNX -------------------------------------------------------------------------------------------------------------


def write_network(directory: Path, group_key: str, output: str, *, has_softmax: bool, info: dict[str, Any]) -> Any:
    """A network of 60 × 110 inputs and three classes, as the `onnx` package makes it; its weights, 6600 × 3."""
    onnx = pytest.importorskip("onnx", reason="the networks are made with the onnx package")
    from onnx import TensorProto, helper

    weights = np.random.default_rng(11).normal(scale=0.02, size=(N_FEATURES, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["scores" if has_softmax else output]),
    ]
    if has_softmax:
        nodes.append(helper.make_node("Softmax", ["scores"], [output]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    directory.mkdir(parents=True)
    (directory / f"{group_key}_model.onnx").write_bytes(made.SerializeToString())
    (directory / f"{group_key}_info.pkl").write_bytes(pickle.dumps(info))
    return weights


@pytest.mark.parametrize(
    ("output", "has_softmax", "info", "has_confidence"),
    [
        pytest.param("probabilities", True, {}, True, id="probabilities"),
        pytest.param("logits", False, {}, True, id="logits"),
        pytest.param("dense_2", False, {"output": "logits"}, True, id="the info says logits"),
        pytest.param("dense_2", True, {"task": "classification"}, True, id="a classifier whose rows sum to 1"),
        pytest.param("dense_2", False, {"task": "classification"}, False, id="a classifier of any numbers"),
    ],
)
def test_a_network_of_onnx_is_predicted_with_the_confidence_that_it_gives_ground_for(
    make_web: Callable[..., Any],
    tmp_path: Path,
    output: str,
    has_softmax: bool,
    info: dict[str, Any],
    has_confidence: bool,
) -> None:
    written = write_network(
        tmp_path / "net",
        "BTCUSDT_label",
        output,
        has_softmax=has_softmax,
        info={**info, "classes": ["SELL", "HOLD", "BUY"]},
    )
    web = make_web(tmp_path / "data")
    registering.register_model(web.store, "net", str(tmp_path / "net"), TEST)
    logits = WINDOWS.reshape(3, -1).astype(np.float64) @ written
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for window, row in zip(WINDOWS, shares, strict=True):
        found = predict(web, numbers(window))["prediction"]
        assert found["direction"] == ["SELL", "HOLD", "BUY"][int(row.argmax())]
        assert found["confidence"] == found["probability"]
        assert found["confidence"] == (pytest.approx(row.max(), abs=1e-5) if has_confidence else None)
    assert predict(web, numbers(WINDOWS[0]), 422, explain=True)["code"] == "not_explainable"
    expected = shares if has_softmax else logits
    scored = web.client.post("/models/net/invocations", json={"instances": numbers(WINDOWS)}).json["predictions"]
    assert np.array(scored) == pytest.approx(expected, abs=1e-4)
    inferred = infer(web, WINDOWS.shape, numbers(WINDOWS)).json["outputs"][0]
    assert (inferred["name"], inferred["shape"]) == (output, [3, 3])
    assert inferred["data"] == np.array(scored, np.float32).reshape(-1).tolist()


def test_three_numbers_of_onnx_that_nothing_explains_are_given_raw_and_no_direction(
    make_web: Callable[..., Any], tmp_path: Path
) -> None:
    write_network(tmp_path / "net", "BTCUSDT_label", "dense_2", has_softmax=False, info={})
    web = make_web(tmp_path / "data")
    registering.register_model(web.store, "net", str(tmp_path / "net"), TEST)
    problem = predict(web, numbers(WINDOWS[0]), 422)
    assert problem["code"] == "not_interpretable"
    assert "logits" in problem["detail"]
    assert infer(web, WINDOWS.shape, numbers(WINDOWS)).status_code == 200
