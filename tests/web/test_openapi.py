"""The API's description is whole and true: every route is in it, and real answers are what it says."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
from werkzeug.test import Client, TestResponse

from mmserver import errors
from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import check_name, register_model
from mmserver.web.api_description import prediction_bodies
from mmserver.web.api_description.contents import OPERATIONS, api_document, load_examples
from mmserver.web.api_description.document import path_of
from mmserver.web.api_description.experiments import EXPERIMENTS
from mmserver.web.api_description.operations import Operation
from mmserver.web.current import EXPERIMENTER_KEY
from mmserver.web.errors import CODE_BY_HTTP_STATUS
from mmserver.web.prediction_answers import DecisionItem, ErrorDetail, ErrorItem, PredictionItem

PAGES = re.compile(r"/|/ui/.*|/static/.*|/favicon\.svg|/docs|/redoc")
AUTOMATIC = {"HEAD", "OPTIONS"}
JSON_TYPES = ("application/json", "application/problem+json")
BY_NAME = {operation.name: operation for operation in OPERATIONS}
SOMETIMES = {
    "Inference-Header-Content-Length", "X-Variant", "X-Experiment-Id", "X-Prediction-Id", "X-Fallback",
}  # fmt: skip
"""Headers that not every such answer has."""
ROW = [0.5, -0.25, 1.0]


@pytest.fixture(scope="module")
def document(web: Any) -> dict[str, Any]:
    """What the application gives at /openapi.json."""
    response = web.client.get("/openapi.json")
    assert (response.status_code, response.mimetype) == (200, "application/json")
    described: dict[str, Any] = response.json
    return described


@pytest.fixture(scope="module")
def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every type closed: a field that it does not name is an error."""

    def close(schema: Any) -> Any:
        if isinstance(schema, list):
            return [close(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        found = {key: close(value) for key, value in schema.items()}
        if schema.get("type") == "object" and "properties" in schema:
            found["additionalProperties"] = False
        return found

    return {**document, "components": close(document["components"])}


# --- every route ------------------------------------------------------------------------------------------------------


def test_every_route_is_described_and_nothing_else_is(web: Any, document: dict[str, Any]) -> None:
    routes = {
        (method, path_of(rule.rule))
        for rule in web.app.url_map.iter_rules()
        if not PAGES.fullmatch(rule.rule)
        for method in rule.methods - AUTOMATIC
    }
    described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert described == routes


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document)


def test_every_schema_is_valid_and_used(document: dict[str, Any]) -> None:
    used = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert used == set(document["components"]["schemas"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_field_parameter_and_operation_says_what_it_is(document: dict[str, Any]) -> None:
    silent = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        for field, described in schema.get("properties", {}).items()
        if not described.get("description")
    ]
    assert silent == []
    for item in document["paths"].values():
        for operation in item.values():
            assert operation["summary"]
            assert all(parameter["description"] for parameter in operation.get("parameters", ()))
    tags = [tag["name"] for tag in document["tags"]]
    assert sorted({operation.tag for operation in OPERATIONS}) == sorted(tags)


def test_every_error_code_that_is_listed_exists(document: dict[str, Any]) -> None:
    def leaves(branch: type[errors.MmserverError]) -> Iterator[str]:
        yield branch.code
        for leaf in branch.__subclasses__():
            yield from leaves(leaf)

    known = {*leaves(errors.MmserverError), *(code for code, _ in CODE_BY_HTTP_STATUS.values())}
    listed = set()
    for item in document["paths"].values():
        for operation in item.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    listed |= set(re.findall(r"^- `(\w+)`:", response["description"], re.MULTILINE))
    assert listed - known == set()
    assert {"internal", "model_not_found", "request_invalid", "features_invalid", "read_only"} <= listed


def test_predictions_are_described_with_the_fields_that_are_sent() -> None:
    for described, sent in (
        (prediction_bodies.Prediction, PredictionItem),
        (prediction_bodies.CodedPrediction, PredictionItem),
        (prediction_bodies.Decision, DecisionItem),
        (prediction_bodies.FailedItem, ErrorItem),
        (prediction_bodies.ItemProblem, ErrorDetail),
    ):
        assert set(described.__struct_encode_fields__) == set(sent.__struct_encode_fields__)


# --- real answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """One request for an operation: what its address is filled with, what is sent, and the status that it must have."""

    path: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    json: Any = None
    data: bytes | None = None
    content_type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 200


MODEL = {"model_name": "alpha"}
GROUP = {"model_name": "alpha", "symbol": "BTCUSDT"}
TENSOR = {"name": "alpha.BTCUSDT"}
TENSOR_VERSION = {**TENSOR, "version": "latest"}
INFER = {"inputs": [{"name": "features", "shape": [2, 3], "datatype": "FP32", "data": [*ROW, *ROW]}]}
PREDICT = {"symbol": "BTC/USDT", "features": ROW, "model_name": "alpha"}
BATCH = {"requests": [PREDICT, {"symbol": "NONE", "features": ROW, "model_name": "alpha"}, {"symbol": 1}]}
TABLE = {"dataframe_split": {"columns": ["mom_1h", "vol_1d", "<script>alert(1)</script>"], "data": [ROW, ROW]}}
VENUE = {"venue": "binance-futures"}
READS: dict[str, list[Ask]] = {
    "predict": [
        Ask(json=PREDICT),
        Ask(json={**PREDICT, "explain": True}),
        Ask(json={**PREDICT, "model_name": "none"}, status=404),
        Ask(json={**PREDICT, "model_version": "19990101_000000"}, status=404),
        Ask(json={**PREDICT, "symbol": "none"}, status=404),
        Ask(json={**PREDICT, "features": [1.0]}, status=422),
        Ask(json={"features": ROW}, status=422),
        Ask(json=[1], status=422),
        Ask(data=b"{", content_type="application/json", status=400),
        Ask(data=b"{}", content_type="image/png", status=415),
        Ask(json=PREDICT, headers={"Sec-Fetch-Site": "cross-site"}, status=403),
    ],
    "predict_batch": [Ask(json=BATCH), Ask(json={"requests": 1}, status=422), Ask(json={"requests": []})],
    "predict_coded": [Ask(json=PREDICT), Ask(json={**PREDICT, "symbol": "none"}, status=404)],
    "predict_batch_coded": [Ask(json=BATCH)],
    "list_served_models": [Ask()],
    "list_served_versions": [
        Ask(MODEL), Ask({"model_name": "none"}, status=404), Ask(MODEL, {"limit": "0"}, status=400)
    ],
    "list_ml_models": [Ask()],
    "reload_ml_model": [Ask(json=MODEL), Ask(json={"model_name": "none"}, status=404), Ask(json={}, status=400)],
    "reload_ml_model_by_name": [
        Ask(MODEL), Ask(MODEL, json={"version": "latest"}), Ask({"model_name": "none"}, status=404)
    ],
    "get_health": [Ask()],
    "get_ml_health": [Ask()],
    "list_models": [Ask()],
    "get_model": [Ask(MODEL), Ask({"model_name": "none"}, status=404)],
    "list_symbols": [
        Ask(MODEL), Ask(MODEL, {"version": "latest"}), Ask(MODEL, {"as_of": "1999-01-01T00:00:00Z"}, status=404),
        Ask(MODEL, {"as_of": "yesterday"}, status=400),
    ],
    "list_factors": [Ask(MODEL), Ask(MODEL, {"version": "none"}, status=404)],
    "get_symbol": [
        Ask(GROUP), Ask({**GROUP, "symbol": "SOLUSDT"}), Ask({**GROUP, "symbol": "none"}, status=404),
        Ask({**GROUP, "symbol": "PEPEUSDT"}, status=503),
    ],
    "get_payload": [
        Ask(GROUP), Ask(GROUP, {"format": "manifest"}), Ask(GROUP, {"format": "json"}), Ask(GROUP, {"format": "ubj"}),
        Ask(GROUP, headers={"If-None-Match": "*"}, status=304), Ask({**GROUP, "symbol": "SOLUSDT"}, status=404),
        Ask(GROUP, {"format": "none"}, status=400), Ask(GROUP, {"wait": "x"}, status=400),
    ],
    "list_versions": [Ask(MODEL), Ask(MODEL, {"cursor": "x"}, status=400)],
    "diff_versions": [Ask(MODEL, {"from": "latest", "to": "latest"}), Ask(MODEL, {"from": "latest"}, status=400)],
    "list_registry_models": [Ask(), Ask(query={"limit": "0"}, status=400), Ask(query={"cursor": "x"}, status=400)],
    "list_venues": [Ask()],
    "get_quantiles": [
        Ask(VENUE), Ask(VENUE, headers={"If-None-Match": "*"}, status=304), Ask({"venue": "nyse"}, status=404)
    ],
    "get_symbol_quantiles": [Ask({**VENUE, "symbol": "BTC/USDT"}), Ask({**VENUE, "symbol": "none"}, status=404)],
    "v2_server": [Ask()],
    "v2_server_with_slash": [Ask()],
    "v2_live": [Ask()],
    "v2_ready": [Ask()],
    "v2_models": [Ask()],
    "v2_model": [Ask(TENSOR), Ask(TENSOR, {"as_of": "yesterday"}, status=400), Ask({"name": "none"}, status=404), Ask({"name": "alpha.none"}, status=404)],
    "v2_model_of_version": [Ask(TENSOR_VERSION), Ask({**TENSOR, "version": "none"}, status=404)],
    "v2_model_ready": [Ask(TENSOR), Ask({"name": "alpha.SOLUSDT"}, status=404)],
    "v2_model_ready_of_version": [Ask(TENSOR_VERSION)],
    "v2_infer": [
        Ask(TENSOR, json=INFER),
        Ask(TENSOR, json={**INFER, "id": "mine", "parameters": {"own": 1, "binary_data_output": True}}),
        Ask(TENSOR, json={**INFER, "id": "mine", "parameters": {"own": 1}}),
        Ask(TENSOR, json={}, status=400),
        Ask(TENSOR, data=b"x", headers={"Inference-Header-Content-Length": "9"}, status=400),
        Ask({"name": "none"}, json=INFER, status=404),
    ],
    "v2_infer_of_version": [Ask(TENSOR_VERSION, json=INFER)],
    "v2_config": [Ask(TENSOR)],
    "v2_config_of_version": [Ask(TENSOR_VERSION)],
    "v2_all_statistics": [Ask()],
    "v2_statistics": [Ask(TENSOR), Ask({"name": "none"}, status=404)],
    "v2_statistics_of_version": [Ask(TENSOR_VERSION)],
    "v2_index": [Ask(), Ask(json={"ready": True}), Ask(json={"ready": 1}, status=400)],
    "v2_load": [Ask(TENSOR), Ask({"name": "none"}, status=404)],
    "invoke": [Ask(json=TABLE, status=404)],
    "invoke_model": [
        Ask({"model_name": "alpha.BTCUSDT"}, json=TABLE),
        Ask({"model_name": "alpha.BTCUSDT@latest"}, json={"instances": [ROW]}),
        Ask({"model_name": "alpha.BTCUSDT"}, data=b"mom_1h\n1\n", content_type="text/csv", status=400),
        Ask({"model_name": "alpha.BTCUSDT"}, data=b"1", content_type="text/plain", status=415),
        Ask({"model_name": "none"}, json=TABLE, status=404),
    ],
    "invoke_version": [Ask({"model_name": "alpha.BTCUSDT", "version": "latest"}, json=TABLE)],
    "ping": [Ask()],
    "get_version": [Ask()],
    "get_livez": [Ask()],
    "get_readyz": [Ask()],
    "list_audit": [
        Ask(query={"limit": "2", "action": "model.*", "since": "2020-01-01T00:00:00Z"}),
        Ask(query={"limit": "0"}, status=400),
    ],
    "get_openapi": [Ask(), Ask(headers={"If-None-Match": "*"}, status=304)],
}  # fmt: skip
REGISTRY = {
    "register_version", "get_registry_model", "get_registry_version", "compare_registry_versions", "set_registry_stage",
    "promote_registry_version", "retire_registry_version", "rollback_registry_model", "update_registry_metrics",
    "describe_registry_version", "delete_registry_version", "optimize_registry_version", "list_registry_optimizations",
}  # fmt: skip
"""Tried in the life of a registered model."""
CHANGES = {"register_model", "remove_model", "refresh_model", "rollback_model", "set_quantiles", "v2_unload", *REGISTRY}
CHANGES |= {name for name, operation in BY_NAME.items() if operation.tag == EXPERIMENTS}


def send(client: Client, operation: Operation, ask: Ask) -> TestResponse:
    path = path_of(operation.rule).format(**ask.path)
    body: dict[str, Any] = {"json": ask.json} if ask.json is not None else {}
    if ask.data is not None:
        body = {"data": ask.data, "content_type": ask.content_type}
    return client.open(path, method=operation.method, query_string=ask.query, headers=ask.headers, **body)


def assert_described(response: TestResponse, operation: Operation, closed: dict[str, Any]) -> None:
    """The status, the media type and, of JSON, every field are as the document says."""
    item = closed["paths"][path_of(operation.rule)][operation.method.lower()]
    described = item["responses"].get(str(response.status_code))
    assert described is not None, (response.status, response.text)
    assert set(described["headers"]) - SOMETIMES <= set(response.headers.keys())
    if "content" not in described:
        assert response.data == b""
        return
    assert response.mimetype in described["content"]
    if response.mimetype in JSON_TYPES and response.data.strip():
        schema = {**described["content"][response.mimetype]["schema"], "components": closed["components"]}
        problems = [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(response.json)]
        assert problems == [], response.text[:2000]


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        pytest.param(name, ask, id=f"{name}-{number}-{ask.status}")
        for name, several in READS.items()
        for number, ask in enumerate(several)
    ],
)
def test_a_real_answer_is_what_the_description_says(web: Any, closed: dict[str, Any], name: str, ask: Ask) -> None:
    response = send(web.client, BY_NAME[name], ask)
    assert response.status_code == ask.status, response.text
    assert_described(response, BY_NAME[name], closed)


