"""Who is let through, by keys in a real database file."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mmserver.errors import KeyMalformed, KeyRefused, KeyRequired, NoKeyExists, ScopeMissing, Unauthenticated
from mmserver.security.access import MAX_VERIFIED, NOTE_INTERVAL_S, Access, Identity
from mmserver.security.key_store import KeyPlan, create_key, list_keys, revoke_key, rotate_key
from mmserver.security.keys import generate_key
from mmserver.security.scopes import SCOPES, Scope, needs
from mmserver.storage.database import Database, open_database
from mmserver.storage.schema import create_database

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
READ = KeyPlan(label="reader", scopes=("read",))


class Clock:
    """Seconds since the epoch, as a test says."""

    def __init__(self) -> None:
        self.now_s = NOW.timestamp()

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Stands still."""
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """A new one."""
    create_database(tmp_path / "mmserver.db", NOW)
    database = open_database(tmp_path / "mmserver.db")
    yield database
    database.close()


def bearer(text: str) -> dict[str, str]:
    """As the quick routes get headers."""
    return {"AUTHORIZATION": f"Bearer {text}"}


def test_without_keys_nobody_is_asked_and_the_first_key_ends_that(database: Database, clock: Clock) -> None:
    access = Access(database, "auto", clock=clock)
    assert not access.is_enforced
    assert access.decide("admin", "", "") is None
    text = create_key(database, READ, "me", NOW).text
    assert access.follow()
    assert access.is_enforced
    with pytest.raises(KeyRequired):
        access.decide("read", "", "")
    found = access.decide("read", f"Bearer {text}", "")
    assert found is not None
    assert found.label == "reader"
    assert not access.follow()


def test_revoking_the_last_key_opens_nothing(database: Database, clock: Clock) -> None:
    access = Access(database, "auto", clock=clock)
    created = create_key(database, READ, "me", NOW)
    access.follow()
    assert access.identify(f"Bearer {created.text}", "").key_id == created.key.id
    revoke_key(database, created.key.id, "me", NOW)
    access.follow()
    assert access.is_enforced
    assert access.known(bearer(created.text)) is None
    with pytest.raises(KeyRefused):
        access.decide("read", f"Bearer {created.text}", "")
    assert Access(database, "auto", clock=clock).is_enforced, "nor does a start"


def test_required_without_a_key_says_how_to_make_one(database: Database) -> None:
    access = Access(database, "required")
    assert access.is_locked_out
    with pytest.raises(NoKeyExists, match="mmserver keys create"):
        access.decide("read", "", "")
    assert access.decide("open", "", "") is None


def test_off_asks_nobody_even_with_keys(database: Database) -> None:
    create_key(database, READ, "me", NOW)
    assert Access(database, "off").decide("admin", "Bearer rubbish", "") is None


def test_public_reads_leave_reading_open_and_nothing_else(database: Database) -> None:
    create_key(database, READ, "me", NOW)
    access = Access(database, "auto", public_reads=True)
    assert access.decide("read", "", "") is None
    for permission in ("predict", "manage", "admin"):
        with pytest.raises(KeyRequired):
            access.decide(permission, "", "")  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", SCOPES)
def test_each_scope_stands_by_itself_and_admin_is_all(database: Database, clock: Clock, scope: Scope) -> None:
    text = create_key(database, KeyPlan(label="x", scopes=(scope,)), "me", NOW).text
    access = Access(database, "auto", clock=clock)
    opened = set()
    for permission in SCOPES:
        try:
            access.decide(permission, f"Bearer {text}", "")
        except ScopeMissing as error:
            assert error.values == {"scope": permission}
        else:
            opened.add(permission)
    assert opened == (set(SCOPES) if scope == "admin" else {scope})


def test_every_way_to_send_a_key_is_understood_and_x_api_key_goes_first(database: Database, clock: Clock) -> None:
    text = create_key(database, READ, "me", NOW).text
    access = Access(database, "auto", clock=clock)
    basic = base64.b64encode(f"anybody:{text}".encode()).decode()
    for authorization, api_key in (
        (f"Bearer {text}", ""),
        (f"bearer  {text} ", ""),
        (f"Basic {basic}", ""),
        ("", text),
        ("Basic cHJveHk6cHJveHk=", text),
    ):
        assert access.identify(authorization, api_key).label == "reader"
    with pytest.raises(Unauthenticated):
        access.identify(f"Bearer {text}", "rubbish")


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Bearer ", "Digest x", "mm_", "Basic", "Basic !!!", "Basic /////w==", "Basic bm9jb2xvbg==", "Bearer " + "x" * 10_000, "é", "\x00"],
    ids=["alone", "empty", "digest", "no scheme", "basic alone", "no base64", "no UTF-8", "no password", "long", "not ASCII", "NUL"],
)  # fmt: skip
def test_rubbish_is_malformed_and_never_more(database: Database, authorization: str) -> None:
    with pytest.raises(KeyMalformed):
        Access(database, "required").identify(authorization, "")


