"""The process that moves: one for a data directory, for as long as a server wants it, and never a reason that something stays unmoved."""

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mmserver.experiments.observations import moving_process
from mmserver.experiments.observations.journal import Journal
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.moving import JOURNALS_DIR, STORE_NAME
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation
from mmserver.experiments.totals import ExperimentTotals

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

OBSERVE_UNTIL_KILLED = """
import sys
from pathlib import Path
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.values import Observation
log = ObservationLog(Path(sys.argv[1]), move_interval_s=0.01, in_process=False)
log.start()
number = 0
while True:
    prediction_id = f"{sys.argv[2]}-{number}"
    log.append(
        Observation(prediction_id=prediction_id, at_us=1, experiment_key=1, arm="control", unit=f"u{number % 5}",
                    symbol="S", direction=1, features=bytes(100)),
        must_keep=True,
    )
    print(prediction_id, flush=True)
    number += 1
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], ObservationLog]]:
    """Start a log whose records a process moves."""
    logs: list[ObservationLog] = []

    def started() -> ObservationLog:
        log = ObservationLog(tmp_path, move_interval_s=0.01, in_process=False)
        log.start()
        logs.append(log)
        return log

    yield started
    for log in logs:
        log.close()


def wait_until(condition: Callable[[], object]) -> None:
    """The test's own time limit ends it where the condition never comes."""
    while not condition():
        time.sleep(0.01)


