"""The registry's pages: versions, one of them, two side by side, stages and uploads, all by links and forms."""

import html
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_reading import Page, page

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.storage.audit import list_audit
from mmserver.web.current import MODEL_READER_KEY

ROOT = "/api/ml/registry/models"
FACTORS = ["momentum", "volume", "spread"]
HOSTILE = "<script>alert(1)</script>\"'&"
OURS = {"Sec-Fetch-Site": "same-origin"}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def models(xgboost_text: Callable[[int, int], bytes]) -> list[bytes]:
    """Three regressors of three inputs."""
    return [xgboost_text(3, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def site(make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tests are told apart by their models' names."""
    return make_web(tmp_path_factory.mktemp("registry-pages"), max_artifact_bytes=200_000)


@pytest.fixture
def name() -> str:
    """A model's name that no other test has."""
    return f"paged-{next(_numbers)}"


def register(site: Any, name: str, version: str, content: bytes, file_name: str = "model.json", **fields: Any) -> None:
    data = {key: value if isinstance(value, str) else json.dumps(value) for key, value in fields.items()}
    data |= {"name": name, "version": version}
    upload = {**data, "file": (io.BytesIO(content), file_name)}
    response = site.client.post(ROOT, data=upload, content_type="multipart/form-data")
    assert response.status_code == 201, response.text


@pytest.fixture(scope="module")
def hybrid(site: Any, models: list[bytes]) -> str:
    """1.9.0 in production after 1.0.0, 1.10.0 in staging with the factors in another order, and a pre-release."""
    for version, content, factors, ic in (
        ("1.0.0", models[0], FACTORS, 0.031),
        ("1.9.0", models[1], FACTORS, 0.0325),
        ("1.10.0", models[2], [FACTORS[1], FACTORS[0], FACTORS[2]], 0.034),
        ("2.0.0-rc.1", models[0], [*FACTORS[:2], "gap"], 0.0),
    ):
        said = {"metrics": {"ic": ic, "n_trades": 1234}, "training_params": {"eta": ic * 10, "depth": 2}}
        register(site, "hybrid", version, content, factors=factors, tags={"desk": "equity"}, **said)
    for version in ("1.0.0", "1.9.0"):
        assert site.client.post(f"{ROOT}/hybrid/{version}/promote").status_code == 200
    assert site.client.put(f"{ROOT}/hybrid/1.10.0/stage", json={"stage": "Staging"}).status_code == 200
    return "hybrid"


PAGES = [
    "/ui/",
    "/ui/models/hybrid",
    "/ui/models/hybrid?sort=metric.ic&order=desc&q=equity",
    "/ui/models/hybrid?stage=staging",
    "/ui/models/hybrid?q=nothing",
    "/ui/models/hybrid/versions/1.0.0",
    "/ui/models/hybrid/versions/production",
    "/ui/models/hybrid/compare",
    "/ui/models/hybrid/compare?version1=1.9.0&version2=1.10.0",
    "/ui/models/hybrid/compare?version1=1.9.0&version2=1.9.0",
    "/ui/models/hybrid/versions/1.10.0/stage?to=Production",
    "/ui/models/hybrid/versions/1.0.0/stage?to=none",
    "/ui/models/hybrid/versions/1.9.0/stage?to=Archived",
    "/ui/models/hybrid/versions/1.0.0/edit",
    "/ui/models/hybrid/versions/1.0.0/optimize",
    "/ui/models/hybrid/versions/1.9.0/delete",
    "/ui/models/hybrid/versions/1.0.0/delete",
    "/ui/models/hybrid/production/rollback",
    "/ui/register",
    "/ui/register?name=hybrid",
]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_whole_needs_no_script_and_can_be_used_without_eyes(site: Any, hybrid: str, path: str) -> None:
    shown = page(site, path)
    assert shown.open == []
    assert shown.all("script") == []
    assert len(shown.all("h1")) == len(shown.all("main")) == 1
    ids = [attributes["id"] for _, attributes in shown.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for attributes in shown.all("label") if "for" in attributes}
    for tag, attributes in shown.elements:
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        named = f"{attributes.get('aria-labelledby') or ''} {attributes.get('aria-describedby') or ''}".split()
        assert set(named) <= set(ids)
        if tag in ("input", "textarea"):
            is_named = attributes.get("id") in labelled or attributes.get("aria-label")
            assert attributes.get("type") == "hidden" or is_named, attributes


@pytest.mark.parametrize("path", PAGES)
def test_every_link_and_form_of_a_page_leads_somewhere_on_this_server(site: Any, hybrid: str, path: str) -> None:
    shown = page(site, path)
    for attributes in (*shown.all("a"), *shown.all("link")):
        href = attributes["href"] or ""
        target = path.partition("?")[0] + href if href.startswith("?") else href.partition("#")[0]
        assert not target or site.client.head(target).status_code in (200, 302), href
    for attributes in shown.all("form"):
        action = attributes.get("action") or path.partition("?")[0]
        assert action.startswith("/ui/")
        assert site.client.options(action).headers["Allow"].upper().find((attributes["method"] or "").upper()) >= 0


# --- a model and its versions -----------------------------------------------------------------------------------------


def labels_in(text: str) -> list[str]:
    return re.findall(r'aria-label="Compare ([^"]+)"', text)


def test_versions_come_in_semantic_order_with_their_stages_metrics_and_sizes(site: Any, hybrid: str) -> None:
    text = site.client.get("/ui/models/hybrid").text
    assert labels_in(text) == ["2.0.0-rc.1", "1.10.0", "1.9.0", "1.0.0"]
    shown = " ".join(Page(text).text.split())
    assert re.search(r"Served is 1\.9\.0 ?, because it is in production since 20\d\d-", shown)
    assert "◐ Staging" in shown
    assert "○ Archived" in shown
    assert "0.03250" in shown
    assert "1,234" in shown
    assert "KiB" in shown
    assert "Roll back to 1.0.0…" in shown


def test_versions_are_sorted_by_a_metric_and_by_version_and_filtered_by_stage_and_words(site: Any, hybrid: str) -> None:
    def listed(query: str) -> list[str]:
        text = site.client.get(f"/ui/models/hybrid?{query}").text
        return re.findall(r"/versions/([^/\"]+)\"><code>", text.partition("<tbody>")[2])

    assert listed("sort=metric.ic&order=desc") == ["1.10.0", "1.9.0", "1.0.0", "2.0.0-rc.1"]
    assert listed("sort=version&order=asc") == ["1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert listed("stage=production") == ["1.9.0"]
    assert listed("stage=NONE") == ["2.0.0-rc.1"]
    assert listed("q=1.1") == ["1.10.0"]
    for query in ("sort=metric.nothing", "stage=sold"):
        assert site.client.get(f"/ui/models/hybrid?{query}").status_code == 400


def test_a_list_says_what_is_served_when_nothing_is_in_production_and_when_all_are_retired(
    site: Any, name: str, models: list[bytes]
) -> None:
    register(site, name, "1.0.0", models[0])
    assert "nothing is in production and it is the newest" in page(site, f"/ui/models/{name}").text
    site.client.post(f"{ROOT}/{name}/1.0.0/retire")
    assert "Every version was retired" in page(site, f"/ui/models/{name}").text
    assert "nothing: all are retired" in page(site, "/ui/").text
    assert page(site, f"/ui/models/{name}/versions/1.0.0").open == []


def test_the_list_of_models_tells_kinds_apart_and_names_what_is_in_stages(
    site: Any, hybrid: str, name: str, group_writer: Callable[..., None]
) -> None:
    group_writer(site.directory / name, "BTCUSDT_ret_1h", seed=1)
    register_model(site.store, name, str(site.directory / name), Actor("test"))
    text = site.client.get("/ui/").text
    rows = {
        match[1]: re.sub(r"<[^>]+>|\s+", " ", match[0])
        for match in re.finditer(r"<tr>\n<th.*?>([\w-]+)</a>.*?</tr>", text, re.S)
    }
    assert re.search(r"registered.*1\.9\.0 .*1\.9\.0 .*1\.10\.0", rows["hybrid"])
    assert "watched" in rows[name]
    assert site.client.get("/ui/?sort=production&order=asc").status_code == 200


def test_old_addresses_of_a_version_lead_to_its_page(site: Any, hybrid: str) -> None:
    response = site.client.get("/ui/models/hybrid?version=1.0.0")
    assert (response.status_code, response.headers["Location"]) == (302, "/ui/models/hybrid/versions/1.0.0")
    assert site.client.get("/ui/models/hybrid?version=9.9.9").status_code == 404
    assert site.client.get("/ui/models/hybrid/versions/9.9.9").status_code == 404
    assert site.client.get("/ui/models/nothing/versions/1.0.0").status_code == 404


def test_what_was_said_is_text_and_never_markup(site: Any, name: str, models: list[bytes]) -> None:
    said = {"description": HOSTILE * 50, "tags": {HOSTILE: HOSTILE}, "metrics": {HOSTILE: 1.5}}
    register(site, name, "1.0.0", models[0], training_params={HOSTILE: [HOSTILE]}, info={HOSTILE: HOSTILE}, **said)
    register(site, name, "1.1.0", models[0], factors=[HOSTILE, "b", "c"], training_params={HOSTILE: 1})
    for path in ("", f"?sort=metric.{HOSTILE.replace('&', '%26')}", "/versions/1.0.0", "/versions/1.1.0", "/compare"):
        text = site.client.get(f"/ui/models/{name}{path}").text
        assert "<script" not in text
        assert "&lt;script&gt;alert(1)" in text, path
    for path in (f"/ui/register?name={HOSTILE}", f"/ui/models/{name}/versions/{HOSTILE}/stage?to={HOSTILE}"):
        assert "<script" not in site.client.get(path).text


def test_a_hundred_versions_are_listed_with_few_statements(
    make_web: Callable[..., Any], tmp_path: Path, models: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_web(tmp_path)
    counts = []
    for upto in (2, 40):
        for patch in range(len(site_labels(made)), upto):
            register(made, "many", f"1.0.{patch}", models[0], metrics={"ic": patch / 1000})
        made.client.get("/ui/models/many")
        counts.append(statements(made, "/ui/models/many"))
    assert counts[0] == counts[1]
    assert len(labels_in(made.client.get("/ui/models/many").text)) == 40


def site_labels(site: Any) -> list[str]:
    response = site.client.get(f"{ROOT}/many")
    return [item["version"] for item in response.json["versions"]] if response.status_code == 200 else []


def statements(site: Any, path: str) -> int:
    """How many the database is asked for a page."""
    from sqlalchemy import Engine, event

    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert site.client.get(path).status_code == 200
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert seen
    return len(seen)


# --- a version --------------------------------------------------------------------------------------------------------


def test_a_version_s_page_says_all_that_is_known(site: Any, hybrid: str) -> None:
    text = " ".join(page(site, "/ui/models/hybrid/versions/1.0.0").text.split())
    item = site.json(f"{ROOT}/hybrid/1.0.0")
    for said in ("○ Archived", "desk equity", "3 factors", "momentum", item["sha256"], "model.json", "eta", "0.3100"):
        assert said in text
    assert "It runs as it was made" in text
    assert "Only ONNX models have other forms" in text


def test_the_line_for_a_shell_predicts_with_that_version(site: Any, hybrid: str) -> None:
    text = page(site, "/ui/models/hybrid/versions/1.0.0").text
    found = re.search(r"curl -s (\S+) -H '([^:]+): ([^']+)' -d '([^']+)'", text)
    assert found
    assert found[1] == "http://localhost/predict"
    response = site.client.post("/predict", data=found[4], headers={found[2]: found[3]})
    assert (response.status_code, response.json["model_version"]) == (200, "1.0.0")


def test_a_version_is_downloaded_from_its_page(site: Any, hybrid: str) -> None:
    links = [a["href"] or "" for a in page(site, "/ui/models/hybrid/versions/1.0.0").all("a")]
    (link,) = (link for link in links if "format=json" in link)
    response = site.client.get(link)
    assert (response.status_code, response.headers["X-Model-Version"]) == (200, "1.0.0")


@pytest.fixture(scope="module")
def optimised(site: Any) -> Iterator[str]:
    """An ONNX model of timesteps × factors with forms that were really made."""
    graphs = pytest.importorskip("onnx_graphs", reason="onnx is not installed (the extra onnx)")
    register(site, "cnn", "1.0.0", graphs.saved(graphs.recurrent()), "model.onnx")
    response = site.client.post(f"{ROOT}/cnn/1.0.0/optimize", json={"variants": ["fp32", "int8_dynamic"]})
    assert response.status_code == 200, response.text
    yield "cnn"


def test_forms_of_a_version_are_shown_with_sizes_times_and_the_verdict(site: Any, optimised: str) -> None:
    shown = page(site, "/ui/models/cnn/versions/1.0.0")
    text = " ".join(shown.text.split())
    reports = site.json(f"{ROOT}/cnn/1.0.0/optimizations")["items"]
    assert [report["variant"] for report in reports] == ["fp32", "int8_dynamic"]
    for report in reports:
        assert ("accepted" if report["accepted"] else "kept out") in text
        for reason in (*report["reasons"], *report["notes"]):
            assert " ".join(reason.split()) in text
        if report["timing"]:
            assert f"{report['timing']['p50_ms']:.4g} ms" in text
            assert f"{report['source_timing']['p99_ms']:.4g} ms" in text
    widths = [float(rect["width"] or "") for rect in shown.all("rect") if rect.get("class") in ("source", "form")]
    assert len(widths) >= 6
    assert max(widths) == 100
    assert all(0 <= width <= 100 for width in widths)
    assert "6 timesteps × 4 factors" in text
    assert shown.open == []


def test_a_form_says_what_it_was_derived_from_and_how_near_it_comes(site: Any, optimised: str) -> None:
    reports = site.json(f"{ROOT}/cnn/1.0.0/optimizations")["items"]
    label = next((report["version"] for report in reports if report["version"]), None)
    if label is None:
        pytest.skip("on this machine no form passed its gates")
    text = " ".join(page(site, f"/ui/models/cnn/versions/{label}").text.split())
    parity = site.json(f"{ROOT}/cnn/{label.replace('+', '%2B')}")["parity"]
    assert f"on {parity['n_rows']:,} rows" in text
    assert re.search(r"A number may be off by ?at most " + re.escape(f"{parity['absolute']:.4g}"), text)
    assert (f"plus {parity['relative'] * 100:.4g} % of its size" in text) == (parity["relative"] > 0)
    assert f"{parity['n_beyond']:,} of {parity['n_rows']:,}" in text
    assert "Derived from" in text
    compared = page(site, f"/ui/models/cnn/compare?version1=1.0.0&version2={label.replace('+', '%2B')}").text
    assert "The same 4 factors in the same order." in compared
    assert "A number may be off by" in compared


# --- two versions -----------------------------------------------------------------------------------------------------


def test_two_ticked_versions_are_compared_the_older_first(site: Any, hybrid: str) -> None:
    response = site.client.get("/ui/models/hybrid/compare?version=1.10.0&version=1.9.0")
    assert response.status_code == 302
    assert response.headers["Location"] == "/ui/models/hybrid/compare?version1=1.9.0&version2=1.10.0"
    for ticked in ("version=1.9.0", "version=1.9.0&version=1.0.0&version=1.10.0"):
        refused = site.client.get(f"/ui/models/hybrid/compare?{ticked}")
        assert refused.status_code == 400
        assert "tick exactly two versions" in refused.text


def test_a_comparison_names_what_differs_and_claims_nothing_to_be_better(site: Any, hybrid: str) -> None:
    text = " ".join(page(site, "/ui/models/hybrid/compare?version1=1.0.0&version2=1.9.0").text.split())
    assert "0.001500" in text
    assert "4.839 %" in text
    assert "The same 3 factors in the same order" in text
    assert re.search(r"eta ?0\.3100 ?0\.3250", text)
    assert "another order" not in text
    assert not re.search(r"\b(improved|worse|regressed)\b", text)
    changed = page(site, "/ui/models/hybrid/compare?version1=1.0.0&version2=2.0.0-rc.1").text
    assert "1 added" in changed
    assert "1 removed" in changed


def test_a_comparison_warns_where_only_the_order_of_the_factors_differs(site: Any, hybrid: str) -> None:
    text = " ".join(page(site, "/ui/models/hybrid/compare?version1=1.9.0&version2=1.10.0").text.split())
    assert "The same factors in another order." in text
    assert re.search(r"volume 1 → 0", text)


# --- stages -----------------------------------------------------------------------------------------------------------


def stage_of(site: Any, name: str, version: str) -> str:
    return str(site.json(f"{ROOT}/{name}/{version}")["stage"])


@pytest.mark.parametrize("stage", ["Production", "Staging", "Archived"])
def test_a_version_changes_its_stage_by_a_form_that_asks_once_more(
    site: Any, name: str, models: list[bytes], stage: str
) -> None:
    register(site, name, "1.0.0", models[0])
    asked = page(site, f"/ui/models/{name}/versions/1.0.0/stage?to={stage}")
    (form,) = asked.all("form")
    fields = {field["name"]: field["value"] for field in asked.all("input")}
    assert (form["method"], stage_of(site, name, "1.0.0")) == ("post", "None")
    done = site.client.post(form["action"], data=fields, headers=OURS)
    assert (done.status_code, done.headers["Location"]) == (303, f"/ui/models/{name}")
    assert stage_of(site, name, "1.0.0") == stage
    assert "Nothing is left to do" in page(site, f"/ui/models/{name}/versions/1.0.0/stage?to={stage}").text
    back = site.client.post(form["action"], data={"stage": "None"}, headers=OURS)
    assert (back.status_code, stage_of(site, name, "1.0.0")) == (303, "None")


def test_a_rollback_by_a_form_goes_back_once_however_often_it_is_sent(
    site: Any, name: str, models: list[bytes]
) -> None:
    for number, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        register(site, name, version, models[number])
        site.client.post(f"{ROOT}/{name}/{version}/promote")
    asked = page(site, f"/ui/models/{name}/production/rollback")
    fields = {field["name"]: field["value"] for field in asked.all("input")}
    assert fields == {"from": "1.2.0"}
    path = f"/ui/models/{name}/production/rollback"
    for _ in range(2):
        assert site.client.post(path, data=fields, headers=OURS).status_code == 303
    assert site.json(f"/api/models/{name}")["version"] == "1.1.0"


def test_a_rollback_that_has_nowhere_to_go_says_what_to_do(site: Any, name: str, models: list[bytes]) -> None:
    register(site, name, "1.0.0", models[0])
    path = f"/ui/models/{name}/production/rollback"
    assert "Promote one" in page(site, path).text
    assert site.client.post(path, data={"from": "1.0.0"}, headers=OURS).status_code == 409
    site.client.post(f"{ROOT}/{name}/1.0.0/promote")
    shown = page(site, path)
    assert "Promote another version" in shown.text
    assert shown.all("form") == []


def test_what_cannot_be_done_is_a_page_that_says_why(site: Any, hybrid: str) -> None:
    retired = site.client.post("/ui/models/hybrid/versions/1.9.0/stage", data={"stage": "Archived"}, headers=OURS)
    assert retired.status_code == 409
    assert retired.mimetype == "text/html"
    assert "promote another version first" in retired.text
    assert 'href="/ui/models/hybrid"' in retired.text
    for stage, status in (("Sold", 400), ("", 400)):
        response = site.client.post("/ui/models/hybrid/versions/1.9.0/stage", data={"stage": stage}, headers=OURS)
        assert response.status_code == status
    assert site.client.get("/ui/models/hybrid/versions/1.9.0/stage").status_code == 400
    assert stage_of(site, "hybrid", "1.9.0") == "Production"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"Sec-Fetch-Site": "cross-site"}, id="the browser says so"),
        pytest.param({"Origin": "https://evil.example"}, id="another origin"),
        pytest.param({}, id="it does not say where it comes from"),
    ],
)
def test_another_site_s_form_changes_no_stage_and_registers_nothing(
    site: Any, hybrid: str, models: list[bytes], headers: dict[str, str]
) -> None:
    for path, data in (
        ("/ui/models/hybrid/versions/1.0.0/stage", {"stage": "Production"}),
        ("/ui/models/hybrid/production/rollback", {"from": "1.9.0"}),
        ("/ui/register", {"name": "evil", "version": "1.0.0", "file": (io.BytesIO(models[0]), "model.json")}),
    ):
        response = site.client.post(path, data=data, headers=headers)
        assert (response.status_code, "cross_site" in response.text) == (403, True), path
    assert site.json("/api/models/hybrid")["version"] == "1.9.0"
    assert "evil" not in site.store.catalog.models


def test_a_watched_model_is_pinned_and_unpinned_by_forms(
    site: Any, name: str, group_writer: Callable[..., None], xgboost_text: Callable[[int, int], bytes]
) -> None:
    directory = site.directory / name
    group_writer(directory, "BTCUSDT_ret_1h", seed=1)
    label = register_model(site.store, name, str(directory), Actor("test")).serving.label
    assert f"Pin {label}" in str(page(site, f"/ui/models/{name}").elements)
    pin = f"/ui/models/{name}/versions/{label}/stage"
    assert "not served until it is unpinned" in page(site, f"{pin}?to=Production").text
    assert site.client.post(pin, data={"stage": "Production"}, headers=OURS).status_code == 303
    (directory / "BTCUSDT_ret_1h_model.json").write_bytes(xgboost_text(3, 5))
    site.client.post(f"/api/models/{name}/refresh")
    shown = page(site, f"/ui/models/{name}")
    assert f"Production pins version {label}" in shown.text
    assert "roll back…" not in shown.text
    assert "pinned; newest is" in page(site, "/ui/").text
    assert f"/ui/models/{name}/versions/{label}/stage?to=None" in [a["href"] for a in shown.all("a")]
    assert site.client.post(pin, data={"stage": "None"}, headers=OURS).status_code == 303
    assert site.json(f"/api/models/{name}")["version"] != label
    assert "Production pins" not in page(site, f"/ui/models/{name}").text
    assert site.client.get(f"/ui/models/{name}/versions/{label}").status_code == 302
    assert site.client.post(pin, data={"stage": "Archived"}, headers=OURS).status_code == 409
    assert site.client.get(f"/ui/models/{name}/compare").status_code == 409


# --- uploads ----------------------------------------------------------------------------------------------------------

EMPTY_FIELDS = ("model_type", "description", "metrics", "training_params", "tags", "factors", "derived_from", "info",
                "options", "sha256")  # fmt: skip


def submit(site: Any, content: bytes, file_name: str = "model.json", **fields: str) -> Any:
    """What a browser sends: every field, and a nameless empty file for the one that nothing was chosen for."""
    data: dict[str, Any] = {**dict.fromkeys(EMPTY_FIELDS, ""), **fields}
    data["file"] = [(io.BytesIO(content), file_name), (io.BytesIO(b""), "")]
    return site.client.post("/ui/register", data=data, headers=OURS, content_type="multipart/form-data")


def test_the_form_registers_a_version_and_shows_it(site: Any, name: str, models: list[bytes]) -> None:
    form = page(site, "/ui/register")
    offered = {field["name"] for tag in ("input", "textarea", "select") for field in form.all(tag)}
    assert offered == {*EMPTY_FIELDS, "name", "version", "file"}
    response = submit(
        site, models[0], name=name, version="1.0.0", description="two\r\nlines\r\n", metrics='{"ic": 0.03}',
        factors="momentum\r\n\r\n volume \r\nspread\r\n",
    )  # fmt: skip
    assert (response.status_code, response.headers["Location"]) == (303, f"/ui/models/{name}/versions/1.0.0")
    item = site.json(f"{ROOT}/{name}/1.0.0")
    assert (item["description"], item["metrics"], item["tags"]) == ("two\nlines", {"ic": 0.03}, {})
    assert "momentum" in page(site, response.headers["Location"]).text
    with site.store.database.read() as connection:
        actions = [entry.action for entry in list_audit(connection, 1000) if entry.target == name]
    assert actions == ["version.registered"]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        pytest.param({"name": "", "version": "1.0.0"}, "name", id="no name"),
        pytest.param({"name": "n", "version": "latest"}, "version", id="a word for a label"),
        pytest.param({"name": "n", "version": "1.0.0", "metrics": "ic=3"}, "metrics", id="no JSON"),
        pytest.param({"name": "n", "version": "1.0.0", "metrics": '{"ic": "x"}'}, "metrics.ic", id="no number"),
        pytest.param({"name": "n", "version": "1.0.0", "sha256": "00"}, "sha256", id="another hash"),
        pytest.param({"name": "n", "version": "1.0.0", "derived_from": "0.1.0"}, "derived_from", id="no such source"),
    ],
)
def test_a_form_that_does_not_fit_is_answered_by_a_page_that_names_the_field(
    site: Any, models: list[bytes], fields: dict[str, str], place: str
) -> None:
    response = submit(site, models[0], **fields)
    assert response.status_code == 400
    assert response.mimetype == "text/html"
    shown = Page(response.text)
    assert all(part in shown.text for part in place.split("."))
    assert "Nothing was registered." in shown.text
    assert shown.open == []
    wrong = [attributes["name"] for _, attributes in shown.elements if attributes.get("aria-invalid")]
    assert wrong == [place.partition(".")[0]]
    values = {field["name"]: field.get("value") for field in shown.all("input") if field["type"] == "text"}
    assert {name: values[name] for name in fields if name in values} == {
        name: text for name, text in fields.items() if name in values
    }
    assert "n" not in site.store.catalog.models


