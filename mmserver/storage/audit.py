"""The audit trail: one row for each change, written in the change's own transaction, so that neither is there without the other.

Rows are chained (`audit_chain`). The write lock, which every write transaction has from its beginning, makes it one chain.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, insert, select, update

from mmserver.errors import DatabaseCorrupt
from mmserver.storage.audit_chain import (
    CHAINED,
    HEAD_KEY,
    TRIGGERS,
    AuditHead,
    ChainReport,
    check_chain,
    head_from_text,
    row_hash,
)
from mmserver.storage.database import Database
from mmserver.storage.tables import AuditRow, MetaRow
from mmserver.storage.times import text_from_datetime

REFUSED = "refused"
"""The action of what was not done: an attempt that was refused."""
SNAPSHOTS_DROPPED = "snapshots.dropped"
ANY_END = "*"
"""A filter that ends with it asks for what begins with what is before it."""
_ROWS_AT_ONCE = 1000
_HEAD: Select[tuple[str]] = select(MetaRow.__table__.c.value).where(MetaRow.__table__.c.key == HEAD_KEY)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change: who did what to what. Order is by `id`, which is never used twice; `at` is as the clock was."""

    id: int
    at: str
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    request_id: str | None
    hash: str


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries are asked for; text is compared whole, or up to an `*` at its end. `until` itself is not in."""

    actor: str | None = None
    action: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """For the WHERE of a query."""
        texts = ((AuditRow.actor, self.actor), (AuditRow.action, self.action), (AuditRow.target, self.target))
        for column, asked in texts:
            if asked is not None and asked.endswith(ANY_END):
                start = asked.removesuffix(ANY_END)
                yield func.substr(column, 1, len(start)) == start
            elif asked is not None:
                yield column == asked
        if self.since is not None:
            yield AuditRow.at >= text_from_datetime(self.since)
        if self.until is not None:
            yield AuditRow.at < text_from_datetime(self.until)


def record_audit(
    connection: Connection,
    *,
    at: str,
    actor: str,
    action: str,
    target: str,
    detail: dict[str, Any],
    request_id: str | None,
) -> None:
    """Write one row, chained to the one before, in the write transaction of `connection`.

    Args:
        at: from `text_from_datetime`
        detail: what JSON can carry; NaN and infinity are refused

    Raises:
        DatabaseCorrupt: the head of the chain is gone; the change is not made either.
    """
    text = json.dumps(detail, sort_keys=True, ensure_ascii=False, allow_nan=False)
    head = read_head(connection)
    row = (head.last_id + 1, at, actor, action, target, text, request_id)
    moved = AuditHead(row[0], head.n_rows + 1, row_hash(head.hash, row))
    connection.execute(insert(AuditRow), {**dict(zip(CHAINED, row, strict=True)), "hash": moved.hash})
    connection.execute(update(MetaRow).where(MetaRow.key == HEAD_KEY).values(value=moved.text()))


def list_audit(
    connection: Connection, limit: int, before_id: int | None = None, asked: AuditFilter | None = None
) -> list[AuditEntry]:
    """The newest `limit` entries that are asked for, newest first; with `before_id`, only those with a smaller id (the next page)."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(AuditRow.id < before_id)
    if asked is not None:
        query = query.where(*asked.conditions())
    return _entries(connection, query)


def all_audit(database: Database, asked: AuditFilter) -> Iterator[AuditEntry]:
    """Every entry that is asked for, oldest first; read in parts, so that a long trail holds up nothing."""
    last_id = 0
    while True:
        query = select(AuditRow).where(AuditRow.id > last_id, *asked.conditions()).order_by(AuditRow.id)
        with database.read() as connection:
            found = _entries(connection, query.limit(_ROWS_AT_ONCE))
        yield from found
        if len(found) < _ROWS_AT_ONCE:
            return
        last_id = found[-1].id


def newest_change_id(connection: Connection) -> int:
    """The id of the newest entry of a change that a snapshot keeps; 0 before the first."""
    query = (
        select(AuditRow.id)
        .where(AuditRow.action.not_in((REFUSED, SNAPSHOTS_DROPPED)))
        .order_by(AuditRow.id.desc())
        .limit(1)
    )
    return connection.execute(query).scalar() or 0


def record_audit_alone(
    database: Database, *, at: str, actor: str, action: str, target: str, detail: dict[str, Any], request_id: str | None
) -> None:
    """The same in a transaction of its own, of what is done outside of the database."""
    with database.write() as connection:
        record_audit(connection, at=at, actor=actor, action=action, target=target, detail=detail, request_id=request_id)


def read_head(connection: Connection) -> AuditHead:
    """The end of the chain.

    Raises:
        DatabaseCorrupt: it is gone.
    """
    head = head_from_text(connection.execute(_HEAD).scalar())
    if head is None:
        path = Path(str(connection.exec_driver_sql("PRAGMA database_list").one()[2]))
        raise DatabaseCorrupt(path=str(path), reason="the head of the audit trail is missing")
    return head


def verify_audit(database: Database, kept_head: str | None = None) -> ChainReport:
    """Walk along the whole chain, of a snapshot too; `kept_head` is a hash from an earlier time that was kept elsewhere."""
    with database.read() as connection:
        head_text = connection.execute(_HEAD).scalar()
        columns = [AuditRow.__table__.columns[name] for name in (*CHAINED, "hash")]
        rows = connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(select(*columns).order_by(AuditRow.id))
        report = check_chain((tuple(row) for row in rows), head_text, kept_head)
        there = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars()
        missing = sorted(set(TRIGGERS) - set(there))
    if report.reason is None and missing:
        reason = f"the chain is whole, but somebody dropped what keeps rows from being changed: {', '.join(missing)}"
        return ChainReport(report.n_rows, report.head, reason)
    return report


def _entries(connection: Connection, query: Select[Any]) -> list[AuditEntry]:
    return [
        AuditEntry(row.id, row.at, row.actor, row.action, row.target, _detail(row.detail), row.request_id, row.hash)
        for row in connection.execute(query.with_only_columns(*AuditRow.__table__.columns))
    ]


def _detail(text: str) -> dict[str, Any]:
    """What is shown of a detail; one that was tampered with is shown too, as the text that it is."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError):
        return {"text": str(text)}
    return found if isinstance(found, dict) else {"text": str(text)}
