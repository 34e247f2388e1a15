"""The pages: they work without a script, escape everything, and stay within their own policy."""

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from page_reading import Page, page

from mmserver.formats import PageLink
from mmserver.plugin_loading import load_plugins
from mmserver.web.framing import CONTENT_SECURITY_POLICY

HOSTILE = "<script>alert(1)</script>"
PAGES = [
    "/ui/",
    "/ui/models/alpha",
    "/ui/models/alpha?sort=ic&order=desc&q=usdt",
    "/ui/models/alpha?q=nothing",
    "/ui/models/alpha?version=latest",
    "/ui/models/alpha/symbols/BTCUSDT",
    "/ui/models/alpha/symbols/BTC/USDT?sort=tau_size&order=desc",
    "/ui/models/alpha/symbols/SOLUSDT",
    "/ui/models/alpha/diff",
    "/ui/models/alpha/rollback?version=latest",
    "/ui/venues",
    "/ui/venues/binance-futures",
    "/ui/venues/binance-futures?sort=ratio",
]
WEB = Path(str(resources.files("mmserver.web")))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_and_needs_no_script(web: Any, path: str) -> None:
    shown = page(web, path)
    assert shown.open == []
    assert shown.all("script") == []
    assert len(shown.all("h1")) == len(shown.all("main")) == 1
    for tag, attributes in shown.elements:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag


