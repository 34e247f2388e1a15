"""The catalog's endpoints, field by field, as clients of the earlier services know them."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

HOSTILE = "<script>alert(1)</script>"
RFC_3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_models_are_listed_with_the_fields_of_the_contract(web: Any) -> None:
    items = {item["model_name"]: item for item in web.json("/api/models")["items"]}
    item = items["alpha"]
    assert list(item) == [
        "model_name", "root_path", "symbol_count", "group_count", "factor_count", "version", "stages", "registered_at",
        "refreshed_at", "status", "error",
    ]  # fmt: skip
    assert item["root_path"] == str(web.directory / "alpha")
    assert (item["symbol_count"], item["group_count"], item["factor_count"]) == (3, 3, 3)
    assert item["stages"] == {"production": item["version"]}
    assert item["status"] == "degraded"
    assert RFC_3339_UTC.fullmatch(item["registered_at"])
    assert RFC_3339_UTC.fullmatch(item["refreshed_at"])
    assert item.items() <= web.json("/api/models/alpha").items()


def test_symbols_are_listed_with_the_fields_of_the_contract(web: Any) -> None:
    body = web.json("/api/models/alpha/symbols")
    assert list(body) == ["model_name", "version", "symbols"]
    by_symbol = {entry["symbol"]: entry for entry in body["symbols"]}
    assert sorted(by_symbol) == ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    entry = by_symbol["BTCUSDT"]
    assert list(entry) == ["symbol", "group_key", "return_name", "dim", "has_model", "train_samples", "ic_mean"]
    assert entry["group_key"] == "BTCUSDT_ret_1h"
    assert (entry["return_name"], entry["dim"], entry["has_model"], entry["train_samples"]) == ("ret_1h", 3, True, 400)
    assert isinstance(entry["ic_mean"], float)
    assert by_symbol["SOLUSDT"]["has_model"] is False


def test_factors_are_the_deduplicated_union(web: Any) -> None:
    assert web.json("/api/models/alpha/factors") == {
        "model_name": "alpha",
        "symbol_count": 3,
        "group_count": 3,
        "factor_count": 3,
        "factors": ["mom_1h", "vol_1d", HOSTILE],
    }


@pytest.mark.parametrize("symbol", ["BTCUSDT", "btcusdt", "BTC/USDT", "BTC%2FUSDT", "btc-usdt", "BTC_USDT", "BTC:USDT"])
def test_a_symbol_is_found_however_it_is_written(web: Any, symbol: str) -> None:
    assert web.json(f"/api/models/alpha/symbols/{symbol}")["group_key"] == "BTCUSDT_ret_1h"
    assert web.json(f"/api/models/alpha/model/{symbol}")["symbol"] == "BTCUSDT"


def test_a_symbol_has_the_fields_of_the_contract(web: Any) -> None:
    body = web.json("/api/models/alpha/symbols/BTCUSDT")
    assert set(body) >= {
        "model_name", "symbol", "group_key", "return_name", "dim", "factors", "ic_table", "info", "dim_factors",
        "artifacts",
    }  # fmt: skip
    assert body["factors"] == ["mom_1h", "vol_1d", HOSTILE]
    assert [row["factor"] for row in body["ic_table"]] == body["factors"]
    assert body["info"]["metrics"] == {"ic": 0.0312345678, "rmse": None}
    assert [entry["dim"] for entry in body["dim_factors"]] == [0, 1, 2]
    assert set(body["dim_factors"][0]) == {"dim", "factor_name", "kendall_tau"}
    assert body["dim_factors"][1]["kendall_tau"] is None
    assert {artifact["role"] for artifact in body["artifacts"]} == {"factors", "ic", "info", "model"}
    assert all(re.fullmatch("[0-9a-f]{64}", artifact["sha256"]) for artifact in body["artifacts"])


def test_the_payload_has_the_fields_of_the_contract_and_a_model_that_loads(web: Any) -> None:
    import numpy as np
    import xgboost

    body = web.json("/api/models/alpha/model/BTCUSDT")
    assert list(body) == ["model_name", "symbol", "group_key", "version", "payload"]
    payload = body["payload"]
    assert set(payload) == {"model_json", "metadata", "dim_factors"}
    assert {"dim": 3, "train_start": "2024-01-01", "train_end": "2024-12-31", "train_samples": 400}.items() <= payload[
        "metadata"
    ].items()
    served, original = xgboost.Booster(), xgboost.Booster()
    served.load_model(bytearray(payload["model_json"].encode()))
    original.load_model(web.directory / "alpha" / "BTCUSDT_ret_1h_model.json")
    rows = xgboost.DMatrix(np.random.default_rng(7).normal(size=(50, 3)).astype(np.float32))
    assert np.array_equal(served.predict(rows), original.predict(rows))


def test_the_history_has_the_fields_of_the_contract(web: Any) -> None:
    body = web.json("/api/models/alpha/versions")
    assert list(body) == ["items", "next_cursor"]
    (item,) = body["items"]
    assert list(item) == ["version", "created_at", "reason", "added", "removed", "updated", "stages"]
    assert item["added"] == ["BTCUSDT_ret_1h", "ETHUSDT_ret_1h", "SOLUSDT_ret_1h"]
    assert (item["removed"], item["updated"], item["stages"]) == ([], [], ["production"])
    assert body["next_cursor"] is None


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/nope", "model_not_found"),
        ("/api/models/nope/symbols", "model_not_found"),
        ("/api/models/nope/factors", "model_not_found"),
        ("/api/models/nope/versions", "model_not_found"),
        ("/api/models/nope/symbols/BTCUSDT", "model_not_found"),
        ("/api/models/nope/model/BTCUSDT", "model_not_found"),
        ("/api/models/alpha/symbols/DOGEUSDT", "symbol_not_found"),
        ("/api/models/alpha/symbols/BTCUSDT?group_key=ETHUSDT_ret_1h", "symbol_not_found"),
        ("/api/models/alpha/model/DOGEUSDT", "symbol_not_found"),
        ("/api/models/alpha/model/SOLUSDT", "group_has_no_model"),
        ("/api/models/alpha/symbols?version=19990101_000000", "version_not_found"),
        ("/api/models/alpha/symbols?as_of=1999-01-01T00:00:00Z", "version_not_found"),
        ("/api/models/alpha/model/BTCUSDT?as_of=1999-01-01T00:00:00Z", "version_not_found"),
        ("/api/models/alpha/diff?from=latest&to=19990101_000000", "version_not_found"),
        ("/api/venues/bybit-margin/quantiles", "venue_not_found"),
        ("/api/venues/nyse/quantiles", "venue_not_found"),
        ("/api/venues/binance-futures/quantiles/DOGE", "venue_symbol_not_found"),
    ],
)
def test_what_is_not_there_is_404_with_its_code(web: Any, path: str, code: str) -> None:
    response = web.client.get(path)
    assert (response.status_code, response.json["code"]) == (404, code)


def test_a_model_is_registered_refreshed_rolled_back_and_removed(
    web: Any, tmp_path: Path, group_writer: Callable[..., None]
) -> None:
    group_writer(tmp_path, "XRPUSDT_ret_1h", seed=1)
    created = web.client.post("/api/models", json={"model_name": "life", "root_path": str(tmp_path), "extra": 1})
    assert created.status_code == 201, created.text
    assert created.headers["Location"].endswith("/api/models/life")
    first = created.json["version"]
    assert created.json.items() <= web.json("/api/models/life").items()

    taken = web.client.post("/api/models", json={"model_name": "life", "root_path": str(tmp_path)})
    assert (taken.status_code, taken.json["code"]) == (409, "model_name_taken")

    unchanged = web.client.post("/api/models/life/refresh").json
    assert unchanged == {
        "model_name": "life", "changed": False, "version": first, "previous_version": first, "added": [], "removed": [],
        "updated": [],
    }  # fmt: skip
    group_writer(tmp_path, "XRPUSDT_ret_1h", seed=2)
    group_writer(tmp_path, "ADAUSDT_ret_1h", seed=3)
    refreshed = web.client.post("/api/models/life/refresh").json
    assert (refreshed["changed"], refreshed["previous_version"]) == (True, first)
    assert (refreshed["added"], refreshed["removed"], refreshed["updated"]) == (
        ["ADAUSDT_ret_1h"],
        [],
        ["XRPUSDT_ret_1h"],
    )

    diff = web.json(f"/api/models/life/diff?from={first}&to=latest")
    assert (diff["from"], diff["to"]) == (first, refreshed["version"])
    changes = {group["group_key"]: group for group in diff["groups"]}
    assert changes["ADAUSDT_ret_1h"]["change"] == "added"
    updated = changes["XRPUSDT_ret_1h"]
    assert (updated["change"], updated["model_changed"], updated["info_changes"]) == ("updated", True, [])
    shift = next(s for s in updated["ic_shifts"] if (s["factor"], s["column"]) == ("mom_1h", "ic"))
    assert shift["diff"] == pytest.approx(shift["to"] - shift["from"])

    rolled_back = web.client.post("/api/models/life/rollback", json={"version": first})
    assert (rolled_back.status_code, rolled_back.json["version"]) == (200, first)
    assert web.json("/api/models/life/model/XRPUSDT")["version"] == first
    missing = web.client.post("/api/models/life/rollback", json={"version": "nope"})
    assert (missing.status_code, missing.json["code"]) == (404, "version_not_found")

    removed = web.client.delete("/api/models/life")
    assert (removed.status_code, removed.data) == (204, b"")
    assert web.client.delete("/api/models/life").status_code == 404
    assert (tmp_path / "XRPUSDT_ret_1h_model.json").exists()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model_name": "a/b", "root_path": "/"}, "name_invalid"),
        ({"model_name": "a\nb", "root_path": "/"}, "name_invalid"),
        ({"model_name": "x" * 300, "root_path": "/"}, "name_invalid"),
        ({"model_name": "fresh", "root_path": "/no/such/directory"}, "directory_invalid"),
        ({"model_name": "fresh"}, "request_invalid"),
        ({"model_name": 1, "root_path": "/"}, "request_invalid"),
    ],
)
def test_a_registration_that_cannot_be_is_400(web: Any, body: dict[str, Any], code: str) -> None:
    response = web.client.post("/api/models", json=body)
    assert (response.status_code, response.json["code"]) == (400, code)
    assert "fresh" not in {item["model_name"] for item in web.json("/api/models")["items"]}


def test_a_directory_without_artifacts_is_400(web: Any, tmp_path: Path) -> None:
    response = web.client.post("/api/models", json={"model_name": "fresh", "root_path": str(tmp_path)})
    assert (response.status_code, response.json["code"]) == (400, "nothing_parseable")


def test_history_is_paged_by_an_opaque_cursor(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    labels = [changing.json(f"/api/models/{name}")["version"]]
    for seed in (2, 3):
        group_writer(changing.directory, "BTCUSDT_ret_1h", seed=seed)
        labels.append(changing.client.post(f"/api/models/{name}/refresh").json["version"])
    first = changing.json(f"/api/models/{name}/versions?limit=2")
    assert [item["version"] for item in first["items"]] == labels[:0:-1]
    second = changing.json(f"/api/models/{name}/versions?limit=2&cursor={first['next_cursor']}")
    assert [item["version"] for item in second["items"]] == labels[:1]
    assert second["next_cursor"] is None


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "cursor=x", "cursor=YmVmb3JlOi0x", "cursor=%C3%A4"]
)
def test_a_page_that_cannot_be_is_400_and_names_the_parameter(web: Any, query: str) -> None:
    response = web.client.get(f"/api/models/alpha/versions?{query}")
    assert response.status_code == 400
    assert response.json["errors"][0]["loc"] == query.partition("=")[0]


def test_as_of_gives_the_model_as_it_stood(changing: Any, group_writer: Callable[..., None]) -> None:
    name = changing.directory.name
    first = changing.json(f"/api/models/{name}/versions")["items"][0]
    moment = datetime.fromisoformat(first["created_at"])
    group_writer(changing.directory, "BTCUSDT_ret_1h", seed=9)
    second = changing.client.post(f"/api/models/{name}/refresh").json["version"]
    for path in ("symbols", "model/BTCUSDT"):
        then = changing.json(f"/api/models/{name}/{path}", query_string={"as_of": moment.isoformat()})
        assert (then["version"], changing.json(f"/api/models/{name}/{path}")["version"]) == (first["version"], second)


def test_venues_have_the_fields_of_the_contract(web: Any) -> None:
    (item,) = web.json("/api/venues")["items"]
    assert {"venue", "pkl_path", "updated_at"} <= set(item)
    assert item["venue"] == "binance-futures"
    table = web.json("/api/venues/binance-futures/quantiles")
    assert list(table) == ["venue", "symbols"]
    assert table["symbols"]["BTCUSDT"] == {
        "medium_notional_threshold": 250_000.5,
        "large_notional_threshold": 1_000_002.0,
    }
    assert web.json("/api/venues/binance-futures/quantiles/eth/usdt") == {
        "venue": "binance-futures",
        "symbol": "ETHUSDT",
        "medium_notional_threshold": 90_000.0,
        "large_notional_threshold": 360_000.0,
    }


def test_a_venue_is_set_from_a_file_and_keeps_what_it_had(web: Any, tmp_path: Path) -> None:
    known = web.directory / "binance_futures_quantiles.pkl"
    response = web.client.put("/api/venues/binance-futures/quantiles", json={"pkl_path": str(known)})
    assert (response.status_code, response.json) == (200, {"venue": "binance-futures", "symbol_count": 3})
    bad = tmp_path / "bad_quantiles.pkl"
    bad.write_bytes(known.read_bytes()[:-20])
    refused = web.client.put("/api/venues/binance-futures/quantiles", json={"pkl_path": str(bad)})
    assert (refused.status_code, refused.json["code"]) == (400, "quantiles_invalid")
    unknown = web.client.put("/api/venues/nyse/quantiles", json={"pkl_path": str(known)})
    assert (unknown.status_code, unknown.json["code"]) == (400, "venue_unknown")
    assert len(web.json("/api/venues/binance-futures/quantiles")["symbols"]) == 3


def test_probes_tell_life_and_readiness(web: Any) -> None:
    live = web.client.get("/livez")
    assert (live.status_code, live.text) == (200, "ok\n")
    ready = web.client.get("/readyz")
    assert (ready.status_code, ready.json["status"]) == (200, "degraded")
    checks = ready.json["checks"]
    assert set(checks) == {"catalog", "database", "models", "venues", "sandbox"}
    assert checks["models"]["items"]["alpha"] == "degraded"
    assert checks["sandbox"]["level"] in ("full", "partial", "rlimits-only")


def test_every_body_is_json_that_any_parser_reads(web: Any) -> None:
    for path in ("", "/alpha/symbols", "/alpha/factors", "/alpha/symbols/BTCUSDT", "/alpha/versions"):
        text = web.client.get(f"/api/models{path}").text
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_refused_artifact_is_named_wherever_its_model_is_shown(
    changing: Any, group_writer: Callable[..., None]
) -> None:
    group_writer(changing.directory, "ETHUSDT_ret_1h")
    (changing.directory / "ETHUSDT_ret_1h_model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    changing.client.post(f"/api/models/{changing.directory.name}/refresh")
    (item,) = (item for item in changing.json("/api/models")["items"] if item["model_name"] == changing.directory.name)
    assert item["status"] == "degraded"
    assert item["error"].startswith("ETHUSDT_ret_1h_model.pkl: ")
    (refusal,) = changing.json(f"/api/models/{changing.directory.name}")["refusals"]
    assert (refusal["group_key"], refusal["file"]) == ("ETHUSDT_ret_1h", "ETHUSDT_ret_1h_model.pkl")
    for kind in ("model", "symbols"):
        response = changing.client.get(f"/api/models/{changing.directory.name}/{kind}/ETHUSDT")
        assert (response.status_code, response.json["code"]) == (503, "group_refused")
        assert "Retry-After" in response.headers
        assert "ETHUSDT_ret_1h_model.pkl" in response.json["detail"]
