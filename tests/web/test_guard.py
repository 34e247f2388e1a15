"""Every route, asked with every kind of key, through the whole WSGI application."""

import base64
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog import registering
from mmserver.catalog.catalog import Actor
from mmserver.errors import PluginInvalid
from mmserver.security.key_store import KeyPlan, create_key, revoke_key
from mmserver.security.keys import parts_from_key
from mmserver.security.scopes import IN_VIEW, SCOPES
from mmserver.storage.audit import list_audit
from mmserver.web.api_description.operations import OPEN_RULES as DESCRIBED_AS_OPEN
from mmserver.web.current import ACCESS_KEY, QUICK_KEY, REFUSALS_KEY
from mmserver.web.guard import NEEDS_KEY

NOW = datetime.now(UTC)
OPEN_RULES = {
    "/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready", "/favicon.svg", "/static/<digest>/<name>",
}  # fmt: skip
PLUGIN = """
import flask
from mmserver import hookimpl, needs

blueprint = flask.Blueprint("mine", __name__)

@blueprint.get("/mine")
@needs("read")
def get_mine():
    return flask.Response("mine")

@blueprint.post("/mine/<model_name>")
@needs("manage", "model_name")
def post_mine(model_name):
    return flask.Response(model_name)

@hookimpl
def mmserver_blueprints():
    return [blueprint]
"""
PREDICT = {"symbol": "BTCUSDT", "model_name": "alpha", "features": [0.1, 0.2, 0.3]}


@dataclass(frozen=True)
class Locked:
    """An application that asks for keys, and keys of every kind."""

    web: Any
    keys: Mapping[str, str]

    def ask(self, method: str, path: str, key: str | None, **options: Any) -> Any:
        """The answer to somebody with this kind of key, or none."""
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers["Authorization"] = f"Bearer {self.keys[key]}"
        return self.web.client.open(path, method=method, headers=headers, **options)


def key_of(database: Any, **plan: Any) -> str:
    """A new key's text."""
    return create_key(database, KeyPlan(label="tester", **plan), "test", NOW).text