@pytest.mark.parametrize("path", PAGES)
def test_a_page_can_be_used_without_eyes_or_mouse(web: Any, path: str) -> None:
    shown = page(web, path)
    assert shown.all("html")[0]["lang"] == "en"
    assert shown.all("a")[0]["href"] == "#content"
    ids = [attributes["id"] for _, attributes in shown.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for attributes in shown.all("th"):
        assert attributes.get("scope") in ("col", "row", "colgroup")
    for _, attributes in shown.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= set(ids)
    for attributes in shown.all("svg"):
        assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
    for attributes in shown.all("input"):
        assert attributes.get("type") == "hidden" or attributes.get("aria-label")


@pytest.mark.parametrize("path", [*PAGES, "/ui/nowhere", "/ui/models/nope"])
def test_a_page_carries_the_policy_and_no_link_leads_elsewhere(web: Any, path: str) -> None:
    response = web.client.get(path)
    assert response.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert response.headers["Cache-Control"] == "no-store"
    for _, attributes in Page(response.text).elements:
        for name in ("href", "src", "action"):
            assert re.match(r"[/#?](?!/)", attributes.get(name) or "/"), attributes


@pytest.mark.parametrize("path", PAGES)
def test_every_link_of_a_page_leads_somewhere(web: Any, path: str) -> None:
    shown = page(web, path)
    for attributes in (*shown.all("a"), *shown.all("link")):
        href = attributes["href"] or ""
        target = path.partition("?")[0] + href if href.startswith("?") else href.partition("#")[0]
        if target:
            assert web.client.head(target).status_code == 200, href


def test_the_root_leads_to_the_pages(web: Any) -> None:
    response = web.client.get("/")
    assert (response.status_code, response.headers["Location"]) == (302, "/ui/")


def test_names_and_info_are_text_and_never_markup(web: Any) -> None:
    shown = web.client.get("/ui/models/alpha/symbols/BTCUSDT").text
    assert HOSTILE not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<img" not in shown
    assert "alert(1)" not in web.client.get("/ui/models/alpha").text
    assert HOSTILE not in web.client.get("/ui/venues/binance-futures").text
    for path in (
        f"/ui/models/{HOSTILE}",
        f"/ui/{HOSTILE}",
        f"/ui/models/alpha?q={HOSTILE}",
        f"/ui/models/alpha?sort={HOSTILE}",
    ):
        assert HOSTILE not in web.client.get(path).text


def test_a_status_is_a_sign_and_a_word(web: Any) -> None:
    text = web.client.get("/ui/").text
    assert re.search(r'class="status degraded"><span aria-hidden="true">△</span> degraded<', text)


def test_what_is_refused_is_shown_with_its_reason(web: Any) -> None:
    text = page(web, "/ui/models/alpha").text
    assert "PEPEUSDT_ret_1h" in text
    assert "forbidden" in text


def test_a_symbol_page_has_every_factor_with_its_bars(web: Any) -> None:
    shown = page(web, "/ui/models/alpha/symbols/BTCUSDT")
    bars = [attributes["class"] for attributes in shown.all("svg") if "diverging" in (attributes["class"] or "")]
    assert bars.count("diverging ic") == 3
    assert bars.count("diverging tau") == 2, "a factor without tau has no bar"
    assert "0.03123" in shown.text
    assert {"title": "0.0312345678"} in shown.all("span")


def test_downloads_of_every_form_are_offered(web: Any) -> None:
    links = [a["href"] or "" for a in page(web, "/ui/models/alpha/symbols/BTCUSDT").all("a")]
    for form in ("json", "ubj", "manifest"):
        assert any(f"format={form}" in link for link in links)


def test_rows_are_sorted_by_link_and_the_heading_says_so(web: Any) -> None:
    text = web.client.get("/ui/models/alpha?sort=symbol&order=desc").text
    assert text.index("SOLUSDT") < text.index("ETHUSDT") < text.index("BTCUSDT")
    shown = Page(text)
    assert [th["aria-sort"] for th in shown.all("th") if "aria-sort" in th] == ["descending"]
    assert any("sort=symbol&order=asc" in (a["href"] or "") for a in shown.all("a"))
    assert web.client.get("/ui/models/alpha?sort=colour").status_code == 400


def test_a_server_without_models_says_what_to_do(make_web: Callable[..., Any], tmp_path: Path) -> None:
    empty = make_web(tmp_path)
    assert "mmserver models add NAME DIR" in page(empty, "/ui/").text
    assert "mmserver venues set VENUE FILE" in page(empty, "/ui/venues").text


def test_the_diff_page_names_what_changed(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=8, factors=("vol_1d", "mom_1h", HOSTILE), info={"dim": 3})
    group_writer(changing.directory, "LTCUSDT_ret_1h", seed=8)
    changing.client.post(f"/api/models/{name}/refresh")
    text = page(changing, f"/ui/models/{name}/diff").text
    assert "another order" in text
    assert "LTCUSDT_ret_1h" in text
    assert "train samples" in text
    assert re.search(r"vol_1d\s+1 → 0", text)
    history = page(changing, f"/ui/models/{name}")
    assert "diff to previous" in history.text


def test_a_rollback_is_asked_about_and_then_done(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    first = changing.json(f"/api/models/{name}")["version"]
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=8)
    changing.client.post(f"/api/models/{name}/refresh")
    asked = page(changing, f"/ui/models/{name}/rollback?version={first}")
    (form,) = asked.all("form")
    assert (form["method"], form["action"]) == ("post", f"/ui/models/{name}/rollback")
    done = changing.client.post(form["action"], data={"version": first}, headers={"Sec-Fetch-Site": "same-origin"})
    assert (done.status_code, done.headers["Location"]) == (303, f"/ui/models/{name}")
    assert changing.json(f"/api/models/{name}")["version"] == first
    assert "Rolled back" in page(changing, f"/ui/models/{name}").text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        pytest.param({"reason": "too many losses"}, "this form has no such field", id="a field that it does not have"),
        pytest.param({"version": ["first", "latest"]}, "the field is given twice", id="two versions"),
    ],
)
def test_a_rollback_with_more_than_its_form_has_is_refused(
    changing: Any, group_writer: Callable[..., None], more: dict[str, Any], says: str
) -> None:
    name = changing.directory.name
    first = changing.json(f"/api/models/{name}")["version"]
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=8)
    changing.client.post(f"/api/models/{name}/refresh")
    newest = changing.json(f"/api/models/{name}")["version"]
    refused = changing.client.post(
        f"/ui/models/{name}/rollback", data={"version": first, **more}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    assert refused.status_code == 400
    assert says in refused.text
    assert changing.json(f"/api/models/{name}")["version"] == newest != first


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, id="the browser says cross-site"),
        pytest.param({"Sec-Fetch-Site": "same-site"}, id="a neighbour's page"),
        pytest.param({"Origin": "https://evil.example"}, id="another origin"),
        pytest.param({"Origin": "null"}, id="a sandboxed frame"),
        pytest.param({}, id="a form that does not say where it came from"),
    ],
)
def test_another_sites_form_changes_nothing(web: Any, headers: dict[str, str]) -> None:
    version = web.json("/api/models/alpha")["version"]
    response = web.client.post("/ui/models/alpha/rollback", data={"version": version}, headers=headers)
    assert response.status_code == 403
    assert "cross_site" in response.text


