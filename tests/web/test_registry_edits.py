"""Forms that change what is said of a version, and that forget one."""

import io
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from page_reading import Page, page

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.storage.audit import list_audit

ROOT = "/api/ml/registry/models"
OURS = {"Sec-Fetch-Site": "same-origin"}
ODD = "</textarea><script>alert(1)</script>\"'& ☃ 价格"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def content(xgboost_text: Callable[[int, int], bytes]) -> bytes:
    """A regressor of three inputs."""
    return xgboost_text(3, 0)


@pytest.fixture(scope="module")
def site(make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tests are told apart by their models' names."""
    return make_web(tmp_path_factory.mktemp("registry-edits"))


@pytest.fixture
def name() -> str:
    """A model's name that no other test has."""
    return f"edited-{next(_numbers)}"


def register(site: Any, name: str, version: str, content: bytes, **fields: Any) -> None:
    data = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in fields.items()
    }
    upload = {**data, "name": name, "version": version, "file": (io.BytesIO(content), "model.json")}
    response = site.client.post(ROOT, data=upload, content_type="multipart/form-data")
    assert response.status_code == 201, response.text


def fields_of(shown: Page, site_text: str) -> dict[str, str]:
    """What a browser sends for the form as it was shown: hidden fields, and what stands in the text areas."""
    from html import unescape
    from re import S, findall

    areas = findall(r'<textarea id="[^"]+" name="([^"]+)"[^>]*>(.*?)</textarea>', site_text, S)
    hidden = {field["name"]: field["value"] for field in shown.all("input") if field["type"] == "hidden"}
    return {**hidden, **{name: unescape(text).replace("\n", "\r\n") for name, text in areas}}


def edit(site: Any, path: str, **typed: str) -> Any:
    """The form is opened, some fields are typed anew, and it is sent."""
    text = site.client.get(path).text
    return site.client.post(path, data={**fields_of(Page(text), text), **typed}, headers=OURS)


def item(site: Any, name: str, version: str) -> Any:
    return site.json(f"{ROOT}/{name}/{version}")


def actions(site: Any, name: str) -> list[str]:
    with site.store.database.read() as connection:
        return [entry.action for entry in reversed(list_audit(connection, 1000)) if entry.target == name]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_what_is_said_of_a_version_is_changed_added_and_taken_out(site: Any, name: str, content: bytes) -> None:
    register(site, name, "1.0.0", content, metrics={"ic": 0.03, "gone": 1}, tags={"desk": "fx", "old": ""})
    path = f"/ui/models/{name}/versions/1.0.0/edit"
    done = edit(
        site, path, description="two\r\nlines \u2603\r\n", metrics='{"ic": 0.04, "sharpe": 2}', tags='{"desk": "价格"}'
    )
    assert (done.status_code, done.headers["Location"]) == (303, f"/ui/models/{name}/versions/1.0.0")
    found = item(site, name, "1.0.0")
    assert found["description"] == "two\nlines ☃"
    assert found["metrics"] == {"ic": 0.04, "sharpe": 2}
    assert found["tags"] == {"desk": "价格"}
    assert actions(site, name)[-2:] == ["version.measured", "version.described"]


def test_a_form_that_is_saved_as_it_was_shown_changes_nothing(site: Any, name: str, content: bytes) -> None:
    said = {"metrics": {ODD: 0.1 + 0.2, "n": 2**53 + 1}, "tags": {ODD: f"\n{ODD}\n"}, "description": f"{ODD}\n\n{ODD}"}
    register(site, name, "1.0.0", content, **said)
    before = item(site, name, "1.0.0")
    assert edit(site, f"/ui/models/{name}/versions/1.0.0/edit").status_code == 303
    assert item(site, name, "1.0.0") == before
    assert actions(site, name) == ["version.registered"]


