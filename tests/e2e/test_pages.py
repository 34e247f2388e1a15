"""Every page in a real browser: no script needed, nothing from elsewhere, legible to everybody, on a phone too."""

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra test)")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}
PHONE = {"width": 375, "height": 800}
DESKTOP = {"width": 1280, "height": 900}
PAGES = {
    "models": "/ui/",
    "models filtered": "/ui/?q=nothing-is-named-so",
    "model": "/ui/models/pages",
    "model with refusals": "/ui/models/troubled",
    "old version": "/ui/models/pages?version={first}",
    "symbol": "/ui/models/pages/symbols/BTCUSDT",
    "real symbol": "/ui/models/pages/symbols/ETHUSDT",
    "diff": "/ui/models/pages/diff",
    "diff of the same": "/ui/models/pages/diff?from={last}&to={last}",
    "rollback": "/ui/models/pages/rollback?version={first}",
    "venues": "/ui/venues",
    "venue": "/ui/venues/gate-margin",
    "not found": "/ui/models/absent",
    "method not allowed": "/ui/nothing",
}


def chromium() -> str | None:
    """Where the system's browser is; nothing is downloaded."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium with a fresh profile."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=FLAGS, headless=True)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def site(shared_servers: Any, artifacts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of its own with two versions of one model, one model with refused files, and a venue."""
    directory = tmp_path_factory.mktemp("site")
    server = shared_servers.start(data_dir=directory / "state", MMSERVER_WATCH_ENABLED="false")
    long_name = {"a": {"b": {"c": [1, 2.5, None, "x" * 300]}}, "path": "/very/long/" + "directory/" * 20}
    artifacts.write(directory / "pages", "BTCUSDT_mid_chg_1m", 0, info={**artifacts.info(0), **long_name})
    artifacts.write(directory / "pages", "SOLUSDT_mid_chg_1m", 2)
    server.register("pages", directory / "pages")
    artifacts.write(directory / "pages", "BTCUSDT_mid_chg_1m", 1, ic=-0.03)
    artifacts.write(directory / "pages", "ETHUSDT_mid_chg_1m", 2)
    for path in (directory / "pages").glob("SOLUSDT*"):
        path.unlink()
    assert server.client.post("/api/models/pages/refresh").json()["changed"]
    artifacts.write(directory / "troubled", "BTCUSDT_mid_chg_1m", 0)
    (directory / "troubled" / "ETHUSDT_mid_chg_1m_model.pkl").write_bytes(pickle.dumps(os.getcwd))
    server.register("troubled", directory / "troubled")
    rows = [
        {
            "symbol": f"C{n:02}USDT",
            "medium_notional_threshold": n + 0.5,
            "large_notional_threshold": 1_000_000 * (n + 1),
        }
        for n in range(40)
    ]
    (directory / "q.pkl").write_bytes(pickle.dumps(rows))
    put = server.client.put("/api/venues/gate-margin/quantiles", json={"pkl_path": str(directory / "q.pkl")})
    assert put.status_code == 200
    return server


@pytest.fixture(scope="module")
def address(site: Any) -> Callable[[str], str]:
    """A page's path, with the labels of the oldest and the newest version filled in."""
    labels = [item["version"] for item in site.get("/api/models/pages/versions")["items"]]
    return lambda name: str(site.url + PAGES[name].format(first=labels[-1], last=labels[0]))


