"""`mmserver venues` as scripts use it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
THRESHOLDS = {"symbol": "BTCUSDT", "medium_notional_threshold": 1.5, "large_notional_threshold": 4.0}


@pytest.fixture
def quantiles(tmp_path: Path) -> Path:
    """A good venue file."""
    path = tmp_path / "q.pkl"
    path.write_bytes(pickle.dumps([THRESHOLDS]))
    return path


def test_thresholds_are_set_listed_and_shown(mmserver: Run, quantiles: Path) -> None:
    assert json.loads(mmserver("venues", "show", "--json").stdout) == {"items": []}
    assert mmserver("venues", "set", "gate-futures", "q.pkl").stdout == "gate-futures: 1 symbols\n"
    (row,) = json.loads(mmserver("venues", "show", "--json").stdout)["items"]
    assert (row["venue"], row["symbols"], row["status"], row["error"]) == ("gate-futures", 1, "ok", None)
    assert row["pkl_path"] == str(quantiles)
    assert json.loads(mmserver("venues", "show", "gate-futures", "--json").stdout) == {"items": [THRESHOLDS]}
    assert mmserver("venues", "show", "gate-futures").stdout.splitlines()[1] == "BTCUSDT\t1.5\t4.0"


def test_an_unknown_venue_and_a_bad_file_are_named(mmserver: Run, quantiles: Path) -> None:
    assert "known venues: binance-margin, " in mmserver("venues", "set", "nyse", quantiles, code=2).stderr
    assert "no such file" in mmserver("venues", "set", "gate-futures", "absent.pkl", code=2).stderr
    quantiles.write_bytes(pickle.dumps([{**THRESHOLDS, "large_notional_threshold": 1.0}]))
    assert "q.pkl: " in mmserver("venues", "set", "gate-futures", quantiles, code=2).stderr
    assert "no quantiles are known" in mmserver("venues", "show", "gate-futures", code=4).stderr