@pytest.mark.parametrize(
    ("typed", "place"),
    [
        pytest.param({"metrics": "ic=3"}, "metrics", id="no JSON"),
        pytest.param({"metrics": '{"ic": "high"}'}, "metrics", id="no number"),
        pytest.param({"metrics": '{"ic": NaN}'}, "metrics", id="not finite"),
        pytest.param({"metrics": '{"ic": 1, "ic": 2}'}, "metrics", id="twice"),
        pytest.param({"tags": '{"desk": 3}'}, "tags", id="a tag that is no text"),
        pytest.param({"tags": "[1]"}, "tags", id="no object"),
        pytest.param({"description": "x" * 20_001}, "description", id="too long"),
    ],
)
def test_what_does_not_fit_changes_nothing_and_is_shown_again_as_it_was_typed(
    site: Any, name: str, content: bytes, typed: dict[str, str], place: str
) -> None:
    register(site, name, "1.0.0", content, metrics={"ic": 0.03}, tags={"desk": "fx"})
    before = item(site, name, "1.0.0")
    path = f"/ui/models/{name}/versions/1.0.0/edit"
    refused = edit(site, path, **{"description": "kept as typed", "tags": "{}", **typed})
    shown = Page(refused.text)
    assert (refused.status_code, refused.mimetype, shown.open) == (400, "text/html", [])
    assert "Nothing was changed." in shown.text
    assert [area["name"] for area in shown.all("textarea") if area.get("aria-invalid")] == [place]
    again = fields_of(shown, refused.text)
    assert {field: again[field] for field in typed} == typed
    assert item(site, name, "1.0.0") == before


def test_what_somebody_else_said_meanwhile_is_shown_and_not_overwritten_unseen(
    site: Any, name: str, content: bytes
) -> None:
    register(site, name, "1.0.0", content, tags={"desk": "fx"})
    path = f"/ui/models/{name}/versions/1.0.0/edit"
    text = site.client.get(path).text
    mine = {**fields_of(Page(text), text), "tags": '{"desk": "mine"}'}
    assert site.client.patch(f"{ROOT}/{name}/1.0.0", json={"tags": {"desk": "theirs"}}).status_code == 200
    refused = site.client.post(path, data=mine, headers=OURS)
    assert refused.status_code == 412
    assert "somebody else changed it meanwhile" in refused.text
    assert "theirs" in Page(refused.text).text
    assert item(site, name, "1.0.0")["tags"] == {"desk": "theirs"}
    again = fields_of(Page(refused.text), refused.text)
    assert again["tags"] == '{"desk": "mine"}'
    assert site.client.post(path, data=again, headers=OURS).status_code == 303
    assert item(site, name, "1.0.0")["tags"] == {"desk": "mine"}


def test_what_is_said_of_a_large_version_can_be_edited(site: Any, name: str, content: bytes) -> None:
    tags = {f"{number:04}": "é" * 40 for number in range(2500)}
    register(site, name, "1.0.0", content, tags=tags)
    assert edit(site, f"/ui/models/{name}/versions/1.0.0/edit", metrics='{"ic": 1}').status_code == 303
    assert (item(site, name, "1.0.0")["metrics"], item(site, name, "1.0.0")["tags"]) == ({"ic": 1}, tags)


# --- forgetting -------------------------------------------------------------------------------------------------------


def test_a_version_is_forgotten_after_asking_and_the_model_with_its_last_one(
    site: Any, name: str, content: bytes
) -> None:
    for version in ("1.0.0", "1.1.0+a"):
        register(site, name, version, content)
    path = f"/ui/models/{name}/versions/1.1.0%2Ba/delete"
    shown = page(site, path)
    assert "Delete 1.1.0+a for good" in shown.text
    assert "another version takes its place at once" in shown.text
    done = site.client.post(path, headers=OURS)
    assert (done.status_code, done.headers["Location"]) == (303, f"/ui/models/{name}")
    assert [one["version"] for one in site.json(f"{ROOT}/{name}")["versions"]] == ["1.0.0"]
    last = f"/ui/models/{name}/versions/1.0.0/delete"
    assert f"the model {name} is gone with it" in page(site, last).text
    done = site.client.post(last, headers=OURS)
    assert (done.status_code, done.headers["Location"]) == (303, "/ui/")
    assert site.client.post(last, headers=OURS).status_code == 404
    assert actions(site, name)[-2:] == ["version.removed", "version.removed"]


