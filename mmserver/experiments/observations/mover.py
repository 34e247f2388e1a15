"""The mover: from all processes' journals into the store, each record exactly once, whoever of them dies on the way.

How far a journal was moved is kept in the transaction that moves it. A journal whose process has ended is deleted then.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mmserver.errors import DatabaseBusy
from mmserver.experiments.observations.adding import add_changes
from mmserver.experiments.observations.journal import journal_files, lock_now, locked_if_ended, names_lock, size_of
from mmserver.experiments.observations.model_sums import ModelChanges
from mmserver.experiments.observations.records import MAX_RECORD_BYTES, ReadRecords, read_records
from mmserver.experiments.observations.store import DUE_UNTIL, ObservationStore, mark, set_mark
from mmserver.experiments.observations.sums import ARMS, CONTROL, TREATMENT, Answer, Cell, Changes, Counted
from mmserver.experiments.observations.tables import PREDICTION_COLUMNS, insert_rows
from mmserver.experiments.observations.values import Observation
from mmserver.storage.files import fsync_directory

_PART_BYTES = 4 << 20
_DUE_AT_ONCE = 50_000
_TURN_POLL_S = 0.005

log = logging.getLogger(__name__)


class Mover:
    """Moves what lies in a folder of journals into a store; any number of processes may have one.

    Args:
        outcome_grace_s: after its horizon, how long until a prediction without an outcome counts as one without.
        now: the wall clock, seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        store: ObservationStore,
        *,
        outcome_grace_s: float = 3600.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._store = store
        self._n_damaged_bytes = 0
        self._grace_us = int(outcome_grace_s * 1e6)
        self._now = now

    def move(self, *, wait_s: float) -> int:
        """Move all that was appended before the call, and count horizons that ended.

        Returns:
            how many predictions were moved

        Raises:
            DatabaseBusy: another process was still moving after wait_s.
            DiskFull, ObservationsCorrupt, WritesStopped: what was not moved stays in the journals.
        """
        with moving_turn(self._folder, wait_s=wait_s) as turn:
            if turn is None:
                raise DatabaseBusy()
            return self._move_all(turn)

    def move_if_due(self, interval_s: float) -> int:
        """The same, unless some process moves now, or has within the interval: one of them is enough."""
        with moving_turn(self._folder, wait_s=0.0) as turn:
            if turn is None or 0.0 <= time.time() - os.fstat(turn).st_mtime < interval_s:
                return 0
            return self._move_all(turn)

    def _move_all(self, turn: int) -> int:
        n_moved = sum(self._move_file(path) for path in journal_files(self._folder))
        self._count_due()
        os.utime(turn)
        return n_moved

    def take_damaged_bytes(self) -> int:
        """How much could not be read since this was last asked."""
        n_bytes, self._n_damaged_bytes = self._n_damaged_bytes, 0
        return n_bytes

    def unmoved_bytes(self) -> int:
        """How much lies in all journals and is not in the store."""
        with self._store.read() as raw:
            moved = dict(raw.execute("SELECT name, moved_bytes FROM journals").fetchall())
        return sum(max(0, size_of(path) - moved.get(path.name, 0)) for path in journal_files(self._folder))

    def _move_file(self, path: Path) -> int:
        # Asked first: what is in the file of a process that has ended is all that will ever be in it.
        with locked_if_ended(path) as has_ended:
            n_moved = self._move_parts(path)
            if has_ended:
                self._delete(path)
        return n_moved

    def _move_parts(self, path: Path) -> int:
        n_moved = 0
        size = size_of(path)
        with self._store.read() as raw:
            start = _moved_bytes(raw, path.name)
        part_bytes = _PART_BYTES
        while start < size:
            part = read_records(_part_of(path, start, part_bytes))
            if not part.observations:
                if start + part_bytes >= size or part_bytes > MAX_RECORD_BYTES:
                    break  # the rest is a record that is being written, or was torn
                part_bytes *= 2
                continue
            n_moved += self._write(path, start, part)
            start += part.end
            part_bytes = _PART_BYTES
        return n_moved

    def _write(self, path: Path, start: int, part: ReadRecords) -> int:
        with self._store.write() as raw:
            if _moved_bytes(raw, path.name) != start:
                raise DatabaseBusy()  # somebody moves without the turn: let him
            raw.execute("INSERT OR REPLACE INTO journals VALUES (?, ?)", (path.name, start + part.end))
            changes, models = Changes(mark(raw, DUE_UNTIL)), ModelChanges()
            for observation in insert_predictions(raw, part.observations):
                if observation.experiment_key is not None and observation.arm is not None:
                    changes.add_prediction(_counted(observation))
                elif observation.experiment_key is None:
                    models.add_prediction(observation)
            add_changes(raw, changes)
            models.write(raw)
        if part.n_skipped_bytes:
            self._say_damaged(path, part.n_skipped_bytes)
        return len(part.observations)

    def _delete(self, path: Path) -> None:
        with self._store.read() as raw:
            n_left = size_of(path) - _moved_bytes(raw, path.name)
        if n_left > 0:
            self._say_damaged(path, n_left)
        with names_lock(self._folder):
            path.unlink(missing_ok=True)
            fsync_directory(self._folder)
        # Only now: a file without its row would be moved a second time.
        with self._store.write() as raw:
            raw.execute("DELETE FROM journals WHERE name = ?", (path.name,))

    def _say_damaged(self, path: Path, n_bytes: int) -> None:
        self._n_damaged_bytes += n_bytes
        log.warning("%d bytes of %s are no whole record and were left out", n_bytes, path)

    def _count_due(self) -> None:
        """Count predictions whose horizon and grace ended since the last time; never again what was counted."""
        until = int(self._now() * 1e6) - self._grace_us
        while True:
            with self._store.read() as raw:
                since = mark(raw, DUE_UNTIL)
                if until <= since:
                    return
                later = raw.execute(
                    "SELECT due_us FROM predictions WHERE experiment IS NOT NULL AND due_us > ? AND due_us <= ? "
                    "ORDER BY due_us LIMIT 1 OFFSET ?",
                    (since, until, _DUE_AT_ONCE),
                ).fetchone()
            with self._store.write() as raw:
                since = mark(raw, DUE_UNTIL)
                target = later[0] if later else until
                changes = Changes(target)
                for arm, condition in _DUE_CONDITIONS:
                    for *place, n, n_with_outcome in raw.execute(
                        _DUE.format(arm, condition), (since, target)
                    ).fetchall():
                        changes.add_due(Cell(*place), n, n_with_outcome)
                add_changes(raw, changes)
                set_mark(raw, DUE_UNTIL, max(since, target))