TYPED = {
    "description": "two\nlines <b> ☃",
    "metrics": '{"ic": 0.03}',
    "training_params": '{"hidden": 256}',
    "tags": '{"desk": "fx"}',
    "factors": "a\nb\nc",
    "info": '{"note": "</textarea>"}',
    "options": "{}",
}


def typed_again(text: str) -> dict[str, str]:
    """What stands in the text areas of the page."""
    found = re.findall(r'<textarea id="[^"]+" name="([^"]+)"[^>]*>(.*?)</textarea>', text, re.DOTALL)
    return {name: html.unescape(said).replace("\r\n", "\n") for name, said in found}


@pytest.mark.parametrize(
    ("file_name", "content", "status", "words"),
    [
        pytest.param("", b"", 400, "choose the model’s file", id="none chosen"),
        pytest.param("model.json", b"", 400, "'model.json' is empty", id="empty"),
        pytest.param("model.json", b'{"learner": {', 400, "model.json", id="cut off"),
        pytest.param("model.abacus", b"1", 400, "model_type", id="of no known format"),
        pytest.param("model.json", b" " * 200_001, 413, "max_artifact_bytes", id="too large"),
    ],
)
def test_a_file_that_cannot_be_taken_is_said_in_words_and_what_was_typed_is_kept(
    site: Any, name: str, file_name: str, content: bytes, status: int, words: str
) -> None:
    refused = submit(site, content, file_name, name=name, version="1.0.0", **TYPED)
    shown = Page(refused.text)
    assert (refused.status_code, refused.mimetype, shown.open) == (status, "text/html", [])
    assert words in " ".join(shown.text.split())
    assert "Only the files have to be chosen again" in shown.text
    assert typed_again(refused.text) == TYPED
    values = {field["name"]: field.get("value") for field in shown.all("input") if field["type"] == "text"}
    assert (values["name"], values["version"]) == (name, "1.0.0")
    assert "open" in shown.all("details")[0]
    assert name not in site.store.catalog.models


