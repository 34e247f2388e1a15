"""What runs by the clock looks at everything, and contains what goes wrong; its timing and its lease: see tests/test_jobs.py."""

import logging
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import register_model
from mmserver.catalog.venues import find_venue, set_quantiles
from mmserver.jobs import Jobs

TEST = Actor("test")


def wait_until(is_true: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if is_true():
            return
        deadline.wait(0.02)
    pytest.fail("it did not come to pass")


@pytest.fixture
def quick(open_alpha: Callable[..., Any]) -> Any:
    """Model `alpha` with BTC, looked at by the real clock, often."""
    import time

    opened = open_alpha(watch_debounce_s=0.05, watch_interval_s=0.05)
    opened.store.watches.clock = time.monotonic
    opened.artifacts.write_group("BTC_ret_1h", 0)
    opened.register()
    return opened


def test_changes_are_served_by_themselves_until_stopped(quick: Any, tmp_path: Path) -> None:
    row = {"symbol": "BTC", "medium_notional_threshold": 1.0, "large_notional_threshold": 2.0}
    quantiles = tmp_path / "quantiles.pkl"
    quantiles.write_bytes(pickle.dumps([row]))
    set_quantiles(quick.store, "gate-margin", str(quantiles), TEST)
    jobs = Jobs(quick.store, tmp_path / "snapshots")
    jobs.start()
    quick.artifacts.write_group("BTC_ret_1h", 5)
    quantiles.write_bytes(pickle.dumps([{**row, "large_notional_threshold": 3.0}]))
    wait_until(lambda: quick.seed("BTC") == 5)
    wait_until(lambda: find_venue(quick.catalog, "gate-margin").symbols["BTC"] == (1.0, 3.0))
    assert jobs.check()["status"] == "ok"
    jobs.stop()
    quick.artifacts.write_group("BTC_ret_1h", 4)
    label = quick.model.serving.label
    threading.Event().wait(0.3)
    assert quick.model.serving.label == label


def test_one_model_s_trouble_is_not_another_s(
    quick: Any, make_artifacts: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_artifacts("zeta")
    other.write_group("ETH_ret_1h", 1)
    register_model(quick.store, "zeta", str(other.path), TEST)
    watch = quick.store.watches.watch(quick.model)
    watch.watcher.observe = None  # a bug: calling it raises TypeError
    jobs = Jobs(quick.store, tmp_path / "snapshots")
    other.write_group("ETH_ret_1h", 5)
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            jobs.watch()
            threading.Event().wait(0.06)
    quick.name = "zeta"
    assert quick.seed("ETH") == 5
    assert "model alpha failed" in caplog.text


def test_a_model_that_is_removed_while_it_is_watched_is_no_trouble(
    quick: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mmserver.catalog.registering import remove_model

    jobs = Jobs(quick.store, tmp_path / "snapshots")
    catalog = quick.store.catalog
    remove_model(quick.store, "alpha", TEST)
    quick.store.catalog = catalog
    poll_names = list(catalog.models)
    quick.store.drop_model("alpha")
    for name in poll_names:
        jobs._poll(name)
    assert not caplog.records


def test_a_snapshot_that_fails_is_said_and_the_rest_goes_on(
    quick: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "snapshots").write_bytes(b"in the way")
    jobs = Jobs(quick.store, tmp_path / "snapshots")
    jobs._contained("snapshot", jobs.snapshot)()
    assert "snapshot" in caplog.text
    quick.artifacts.write_group("BTC_ret_1h", 5)
    for _ in range(4):
        jobs.watch()
        threading.Event().wait(0.06)
    assert quick.seed("BTC") == 5


def test_snapshots_hold_the_state_and_the_oldest_go(quick: Any, restart: Callable[..., Any], tmp_path: Path) -> None:
    opened = restart(quick, snapshot_keep=2)
    jobs = Jobs(opened.store, tmp_path / "snapshots")
    found = []
    for seed in range(3):
        quick.artifacts.write_group("BTC_ret_1h", seed + 1)
        opened.refresh()
        jobs.snapshot()
        found.append(sorted(path.name for path in (tmp_path / "snapshots").iterdir()))
    assert [len(names) for names in found] == [1, 2, 2]
    jobs.snapshot()
    assert sorted(path.name for path in (tmp_path / "snapshots").iterdir()) == found[-1], "nothing was changed since"


def test_a_change_is_served_after_one_look_and_the_settling_time(quick: Any) -> None:
    jobs = Jobs(quick.store, None)
    before = quick.store.model("alpha").serving.label
    jobs.watch()
    quick.artifacts.write_group("BTC_ret_1h", 1)
    jobs.watch()
    assert quick.store.model("alpha").serving.label != before