def test_every_operation_is_tried() -> None:
    assert set(READS) | CHANGES == set(BY_NAME)
    assert not set(READS) & CHANGES
    without_success = [name for name, several in READS.items() if all(ask.status >= 300 for ask in several)]
    assert without_success == ["invoke"]  # several groups, and no default_model: tried in the next test


def test_the_default_model_answers_as_described(
    make_web: Callable[..., Any], group_writer: Callable[..., None], closed: dict[str, Any], tmp_path: Path
) -> None:
    made = make_web(tmp_path / "data")
    group_writer(tmp_path / "files", "BTCUSDT_ret_1h", seed=1)
    register_model(made.store, "only", str(tmp_path / "files"), Actor("test"))
    response = send(made.client, BY_NAME["invoke"], Ask(json=TABLE))
    assert response.status_code == 200, response.text
    assert_described(response, BY_NAME["invoke"], closed)


def test_changes_answer_as_described(
    changing: Any, closed: dict[str, Any], group_writer: Callable[..., None], tmp_path: Path
) -> None:
    """A model's whole life, each answer and the refusals on the way held against the description."""

    def done(name: str, ask: Ask) -> TestResponse:
        response = send(changing.client, BY_NAME[name], ask)
        assert response.status_code == ask.status, response.text
        assert_described(response, BY_NAME[name], closed)
        return response

    group_writer(tmp_path / "more", "ETHUSDT_ret_1h", seed=1)
    model = {"model_name": f"described-{tmp_path.name}".replace("[", "-").replace("]", "-")[:100]}
    register = {**model, "root_path": str(tmp_path / "more")}
    first = done("register_model", Ask(json=register, status=201)).json["version"]
    done("register_model", Ask(json=register, status=409))
    done("register_model", Ask(json={**register, "model_name": "/"}, status=400))
    done("register_model", Ask(json={"model_name": "x", "root_path": str(tmp_path / "none")}, status=400))
    done("register_model", Ask(json={"model_name": 1}, status=400))
    done("refresh_model", Ask(model))
    group_writer(tmp_path / "more", "ETHUSDT_ret_1h", seed=2)
    assert done("refresh_model", Ask(model, {"accept_vanished": "true"})).json["changed"]
    done("diff_versions", Ask(model, {"from": first, "to": "latest"}))
    done("rollback_model", Ask(model, json={"version": first}))
    done("rollback_model", Ask(model, json={"version": "none"}, status=404))
    done("get_model", Ask(model))
    tensor = {"name": f"{model['model_name']}.ETHUSDT"}
    done("v2_unload", Ask(tensor))
    done("v2_model_ready", Ask(tensor, status=503))
    done("v2_infer", Ask(tensor, json=INFER, status=503))
    done("predict", Ask(json={**PREDICT, **model, "symbol": "ETHUSDT"}, status=503))
    done("invoke_model", Ask({"model_name": tensor["name"]}, json=TABLE, status=503))
    done("v2_load", Ask(tensor))
    done("v2_unload", Ask({"name": "none"}, status=404))
    done("remove_model", Ask(model, status=204))
    done("remove_model", Ask(model, status=404))
    path = str(changing.store.settings.data_dir / "binance_futures_quantiles.pkl")
    done("set_quantiles", Ask({"venue": "binance-futures"}, json={"pkl_path": path}))
    done("set_quantiles", Ask({"venue": "nyse"}, json={"pkl_path": path}, status=400))
    done(
        "set_quantiles",
        Ask({"venue": "binance-futures"}, json={"pkl_path": path}, headers={"If-Match": '"x"'}, status=412),
    )
    done("set_quantiles", Ask({"venue": "binance-futures"}, json={"pkl_path": "/none"}, status=400))


