"""The chain through the audit trail: each row has a hash over itself and the hash before it, so that what was changed later shows.

Nothing but the standard library is imported, so that a file can be checked by a process that shares nothing with the server.
What a chain cannot show is an owner of the file who makes all of it anew: for that, keep a head somewhere else.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

FIRST_HASH = "0" * 64
"""What the first row is chained to."""
HEAD_KEY = "audit_head"
"""Where the head is kept, in the table `meta`; every change moves it in its own transaction."""
CHAINED = ("id", "at", "actor", "action", "target", "detail", "request_id")
"""What of a row is hashed, in this order, as it is stored."""

TRIGGERS: Mapping[str, str] = MappingProxyType(
    {
        f"audit_no_{verb.lower()}": (
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit BEGIN"
            " SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END"
        )
        for verb in ("UPDATE", "DELETE")
    }
)
"""The triggers that a database of mmserver has, by name: against mistakes. Whoever can write the file can drop them."""


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The end of the chain: a truncated trail is shorter than its head says."""

    last_id: int
    n_rows: int
    hash: str

    def text(self) -> str:
        """As it is kept."""
        return json.dumps({"last_id": self.last_id, "n_rows": self.n_rows, "hash": self.hash})


FIRST_HEAD = AuditHead(0, 0, FIRST_HASH)


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a walk along the chain found; `broken_id` is the first row that is wrong or missing, None where none is or no row is meant."""

    n_rows: int
    head: AuditHead
    reason: str | None = None
    broken_id: int | None = None


def row_hash(previous_hash: str, row: Sequence[Any]) -> str:
    """The hash of one row, whose values are in the order of `CHAINED`. It never changes: what was chained has to stay true.

    Raises:
        TypeError: a value is neither text nor a number nor None, as no row of ours has.
    """
    return hashlib.sha256(json.dumps([previous_hash, *row], separators=(",", ":")).encode()).hexdigest()


def head_from_text(text: object) -> AuditHead | None:
    """The head, None where the text is none."""
    try:
        found = json.loads(str(text))
        return AuditHead(int(found["last_id"]), int(found["n_rows"]), str(found["hash"]))
    except (ValueError, KeyError, TypeError):
        return None


def check_chain(rows: Iterable[Sequence[Any]], head_text: object, kept_head: str | None = None) -> ChainReport:
    """Walk along the whole chain, from the first row.

    Args:
        rows: in the order of their ids, each with its values in the order of `CHAINED` and then its own hash
        head_text: what the database has as the head
        kept_head: a hash that was the head at some time, and was kept elsewhere: a row has to have it
    """
    previous = FIRST_HEAD
    has_kept_head = kept_head in (None, FIRST_HASH)
    for row in rows:
        reason = _break_at(row, previous)
        if reason is not None:
            broken_id = row[0] if isinstance(row[0], int) else None
            return ChainReport(previous.n_rows, previous, reason, broken_id)
        previous = AuditHead(row[0], previous.n_rows + 1, row[-1])
        has_kept_head = has_kept_head or previous.hash == kept_head
    reason, broken_id = _break_at_end(previous, head_from_text(head_text))
    if reason is None and not has_kept_head:
        reason = (
            f"no row has the hash {kept_head}: the trail was made anew since, or the database restored from before it"
        )
    return ChainReport(previous.n_rows, previous, reason, broken_id)


def _break_at(row: Sequence[Any], previous: AuditHead) -> str | None:
    try:
        if row_hash(previous.hash, row[:-1]) == row[-1]:
            return None
    except TypeError:
        return f"row {row[0]!r} holds what mmserver never writes"
    after = f"row {previous.last_id}" if previous.n_rows else "the beginning"
    if isinstance(row[0], int) and row[0] > previous.last_id + 1:
        return f"row {row[0]} does not follow {after}: what was between them was deleted, or this one was put in"
    return f"row {row[0]} is not what was written after {after}: it was changed, moved or put in"


def _break_at_end(last: AuditHead, head: AuditHead | None) -> tuple[str | None, int | None]:
    if head is None:
        return "the head of the trail is missing, so that nothing says how long it was", None
    if head == last:
        return None, None
    if last.last_id < head.last_id:
        missing = f"row {head.last_id} is" if head.last_id == last.last_id + 1 else (
            f"rows {last.last_id + 1} to {head.last_id} are"
        )  # fmt: skip
        return f"{missing} missing at the end", last.last_id + 1
    if last.last_id > head.last_id:
        return f"row {head.last_id + 1} and what follows were put in behind the end", head.last_id + 1
    return f"row {last.last_id} is not the one that the trail ended with: all of it was made anew", last.last_id