@pytest.fixture
def open_page(browser: Any, address: Callable[[str], str]) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end none may have complained, or asked anybody but the server."""
    contexts: list[Any] = []
    complaints: list[str] = []
    asked: set[str] = set()

    def open_(name: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.add("/".join(request.url.split("/")[:3])))
        page.goto(address(name), wait_until="load")
        return page

    yield open_
    for context in contexts:
        context.close()
    expected = "Failed to load resource: the server responded with a status of 404"
    assert [text for text in complaints if not text.startswith(expected)] == []
    assert asked <= {address("models").removesuffix("/ui/"), "data:"}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_passes_the_accessibility_rules(open_page: Callable[..., Any], name: str, scheme: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe_playwright_python is not installed (the extra test)"
    ).Axe()
    page = open_page(name, color_scheme=scheme)
    found = axe.run(page, options=RULES).response["violations"]
    assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(open_page: Callable[..., Any], name: str) -> None:
    page = open_page(name, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.evaluate("getComputedStyle(document.body).fontFamily")  # the style sheet came through the policy


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_everything_without_a_script(open_page: Callable[..., Any], name: str) -> None:
    with_script = open_page(name).inner_text("main")
    without = open_page(name, java_script_enabled=False).inner_text("main")
    # The request id of an error page is another one each time.
    assert without.partition("request ")[0] == with_script.partition("request ")[0]
    assert len(without) > 20


def test_dark_and_light_are_two_looks(open_page: Callable[..., Any]) -> None:
    script = (
        "getComputedStyle(document.documentElement).backgroundColor + getComputedStyle(document.body).backgroundColor"
    )
    assert open_page("models", color_scheme="light").evaluate(script) != open_page(
        "models", color_scheme="dark"
    ).evaluate(script)


def test_every_page_is_reached_by_links_from_the_first(open_page: Callable[..., Any], site: Any) -> None:
    """All links on all pages lead somewhere, and the pages above are among them."""
    page = open_page("models", java_script_enabled=False)
    pending, seen = [site.url + "/ui/"], set()
    while pending:
        url = pending.pop().partition("#")[0]
        if url in seen or "sort=" in url:
            continue
        seen.add(url)
        answer = site.client.get(url)
        assert answer.status_code == 200, url
        if answer.headers["content-type"].startswith("text/html"):
            page.goto(url)
            links = page.locator("a[href]").all()
            pending += [site.url + href for link in links if (href := link.get_attribute("href")).startswith("/")]
    paths = {url.removeprefix(site.url).partition("?")[0] for url in seen}
    assert {path.partition("?")[0] for name, path in PAGES.items() if "not" not in name} <= paths


def test_a_version_is_rolled_back_by_clicking_without_a_script(open_page: Callable[..., Any], site: Any) -> None:
    newest = site.item("pages")["version"]
    page = open_page("model", java_script_enabled=False)
    page.get_by_role("link", name="roll back…").first.click()
    assert "Roll back pages?" in page.inner_text("h1")
    page.get_by_role("link", name="Cancel").click()
    assert site.item("pages")["version"] == newest
    page.get_by_role("link", name="roll back…").first.click()
    page.get_by_role("button", name="Roll back to").click()
    page.wait_for_url("**/ui/models/pages")
    served = site.item("pages")["version"]
    assert served != newest
    assert f"the newest version is {newest}" in page.inner_text("main")
    assert site.audit("pages")[-1] == "model.rolled_back"
    assert site.client.post("/api/models/pages/rollback", json={"version": newest}).status_code == 200


def test_the_download_of_a_symbol_page_is_the_payload(open_page: Callable[..., Any], site: Any, tmp_path: Path) -> None:
    page = open_page("symbol")
    with page.expect_download() as started:
        page.get_by_role("link", name="JSON").first.click()
    downloaded = tmp_path / "model.json"
    started.value.save_as(downloaded)
    assert downloaded.read_bytes() == site.client.get("/api/models/pages/model/BTCUSDT?format=json").content


def test_another_sites_page_cannot_roll_back(browser: Any, site: Any, tmp_path: Path) -> None:
    """A form on a page from elsewhere, sent by a click in the same browser, is refused."""
    label = site.get("/api/models/pages/versions")["items"][-1]["version"]
    before = site.item("pages")["version"]
    form = (
        f'<form method="post" action="{site.url}/ui/models/pages/rollback">'
        f'<input name="version" value="{label}"><button>go</button></form>'
    )
    (tmp_path / "evil.html").write_text(form)
    context = browser.new_context()
    page = context.new_page()
    page.goto((tmp_path / "evil.html").as_uri())
    page.get_by_role("button").click()
    page.wait_for_load_state()
    assert "this server's own pages only" in page.content()
    context.close()
    assert site.item("pages")["version"] == before