def test_what_is_in_production_or_another_was_made_of_is_not_forgotten_and_the_page_says_why(
    site: Any, name: str, content: bytes
) -> None:
    register(site, name, "1.0.0", content)
    register(site, name, "1.0.0+form", content, derived_from="1.0.0")
    site.client.post(f"{ROOT}/{name}/1.0.0+form/promote")
    for version, said, why in (
        ("1.0.0", "versions are there that were made of it: 1.0.0+form", "1.0.0+form was made of"),
        ("1.0.0%2Bform", "What is in production cannot be deleted", "in production"),
    ):
        path = f"/ui/models/{name}/versions/{version}/delete"
        shown = page(site, path)
        assert said in shown.text
        assert shown.all("form") == []
        refused = site.client.post(path, headers=OURS)
        assert (refused.status_code, refused.mimetype, why in refused.text) == (409, "text/html", True)
    assert len(site.json(f"{ROOT}/{name}")["versions"]) == 2


def test_only_what_is_named_by_its_label_is_forgotten(site: Any, name: str, content: bytes) -> None:
    register(site, name, "1.0.0", content)
    assert "Delete 1.0.0 for good" in page(site, f"/ui/models/{name}/versions/latest/delete").text
    for reference in ("latest", "LATEST"):
        assert site.client.post(f"/ui/models/{name}/versions/{reference}/delete", headers=OURS).status_code == 400
    assert item(site, name, "1.0.0")["version"] == "1.0.0"


# --- all forms --------------------------------------------------------------------------------------------------------

FORMS = {
    "edit": {"description": "x", "metrics": "", "tags": ""},
    "delete": {},
    "stage": {"stage": "Production"},
    "../../production/rollback": {"from": "1.0.0"},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {}], ids=str)
def test_another_site_s_form_changes_nothing(
    site: Any, name: str, content: bytes, form: str, headers: dict[str, str]
) -> None:
    register(site, name, "1.0.0", content)
    path = f"/ui/models/{name}/" + (form.removeprefix("../../") if ".." in form else f"versions/1.0.0/{form}")
    refused = site.client.post(path, data=FORMS[form], headers=headers)
    assert (refused.status_code, "cross_site" in refused.text) == (403, True)
    assert actions(site, name) == ["version.registered"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("extra", [{"stages": "Production"}, {"<b>": ""}], ids=str)
def test_a_form_with_a_field_that_it_does_not_have_is_refused_and_changes_nothing(
    site: Any, name: str, content: bytes, form: str, extra: dict[str, str]
) -> None:
    register(site, name, "1.0.0", content)
    path = f"/ui/models/{name}/" + (form.removeprefix("../../") if ".." in form else f"versions/1.0.0/{form}")
    refused = site.client.post(path, data={**FORMS[form], **extra}, headers=OURS)
    assert (refused.status_code, "this form has no such field" in refused.text) == (400, True)
    assert "<b>" not in refused.text
    assert actions(site, name) == ["version.registered"]


def test_a_field_that_comes_twice_or_as_a_file_is_refused(site: Any, name: str, content: bytes) -> None:
    register(site, name, "1.0.0", content)
    path = f"/ui/models/{name}/versions/1.0.0/stage"
    twice = site.client.post(path, data={"stage": ["Staging", "Production"]}, headers=OURS)
    assert (twice.status_code, "given twice" in twice.text) == (400, True)
    file = site.client.post(path, data={"stage": "Staging", "f": (io.BytesIO(b"x"), "f")}, headers=OURS)
    assert (file.status_code, "takes no file" in file.text) == (400, True)
    assert item(site, name, "1.0.0")["stage"] == "None"


def test_a_watched_model_s_version_is_neither_edited_nor_deleted(
    site: Any, name: str, group_writer: Callable[..., None]
) -> None:
    group_writer(site.directory / name, "BTCUSDT_ret_1h", seed=1)
    label = register_model(site.store, name, str(site.directory / name), Actor("test")).serving.label
    for form in ("edit", "delete"):
        path = f"/ui/models/{name}/versions/{label}/{form}"
        assert (site.client.get(path).status_code, site.client.post(path, headers=OURS).status_code) == (409, 409)
