"""Every page in a real browser: no script needed, nothing from elsewhere, legible to everybody, on a phone too."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

onnx_graphs = pytest.importorskip("onnx_graphs", reason="onnx is not installed (the extra onnx)")
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
REGISTRY = "/api/ml/registry/models"
FACTORS = ("mom_1h", "vol_1d", "spread", "rsi_14", "gap")
PHONE = {"width": 375, "height": 800}
DESKTOP = {"width": 1280, "height": 900}
LONG_NAME, LONG_LABEL = "a" * 64, f"1.0.0-rc.{'x' * 50}"
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
    "registered model": "/ui/models/hybrid",
    "registered model by stage": "/ui/models/hybrid?stage=Archived",
    "registered version": "/ui/models/hybrid/versions/1.0.0",
    "version with forms": "/ui/models/net/versions/1.0.0",
    "compare": "/ui/models/hybrid/compare?version1=1.0.0&version2=1.10.0",
    "compare the converted": "/ui/models/net/compare?version1=1.0.0&version2=1.0.0%2Bown",
    "promote": "/ui/models/hybrid/versions/1.10.0/stage?to=Production",
    "retire what is in production": "/ui/models/hybrid/versions/1.9.0/stage?to=Archived",
    "edit": "/ui/models/hybrid/versions/1.0.0/edit",
    "long names": f"/ui/models/{LONG_NAME}/versions/{LONG_LABEL}",
    "edit with long names": f"/ui/models/{LONG_NAME}/versions/{LONG_LABEL}/edit",
    "optimise": "/ui/models/net/versions/1.0.0/optimize",
    "delete": "/ui/models/hybrid/versions/2.0.0-rc.1/delete",
    "delete what is in production": "/ui/models/hybrid/versions/1.9.0/delete",
    "delete what another was made of": "/ui/models/net/versions/1.0.0/delete",
    "roll back production": "/ui/models/hybrid/production/rollback",
    "pin": "/ui/models/pages/versions/{first}/stage?to=Production",
    "register": "/ui/register?name=hybrid",
    "audit": "/ui/audit",
    "audit filtered": "/ui/audit?action=model.*&actor=nobody&since=2026-01-01T00:00:00",
    "new experiment": "/ui/create-experiment?control_model=hybrid&treatment_model=hybrid&treatment_version=1.10.0",
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
    fill_registry(server, artifacts)
    put = server.client.put("/api/venues/gate-margin/quantiles", json={"pkl_path": str(directory / "q.pkl")})
    assert put.status_code == 200
    return server


def fill_registry(server: Any, artifacts: Any) -> None:
    """`hybrid` with versions in every stage and much said of one, `net` with a form that was made and one that was not."""
    long = {
        "description": "<b>not bold</b> " * 60 + "y" * 500,
        "tags": json.dumps({"<i>": "x" * 400, "desk": "equity"}),
    }
    for version, model, said in (("1.0.0", 0, long), ("1.9.0", 1, {}), ("1.10.0", 2, {}), ("2.0.0-rc.1", 0, {})):
        names = [*FACTORS[1:], FACTORS[0]] if version == "1.10.0" else list(FACTORS)
        metrics = {"ic": 0.03 + model / 1000, "sharpe": -1.25, "a metric with a rather long name " * 3: 12345.678}
        fields = {
            "metrics": json.dumps(metrics),
            "training_params": json.dumps({"eta": model, "deep": {"list": [1, 2]}}),
        }
        register(server, "hybrid", version, artifacts.texts[model], factors=json.dumps(names), **fields, **said)
    for version in ("1.0.0", "1.9.0"):
        assert server.client.post(f"{REGISTRY}/hybrid/{version}/promote").status_code == 200
    assert server.client.put(f"{REGISTRY}/hybrid/1.10.0/stage", json={"stage": "Staging"}).status_code == 200
    register(server, LONG_NAME, LONG_LABEL, artifacts.texts[0], tags=json.dumps({"تسمية": "قيمة", "标签": "值" * 50}))
    content = onnx_graphs.saved(onnx_graphs.recurrent())
    register(server, "net", "1.0.0", content, "model.onnx", metrics='{"f1": 0.61}')
    made = server.client.post(
        f"{REGISTRY}/net/1.0.0/optimize", json={"variants": ["fp32", "int8_dynamic"]}, timeout=300
    )
    assert made.status_code == 200, made.text
    register(server, "net", "1.0.0+own", content, "model.onnx", derived_from="1.0.0", description="again")


def register(
    server: Any, name: str, version: str, content: bytes, file_name: str = "model.json", **fields: str
) -> None:
    data = {"name": name, "version": version, **fields}
    response = server.client.post(REGISTRY, data=data, files={"file": (file_name, content)})
    assert response.status_code == 201, response.text


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
        context.set_default_timeout(120_000)
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
    expected = tuple(
        f"Failed to load resource: the server responded with a status of {status}" for status in (400, 404, 409)
    )
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


def test_every_page_is_reached_by_links_from_the_first(
    open_page: Callable[..., Any], site: Any, address: Callable[[str], str]
) -> None:
    """All links on all pages lead somewhere, and the pages above are among them."""
    page = open_page("models", java_script_enabled=False)
    pending, seen = [site.url + "/ui/"], set()
    while pending:
        url = pending.pop().partition("#")[0]
        if url in seen or "sort=" in url:
            continue
        seen.add(url)
        answer = site.client.get(url, follow_redirects=True)
        assert answer.status_code == 200, url
        if answer.headers["content-type"].startswith("text/html"):
            page.goto(url)
            links = page.locator("a[href]").all()
            pending += [site.url + href for link in links if (href := link.get_attribute("href")).startswith("/")]
    paths = {url.removeprefix(site.url).partition("?")[0] for url in seen}
    wanted = {address(name).removeprefix(site.url).partition("?")[0] for name in PAGES if "not" not in name}
    assert wanted <= paths


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


def test_two_versions_are_ticked_and_compared_without_a_script(open_page: Callable[..., Any]) -> None:
    page = open_page("registered model", java_script_enabled=False)
    for label in ("1.10.0", "1.0.0"):
        page.get_by_role("checkbox", name=f"Compare {label}", exact=True).check()
    page.get_by_role("button", name="Compare the two").click()
    assert "1.0.0 and 1.10.0" in page.inner_text("h1")
    assert "The same factors in another order" in page.inner_text("main")


def test_a_version_is_uploaded_promoted_and_rolled_back_by_clicking_without_a_script(
    open_page: Callable[..., Any], site: Any, artifacts: Any, tmp_path: Path
) -> None:
    register(site, "clicked", "1.0.0", artifacts.texts[0])
    assert site.client.post(f"{REGISTRY}/clicked/1.0.0/promote").status_code == 200
    page = open_page("register", java_script_enabled=False)
    file = tmp_path / "model.json"
    file.write_bytes(artifacts.texts[1])
    page.get_by_label("Model", exact=True).fill("clicked")
    page.get_by_label("Version", exact=True).fill("one")
    page.get_by_label("Model file").set_input_files(file)
    page.get_by_label("Metrics").fill('{"ic": 0.05}')
    page.get_by_role("button", name="Register").click()
    assert "not a semantic version" in page.inner_text("main")
    assert page.get_by_label("Model", exact=True).input_value() == "clicked", "what was typed is still there"
    page.get_by_label("Version", exact=True).fill("1.1.0")
    page.get_by_label("Model file").set_input_files(file)
    page.get_by_role("button", name="Register").click()
    page.wait_for_url("**/ui/models/clicked/versions/1.1.0")
    assert "0.05000" in page.inner_text("main")
    page.get_by_role("link", name="Promote 1.1.0").click()
    page.get_by_role("button", name="Promote 1.1.0").click()
    page.wait_for_url("**/ui/models/clicked")
    assert site.item("clicked")["version"] == "1.1.0"
    page.get_by_role("link", name="Roll back to 1.0.0").click()
    page.get_by_role("button", name="Roll back to 1.0.0").click()
    page.wait_for_url("**/ui/models/clicked")
    assert site.item("clicked")["version"] == "1.0.0"
    assert site.audit("clicked")[-2:] == ["version.promoted", "version.rolled_back"]
    assert site.client.post(f"{REGISTRY}/clicked/1.0.0/stage").status_code == 405
    for version in ("1.1.0", "1.0.0"):
        site.client.put(f"{REGISTRY}/clicked/{version}/stage", json={"stage": "None"})
        assert site.client.delete(f"{REGISTRY}/clicked/{version}").status_code == 204


def test_an_experiment_is_set_up_ramped_fed_and_applied_by_clicking(
    open_page: Callable[..., Any], site: Any, artifacts: Any
) -> None:
    """From a version's page on; each page on the way has no script, and passes the accessibility rules on a phone, also where it refuses."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe_playwright_python is not installed (the extra test)"
    ).Axe()
    for model, version in enumerate(("1.0.0", "2.0.0")):
        register(site, "tried", version, artifacts.texts[model])
    assert site.client.post(f"{REGISTRY}/tried/1.0.0/promote").status_code == 200
    page = open_page("models", viewport=PHONE)

    def see(words: str, within: str = "main") -> None:
        assert words in page.inner_text(within)
        assert page.locator("script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        found = axe.run(page, options=RULES).response["violations"]
        assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []

    def click(name: str) -> None:
        page.get_by_role("button", name=name).click()

    page.goto(f"{site.url}/ui/models/tried/versions/2.0.0")
    page.get_by_role("link", name="compare on live requests").click()
    page.get_by_label("Name", exact=True).fill("clicked")
    page.get_by_label("Treatment’s share").fill("half")
    page.get_by_label("Keep it as a draft").check()
    click("Create the experiment")
    see("expected a number such as 0.1, not 'half'")
    assert page.get_by_label("Name", exact=True).input_value() == "clicked", "what was typed is still there"
    page.get_by_label("Treatment’s share").fill("0.5")
    click("Create the experiment")
    page.wait_for_url("**/ui/experiments/clicked")
    page.goto(f"{site.url}/ui/experiments/clicked/edit")
    see("Change the draft clicked", "h1")
    page.goto(f"{site.url}/ui/experiments/clicked/start")
    see("Requests for tried that name no version are put into arms from now on")
    click("Start clicked")
    page.wait_for_url("**/ui/experiments/clicked")
    page.goto(f"{site.url}/ui/experiments/clicked/ramp")
    page.get_by_label("Treatment’s share").fill("0.25")
    click("Begin the new phase")
    see("it is 0.5 now; with 0.25 treated units would go back")
    page.get_by_label("Draw all units anew").check()
    click("Begin the new phase")
    page.wait_for_url("**/ui/experiments/clicked")
    page.goto(f"{site.url}/ui/experiments/clicked/outcomes")
    page.get_by_label("Pasted").fill('[{"prediction_id": "nobody", "label": "BUY"}]')
    click("Add the outcomes")
    see("0 added, 0 known already, 1 refused")
    page.goto(f"{site.url}/ui/experiments/clicked/stop")
    see("Requests get what tried serves from now on")
    page.goto(f"{site.url}/ui/experiments/clicked/apply")
    page.get_by_label("Promote the treatment").check()
    click("Apply")
    see("promote is not what is recommended")
    page.get_by_label("Do it although it is not recommended").check()
    click("Apply")
    page.wait_for_url("**/ui/experiments/clicked")
    found = site.get("/api/ml/experiments/clicked")
    assert (found["status"], found["applied"], [phase["traffic_split"] for phase in found["phases"]]) == (
        "applied",
        "promote",
        [0.5, 0.75],
    )
    assert site.item("tried")["version"] == "2.0.0"


def test_a_watched_model_is_pinned_and_unpinned_by_clicking(open_page: Callable[..., Any], site: Any) -> None:
    page = open_page("pin", java_script_enabled=False)
    newest = site.item("pages")["version"]
    page.get_by_role("button", name="Pin").click()
    page.wait_for_url("**/ui/models/pages")
    assert site.item("pages")["version"] != newest
    page.get_by_role("link", name="Unpin it").click()
    page.get_by_role("button", name="Unpin").click()
    page.wait_for_url("**/ui/models/pages")
    assert site.item("pages")["version"] == newest


@pytest.mark.parametrize("size", [1_500_000, 9_000_000], ids=["over what files may have", "over what a body may have"])
def test_a_file_over_the_limit_is_refused_by_a_page_and_what_was_typed_is_still_there(
    browser: Any, servers: Any, tmp_path: Path, size: int
) -> None:
    server = servers.start(MMSERVER_MAX_ARTIFACT_BYTES="1MiB")
    (tmp_path / "model.json").write_bytes(b" " * size)
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(f"{server.url}/ui/register")
    page.get_by_label("Version", exact=True).fill("1.0.0")
    page.get_by_label("Model", exact=True).fill("large")
    page.get_by_label("Metrics").fill('{"ic": 0.05}')
    page.get_by_label("Model file").set_input_files(tmp_path / "model.json")
    page.get_by_role("button", name="Register").click()
    page.get_by_text("max_artifact_bytes allows").first.wait_for()
    if size > 2 << 20:
        page.go_back()
    assert page.get_by_label("Metrics").input_value() == '{"ic": 0.05}'
    assert page.get_by_label("Version", exact=True).input_value() == "1.0.0"
    context.close()


def test_an_upload_of_megabytes_is_taken_by_the_form_and_by_no_other_page(site: Any, artifacts: Any) -> None:
    """A body beyond what other requests may have reaches the form, which says what is wrong with it."""
    ours = {"Origin": site.url}
    files = {"file": ("model.json", b" " * (40 << 20))}
    taken = site.client.post("/ui/register", data={"name": "big", "version": "1.0.0"}, files=files, headers=ours)
    assert (taken.status_code, "model.json" in taken.text) == (400, True)
    assert site.client.get("/api/models/big").status_code == 404


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
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto((tmp_path / "evil.html").as_uri())
    page.get_by_role("button").click()
    page.wait_for_load_state()
    assert "this server's own pages only" in page.content()
    context.close()
    assert site.item("pages")["version"] == before
