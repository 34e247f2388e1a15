"""The observation log of one process, whole: what the server uses of this package."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mmserver.experiments.observations.dead_bands import DeadBands
from mmserver.experiments.observations.exporting import export_parquet
from mmserver.experiments.observations.journal import Journal
from mmserver.experiments.observations.model_sums import ModelDay
from mmserver.experiments.observations.moving import JOURNALS_DIR, Moving, MovingOptions
from mmserver.experiments.observations.outcomes import add_outcomes
from mmserver.experiments.observations.prices import add_prices
from mmserver.experiments.observations.reports import LogStatus, OutcomeReport, PriceReport, PruneReport
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation, Outcome, Price
from mmserver.experiments.totals import ExperimentTotals
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.experiments.observations.moving_process import MovingSupervisor

_FLUSH_WAIT_S = 30.0


class ObservationLog:
    """What predictions were, and what came of them; every process that serves has one, on one data directory.

    `append` writes to a journal of this process and needs neither `start` nor the database file, so predictions go on while
    that is locked, damaged or on a full disk. What lies in all journals, those of dead processes too, is moved into
    `observations.sqlite` and summed by a thread of each started process, or by one process for the data directory, which such
    a thread starts once there is something to move. Nothing is opened before `start`, or the first call that reads.

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
        in_process: move in the thread; else it sees that a process does, which costs those that serve nothing.
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
        in_process: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.journal = Journal(data_dir / JOURNALS_DIR, limit_bytes=journal_bytes)
        self._moving = Moving(
            MovingOptions(
                data_dir=str(data_dir.absolute()),
                retention_days=retention_days,
                retention_bytes=retention_bytes,
                outcome_grace_s=outcome_grace_s,
                interval_s=move_interval_s,
            ),
            now=now,
            on_unmoved=self.journal.set_unmoved,
        )
        self._is_in_process = in_process
        self._supervisor: MovingSupervisor | None = None
        self._now = now
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
            in_process=False,
        )

    def start(self) -> None:
        """Begin to move, or to see that it is done. Never fails for the file's sake: see `status`."""
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
        self._moving.move(lambda mover: mover.move(wait_s=_FLUSH_WAIT_S))

    def add_outcomes(
        self, outcomes: Iterable[Outcome], *, experiment_key: int | None = None, dead_bands: DeadBands | None = None
    ) -> OutcomeReport:
        """Add what came of predictions; see `outcomes.add_outcomes`. Never raises for a bad outcome: it is in the report.

        Args:
            outcomes: any number, read one after another; those of files: `outcome_files.outcomes_from_csv`, `…_parquet`.
            experiment_key: predictions of others count as unknown; None: those outside experiments, too, are known.
            dead_bands: where an outcome has a return and no label, they give it one.
        """
        with self._moving.using() as (store, _):
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
        with self._moving.using() as (store, _):
            return add_prices(store, prices, flush=self.flush, now=self._now(), dead_bands=dead_bands)

    def store(self) -> ObservationStore:
        """The file itself, opened; `flush` first for what was appended until now."""
        return self._moving.open()[0]

    def read_totals(self, experiment_key: int) -> ExperimentTotals:
        """The sums of one experiment as of the last move; `flush` first for those of this moment. Empty for an unknown one."""
        with self._moving.using() as (store, _):
            return store.read_totals(experiment_key)

    def read_model_days(self, model_name: str | None = None) -> list[ModelDay]:
        """What was observed outside experiments as of the last move, per model, version and day; of one model, or all."""
        with self._moving.using() as (store, _):
            return store.read_model_days(model_name)

    def read_looks(self, experiment_key: int) -> int:
        """The number of the last look at an experiment that was noted in the file; 0 where none was."""
        with self._moving.using() as (store, _):
            return store.read_looks(experiment_key)

    def note_looks(self, experiment_key: int, n: int) -> None:
        """Note a look in the file, before the decision is kept elsewhere; see `ObservationStore.note_looks`."""
        with self._moving.using() as (store, _):
            store.note_looks(experiment_key, n)

    def export(self, target: Path, *, experiment_key: int | None = None) -> int:
        """Write predictions and their outcomes to a Parquet file; of one experiment, or all.

        Returns:
            how many rows

        Raises:
            ExtraMissing: pyarrow is not installed.
        """
        self.flush()
        with self._moving.using() as (store, _):
            return export_parquet(store, target, experiment_key=experiment_key)

    def prune(self) -> PruneReport:
        """Delete single predictions that are too old or too many; who moves does so once an hour."""
        return self._moving.prune()

    @property
    def status(self) -> LogStatus:
        """How it goes: what waits, what was dropped, and why nothing can be moved, if so. Touches no file."""
        journal, moving = self.journal, self._moving
        return LogStatus(journal.n_dropped, journal.n_unmoved_bytes, moving.n_damaged_bytes, moving.problem)

    def close(self) -> None:
        """Move what is there, if that is possible, and end; nothing may be appended meanwhile or afterwards."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self.journal.close()
        self._moving.try_to_move(lambda mover: mover.move(wait_s=_FLUSH_WAIT_S))
        self._moving.close()

    def _run(self) -> None:
        pause_s = self._moving.options.interval_s
        take_turn = self._moving.take_turn
        if not self._is_in_process:
            from mmserver.experiments.observations.moving_process import MovingSupervisor

            self._supervisor = MovingSupervisor(self._moving)
            take_turn = self._supervisor.take_turn
        try:
            while not self._closing.wait(pause_s):
                pause_s = take_turn()
        finally:
            if self._supervisor is not None:
                self._supervisor.close()
