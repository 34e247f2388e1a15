"""Who asks, and whether they may: the keys of the database in memory, read again when somebody commits.

Nothing here knows HTTP beyond the words of its credentials. One `Access` serves all threads of a process.
"""

import base64
import binascii
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from mmserver.errors import KeyMalformed, KeyRefused, KeyRequired, NoKeyExists, ScopeMissing
from mmserver.security.keys import is_secret_of, parts_from_key
from mmserver.security.scopes import Permission
from mmserver.storage.database import Database
from mmserver.storage.times import datetime_from_text, text_from_datetime

MAX_VERIFIED = 4096
MAX_CREDENTIAL = 512
"""Characters; a key has 66, and Basic adds the user's name."""
NOTE_INTERVAL_S = 60.0
"""How often it is written down which keys were used: each such commit is read by every process."""
_SCHEMES = ("bearer", "basic")
_READ_KEYS = "SELECT key_id, label, sha256, scopes, models, venues, expires_at, revoked_at FROM api_keys"
_NOTE_USE = "UPDATE api_keys SET last_used_at = ? WHERE key_id = ?"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a key stands for, and what it opens."""

    key_id: str
    label: str
    scopes: frozenset[str]
    models: tuple[str, ...] | None = None
    venues: tuple[str, ...] | None = None
    expires_s: float | None = None
    """Seconds since the epoch."""

    @property
    def actor(self) -> str:
        """As the audit trail names it."""
        return f"key:{self.key_id} ({self.label})"

    @property
    def is_limited(self) -> bool:
        """Whether it opens some models or venues only, and then nothing that is not about one of them."""
        return self.models is not None or self.venues is not None

    def has_scope(self, permission: Permission) -> bool:
        """Whether it is for this; `admin` is for everything."""
        return permission in self.scopes or "admin" in self.scopes

    def may_use_model(self, model_name: str) -> bool:
        """Whether this model is within its limits."""
        return not self.is_limited or _matches(model_name, self.models)

    def may_use_venue(self, venue: str) -> bool:
        """Whether this venue is within its limits."""
        return not self.is_limited or _matches(venue, self.venues)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the database says of one key that was not revoked."""

    identity: Identity
    sha256: str


@dataclass(frozen=True, slots=True)
class _Keys:
    """All keys as they were read together, and what was verified against them: both are replaced at once, so that no answer
    outlives the keys that it came from.
    """

    by_id: Mapping[str, _Kept]
    exist: bool
    """Whether a key was ever made; one that was revoked counts, or revoking the last would open everything."""
    verified: dict[str, Identity] = field(default_factory=dict)
    """By the credential's whole text."""