def test_a_registered_model_s_life_is_as_described(
    make_web: Callable[..., Any], closed: dict[str, Any], xgboost_text: Callable[[int, int], bytes], tmp_path: Path
) -> None:
    """Each answer and the refusals on the way held against the description."""
    made = make_web(tmp_path / "data", artifact_roots=(tmp_path,), max_artifact_bytes=50_000)
    tried = set()

    def done(name: str, ask: Ask) -> TestResponse:
        tried.add(name)
        response = send(made.client, BY_NAME[name], ask)
        assert response.status_code == ask.status, response.text
        assert_described(response, BY_NAME[name], closed)
        return response

    for seed in range(3):
        (tmp_path / f"{seed}.json").write_bytes(xgboost_text(3, seed))
    (tmp_path / "torn.json").write_bytes(xgboost_text(3, 0)[:100])
    (tmp_path / "large.json").write_bytes(bytes(50_001))
    model = {"model_name": "hybrid"}
    one, two = ({**model, "version": version} for version in ("1.0.0", "1.1.0"))
    register = {"name": "hybrid", "version": "1.0.0", "path": str(tmp_path / "0.json"), "metrics": {"ic": 0.1}}
    done(
        "register_version", Ask(json={**register, "training_params": {"a": [1, None]}, "tags": {"a": "b"}}, status=201)
    )
    done("register_version", Ask(json=register))
    done("register_version", Ask(json={**register, "path": str(tmp_path / "1.json")}, status=409))
    done("register_version", Ask(json={**register, "version": "latest"}, status=400))
    done(
        "register_version", Ask(json={**register, "version": "2.0.0", "path": str(tmp_path / "torn.json")}, status=400)
    )
    done(
        "register_version", Ask(json={**register, "version": "2.0.0", "path": str(tmp_path / "large.json")}, status=413)
    )
    done("register_version", Ask(json={**register, "name": "/"}, status=400))
    done("register_version", Ask(json={**register, "path": "/etc/passwd"}, status=400))
    done("register_version", Ask(json={}, status=400))
    done("register_version", Ask(data=b"x", content_type="text/plain", status=415))
    done("register_version", Ask(json=register, headers={"Sec-Fetch-Site": "cross-site"}, status=403))
    second = {**register, "version": "1.1.0", "path": str(tmp_path / "1.json"), "factors": ["a", "b", "c"]}
    done("register_version", Ask(json={**second, "metrics": {"ic": 0.2, "n": 1}}, status=201))
    done("get_registry_model", Ask(model))
    done("get_registry_model", Ask(model, {"stage": "live"}, status=400))
    done("get_registry_model", Ask({"model_name": "none"}, status=404))
    done("get_registry_version", Ask(one))
    done("get_registry_version", Ask({**one, "version": "staging"}, status=404))
    done("compare_registry_versions", Ask(model, {"version1": "1.0.0", "version2": "latest"}))
    done("compare_registry_versions", Ask(model, {"version1": "1.0.0"}, status=400))
    done("rollback_registry_model", Ask(model, status=409))
    done("set_registry_stage", Ask(two, json={"stage": "Staging"}))
    done("set_registry_stage", Ask(two, json={"stage": "live"}, status=400))
    done("promote_registry_version", Ask(one))
    done("promote_registry_version", Ask(two))
    done("promote_registry_version", Ask({**one, "version": "9.9.9"}, status=404))
    done("rollback_registry_model", Ask(model))
    done("retire_registry_version", Ask(one, status=409))
    done("retire_registry_version", Ask(two))
    done("update_registry_metrics", Ask(one, json={"metrics": {"ic": None, "n": 2, "x": 0.5}}))
    done("update_registry_metrics", Ask(one, json={"metrics": {"ic": "x"}}, status=400))
    done("describe_registry_version", Ask(one, json={"tags": {"a": None, "c": "d"}, "description": "x"}))
    done("describe_registry_version", Ask(one, json={"tags": {"a": 1}}, status=400))
    done("optimize_registry_version", Ask(one, json={"variants": ["fp32"]}, status=422))
    done("optimize_registry_version", Ask(one, json={"variants": ["int4"]}, status=400))
    done("optimize_registry_version", Ask({**one, "version": "9.9.9"}, json={}, status=404))
    done("list_registry_optimizations", Ask(one))
    done("list_registry_models", Ask())
    done("list_ml_models", Ask())
    done("list_models", Ask())
    done("list_served_versions", Ask(model))
    done("get_model", Ask(model))
    done("refresh_model", Ask(model, status=409))
    done("rollback_model", Ask(model, json={"version": "1.0.0"}, status=409))
    done("delete_registry_version", Ask(one, status=409))
    done("delete_registry_version", Ask(two, status=204))
    done("delete_registry_version", Ask(two, status=404))
    assert tried >= REGISTRY


