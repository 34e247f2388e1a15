"""Order-size thresholds: all of a file or none of it, watched, and kept when the file goes bad."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.venues import VENUES, find_venue, poll_venue, set_quantiles, venue_symbol
from mmserver.errors import (
    OutsideRoots,
    QuantilesInvalid,
    ReadOnly,
    VenueNotFound,
    VenueSymbolNotFound,
    VenueUnknown,
)
from mmserver.watching.identities import FileIdentity

TEST = Actor("test")
VENUE = "binance-futures"


def row(symbol: Any, medium: Any = 10.0, large: Any = 40.0) -> dict[str, Any]:
    return {"symbol": symbol, "medium_notional_threshold": medium, "large_notional_threshold": large}


ROWS = [row("SOLUSDT", 30, 90), row("BTC/USDT", 250_000.5, 1e6)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "binance_futures_quantiles.pkl"
    path.write_bytes(pickle.dumps(ROWS))
    return path


class Polls:
    """The scheduler's looks at one venue, with the memory that it keeps between them."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.pending: dict[str, FileIdentity] = {}

    def __call__(self, n: int = 4) -> bool:
        outcomes = [poll_venue(self.store, VENUE, self.pending) for _ in range(n)]
        return any(outcomes)


@pytest.fixture
def polls(alpha: Any, file: Path) -> Polls:
    set_quantiles(alpha.store, VENUE, str(file), TEST)
    return Polls(alpha.store)


def test_the_ten_venues_of_the_contract() -> None:
    listed = "binance-margin binance-futures okex-margin okex-futures bybit-margin bybit-futures bitget-margin"
    assert sorted(VENUES) == sorted(f"{listed} bitget-futures gate-margin gate-futures".split())


def test_thresholds_are_found_however_the_symbol_is_written(alpha: Any, file: Path) -> None:
    venue = set_quantiles(alpha.store, VENUE, str(file), TEST)
    assert (venue.name, venue.pkl_path, venue.status, len(venue.symbols)) == (VENUE, str(file), "ok", 2)
    for written in ("BTC/USDT", "btcusdt", "BTC-USDT", "btc_usdt", "BTC:USDT"):
        assert venue_symbol(find_venue(alpha.catalog, VENUE), written) == ("BTC/USDT", 250_000.5, 1e6)
    with pytest.raises(VenueSymbolNotFound):
        venue_symbol(venue, "ETHUSDT")
    with pytest.raises(VenueNotFound):
        find_venue(alpha.catalog, "okex-margin")
    assert alpha.actions() == ["venue.set"]


FRAME = pd.DataFrame(ROWS)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([row(r["symbol"], np.float32(1.5), np.int64(9)) for r in ROWS], id="numpy scalars"),
        pytest.param([{**r, "extra": None} for r in ROWS], id="more columns"),
        pytest.param(ROWS[::-1], id="another order"),
        pytest.param(FRAME, id="DataFrame"),
        pytest.param(FRAME.set_index(pd.Index(["b", "a"])), id="DataFrame with an index"),
        pytest.param(FRAME.astype({"medium_notional_threshold": "float32"}), id="float32 column"),
        pytest.param([row("X", 1, 2)], id="integers"),
    ],
)
def test_a_usable_file_is_taken(alpha: Any, file: Path, value: Any) -> None:
    file.write_bytes(pickle.dumps(value))
    symbols = set_quantiles(alpha.store, VENUE, str(file), TEST).symbols
    rows = value.to_dict("records") if isinstance(value, pd.DataFrame) else value
    assert dict(symbols) == {
        r["symbol"]: (float(r["medium_notional_threshold"]), float(r["large_notional_threshold"])) for r in rows
    }


