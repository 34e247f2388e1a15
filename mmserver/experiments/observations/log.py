"""The observation log of one process, whole: what the server uses of this package."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from mmserver.experiments.observations.journal import Journal
from mmserver.experiments.observations.reports import LogStatus, OutcomeReport, PriceReport, PruneReport
from mmserver.experiments.observations.values import Observation, Outcome, Price
from mmserver.experiments.totals import ExperimentTotals

JOURNALS_DIR = "observations"
STORE_NAME = "observations.sqlite"


class ObservationLog:
    """What experiments' predictions were, and what came of them; every process that serves has one, on one data directory.

    `append` writes to a journal of this process and needs neither `start` nor the database file, so predictions go on while
    that is locked, damaged or on a full disk. A thread of each started process moves what lies in all journals, those of
    dead processes too, into `observations.sqlite`, and sums it. Nothing is opened before `start`, or the first call that reads.

        observations = ObservationLog(settings.data_dir)
        observations.start()
        observations.append(Observation(...), must_keep=True)  # before the answer is sent
        report = observations.add_outcomes([Outcome(prediction_id=..., label="BUY")])
        totals = observations.read_totals(experiment.key)
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

    def start(self) -> None:
        """Begin to move, in a thread. Never fails for the file's sake: see `status`."""
        raise NotImplementedError

    def append(self, observation: Observation, *, must_keep: bool) -> None:
        """Keep one prediction: a few microseconds, one write. See `Journal.append`.

        Raises:
            Overloaded, DiskFull: it must be kept and cannot be; do not answer it.
        """
        self.journal.append(observation, must_keep=must_keep)

    def flush(self) -> None:
        """Move all that any process appended before this call; when it returns, all of it is in the store and its sums."""
        raise NotImplementedError

    def add_outcomes(
        self, outcomes: Iterable[Outcome], *, experiment_key: int | None = None, dead_band: float | None = None
    ) -> OutcomeReport:
        """Add what came of predictions; see `outcomes.add_outcomes`. Never raises for a bad outcome: it is in the report.

        Args:
            outcomes: any number, read one after another; those of files: `outcome_files.outcomes_from_csv`, `…_parquet`.
            experiment_key: predictions of others count as unknown.
            dead_band: where an outcome has a return and no label, its label is BUY above it, SELL below -dead_band, else HOLD.
        """
        raise NotImplementedError

    def add_prices(self, prices: Iterable[Price], *, dead_band: float | None = None) -> PriceReport:
        """Add prices, and the outcomes of all predictions whose horizon they reach; see `prices.add_prices`."""
        raise NotImplementedError

    def read_totals(self, experiment_key: int) -> ExperimentTotals:
        """The sums of one experiment as of the last move; `flush` first for those of this moment. Empty for an unknown one."""
        raise NotImplementedError

    def export(self, target: Path, *, experiment_key: int | None = None) -> int:
        """Write predictions and their outcomes to a Parquet file; of one experiment, or all.

        Returns:
            how many rows

        Raises:
            ExtraMissing: pyarrow is not installed.
        """
        raise NotImplementedError

    def prune(self) -> PruneReport:
        """Delete single predictions that are too old or too many; the thread does so once an hour."""
        raise NotImplementedError

    @property
    def status(self) -> LogStatus:
        """How it goes: what waits, what was dropped, and why nothing can be moved, if so. Touches no file."""
        raise NotImplementedError

    def close(self) -> None:
        """Move what is there, if that is possible, and end; nothing may be appended meanwhile or afterwards."""
        self.journal.close()