class Access:
    """Verifies credentials and decides what they open."""

    def __init__(
        self, database: Database, mode: str, *, public_reads: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """`mode` is the setting `auth`; `clock` gives seconds since the epoch."""
        self._database = database
        self._mode = mode
        self._public_reads = public_reads
        self._clock = clock
        self._used: set[str] = set()
        self._noted_at = clock()
        self.is_enforced = False
        """Whether anybody is asked for anything."""
        self._seen = database.data_version()
        self._keys = self._take()

    def follow(self) -> bool:
        """Read the keys again if anybody committed since; True if so. Cheap enough to call several times a second.

        Raises:
            what `Database.read` does; the keys stay what they were until a later call.
        """
        seen = self._database.data_version()
        if seen == self._seen:
            return False
        self._keys = self._take()
        self._seen = seen
        return True

    def is_public(self, permission: Permission) -> bool:
        """Whether this needs no key, although keys are asked for."""
        return permission == "open" or (self._public_reads and permission == "read")

    def known(self, headers: Mapping[str, str]) -> Identity | None:
        """Whom these headers were found to be from before, if that still holds: a lookup. None says nothing; see `identify`.

        `headers` has upper-case names with underscores.
        """
        identity = self._keys.verified.get(_credential(headers.get("AUTHORIZATION", ""), headers.get("X_API_KEY", "")))
        if identity is None or (identity.expires_s is not None and identity.expires_s <= self._clock()):
            return None
        self._used.add(identity.key_id)
        return identity

    def identify(self, authorization: str, api_key: str) -> Identity:
        """Whom the two headers are from, empty where they did not come; `X-API-Key` goes before `Authorization`.

        Raises:
            KeyRequired, NoKeyExists: neither came.
            KeyMalformed: no key is in it, or one that was mistyped.
            KeyRefused: the key is unknown, revoked or expired.
        """
        keys = self._keys
        credential = _credential(authorization, api_key)
        if not credential:
            raise KeyRequired if keys.exist else NoKeyExists
        identity = keys.verified.get(credential)
        if identity is None:
            identity = _verified(keys, credential)
            if len(keys.verified) >= MAX_VERIFIED:
                keys.verified.clear()
            keys.verified[credential] = identity
        if identity.expires_s is not None and identity.expires_s <= self._clock():
            raise KeyRefused
        self._used.add(identity.key_id)
        return identity

    def decide(self, permission: Permission, authorization: str, api_key: str) -> Identity | None:
        """Whom to let through; None for somebody who needs to be nobody.

        Raises:
            KeyRequired, NoKeyExists, KeyMalformed, KeyRefused: see `identify`.
            ScopeMissing: the key is for other things.
        """
        if not self.is_enforced or self.is_public(permission):
            return None
        identity = self.identify(authorization, api_key)
        if not identity.has_scope(permission):
            raise ScopeMissing(scope=permission)
        return identity

    @property
    def is_locked_out(self) -> bool:
        """Whether everybody is asked for a key, and nobody can have one."""
        return self.is_enforced and not self._keys.exist

    def note_uses(self) -> None:
        """Write down which keys were used, once in a while; for a thread that may wait for the database."""
        now_s = self._clock()
        if not self._used or self._database.read_only or abs(now_s - self._noted_at) < NOTE_INTERVAL_S:
            return
        self._noted_at = now_s
        used, self._used = self._used, set()
        at = text_from_datetime(datetime.fromtimestamp(now_s, UTC))
        with self._database.write() as connection:
            for key_id in sorted(used):
                connection.exec_driver_sql(_NOTE_USE, (at, key_id))

    def _take(self) -> _Keys:
        """What the database has now. Plain SQL: to build the statement would cost the start more than to ask it."""
        with self._database.read() as connection:
            rows = connection.exec_driver_sql(_READ_KEYS).fetchall()
        keys = _Keys({row.key_id: _kept(row) for row in rows if row.revoked_at is None}, bool(rows))
        self.is_enforced = self._mode == "required" or (self._mode == "auto" and keys.exist)
        return keys


def _kept(row: Any) -> _Kept:
    identity = Identity(
        key_id=row.key_id,
        label=row.label,
        scopes=frozenset(json.loads(row.scopes)),
        models=_patterns(row.models),
        venues=_patterns(row.venues),
        expires_s=None if row.expires_at is None else datetime_from_text(row.expires_at).timestamp(),
    )
    return _Kept(identity, row.sha256)


def _patterns(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(json.loads(text))


def _matches(name: str, patterns: Iterable[str] | None) -> bool:
    return patterns is not None and any(fnmatchcase(name, pattern) for pattern in patterns)


def _credential(authorization: str, api_key: str) -> str:
    """One text for what the two headers say."""
    return f"Bearer {api_key}" if api_key else authorization


def _verified(keys: _Keys, credential: str) -> Identity:
    parts = parts_from_key(_key_in(credential))
    kept = keys.by_id.get(parts.key_id)
    if not is_secret_of(parts.secret, kept.sha256 if kept is not None else None) or kept is None:
        raise KeyRefused
    return kept.identity


def _key_in(credential: str) -> str:
    """The key's text in what `Authorization` says."""
    scheme, _, rest = credential.partition(" ")
    if len(credential) > MAX_CREDENTIAL or scheme.lower() not in _SCHEMES:
        raise KeyMalformed
    if scheme.lower() == "bearer":
        return rest.strip()
    try:
        return base64.b64decode(rest.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise KeyMalformed from error
