"""The whole log of a process: what it does while its file is locked, damaged, foreign or on a full disk, and afterwards."""

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmserver.errors import DatabaseBusy, DiskFull, ObservationsCorrupt, Overloaded
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.moving import STORE_NAME
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation, Outcome
from mmserver.experiments.totals import ExperimentTotals
from mmserver.settings import Settings
from mmserver.storage.sqlite import connect


@pytest.fixture
def started(tmp_path: Path) -> Iterator[ObservationLog]:
    log = ObservationLog(tmp_path, move_interval_s=0.01)
    log.start()
    yield log
    log.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """The test's own time limit ends it where the condition never comes."""
    while not condition():
        time.sleep(0.01)


def _n_predictions(log: ObservationLog) -> int:
    return log.read_totals(1).control.n_predictions


def test_the_thread_moves_what_is_appended(started: ObservationLog, observe: Callable[..., Observation]) -> None:
    for number in range(30):
        started.append(observe(f"p{number}"), must_keep=True)
    wait_until(lambda: _n_predictions(started) == 30)
    wait_until(lambda: started.status.n_unmoved_bytes == 0)
    assert started.status.problem is None


def test_a_flush_sees_what_any_process_appended_before_it(tmp_path: Path, observe: Callable[..., Observation]) -> None:
    logs = [ObservationLog(tmp_path) for _ in range(3)]
    for number, log in enumerate(logs):
        log.append(observe(f"p{number}"), must_keep=True)
    logs[0].flush()
    assert [_n_predictions(log) for log in logs] == [3, 3, 3]
    for log in logs:
        log.close()


def test_closing_moves_what_is_left(tmp_path: Path, observe: Callable[..., Observation]) -> None:
    log = ObservationLog(tmp_path)
    log.append(observe("a"), must_keep=True)
    log.close()
    store = ObservationStore(tmp_path / STORE_NAME)
    assert store.read_totals(1).control.n_predictions == 1
    store.close()


def test_while_another_process_holds_the_file_predictions_are_kept_and_moved_afterwards(
    tmp_path: Path, observe: Callable[..., Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    ObservationStore(tmp_path / STORE_NAME).close()
    monkeypatch.setattr(ObservationStore.__init__, "__kwdefaults__", {"busy_timeout_ms": 20})
    log = ObservationLog(tmp_path, move_interval_s=0.01)
    other = connect(tmp_path / STORE_NAME, "rw")
    other.execute("BEGIN IMMEDIATE")
    log.start()
    for number in range(20):
        log.append(observe(f"p{number}"), must_keep=True)
    wait_until(lambda: log.status.problem is not None)
    assert "busy" in str(log.status.problem)
    assert log.status.n_unmoved_bytes > 0
    with pytest.raises(DatabaseBusy):
        log.flush()
    other.execute("ROLLBACK")
    other.close()
    log.flush()
    assert _n_predictions(log) == 20
    wait_until(lambda: log.status.problem is None)
    log.close()


def test_a_file_that_is_deleted_beside_the_processes_that_use_it_is_made_anew_from_their_journals(
    tmp_path: Path, observe: Callable[..., Observation]
) -> None:
    """The write-ahead log that is left of it is not taken for the new one's."""
    logs = [ObservationLog(tmp_path) for _ in range(2)]
    for number, log in enumerate(logs):
        log.append(observe(f"p{number}"), must_keep=True)
        log.flush()
    assert (tmp_path / f"{STORE_NAME}-wal").stat().st_size > 0
    (tmp_path / STORE_NAME).unlink()
    logs[0].append(observe("p2"), must_keep=True)
    for log in logs:
        log.flush()
        assert _n_predictions(log) == 3
        assert log.add_outcomes([Outcome(prediction_id="p1", label=1)]).n_errors == 0
    for log in logs:
        log.close()
    store = ObservationStore(tmp_path / STORE_NAME)
    store.quick_check()
    assert store.read_totals(1).control.n_predictions == 3
    store.close()


@pytest.mark.parametrize("content", [b"", b"rubbish" * 5000])
def test_beside_a_damaged_file_predictions_are_kept_until_it_is_moved_away(
    tmp_path: Path, observe: Callable[..., Observation], content: bytes
) -> None:
    path = tmp_path / STORE_NAME
    path.write_bytes(content)
    log = ObservationLog(tmp_path, move_interval_s=0.01)
    log.start()
    for number in range(20):
        log.append(observe(f"p{number}"), must_keep=number % 2 == 0)
    wait_until(lambda: log.status.problem is not None)
    assert "damaged" in str(log.status.problem)
    for reading in (
        log.flush,
        lambda: log.read_totals(1),
        lambda: log.add_outcomes([Outcome(prediction_id="p1", label=1)]),
    ):
        with pytest.raises(ObservationsCorrupt, match="move it away"):
            reading()
    path.rename(tmp_path / "away")
    log.flush()
    assert _n_predictions(log) == 20
    assert (tmp_path / "away").read_bytes() == content
    log.close()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(lambda log: log.flush(), id="flush"),
        pytest.param(lambda log: log.read_totals(1), id="read totals"),
        pytest.param(lambda log: log.add_outcomes([Outcome(prediction_id="old1", label=1)]), id="add outcomes"),
        pytest.param(lambda log: log.prune(), id="prune"),
    ],
)
def test_a_damaged_file_is_left_for_a_new_one_whatever_found_it(
    tmp_path: Path, observe: Callable[..., Observation], first: Callable[[ObservationLog], object]
) -> None:
    path = tmp_path / STORE_NAME
    log = ObservationLog(tmp_path)
    for number in range(200):
        log.append(observe(f"old{number}", unit=f"u{number}", features=bytes(500)), must_keep=True)
    log.flush()
    log.close()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    log = ObservationLog(tmp_path)
    log.append(observe("new"), must_keep=True)
    with pytest.raises(ObservationsCorrupt):
        first(log)
    with pytest.raises(ObservationsCorrupt):
        log.flush()
    log.append(observe("new too"), must_keep=True)
    path.rename(tmp_path / "away")
    log.flush()
    assert _n_predictions(log) == 2
    log.close()


