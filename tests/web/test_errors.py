"""Every error becomes one kind of response, and bugs tell nothing."""

import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flask
import pytest

from mmserver import errors
from mmserver.web.errors import errors_markdown, problem_content, problem_from_error, status_of

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"


def all_errors(branch: type[errors.MmserverError] = errors.MmserverError) -> list[type[errors.MmserverError]]:
    return [branch, *(error for child in branch.__subclasses__() for error in all_errors(child))]


@pytest.fixture(scope="module")
def failing(make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An application with routes that fail in every way, as a plugin's may."""
    web = make_web(tmp_path_factory.mktemp("failing"), max_body_bytes=4096)
    raised = {
        "gone": errors.Gone(),
        "forbidden": errors.ReadOnly(),
        "unavailable": errors.StillChanging(root_path="/x"),
        "full": errors.DiskFull(),
        "corrupt": errors.DatabaseCorrupt(path="db", reason="torn"),
    }

    @web.app.route("/api/fail/<kind>")
    def fail(kind: str) -> flask.Response:
        raise raised[kind]

    @web.app.route("/api/bug")
    @web.app.route("/ui/bug")
    @web.app.route("/elsewhere/bug")
    def bug() -> flask.Response:
        raise RuntimeError("the password is hunter2")

    return web


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("gone", 410, "gone"),
        ("forbidden", 403, "read_only"),
        ("unavailable", 503, "still_changing"),
        ("full", 507, "disk_full"),
        ("corrupt", 500, "database_corrupt"),
    ],
)
def test_a_branch_gives_the_status_and_a_leaf_the_code(failing: Any, kind: str, status: int, code: str) -> None:
    response = failing.client.get(f"/api/fail/{kind}", headers={"X-Request-ID": "asked-1"})
    assert response.content_type == "application/problem+json"
    assert list(response.json) == ["type", "title", "status", "detail", "code", "request_id"]
    assert (response.status_code, response.json["status"], response.json["code"]) == (status, status, code)
    assert response.json["type"] == f"urn:mmserver:error:{code}"
    assert response.json["request_id"] == response.headers["X-Request-ID"] == "asked-1"
    assert response.headers.get("Retry-After") == ("5" if kind == "unavailable" else None)


def test_a_broken_state_is_told_without_its_path(failing: Any) -> None:
    assert failing.client.get("/api/fail/corrupt").json["detail"] == "The database file is damaged."


