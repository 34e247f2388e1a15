"""The pages that show experiments, in a real browser: legible to everybody, on a phone and on paper, with a script and without one."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from experiment_histories import History, run_history

from mmserver.catalog.opening import open_store
from mmserver.settings import Settings

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra test)")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
]
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
PAGES = {
    "list": "/ui/experiments",
    "long": "/ui/experiments/long",
    "classic and short": "/ui/experiments/short",
    "running without predictions": "/ui/experiments/empty",
    "draft": "/ui/experiments/draft",
    "report": "/ui/experiments/long/report",
}
N_CHARTS = 4


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium with a fresh profile."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site(shared_servers: Any, artifacts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server beside which experiments were written that ran for a while."""
    directory = tmp_path_factory.mktemp("experiments")
    server = shared_servers.start(data_dir=directory / "state", MMSERVER_WATCH_ENABLED="false")
    for model, name in enumerate(("alpha", "beta")):
        artifacts.write(directory / name, "BTCUSDT_mid_chg_1m", model)
        server.register(name, directory / name)
    arms = {"control": ("alpha", "latest"), "treatment": ("beta", "latest"), "treatment_weight": 0.5}
    soon = {"min_hours": 4, "min_samples": 20, "planned_units": 200}
    with open_store(Settings(data_dir=directory / "state"), owns_data_dir=False) as store:
        long = History(hours=40, n_symbols=4, accuracy=(0.5, 0.8), evaluate_every_h=1, stops=True)
        run_history(store, "long", {**arms, "policy": soon}, long)
        short = History(hours=5, stops=True)
        run_history(store, "short", {**arms, "policy": {"policy": "classic", "min_hours": 2}}, short)
    for experiment_id, is_started in (("draft", False), ("empty", True)):
        body = {
            "experiment_id": experiment_id,
            "control_model": "alpha",
            "control_version": "latest",
            "treatment_model": "beta",
            "treatment_version": "latest",
            "start": is_started,
        }
        assert server.client.post("/api/ml/experiments", json=body).status_code == 201
    return server


@pytest.fixture
def open_page(browser: Any, site: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end none may have complained, or asked anybody but the server."""
    contexts: list[Any] = []
    complaints: list[str] = []
    asked: set[str] = set()

    def open_(name: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        context.set_default_timeout(120_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add("/".join(request.url.split("/")[:3])))
        page.goto(site.url + PAGES[name], wait_until="load")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert asked == {site.url}


@pytest.mark.parametrize(("name", "scheme"), [*((name, "light") for name in PAGES), ("long", "dark"), ("list", "dark")])
def test_a_page_passes_the_accessibility_rules(open_page: Callable[..., Any], name: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe_playwright_python is not installed (the extra test)"
    ).Axe()
    page = open_page(name, color_scheme=scheme)
    found = axe.run(page, options=RULES).response["violations"]
    assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(open_page: Callable[..., Any], name: str) -> None:
    assert open_page(name, viewport=PHONE).evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_long_charts_are_drawn_on_a_canvas_by_the_script_and_as_svg_without_one(open_page: Callable[..., Any]) -> None:
    with_script = open_page("long")
    with_script.wait_for_function(f"document.querySelectorAll('figure canvas').length === {N_CHARTS}")
    assert with_script.locator("figure > svg:visible").count() == 0
    drawn = "[...document.querySelectorAll('figure canvas')].every((one) => one.getContext('2d')"
    drawn += ".getImageData(0, 0, one.width, one.height).data.some((value) => value > 0))"
    assert with_script.evaluate(drawn)
    without = open_page("long", java_script_enabled=False)
    assert without.locator("figure > svg:visible").count() == N_CHARTS
    assert without.locator("figure canvas").count() == 0


def test_pointing_at_a_long_chart_reads_its_numbers_off(open_page: Callable[..., Any]) -> None:
    page = open_page("long")
    page.wait_for_selector("figure canvas")
    figure = page.locator("figure").first
    assert "points" not in figure.locator(".u-legend").inner_text()
    figure.locator(".u-over").hover()
    page.wait_for_function("/ points/.test(document.querySelector('figure .u-legend').innerText)")


def test_only_the_charts_differ_with_and_without_a_script(open_page: Callable[..., Any]) -> None:
    apart = "document.querySelectorAll('figure .canvas, figure > svg').forEach((one) => one.remove())"
    page = open_page("long")
    page.wait_for_selector("figure canvas")
    page.evaluate(apart)
    texts = [page.inner_text("main"), open_page("long", java_script_enabled=False).inner_text("main")]
    with_script, without = ([line for line in text.splitlines() if line.strip()] for text in texts)
    assert [line for line in with_script if line not in without] == []


def test_a_chart_s_table_opens_and_its_csv_is_saved_without_a_script(open_page: Callable[..., Any]) -> None:
    page = open_page("long", java_script_enabled=False)
    figure = page.locator("figure").first
    assert not figure.locator("table").is_visible()
    figure.locator("summary").click()
    n_rows = figure.locator("tbody tr").count()
    assert n_rows > 20  # less those looks at which one arm had nothing yet, which the hour decides
    with page.expect_download() as download:
        figure.get_by_role("link", name="as CSV").click()
    assert download.value.suggested_filename == "long-effect.csv"
    assert len(download.value.path().read_text().splitlines()) == 1 + n_rows


def test_what_is_printed_has_the_charts_as_svg_and_fits_the_sheet(open_page: Callable[..., Any]) -> None:
    page = open_page("long", viewport={"width": 703, "height": 1000})
    page.wait_for_selector("figure canvas")
    page.emulate_media(media="print")
    assert page.locator("figure > svg:visible").count() == N_CHARTS
    assert page.locator("figure canvas:visible").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    report = open_page("report", viewport={"width": 703, "height": 1000})
    report.emulate_media(media="print")
    assert report.locator("figure > svg:visible").count() == N_CHARTS
    assert report.evaluate("document.documentElement.scrollWidth") <= 703
    assert report.pdf().startswith(b"%PDF")


def test_every_link_on_the_pages_leads_somewhere(open_page: Callable[..., Any], site: Any) -> None:
    found: dict[str, None] = {}
    for name in PAGES:
        page = open_page(name, java_script_enabled=False)
        found |= dict.fromkeys(str(link.get_attribute("href")) for link in page.locator("main a[href]").all())
    assert len(found) > 20
    for href in found:
        if href.startswith("/"):
            assert site.client.get(href, follow_redirects=True).status_code == 200, href