BAD: list[tuple[str, Any, str]] = [
    ("empty list", [], "no symbols"),
    ("dict", {"BTC": (1, 2)}, "wrong_type"),
    ("row is no mapping", [["BTC", 1, 2]], "row 0"),
    ("missing column", [{"symbol": "BTC", "medium_notional_threshold": 1}], "large_notional_threshold"),
    ("missing column in a later row", [ROWS[0], {"symbol": "BTC"}], "row 1"),
    ("DataFrame without a column", FRAME.drop(columns="symbol"), "symbol"),
    ("symbol is a number", [row(5)], "row 0"),
    ("symbol is empty", [row("")], "row 0"),
    ("zero", [row("BTC", 0, 1)], "BTC"),
    ("negative", [row("BTC", -1, 1)], "BTC"),
    ("swapped", [row("BTC", 40, 10)], "BTC"),
    ("equal", [row("BTC", 10, 10)], "BTC"),
    ("NaN", [row("BTC", float("nan"), 10)], "BTC"),
    ("infinite", [row("BTC", 1, float("inf"))], "BTC"),
    ("None", [row("BTC", None, 10)], "BTC"),
    ("text", [row("BTC", "1", "2")], "BTC"),
    ("bool", [row("BTC", True, 2)], "BTC"),
    ("huge integer", [row("BTC", 1, 10**400)], "too_large"),
    ("complex", [row("BTC", 1j, 2)], "BTC"),
    ("duplicate", [ROWS[0], ROWS[0]], "SOLUSDT"),
    ("duplicate in another spelling", [row("BTC/USDT"), row("BTCUSDT")], "BTC/USDT"),
    ("DataFrame with NaN", FRAME.assign(large_notional_threshold=[np.nan, 2]), "SOLUSDT"),
    ("lone surrogate", [row("BTC\udc80")], "UTF-8"),
]


@pytest.mark.parametrize(("value", "said"), [pytest.param(value, said, id=name) for name, value, said in BAD])
def test_a_bad_file_is_refused_saying_where_and_the_venue_keeps_what_it_had(
    alpha: Any, polls: Polls, tmp_path: Path, value: Any, said: str
) -> None:
    before = find_venue(alpha.catalog, VENUE)
    other = tmp_path / "other.pkl"
    other.write_bytes(pickle.dumps(value))
    with pytest.raises(QuantilesInvalid, match=said):
        set_quantiles(alpha.store, VENUE, str(other), TEST)
    assert find_venue(alpha.catalog, VENUE) is before
    assert alpha.actions() == ["venue.set"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (pickle.dumps(ROWS)[:-5], "torn"),
        (b"junk", "malformed|forbidden|unsupported|torn"),
        (pickle.dumps(pytest.raises), "forbidden_global"),
    ],
    ids=["empty", "torn", "junk", "hostile"],
)
def test_a_file_that_is_no_list_at_all_is_refused(alpha: Any, file: Path, data: bytes, said: str) -> None:
    file.write_bytes(data)
    with pytest.raises(QuantilesInvalid, match=said):
        set_quantiles(alpha.store, VENUE, str(file), TEST)


@pytest.mark.parametrize("name", ["missing.pkl", "", "directory.pkl"])
def test_a_path_that_is_no_file_is_refused(alpha: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "directory.pkl").mkdir()
    with pytest.raises(QuantilesInvalid):
        set_quantiles(alpha.store, VENUE, str(tmp_path / name), TEST)
    with pytest.raises(QuantilesInvalid):
        set_quantiles(alpha.store, VENUE, "/", TEST)
    with pytest.raises(QuantilesInvalid, match=r"pkl_path 'relative\.pkl': give an absolute path"):
        set_quantiles(alpha.store, VENUE, "relative.pkl", TEST)


def test_venues_paths_and_stores_that_may_not_be_set_are_refused(
    open_alpha: Callable[..., Any], file: Path, tmp_path: Path
) -> None:
    opened = open_alpha(artifact_roots=(tmp_path / "artifacts",))
    with pytest.raises(VenueUnknown, match="binance-margin"):
        set_quantiles(opened.store, "nasdaq", str(file), TEST)
    with pytest.raises(OutsideRoots):
        set_quantiles(opened.store, VENUE, str(file), TEST)
    opened.store.read_only = True
    with pytest.raises(ReadOnly):
        set_quantiles(opened.store, VENUE, str(tmp_path / "artifacts" / "x.pkl"), TEST)


def test_a_new_file_is_served_after_two_looks_that_agree(alpha: Any, file: Path, polls: Polls) -> None:
    file.write_bytes(pickle.dumps([row("NEW")]))
    assert not polls(1)
    assert polls(1)
    assert list(find_venue(alpha.catalog, VENUE).symbols) == ["NEW"]
    assert alpha.actions() == ["venue.set", "venue.refreshed"]
    data_version = alpha.store.database.data_version()
    assert not polls(5)
    assert alpha.store.database.data_version() == data_version


