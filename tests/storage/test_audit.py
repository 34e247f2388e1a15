"""The audit trail is written with the change or not at all, and what was done to it afterwards is found."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from subprocess import Popen

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from mmserver.errors import DatabaseCorrupt
from mmserver.storage.audit import (
    REFUSED,
    SNAPSHOTS_DROPPED,
    AuditEntry,
    AuditFilter,
    all_audit,
    list_audit,
    newest_change_id,
    record_audit,
    verify_audit,
)
from mmserver.storage.audit_chain import CHAINED, FIRST_HASH, FIRST_HEAD, ChainReport, row_hash
from mmserver.storage.database import Database, open_database
from mmserver.storage.tables import MetaRow


def record(
    database: Database, target: str, *, actor: str = "key:abc", action: str = "model.registered", at: int = 0
) -> None:
    with database.write() as connection:
        record_audit(connection, at=f"2026-11-20T14:03:{at:02}.000000Z", actor=actor, action=action, target=target,
                     detail={"symbols": ["BTC", "ÉTH"], "of": target}, request_id=f"r-{target}")  # fmt: skip


def targets(entries: list[AuditEntry]) -> list[str]:
    return [entry.target for entry in entries]


def test_entries_come_newest_first_and_in_pages(database: Database) -> None:
    for i in range(5):
        record(database, f"m{i}")
    with database.read() as connection:
        first = list_audit(connection, 3)
        rest = list_audit(connection, 3, before_id=first[-1].id)
    assert targets(first + rest) == ["m4", "m3", "m2", "m1", "m0"]
    assert rest[-1].detail == {"symbols": ["BTC", "ÉTH"], "of": "m0"}
    assert (rest[-1].request_id, rest[-1].actor, rest[-1].action) == ("r-m0", "key:abc", "model.registered")


def test_a_change_whose_audit_row_cannot_be_written_is_not_made(database: Database) -> None:
    with pytest.raises(ValueError, match="JSON"), database.write() as connection:
        connection.execute(insert(MetaRow).values(key="changed", value=""))
        record_audit(connection, at="", actor="", action="", target="", detail={"x": float("nan")}, request_id=None)
    with database.read() as connection:
        assert connection.scalar(select(MetaRow.key).where(MetaRow.key == "changed")) is None
        assert list_audit(connection, 10) == []


def moment(second: int) -> datetime:
    return datetime(2026, 11, 20, 14, 3, second, tzinfo=UTC)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        pytest.param(AuditFilter(), ["m3", "m2%", "m1", "m0"], id="nothing"),
        pytest.param(AuditFilter(actor="key:b"), ["m1"], id="actor"),
        pytest.param(AuditFilter(actor="key:*"), ["m3", "m2%", "m1"], id="actor-begins"),
        pytest.param(AuditFilter(action="venue.set"), ["m3"], id="action"),
        pytest.param(AuditFilter(action="model.*"), ["m2%", "m1", "m0"], id="action-begins"),
        pytest.param(AuditFilter(target="m2%"), ["m2%"], id="target-is-no-pattern"),
        pytest.param(AuditFilter(target="m"), [], id="target-is-whole"),
        pytest.param(AuditFilter(target="*"), ["m3", "m2%", "m1", "m0"], id="any-target"),
        pytest.param(AuditFilter(since=moment(1), until=moment(3)), ["m2%", "m1"], id="until-is-not-in"),
        pytest.param(AuditFilter(actor="key:*", action="model.*", since=moment(2)), ["m2%"], id="all-at-once"),
    ],
)
def test_filters_find_exactly_what_they_say(database: Database, asked: AuditFilter, found: list[str]) -> None:
    record(database, "m0", actor="anonymous@::1")
    record(database, "m1", actor="key:b", at=1)
    record(database, "m2%", at=2)
    record(database, "m3", action="venue.set", at=3)
    with database.read() as connection:
        assert targets(list_audit(connection, 10, asked=asked)) == found
    assert targets(list(all_audit(database, asked))) == found[::-1]


def test_a_long_trail_is_read_whole_in_parts(database: Database) -> None:
    with database.write() as connection:
        for i in range(2001):
            record_audit(connection, at="t", actor="a", action="b", target=str(i), detail={}, request_id=None)
    assert targets(list(all_audit(database, AuditFilter()))) == [str(i) for i in range(2001)]
    assert verify_audit(database).n_rows == 2001


def test_a_refusal_is_not_a_change(database: Database) -> None:
    record(database, "m0")
    record(database, "m1", action=REFUSED)
    record(database, "snapshots", action=SNAPSHOTS_DROPPED)
    with database.read() as connection:
        assert newest_change_id(connection) == 1


# --- the chain --------------------------------------------------------------------------------------------------------


def test_the_chain_of_a_row_is_what_it_always_was() -> None:
    """A fixed value: were the formula another one, every trail that is there would look forged."""
    row = (1, "2026-11-20T14:03:22.000000Z", "key:abc", "model.registered", "m\n\u202e", '{"n": 1}', None)
    assert len(row) == len(CHAINED)
    assert row_hash(FIRST_HASH, row) == "8c2649b740cfc550a886d742cf8fef7d0e1a3fc133ce5d976a6e4d159c2977be"


def test_no_row_can_be_changed_or_deleted_by_a_statement(database: Database) -> None:
    record(database, "m0")
    for statement in ("UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"):
        with pytest.raises(IntegrityError, match="only ever added to"), database.write() as connection:
            connection.execute(text(statement))
    assert verify_audit(database) == ChainReport(1, verify_audit(database).head)


def test_an_empty_trail_is_whole(database: Database) -> None:
    assert verify_audit(database) == ChainReport(0, FIRST_HEAD)


def tamper(database: Database, path: Path, *statements: str) -> ChainReport:
    """What is found in a copy of the file that somebody wrote to with another program."""
    for i in range(6):
        record(database, f"m{i}", at=i)
    database.checkpoint()
    shutil.copyfile(database.path, path)
    with closing(sqlite3.connect(path)) as raw:
        triggers = dict(raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall())
        for name in triggers:
            raw.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            raw.execute(statement)
        for sql in triggers.values():
            raw.execute(sql)
        raw.commit()
    copy = open_database(path)
    try:
        return verify_audit(copy)
    finally:
        copy.close()


SWAP = ("UPDATE audit SET id = 100 WHERE id = 3", "UPDATE audit SET id = 3 WHERE id = 4",
        "UPDATE audit SET id = 4 WHERE id = 100")  # fmt: skip
PUT_IN = "INSERT INTO audit SELECT {}, at, actor, action, target, detail, request_id, hash FROM audit WHERE id = 6"


@pytest.mark.parametrize(
    ("statements", "broken_id", "reason"),
    [
        *(
            pytest.param([f"UPDATE audit SET {column} = {value} WHERE id = 3"], 3, "changed", id=f"edited-{column}")
            for column, value in (("at", "'x'"), ("actor", "'nobody'"), ("action", "'x'"), ("target", "'x'"),
                                  ("detail", "'{}'"), ("request_id", "NULL"), ("hash", "'x'"))
        ),
        pytest.param(["UPDATE audit SET actor = x'ff' WHERE id = 3"], 3, "never writes", id="edited-to-bytes"),
        pytest.param(["DELETE FROM audit WHERE id = 3"], 4, "deleted", id="deleted"),
        pytest.param(["DELETE FROM audit WHERE id = 1"], 2, "deleted", id="deleted-the-first"),
        pytest.param(SWAP, 3, "moved", id="reordered"),
        pytest.param([PUT_IN.format(-1)], -1, "put in", id="inserted-before"),
        pytest.param(["UPDATE audit SET id = id + 1 WHERE id = 6", PUT_IN.replace("= 6", "= 7").format(6)], 7, "moved",
                     id="inserted-between"),
        pytest.param([PUT_IN.format(7)], 7, "put in", id="inserted-after"),
        pytest.param(["DELETE FROM audit WHERE id = 6"], 6, "row 6 is missing at the end", id="truncated-by-one"),
        pytest.param(["DELETE FROM audit WHERE id > 3"], 4, "rows 4 to 6 are missing at the end", id="truncated"),
        pytest.param(["DELETE FROM audit"], 1, "rows 1 to 6 are missing at the end", id="emptied"),
        pytest.param(["DELETE FROM audit", "DELETE FROM sqlite_sequence"], 1, "missing at the end", id="reset"),
        pytest.param(["DELETE FROM meta WHERE key = 'audit_head'"], None, "head", id="no-head"),
        pytest.param(["UPDATE meta SET value = '[]' WHERE key = 'audit_head'"], None, "head", id="no-such-head"),
    ],
)  # fmt: skip
def test_what_was_done_to_the_file_is_found_and_the_first_broken_row_named(
    database: Database, tmp_path: Path, statements: list[str], broken_id: int | None, reason: str
) -> None:
    report = tamper(database, tmp_path / "copy.db", *statements)
    assert report.broken_id == broken_id
    assert reason in str(report.reason)


def test_a_row_that_is_forged_with_its_hash_at_the_end_needs_the_head_too(database: Database, tmp_path: Path) -> None:
    record(database, "before")
    with database.read() as connection:
        [entry] = list_audit(connection, 1)
    row = (2, "t", "a", "b", "c", "{}", None)
    forged = f"INSERT INTO audit VALUES (2, 't', 'a', 'b', 'c', '{{}}', NULL, '{row_hash(entry.hash, row)}')"
    report = tamper(database, tmp_path / "copy.db", "DELETE FROM audit WHERE id > 1", forged)
    assert (report.broken_id, report.n_rows) == (3, 2)


def test_dropped_triggers_are_found_in_a_chain_that_is_whole(database: Database) -> None:
    record(database, "m0")
    with database.write() as connection:
        connection.execute(text("DROP TRIGGER audit_no_delete"))
    assert "audit_no_delete" in str(verify_audit(database).reason)


def test_a_trail_that_was_made_anew_is_found_by_a_head_that_was_kept_elsewhere(database: Database) -> None:
    record(database, "m0")
    kept = verify_audit(database).head.hash
    record(database, "m1")
    assert verify_audit(database, kept).reason is None
    assert verify_audit(database, FIRST_HASH).reason is None
    with database.write() as connection:  # as whoever owns the file can
        connection.execute(text("DROP TRIGGER audit_no_delete"))
        connection.execute(text("DELETE FROM audit"))
        connection.execute(text("CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT 1; END"))
        connection.execute(text("UPDATE meta SET value = :head WHERE key = 'audit_head'"), {"head": FIRST_HEAD.text()})
        record_audit(connection, at="t", actor="a", action="b", target="c", detail={}, request_id=None)
    assert verify_audit(database).reason is None
    assert kept in str(verify_audit(database, kept).reason)


def test_without_the_head_nothing_is_changed_any_more(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("DELETE FROM meta WHERE key = 'audit_head'"))
    with pytest.raises(DatabaseCorrupt, match="head of the audit trail"):
        record(database, "m0")


WRITER = """
import sys
from pathlib import Path
from mmserver.storage.audit import record_audit
from mmserver.storage.database import open_database
database = open_database(Path(sys.argv[1]), busy_timeout_ms=60_000)
sys.stdin.readline()
for i in range(40):
    with database.write() as connection:
        record_audit(connection, at="t", actor=sys.argv[2], action="a", target=str(i), detail={}, request_id=None)
database.close()
"""


def test_processes_that_write_at_the_same_time_make_one_chain(
    database: Database, start_script: Callable[..., Popen[str]]
) -> None:
    writers = [start_script(WRITER, database.path, f"process {n}") for n in range(3)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        _, said = writer.communicate()
        assert writer.returncode == 0, said
    report = verify_audit(database)
    assert (report.reason, report.n_rows, report.head.last_id) == (None, 120, 120)
    for n in range(3):
        found = all_audit(database, AuditFilter(actor=f"process {n}"))
        assert targets(list(found)) == [str(i) for i in range(40)]