def test_a_bug_tells_its_request_id_and_nothing_else(failing: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = failing.client.get("/api/bug")
    assert (response.status_code, response.json["code"]) == (500, "internal")
    assert "hunter2" not in response.text
    assert "RuntimeError" not in response.text
    assert response.json["request_id"] in caplog.text
    assert "hunter2" in caplog.text


def test_what_is_unavailable_is_logged_once_a_minute_however_often_it_is_asked_for(
    make_web: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web = make_web(tmp_path)

    @web.app.route("/api/models/<name>/unready")
    def unready(name: str) -> flask.Response:
        raise errors.NotReady(what=name)

    with caplog.at_level(logging.DEBUG, "mmserver.web.errors"):
        for number in range(30):
            for name in ("alpha", "beta"):
                headers = {"X-Request-ID": f"{name}-{number}"}
                response = web.client.get(f"/api/models/{name}/unready", headers=headers)
                assert (response.status_code, response.json["detail"]) == (503, f"{name} is not ready yet")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [text for level, text in said if level == "WARNING"] == [
        f"GET /api/models/{name}/unready [{name}-0]: not_ready: {name} is not ready yet" for name in ("alpha", "beta")
    ]
    assert [level for level, _ in said].count("DEBUG") == 58


def test_a_broken_state_is_logged_each_time(failing: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmserver.web.errors"):
        ids = [failing.client.get("/api/fail/corrupt").json["request_id"] for _ in range(3)]
    assert len(caplog.records) == 3
    assert all(one in record.getMessage() for one, record in zip(ids, caplog.records, strict=True))


def test_people_get_a_page_and_programs_get_json(failing: Any) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for path, headers, expected in [
        ("/ui/bug", {}, "text/html"),
        ("/ui/nowhere", {}, "text/html"),
        ("/elsewhere/bug", browser, "text/html"),
        ("/nowhere", browser, "text/html"),
        ("/elsewhere/bug", {}, "application/problem+json"),
        ("/nowhere", {"Accept": "*/*"}, "application/problem+json"),
        ("/api/bug", browser, "application/problem+json"),
        ("/api/nowhere", browser, "application/problem+json"),
    ]:
        response = failing.client.get(path, headers=headers)
        assert response.mimetype == expected, path
        assert "hunter2" not in response.text
        if expected == "text/html":
            assert response.headers["X-Request-ID"] in response.text


def test_errors_of_http_itself_are_problems_too(failing: Any) -> None:
    missing = failing.client.get("/api/nowhere")
    assert (missing.status_code, missing.json["code"]) == (404, "not_found")
    method = failing.client.put("/api/models")
    assert (method.status_code, method.json["code"]) == (405, "method_not_allowed")
    assert set(re.split(r",\s*", method.headers["Allow"])) == {"GET", "HEAD", "OPTIONS", "POST"}
    large = failing.client.post("/api/models", data=b"x" * 5000, content_type="application/json")
    assert (large.status_code, large.json["code"]) == (413, "body_too_large")
    form = failing.client.post("/api/models", data=b"model_name=x", content_type="text/plain")
    assert (form.status_code, form.json["code"]) == (415, "unsupported_media_type")
    packed = failing.client.post(
        "/api/models", data=b"{}", headers={"Content-Encoding": "gzip"}, content_type="application/json"
    )
    assert (packed.status_code, packed.json["code"]) == (415, "unsupported_media_type")


def test_a_refused_body_names_its_places(failing: Any) -> None:
    response = failing.client.post("/api/models", data=b'{"model_name": 7}', content_type="application/json")
    assert (response.status_code, response.json["code"]) == (400, "request_invalid")
    assert [place["loc"] for place in response.json["errors"]] == ["model_name", "root_path"]
    assert all(set(place) == {"loc", "msg"} for place in response.json["errors"])


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":NaN}', b'{"a":1,"a":2}', b"\xff\xfe{\x00}\x00", b"3"])
def test_hostile_json_is_400_and_never_500(web: Any, body: bytes) -> None:
    response = web.client.post("/api/models", data=body, content_type="application/json")
    assert (response.status_code, response.json["code"]) == (400, "request_invalid")


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_X", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("<script>", False), ("", False)],
)
def test_a_sane_request_id_is_kept_and_another_is_replaced(web: Any, given: str, kept: bool) -> None:
    for path in ("/livez", "/api/models", "/api/nowhere", "/ui/"):
        answered = web.client.get(path, headers={"X-Request-ID": given}).headers.getlist("X-Request-ID")
        assert len(answered) == 1
        assert (answered[0] == given) is kept
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answered[0])


def test_every_error_has_a_status_a_code_and_a_meaning() -> None:
    for error in all_errors():
        assert 400 <= status_of(error) <= 599
        assert re.fullmatch(r"[a-z_]+", error.code)
        assert (error.__doc__ or "").partition("\n")[0].endswith("."), error


def test_a_refused_request_survives_the_way_between_processes() -> None:
    error = errors.RequestInvalid(reason="no", errors=[{"loc": "a", "msg": "b"}])
    assert problem_from_error(pickle.loads(pickle.dumps(error))) == problem_from_error(error)


def test_a_detail_without_end_is_shortened() -> None:
    assert len(problem_from_error(errors.NothingParseable(root_path="/", detail="x" * 100_000)).detail) == 4000


def test_the_documented_codes_are_those_that_exist() -> None:
    assert DOCS.read_text() == errors_markdown(), "run: python -m mmserver.web.errors > docs/errors.md"


def test_who_looks_at_pages_is_told_in_a_page_what_the_server_refuses_before_the_application() -> None:
    problem = problem_from_error(errors.UploadTooLarge(what="<b>", setting="max_artifact_bytes", limit_bytes=5))
    content, media_type = problem_content(problem, "/ui/register", "abc")
    assert media_type == "text/html; charset=utf-8"
    text = content.decode()
    assert "&lt;b&gt; is larger than the 5 bytes that max_artifact_bytes allows" in text
    assert "what you typed is still there" in text
    assert "<b>" not in text
    assert problem_content(problem, "/api/ml/registry/models", "abc")[1] == "application/problem+json"