@pytest.fixture(scope="module")
def locked(
    make_web: Callable[..., Any], group_writer: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Locked:
    """Models `alpha` and `beta`, a plugin's routes, and the keys."""
    directory = tmp_path_factory.mktemp("locked")
    (directory / "plugins").mkdir()
    (directory / "plugins" / "mine.py").write_text(PLUGIN)
    web = make_web(directory, plugins_dir=directory / "plugins")
    for name, group_key in (("alpha", "BTCUSDT_ret_1h"), ("beta", "ETHUSDT_ret_1h")):
        group_writer(directory / name, group_key, seed=1)
        registering.register_model(web.store, name, str(directory / name), Actor("test"))
    database = web.store.database
    keys = {scope: key_of(database, scopes=(scope,)) for scope in SCOPES}
    keys["revoked"] = key_of(database, scopes=("admin",))
    revoke_key(database, parts_from_key(keys["revoked"]).key_id, "test", NOW)
    ended = KeyPlan(label="ended", scopes=("admin",), expires_at=NOW - timedelta(hours=1))
    keys["expired"] = create_key(database, ended, "test", NOW - timedelta(hours=2)).text
    keys["of another model"] = key_of(database, scopes=("admin",), models=("nobodys-*",), venues=("nobodys-*",))
    keys["of alpha"] = key_of(database, scopes=("read", "predict", "manage"), models=("alpha",))
    keys["mistyped"] = keys["admin"][:-1] + ("0" if keys["admin"][-1] != "0" else "1")
    web.app.extensions[ACCESS_KEY].follow()
    return Locked(web, keys)


def routes(web: Any) -> list[tuple[str, str, str]]:
    """Method, an address and the endpoint of every rule."""
    found = []
    for rule in web.app.url_map.iter_rules():
        values = {name: 1 if name.endswith("_id") and "int:" in rule.rule else "nothing" for name in rule.arguments}
        with web.app.test_request_context():
            _, path = rule.build(values) or ("", "")
        found += [(method, path, rule.endpoint) for method in sorted(rule.methods - {"OPTIONS"})]
    return sorted(found)


def code_of(response: Any) -> str:
    """The error's code, wherever the protocol has it."""
    if response.is_json:
        said = response.get_json()
        return str(said.get("code")) if isinstance(said, dict) else ""
    return next((code for code in ("scope_missing", "outside_key_limits", "key_refused") if code in response.text), "")


def test_only_these_routes_are_open(locked: Locked) -> None:
    needed = locked.web.app.extensions[NEEDS_KEY]
    rules = locked.web.app.url_map.iter_rules()
    assert {rule.rule for rule in rules if needed[rule.endpoint].permission == "open"} == OPEN_RULES


def test_the_description_of_the_api_knows_which_are_open(locked: Locked) -> None:
    assert OPEN_RULES - {"/favicon.svg", "/static/<digest>/<name>"} == DESCRIBED_AS_OPEN


def test_every_change_needs_more_than_reading(locked: Locked) -> None:
    needed = locked.web.app.extensions[NEEDS_KEY]
    for rule in locked.web.app.url_map.iter_rules():
        permission = needed[rule.endpoint].permission
        if rule.methods & {"POST", "PUT", "PATCH", "DELETE"} and rule.rule != "/v2/repository/index":
            assert permission in ("predict", "manage", "admin"), rule.rule
        else:
            assert permission in ("open", "read", "admin"), rule.rule


@pytest.mark.parametrize("key", [None, "revoked", "expired", "mistyped"])
def test_no_route_but_the_open_ones_answers_without_a_valid_key(locked: Locked, key: str | None) -> None:
    needed = locked.web.app.extensions[NEEDS_KEY]
    for method, path, endpoint in routes(locked.web):
        response = locked.ask(method, path, key)
        if needed[endpoint].permission == "open":
            assert response.status_code not in (401, 403), (method, path)
        else:
            assert response.status_code == 401, (method, path)
            assert response.headers.getlist("WWW-Authenticate") == [
                'Basic realm="mmserver", charset="UTF-8"', 'Bearer realm="mmserver"',
            ]  # fmt: skip


@pytest.mark.parametrize("scope", SCOPES)
def test_every_route_answers_those_with_its_scope_and_no_others(locked: Locked, scope: str) -> None:
    needed = locked.web.app.extensions[NEEDS_KEY]
    for method, path, endpoint in routes(locked.web):
        response = locked.ask(method, path, scope, headers={"Sec-Fetch-Site": "same-origin"})
        permission = needed[endpoint].permission
        if permission in ("open", scope) or scope == "admin":
            assert response.status_code not in (401, 403), (method, path, response.text)
        else:
            assert response.status_code == 403, (method, path)
            assert method == "HEAD" or code_of(response) == "scope_missing", (method, path)


def test_a_limited_key_opens_no_route_that_is_not_about_its_models(locked: Locked) -> None:
    needed = locked.web.app.extensions[NEEDS_KEY]
    in_view = set()
    for method, path, endpoint in routes(locked.web):
        response = locked.ask(method, path, "of another model", headers={"Sec-Fetch-Site": "same-origin"})
        if needed[endpoint].permission == "open":
            assert response.status_code not in (401, 403), (method, path)
        elif needed[endpoint].limited_by == IN_VIEW:
            in_view.add(path)
        else:
            assert response.status_code == 403, (method, path)
            assert method == "HEAD" or code_of(response) == "outside_key_limits", (method, path)
    assert in_view == {
        "/predict", "/predict/batch", "/api/ml/predict", "/api/ml/predict/batch", "/invocations", "/api/models",
        "/v2/models",
    }  # fmt: skip


def test_a_limited_key_sees_and_asks_its_own_model_only(locked: Locked) -> None:
    ask = locked.ask
    assert [item["model_name"] for item in ask("GET", "/api/models", "of alpha").json["items"]] == ["alpha"]
    assert ask("GET", "/v2/models", "of alpha").json == {"models": ["alpha.BTCUSDT"]}
    table = {"dataframe_split": {"columns": ["mom_1h", "vol_1d", "<script>alert(1)</script>"], "data": [[1, 2, 3]]}}
    tensor = {"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
    for name, symbol, expected in (("alpha", "BTCUSDT", 200), ("beta", "ETHUSDT", 403), ("gone", "BTCUSDT", 403)):
        for method, path, body in (
            ("GET", f"/api/models/{name}", None),
            ("GET", f"/api/models/{name}/model/{symbol}", None),
            ("GET", f"/ui/models/{name}", None),
            ("GET", f"/v2/models/{name}", None),
            ("GET", f"/v2/models/{name}.{symbol}", None),
            ("POST", f"/v2/models/{name}/infer", tensor),
            ("POST", f"/v2/models/{name}.{symbol}/infer", tensor),
            ("POST", f"/models/{name}/invocations", table),
            ("POST", f"/models/{name}@latest/invocations", table),
            ("POST", "/predict", {**PREDICT, "model_name": name, "symbol": symbol}),
            ("POST", "/api/ml/predict", {**PREDICT, "model_name": name, "symbol": symbol}),
            ("POST", f"/api/models/{name}/refresh", None),
        ):
            for _ in range(2):  # the second may be answered from memory
                response = ask(method, path, "of alpha", **({} if body is None else {"json": body}))
                assert response.status_code == expected, (method, path, response.text)


def test_a_limited_key_that_names_no_model_gets_its_own_or_nothing(locked: Locked) -> None:
    for symbol, status in (("BTCUSDT", 200), ("ETHUSDT", 403), ("NOSUCH", 403)):
        body = {"symbol": symbol, "features": [0.1, 0.2, 0.3]}
        for _ in range(2):
            assert locked.ask("POST", "/predict", "of alpha", json=body).status_code == status
    batch = {
        "requests": [
            PREDICT,
            {**PREDICT, "symbol": "ETHUSDT", "model_name": "beta"},
            {"symbol": "ETHUSDT", "features": [1, 2, 3]},
        ]
    }
    items = locked.ask("POST", "/predict/batch", "of alpha", json=batch).json["predictions"]
    assert "prediction" in items[0]
    assert [item["error"]["code"] for item in items[1:]] == ["outside_key_limits"] * 2


def test_quick_answers_go_to_known_keys_for_this_and_to_nobody_else(locked: Locked) -> None:
    quick = locked.web.app.extensions[QUICK_KEY]()
    assert locked.ask("POST", "/predict", "predict", json=PREDICT).status_code == 200
    body = json.dumps(PREDICT).encode()

    def answers(key: str | None, name: str = "AUTHORIZATION", path: str = "/predict", content: bytes = body) -> bool:
        headers = {"CONTENT_TYPE": "application/json"}
        if key is not None:
            headers[name] = locked.keys[key] if name == "X_API_KEY" else f"Bearer {locked.keys[key]}"
        return quick.answer(path, headers, content, "mine") is not None

    assert answers("predict")
    assert answers("predict", "X_API_KEY")
    for key in (None, "read", "manage", "revoked", "expired", "mistyped", "of another model"):
        locked.ask("POST", "/predict", key, json=PREDICT)
        assert not answers(key), key
        assert locked.ask("POST", "/predict", key, json=PREDICT).status_code in (401, 403)
    locked.ask("POST", "/predict", "of alpha", json=PREDICT)
    assert answers("of alpha")
    assert not answers("of alpha", content=json.dumps({**PREDICT, "model_name": "beta", "symbol": "ETHUSDT"}).encode())


def test_payloads_from_memory_go_to_known_keys_only(locked: Locked) -> None:
    path = "/api/models/alpha/model/BTCUSDT"
    for _ in range(2):
        assert locked.ask("GET", path, "read").status_code == 200
        for key, status in (
            (None, 401),
            ("revoked", 401),
            ("expired", 401),
            ("predict", 403),
            ("of another model", 403),
        ):
            assert locked.ask("GET", path, key).status_code == status, key


def test_a_key_that_is_revoked_is_refused_where_it_was_just_known(locked: Locked) -> None:
    database, access = locked.web.store.database, locked.web.app.extensions[ACCESS_KEY]
    text = key_of(database, scopes=("read", "predict"))
    access.follow()
    headers = {"Authorization": f"Bearer {text}"}
    for _ in range(2):
        assert locked.web.client.post("/predict", json=PREDICT, headers=headers).status_code == 200
        assert locked.web.client.get("/api/models/alpha/model/BTCUSDT", headers=headers).status_code == 200
    revoke_key(database, parts_from_key(text).key_id, "test", NOW)
    access.follow()
    for _ in range(2):
        assert locked.web.client.post("/predict", json=PREDICT, headers=headers).status_code == 401
        assert locked.web.client.get("/api/models/alpha/model/BTCUSDT", headers=headers).status_code == 401


def test_the_audit_trail_names_the_key(locked: Locked) -> None:
    assert locked.ask("POST", "/api/models/alpha/refresh", "manage").status_code == 200
    locked.ask("DELETE", "/api/models/beta", "of alpha")
    (locked.web.directory / "gamma").mkdir(exist_ok=True)
    with locked.web.store.database.read() as connection:
        n_before = len(list_audit(connection, 1000))
    body = {"model_name": "beta2", "root_path": str(locked.web.directory / "beta")}
    assert locked.ask("POST", "/api/models", "manage", json=body).status_code == 201
    with locked.web.store.database.read() as connection:
        entries = list_audit(connection, 1000)
    assert len(entries) == n_before + 1
    assert entries[0].actor == f"key:{parts_from_key(locked.keys['manage']).key_id} (tester)"
    assert locked.ask("DELETE", "/api/models/beta2", "manage").status_code == 204


def test_unknown_revoked_and_expired_are_told_apart_by_nobody(locked: Locked) -> None:
    bodies = set()
    for key in ("revoked", "expired"):
        said = locked.ask("GET", "/api/models", key, headers={"X-Request-ID": "same"}).get_data()
        bodies.add(said)
    assert len(bodies) == 1
    mistyped = locked.ask("GET", "/api/models", "mistyped").json
    assert mistyped["code"] == "key_malformed"
    assert mistyped["detail"] == json.loads(bodies.pop())["detail"]


def test_a_browser_logs_in_with_the_key_as_the_password(locked: Locked) -> None:
    page = locked.web.client.get("/ui/", headers={"Accept": "text/html"})
    assert page.status_code == 401
    assert page.content_type.startswith("text/html")
    basic = base64.b64encode(f"me:{locked.keys['read']}".encode()).decode()
    assert locked.web.client.get("/ui/", headers={"Authorization": f"Basic {basic}"}).status_code == 200


def test_addresses_that_do_not_exist_need_no_key(locked: Locked) -> None:
    assert locked.ask("GET", "/no/such/thing", None).status_code == 404
    assert locked.ask("PUT", "/predict", None).status_code == 405


@pytest.mark.parametrize(
    "path", ["/api/models?api_key={}", "/api/models?x=1&%6bey={}", "/api/models/{}", "/ui/?q={}", "/nothing/{}"]
)
def test_a_key_in_an_address_is_refused_and_not_repeated(
    locked: Locked, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = locked.keys["admin"]
    with caplog.at_level(logging.DEBUG):
        response = locked.ask("GET", path.format(text), "admin")
    assert response.status_code == 400
    assert "key_in_address" in response.text
    assert parts_from_key(text).secret not in response.text + str(response.headers) + caplog.text


def test_no_answer_log_or_page_has_a_secret(locked: Locked, caplog: pytest.LogCaptureFixture) -> None:
    secrets = [parts_from_key(text).secret for name, text in locked.keys.items() if name != "mistyped"]
    with caplog.at_level(logging.DEBUG):
        said = []
        for key in ("admin", "read", "revoked", "mistyped"):
            for method, path, _ in routes(locked.web):
                sent = {
                    "X-Request-ID": locked.keys[key],
                    "X-API-Key": locked.keys[key],
                    "Sec-Fetch-Site": "same-origin",
                }
                response = locked.web.client.open(path, method=method, headers=sent, json={"model_name": "x"})
                said.append(response.get_data(as_text=True) + str(response.headers))
    text = "".join(said) + caplog.text
    assert not [secret for secret in secrets if secret in text]


def test_readiness_tells_the_names_of_models_to_those_who_may_read(locked: Locked) -> None:
    assert "checks" in locked.ask("GET", "/readyz", "read").json
    for key in (None, "predict", "revoked", "of alpha"):
        answer = locked.ask("GET", "/readyz", key)
        assert answer.status_code == 200
        assert set(answer.json) == {"status"}


def test_a_plugins_route_without_a_permission_stops_the_start(make_web: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(PLUGIN.replace('@needs("read")\n', ""))
    with pytest.raises(PluginInvalid, match=r"/mine .*mmserver\.needs"):
        make_web(tmp_path / "data", plugins_dir=tmp_path / "plugins")


def test_public_reads_let_everybody_read(make_web: Callable[..., Any], tmp_path: Path) -> None:
    web = make_web(tmp_path, public_reads=True, auth="required")
    assert web.client.get("/api/models").status_code == 200
    refused = web.client.post("/predict", json=PREDICT)
    assert (refused.status_code, refused.json["code"]) == (401, "no_key_exists")


def test_keys_in_the_trail_and_the_log_are_of_no_use(locked: Locked) -> None:
    stored = b"".join(path.read_bytes() for path in locked.web.directory.glob("mmserver.db*"))
    for text in locked.keys.values():
        assert parts_of(text) not in stored


def parts_of(text: str) -> bytes:
    """The secret in a key, mistyped or not."""
    return text[14:57].encode()


def test_the_trail_names_who_was_refused_and_keeps_no_key_from_an_address(
    make_web: Callable[..., Any], tmp_path: Path
) -> None:
    web = make_web(tmp_path)
    text = key_of(web.store.database, scopes=("read",))
    web.app.extensions[ACCESS_KEY].follow()
    headers = {"Authorization": f"Bearer {text}"}
    assert web.client.delete("/api/models/alpha", headers=headers).status_code == 403
    assert web.client.delete(f"/api/models/{text}", headers=headers).status_code == 400
    web.app.extensions[REFUSALS_KEY].close()
    with web.store.database.read() as connection:
        entries = list_audit(connection, 100)
    parts = parts_from_key(text)
    assert not [entry for entry in entries if parts.secret in repr(entry)]
    told = {entry.target: (entry.actor, entry.detail["code"]) for entry in entries if entry.action == "refused"}
    assert told["DELETE /api/models/alpha"] == (f"key:{parts.key_id} (tester)", "scope_missing")
    assert told[f"DELETE /api/models/mm_{parts.key_id}_[redacted]"][1] == "key_in_address"