def test_an_experiment_s_life_is_as_described(
    make_web: Callable[..., Any], group_writer: Callable[..., None], closed: dict[str, Any], tmp_path: Path
) -> None:
    made = make_web(tmp_path / "data")
    for seed, model_name in enumerate(("alpha", "beta")):
        group_writer(tmp_path / model_name, "BTCUSDT_ret", seed=seed)
        register_model(made.store, model_name, str(tmp_path / model_name), Actor("test"))
    tried = set()

    def done(name: str, ask: Ask) -> TestResponse:
        tried.add(name)
        response = send(made.client, BY_NAME[name], ask)
        assert response.status_code == ask.status, response.text
        assert_described(response, BY_NAME[name], closed)
        return response

    one, nobody = {"experiment_id": "one"}, {"experiment_id": "nobody"}
    arms = {
        "control_model": "alpha",
        "control_version": "latest",
        "treatment_model": "beta",
        "treatment_version": "latest",
    }
    plan = {**one, **arms, "traffic_split": 0.9, "start": False}
    done("create_experiment", Ask(json=plan, status=201))
    done("create_experiment", Ask(json=plan, status=409))
    done("create_experiment", Ask(json={**plan, "traffic_split": 2}, status=400))
    done("create_experiment", Ask(json={**plan, **nobody, "control_version": "9"}, status=404))
    done("change_experiment", Ask(one, json={"traffic_split": 0.5, "unit": "prediction", "policy": "classic"}))
    done("start_experiment", Ask(one))
    done("start_experiment", Ask(one, status=409))
    done("change_experiment", Ask(one, json={"traffic_split": 0.5}, status=409))
    done("create_experiment", Ask(json={**plan, "experiment_id": "two", "start": True}, status=409))
    done("ramp_experiment", Ask(one, json={"traffic_split": 0.4}))
    done("ramp_experiment", Ask(one, json={"traffic_split": 0.9}, status=400))
    row = {"symbol": "BTCUSDT", "features": [0.1, 0.2, 0.3], "model_name": "alpha"}
    [answer] = done("predict_batch", Ask(json={"requests": [row]})).json["predictions"]
    outcome = {"prediction_id": answer["prediction_id"], "label": "BUY"}
    done("add_outcomes", Ask(one, json=[outcome, {**outcome, "label": "MOON"}]))
    done("add_outcomes", Ask(one, json=[], status=400))
    done("add_outcomes", Ask(nobody, json=outcome, status=404))
    price = {"symbol": "BTCUSDT", "price": 0.0, "time": answer["timestamp"]}
    done("add_any_outcomes", Ask(json=[outcome, {**outcome, "label": "MOON"}]))
    done("add_any_outcomes", Ask(json=[], status=400))
    done("add_prices", Ask(json={"prices": [price, {**price, "price": 7.5}]}))
    for name in ("get_experiment", "analyse_experiment", "list_evaluations"):
        done(name, Ask(one))
        done(name, Ask(nobody, status=404))
    done("list_experiments", Ask(query={"status": "running", "limit": "1"}))
    done("list_experiments", Ask(query={"status": "lost"}, status=400))
    done("stop_experiment", Ask(one))
    done("apply_experiment", Ask(one, status=409))
    done("apply_experiment", Ask(one, json={"action": "keep"}))
    [kept] = done("list_evaluations", Ask(one, query={"limit": "1"})).json["items"]
    done("replay_evaluation", Ask({**one, "evaluation_id": str(kept["id"])}))
    done("replay_evaluation", Ask({**one, "evaluation_id": "999"}, status=404))
    made.app.extensions[EXPERIMENTER_KEY].close()
    assert tried - {"predict_batch"} == {name for name in BY_NAME if BY_NAME[name].tag == EXPERIMENTS}