def movers(data_dir: Path) -> list[int]:
    """The processes that move for the data directory, of whatever server; those that were not waited for have no arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes()
        except OSError:
            continue
        if b"moving_child" in arguments and str(data_dir).encode() + b'"' in arguments:
            found.append(int(path.parent.name))
    return found


def _ids(data_dir: Path) -> list[str]:
    store = ObservationStore(data_dir / STORE_NAME)
    try:
        with store.read() as raw:
            return [row[0] for row in raw.execute("SELECT prediction_id FROM predictions ORDER BY id").fetchall()]
    finally:
        store.close()


def _has_ended(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def _is_in_trouble(log: ObservationLog) -> bool:
    return "damaged" in str(log.status.problem)


def _is_well(log: ObservationLog) -> bool:
    return log.status.problem is None and log.status.n_unmoved_bytes == 0


def test_a_process_is_started_for_the_first_record_moves_it_and_ends_with_the_log(
    tmp_path: Path, start: Callable[[], ObservationLog], observe: Callable[..., Observation]
) -> None:
    log = start()
    wait_until((tmp_path / JOURNALS_DIR / "moving.lock").exists)  # the thread has looked, and found nothing to move
    assert movers(tmp_path) == []
    log.append(observe("a"), must_keep=True)
    wait_until(lambda: movers(tmp_path))
    [pid] = movers(tmp_path)
    wait_until(lambda: log.status.n_unmoved_bytes == 0)
    assert _ids(tmp_path) == ["a"]
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, os.getpid())
    log.close()
    assert not Path(f"/proc/{pid}").exists()


def test_whenever_it_is_killed_each_record_is_moved_once(
    tmp_path: Path,
    start: Callable[[], ObservationLog],
    observe: Callable[..., Observation],
    recompute: Callable[[ObservationStore, int], ExperimentTotals],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moving_process, "MAX_DEATHS", 1000)
    monkeypatch.setattr(moving_process, "RESTART_PAUSE_S", 0.0)
    rng = random.Random(5)
    log = start()
    n_appended = n_killed = 0
    while n_killed < 4:
        for _ in range(rng.randrange(1, 1000)):
            log.append(observe(f"p{n_appended}", unit=f"u{n_appended % 7}", latency_us=1000), must_keep=True)
            n_appended += 1
        wait_until(lambda: movers(tmp_path))
        if rng.random() < 0.7:
            wait_until((tmp_path / STORE_NAME).exists)
        for pid in movers(tmp_path):
            os.kill(pid, signal.SIGKILL)
            n_killed += 1
            wait_until(partial(_has_ended, pid))
    wait_until(lambda: log.status.n_unmoved_bytes == 0 and len(_ids(tmp_path)) == n_appended)
    assert sorted(_ids(tmp_path)) == sorted(f"p{number}" for number in range(n_appended))
    assert log.read_totals(1) == recompute(log.store(), 1)


def test_it_ends_when_its_server_is_killed_and_the_next_server_moves_the_rest(
    tmp_path: Path, start: Callable[[], ObservationLog]
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", OBSERVE_UNTIL_KILLED, tmp_path, "w"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    lines = []
    while not movers(tmp_path):
        lines.append(server.stdout.readline())
    [pid] = movers(tmp_path)
    server.kill()
    lines += server.stdout.readlines()
    server.wait()
    server.stdout.close()
    wait_until(lambda: pid not in movers(tmp_path))
    said = {line.strip() for line in lines if line.endswith("\n")}
    log = start()
    wait_until(lambda: (tmp_path / STORE_NAME).exists() and said <= set(_ids(tmp_path)))
    wait_until(lambda: log.status.n_unmoved_bytes == 0)
    ids = _ids(tmp_path)
    assert len(ids) == len(set(ids)) <= len(said) + 1


def test_two_servers_have_one_and_the_second_starts_the_next_when_the_first_ends(
    tmp_path: Path, start: Callable[[], ObservationLog], observe: Callable[..., Observation]
) -> None:
    logs = [start(), start()]
    for number in range(20):
        logs[number % 2].append(observe(f"p{number}"), must_keep=True)
    wait_until(lambda: all(log.status.n_unmoved_bytes == 0 for log in logs))
    assert len(_ids(tmp_path)) == 20
    [pid] = movers(tmp_path)
    first = next(log for log in logs if log._supervisor is not None and log._supervisor.pid == pid)
    [second] = [log for log in logs if log is not first]
    first.close()
    assert movers(tmp_path) == []
    second.append(observe("last"), must_keep=True)
    wait_until(lambda: second._supervisor is not None and second._supervisor.pid)
    wait_until(lambda: second.status.n_unmoved_bytes == 0)
    assert "last" in _ids(tmp_path)


@pytest.mark.parametrize("executable", ["/nowhere/python", "/bin/false"])
def test_where_none_can_be_had_the_server_moves_by_itself(
    tmp_path: Path,
    start: Callable[[], ObservationLog],
    observe: Callable[..., Observation],
    monkeypatch: pytest.MonkeyPatch,
    executable: str,
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(moving_process, "RESTART_PAUSE_S", 0.0)
    log = start()
    for number in range(20):
        log.append(observe(f"p{number}"), must_keep=True)
    wait_until(lambda: (tmp_path / STORE_NAME).exists() and len(_ids(tmp_path)) == 20)
    wait_until(lambda: log.status.n_unmoved_bytes == 0)
    assert log._supervisor is not None
    assert log._supervisor.pid is None


def test_what_it_has_trouble_with_is_the_problem_of_every_server_and_in_the_log(
    tmp_path: Path,
    start: Callable[[], ObservationLog],
    observe: Callable[..., Observation],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / STORE_NAME).write_bytes(b"rubbish" * 5000)
    logs = [start(), start()]
    logs[0].append(observe("a"), must_keep=True)
    for log in logs:
        wait_until(partial(_is_in_trouble, log))
        assert log.status.n_unmoved_bytes > 0
    assert "observations stay in their journals" in caplog.text
    (tmp_path / STORE_NAME).unlink()
    for log in logs:
        wait_until(partial(_is_well, log))
    assert _ids(tmp_path) == ["a"]


def test_damage_that_it_finds_is_counted_and_logged_by_the_server(
    tmp_path: Path,
    start: Callable[[], ObservationLog],
    observe: Callable[..., Observation],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    journal = Journal(tmp_path / JOURNALS_DIR)
    journal.append(observe("a"), must_keep=True)
    [path] = (tmp_path / JOURNALS_DIR).glob("*.journal")
    size = path.stat().st_size
    journal.append(observe("b"), must_keep=True)
    journal.append(observe("c"), must_keep=True)
    journal.close()
    with path.open("r+b") as file:
        file.seek(size + 20)
        file.write(b"\0\0\0\0")
    log = start()
    wait_until(lambda: log.status.n_damaged_bytes > 0)
    wait_until(lambda: log.status.n_unmoved_bytes == 0)
    assert _ids(tmp_path) == ["a", "c"]
    assert "are no whole record" in caplog.text
