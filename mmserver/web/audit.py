"""`/api/ml/audit` and its page: who changed what, and what was refused, newest first."""

import urllib.parse
from datetime import UTC, datetime
from typing import Any

import flask
import msgspec

from mmserver.storage.audit import ANY_END, REFUSED, AuditEntry, AuditFilter, list_audit, read_head
from mmserver.web.current import current_store
from mmserver.web.requests import query_number, query_text, query_time, refuse_parameter
from mmserver.web.responses import json_response, render_page
from mmserver.web.versions import cursor_from_seq, seq_from_cursor

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000
TEXT_FILTERS = ("actor", "action", "target")
TIME_FILTERS = ("since", "until")
_LONGEST_DETAIL = 2000


class AuditItem(msgspec.Struct, frozen=True):
    """One entry."""

    id: int
    at: str
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    request_id: str | None
    hash: str


class AuditItems(msgspec.Struct, frozen=True):
    """A page of entries, newest first."""

    items: list[AuditItem]
    next_cursor: str | None


def get_audit() -> flask.Response:
    """Entries, the newest first, `limit` at a time."""
    asked = _asked_filter(*(query_time(flask.request, name) for name in TIME_FILTERS))
    limit = query_number(flask.request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    entries, next_cursor = _page(asked, limit)
    return json_response(
        AuditItems([msgspec.convert(one, AuditItem, from_attributes=True) for one in entries], next_cursor)
    )


def get_audit_page() -> flask.Response:
    """The same to look at, with a form for the filters."""
    wanted = _asked_filter(*(_typed_time(name) for name in TIME_FILTERS))
    entries, next_cursor = _page(wanted, DEFAULT_LIMIT)
    asked = {name: text for name in (*TEXT_FILTERS, *TIME_FILTERS) if (text := query_text(flask.request, name))}
    with current_store().database.read() as connection:
        head = read_head(connection)
    return render_page(
        "audit.html",
        rows=[_row(entry) for entry in entries],
        asked=asked,
        head=head,
        older=_link({**asked, "cursor": next_cursor}) if next_cursor else None,
        newest=_link(asked) if query_text(flask.request, "cursor") else None,
        refused_link=_link({"action": REFUSED}),
    )


def _asked_filter(since: datetime | None, until: datetime | None) -> AuditFilter:
    actor, action, target = (query_text(flask.request, name) for name in TEXT_FILTERS)
    return AuditFilter(actor, action, target, since, until)


def _page(asked: AuditFilter, limit: int) -> tuple[list[AuditEntry], str | None]:
    cursor = query_text(flask.request, "cursor")
    before_id = None if cursor is None else seq_from_cursor(cursor)
    with current_store().database.read() as connection:
        found = list_audit(connection, limit + 1, before_id, asked)
    page = found[:limit]
    return page, cursor_from_seq(page[-1].id) if len(found) > limit else None


def _typed_time(name: str) -> datetime | None:
    """A time as a browser's field for it has it, which is UTC here as all times are, or as anybody types it."""
    text = query_text(flask.request, name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        refuse_parameter(name, "Expected a time such as 2026-11-20T14:03:22")


def _row(entry: AuditEntry) -> dict[str, Any]:
    """What the page shows, in which nothing that a client made up is more than text on one line."""
    detail = "; ".join(f"{name}: {_plain(value)}" for name, value in entry.detail.items() if value is not None)
    target = entry.target
    return {
        "id": entry.id,
        "at": visible(entry.at),
        "at_short": visible(entry.at[:19].replace("T", " ")),
        "actor": visible(entry.actor),
        "actor_link": _link({"actor": entry.actor}) if _can_be_asked(entry.actor) else None,
        "action": visible(entry.action),
        "is_refused": entry.action == REFUSED,
        "target": visible(target),
        "target_link": _link({"target": target}) if _can_be_asked(target) else None,
        "detail": visible(detail[:_LONGEST_DETAIL] + "…" if len(detail) > _LONGEST_DETAIL else detail),
        "request_id": visible(entry.request_id or ""),
    }


def visible(text: str) -> str:
    """The text with what cannot be seen written out: line ends, control characters, and marks that turn the direction of writing."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _can_be_asked(text: str) -> bool:
    return text.isprintable() and bool(text) and not text.endswith(ANY_END)


def _link(parameters: dict[str, str]) -> str:
    return "?" + urllib.parse.urlencode(parameters)
