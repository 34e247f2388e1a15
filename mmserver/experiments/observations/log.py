"""The observation log of one process, whole: what the server uses of this package."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from mmserver.errors import MmserverError, ObservationsCorrupt
from mmserver.experiments.observations.dead_bands import DeadBands
from mmserver.experiments.observations.exporting import export_parquet
from mmserver.experiments.observations.journal import Journal, journal_files, size_of
from mmserver.experiments.observations.model_sums import ModelDay
from mmserver.experiments.observations.mover import Mover
from mmserver.experiments.observations.outcomes import add_outcomes
from mmserver.experiments.observations.prices import add_prices
from mmserver.experiments.observations.reports import LogStatus, OutcomeReport, PriceReport, PruneReport
from mmserver.experiments.observations.retention import prune
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation, Outcome, Price
from mmserver.experiments.totals import ExperimentTotals
from mmserver.settings import Settings

JOURNALS_DIR = "observations"
STORE_NAME = "observations.sqlite"
_FLUSH_WAIT_S = 30.0
_MAX_PAUSE_S = 30.0
_PRUNE_INTERVAL_S = 3600.0

log = logging.getLogger(__name__)


class ObservationLog:
    """What predictions were, and what came of them; every process that serves has one, on one data directory.

    `append` writes to a journal of this process and needs neither `start` nor the database file, so predictions go on while
    that is locked, damaged or on a full disk. A thread of each started process moves what lies in all journals, those of
    dead processes too, into `observations.sqlite`, and sums it. Nothing is opened before `start`, or the first call that reads.

        observations = ObservationLog(settings.data_dir)
        observations.start()
        observations.append(Observation(...), must_keep=True)  # before the answer is sent
        report = observations.add_outcomes([Outcome(prediction_id=..., label="BUY")])
        totals = observations.read_totals(experiment.log_key)
        observations.close()

    All but `append` may wait for another process's transaction, and raise DatabaseBusy, DatabaseCorrupt, DiskFull or
    WritesStopped when the file cannot be used; whatever was appended stays in the journals, and is moved once it can be.

    Args:
        journal_bytes: how much may wait in the journals; beyond, `append` raises Overloaded for what must be kept.
        retention_days, retention_bytes: how long and how much of single predictions is kept; sums stay.
        outcome_grace_s: after its horizon, how long until a prediction without an outcome counts as one without.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        journal_bytes: int = 1 << 30,
        retention_days: float = 90.0,
        retention_bytes: int = 20 << 30,
        outcome_grace_s: float = 3600.0,
        move_interval_s: float = 0.5,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.journal = Journal(data_dir / JOURNALS_DIR, limit_bytes=journal_bytes)
        self._path = data_dir / STORE_NAME
        self._retention_days = retention_days
        self._retention_bytes = retention_bytes
        self._outcome_grace_s = outcome_grace_s
        self._move_interval_s = move_interval_s
        self._now = now
        self._problem: str | None = None
        self._n_damaged_bytes = 0
        self._opened: tuple[ObservationStore, Mover] | None = None
        self._turn_to_open = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observations", daemon=True)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The log of an instance's data directory."""
        return cls(
            settings.data_dir,
            journal_bytes=settings.observations_journal_bytes,
            retention_days=settings.observations_days,
            retention_bytes=settings.observations_bytes,
            outcome_grace_s=settings.observations_grace_s,
        )

    def start(self) -> None:
        """Begin to move, in a thread. Never fails for the file's sake: see `status`."""
        self._thread.start()

    def append(self, observation: Observation, *, must_keep: bool) -> None:
        """Keep one prediction: a few microseconds, one write. See `Journal.append`.

        Raises:
            Overloaded, DiskFull: it must be kept and cannot be; do not answer it.
        """
        self.journal.append(observation, must_keep=must_keep)

    def append_all(self, observations: Iterable[Observation], *, must_keep: bool) -> None:
        """Keep many predictions, with few writes. See `Journal.append_all`.

        Raises:
            Overloaded, DiskFull: they must be kept and cannot all be.
        """
        self.journal.append_all(observations, must_keep=must_keep)

    def flush(self) -> None:
        """Move all that any process appended before this call; when it returns, all of it is in the store and its sums."""
        self._move(lambda mover: mover.move(wait_s=_FLUSH_WAIT_S))

    def add_outcomes(
        self, outcomes: Iterable[Outcome], *, experiment_key: int | None = None, dead_bands: DeadBands | None = None
    ) -> OutcomeReport:
        """Add what came of predictions; see `outcomes.add_outcomes`. Never raises for a bad outcome: it is in the report.

        Args:
            outcomes: any number, read one after another; those of files: `outcome_files.outcomes_from_csv`, `…_parquet`.
            experiment_key: predictions of others count as unknown; None: those outside experiments, too, are known.
            dead_bands: where an outcome has a return and no label, they give it one.
        """
        with self._using() as (store, _):
            return add_outcomes(
                store,
                outcomes,
                flush=self.flush,
                now=self._now(),
                experiment_key=experiment_key,
                dead_bands=dead_bands,
            )

    def add_prices(self, prices: Iterable[Price], *, dead_bands: DeadBands | None = None) -> PriceReport:
        """Add prices, and the outcomes of all predictions whose horizon they reach; see `prices.add_prices`."""
        with self._using() as (store, _):
            return add_prices(store, prices, flush=self.flush, now=self._now(), dead_bands=dead_bands)

    def store(self) -> ObservationStore:
        """The file itself, opened; `flush` first for what was appended until now."""
        return self._open()[0]

    def read_totals(self, experiment_key: int) -> ExperimentTotals:
        """The sums of one experiment as of the last move; `flush` first for those of this moment. Empty for an unknown one."""
        with self._using() as (store, _):
            return store.read_totals(experiment_key)

    def read_model_days(self, model_name: str | None = None) -> list[ModelDay]:
        """What was observed outside experiments as of the last move, per model, version and day; of one model, or all."""
        with self._using() as (store, _):
            return store.read_model_days(model_name)

    def read_looks(self, experiment_key: int) -> int:
        """The number of the last look at an experiment that was noted in the file; 0 where none was."""
        with self._using() as (store, _):
            return store.read_looks(experiment_key)

    def note_looks(self, experiment_key: int, n: int) -> None:
        """Note a look in the file, before the decision is kept elsewhere; see `ObservationStore.note_looks`."""
        with self._using() as (store, _):
            store.note_looks(experiment_key, n)

    def export(self, target: Path, *, experiment_key: int | None = None) -> int:
        """Write predictions and their outcomes to a Parquet file; of one experiment, or all.

        Returns:
            how many rows

        Raises:
            ExtraMissing: pyarrow is not installed.
        """
        self.flush()
        with self._using() as (store, _):
            return export_parquet(store, target, experiment_key=experiment_key)

    def prune(self) -> PruneReport:
        """Delete single predictions that are too old or too many; the thread does so once an hour."""
        retention_s = self._retention_days * 86_400
        with self._using() as (store, _):
            return prune(store, now=self._now(), retention_s=retention_s, retention_bytes=self._retention_bytes)

    @property
    def status(self) -> LogStatus:
        """How it goes: what waits, what was dropped, and why nothing can be moved, if so. Touches no file."""
        journal = self.journal
        return LogStatus(journal.n_dropped, journal.n_unmoved_bytes, self._n_damaged_bytes, self._problem)

    def close(self) -> None:
        """Move what is there, if that is possible, and end; nothing may be appended meanwhile or afterwards."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self.journal.close()
        self._try_to_move(lambda mover: mover.move(wait_s=_FLUSH_WAIT_S))
        self._forget_store()

    # --- moving -----------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause_s = self._move_interval_s
        prune_at = time.monotonic() + _PRUNE_INTERVAL_S
        while not self._closing.wait(pause_s):
            has_moved = self._try_to_move(lambda mover: mover.move_if_due(0.9 * self._move_interval_s))
            # Trying again and again what cannot work would cost more than moving does.
            pause_s = self._move_interval_s if has_moved else min(max(2 * pause_s, 0.1), _MAX_PAUSE_S)
            if has_moved and time.monotonic() >= prune_at:
                self._prune_or_log()
                prune_at = time.monotonic() + _PRUNE_INTERVAL_S

    def _prune_or_log(self) -> None:
        try:
            report = self.prune()
        except Exception as error:  # noqa: BLE001 (a scheduled job)
            log.warning("old observations could not be deleted: %s", error)
        else:
            if report != PruneReport():
                log.info("%s", report)

    def _try_to_move(self, move: Callable[[Mover], object]) -> bool:
        try:
            self._move(move)
        except Exception as error:
            is_expected = isinstance(error, (MmserverError, OSError))
            if self._problem != str(error):
                log.warning("observations stay in their journals: %s", error, exc_info=None if is_expected else error)
            self._problem = str(error)
            return False
        self._problem = None
        return True

    def _move(self, move: Callable[[Mover], object]) -> None:
        try:
            with self._using() as (_, mover):
                try:
                    move(mover)
                finally:
                    self._n_damaged_bytes += mover.take_damaged_bytes()
        finally:
            self._say_unmoved()

    @contextmanager
    def _using(self) -> Iterator[tuple[ObservationStore, Mover]]:
        """The file, opened; let go of where it is damaged: somebody may put another in its place."""
        try:
            yield self._open()
        except ObservationsCorrupt:
            self._forget_store()
            raise

    def _say_unmoved(self) -> None:
        opened = self._opened
        try:
            n_bytes = opened[1].unmoved_bytes() if opened else sum(map(size_of, journal_files(self.journal.folder)))
        except (MmserverError, OSError):
            return  # what was known goes on to be counted up
        self.journal.set_unmoved(n_bytes)

    def _open(self) -> tuple[ObservationStore, Mover]:
        with self._turn_to_open:
            if self._opened is not None and not self._opened[0].is_in_place:
                log.warning("%s was deleted or replaced: what was in it is no longer counted", self._path)
                self._opened[0].close()
                self._opened = None
            if self._opened is None:
                store = ObservationStore(self._path)
                mover = Mover(self.journal.folder, store, outcome_grace_s=self._outcome_grace_s, now=self._now)
                self._opened = (store, mover)
            return self._opened

    def _forget_store(self) -> None:
        with self._turn_to_open:
            if self._opened is not None:
                self._opened[0].close()
                self._opened = None
