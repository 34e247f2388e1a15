"""Checking a snapshot file from end to end, in a process of its own: `python -m mmserver.storage.verify FILE`.

It prints one JSON object: what the file holds, or `{"reason": …}` for a file that is not a whole snapshot. Nothing of the server
is imported: a check that shares the server's memory could pass because of it.
"""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

from mmserver.errors import BlobCorrupt, SnapshotInvalid
from mmserver.storage.audit_chain import TRIGGERS
from mmserver.storage.decoding import StoredBlob, decoded_blob
from mmserver.storage.files import sha256_of_file
from mmserver.storage.sqlite import APPLICATION_ID, connect, sqlite_module


def facts_of_file(path: Path) -> dict[str, Any]:
    """Check everything that can be checked, and say what is in the file.

    Raises:
        SnapshotInvalid: the first thing found wrong.
    """
    try:
        if path.stat().st_size == 0:
            raise SnapshotInvalid(path=str(path), reason="the file is empty")
        connection = connect(path, "immutable")
        try:
            facts = facts_of_database(path, connection)
            _check_pages(path, connection)
            _check_blobs(connection)
        finally:
            connection.close()
        return facts | {"sha256": sha256_of_file(path), "size_bytes": path.stat().st_size}
    except (sqlite_module().Error, BlobCorrupt, OSError) as error:
        raise SnapshotInvalid(path=str(path), reason=str(error)) from error


def facts_of_database(path: Path, connection: sqlite3.Connection) -> dict[str, Any]:
    """The marks that every database of mmserver has, and the number of rows of each table; reads little.

    Raises:
        SnapshotInvalid: a mark is missing.
        sqlite3.Error: it cannot be read.
    """
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise SnapshotInvalid(path=str(path), reason="this is not a database of mmserver")
    objects = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    # a trigger that is not ours, even under the name of one of ours, would do what its maker wants with every change
    foreign = [name for kind, name, sql in objects if kind not in ("table", "index") and TRIGGERS.get(name) != sql]
    if foreign:
        raise SnapshotInvalid(path=str(path), reason=f"mmserver makes no such view or trigger: {foreign[0]!r}")
    tables = sorted(name for kind, name, _ in objects if kind == "table")
    missing = sorted({"meta", "alembic_version", "blobs"} - set(tables))
    if missing:
        raise SnapshotInvalid(path=str(path), reason=f"tables are missing: {', '.join(missing)}")
    meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    revisions = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    if "generation_id" not in meta or len(revisions) != 1:
        raise SnapshotInvalid(path=str(path), reason="it does not say which database it is of, or which schema it has")
    return {
        "created_at": meta.get("snapshot_created_at"),
        "generation_id": meta["generation_id"],
        "schema_revision": revisions[0][0],
        "row_counts": {name: _row_count(connection, name) for name in tables if name != "alembic_version"},
    }


def _row_count(connection: sqlite3.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    return int(connection.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()[0])  # noqa: S608 (names from sqlite_master)


def _check_pages(path: Path, connection: sqlite3.Connection) -> None:
    """Pages, indexes against their rows, and foreign keys: these say too that every blob referred to is there."""
    findings = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if findings != ["ok"]:
        raise SnapshotInvalid(path=str(path), reason="; ".join(findings))
    dangling = connection.execute("PRAGMA foreign_key_check").fetchone()
    if dangling is not None:
        raise SnapshotInvalid(
            path=str(path), reason=f"a row of {dangling[0]} refers to a row of {dangling[2]} that is not there"
        )


def _check_blobs(connection: sqlite3.Connection) -> None:
    for sha256, codec, content, size_bytes in connection.execute(
        "SELECT sha256, codec, content, size_bytes FROM blobs"
    ):
        decoded_blob(sha256, StoredBlob(codec, content, size_bytes))


def main() -> int:
    """Print the facts of the file named in the arguments; 1 where it is not whole."""
    try:
        facts = facts_of_file(Path(sys.argv[1]))
    except SnapshotInvalid as error:
        sys.stdout.write(json.dumps({"reason": error.values["reason"]}))
        return 1
    sys.stdout.write(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