def test_a_form_of_our_own_origin_is_taken_where_the_browser_sends_no_more(web: Any) -> None:
    version = web.json("/api/models/alpha")["version"]
    response = web.client.post(
        "/ui/models/alpha/rollback", data={"version": version}, headers={"Origin": "http://localhost"}
    )
    assert response.status_code == 303


def test_a_program_need_not_say_where_it_comes_from(web: Any) -> None:
    for content_type in (None, "application/x-www-form-urlencoded"):
        assert web.client.post("/api/models/alpha/refresh", content_type=content_type).status_code == 200


def test_another_sites_script_cannot_use_the_api(web: Any) -> None:
    response = web.client.post("/api/models/alpha/refresh", headers={"Sec-Fetch-Site": "cross-site"})
    assert (response.status_code, response.json["code"]) == (403, "cross_site")
    assert web.client.get("/api/models/alpha", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_a_read_only_server_offers_no_rollback(
    make_web: Callable[..., Any], tmp_path: Path, changing: Any, group_writer: Callable[..., None]
) -> None:
    name = changing.directory.name
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=8)
    changing.client.post(f"/api/models/{name}/refresh")
    copy = tmp_path / "copy"
    copy.mkdir()
    changing.store.database.vacuum_into(copy / "mmserver.db")
    reading = make_web(copy, read_only=True)
    assert "roll back" not in page(reading, f"/ui/models/{name}").text
    refused = reading.client.post(f"/api/models/{name}/rollback", json={"version": "latest"})
    assert (refused.status_code, refused.json["code"]) == (403, "read_only")


def test_plugins_pages_stand_in_the_navigation(make_web: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "extra.py").write_text(
        "from mmserver import PageLink, hookimpl\n"
        "@hookimpl\ndef mmserver_pages():\n    return [PageLink('Risk <b>', '/risk')]\n"
    )
    plugins = load_plugins(tmp_path / "plugins")
    assert plugins.pages() == [PageLink("Risk <b>", "/risk")]
    made = make_web(tmp_path / "data", plugins=plugins)
    shown = page(made, "/ui/")
    assert "Risk <b>" in shown.text
    assert any(a["href"] == "/risk" for a in shown.all("a"))


def test_nothing_is_loaded_from_elsewhere_and_nothing_is_trusted_as_markup() -> None:
    files = [path for folder in ("templates", "static") for path in (WEB / folder).rglob("*") if path.is_file()]
    ours = [path for path in files if "vendor" not in path.parts]
    assert len(ours) > 8
    for path in ours:
        text = path.read_text("utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        text = text.replace('<script src="{{ asset(name) }}" defer></script>', "")  # a file of this server
        assert not re.search(r"https?:|[\"'(]//|@import|\burl\(", text), path
        assert not re.search(r"\|\s*safe\b|autoescape|Markup|<script|\sstyle=|\son[a-z]+=", text), path


def test_static_files_are_kept_for_ever_under_their_hash(web: Any) -> None:
    href = next(link["href"] for link in page(web, "/ui/").all("link") if link["rel"] == "stylesheet")
    assert href
    response = web.client.get(href)
    assert response.mimetype == "text/css"
    assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert web.client.get(href.replace("/static/", "/static/0")).status_code == 404
    packed = web.client.get(href, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == "Accept-Encoding"
    again = web.client.get(href, headers={"If-None-Match": response.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    assert web.client.get("/favicon.svg").mimetype == "image/svg+xml"


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_and_bars_from_theirs(scheme: str) -> None:
    style = (WEB / "static" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", blocks[scheme == "dark"]))
    pairs = [(ink, ground, 4.5) for ink in ("ink", "ink-soft", "accent") for ground in ("ground", "surface", "raised")]
    pairs += [(tone, f"{tone}-ground", 4.5) for tone in ("good", "warn", "bad")]
    pairs += [("ink", f"{tone}-ground", 4.5) for tone in ("warn", "bad", "accent")]
    pairs += [("on-accent", "accent", 4.5)]
    pairs += [(bar, "surface", 3.0) for bar in ("ic-up", "ic-down", "tau-up", "tau-down")]
    for ink, ground, least in pairs:
        light, dark = sorted((_luminance(colours[ink]), _luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (ink, ground)