def test_a_read_only_instance_refuses_changes_as_described(
    make_web: Callable[..., Any], closed: dict[str, Any], tmp_path: Path
) -> None:
    made = make_web(tmp_path, read_only=True)
    for name, ask in {
        "register_model": Ask(json={"model_name": "x", "root_path": "/x"}, status=403),
        "remove_model": Ask({"model_name": "x"}, status=403),
        "set_quantiles": Ask({"venue": "gate-margin"}, json={"pkl_path": "/x"}, status=403),
        "register_version": Ask(json={"name": "x", "version": "1.0.0", "path": "/x"}, status=403),
        "promote_registry_version": Ask({"model_name": "x", "version": "1.0.0"}, status=403),
        "optimize_registry_version": Ask({"model_name": "x", "version": "1.0.0"}, json={}, status=403),
    }.items():
        response = send(made.client, BY_NAME[name], ask)
        assert response.status_code == 403, response.text
        assert_described(response, BY_NAME[name], closed)


def test_a_field_that_is_not_described_would_be_noticed(web: Any, closed: dict[str, Any]) -> None:
    response = send(web.client, BY_NAME["get_model"], Ask(MODEL))
    changed = {**response.json, "unheard_of": 1}
    schema = closed["paths"]["/api/models/{model_name}"]["get"]["responses"]["200"]["content"]["application/json"][
        "schema"
    ]
    with pytest.raises(jsonschema.ValidationError, match="unheard_of"):
        jsonschema.Draft202012Validator({**schema, "components": closed["components"]}).validate(changed)