_DUE = """
SELECT experiment, phase, unit, {}, symbol, count(*), count(outcomes.prediction)
FROM predictions LEFT JOIN outcomes ON outcomes.prediction = predictions.id
WHERE experiment IS NOT NULL AND arm IS NOT NULL AND due_us > ? AND due_us <= ? AND NOT is_washed_out AND {}
GROUP BY 1, 2, 3, 4, 5
"""
_DUE_CONDITIONS = (
    ("arm", "error IS NULL"),
    (str(TREATMENT), f"arm = {CONTROL} AND shadow_latency_us IS NOT NULL AND shadow_error IS NULL"),
)


@contextmanager
def moving_turn(folder: Path, *, wait_s: float) -> Iterator[int | None]:
    """While inside, no other process or thread moves from the folder; None where somebody else still does after wait_s."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "moving.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while not lock_now(descriptor):
            if time.monotonic() >= deadline:
                yield None
                return
            time.sleep(_TURN_POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def insert_predictions(raw: Any, observations: Sequence[Observation]) -> Sequence[Observation]:
    """Insert predictions; of several with one id the first stays.

    Returns:
        those that were inserted
    """
    rows = [_row(observation) for observation in observations]
    raw.execute("SAVEPOINT predictions")
    n_before = raw.total_changes
    insert_rows(raw, "predictions", PREDICTION_COLUMNS, rows, verb="INSERT OR IGNORE")
    if raw.total_changes - n_before == len(rows):
        raw.execute("RELEASE predictions")
        return observations
    raw.execute("ROLLBACK TO predictions")
    raw.execute("RELEASE predictions")
    new: dict[str, Observation] = {}
    for observation in observations:
        new.setdefault(observation.prediction_id, observation)
    for (known,) in raw.execute(
        "SELECT prediction_id FROM predictions WHERE prediction_id IN (SELECT value FROM json_each(?))",
        (_encode_json(list(new)),),
    ).fetchall():
        del new[known]
    insert_rows(raw, "predictions", PREDICTION_COLUMNS, [_row(found) for found in new.values()], verb="INSERT")
    return list(new.values())


def _encode_json(values: Sequence[str]) -> str:
    return msgspec.json.encode(values).decode()


def _row(observation: Observation) -> tuple[Any, ...]:
    shadow = observation.shadow
    arm = observation.arm
    return (
        observation.prediction_id,
        observation.at_us,
        observation.at_us + observation.horizon_us,
        observation.experiment_key,
        observation.phase,
        None if arm is None else ARMS.index(arm),
        observation.unit,
        observation.symbol,
        observation.model_name,
        observation.version,
        observation.direction,
        observation.confidence,
        observation.expected_return,
        observation.latency_us,
        observation.error,
        observation.is_washed_out,
        *(
            (None,) * 4
            if shadow is None
            else (shadow.direction, shadow.expected_return, shadow.latency_us, shadow.error)
        ),
        observation.features,
    )


def _counted(observation: Observation) -> Counted:
    shadow = observation.shadow
    assert observation.experiment_key is not None  # noqa: S101
    return Counted(
        observation.experiment_key,
        observation.phase,
        CONTROL if observation.arm == "control" else TREATMENT,
        observation.unit,
        observation.symbol,
        observation.at_us,
        observation.at_us + observation.horizon_us,
        observation.is_washed_out,
        Answer(observation.direction, observation.latency_us, observation.error is not None),
        None if shadow is None else Answer(shadow.direction, shadow.latency_us, shadow.error is not None),
    )


def _moved_bytes(raw: Any, name: str) -> int:
    row = raw.execute("SELECT moved_bytes FROM journals WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _part_of(path: Path, start: int, n_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(n_bytes)
    except FileNotFoundError:
        return b""
