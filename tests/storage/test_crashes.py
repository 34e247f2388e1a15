"""kill -9 of a process that writes: what it acknowledged is there afterwards, and nothing else is there by halves."""

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select, text

from mmserver.storage.database import open_database
from mmserver.storage.schema import check_schema
from mmserver.storage.tables import AuditRow, MetaRow

WRITE_UNTIL_KILLED = """
import sys
from pathlib import Path
from sqlalchemy import insert
from mmserver.storage.audit import record_audit
from mmserver.storage.database import open_database
from mmserver.storage.tables import MetaRow
database = open_database(Path(sys.argv[1]), wal_limit_bytes=100_000)
i = int(sys.argv[2])
while True:
    with database.write() as connection:
        connection.execute(insert(MetaRow).values(key=f"n {i}", value="x" * 5000))
        record_audit(connection, at="", actor="test", action="put", target=f"n {i}", detail={}, request_id=None)
    print(i, flush=True)
    i += 1
"""
N_KILLS = 12


def test_every_commit_that_was_acknowledged_survives_kill_9_together_with_its_audit_row(
    database_path: Path, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    rng = random.Random(5)
    acknowledged = -1
    for _ in range(N_KILLS):
        writer = start_script(WRITE_UNTIL_KILLED, database_path, acknowledged + 1)
        assert writer.stdout is not None
        for _ in range(rng.randrange(1, 60)):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        for line in writer.stdout:  # what it said before it died
            acknowledged = int(line)
        acknowledged = assert_whole(database_path, acknowledged)
    assert acknowledged > N_KILLS


def assert_whole(path: Path, acknowledged: int) -> int:
    """The last number that is there: the last acknowledged, or the one whose acknowledgement the kill cut off."""
    database = open_database(path)
    try:
        check_schema(database)
        with database.read() as connection:
            put = set(connection.scalars(select(MetaRow.key).where(MetaRow.key.like("n %"))))
            audited = set(connection.scalars(select(AuditRow.target)))
            assert [row[0] for row in connection.execute(text("PRAGMA integrity_check"))] == ["ok"]
    finally:
        database.close()
    assert put == audited == {f"n {i}" for i in range(len(put))}
    assert acknowledged + 1 <= len(put) <= acknowledged + 2
    return len(put) - 1