# --- examples ---------------------------------------------------------------------------------------------------------


def test_examples_are_what_the_schemas_say(closed: dict[str, Any]) -> None:
    for item in closed["paths"].values():
        for operation in item.values():
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for media_type, content in (pair for body in bodies for pair in body.get("content", {}).items()):
                if "example" in content and media_type in JSON_TYPES:
                    schema = {**content.get("schema", {}), "components": closed["components"]}
                    jsonschema.Draft202012Validator(schema).validate(content["example"])


@pytest.mark.parametrize("name", ["a", "_", "0.x-Y_z", "a" * 128, "", ".a", "-a", "a" * 129, "a b", "ä", "a/b", "a:b"])
def test_names_and_paths_are_described_as_they_are_checked(document: dict[str, Any], name: str) -> None:
    fields = document["components"]["schemas"]["RegisterModel"]["properties"]
    try:
        check_name(name)
        is_allowed = True
    except errors.NameInvalid:
        is_allowed = False
    assert jsonschema.Draft202012Validator(fields["model_name"]).is_valid(name) == is_allowed
    assert not jsonschema.Draft202012Validator(fields["root_path"]).is_valid(name)


def test_every_operation_with_a_body_has_an_example(document: dict[str, Any]) -> None:
    without = []
    for item in document["paths"].values():
        for operation in item.values():
            answers = [answer for status, answer in operation["responses"].items() if int(status) < 300]
            contents = [answer["content"] for answer in answers if "content" in answer]
            if "requestBody" in operation:
                contents.append(operation["requestBody"]["content"])
            without += [
                operation["operationId"]
                for content in contents
                if not any("example" in described for described in content.values())
            ]
    assert without == ["get_openapi"]
    assert set(load_examples()) <= set(BY_NAME)


