"""The observation file: a SQLite database of its own, so that it never waits for the main one, nor that for it."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from mmserver.errors import DatabaseCorrupt, ObservationsCorrupt, SchemaTooNew, SettingInvalid
from mmserver.experiments.observations.model_sums import ModelDay, read_model_days
from mmserver.experiments.observations.tables import APPLICATION_ID, CREATE, CREATE_HOURS, CREATE_MODEL_DAYS, VERSION
from mmserver.experiments.totals import ExperimentTotals, PhaseTotals, SymbolTotals
from mmserver.storage.database import Database
from mmserver.storage.files import disk_errors, fsync_directory, fsync_file
from mmserver.storage.sqlite import connect, error_from_sqlite, sqlite_module

_WAL_LIMIT_BYTES = 32 << 20
_UPGRADES: dict[int, str] = {1: CREATE_HOURS, 2: CREATE_MODEL_DAYS}
"""From each older version of the tables to the next one, the statements."""

DUE_UNTIL = "due_until_us"
"""The mark up to which the ends of horizons (and the grace after them) are in the sums of joins."""

_LOOKS = "looks:{}"
"""The mark of an experiment's last look, by its key."""

_phase_totals = msgspec.msgpack.Decoder(PhaseTotals).decode
_symbol_totals = msgspec.msgpack.Decoder(SymbolTotals).decode


class ObservationStore:
    """One open observation file, made if it is not there. Any thread may use it; one writes at a time, of all processes.

    Raises:
        ObservationsCorrupt: it is damaged, or not an observation file.
        SchemaTooNew: a newer mmserver wrote it.
        DatabaseBusy, DiskFull, SettingInvalid: it cannot be opened or made now.
    """

    def __init__(self, path: Path, *, busy_timeout_ms: int = 5000) -> None:
        self.path = path.absolute()
        if not self.path.exists():
            _create(self.path)
        with _named_damage(self.path):
            version = _identified_version(self.path, busy_timeout_ms)
            self._database = Database(
                self.path,
                "rw",
                "",
                n_readers=4,
                busy_timeout_ms=busy_timeout_ms,
                wal_limit_bytes=_WAL_LIMIT_BYTES,
            )
        if version < VERSION:
            self._upgrade(version)
        self._identity = _identity(self.path)

    @property
    def is_in_place(self) -> bool:
        """Whether the open file is still what is at its path, and was neither deleted nor replaced: what is written then is lost."""
        return _identity(self.path) == self._identity

    @contextmanager
    def read(self) -> Iterator[Any]:
        """One read transaction, as the raw DBAPI connection: rows come in bulk here, and SQLAlchemy would double their cost.

        Raises:
            DatabaseBusy, ObservationsCorrupt
        """
        with _named_damage(self.path), self._database.read() as connection:
            yield connection.connection.driver_connection

    @contextmanager
    def write(self) -> Iterator[Any]:
        """One write transaction, as the raw connection: all of it is on the disk when the block ends, or none.

        Raises:
            DatabaseBusy, DiskFull, ObservationsCorrupt, WritesStopped
        """
        with _named_damage(self.path), self._database.write() as connection:
            yield connection.connection.driver_connection

    def read_totals(self, experiment_key: int) -> ExperimentTotals:
        """The sums of one experiment; empty where nothing was moved of it. Costs the same at any number of predictions."""
        with self.read() as raw:
            phases = raw.execute(
                "SELECT phase, totals FROM phase_totals WHERE experiment = ? ORDER BY phase", (experiment_key,)
            ).fetchall()
            symbols = raw.execute(
                "SELECT phase, symbol, totals FROM symbol_totals WHERE experiment = ? ORDER BY phase, symbol",
                (experiment_key,),
            ).fetchall()
        by_symbol: dict[int, dict[str, SymbolTotals]] = {}
        for phase, symbol, totals in symbols:
            by_symbol.setdefault(phase, {})[symbol] = _symbol_totals(totals)
        return ExperimentTotals(
            phases={
                phase: replace(_phase_totals(totals), by_symbol=by_symbol.get(phase, {})) for phase, totals in phases
            }
        )

    def read_model_days(self, model_name: str | None = None) -> list[ModelDay]:
        """What was observed outside experiments, per model, version and day. Costs the same at any number of predictions."""
        with self.read() as raw:
            return read_model_days(raw, model_name)

    def read_looks(self, experiment_key: int) -> int:
        """The number of the last look that was noted here; 0 where none was. See `note_looks`."""
        with self.read() as raw:
            return mark(raw, _LOOKS.format(experiment_key))

    def note_looks(self, experiment_key: int, n: int) -> None:
        """Note that look `n` was made from these sums, before the decision is kept elsewhere: an older copy of this file, or
        a new one, has not noted it.
        """
        with self.write() as raw:
            name = _LOOKS.format(experiment_key)
            set_mark(raw, name, max(n, mark(raw, name)))

    def quick_check(self) -> None:
        """Read every page.

        Raises:
            ObservationsCorrupt: with the first finding.
        """
        with _named_damage(self.path):
            self._database.quick_check()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def _upgrade(self, version: int) -> None:
        with self.write() as raw:
            found = raw.execute("PRAGMA user_version").fetchone()[0]  # another process may have been first
            for step in range(max(found, version), VERSION):
                for statement in _statements(_UPGRADES[step]):
                    raw.execute(statement)
            raw.execute(f"PRAGMA user_version = {VERSION}")