def test_another_file_does_not_stand_in_for_the_model_that_was_not_chosen(
    site: Any, name: str, models: list[bytes]
) -> None:
    data = {"name": name, "version": "1.0.0", "file": [(io.BytesIO(b""), ""), (io.BytesIO(models[0]), "model.json")]}
    refused = site.client.post("/ui/register", data=data, headers=OURS, content_type="multipart/form-data")
    assert (refused.status_code, "choose the model’s file" in refused.text) == (400, True)
    assert name not in site.store.catalog.models


def test_a_body_that_breaks_off_registers_nothing_and_keeps_what_had_arrived(
    site: Any, name: str, models: list[bytes]
) -> None:
    head = (
        f'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n{name}\r\n'
        '--b\r\nContent-Disposition: form-data; name="version"\r\n\r\n1.0.0\r\n'
        '--b\r\nContent-Disposition: form-data; name="file"; filename="model.json"\r\n\r\n'
    )
    body = head.encode() + models[0]
    refused = site.client.post("/ui/register", data=body, headers=OURS, content_type="multipart/form-data; boundary=b")
    shown = Page(refused.text)
    assert (refused.status_code, "not a whole multipart body" in shown.text) == (400, True)
    assert name in [field.get("value") for field in shown.all("input")]
    assert name not in site.store.catalog.models