def test_on_a_full_disk_what_could_not_be_moved_stays_in_the_journal(
    tmp_path: Path, observe: Callable[..., Observation]
) -> None:
    log = ObservationLog(tmp_path)
    log.append(observe("a"), must_keep=True)
    log.flush()
    with log.store().write() as raw:
        raw.execute(f"PRAGMA max_page_count = {raw.execute('PRAGMA page_count').fetchone()[0]}")
    for number in range(100):
        log.append(observe(f"p{number}", features=bytes(4000)), must_keep=True)
    with pytest.raises(DiskFull):
        log.flush()
    assert _n_predictions(log) == 1
    log.append(observe("b"), must_keep=True)
    with log.store().write() as raw:
        raw.execute("PRAGMA max_page_count = 1000000")
    log.flush()
    assert _n_predictions(log) == 102
    log.close()


def test_a_journal_that_nobody_moves_refuses_what_must_be_kept_at_its_bound_and_goes_on_after_a_move(
    tmp_path: Path, observe: Callable[..., Observation]
) -> None:
    log = ObservationLog(tmp_path, journal_bytes=50_000, move_interval_s=3600)
    n_kept = 0
    with pytest.raises(Overloaded):
        while True:
            log.append(observe(f"p{n_kept}", features=bytes(400)), must_keep=True)
            n_kept += 1
    log.append(observe("other", experiment_key=None, arm=None), must_keep=False)
    assert log.status.n_dropped == 1
    log.flush()
    assert _n_predictions(log) == n_kept
    log.append(observe("again"), must_keep=True)
    log.close()


def test_one_call_of_outcomes_and_the_thread_do_not_wait_for_each_other_for_ever(
    started: ObservationLog, observe: Callable[..., Observation]
) -> None:
    """Each holds what the other wants in turn: the turn to move, and the file's write lock."""
    reports: list[Any] = []

    def report(number: int) -> None:
        reports.append(started.add_outcomes([Outcome(prediction_id=f"p{number}", label="BUY")]))

    for number in range(20):
        started.append(observe(f"p{number}"), must_keep=True)
    threads = [threading.Thread(target=report, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.n_accepted for report in reports] == [1] * 20
    assert started.read_totals(1).control.accuracy.x == 20


def test_what_nobody_thought_of_does_not_end_the_thread(
    started: ObservationLog, observe: Callable[..., Observation]
) -> None:
    with started.store().write() as raw:
        raw.execute("ALTER TABLE units RENAME TO elsewhere")
    started.append(observe("a"), must_keep=True)
    wait_until(lambda: started.status.problem is not None)
    with started.store().write() as raw:
        raw.execute("ALTER TABLE elsewhere RENAME TO units")
    wait_until(lambda: started.status.problem is None)
    assert _n_predictions(started) == 1


def test_the_settings_of_an_instance_are_those_of_its_log(tmp_path: Path, observe: Callable[..., Observation]) -> None:
    settings = Settings(data_dir=tmp_path, observations_journal_bytes=1 << 20)
    log = ObservationLog.from_settings(settings)
    with pytest.raises(Overloaded):
        while True:
            log.append(observe("a", features=bytes(100_000)), must_keep=True)
    log.close()
    assert (tmp_path / STORE_NAME).exists()


OBSERVE_UNTIL_KILLED = """
import sys
from pathlib import Path
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.values import Observation, Outcome
log = ObservationLog(Path(sys.argv[1]), move_interval_s=0.001)
log.journal._file_bytes = 5000
log.start()
number = 0
while True:
    prediction_id = f"{sys.argv[2]}-{number}"
    log.append(
        Observation(prediction_id=prediction_id, at_us=1, experiment_key=1, arm="control", unit=f"u{number % 5}",
                    symbol="S", direction=1, features=bytes(100)),
        must_keep=True,
    )
    print("made", prediction_id, flush=True)
    if number % 10 == 0:
        assert log.add_outcomes([Outcome(prediction_id=prediction_id, label="BUY")]).n_accepted == 1
        print("told", prediction_id, flush=True)
    number += 1
"""


def test_a_process_that_is_killed_while_it_observes_and_moves_keeps_all_that_it_acknowledged_and_sums_it_once(
    tmp_path: Path, recompute: Callable[[ObservationStore, int], ExperimentTotals]
) -> None:
    rng = random.Random(21)
    said: list[list[str]] = []
    for number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", OBSERVE_UNTIL_KILLED, tmp_path, f"w{number}"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(rng.randrange(20, 200))]
        process.kill()
        lines += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        said += [line.split() for line in lines if line.endswith("\n")]
    log = ObservationLog(tmp_path)
    log.flush()
    with log.store().read() as raw:
        made = [row[0] for row in raw.execute("SELECT prediction_id FROM predictions").fetchall()]
        told = {
            row[0]
            for row in raw.execute(
                "SELECT prediction_id FROM predictions JOIN outcomes ON outcomes.prediction = predictions.id"
            ).fetchall()
        }
    assert len(made) == len(set(made))
    assert {prediction_id for verb, prediction_id in said if verb == "made"} <= set(made)
    assert {prediction_id for verb, prediction_id in said if verb == "told"} <= told
    assert len(said) > 100
    assert log.read_totals(1) == recompute(log.store(), 1)
    log.close()