def test_unknown_revoked_and_expired_keys_are_refused_alike(database: Database, clock: Clock) -> None:
    unknown = generate_key().text
    revoked = create_key(database, READ, "me", NOW)
    revoke_key(database, revoked.key.id, "me", NOW)
    ending = KeyPlan(label="x", scopes=("read",), expires_at=NOW + timedelta(seconds=10))
    expired = create_key(database, ending, "me", NOW)
    valid = create_key(database, READ, "me", NOW)
    forged = f"{valid.text[:14]}{unknown[14:57]}"  # another's secret under a known id
    access = Access(database, "auto", clock=clock)
    assert access.identify(f"Bearer {expired.text}", "").label == "x"
    assert access.known(bearer(expired.text)) is not None
    clock.now_s += 10
    assert access.known(bearer(expired.text)) is None
    said = set()
    for text in (unknown, revoked.text, expired.text):
        with pytest.raises(KeyRefused) as refused:
            access.identify(f"Bearer {text}", "")
        said.add((str(refused.value), refused.value.code, repr(refused.value.values)))
    assert len(said) == 1
    with pytest.raises(KeyMalformed):
        access.identify(f"Bearer {forged}", "")


def test_a_secret_fits_its_own_id_only(database: Database) -> None:
    from mmserver.security.keys import _checksum, parts_from_key

    one, other = (create_key(database, READ, "me", NOW).text for _ in range(2))
    key_id, secret = parts_from_key(one).key_id, parts_from_key(other).secret
    with pytest.raises(KeyRefused):
        Access(database, "auto").identify(f"Bearer mm_{key_id}_{secret}_{_checksum(key_id, secret)}", "")


def test_a_rotated_key_is_taken_until_its_time(database: Database, clock: Clock) -> None:
    old = create_key(database, READ, "me", NOW)
    new = rotate_key(database, old.key.id, "me", NOW, NOW + timedelta(hours=1))
    access = Access(database, "auto", clock=clock)
    for text in (old.text, new.text):
        assert access.identify(f"Bearer {text}", "").label == "reader"
    clock.now_s += 3600
    assert access.known(bearer(old.text)) is None
    assert access.known(bearer(new.text)) is not None


def test_what_is_remembered_stays_bounded(database: Database) -> None:
    text = create_key(database, READ, "me", NOW).text
    access = Access(database, "auto")
    for user in range(MAX_VERIFIED + 10):
        access.identify("Basic " + base64.b64encode(f"{user}:{text}".encode()).decode(), "")
    assert len(access._keys.verified) <= MAX_VERIFIED


def test_limits_name_all_that_a_key_opens() -> None:
    anything = Identity("a", "x", frozenset({"read"}))
    assert anything.may_use_model("m")
    assert anything.may_use_venue("v")
    models = Identity("a", "x", frozenset({"read"}), models=("btc-*", "eth?"))
    assert models.is_limited
    assert [models.may_use_model(name) for name in ("btc-1", "eth2", "BTC-1", "sol", "xbtc-1", "eth22")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    assert not models.may_use_venue("gate-margin")
    venues = Identity("a", "x", frozenset({"read"}), venues=("gate-*",))
    assert venues.may_use_venue("gate-margin")
    assert not venues.may_use_model("gate-margin")


def test_uses_are_written_down_once_in_a_while(database: Database, clock: Clock) -> None:
    used, unused = (create_key(database, READ, "me", NOW) for _ in range(2))
    access = Access(database, "auto", clock=clock)
    access.identify(f"Bearer {used.text}", "")
    access.note_uses()
    assert {key.last_used_at for key in list_keys(database)} == {None}
    clock.now_s += NOTE_INTERVAL_S
    access.note_uses()
    found = {key.id: key.last_used_at for key in list_keys(database)}
    assert found == {used.key.id: NOW + timedelta(seconds=NOTE_INTERVAL_S), unused.key.id: None}
    assert access.known(bearer(used.text)) is not None


def test_a_permission_that_does_not_exist_cannot_be_declared() -> None:
    with pytest.raises(ValueError, match="root"):
        needs("root")  # type: ignore[arg-type]
