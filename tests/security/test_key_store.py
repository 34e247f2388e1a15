"""Keys in a real database file."""

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mmserver.errors import KeyEnded, KeyInvalid, KeyNotFound
from mmserver.security.key_store import KeyPlan, create_key, list_keys, revoke_key, rotate_key
from mmserver.security.keys import parts_from_key
from mmserver.storage.audit import list_audit
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import create_database

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
PLAN = KeyPlan(label="bot 7", scopes=("predict", "read"))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A new one."""
    path = tmp_path / "mmserver.db"
    create_database(path, NOW)
    database = open_database(path)
    yield database
    database.close()


def audit(database: Database) -> list[tuple[str, str, str, dict[str, Any]]]:
    """What the trail says, oldest first."""
    with database.read() as connection:
        return [(one.actor, one.action, one.target, one.detail) for one in reversed(list_audit(connection, 100))]


def test_a_key_is_listed_as_it_was_made(database: Database) -> None:
    plan = KeyPlan(
        label="desk", scopes=("manage", "read"), models=("btc-*", "eth?"), venues=("gate-*",), expires_at=NOW + DAY
    )
    created = create_key(database, plan, "me", NOW)
    (key,) = list_keys(database)
    assert key == created.key
    assert (key.label, key.scopes, key.models, key.venues) == (
        "desk",
        ("read", "manage"),
        ("btc-*", "eth?"),
        ("gate-*",),
    )
    assert (key.created_at, key.created_by, key.expires_at) == (NOW, "me", NOW + DAY)
    assert key.revoked_at is key.last_used_at is key.replaced_by is None
    assert parts_from_key(created.text).key_id == key.id


def test_a_stolen_database_has_no_secret_in_it(database: Database) -> None:
    created = create_key(database, PLAN, "me", NOW)
    rotated = rotate_key(database, created.key.id, "me", NOW, None)
    database.checkpoint()
    stored = b"".join(path.read_bytes() for path in database.path.parent.iterdir())
    for text in (created.text, rotated.text):
        assert parts_from_key(text).key_id.encode() in stored
        assert parts_from_key(text).secret.encode() not in stored
    assert parts_from_key(created.text).secret not in repr(created)


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        pytest.param(KeyPlan(label="", scopes=("read",)), "label", id="no label"),
        pytest.param(KeyPlan(label=" x", scopes=("read",)), "label", id="a space before the label"),
        pytest.param(KeyPlan(label="a\nb", scopes=("read",)), "label", id="two lines"),
        pytest.param(KeyPlan(label="x" * 101, scopes=("read",)), "label", id="a long label"),
        pytest.param(KeyPlan(label="x", scopes=()), "scope", id="no scope"),
        pytest.param(KeyPlan(label="x", scopes=("open",)), "scope", id="open is no scope"),
        pytest.param(KeyPlan(label="x", scopes=("read", "root")), "scope", id="an unknown scope"),
        pytest.param(KeyPlan(label="x", scopes=("read",), models=()), "model", id="limited to nothing"),
        pytest.param(KeyPlan(label="x", scopes=("read",), models=("",)), "model", id="an empty pattern"),
        pytest.param(KeyPlan(label="x", scopes=("read",), venues=("a\x00",)), "venue", id="a control character"),
        pytest.param(KeyPlan(label="x", scopes=("read",), expires_at=NOW), "expires", id="ends as it begins"),
    ],
)
def test_what_cannot_be_a_key_is_refused_and_nothing_is_written(database: Database, plan: KeyPlan, field: str) -> None:
    with pytest.raises(KeyInvalid) as refused:
        create_key(database, plan, "me", NOW)
    assert refused.value.values["field"] == field
    assert list_keys(database) == []
    assert audit(database) == []


def test_a_revoked_key_stays_revoked_since_then(database: Database) -> None:
    key_id = create_key(database, PLAN, "me", NOW).key.id
    assert revoke_key(database, key_id, "you", NOW + DAY).status(NOW + DAY) == "revoked"
    again = revoke_key(database, key_id, "they", NOW + 2 * DAY)
    assert again.revoked_at == NOW + DAY
    assert [(actor, action) for actor, action, _, _ in audit(database)] == [
        ("me", "key.created"),
        ("you", "key.revoked"),
    ]


def test_a_rotated_key_ends_at_once_and_its_heir_may_do_the_same_as_long(database: Database) -> None:
    plan = KeyPlan(label="desk", scopes=("read",), models=("btc-*",), expires_at=NOW + 30 * DAY)
    old = create_key(database, plan, "me", NOW).key
    later = NOW + 10 * DAY
    new = rotate_key(database, old.id, "me", later, None).key
    assert (new.label, new.scopes, new.models, new.venues) == (old.label, old.scopes, old.models, old.venues)
    assert new.expires_at == later + 30 * DAY
    ended = next(key for key in list_keys(database) if key.id == old.id)
    assert ended.status(later) == "revoked"
    assert ended.replaced_by == new.id


@pytest.mark.parametrize(
    ("expires", "keep", "ends"),
    [(None, 2 * DAY, 2 * DAY), (DAY, 2 * DAY, DAY), (3 * DAY, 2 * DAY, 2 * DAY)],
    ids=["for ever", "ends before", "ends after"],
)
def test_a_rotated_key_may_be_kept_for_a_while_but_never_longer_than_it_had(
    database: Database, expires: timedelta | None, keep: timedelta, ends: timedelta
) -> None:
    plan = KeyPlan(label="x", scopes=("read",), expires_at=expires and NOW + expires)
    old_id = create_key(database, plan, "me", NOW).key.id
    rotate_key(database, old_id, "me", NOW, NOW + keep)
    old = next(key for key in list_keys(database) if key.id == old_id)
    assert old.expires_at == NOW + ends
    assert old.status(NOW) == "active"
    assert old.status(NOW + ends) == "expired"


def test_ended_keys_are_not_rotated(database: Database) -> None:
    key_id = create_key(database, KeyPlan(label="x", scopes=("read",), expires_at=NOW + DAY), "me", NOW).key.id
    with pytest.raises(KeyEnded, match="expired"):
        rotate_key(database, key_id, "me", NOW + DAY, None)
    revoke_key(database, key_id, "me", NOW)
    with pytest.raises(KeyEnded, match="revoked"):
        rotate_key(database, key_id, "me", NOW, None)
    assert len(list_keys(database)) == 1


def test_ids_that_nobody_has_are_not_found(database: Database) -> None:
    with pytest.raises(KeyNotFound):
        revoke_key(database, "aaaaaaaaaa", "me", NOW)
    with pytest.raises(KeyNotFound):
        rotate_key(database, "'; drop table api_keys --", "me", NOW, None)


def test_a_change_without_its_audit_row_does_not_happen(database: Database) -> None:
    with sqlite3.connect(database.path) as raw:
        raw.execute("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(Exception, match="no"):
        create_key(database, PLAN, "me", NOW)
    assert list_keys(database) == []
