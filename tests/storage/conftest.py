"""A real data directory and database for each test, rows for every table, and second processes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from mmserver.storage.audit import record_audit
from mmserver.storage.blobs import put_blob
from mmserver.storage.data_dir import DataDir
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import upgrade_database
from mmserver.storage.tables import Row


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 11, 20, 14, 3, 22, 123456, tzinfo=UTC)


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "data")
    made.create()
    return made


@pytest.fixture
def database_path(data_dir: DataDir, now: datetime) -> Path:
    """A new, closed database."""
    upgrade_database(data_dir.database_path, data_dir.snapshots_dir, now=now)
    return data_dir.database_path


@pytest.fixture
def database(database_path: Path) -> Iterator[Database]:
    opened = open_database(database_path, busy_timeout_ms=300)
    yield opened
    opened.close()


@pytest.fixture
def fill_every_table() -> Callable[[Connection], None]:
    """Writes three rows to each table of `tables.py`, foreign keys included."""
    return _fill_every_table


def _fill_every_table(connection: Connection) -> None:
    made: dict[str, list[Any]] = {"blobs.sha256": [put_blob(connection, b"content %d " % i * 50) for i in range(3)]}
    for table in Row.metadata.sorted_tables:
        if table.name == "blobs":
            continue
        if table.name == "audit":  # its rows are chained
            for i in range(3):
                record_audit(connection, at=f"at {i}", actor=f"actor {i}", action=f"action {i}", target=f"target {i}",
                             detail={"i": i}, request_id=f"request_id {i}")  # fmt: skip
            continue
        rows = [{column.name: _value(column, i, made) for column in table.columns} for i in range(3)]
        connection.execute(table.insert(), rows)
        for column in table.primary_key:
            made[f"{table.name}.{column.name}"] = [row[column.name] for row in rows]


def _value(column: sa.Column[Any], i: int, made: dict[str, list[Any]]) -> Any:
    for key in column.foreign_keys:
        if key.column.table is column.table:
            return i + 1  # a row may refer to itself
        return made[f"{key.column.table.name}.{key.column.name}"][i]
    if isinstance(column.type, sa.Integer):
        return i + 1
    if isinstance(column.type, sa.Float):
        return i + 0.25
    return f"{column.name} {i}"


@pytest.fixture
def dump() -> Callable[[Path], list[str]]:
    """Everything in a database that nobody has open, as SQL text."""
    return _dump


def _dump(path: Path) -> list[str]:
    import sqlite3

    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        return sorted(connection.iterdump())
    finally:
        connection.close()


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python text in a second process, with a pipe from and to it; it is dead when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(text: str, *arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", text, *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
