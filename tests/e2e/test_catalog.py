"""The contract's catalog, call by call, as a client of a running server sees it."""

import re
import select
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

RFC_3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
FACTORS = ["mom_1h", "vol_1d", "spread", "rsi_14", "gap"]


def problem(response: httpx.Response, status: int, code: str) -> Any:
    """The body of an error in the one form that all have."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    body = response.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= set(body)
    assert (body["status"], body["code"]) == (status, code)
    assert body["request_id"] == response.headers["X-Request-ID"]
    return body


def post_model(server: Any, model_name: str, root_path: Path | str) -> httpx.Response:
    response: httpx.Response = server.client.post(
        "/api/models", json={"model_name": model_name, "root_path": str(root_path)}
    )
    return response


def test_a_registered_model_is_answered_listed_and_found(server: Any, artifacts: Any, tmp_path: Path) -> None:
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m")
    response = post_model(server, "listed", tmp_path)
    assert response.status_code == 201
    item = response.json()
    assert {
        "model_name": "listed",
        "root_path": str(tmp_path),
        "symbol_count": 1,
        "group_count": 1,
    }.items() <= item.items()
    assert (item["factor_count"], item["status"], item["error"]) == (5, "ok", None)
    assert RFC_3339_UTC.fullmatch(item["registered_at"])
    assert RFC_3339_UTC.fullmatch(item["refreshed_at"])
    assert re.fullmatch(r"\d{8}_\d{6}.*", item["version"])
    assert item["stages"] == {"production": item["version"]}
    assert item in server.get("/api/models")["items"]


def test_symbols_factors_and_one_symbol_are_as_the_contract_has_them(server: Any, alpha: str) -> None:
    symbols = server.get(f"/api/models/{alpha}/symbols")
    assert [entry["symbol"] for entry in symbols["symbols"]] == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    first = symbols["symbols"][0]
    assert (first["group_key"], first["return_name"]) == ("BTCUSDT_mid_chg_1m", "mid_chg_1m")
    assert (first["dim"], first["has_model"], first["train_samples"]) == (5, True, 300)
    assert first["ic_mean"] == pytest.approx(0.04)
    factors = server.get(f"/api/models/{alpha}/factors")
    assert (factors["symbol_count"], factors["group_count"], factors["factor_count"]) == (3, 3, 5)
    assert factors["factors"] == FACTORS
    symbol = server.get(f"/api/models/{alpha}/symbols/BTC%2FUSDT")
    assert symbol["factors"] == FACTORS
    assert symbol["dim_factors"][4] == {"dim": 4, "factor_name": "gap", "kendall_tau": 0.05}
    assert symbol["info"]["metrics"] == {"ic": 0.031, "rmse": None}
    assert {artifact["role"] for artifact in symbol["artifacts"]} == {"factors", "ic", "info", "model"}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/absent", "model_not_found"),
        ("/api/models/absent/symbols", "model_not_found"),
        ("/api/models/absent/model/BTCUSDT", "model_not_found"),
        ("/api/models/alpha/symbols/DOGEUSDT", "symbol_not_found"),
        ("/api/models/alpha/model/DOGEUSDT", "symbol_not_found"),
        ("/api/models/alpha/symbols?version=19700101_000000", "version_not_found"),
        ("/api/nothing", "not_found"),
    ],
)
def test_what_is_not_there_is_a_problem_with_its_code(server: Any, alpha: str, path: str, code: str) -> None:
    problem(server.client.get(path), 404, code)


def test_a_name_that_is_taken_is_a_conflict(server: Any, alpha: str, tmp_path: Path) -> None:
    problem(post_model(server, alpha, tmp_path), 409, "model_name_taken")


def test_two_groups_of_one_symbol_are_refused_naming_both(server: Any, artifacts: Any, tmp_path: Path) -> None:
    artifacts.write(tmp_path, "SOLUSDT_mid_chg_1m", 0)
    artifacts.write(tmp_path, "SOLUSDT_mid_chg_5m", 1)
    detail = problem(post_model(server, "ambiguous", tmp_path), 400, "symbol_ambiguous")["detail"]
    assert "SOLUSDT_mid_chg_1m and SOLUSDT_mid_chg_5m" in detail
    problem(server.client.get("/api/models/ambiguous"), 404, "model_not_found")


def test_the_real_ambiguous_directory_is_refused_naming_both(server: Any, shared_artifacts: Path) -> None:
    detail = problem(post_model(server, "ambiguous", shared_artifacts / "ambiguous"), 400, "symbol_ambiguous")["detail"]
    assert "SP500_ret_1d and SP500_ret_5d" in detail


def test_a_directory_that_is_not_there_is_refused(server: Any, tmp_path: Path) -> None:
    assert "no such directory" in problem(post_model(server, "x", tmp_path / "no"), 400, "directory_invalid")["detail"]
    (tmp_path / "file").touch()
    problem(post_model(server, "x", tmp_path / "file"), 400, "directory_invalid")


def test_a_directory_with_nothing_usable_is_refused_naming_the_files(server: Any, tmp_path: Path) -> None:
    (tmp_path / "BTCUSDT_mid_chg_1m_model.pkl").write_bytes(b"\x80\x04torn")
    (tmp_path / "ETHUSDT_mid_chg_1m_model.json").write_bytes(b"{")
    detail = problem(post_model(server, "x", tmp_path), 400, "nothing_parseable")["detail"]
    assert "BTCUSDT_mid_chg_1m_model.pkl" in detail
    assert "ETHUSDT_mid_chg_1m_model.json" in detail


@pytest.mark.parametrize("name", ["a/b", "a\nb", "", ".", "..", "ä", "x" * 300], ids=repr)
def test_a_name_that_no_url_could_carry_is_refused(server: Any, artifacts: Any, tmp_path: Path, name: str) -> None:
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m")
    problem(post_model(server, name, tmp_path), 400, "name_invalid")


def test_directories_outside_the_allowed_roots_are_refused(servers: Any, artifacts: Any, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "in", "BTCUSDT_mid_chg_1m")
    artifacts.write(tmp_path / "out", "BTCUSDT_mid_chg_1m")
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    server = servers.start(MMSERVER_ARTIFACT_ROOTS=str(tmp_path / "in"))
    for outside in (tmp_path / "out", tmp_path / "in/../out", tmp_path / "in/link"):
        problem(post_model(server, "x", outside), 400, "outside_roots")
    assert post_model(server, "x", tmp_path / "in").status_code == 201


def test_a_model_lives_through_refresh_diff_rollback_and_removal(
    server: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """With the moments between, at which `as_of` tells which version was served."""
    client = server.client
    neighbour, tmp_path = tmp_path / "neighbour", tmp_path / "life"
    artifacts.write(neighbour, "BTCUSDT_mid_chg_1m", 0)
    server.register("neighbour", neighbour)
    before = datetime.now(UTC) - timedelta(seconds=1)
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m", 0)
    server.register("life", tmp_path)
    first = server.item("life")["version"]
    first_moment = datetime.now(UTC)

    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m", 1, ic=0.03)
    artifacts.write(tmp_path, "ETHUSDT_mid_chg_1m", 2)
    refreshed = client.post("/api/models/life/refresh").json()
    # The watcher may have been quicker.
    second = refreshed["version"]
    assert second != first
    second_moment = datetime.now(UTC)
    if refreshed["changed"]:
        assert refreshed == {
            "model_name": "life", "changed": True, "version": second, "previous_version": first,
            "added": ["ETHUSDT_mid_chg_1m"], "removed": [], "updated": ["BTCUSDT_mid_chg_1m"],
        }  # fmt: skip
    again = client.post("/api/models/life/refresh").json()
    assert (again["changed"], again["version"], again["added"]) == (False, second, [])

    history = server.get("/api/models/life/versions")["items"]
    assert [entry["version"] for entry in history][-1] == first
    assert history[0]["stages"] == ["production"]
    diff = server.get("/api/models/life/diff", params={"from": first, "to": "latest"})
    changes = {group["group_key"]: group for group in diff["groups"]}
    assert changes["ETHUSDT_mid_chg_1m"]["change"] == "added"
    assert changes["BTCUSDT_mid_chg_1m"]["model_changed"]
    assert {shift["column"] for shift in changes["BTCUSDT_mid_chg_1m"]["ic_shifts"]} == {"ic", "kendall_tau"}

    rolled_back = client.post("/api/models/life/rollback", json={"version": first})
    assert (rolled_back.status_code, rolled_back.json()["version"]) == (200, first)
    assert server.get("/api/models/life/model/BTCUSDT")["version"] == first
    assert client.get("/api/models/life/model/BTCUSDT").headers["X-Model-Version"] == first
    problem(client.post("/api/models/life/rollback", json={"version": "nope"}), 404, "version_not_found")
    seen = server.item("neighbour")["version"]
    artifacts.write(neighbour, "BTCUSDT_mid_chg_1m", 1)
    until(lambda: server.item("neighbour")["version"] != seen, "the watcher looked at every model again")
    assert server.item("life")["version"] == first

    def version_at(moment: datetime) -> httpx.Response:
        return client.get("/api/models/life/symbols", params={"as_of": moment.isoformat()})

    problem(version_at(before), 404, "version_not_found")
    assert version_at(first_moment).json()["version"] == first
    assert version_at(second_moment).json()["version"] == second
    assert version_at(datetime.now(UTC)).json()["version"] == first
    payload = server.get("/api/models/life/model/BTCUSDT", params={"as_of": second_moment.isoformat()})
    assert payload["version"] == second

    removed = client.delete("/api/models/life")
    assert (removed.status_code, removed.content) == (204, b"")
    problem(client.delete("/api/models/life"), 404, "model_not_found")
    assert len(list(tmp_path.iterdir())) == 8
    assert server.audit("life")[-2:] == ["model.rolled_back", "model.removed"]


@pytest.mark.parametrize("reference", ["latest", "production"])
def test_a_version_may_be_named_by_its_stage(server: Any, alpha: str, reference: str) -> None:
    found = server.get(f"/api/models/{alpha}/symbols", params={"version": reference})
    assert found["version"] == server.item(alpha)["version"]
    payload = server.get(f"/api/models/{alpha}/model/BTCUSDT", params={"version": reference})
    assert payload["version"] == found["version"]


def test_new_artifacts_are_served_seconds_later_and_deleted_ones_go(
    server: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m", 0)
    artifacts.write(tmp_path, "ETHUSDT_mid_chg_1m", 0)
    artifacts.write(tmp_path, "SOLUSDT_mid_chg_1m", 0)
    server.register("watched", tmp_path)
    url = "/api/models/watched/model/XRPUSDT"
    artifacts.write(tmp_path, "XRPUSDT_mid_chg_1m", 1)
    until(lambda: server.client.get(url).status_code == 200, "the new group is served")
    old_etag = server.client.get(url).headers["ETag"]
    artifacts.write(tmp_path, "XRPUSDT_mid_chg_1m", 2)
    until(lambda: server.client.get(url).headers.get("ETag") != old_etag, "the new model is served")
    for path in tmp_path.glob("XRPUSDT*"):
        path.unlink()
    until(lambda: server.client.get(url).status_code == 404, "the deleted group is gone")
    assert server.item("watched")["symbol_count"] == 3


def test_a_waiting_client_is_answered_when_the_model_changes(server: Any, artifacts: Any, tmp_path: Path) -> None:
    artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m", 0)
    server.register("polled", tmp_path)
    url = "/api/models/polled/model/BTCUSDT"
    etag = server.client.get(url).headers["ETag"]
    with long_polls(server, url, etag, 1) as (waiting,):
        server.see_what_was_sent()
        assert not are_readable([waiting])
        artifacts.write(tmp_path, "BTCUSDT_mid_chg_1m", 1)
        assert server.client.post("/api/models/polled/refresh").status_code == 200
        answer = waiting.recv(65536)  # at the end of its wait it would be told 304
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert etag.strip('W/"').encode() not in answer


def test_a_wait_that_sees_no_change_ends_in_304(server: Any, alpha: str) -> None:
    url = f"/api/models/{alpha}/model/BTCUSDT"
    etag = server.client.get(url).headers["ETag"]
    begun = time.monotonic()
    answer = server.client.get(url, params={"wait": "1", "etag": etag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert time.monotonic() - begun > 0.9


@contextmanager
def long_polls(server: Any, url: str, etag: str, n_clients: int) -> Iterator[list[socket.socket]]:
    """Connections on which it was asked to answer when that content changes, or else after a minute."""
    tag = urllib.parse.quote(etag)
    request = f"GET {url}?wait=60&etag={tag} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as opened:
        clients = [
            opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=120))
            for _ in range(n_clients)
        ]
        for client in clients:
            client.sendall(request)
        yield clients


def are_readable(clients: list[socket.socket]) -> list[socket.socket]:
    """Those that have been answered."""
    return select.select(clients, [], [], 0)[0]


def test_sixty_waiting_clients_block_nobody(
    servers: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    """Others register, read and change models while all sixty wait; then each of the sixty is told of the change."""
    artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m", 0)
    server = servers.start(MMSERVER_THREADS="2")
    server.register("crowded", tmp_path / "artifacts")
    url = "/api/models/crowded/model/BTCUSDT"
    etag = server.client.get(url).headers["ETag"]
    with long_polls(server, url, etag, 60) as clients:
        tasks = Path(f"/proc/{server.process.pid}/task")
        until(lambda: len(list(tasks.iterdir())) > len(clients), "each has a thread that waits for it")
        for _ in range(20):
            assert server.client.get("/api/models/crowded/symbols").status_code == 200
        server.register("uncrowded", tmp_path / "artifacts")
        assert server.client.delete("/api/models/uncrowded").status_code == 204
        assert not are_readable(clients)
        artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m", 1)
        assert server.client.post("/api/models/crowded/refresh").status_code == 200
        assert {client.recv(65536).partition(b"\r\n")[0] for client in clients} == {b"HTTP/1.1 200 OK"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model_name": "x"}',
        b'{"model_name": 1, "root_path": "/"}',
        b'{"model_name": NaN, "root_path": "/"}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_not_the_contracts_is_a_problem(server: Any, body: bytes) -> None:
    response = server.client.post("/api/models", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_that_is_too_large_is_refused(server: Any) -> None:
    response = server.client.post("/api/models", content=b" " * (9 << 20))
    assert response.status_code == 413
