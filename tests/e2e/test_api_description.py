"""The API's description beside a real server: requests made up from it, and its two pages in a real browser."""

import contextlib
import copy
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from mmserver.web.api_description.contents import OPERATIONS

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (the extra test)")
openapi_checks = pytest.importorskip(
    "schemathesis.specs.openapi.checks", reason="schemathesis is not installed (the extra test)"
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra test)")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
]
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]
PHONE = {"width": 375, "height": 800}
DESKTOP = {"width": 1280, "height": 900}

EXAMPLES = 12
"""Requests for each operation and each way of making them up; about 1,500 in all."""
LEFT_OUT = {"remove_model", "delete_registry_version", "v2_unload", "get_openapi"}
"""The first three would leave the others nothing to work on; the last is where the description itself was read from."""
KNOWN = {
    "model_name": "demo", "symbol": "SP500", "venue": "gate-margin", "name": "demo.SP500", "version": "latest"
}  # fmt: skip
KNOWN_BY_OPERATION = {
    "invoke_model": {"model_name": "demo.SP500"},
    "invoke_version": {"model_name": "demo.SP500", "version": "latest"},
    **{
        name: {"model_name": "hybrid", "version": "1.0.0"}
        for operation in OPERATIONS
        if "registry" in (name := operation.name)
    },
}
FACTORS = ("mom_1h", "vol_1d", "spread", "rsi_14", "gap")
ROW = [0.5, -0.25, 1.5, 55.0, None]
_ONE = {"symbol": "SP500", "features": dict(zip(FACTORS, ROW, strict=True)), "model_name": "demo", "explain": True}
_MATRIX = {**_ONE, "features": [ROW], "timestamp": "2024-01-15T10:30:00Z", "model_version": "latest"}
_BATCH = {"requests": [_ONE, _MATRIX, {**_ONE, "features": ROW}], "max_batch_size": 2, "model_version": "latest"}
_INFER = {
    "id": "1",
    "parameters": {"own": "x"},
    "inputs": [{"name": "features", "datatype": "FP32", "shape": [2, 5], "data": [ROW, ROW]}],
    "outputs": [{"name": "prediction", "parameters": {"binary_data": False}}],
}
NEARLY_RIGHT: dict[str, Any] = {
    "predict": _MATRIX,
    "predict_coded": _ONE,
    "predict_batch": _BATCH,
    "predict_batch_coded": _BATCH,
    "reload_ml_model": {"model_name": "demo", "version": "latest"},
    "v2_infer": _INFER,
    "v2_infer_of_version": _INFER,
    "v2_index": {"ready": True},
    "set_registry_stage": {"stage": "Staging"},
    "update_registry_metrics": {"metrics": {"ic": 0.2, "sharpe": None}},
    "describe_registry_version": {"description": "text", "tags": {"a": "b", "c": None}},
    "invoke": {
        "dataframe_split": {"columns": [*FACTORS, "more"], "index": [0], "data": [[*ROW, "text"]]},
        "params": {},
    },
    "invoke_model": {"dataframe_records": [dict(zip(FACTORS, ROW, strict=True))]},
    "invoke_version": {"inputs": {factor: [value] for factor, value in zip(FACTORS, ROW, strict=True)}},
}
"""Requests that succeed."""
ODDITIES = st.one_of(
    st.sampled_from(
        [None, True, "", "x" * 600, 0, -1, 2**53, 2**63, 1e308, -1e-320, [], {}, [[]], [{}], "NaN", "latest"]
    ),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**65), 2**65)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
)


