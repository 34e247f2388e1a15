"""The audit over HTTP and on its page, and what was refused."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from mmserver.storage.audit import REFUSED, AuditEntry, AuditFilter, all_audit, record_audit_alone, verify_audit
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import create_database
from mmserver.web.current import REFUSALS_KEY
from mmserver.web.refusals import KEPT_AT_MOST, KEPT_OF_ACTOR, NAMED_ACTORS, OTHERS, WINDOW_S, Attempt, Refusals

HOSTILE_NAME = "m\n2026-11-20 fake line \x1b[31m\u202egnp.exe<script>"


@pytest.fixture
def web(make_web: Callable[..., Any], tmp_path: Path) -> Any:
    return make_web(tmp_path / "data")


def record(web: Any, target: str, actor: str = "key:a", action: str = "model.registered", at: str = "14:03:22") -> None:
    record_audit_alone(web.store.database, at=f"2026-11-20T{at}.000000Z", actor=actor, action=action, target=target,
                       detail={"n": 1}, request_id="r1")  # fmt: skip


def refused(web: Any) -> list[AuditEntry]:
    refusals = web.app.extensions.get(REFUSALS_KEY)
    if refusals is not None:
        refusals.write()
    return list(all_audit(web.store.database, AuditFilter(action=REFUSED)))


# --- the list -----------------------------------------------------------------------------------------------------------


def test_entries_come_newest_first_in_pages_that_cursors_join(web: Any) -> None:
    for i in range(5):
        record(web, f"m{i}")
    found, path = [], "/api/ml/audit?limit=2"
    for _ in range(3):
        page = web.json(path)
        found += [item["target"] for item in page["items"]]
        path = f"/api/ml/audit?limit=2&cursor={page['next_cursor']}"
    assert (found, page["next_cursor"]) == (["m4", "m3", "m2", "m1", "m0"], None)
    assert page["items"][0] == {
        "id": 1, "at": "2026-11-20T14:03:22.000000Z", "actor": "key:a", "action": "model.registered", "target": "m0",
        "detail": {"n": 1}, "request_id": "r1", "hash": page["items"][0]["hash"],
    }  # fmt: skip


def test_filters_are_joined(web: Any) -> None:
    record(web, "m0")
    record(web, "m1", actor="key:b", at="14:03:23")
    record(web, "m2", action="venue.set", at="14:03:24")

    def found(query: str) -> list[str]:
        return [item["target"] for item in web.json(f"/api/ml/audit?{query}")["items"]]

    assert found("actor=key:b") == ["m1"]
    assert found("action=model.*") == ["m1", "m0"]
    assert found("target=m2&action=venue.set") == ["m2"]
    assert found("since=2026-11-20T14:03:23Z") == ["m2", "m1"]
    assert found("since=2026-11-20T15:03:23%2B01:00&until=2026-11-20T14:03:24Z") == ["m1"]
    assert found("actor=' OR 1=1 --") == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "cursor=x", "since=yesterday", "until=2026-11-20", "actor=a%00b"]
)
def test_filters_that_cannot_be_are_refused_by_name(web: Any, query: str) -> None:
    response = web.client.get(f"/api/ml/audit?{query}")
    assert response.status_code == 400
    assert response.json["errors"][0]["loc"] == query.partition("=")[0]


def test_the_page_shows_what_clients_named_as_one_line_of_text(web: Any) -> None:
    record(web, HOSTILE_NAME)
    page = web.client.get("/ui/audit").text
    assert r"m\n2026-11-20 fake line \x1b[31m\u202egnp.exe&lt;script&gt;" in page
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_the_page_filters_and_leads_to_older_entries(web: Any) -> None:
    for i in range(101):
        record(web, f"m{i}")
    record(web, "v", action="venue.set")
    page = web.client.get("/ui/audit?action=model.*").text
    assert ">m100<" in page
    assert ">m0<" not in page
    assert ">v<" not in page
    older = page.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    page = web.client.get(f"/ui/audit{older}").text
    assert ">m0<" in page
    assert 'rel="next"' not in page
    assert 'value="model.*"' in page


def test_the_page_takes_times_as_browsers_send_them(web: Any) -> None:
    record(web, "m0")
    record(web, "m1", at="14:03:24")
    page = web.client.get("/ui/audit?since=2026-11-20T14:03:23&until=").text
    assert ">m1<" in page
    assert ">m0<" not in page
    assert web.client.get("/ui/audit?since=nonsense").status_code == 400


def test_every_page_leads_to_the_audit(web: Any) -> None:
    assert '<a href="/ui/audit">Audit</a>' in web.client.get("/ui/").text
    assert 'aria-current="page">Audit</a>' in web.client.get("/ui/audit").text


# --- what was refused ---------------------------------------------------------------------------------------------------


def test_a_refused_change_leaves_who_tried_what_and_why_not_but_not_its_body(web: Any) -> None:
    body = {"model_name": "x", "root_path": 7, "password": "hunter2"}
    response = web.client.post(
        "/api/models?key=hunter2", json=body, headers={"X-Request-ID": "r7", "Authorization": "hunter2"}
    )
    assert response.status_code == 400
    [entry] = refused(web)
    assert (entry.actor, entry.target, entry.request_id) == ("anonymous@127.0.0.1", "POST /api/models", "r7")
    assert entry.detail == {"status": 400, "code": "request_invalid", "field": "root_path"}
    assert verify_audit(web.store.database).reason is None


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        pytest.param("DELETE", "/api/models/nobody", {}, 404, "model_not_found", id="not-found"),
        pytest.param("POST", "/api/models", {"data": "x"}, 415, "unsupported_media_type", id="media-type"),
        pytest.param("PUT", "/api/venues/nowhere/quantiles", {"json": {"pkl_path": "/x"}}, 400, "venue_unknown", id="venue"),
        pytest.param("POST", "/api/models", {"json": {}, "headers": {"Origin": "http://evil"}}, 403, "cross_site",
                     id="another-site"),
        pytest.param("POST", "/ui/register", {"data": {"name": "x"}, "headers": {"Sec-Fetch-Site": "same-origin"}}, 400,
                     "request_invalid", id="form"),
        pytest.param("POST", "/v2/repository/models/nobody/unload", {}, 404, "model_not_found", id="unload"),
    ],
)  # fmt: skip
def test_every_kind_of_refusal_is_kept(
    web: Any, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    assert web.client.open(path, method=method, **options).status_code == status
    [entry] = refused(web)
    assert (entry.target, entry.detail["status"], entry.detail["code"]) == (f"{method} {path}", status, code)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/api/models/nobody", 404, id="a-read"),
        pytest.param("POST", "/no/such/address", 404, id="no-route"),
        pytest.param("POST", "/predict", 400, id="a-prediction"),
        pytest.param("POST", "/v2/models/nobody/infer", 404, id="an-inference"),
    ],
)
def test_what_could_change_nothing_is_not_kept(web: Any, method: str, path: str, status: int) -> None:
    assert web.client.open(path, method=method).status_code == status
    assert refused(web) == []


def test_what_is_forbidden_is_kept_even_of_predictions(web: Any) -> None:
    assert web.client.post("/predict", json={}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert [entry.target for entry in refused(web)] == ["POST /predict"]


def test_a_path_with_line_ends_is_kept_as_one_line(web: Any) -> None:
    web.client.delete("/api/models/a%0Ab%E2%80%AEc%ED%A0%80")
    [entry] = refused(web)
    assert entry.target.startswith(r"DELETE /api/models/a\nb\u202ec")
    assert entry.target.isprintable()


def test_the_answer_does_not_wait_for_the_trail(web: Any) -> None:
    with web.store.database.write():  # whoever has the write lock has it until the answer is there
        assert web.client.delete("/api/models/nobody").status_code == 404
    assert len(refused(web)) == 1


def test_a_read_only_server_answers_and_counts_what_it_cannot_keep(make_web: Callable[..., Any], web: Any) -> None:
    frozen = make_web(web.store.settings.data_dir, read_only=True)
    assert frozen.client.delete("/api/models/nobody").status_code == 403
    assert frozen.app.extensions[REFUSALS_KEY].n_lost == 1


# --- how much is kept ---------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    create_database(tmp_path / "a.db", datetime.now(UTC))
    opened = open_database(tmp_path / "a.db", busy_timeout_ms=50)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(database: Database, clock: Clock) -> Iterator[Refusals]:
    made = Refusals(database, lambda: datetime(2026, 11, 20, tzinfo=UTC), clock)
    yield made
    made.close()


def attempt(actor: str) -> Attempt:
    return Attempt(datetime(2026, 11, 20, tzinfo=UTC), actor, "POST /x", {"code": "c"})


def rows(database: Database, actor: str = "*") -> list[dict[str, Any]]:
    return [entry.detail for entry in all_audit(database, AuditFilter(actor=actor))]


def test_of_one_actor_some_are_kept_and_then_their_number(refusals: Refusals, database: Database, clock: Clock) -> None:
    for _ in range(KEPT_OF_ACTOR + 1234):
        refusals.note(attempt("mallory"))
    refusals.note(attempt("alice"))
    refusals.write()
    assert rows(database, "mallory") == [{"code": "c"}] * KEPT_OF_ACTOR
    assert rows(database, "alice") == [{"code": "c"}]
    clock.now = WINDOW_S
    refusals.write()
    assert rows(database, "mallory")[-1] == {"more": 1234, "within_s": 60}
    refusals.note(attempt("mallory"))
    refusals.write()
    assert rows(database, "mallory")[-1] == {"code": "c"}


def test_an_actor_that_comes_back_later_starts_anew(refusals: Refusals, database: Database, clock: Clock) -> None:
    for _ in range(KEPT_OF_ACTOR):
        refusals.note(attempt("mallory"))
    clock.now = WINDOW_S
    refusals.note(attempt("mallory"))
    refusals.write()
    assert rows(database) == [{"code": "c"}] * (KEPT_OF_ACTOR + 1)


def test_many_actors_fill_neither_the_disk_nor_the_memory(refusals: Refusals, database: Database, clock: Clock) -> None:
    for i in range(5000):
        refusals.note(attempt(f"address {i}"))
    clock.now = WINDOW_S
    refusals.write()
    found = rows(database)
    assert len(found) <= KEPT_AT_MOST + NAMED_ACTORS + 1
    kept = sum("code" in detail for detail in found)
    assert kept + sum(detail.get("more", 0) for detail in found) == 5000
    assert rows(database, OTHERS)[-1]["more"] > 4000


def test_what_could_not_be_written_is_counted_and_said_when_it_can_be(
    refusals: Refusals, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with database.write() as connection:
        head = connection.execute(text("SELECT value FROM meta WHERE key = 'audit_head'")).scalar()
        connection.execute(text("DELETE FROM meta WHERE key = 'audit_head'"))
    for _ in range(3):
        refusals.note(attempt("mallory"))
        refusals.write()
    assert refusals.n_lost == 3
    assert [record.levelname for record in caplog.records if "refused attempts" in record.message] == ["WARNING"]
    with database.write() as connection:
        connection.execute(text("INSERT INTO meta VALUES ('audit_head', :head)"), {"head": head})
    refusals.note(attempt("mallory"))
    refusals.write()
    assert rows(database) == [{"code": "c"}, {"more": 3, "reason": "the trail could not be written"}]


def test_the_thread_writes_by_itself_and_then_ends(refusals: Refusals, database: Database) -> None:
    others = set(threading.enumerate())
    refusals.note(attempt("mallory"))
    [writer] = set(threading.enumerate()) - others
    writer.join()
    assert len(rows(database)) == 1
    refusals.note(attempt("mallory"))
    refusals.close()
    assert len(rows(database)) == 2


def test_what_is_left_is_written_when_it_is_closed(refusals: Refusals, database: Database) -> None:
    for _ in range(KEPT_OF_ACTOR + 2):
        refusals.note(attempt("mallory"))
    refusals.close()
    refusals.note(attempt("too late"))
    assert rows(database)[-1]["more"] == 2
    assert rows(database, "too late") == []


# --- what is done to memory alone ---------------------------------------------------------------------------------------


def test_loading_and_unloading_and_reloading_are_changes_too(changing: Any) -> None:
    name = changing.directory.name
    record_before = verify_audit(changing.store.database).head.last_id
    for path in (f"/v2/repository/models/{name}/unload", f"/v2/repository/models/{name}/load"):
        assert changing.client.post(path, headers={"X-Request-ID": "r9"}).status_code == 200
    assert changing.client.post(f"/api/ml/models/{name}/reload").status_code == 200
    found = [
        entry for entry in all_audit(changing.store.database, AuditFilter(target=name)) if entry.id > record_before
    ]
    assert [entry.action for entry in found] == ["model.unloaded", "model.loaded", "model.reloaded"]
    assert [entry.request_id for entry in found[:2]] == ["r9", "r9"]
    assert found[2].detail["loaded"] == 1