def mark(raw: Any, name: str) -> int:
    """A mark's value; 0 where it was never set."""
    row = raw.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def set_mark(raw: Any, name: str, value: int) -> None:
    """Set a mark."""
    raw.execute("INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)", (name, value))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _create(path: Path) -> None:
    """Make the file whole under another name first: at its own name there is none, or one with all its tables."""
    building = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with disk_errors():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(building, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            _fill(building)
            fsync_file(building)
            _put_in_place(building, path)
            fsync_directory(path.parent)
    except OSError as error:
        raise SettingInvalid(setting="--data-dir", reason=f"{path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            building.unlink()


def _put_in_place(building: Path, path: Path) -> None:
    """Unless another process was first. The log of a file that was deleted would be taken for the new one's, and goes first."""
    turn = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not path.exists():
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            os.link(building, path)
    finally:
        os.close(turn)


def _fill(path: Path) -> None:
    try:
        connection = connect(path, "alone")
        try:
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # can be chosen only before the first table
            connection.execute("BEGIN IMMEDIATE")
            for statement in _statements(CREATE):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={VERSION}")
            connection.execute("COMMIT")
        finally:
            connection.close()
    except sqlite_module().Error as error:
        mapped = error_from_sqlite(error, path)
        if mapped is None:
            raise
        raise mapped from error


def _identified_version(path: Path, busy_timeout_ms: int) -> int:
    """The version of its tables; looked up read-only, so that a file that is not ours stays as it is."""
    try:
        connection = connect(path, "ro", busy_timeout_ms=busy_timeout_ms)
        try:
            application_id = connection.execute("PRAGMA application_id").fetchone()[0]
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            connection.execute("SELECT count(*) FROM journals").fetchone()
        finally:
            connection.close()
    except sqlite_module().Error as error:
        mapped = error_from_sqlite(error, path)
        raise (mapped or DatabaseCorrupt(path=str(path), reason=str(error))) from error
    if application_id != APPLICATION_ID:
        raise DatabaseCorrupt(path=str(path), reason="this is not a file of observations")
    if version > VERSION:
        raise SchemaTooNew(found=str(version), known=str(VERSION))
    return version


def _statements(script: str) -> list[str]:
    return [statement for statement in script.split(";") if statement.strip()]


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    """Damage of this file asks for something else than damage of the main database does."""
    try:
        yield
    except DatabaseCorrupt as error:
        raise ObservationsCorrupt(path=str(path), reason=error.values["reason"]) from error
