"""The contract's venue quantiles, as a client of a running server sees them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROWS = [
    {"symbol": "BTCUSDT", "medium_notional_threshold": np.float64(50_000.5), "large_notional_threshold": 250_000},
    {"symbol": "ETHUSDT", "medium_notional_threshold": 20_000, "large_notional_threshold": np.int64(90_000)},
]


def row(medium: Any, large: Any, symbol: str = "BTCUSDT") -> dict[str, Any]:
    return {"symbol": symbol, "medium_notional_threshold": medium, "large_notional_threshold": large}


def write(path: Path, rows: Any) -> Path:
    """Replace the file in one step, as a careful producer does."""
    new = path.with_suffix(".new")
    new.write_bytes(pickle.dumps(rows))
    return new.rename(path)


def put(server: Any, venue: str, path: Path | str) -> Any:
    return server.client.put(f"/api/venues/{venue}/quantiles", json={"pkl_path": str(path)})


def test_thresholds_are_put_and_read_as_the_contract_has_them(server: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "q.pkl", ROWS)
    answer = put(server, "binance-futures", path)
    assert (answer.status_code, answer.json()) == (200, {"venue": "binance-futures", "symbol_count": 2})
    assert server.get("/api/venues/binance-futures/quantiles") == {
        "venue": "binance-futures",
        "symbols": {
            "BTCUSDT": {"medium_notional_threshold": 50_000.5, "large_notional_threshold": 250_000},
            "ETHUSDT": {"medium_notional_threshold": 20_000, "large_notional_threshold": 90_000},
        },
    }
    for symbol in ("BTCUSDT", "btc-usdt", "BTC/USDT"):
        assert server.get(f"/api/venues/binance-futures/quantiles/{symbol}") == {
            "venue": "binance-futures", "symbol": "BTCUSDT", "medium_notional_threshold": 50_000.5,
            "large_notional_threshold": 250_000,
        }  # fmt: skip
    (item,) = [item for item in server.get("/api/venues")["items"] if item["venue"] == "binance-futures"]
    assert item["pkl_path"] == str(path)
    assert item["updated_at"].endswith("Z")


def test_a_data_frame_is_taken_as_well(server: Any, tmp_path: Path) -> None:
    import pandas

    path = tmp_path / "frame.pkl"
    pandas.DataFrame(ROWS).to_pickle(path)
    assert put(server, "okex-margin", path).json() == {"venue": "okex-margin", "symbol_count": 2}
    found = server.get("/api/venues/okex-margin/quantiles/ETHUSDT")
    assert found["large_notional_threshold"] == 90_000


@pytest.mark.parametrize(
    ("venue", "file"),
    [("binance-futures", "binance_futures_quantiles.pkl"), ("okex-margin", "okex_margin_quantiles.pkl")],
)
def test_the_real_files_are_taken(server: Any, shared_artifacts: Path, venue: str, file: str) -> None:
    answer = put(server, venue, shared_artifacts / "venues" / file)
    assert answer.status_code == 200, answer.text
    assert len(server.get(f"/api/venues/{venue}/quantiles")["symbols"]) == answer.json()["symbol_count"] > 0


def test_an_unknown_venue_is_400_on_put_and_404_on_get(server: Any, tmp_path: Path) -> None:
    refused = put(server, "nyse", write(tmp_path / "q.pkl", ROWS))
    assert (refused.status_code, refused.json()["code"]) == (400, "venue_unknown")
    assert "gate-futures" in refused.json()["detail"]
    for path in (
        "/api/venues/nyse/quantiles",
        "/api/venues/nyse/quantiles/BTCUSDT",
        "/api/venues/gate-margin/quantiles",
    ):
        missing = server.client.get(path)
        assert (missing.status_code, missing.json()["code"]) == (404, "venue_not_found")


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([{"symbol": "BTCUSDT", "medium_notional_threshold": 1}], id="a column is missing"),
        pytest.param([row(0, 1)], id="zero"),
        pytest.param([row(-1, 1)], id="negative"),
        pytest.param([row(2, 1)], id="swapped"),
        pytest.param([row(float("nan"), 1)], id="not a number"),
        pytest.param([row(1, float("inf"))], id="infinite"),
        pytest.param([row("1", 2)], id="text"),
        pytest.param([row(1, 2), row(1, 3, "BTC-USDT")], id="one symbol twice"),
        pytest.param([], id="no rows"),
        pytest.param({"BTCUSDT": 1}, id="no list"),
        pytest.param(print, id="code"),
    ],
)
def test_a_bad_file_is_refused_and_the_venue_keeps_what_it_had(server: Any, tmp_path: Path, rows: Any) -> None:
    assert put(server, "bybit-margin", write(tmp_path / "good.pkl", ROWS)).status_code == 200
    before = server.get("/api/venues/bybit-margin/quantiles")
    refused = put(server, "bybit-margin", write(tmp_path / "bad.pkl", rows))
    assert (refused.status_code, refused.json()["code"]) == (400, "quantiles_invalid")
    assert "bad.pkl" in refused.json()["detail"]
    assert server.get("/api/venues/bybit-margin/quantiles") == before


def test_a_file_that_is_not_there_is_refused(server: Any, tmp_path: Path) -> None:
    refused = put(server, "gate-margin", tmp_path / "absent.pkl")
    assert (refused.status_code, refused.json()["code"]) == (400, "quantiles_invalid")
    assert "absent.pkl: no such file" in refused.json()["detail"]


def test_a_venue_file_is_watched_and_a_bad_one_does_not_replace_it(
    server: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    path = write(tmp_path / "q.pkl", ROWS)
    put(server, "bitget-futures", path)
    url = "/api/venues/bitget-futures/quantiles/BTCUSDT"

    def item() -> Any:
        return next(item for item in server.get("/api/venues")["items"] if item["venue"] == "bitget-futures")

    write(path, [row(1, 2)])
    until(lambda: server.get(url)["medium_notional_threshold"] == 1, "the new thresholds are served")
    path.write_bytes(pickle.dumps(ROWS)[:40])
    until(lambda: item()["status"] == "stale", "the torn file is noticed")
    assert "q.pkl" in item()["error"]
    assert server.get(url)["medium_notional_threshold"] == 1
    write(path, [row(3, 4)])
    until(lambda: server.get(url)["medium_notional_threshold"] == 3, "the next good file is served")
    assert (item()["status"], item()["error"]) == ("ok", None)
