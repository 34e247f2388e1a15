"""Retention: single predictions go by age and by size, sums stay, and the disk gets its space back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserver.experiments.observations import retention
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.reports import PruneReport
from mmserver.experiments.observations.retention import prune
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation, Outcome, Price

DAY_S = 86_400.0


@pytest.fixture
def log(observations: ObservationLog, observe: Callable[..., Observation], clock: Any) -> ObservationLog:
    """A prediction a day for 20 days, each with features of 10 kB, an outcome and a price."""
    for day in range(20):
        observation = observe(f"p{day}", unit=f"u{day}", at_us=int(clock.now_s * 1e6), features=bytes(10_000))
        observations.append(observation, must_keep=True)
        observations.add_outcomes([Outcome(prediction_id=f"p{day}", label="BUY")])
        observations.add_prices([Price(symbol="BTCUSDT", price=1.0, at=clock.now_s)])
        clock.now_s += DAY_S
    observations.flush()
    return observations


def _left(store: ObservationStore) -> tuple[list[str], int, int, int]:
    with store.read() as raw:
        ids = [row[0] for row in raw.execute("SELECT prediction_id FROM predictions ORDER BY id").fetchall()]
        counts = [
            raw.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("outcomes", "prices", "units")
        ]
    return ids, *counts


def test_what_is_too_old_goes_with_its_outcome_and_the_sums_stay(log: ObservationLog, clock: Any) -> None:
    before = log.read_totals(1)
    report = prune(log.store(), now=clock.now_s, retention_s=5 * DAY_S, retention_bytes=1 << 40)
    assert report == PruneReport(n_too_old=15, n_prices=15)
    assert _left(log.store()) == ([f"p{day}" for day in range(15, 20)], 5, 5, 20)
    assert log.read_totals(1) == before
    assert log.add_outcomes([Outcome(prediction_id="p3", label="BUY")]).n_unknown == 1


def test_of_too_many_the_oldest_go(log: ObservationLog, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 3)
    report = prune(log.store(), now=clock.now_s, retention_s=1000 * DAY_S, retention_bytes=200_000)
    ids = _left(log.store())[0]
    assert 0 < report.n_too_many < 20
    assert ids == [f"p{day}" for day in range(report.n_too_many, 20)]
    assert prune(log.store(), now=clock.now_s, retention_s=1000 * DAY_S, retention_bytes=200_000) == PruneReport()


def test_units_go_when_nothing_can_be_added_to_them_any_more(log: ObservationLog, clock: Any) -> None:
    before = log.read_totals(1)
    prune(log.store(), now=clock.now_s + 100 * DAY_S, retention_s=5 * DAY_S, retention_bytes=1 << 40)
    assert _left(log.store()) == ([], 0, 0, 0)
    assert log.read_totals(1) == before


def test_the_disk_gets_its_space_back(
    observations: ObservationLog, observe: Callable[..., Observation], clock: Any, tmp_path: Path
) -> None:
    for number in range(1500):
        observations.append(observe(f"p{number}", features=bytes(20_000)), must_keep=True)
    observations.flush()
    store = observations.store()
    with store.read() as raw:
        n_before = raw.execute("PRAGMA page_count").fetchone()[0]
    prune(store, now=clock.now_s + 1000 * DAY_S, retention_s=DAY_S, retention_bytes=1 << 40)
    with store.read() as raw:
        n_pages, n_free = (raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
    assert n_before > 7000
    assert n_free < 2000
    assert n_pages < 2500
