"""API keys as they are kept: made, listed, revoked, rotated, each change in one transaction with its row in the audit trail."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from sqlalchemy import Connection, insert, select, update

from mmserver.errors import KeyEnded, KeyInvalid, KeyNotFound
from mmserver.security.keys import NewKey, generate_key
from mmserver.security.scopes import SCOPES
from mmserver.storage.audit import record_audit
from mmserver.storage.database import Database
from mmserver.storage.tables import ApiKeyRow
from mmserver.storage.times import datetime_from_text, text_from_datetime

KeyStatus: TypeAlias = Literal["active", "expired", "revoked"]
MAX_LABEL = 100
MAX_PATTERN = 200
MAX_PATTERNS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPlan:
    """What a new key shall be; `checked` says whether it can be.

    `models` and `venues` are patterns as file names have them (`btc-*`). None and None limit nothing; where either is given, the
    key is for what the two name and for nothing else.
    """

    label: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None = None
    venues: tuple[str, ...] | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as everybody may see it: nothing of its secret."""

    id: str
    label: str
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    venues: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    replaced_by: str | None

    def status(self, now: datetime) -> KeyStatus:
        """Whether it is taken now, and if not, why."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key together with its text, which is nowhere else and never comes again."""

    key: Key
    text: str

    def __repr__(self) -> str:
        return f"CreatedKey({self.key.id})"


def create_key(database: Database, plan: KeyPlan, actor: str, now: datetime) -> CreatedKey:
    """Make a key.

    Raises:
        KeyInvalid: the plan is none.
    """
    _check(plan, now)
    new = generate_key()
    with database.write() as connection:
        _insert(connection, new, plan, actor, now)
        _record(connection, "key.created", new.key_id, _said(plan), actor=actor, now=now)
        return CreatedKey(_found(connection, new.key_id), new.text)


def list_keys(database: Database) -> list[Key]:
    """All keys that were ever made, the oldest first."""
    with database.read() as connection:
        rows = connection.execute(_SELECT.order_by(ApiKeyRow.created_at, ApiKeyRow.key_id))
        return [_key(row) for row in rows]


def revoke_key(database: Database, key_id: str, actor: str, now: datetime) -> Key:
    """End a key for good; one that was revoked before stays as it is.

    Raises:
        KeyNotFound: nobody has that id.
    """
    with database.write() as connection:
        key = _found(connection, key_id)
        if key.revoked_at is None:
            _revoke(connection, key_id, now)
            _record(connection, "key.revoked", key_id, {"label": key.label}, actor=actor, now=now)
        return _found(connection, key_id)


def rotate_key(database: Database, key_id: str, actor: str, now: datetime, valid_until: datetime | None) -> CreatedKey:
    """A new key that may do what the old one may, for as long from now as that one was made for.

    The old one ends at once, or at `valid_until` where that comes before its own end.

    Raises:
        KeyNotFound: nobody has that id.
        KeyEnded: it was revoked, or has expired.
        KeyInvalid: `valid_until` is in the past.
    """
    if valid_until is not None and valid_until <= now:
        raise KeyInvalid(field="keep", reason="the old key would have ended already")
    new = generate_key()
    with database.write() as connection:
        old = _found(connection, key_id)
        status = old.status(now)
        if status != "active":
            raise KeyEnded(key_id=key_id, status=status)
        lifetime = None if old.expires_at is None else old.expires_at - old.created_at
        plan = KeyPlan(
            label=old.label,
            scopes=old.scopes,
            models=old.models,
            venues=old.venues,
            expires_at=None if lifetime is None else now + lifetime,
        )
        _insert(connection, new, plan, actor, now)
        _replace(connection, old, new.key_id, now, valid_until)
        detail = {"label": old.label, "new_key": new.key_id, "old_valid_until": _text(valid_until)}
        _record(connection, "key.rotated", key_id, detail, actor=actor, now=now)
        return CreatedKey(_found(connection, new.key_id), new.text)


# --- rows -------------------------------------------------------------------------------------------------------------

_COLUMNS = tuple(column for column in ApiKeyRow.__table__.columns if column.name != "sha256")
_SELECT = select(*_COLUMNS)


