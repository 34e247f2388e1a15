"""What SQLite's result codes mean for the caller."""

import sqlite3
from pathlib import Path

import pytest

from mmserver.errors import DatabaseBusy, DatabaseCorrupt, DiskFull
from mmserver.storage.sqlite import error_from_sqlite, is_fatal, is_safe_sqlite, sqlite_module, sqlite_version


@pytest.mark.parametrize(
    ("name", "error", "fatal"),
    [
        ("SQLITE_BUSY", DatabaseBusy, False),
        ("SQLITE_BUSY_SNAPSHOT", DatabaseBusy, False),
        ("SQLITE_LOCKED", DatabaseBusy, False),
        ("SQLITE_CANTOPEN", DatabaseBusy, False),
        ("SQLITE_FULL", DiskFull, False),
        ("SQLITE_IOERR_WRITE", DiskFull, False),
        ("SQLITE_READONLY", DiskFull, False),
        ("SQLITE_IOERR_FSYNC", DiskFull, True),
        ("SQLITE_IOERR_DIR_FSYNC", DiskFull, True),
        ("SQLITE_IOERR_READ", DatabaseCorrupt, True),
        ("SQLITE_CORRUPT", DatabaseCorrupt, True),
        ("SQLITE_CORRUPT_INDEX", DatabaseCorrupt, True),
        ("SQLITE_NOTADB", DatabaseCorrupt, True),
        ("SQLITE_CONSTRAINT_UNIQUE", type(None), False),
        ("SQLITE_ERROR", type(None), False),
    ],
)
def test_each_result_code_has_one_meaning(name: str, error: type, fatal: bool) -> None:
    raised = sqlite3.OperationalError("as SQLite said it")
    raised.sqlite_errorcode = getattr(sqlite3, name)
    assert type(error_from_sqlite(raised, Path("state.db"))) is error
    assert is_fatal(raised) is fatal


def test_the_library_says_its_version_and_whether_it_is_safe() -> None:
    assert sqlite_version() == sqlite_module().sqlite_version
    assert is_safe_sqlite() == (tuple(map(int, sqlite_version().split("."))) >= (3, 51, 3))