@pytest.fixture(scope="module")
def demo(shared_servers: Any, artifacts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with one model of two groups, one registered model and one venue."""
    directory = tmp_path_factory.mktemp("described")
    artifacts.write(directory / "demo", "SP500_ret_5d", 0)
    artifacts.write(directory / "demo", "NASDAQ_ret_5d", 1)
    # paths that are made up must not have the whole machine read
    server = shared_servers.start(MMSERVER_DEFAULT_MODEL="demo.SP500", MMSERVER_ARTIFACT_ROOTS=str(directory))
    server.register("demo", directory / "demo")
    rows = [{"symbol": "SP500", "medium_notional_threshold": 1.0, "large_notional_threshold": 2.0}]
    (directory / "q.pkl").write_bytes(pickle.dumps(rows))
    put = server.client.put("/api/venues/gate-margin/quantiles", json={"pkl_path": str(directory / "q.pkl")})
    assert put.status_code == 200
    for version, number in (("1.0.0", 0), ("1.1.0", 1)):
        (directory / "model.json").write_bytes(artifacts.texts[number])
        body = {"name": "hybrid", "version": version, "path": str(directory / "model.json"), "metrics": {"ic": 0.1}}
        assert server.client.post("/api/ml/registry/models", json=body).status_code == 201
    return server


# --- requests that nobody thought of ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def described(demo: Any) -> dict[str, Any]:
    """The operations of the server's own description, by name."""
    schema = schemathesis.openapi.from_url(f"{demo.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.definition.raw["operationId"]: operation for operation in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for operation in OPERATIONS if (name := operation.name) not in LEFT_OUT])
def test_made_up_requests_get_described_answers_and_never_break_the_server(
    demo: Any, described: dict[str, Any], name: str
) -> None:
    """Anything at all, then for what exists: what the schema allows, and what it does not."""
    operation = described[name]
    known = known_parameters(operation)
    fixed = {"path_parameters": known} if known else {}

    def answers_as_described(case: Any) -> None:
        case.validate_response(case.call(base_url=demo.url), checks=CHECKS)

    for strategy in (
        operation.as_strategy(),
        operation.as_strategy(**fixed),
        operation.as_strategy(schemathesis.GenerationMode.NEGATIVE, **fixed),
    ):
        tried(answers_as_described, strategy)
    assert demo.client.get("/livez").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", NEARLY_RIGHT)
def test_requests_that_are_wrong_in_one_place_get_described_answers(
    demo: Any, described: dict[str, Any], name: str
) -> None:
    """From a request that succeeds: anything else in one place of it, or nothing there."""
    operation = described[name]
    known = known_parameters(operation)

    def answered(body: Any) -> int:
        case = operation.Case(path_parameters=known, body=body, media_type="application/json")
        response = case.call(base_url=demo.url)
        case.validate_response(response, checks=CHECKS)
        return int(response.status_code)

    assert answered(NEARLY_RIGHT[name]) == 200
    statuses = set()
    tried(lambda body: statuses.add(answered(body)), spoiled(NEARLY_RIGHT[name]), max_examples=5 * EXAMPLES)
    assert statuses & {400, 422}


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: what holds it, and its index or name there."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in keys:
        yield document, key
        yield from places(document[key])


@st.composite
def spoiled(draw: st.DrawFn, document: Any) -> Any:
    """The document with one place of it put out of shape."""
    changed = copy.deepcopy(document)
    found = list(places(changed))
    holder, key = found[draw(st.integers(0, len(found) - 1))]
    if draw(st.integers(0, 4)):
        holder[key] = draw(ODDITIES)
    else:
        del holder[key]
    return changed


def known_parameters(operation: Any) -> dict[str, str]:
    """Values for the parameters in the path that lead to what exists."""
    name = operation.definition.raw["operationId"]
    known = KNOWN_BY_OPERATION.get(name, KNOWN)
    return {key: value for key, value in known.items() if f"{{{key}}}" in operation.path}


def tried(check: Callable[[Any], None], strategy: Any, max_examples: int = EXAMPLES) -> None:
    """Run the check with so many values, the same ones every time."""
    chosen = settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with contextlib.suppress(Unsatisfiable):  # an operation that takes nothing cannot be asked wrongly
        seed(20240115)(chosen(given(strategy)(check)))()


def test_an_answer_that_is_not_described_would_be_noticed(demo: Any, described: dict[str, Any]) -> None:
    case = described["get_model"].Case(path_parameters={"model_name": "demo"})
    case.validate_response(case.call(base_url=demo.url), checks=CHECKS)
    for changed in ({"status_code": 500}, {"status_code": 418}, {"content": b"{}"}):
        response = case.call(base_url=demo.url)
        for name, value in changed.items():
            setattr(response, name, value)
        with pytest.raises(BaseExceptionGroup):
            case.validate_response(response, checks=CHECKS)


# --- the two pages ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium; nothing is downloaded."""
    path = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Any, demo: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end none may have complained, or asked anybody but the server."""
    contexts: list[Any] = []
    complaints: list[str] = []
    asked: set[str] = set()

    def open_(path: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))
        page.goto(demo.url + path, wait_until="load")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith((demo.url + "/", f"blob:{demo.url}/", "data:"))] == []


DRAWN = {"/docs": "#operations-Prediction-predict", "/redoc": "[data-section-id='operation/predict']"}
"""What of `POST /predict` is on each page when it has been drawn."""


def drawn(page: Any, path: str) -> str:
    """The page's text, once it is drawn."""
    page.locator(DRAWN[path]).wait_for(timeout=120_000)
    text: str = page.inner_text("body")
    return text


@pytest.mark.parametrize("path", DRAWN)
def test_a_page_fits_a_phone(open_page: Callable[..., Any], path: str) -> None:
    page = open_page(path, viewport=PHONE)
    assert "/v2/models/{name}/infer" in drawn(page, path)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_swagger_ui_shows_every_operation_and_tries_it_out_on_this_server(
    demo: Any, open_page: Callable[..., Any]
) -> None:
    page = open_page("/docs")
    text = drawn(page, "/docs")
    assert [path for path in demo.get("/openapi.json")["paths"] if path not in text.replace("\u200b", "")] == []
    predict = page.locator("#operations-Prediction-predict")
    predict.locator(".opblock-summary-control").click()
    predict.get_by_text("features_invalid", exact=True).wait_for()
    operation = page.locator("#operations-Models-list_models")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table td.response-col_description:not(.col_header)")
    answer.wait_for()
    assert '"model_name": "demo"' in answer.inner_text()


def test_redoc_is_reached_from_the_first_page_and_finds_operations_by_words(open_page: Callable[..., Any]) -> None:
    """Its search runs in a worker, which the page's policy lets it make."""
    page = open_page("/ui/")
    page.get_by_role("link", name="API", exact=True).click()
    page.get_by_role("link", name="ReDoc").click()
    assert "/v2/models/{name}/infer" in drawn(page, "/redoc")
    page.get_by_role("textbox", name="Search").fill("quantiles")
    page.locator("[data-role='search:results'] li").first.wait_for()


@pytest.mark.parametrize("path", DRAWN)
def test_without_a_script_a_page_says_where_the_description_is(
    demo: Any, open_page: Callable[..., Any], path: str
) -> None:
    page = open_page(path, java_script_enabled=False)
    link = page.locator("main").get_by_role("link", name="openapi.json")
    assert link.is_visible()
    assert demo.get(link.get_attribute("href"))["openapi"].startswith("3.1")


# --- the examples -----------------------------------------------------------------------------------------------------

LAST = ("v2_unload", "v2_load", "remove_model")
"""They change what the others are about."""

OF_OTHERS = ("/api/ml/registry/", "/api/ml/experiments")
"""The demo has no models that are registered one by one, and no experiments; these examples are answers that a server gave."""


@pytest.mark.slow
def test_every_example_request_is_answered_by_the_demo_as_it_stands(
    servers: Any, mmserver: Callable[..., Any], tmp_path: Path
) -> None:
    """Addresses filled with their examples, bodies in each media type that has one; only the shown root is not everybody's."""
    pytest.importorskip("arch", reason="the demo needs arch")
    mmserver("demo", tmp_path / "demo", "--register", "--data-dir", tmp_path / "state")
    server = servers.start(data_dir=tmp_path / "state", MMSERVER_DEFAULT_MODEL="demo.SP500")
    described = server.get("/openapi.json")
    paths = {path: item for path, item in described["paths"].items() if not path.startswith(OF_OTHERS)}
    found = [(path, method, item[method]) for path, item in paths.items() for method in item]
    found.sort(key=lambda one: LAST.index(one[2]["operationId"]) if one[2]["operationId"] in LAST else -1)
    refused = []
    for path, method, operation in found:
        parameters = [one for one in operation.get("parameters", ()) if one["required"]]
        address = path.format(**{one["name"]: one["example"] for one in parameters if one["in"] == "path"})
        query = {one["name"]: one["example"] for one in parameters if one["in"] == "query"}
        contents = operation.get("requestBody", {}).get("content", {})
        bodies = [(kind, content["example"]) for kind, content in contents.items() if "example" in content]
        for media_type, example in bodies or [("", None)]:
            text = example if isinstance(example, str) else json.dumps(example) if example is not None else ""
            content = text.replace("/srv/models", str(tmp_path)).encode()
            headers = {"Content-Type": media_type} if media_type else {}
            answer = server.client.request(method, address, params=query, content=content, headers=headers)
            if answer.status_code >= 300:
                refused.append((operation["operationId"], media_type, answer.status_code, answer.text))
    assert refused == []
