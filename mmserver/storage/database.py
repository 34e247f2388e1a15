"""The database: many readers, one writer, each transaction a context manager; all errors come out as mmserver's own.

PostgreSQL will be a second way to build a `Database`; what is here is SQLite's.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mmserver.errors import DatabaseBusy, DatabaseCorrupt, MmserverError, ReadOnly, SettingInvalid, WritesStopped
from mmserver.storage.sqlite import APPLICATION_ID, READONLY, Mode, connect, error_from_sqlite, is_fatal, sqlite_module

WAL_LIMIT_BYTES = 16 << 20

log = logging.getLogger(__name__)


class Database:
    """One open SQLite file. Made by `open_database`; safe for all threads of a process, not to be carried through a fork."""

    def __init__(
        self,
        path: Path,
        mode: Mode,
        generation_id: str,
        *,
        n_readers: int,
        busy_timeout_ms: int,
        wal_limit_bytes: int,
    ) -> None:
        self.path = path
        self._mode = mode
        self.generation_id = generation_id
        self.read_only = mode != "rw"
        self._sqlite_error: type[Exception] = sqlite_module().Error
        self._wait_s = busy_timeout_ms / 1000
        self._stopped_because: str | None = None
        self._wal_limit_bytes = self._next_checkpoint_bytes = wal_limit_bytes
        self._writer_turn = threading.Lock()
        self._watcher_turn = threading.Lock()

        def reader() -> Any:
            return connect(path, mode, query_only=True, busy_timeout_ms=busy_timeout_ms)

        def writer() -> Any:
            return connect(path, mode, busy_timeout_ms=busy_timeout_ms)

        self._readers = _engine(reader, n_readers, self._wait_s, "BEGIN")
        self._writer = None if self.read_only else _engine(writer, 1, self._wait_s, "BEGIN IMMEDIATE")
        with self._mapped_errors():
            self._watcher = reader()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read transaction: everything in it sees the state of its first statement. Keep it short, it holds up checkpoints.

        Raises:
            DatabaseBusy: all connections are taken.
            DatabaseCorrupt: the file is damaged; from now on nothing is written.
        """
        with self._mapped_errors(), self._readers.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed and on the disk when the block ends, gone when it raises. Not reentrant.

        Raises:
            DatabaseBusy: another thread or process kept the write lock for longer than the timeout; nothing was changed.
            DiskFull: there is no space, or the disk became read-only; nothing was changed.
            ReadOnly: the database was opened read-only.
            WritesStopped: the file was found damaged or unsafe to write before; reads may go on.
        """
        with self._turn_to_write() as writer:
            with self._mapped_errors(writing=True), writer.begin() as connection:
                yield connection
            self._checkpoint_when_large(writer)

    @contextmanager
    def rebuild(self) -> Iterator[Connection]:
        """A write transaction that may replace tables: foreign keys are not enforced in it, and all checked before its commit.

        With enforcement on, dropping a table to rebuild it would silently delete every row that refers to it.
        """
        with self._turn_to_write() as writer, self._mapped_errors(writing=True):
            with writer.connect() as connection:
                raw: Any = connection.connection.driver_connection
                raw.execute("PRAGMA foreign_keys=OFF")  # does nothing inside a transaction
                try:
                    with connection.begin():
                        yield connection
                        dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                        if dangling:
                            reason = f"{len(dangling)} rows refer to nothing, the first in {dangling[0][0]}"
                            raise DatabaseCorrupt(path=str(self.path), reason=reason)
                finally:
                    raw.execute("PRAGMA foreign_keys=ON")
            self._checkpoint_when_large(writer)

    def data_version(self) -> int:
        """A number that is another one after each commit to the file by anybody, this process included. Cheap enough to poll."""
        with self._watcher_turn, self._mapped_errors():
            return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])

    def checkpoint(self) -> bool:
        """Move the write-ahead log into the file. False: a reader still needs a part of it; later is early enough."""
        with self._turn_to_write() as writer:
            return self._checkpoint(writer)

    def quick_check(self) -> None:
        """Read every page. Takes about a second per GB.

        Raises:
            DatabaseCorrupt: what the first finding is; from now on nothing is written.
        """
        with self.read() as connection:
            findings = [row[0] for row in connection.exec_driver_sql("PRAGMA quick_check(3)")]
        if findings != ["ok"]:
            self._stopped_because = findings[0]
            raise DatabaseCorrupt(path=str(self.path), reason="; ".join(findings))

    def vacuum_into(self, target: Path) -> None:
        """Write a compact copy of one consistent state to a new file, while others read and write. It is not fsynced.

        Raises:
            DiskFull: of the disk that holds `target`; a part of it may be there.
        """
        with self._mapped_errors(writing=True):
            connection = connect(self.path, "immutable" if self._mode == "immutable" else "ro")
            try:
                connection.execute("VACUUM INTO ?", (str(target),))
            finally:
                connection.close()

    def wal_size_bytes(self) -> int:
        """How large the write-ahead log is now; 0 where there is none."""
        try:
            return os.stat(f"{self.path}-wal").st_size  # noqa: PTH116 (never opened, only asked for its size)
        except FileNotFoundError:
            return 0

    def close(self) -> None:
        """Checkpoint, unless the file is damaged, and close every connection that is not in use."""
        with ExitStack() as closing:
            closing.callback(self._readers.dispose)
            closing.callback(self._watcher.close)
            if self._writer is not None:
                closing.callback(self._writer.dispose)
                if self._stopped_because is None:
                    self._checkpoint_or_log(self._writer)

    @contextmanager
    def _turn_to_write(self) -> Iterator[Engine]:
        if self._writer is None:
            raise ReadOnly()
        if not self._writer_turn.acquire(timeout=self._wait_s):
            raise DatabaseBusy()
        try:
            if self._stopped_because is not None:
                raise WritesStopped(reason=self._stopped_because)
            yield self._writer
        finally:
            self._writer_turn.release()

    @contextmanager
    def _mapped_errors(self, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except PoolTimeoutError as error:
            raise DatabaseBusy() from error
        except (DBAPIError, self._sqlite_error) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            if not writing and getattr(cause, "sqlite_errorcode", 0) == READONLY:
                raise  # a statement that writes, in read(): a bug, not a full disk
            mapped = error_from_sqlite(cause, self.path)
            if mapped is None:
                raise
            if is_fatal(cause):
                self._stopped_because = str(cause)
            raise mapped from error

    def _checkpoint(self, writer: Engine) -> bool:
        with self._mapped_errors(writing=True):
            pooled = writer.raw_connection()
            raw: Any = pooled.driver_connection
            try:
                # Without waiting: what readers still need stays, and nobody's commit waits for it.
                raw.execute("PRAGMA busy_timeout=0")
                is_blocked = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                raw.execute(f"PRAGMA busy_timeout={int(self._wait_s * 1000)}")
                pooled.close()
        return not is_blocked

    def _checkpoint_when_large(self, writer: Engine) -> None:
        if self.wal_size_bytes() > self._next_checkpoint_bytes and self._stopped_because is None:
            self._checkpoint_or_log(writer)
            # A reader that holds it up must not make every commit try again.
            self._next_checkpoint_bytes = self.wal_size_bytes() + self._wal_limit_bytes

    def _checkpoint_or_log(self, writer: Engine) -> None:
        """The commit before is safe in the log whatever happens here, so its caller must not see an error."""
        try:
            self._checkpoint(writer)
        except MmserverError as error:
            log.warning("the write-ahead log of %s could not be checkpointed: %s", self.path, error)


def open_database(
    path: Path,
    *,
    read_only: bool = False,
    n_readers: int = 12,
    busy_timeout_ms: int = 5000,
    wal_limit_bytes: int = WAL_LIMIT_BYTES,
) -> Database:
    """Open an existing database or, read-only, a snapshot file. It never creates one: see `schema.upgrade_database`.

    Args:
        n_readers: how many threads can read at once; more wait for `busy_timeout_ms`
        wal_limit_bytes: a commit that leaves a larger write-ahead log is followed by a checkpoint

    Raises:
        SettingInvalid: this user may not use the file.
        DatabaseCorrupt: the file is missing, empty, damaged at its start, cut off, or not mmserver's; nothing was changed.
        DatabaseBusy: another process holds it for longer than the timeout.
    """
    path = path.absolute()
    if path.exists() and not os.access(path, os.R_OK if read_only else os.R_OK | os.W_OK):
        raise SettingInvalid(setting="--data-dir", reason=f"{path}: permission denied")
    mode = _read_only_mode(path, busy_timeout_ms) if read_only else "rw"
    generation_id = _identified_generation(path, "ro" if mode == "rw" else mode, busy_timeout_ms)
    return Database(
        path,
        mode,
        generation_id,
        n_readers=n_readers,
        busy_timeout_ms=busy_timeout_ms,
        wal_limit_bytes=wal_limit_bytes,
    )


def _engine(connector: Callable[[], Any], n_connections: int, wait_s: float, begin: str) -> Engine:
    engine = create_engine(
        "sqlite://",
        module=sqlite_module(),
        creator=connector,
        poolclass=QueuePool,
        pool_size=n_connections,
        max_overflow=0,
        pool_timeout=wait_s,
    )
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _identified_generation(path: Path, mode: Mode, busy_timeout_ms: int) -> str:
    """The generation_id of a database that is ours; looked up read-only, so that a foreign or damaged file stays as it is."""
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise DatabaseCorrupt(path=str(path), reason="the file is missing") from error
    if size_bytes == 0:
        raise DatabaseCorrupt(path=str(path), reason="the file is empty")
    try:
        connection = connect(path, mode, busy_timeout_ms=busy_timeout_ms)
        try:
            application_id = connection.execute("PRAGMA application_id").fetchone()[0]
            if application_id != APPLICATION_ID:
                raise DatabaseCorrupt(path=str(path), reason="this is not a database of mmserver")
            row = connection.execute("SELECT value FROM meta WHERE key = 'generation_id'").fetchone()
        finally:
            connection.close()
    except sqlite_module().Error as error:
        mapped = error_from_sqlite(error, path)
        raise (mapped or DatabaseCorrupt(path=str(path), reason=str(error))) from error
    if row is None:
        raise DatabaseCorrupt(path=str(path), reason="it has no generation_id")
    return str(row[0])


def _read_only_mode(path: Path, busy_timeout_ms: int) -> Mode:
    """A live database is always in WAL mode and needs its side files; a snapshot never is, and then locks are not needed."""
    wal = path.with_name(path.name + "-wal")
    try:
        connection = connect(path, "ro", busy_timeout_ms=busy_timeout_ms)
        try:
            is_live = connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            connection.execute("SELECT count(*) FROM sqlite_master")
        finally:
            connection.close()
    except sqlite_module().Error:
        return (
            "ro" if wal.exists() else "immutable"
        )  # in a directory where no side file can be made, or damaged: said on opening
    return "ro" if is_live else "immutable"
