"""SQLite itself: which library is used, how one connection is opened, and what its error codes mean for the caller.

One process must never use two SQLite libraries on one file, nor open the file without SQLite: closing any file descriptor of it
drops the locks of all of them. So everything that touches a live database goes through `connect`.
"""

import importlib
import sqlite3
from pathlib import Path
from typing import Any, Literal

from mmserver.errors import DatabaseBusy, DatabaseCorrupt, DiskFull, MmserverError

APPLICATION_ID = 0x4D4D5356  # "MMSV", in the file's header: this database is ours

# Below it, a checkpoint that races with a commit of another connection can corrupt the file (sqlite.org/wal.html, "WAL-reset bug").
SAFE_VERSION = (3, 51, 3)

READONLY = 8  # the result code of a statement that writes where it must not

Mode = Literal["rw", "alone", "ro", "immutable"]

# Result codes, sqlite.org/rescode.html; the low byte is the primary code.
_PRIMARY_BUSY = frozenset({5, 6, 14, 15})  # BUSY, LOCKED, CANTOPEN (out of file descriptors), PROTOCOL
_PRIMARY_CORRUPT = frozenset({11, 26})  # CORRUPT, NOTADB
_PRIMARY_DISK = frozenset({READONLY, 10, 13})  # READONLY, IOERR, FULL
_UNREADABLE = frozenset(
    {10 | 1 << 8, 10 | 2 << 8, 10 | 32 << 8, 10 | 33 << 8}
)  # IOERR_READ, _SHORT_READ, _DATA, _CORRUPTFS
_NOT_DURABLE = frozenset({10 | 4 << 8, 10 | 5 << 8})  # IOERR_FSYNC, _DIR_FSYNC


def sqlite_module() -> Any:
    """The DBAPI module: pysqlite3 (a recent SQLite) where it is installed, else the standard library's."""
    try:
        return importlib.import_module("pysqlite3.dbapi2")
    except ImportError:
        return importlib.import_module("sqlite3")


def sqlite_version() -> str:
    """The version of the SQLite library in use, such as "3.53.4"."""
    return str(sqlite_module().sqlite_version)


def is_safe_sqlite() -> bool:
    """Whether the library in use is free of the WAL-reset bug; `doctor` warns where it is not."""
    return tuple(sqlite_module().sqlite_version_info) >= SAFE_VERSION


def connect(path: Path, mode: Mode, *, query_only: bool = False, busy_timeout_ms: int = 5000) -> sqlite3.Connection:
    """Open one connection with the pragmas that all of mmserver relies on; it begins no transaction by itself.

    No mode creates the file. `rw` uses a write-ahead log; `alone` writes too, but for a file that nobody else has open, and
    leaves one without a log; `ro` never writes the file; `immutable` also takes no locks and makes no side files. Any thread may use the connection, one at a time.

    Raises:
        sqlite3.Error (of `sqlite_module()`): as SQLite said it; see `error_from_sqlite`.
    """
    query = {"rw": "mode=rw", "alone": "mode=rw", "ro": "mode=ro", "immutable": "mode=ro&immutable=1"}[mode]
    uri = f"{path.absolute().as_uri()}?{query}"
    connection: sqlite3.Connection = sqlite_module().connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=busy_timeout_ms / 1000
    )
    pragmas = ["foreign_keys=ON", "trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"]
    if mode == "rw":
        pragmas += ["journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0"]
    if mode == "alone":
        pragmas += ["journal_mode=DELETE", "synchronous=FULL"]
    if query_only:
        pragmas.append("query_only=ON")
    try:
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").close()
    except sqlite_module().Error:
        connection.close()
        raise
    return connection


def error_from_sqlite(error: BaseException, path: Path) -> MmserverError | None:
    """What a DBAPI error means for the caller; None where it is no fault of the file or the disk (a constraint, a bug)."""
    code = int(getattr(error, "sqlite_errorcode", 0))
    primary = code & 0xFF
    if primary in _PRIMARY_CORRUPT or code in _UNREADABLE:
        return DatabaseCorrupt(path=str(path), reason=str(error))
    if primary in _PRIMARY_BUSY:
        return DatabaseBusy()
    if primary in _PRIMARY_DISK:
        return DiskFull()
    return None


def is_fatal(error: BaseException) -> bool:
    """Whether nothing more may be written after this error: damage, or a commit of which nobody knows if it is on the disk.

    A failed fsync is not tried again: the kernel may have dropped the pages and would report success the second time.
    """
    code = int(getattr(error, "sqlite_errorcode", 0))
    return code & 0xFF in _PRIMARY_CORRUPT or code in _UNREADABLE or code in _NOT_DURABLE