def _insert(connection: Connection, new: NewKey, plan: KeyPlan, actor: str, now: datetime) -> None:
    values = {
        "key_id": new.key_id,
        "label": plan.label,
        "sha256": new.sha256,
        "scopes": json.dumps([scope for scope in SCOPES if scope in plan.scopes]),
        "models": None if plan.models is None else json.dumps(plan.models),
        "venues": None if plan.venues is None else json.dumps(plan.venues),
        "created_at": text_from_datetime(now),
        "created_by": actor,
        "expires_at": _text(plan.expires_at),
    }
    connection.execute(insert(ApiKeyRow), values)


def _revoke(connection: Connection, key_id: str, now: datetime) -> None:
    connection.execute(update(ApiKeyRow).where(ApiKeyRow.key_id == key_id).values(revoked_at=text_from_datetime(now)))


def _replace(connection: Connection, old: Key, new_id: str, now: datetime, valid_until: datetime | None) -> None:
    if valid_until is None:
        _revoke(connection, old.id, now)
    ends = [moment for moment in (valid_until, old.expires_at) if moment is not None]
    values = {"replaced_by": new_id, "expires_at": _text(min(ends, default=None))}
    connection.execute(update(ApiKeyRow).where(ApiKeyRow.key_id == old.id).values(**values))


def _found(connection: Connection, key_id: str) -> Key:
    row = connection.execute(_SELECT.where(ApiKeyRow.key_id == key_id)).first()
    if row is None:
        raise KeyNotFound(key_id=key_id)
    return _key(row)


def _key(row: Any) -> Key:
    return Key(
        id=row.key_id,
        label=row.label,
        scopes=tuple(json.loads(row.scopes)),
        models=_patterns(row.models),
        venues=_patterns(row.venues),
        created_at=datetime_from_text(row.created_at),
        created_by=row.created_by,
        expires_at=_moment(row.expires_at),
        revoked_at=_moment(row.revoked_at),
        last_used_at=_moment(row.last_used_at),
        replaced_by=row.replaced_by,
    )


def _patterns(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime_from_text(text)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else text_from_datetime(moment)


def _record(
    connection: Connection, action: str, key_id: str, detail: dict[str, Any], *, actor: str, now: datetime
) -> None:
    record_audit(
        connection,
        at=text_from_datetime(now),
        actor=actor,
        action=action,
        target=f"key {key_id}",
        detail=detail,
        request_id=None,
    )


def _said(plan: KeyPlan) -> dict[str, Any]:
    return {
        "label": plan.label,
        "scopes": list(plan.scopes),
        "models": plan.models and list(plan.models),
        "venues": plan.venues and list(plan.venues),
        "expires_at": _text(plan.expires_at),
    }


# --- what a key can be ------------------------------------------------------------------------------------------------


def _check(plan: KeyPlan, now: datetime) -> None:
    if not plan.label.strip() or plan.label != plan.label.strip():
        raise KeyInvalid(field="label", reason="it must say something, without spaces around it")
    if len(plan.label) > MAX_LABEL or not plan.label.isprintable():
        raise KeyInvalid(field="label", reason=f"up to {MAX_LABEL} printable characters")
    unknown = [scope for scope in plan.scopes if scope not in SCOPES]
    if unknown or not plan.scopes:
        raise KeyInvalid(field="scope", reason=f"one or more of {', '.join(SCOPES)}")
    _check_patterns("model", plan.models)
    _check_patterns("venue", plan.venues)
    if plan.expires_at is not None and plan.expires_at <= now:
        raise KeyInvalid(field="expires", reason="that is not in the future")


def _check_patterns(field: str, patterns: Sequence[str] | None) -> None:
    if patterns is None:
        return
    if not 0 < len(patterns) <= MAX_PATTERNS:
        raise KeyInvalid(field=field, reason=f"from 1 to {MAX_PATTERNS} patterns")
    for pattern in patterns:
        if not pattern or len(pattern) > MAX_PATTERN or not pattern.isprintable():
            raise KeyInvalid(field=field, reason=f"a pattern has from 1 to {MAX_PATTERN} printable characters")
