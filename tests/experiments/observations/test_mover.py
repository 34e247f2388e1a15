"""The mover: each record exactly once, whoever dies, and whoever else wants to move."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmserver.errors import DatabaseBusy
from mmserver.experiments.observations.journal import Journal, journal_files
from mmserver.experiments.observations.mover import Mover, moving_turn
from mmserver.experiments.observations.records import record_from_observation
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation
from mmserver.experiments.totals import ExperimentTotals

APPEND_UNTIL_KILLED = """
import sys
from pathlib import Path
from mmserver.experiments.observations.journal import Journal
from mmserver.experiments.observations.values import Observation
journal = Journal(Path(sys.argv[1]), file_bytes=20_000)
number = 0
while True:
    observation = Observation(
        prediction_id=f"{sys.argv[2]}-{number}", at_us=1_790_000_000_000_000 + number, experiment_key=1, arm="control",
        unit=f"u{number % 7}", symbol="S", direction=1, features=bytes(440),
    )
    journal.append(observation, must_keep=True)
    print(observation.prediction_id, flush=True)
    number += 1
"""

MOVE_UNTIL_KILLED = """
import sys
from pathlib import Path
from mmserver.errors import DatabaseBusy
from mmserver.experiments.observations import mover
from mmserver.experiments.observations.store import ObservationStore
mover._PART_BYTES = 3000
store = ObservationStore(Path(sys.argv[2]))
moving = mover.Mover(Path(sys.argv[1]), store)
print("moving", flush=True)
while True:
    try:
        moving.move(wait_s=0.0)
    except DatabaseBusy:
        pass
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObservationStore]:
    opened = ObservationStore(tmp_path / "observations.sqlite")
    yield opened
    opened.close()


def _ids(store: ObservationStore) -> list[str]:
    with store.read() as raw:
        return [row[0] for row in raw.execute("SELECT prediction_id FROM predictions ORDER BY id").fetchall()]


def _start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True, bufsize=1
    )


