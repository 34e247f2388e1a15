"""Moving again and again: one opened store and its mover, what went wrong last, and when to delete what is old.

The process that moves for a server and the server itself, where it has none, both do it by this.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from mmserver.errors import MmserverError, ObservationsCorrupt
from mmserver.experiments.observations.journal import journal_files, size_of
from mmserver.experiments.observations.mover import Mover
from mmserver.experiments.observations.reports import PruneReport
from mmserver.experiments.observations.retention import prune
from mmserver.experiments.observations.store import ObservationStore

JOURNALS_DIR = "observations"
STORE_NAME = "observations.sqlite"
_MAX_PAUSE_S = 30.0
_PRUNE_INTERVAL_S = 3600.0

log = logging.getLogger(__name__)


class MovingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is moved, how often, and what is kept of it; see `ObservationLog`."""

    data_dir: str
    retention_days: float
    retention_bytes: int
    outcome_grace_s: float
    interval_s: float


class Moving:
    """The observation file of a data directory, opened when it is needed, and all that is done to it now and then.

    Args:
        on_unmoved: is told how much waits in all journals, after each move and by `say_unmoved`.
    """

    def __init__(
        self,
        options: MovingOptions,
        *,
        now: Callable[[], float] = time.time,
        on_unmoved: Callable[[int], None] | None = None,
    ) -> None:
        self.options = options
        self.folder = Path(options.data_dir) / JOURNALS_DIR
        self.problem: str | None = None
        self.n_damaged_bytes = 0
        self._path = Path(options.data_dir) / STORE_NAME
        self._now = now
        self._on_unmoved = on_unmoved
        self._opened: tuple[ObservationStore, Mover] | None = None
        self._turn_to_open = threading.Lock()
        self._pause_s = options.interval_s
        self._prune_at = time.monotonic() + _PRUNE_INTERVAL_S

    def take_turn(self) -> float:
        """Move if that is due, and once an hour delete what is old; never fails: see `problem`.

        Returns:
            seconds until the next turn
        """
        interval_s = self.options.interval_s
        has_moved = self.try_to_move(lambda mover: mover.move_if_due(0.9 * interval_s))
        # Trying again and again what cannot work would cost more than moving does.
        self._pause_s = interval_s if has_moved else min(max(2 * self._pause_s, 0.1), _MAX_PAUSE_S)
        if has_moved and time.monotonic() >= self._prune_at:
            self._prune_or_log()
            self._prune_at = time.monotonic() + _PRUNE_INTERVAL_S
        return self._pause_s

    def try_to_move(self, move: Callable[[Mover], object]) -> bool:
        """As `move`, and whether it went well: what went wrong is logged once, and is the `problem`."""
        try:
            self.move(move)
        except Exception as error:
            is_expected = isinstance(error, (MmserverError, OSError))
            if self.problem != str(error):
                log.warning("observations stay in their journals: %s", error, exc_info=None if is_expected else error)
            self.problem = str(error)
            return False
        self.problem = None
        return True

    def move(self, move: Callable[[Mover], object]) -> None:
        """Have something moved, and say what waits then."""
        try:
            with self.using() as (_, mover):
                try:
                    move(mover)
                finally:
                    self.n_damaged_bytes += mover.take_damaged_bytes()
        finally:
            self.say_unmoved()

    def prune(self) -> PruneReport:
        """Delete single predictions that are too old or too many."""
        options = self.options
        with self.using() as (store, _):
            return prune(
                store,
                now=self._now(),
                retention_s=options.retention_days * 86_400,
                retention_bytes=options.retention_bytes,
            )

    def say_unmoved(self) -> int:
        """Tell how much waits in all journals; where that cannot be found out, nothing is told.

        Returns:
            the same, 0 where it is not known
        """
        if self._on_unmoved is None:
            return 0
        try:
            n_bytes = self._unmoved_bytes()
        except (MmserverError, OSError):
            return 0  # what was known goes on to be counted up
        self._on_unmoved(n_bytes)
        return n_bytes

    @contextmanager
    def using(self) -> Iterator[tuple[ObservationStore, Mover]]:
        """The file, opened; let go of where it is damaged: somebody may put another in its place."""
        try:
            yield self.open()
        except ObservationsCorrupt:
            self.close()
            raise

    def open(self) -> tuple[ObservationStore, Mover]:
        """The file, opened."""
        with self._turn_to_open:
            if self._opened is not None and not self._opened[0].is_in_place:
                log.warning("%s was deleted or replaced: what was in it is no longer counted", self._path)
                self._opened[0].close()
                self._opened = None
            if self._opened is None:
                store = ObservationStore(self._path)
                mover = Mover(self.folder, store, outcome_grace_s=self.options.outcome_grace_s, now=self._now)
                self._opened = (store, mover)
            return self._opened

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._turn_to_open:
            if self._opened is not None:
                self._opened[0].close()
                self._opened = None

    def _unmoved_bytes(self) -> int:
        if self._path.exists():
            try:
                with self.using() as (_, mover):
                    return mover.unmoved_bytes()
            except ObservationsCorrupt:
                pass
        return sum(map(size_of, journal_files(self.folder)))

    def _prune_or_log(self) -> None:
        try:
            report = self.prune()
        except Exception as error:  # noqa: BLE001 (a scheduled job)
            log.warning("old observations could not be deleted: %s", error)
        else:
            if report != PruneReport():
                log.info("%s", report)