def test_an_upload_with_a_field_that_the_form_does_not_have_is_refused(
    site: Any, name: str, models: list[bytes]
) -> None:
    refused = submit(site, models[0], name=name, version="1.0.0", stage="Production")
    assert (refused.status_code, "this form has no such field" in refused.text) == (400, True)
    assert name not in site.store.catalog.models


def test_a_taken_label_is_a_conflict_and_the_very_same_again_is_shown(
    site: Any, name: str, models: list[bytes]
) -> None:
    for content, status in ((models[0], 303), (models[0], 303), (models[1], 409)):
        assert submit(site, content, name=name, version="1.0.0").status_code == status


def test_a_read_only_instance_offers_no_change(
    make_web: Callable[..., Any], tmp_path: Path, site: Any, hybrid: str, models: list[bytes]
) -> None:
    site.store.database.vacuum_into(tmp_path / "mmserver.db")
    reading = make_web(tmp_path, read_only=True)
    for path in PAGES[1:]:
        shown = page(reading, path)
        assert not [form for form in shown.all("form") if form["method"] == "post"], path
        assert "promote…" not in shown.text
    assert submit(reading, models[0], name="n", version="1.0.0").status_code == 403
    assert "Register a version" not in page(reading, "/ui/").text
    reading.app.extensions[MODEL_READER_KEY].close()


def test_a_server_without_models_says_how_to_register_one(make_web: Callable[..., Any], tmp_path: Path) -> None:
    assert "mmserver registry register NAME VERSION FILE" in page(make_web(tmp_path), "/ui/").text
