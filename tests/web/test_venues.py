"""Venue tables: tags, and changes that happen only if nobody else changed the table meanwhile."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog import venues
from mmserver.catalog.catalog import Actor
from mmserver.errors import VersionChanged

VENUE = "okex-margin"
PATH = f"/api/venues/{VENUE}/quantiles"


def write_table(path: Path, **thresholds: float) -> str:
    rows = [
        {"symbol": symbol, "medium_notional_threshold": medium, "large_notional_threshold": 2 * medium}
        for symbol, medium in thresholds.items()
    ]
    path.write_bytes(pickle.dumps(rows, protocol=4))
    return str(path)


@pytest.fixture(scope="module")
def store_with_venues(make_web: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_web(tmp_path_factory.mktemp("venues"))


@pytest.fixture
def table(store_with_venues: Any, tmp_path: Path) -> Any:
    """The venue has one table, BTC at 100; the fixture is its tag."""
    put = store_with_venues.client.put(PATH, json={"pkl_path": write_table(tmp_path / "first.pkl", BTC=100.0)})
    assert put.status_code == 200, put.text
    return store_with_venues


def tag_of(web: Any, **headers: str) -> str:
    tag: str = web.client.get(PATH, headers=headers).headers["ETag"]
    return tag


def test_the_tag_names_the_content(table: Any, tmp_path: Path) -> None:
    first = tag_of(table)
    assert first.startswith('"')
    table.client.put(PATH, json={"pkl_path": write_table(tmp_path / "second.pkl", BTC=101.0)})
    assert tag_of(table) != first
    table.client.put(PATH, json={"pkl_path": write_table(tmp_path / "third.pkl", BTC=100.0)})
    assert tag_of(table) == first


def test_who_has_the_table_gets_304(table: Any) -> None:
    response = table.client.get(PATH, headers={"If-None-Match": tag_of(table)})
    assert response.status_code == 304
    assert response.data == b""


def test_a_change_with_the_current_tag_happens(table: Any, tmp_path: Path) -> None:
    body = {"pkl_path": write_table(tmp_path / "new.pkl", BTC=300.0)}
    response = table.client.put(PATH, json=body, headers={"If-Match": tag_of(table)})
    assert response.status_code == 200
    assert table.json(PATH)["symbols"]["BTC"]["medium_notional_threshold"] == 300.0


@pytest.mark.parametrize("tag", ['"0000"', 'W/"stale", "other"', '""'])
def test_a_change_with_a_stale_tag_is_412_and_changes_nothing(table: Any, tmp_path: Path, tag: str) -> None:
    before, listed = tag_of(table), table.json("/api/venues")
    body = {"pkl_path": write_table(tmp_path / "new.pkl", BTC=300.0)}
    response = table.client.put(PATH, json=body, headers={"If-Match": tag})
    assert response.status_code == 412
    assert response.json["code"] == "version_changed"
    assert tag_of(table) == before
    assert table.json("/api/venues") == listed


def test_the_precondition_is_judged_before_the_file(table: Any, tmp_path: Path) -> None:
    response = table.client.put(PATH, json={"pkl_path": str(tmp_path / "absent.pkl")}, headers={"If-Match": '"0000"'})
    assert response.status_code == 412
    response = table.client.put(PATH, json={"pkl_path": str(tmp_path / "absent.pkl")}, headers={"If-Match": "*"})
    assert response.status_code == 400


def test_a_venue_without_a_table_matches_nothing(table: Any, tmp_path: Path) -> None:
    body = {"pkl_path": write_table(tmp_path / "new.pkl", BTC=300.0)}
    response = table.client.put("/api/venues/gate-futures/quantiles", json=body, headers={"If-Match": "*"})
    assert response.status_code == 412
    assert table.client.get("/api/venues/gate-futures/quantiles").status_code == 404


def test_the_tag_of_a_compressed_answer_is_good_for_a_change(table: Any, tmp_path: Path) -> None:
    many = {f"S{index}USDT": float(index + 1) for index in range(200)}
    table.client.put(PATH, json={"pkl_path": write_table(tmp_path / "many.pkl", **many)})
    compressed = tag_of(table, **{"Accept-Encoding": "gzip"})
    assert compressed != tag_of(table)
    body = {"pkl_path": write_table(tmp_path / "new.pkl", BTC=5.0)}
    assert table.client.put(PATH, json=body, headers={"If-Match": compressed}).status_code == 200
    assert table.client.put(PATH, json=body, headers={"If-Match": compressed}).status_code == 412


def test_of_two_who_read_the_same_table_one_may_change_it(table: Any, tmp_path: Path) -> None:
    tag = tag_of(table)
    first = {"pkl_path": write_table(tmp_path / "a.pkl", BTC=7.0)}
    second = {"pkl_path": write_table(tmp_path / "b.pkl", BTC=8.0)}
    statuses = [table.client.put(PATH, json=body, headers={"If-Match": tag}).status_code for body in (first, second)]
    assert statuses == [200, 412]
    assert table.json(PATH)["symbols"]["BTC"]["medium_notional_threshold"] == 7.0


def test_the_table_is_looked_at_again_in_the_changes_own_transaction(table: Any, tmp_path: Path) -> None:
    looks = iter([True, False])
    before = tag_of(table)
    with pytest.raises(VersionChanged):
        venues.set_quantiles(
            table.store, VENUE, write_table(tmp_path / "new.pkl", BTC=9.0), Actor("test"), lambda _: next(looks)
        )
    assert tag_of(table) == before
