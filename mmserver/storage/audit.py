"""The audit trail: one row for each change, written in the change's own transaction, so that neither is there without the other."""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, select

from mmserver.storage.tables import AuditRow


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
    """Write one row in the transaction of `connection`.

    Args:
        at: from `text_from_datetime`
        detail: what JSON can carry; NaN and infinity are refused
    """
    text = json.dumps(detail, sort_keys=True, ensure_ascii=False, allow_nan=False)
    values = {"at": at, "actor": actor, "action": action, "target": target, "detail": text, "request_id": request_id}
    connection.execute(insert(AuditRow), values)


def list_audit(connection: Connection, limit: int, before_id: int | None = None) -> list[AuditEntry]:
    """The newest `limit` entries, newest first; with `before_id`, only those with a smaller id (the next page)."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if before_id is not None:
        query = query.where(AuditRow.id < before_id)
    return [
        AuditEntry(row.id, row.at, row.actor, row.action, row.target, json.loads(row.detail), row.request_id)
        for row in connection.execute(query.with_only_columns(*AuditRow.__table__.columns))
    ]