# --- the three routes -------------------------------------------------------------------------------------------------


def test_the_document_is_made_once_and_not_sent_again_to_who_has_it(web: Any) -> None:
    response = web.client.get("/openapi.json")
    assert response.headers["Cache-Control"] == "no-cache"
    again = web.client.get("/openapi.json", headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert web.client.get("/openapi.json").data is not None
    packed = web.client.get("/openapi.json", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.data) < len(response.data) / 5
    again = web.client.get(
        "/openapi.json", headers={"Accept-Encoding": "gzip", "If-None-Match": packed.headers["ETag"]}
    )
    assert again.status_code == 304
    assert web.client.head("/openapi.json").status_code == 200


def test_the_document_names_the_limits_of_this_server(make_web: Callable[..., Any], tmp_path: Path) -> None:
    made = make_web(tmp_path, max_rows=77)
    assert "77 rows" in made.json("/openapi.json")["info"]["description"]
    assert "77 rows" not in api_document(type(made.store.settings)(data_dir=tmp_path))["info"]["description"]


@pytest.mark.parametrize(("path", "library"), [("/docs", "swagger-ui-bundle.js"), ("/redoc", "redoc.standalone.js")])
def test_a_page_is_made_of_this_servers_files_alone(web: Any, path: str, library: str) -> None:
    response = web.client.get(path)
    assert (response.status_code, response.mimetype) == (200, "text/html")
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    addresses = re.findall(r'(?:src|href)="([^"]+)"', response.text)
    assert all(address.startswith("/") and not address.startswith("//") for address in addresses)
    assert any(address.endswith(f"/{library}") for address in addresses)
    for address in addresses:
        assert web.client.get(address, follow_redirects=True).status_code == 200, address
    assert 'href="/openapi.json"' in response.text.partition("<main")[2]  # for those without scripts
    assert re.findall(r"<script(?! src=)|\son[a-z]+=|\sstyle=", response.text) == []


def test_licences_lie_beside_the_files_of_others() -> None:
    vendor = Path(api_document.__code__.co_filename).parents[1] / "static" / "vendor"
    folders = list(vendor.iterdir())
    assert len(folders) == 3
    for folder in folders:
        assert re.fullmatch(r"[a-z-]+-\d+\.\d+\.\d+", folder.name)
        assert (folder / "LICENSE").is_file()


def test_what_lies_beside_the_vendored_files_is_not_served(web: Any) -> None:
    assert web.client.get("/static/0/LICENSE").status_code == 404
    assert web.client.get("/static/0/swagger-ui-bundle.js").status_code == 404
    assert web.client.get("/static/0/..%2Fvendor").status_code == 404


def test_an_application_starts_without_the_description(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mmserver.app import create_app, RUNTIME_KEY; "
        "from mmserver.settings import Settings; "
        "app = create_app(Settings(data_dir=Path(sys.argv[1]), watch_enabled=False)); "
        "print([name for name in sys.modules if 'openapi' in name or 'api_description' in name]); "
        "app.extensions[RUNTIME_KEY].close()"
    )
    found = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
