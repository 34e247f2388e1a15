"""The API's description beside a real server: requests made up from it, and its two pages in a real browser."""

import contextlib
import pickle
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
openapi_checks = pytest.importorskip("schemathesis.specs.openapi.checks")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

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
TAKES_AWAY = {"remove_model", "v2_unload"}
"""What would leave the others nothing to work on."""
KNOWN = {
    "model_name": "demo", "symbol": "SP500", "venue": "gate-margin", "name": "demo.SP500", "version": "latest"
}  # fmt: skip
KNOWN_BY_OPERATION = {
    "invoke_model": {"model_name": "demo.SP500"},
    "invoke_version": {"model_name": "demo.SP500", "version": "latest"},
}


@pytest.fixture(scope="module")
def demo(shared_servers: Any, artifacts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with one model of two groups and one venue."""
    directory = tmp_path_factory.mktemp("described")
    artifacts.write(directory / "demo", "SP500_ret_5d", 0)
    artifacts.write(directory / "demo", "NASDAQ_ret_5d", 1)
    server = shared_servers.start(MMSERVER_DEFAULT_MODEL="demo.SP500")
    server.register("demo", directory / "demo")
    rows = [{"symbol": "SP500", "medium_notional_threshold": 1.0, "large_notional_threshold": 2.0}]
    (directory / "q.pkl").write_bytes(pickle.dumps(rows))
    put = server.client.put("/api/venues/gate-margin/quantiles", json={"pkl_path": str(directory / "q.pkl")})
    assert put.status_code == 200
    return server


# --- requests that nobody thought of ----------------------------------------------------------------------------------


def operations() -> list[Any]:
    """Every operation of the description, from this process: collecting must not need a server."""
    from mmserver.web.api_description.contents import OPERATIONS

    return [pytest.param(operation.name, id=operation.name) for operation in OPERATIONS]


@pytest.fixture(scope="module")
def described(demo: Any) -> dict[str, Any]:
    """The operations of the server's own description, by name."""
    schema = schemathesis.openapi.from_url(f"{demo.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {operation.definition.raw["operationId"]: operation for operation in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", operations())
def test_made_up_requests_get_described_answers_and_never_break_the_server(
    demo: Any, described: dict[str, Any], name: str
) -> None:
    """Anything at all, then for what exists: what the schema allows, and what it does not."""
    if name in TAKES_AWAY:
        pytest.skip("it would leave the others nothing to work on")
    operation = described[name]
    known = KNOWN_BY_OPERATION.get(name, {key: value for key, value in KNOWN.items() if f"{{{key}}}" in operation.path})
    fixed = {"path_parameters": known} if known else {}
    for strategy in (
        operation.as_strategy(),
        operation.as_strategy(**fixed),
        operation.as_strategy(schemathesis.GenerationMode.NEGATIVE, **fixed),
    ):
        _try(strategy, demo.url)
    assert demo.client.get("/livez").status_code == 200


def _try(strategy: Any, url: str) -> None:
    @seed(20240115)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(case=strategy)
    def answers_as_described(case: Any) -> None:
        response = case.call(base_url=url)
        case.validate_response(response, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # an operation that takes nothing cannot be asked wrongly
        answers_as_described()


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
    page.locator(DRAWN[path]).wait_for(timeout=60_000)
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