def test_a_bad_file_is_said_and_what_was_there_is_served_until_it_is_good_again(
    alpha: Any, file: Path, polls: Polls
) -> None:
    symbols = find_venue(alpha.catalog, VENUE).symbols
    file.write_bytes(pickle.dumps([row("BTC", 5, 1)]))
    polls()
    venue = find_venue(alpha.catalog, VENUE)
    assert (venue.status, venue.symbols) == ("stale", symbols)
    assert "BTC" in (venue.error or "")
    data_version = alpha.store.database.data_version()
    polls()
    assert alpha.store.database.data_version() == data_version
    file.write_bytes(pickle.dumps(ROWS))
    assert polls()
    venue = find_venue(alpha.catalog, VENUE)
    assert (venue.status, venue.error, venue.symbols) == ("ok", None, symbols)


def test_bad_files_with_the_same_error_are_each_read_once(
    alpha: Any, file: Path, polls: Polls, monkeypatch: Any
) -> None:
    file.write_bytes(pickle.dumps([row("BTC", 5, 1)]))
    polls()
    file.write_bytes(pickle.dumps([row("BTC", 5, 1)], protocol=2))
    n_jobs: list[str] = []
    run = alpha.store.sandbox.run

    class Counting:
        def run(self, job: str, request: bytes) -> bytes:
            n_jobs.append(job)
            return bytes(run(job, request))

    monkeypatch.setattr(alpha.store, "sandbox", Counting())
    polls(8)
    assert len(n_jobs) == 1


def test_a_file_that_vanished_is_said_and_back_it_is_taken(alpha: Any, file: Path, polls: Polls) -> None:
    data = file.read_bytes()
    file.unlink()
    polls(1)
    assert find_venue(alpha.catalog, VENUE).status == "ok"
    polls()
    venue = find_venue(alpha.catalog, VENUE)
    assert (venue.status, len(venue.symbols)) == ("stale", 2)
    assert "no such file" in (venue.error or "")
    file.write_bytes(data)
    polls()
    assert find_venue(alpha.catalog, VENUE).status == "ok"


def test_a_restart_knows_what_was_served_and_what_was_refused(
    alpha: Any, file: Path, polls: Polls, restart: Callable[..., Any]
) -> None:
    before = find_venue(alpha.catalog, VENUE)
    again = restart(alpha)
    assert find_venue(again.catalog, VENUE) == before
    assert not Polls(again.store)()
    file.write_bytes(pickle.dumps([row("NEW")]))
    assert Polls(again.store)()


def test_the_shared_venue_files_are_taken(alpha: Any, shared_artifacts: Path) -> None:
    files = {VENUE: "binance_futures_quantiles.pkl", "okex-margin": "okex_margin_quantiles.pkl"}
    for venue, name in files.items():
        symbols = set_quantiles(alpha.store, venue, str(shared_artifacts / "venues" / name), TEST).symbols
        assert symbols
        assert all(0 < medium < large for medium, large in symbols.values())


def test_a_path_that_is_not_allowed_any_more_is_said_and_served_on(
    alpha: Any, polls: Polls, restart: Callable[..., Any], tmp_path: Path
) -> None:
    again = restart(alpha, artifact_roots=(tmp_path / "artifacts",))
    Polls(again.store)()
    venue = find_venue(again.catalog, VENUE)
    assert (venue.status, len(venue.symbols)) == ("stale", 2)
    assert "outside the allowed roots" in (venue.error or "")
    last = restart(again)
    Polls(last.store)()
    assert find_venue(last.catalog, VENUE).status == "ok"


def test_a_bad_file_that_is_only_touched_is_not_parsed_again(alpha: Any, file: Path, polls: Polls) -> None:
    file.write_bytes(pickle.dumps([row("BTC", 5, 1)]))
    polls()
    file.touch()
    polls()
    data_version = alpha.store.database.data_version()
    polls()
    assert alpha.store.database.data_version() == data_version
    assert find_venue(alpha.catalog, VENUE).status == "stale"