def _killed_after(process: subprocess.Popen[str], n_lines: int) -> list[str]:
    """What it said, whole lines only, until it was killed."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(n_lines)]
    process.kill()
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    return [line.strip() for line in lines if line.endswith("\n")]


def test_what_was_acknowledged_before_kill_9_is_found_exactly_once(
    tmp_path: Path,
    store: ObservationStore,
    recompute: Callable[[ObservationStore, int], ExperimentTotals],
) -> None:
    rng = random.Random(11)
    folder = tmp_path / "journals"
    mover = Mover(folder, store)
    acknowledged: list[str] = []
    for number in range(10):
        process = _start(APPEND_UNTIL_KILLED, folder, f"w{number}")
        acknowledged += _killed_after(process, rng.randrange(1, 250))
        if rng.random() < 0.3:
            mover.move(wait_s=10.0)
    mover.move(wait_s=10.0)
    ids = _ids(store)
    assert len(ids) == len(set(ids))
    assert set(acknowledged) <= set(ids)
    assert len(acknowledged) > 300
    assert len(ids) - len(acknowledged) <= 10  # at most one of each process was written and not yet said
    totals = store.read_totals(1)
    assert totals.control.n_predictions == len(ids)
    assert totals == recompute(store, 1)
    assert journal_files(folder) == []


def test_a_mover_that_is_killed_anywhere_moves_nothing_twice_and_loses_nothing(
    tmp_path: Path,
    store: ObservationStore,
    recompute: Callable[[ObservationStore, int], ExperimentTotals],
) -> None:
    rng = random.Random(12)
    folder = tmp_path / "journals"
    journal = Journal(folder, file_bytes=10_000)
    n_appended = 0
    for _ in range(4):
        process = _start(MOVE_UNTIL_KILLED, folder, store.path)
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(rng.randrange(20, 300)):
            journal.append(
                Observation(
                    prediction_id=f"p{n_appended}",
                    at_us=1_790_000_000_000_000,
                    experiment_key=1,
                    arm="treatment",
                    unit=f"u{n_appended % 5}",
                    direction=2,
                    features=bytes(100),
                ),
                must_keep=True,
            )
            n_appended += 1
        _killed_after(process, 0)
    journal.close()
    Mover(folder, store).move(wait_s=10.0)
    assert sorted(_ids(store)) == sorted(f"p{number}" for number in range(n_appended))
    assert store.read_totals(1) == recompute(store, 1)
    assert journal_files(folder) == []


def test_a_record_that_is_being_written_waits_and_a_torn_one_is_left_out_when_its_process_has_ended(
    tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(observe("a"), must_keep=True)
    [path] = journal_files(tmp_path / "j")
    torn = record_from_observation(observe("torn"))
    with path.open("ab") as file:
        file.write(torn[:50])
    mover = Mover(tmp_path / "j", store)
    assert mover.move(wait_s=1.0) == 1
    with path.open("ab") as file:
        file.write(torn[50:] + torn[:20])
    assert mover.move(wait_s=1.0) == 1
    assert (_ids(store), mover.take_damaged_bytes()) == (["a", "torn"], 0)
    journal.close()
    assert mover.move(wait_s=1.0) == 0
    assert (journal_files(tmp_path / "j"), mover.take_damaged_bytes()) == ([], 20)


def test_damage_in_a_journal_is_counted_and_costs_no_other_record(
    tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]
) -> None:
    (tmp_path / "j").mkdir()
    records = [record_from_observation(observe(f"p{number}")) for number in range(4)]
    damaged = records[1][:30] + b"\0" + records[1][31:]
    (tmp_path / "j" / "1-a-000000.journal").write_bytes(records[0] + damaged + records[2] + records[3])
    mover = Mover(tmp_path / "j", store)
    mover.move(wait_s=1.0)
    assert _ids(store) == ["p0", "p2", "p3"]
    assert mover.take_damaged_bytes() == len(records[1])


def test_only_one_moves_at_a_time(tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(observe("a"), must_keep=True)
    mover = Mover(tmp_path / "j", store)
    with moving_turn(tmp_path / "j", wait_s=0.0) as turn:
        assert turn is not None
        with pytest.raises(DatabaseBusy):
            mover.move(wait_s=0.0)
        assert mover.move_if_due(0.0) == 0
    assert mover.move(wait_s=0.0) == 1
    journal.close()


def test_who_wants_to_move_waits_for_whoever_does(
    tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path / "j")
    journal.append(observe("a"), must_keep=True)
    mover = Mover(tmp_path / "j", store)
    moved: list[int] = []
    with moving_turn(tmp_path / "j", wait_s=0.0):
        thread = threading.Thread(target=lambda: moved.append(mover.move(wait_s=60.0)))
        thread.start()
        assert moved == []
    thread.join()
    assert moved == [1]
    journal.close()


def test_of_many_processes_one_moves_in_each_interval(
    tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path / "j")
    first, second = (Mover(tmp_path / "j", store) for _ in range(2))
    journal.append(observe("a"), must_keep=True)
    assert first.move(wait_s=1.0) == 1
    journal.append(observe("b"), must_keep=True)
    assert (second.move_if_due(3600.0), first.move_if_due(3600.0)) == (0, 0)
    assert second.move_if_due(0.0) == 1
    journal.close()


def test_of_two_predictions_with_one_id_the_first_is_kept_and_counted(
    tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path / "j")
    mover = Mover(tmp_path / "j", store)
    for direction in (1, 2):
        journal.append(observe("a", direction=direction), must_keep=True)
    journal.append(observe("b"), must_keep=True)
    mover.move(wait_s=1.0)
    journal.append(observe("b", symbol="other"), must_keep=True)
    journal.append(observe("c"), must_keep=True)
    mover.move(wait_s=1.0)
    journal.close()
    with store.read() as raw:
        rows = raw.execute("SELECT prediction_id, direction, symbol FROM predictions ORDER BY id").fetchall()
    assert [tuple(row) for row in rows] == [("a", 1, "BTCUSDT"), ("b", 1, "BTCUSDT"), ("c", 1, "BTCUSDT")]
    assert store.read_totals(1).control.n_predictions == 3


def test_a_journal_that_came_back_after_a_power_cut_is_not_counted_again(
    tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path / "j")
    mover = Mover(tmp_path / "j", store)
    for number in range(5):
        journal.append(observe(f"p{number}"), must_keep=True)
    [path] = journal_files(tmp_path / "j")
    content = path.read_bytes()
    journal.close()
    mover.move(wait_s=1.0)
    assert not path.exists()
    path.write_bytes(content)
    mover.move(wait_s=1.0)
    assert len(_ids(store)) == 5
    assert store.read_totals(1).control.n_predictions == 5


def test_a_row_keeps_all_that_was_said_of_the_prediction(
    tmp_path: Path, store: ObservationStore, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path / "j")
    observation = observe(
        "a", phase=3, arm="treatment", confidence=0.5, expected_return=float("nan"), error="boom", direction=None,
        horizon_us=5, features=b"\x00\x01", is_washed_out=True,
    )  # fmt: skip
    journal.append(observation, must_keep=True)
    Mover(tmp_path / "j", store).move(wait_s=1.0)
    journal.close()
    with store.read() as raw:
        cursor = raw.execute("SELECT * FROM predictions")
        row = dict(zip([column[0] for column in cursor.description], cursor.fetchone(), strict=True))
    assert row == {
        "id": 1, "prediction_id": "a", "at_us": observation.at_us, "due_us": observation.at_us + 5, "experiment": 1,
        "phase": 3, "arm": 1, "unit": "BTCUSDT|1", "symbol": "BTCUSDT", "model_name": "wide", "version": "v1",
        "direction": None, "confidence": 0.5, "expected_return": None, "latency_us": 300, "error": "boom",
        "is_washed_out": 1, "shadow_direction": None, "shadow_expected_return": None, "shadow_latency_us": None,
        "shadow_error": None, "features": b"\x00\x01",
    }  # fmt: skip
