"""Looking again: what changed is served, what cannot be served is said, and what is said goes away with its cause."""

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.refreshing import refresh_model
from mmserver.errors import AmbiguousSymbols, ArtifactInvalid, DirectoryInvalid, ModelNotFound, Overloaded, ReadOnly
from mmserver.storage.tables import MembershipRow


def test_what_was_retrained_is_served_and_its_neighbours_are_the_very_same_objects(registered: Any) -> None:
    before = registered.model.serving
    registered.artifacts.write_group("ETH_ret_1h", 5)
    registered.settle()
    after = registered.model.serving
    assert registered.seed("ETH") == 5
    assert all(after.groups[key] is before.groups[key] for key in before.groups if key != "ETH_ret_1h")
    assert registered.actions() == ["model.registered", "model.refreshed"]


def test_a_touched_file_makes_no_version_and_no_audit_row(registered: Any) -> None:
    version = registered.model.serving
    for path in registered.artifacts.path.iterdir():
        os.utime(path)
    registered.settle()
    assert registered.model.serving is version
    assert registered.actions() == ["model.registered"]


def test_a_refresh_by_hand_says_what_it_did(registered: Any) -> None:
    before = registered.model.serving.label
    registered.artifacts.write_group("ETH_ret_1h", 5)
    registered.artifacts.write_group("ADA_ret_1h", 4)
    registered.artifacts.delete_group("SOL_ret_1h")
    result = registered.refresh()
    assert (result.added, result.removed, result.updated) == (("ADA_ret_1h",), ("SOL_ret_1h",), ("ETH_ret_1h",))
    assert (result.changed, result.previous_version, result.version) == (True, before, registered.model.serving.label)
    again = registered.refresh()
    assert (again.changed, again.version, again.previous_version) == (False, result.version, result.version)


def test_a_refresh_after_a_rollback_that_finds_nothing_leaves_the_rollback_alone(registered: Any) -> None:
    from mmserver.catalog.history import rollback_model

    first = registered.model.serving.label
    registered.artifacts.write_group("ETH_ret_1h", 5)
    registered.settle()
    rollback_model(registered.store, "alpha", first, Actor("test"))
    result = registered.refresh()
    assert (result.changed, result.version, result.previous_version) == (False, first, first)


BAD_MODEL = pickle.dumps({"not": "a model"})


def test_a_refusal_is_shown_until_the_file_is_good_again(registered: Any) -> None:
    path = registered.artifacts.path / "ETH_ret_1h_model.pkl"
    good = path.read_bytes()
    path.write_bytes(BAD_MODEL)
    registered.settle()
    assert registered.refusals() == {"ETH_ret_1h": "wrong_type"}
    assert (registered.model.status, registered.seed("ETH")) == ("stale", 1)
    path.write_bytes(good)
    registered.settle()
    assert (registered.refusals(), registered.model.status) == ({}, "ok")


def test_a_refusal_goes_when_the_bad_file_beside_a_good_one_is_deleted(registered: Any) -> None:
    bad = registered.artifacts.write("ETH_ret_1h_model.json", b"{}")
    registered.settle()
    assert list(registered.refusals()) == ["ETH_ret_1h"]
    bad.unlink()
    registered.settle()
    assert (registered.refusals(), registered.model.status) == ({}, "ok")


def test_a_refusal_of_a_group_that_was_never_served_goes_with_its_files(registered: Any) -> None:
    bad = registered.artifacts.write("NEW_ret_1h_model.pkl", BAD_MODEL)
    registered.settle()
    assert list(registered.refusals()) == ["NEW_ret_1h"]
    bad.unlink()
    registered.settle()
    assert (registered.refusals(), registered.model.status) == ({}, "ok")


def test_a_refusal_survives_restarts_while_its_cause_lasts_and_goes_when_it_went_meanwhile(
    registered: Any, restart: Callable[..., Any]
) -> None:
    bad = registered.artifacts.write("NEW_ret_1h_model.pkl", BAD_MODEL)
    registered.settle()
    again = restart(registered)
    again.settle()
    assert list(again.refusals()) == ["NEW_ret_1h"]
    bad.unlink()
    last = restart(again)
    last.settle()
    assert (last.refusals(), last.model.status) == ({}, "ok")


def test_what_a_scan_cannot_use_is_shown_while_it_is_there(registered: Any) -> None:
    os.mkfifo(registered.artifacts.path / "NEW_ret_1h_model.pkl")
    registered.settle()
    assert registered.refusals() == {"NEW_ret_1h": "not_regular"}
    (registered.artifacts.path / "NEW_ret_1h_model.pkl").unlink()
    registered.settle()
    assert (registered.refusals(), registered.model.status) == ({}, "ok")


def test_a_refused_content_is_still_shown_after_an_unusable_file_beside_it_came_and_went(registered: Any) -> None:
    registered.artifacts.write("ETH_ret_1h_model.pkl", BAD_MODEL)
    registered.settle()
    fifo = registered.artifacts.path / "ETH_ret_1h_model.json"
    os.mkfifo(fifo)
    registered.settle()
    assert list(registered.refusals()) == ["ETH_ret_1h"]
    fifo.unlink()
    registered.settle()
    assert registered.refusals() == {"ETH_ret_1h": "wrong_type"}


def test_polls_that_find_nothing_new_write_nothing(registered: Any) -> None:
    artifacts = registered.artifacts
    artifacts.write("ETH_ret_1h_model.pkl", BAD_MODEL)
    os.mkfifo(artifacts.path / "SOL_ret_1h_model.json")
    os.symlink("/etc/hostname", artifacts.path / "SOL_ret_1h_extra_model.pkl")
    os.mkfifo(artifacts.path / "NEW_ret_1h_model.pkl")
    os.symlink("/etc/hostname", artifacts.path / "NEW_ret_1h_info.pkl")
    registered.settle()
    data_version = registered.store.database.data_version()
    for _ in range(10):
        registered.poll()
    assert registered.store.database.data_version() == data_version


def test_hashing_unchanged_files_again_writes_nothing(open_alpha: Callable[..., Any]) -> None:
    opened = open_alpha(rehash_interval_s=5.0)
    opened.artifacts.write_group("BTC_ret_1h", 0)
    opened.register()
    opened.settle()
    data_version = opened.store.database.data_version()
    for _ in range(10):
        opened.poll(5.0)
    assert opened.store.database.data_version() == data_version


def test_a_rewrite_that_no_timestamp_shows_is_found_by_hashing_again(open_alpha: Callable[..., Any]) -> None:
    opened = open_alpha(rehash_interval_s=5.0)
    opened.artifacts.write_group("BTC_ret_1h", 0)
    opened.register()
    opened.settle()
    path = opened.artifacts.path / "BTC_ret_1h_info.pkl"
    status = path.stat()
    identity_row = {"size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    path.write_bytes(pickle.dumps(opened.artifacts.info(7)))
    assert path.stat().st_size == identity_row["size_bytes"]
    # What a writer through a memory map leaves behind: other bytes under the identity that is known.
    with opened.store.database.write() as connection:
        from sqlalchemy import update

        from mmserver.storage.tables import WatchedFileRow

        now = path.stat()
        connection.execute(
            update(WatchedFileRow)
            .where(WatchedFileRow.path == path.name)
            .values(
                ino=now.st_ino, mtime_ns=now.st_mtime_ns, ctime_ns=now.st_ctime_ns, read_at_ns=now.st_ctime_ns + 10**10
            )
        )
    opened.store.watches.forget(opened.model.id)
    for _ in range(6):
        opened.poll(5.0)
    assert opened.seed("BTC") == 7


def test_an_ambiguous_refresh_is_refused_as_a_whole_and_clears_when_the_file_is_gone(registered: Any) -> None:
    registered.artifacts.write_group("ETH_ret_5m", 4)
    with pytest.raises(AmbiguousSymbols, match="ETH_ret_1h and ETH_ret_5m"):
        registered.refresh()
    assert (registered.model.status, registered.seed("ETH")) == ("stale", 1)
    assert "ETH_ret_5m" in (registered.model.error or "")
    registered.settle()
    assert registered.model.status == "stale"
    registered.artifacts.delete_group("ETH_ret_5m")
    registered.settle()
    assert (registered.model.status, registered.model.error) == ("ok", None)


@pytest.mark.parametrize("interval_s", [0.2, 0.4, 1.0, 5.0])
def test_a_group_that_was_renamed_is_never_missing_between(registered: Any, interval_s: float) -> None:
    for path in sorted(registered.artifacts.path.glob("ETH_ret_1h_*")):
        path.rename(path.with_name(path.name.replace("ret_1h", "ret_5m")))
    for _ in range(12):
        registered.poll(interval_s)
        assert registered.group("ETH").return_name in ("ret_1h", "ret_5m")
        assert registered.model.status == "ok"
    assert registered.group("ETH").return_name == "ret_5m"


def test_a_bad_file_is_not_parsed_at_every_poll_while_symbols_are_ambiguous(registered: Any) -> None:
    registered.artifacts.write("SOL_ret_1h_model.pkl", BAD_MODEL)
    registered.artifacts.write_group("ETH_ret_5m", 4)
    registered.settle()
    assert registered.model.status == "stale"
    assert registered.refusals() == {"SOL_ret_1h": "wrong_type"}


def test_a_vanished_root_freezes_and_thaws_when_it_is_back(registered: Any) -> None:
    path = registered.artifacts.path
    away = path.with_name("away")
    path.rename(away)
    registered.settle()
    assert (registered.model.status, len(registered.model.serving.groups)) == ("frozen", 4)
    assert "not there" in (registered.model.error or "")
    with pytest.raises(DirectoryInvalid, match="not there"):
        registered.refresh()
    away.rename(path)
    registered.settle()
    assert (registered.model.status, registered.model.error) == ("ok", None)


def test_a_person_can_say_that_it_is_meant(registered: Any) -> None:
    for symbol in ("BTC", "ETH", "SOL"):
        registered.artifacts.delete_group(f"{symbol}_ret_1h")
    with pytest.raises(DirectoryInvalid, match="most of its files vanished"):
        registered.refresh()
    result = registered.refresh(accept_vanished=True)
    assert result.removed == ("BTC_ret_1h", "ETH_ret_1h", "SOL_ret_1h")
    assert (list(registered.model.serving.groups), registered.model.status) == (["XRP_ret_1h"], "ok")


def test_a_root_that_is_not_allowed_any_more_is_said_and_served_on(
    registered: Any, restart: Callable[..., Any], tmp_path: Any
) -> None:
    again = restart(registered, artifact_roots=(tmp_path / "elsewhere",))
    again.settle()
    assert again.model.status == "stale"
    assert "outside the allowed roots" in (again.model.error or "")
    assert again.seed("ETH") == 1
    last = restart(again)
    last.settle()
    assert last.model.status == "ok"


def test_a_refresh_that_can_use_nothing_of_what_changed_says_why(registered: Any) -> None:
    registered.artifacts.write("ETH_ret_1h_model.pkl", BAD_MODEL)
    with pytest.raises(ArtifactInvalid, match="wrong_type"):
        registered.refresh()
    assert (registered.model.status, registered.seed("ETH")) == ("stale", 1)


def test_unknown_names_and_read_only_stores_are_refused(registered: Any) -> None:
    with pytest.raises(ModelNotFound):
        refresh_model(registered.store, "nobody", Actor("test"))
    registered.store.read_only = True
    with pytest.raises(ReadOnly):
        registered.refresh()


def test_asking_for_unknown_models_leaves_nothing_behind(registered: Any) -> None:
    n_locks = len(registered.store._model_locks)
    for number in range(50):
        with pytest.raises(ModelNotFound):
            refresh_model(registered.store, f"nobody-{number}", Actor("test"))
    assert len(registered.store._model_locks) == n_locks


def test_the_same_refused_content_keeps_its_date_and_counts(registered: Any) -> None:
    registered.artifacts.write("ETH_ret_1h_model.pkl", BAD_MODEL)
    registered.settle()
    first = registered.model.refusals[0]
    os.utime(registered.artifacts.path / "ETH_ret_1h_model.pkl")
    registered.settle()
    second = registered.model.refusals[0]
    assert (second.since, second.attempts) == (first.since, first.attempts + 1)
    registered.artifacts.write("ETH_ret_1h_model.pkl", BAD_MODEL + b"\0")
    registered.settle()
    third = registered.model.refusals[0]
    assert third.since > first.since
    assert (third.reason, third.attempts) == ("trailing_data", 1)


def test_hundreds_of_groups_are_stored_in_batches_and_are_one_version(
    alpha: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmserver.catalog.updating.BATCH_GROUPS", 3)
    for number in range(8):
        alpha.artifacts.write_group(f"S{number}_ret_1h", number % 6)
    alpha.register()
    assert len(alpha.model.serving.groups) == 8
    for number in range(8):
        alpha.artifacts.write_group(f"S{number}_ret_1h", (number + 1) % 6)
    alpha.artifacts.write_group("S0_ret_5m", 0)
    with pytest.raises(AmbiguousSymbols):
        alpha.refresh()
    assert [alpha.seed(f"S{number}") for number in range(8)] == [number % 6 for number in range(8)]
    alpha.artifacts.delete_group("S0_ret_5m")
    alpha.refresh()
    assert [alpha.seed(f"S{number}") for number in range(8)] == [(number + 1) % 6 for number in range(8)]
    with alpha.store.database.read() as connection:
        n_memberships = connection.execute(select(func.count()).select_from(MembershipRow)).scalar()
    assert n_memberships == 16


def test_files_that_never_come_to_rest_are_named_until_they_do(registered: Any) -> None:
    path = registered.artifacts.path / "ETH_ret_1h_info.pkl"
    for seed in range(2, 8):
        path.write_bytes(pickle.dumps(registered.artifacts.info(seed)))
        registered.poll(registered.store.settings.watch_max_wait_s / 4)
        path.write_bytes(pickle.dumps(registered.artifacts.info(seed + 10)))
        registered.poll(0.0)
    assert registered.refusals() == {"ETH_ret_1h": "never_settles"}
    assert (registered.model.status, registered.seed("ETH")) == ("stale", 1)
    registered.settle()
    assert (registered.refusals(), registered.seed("ETH")) == ({}, 17)


# --- waiting for one another ------------------------------------------------------------------------------------------


@pytest.fixture
def held(registered: Any) -> Iterator[Any]:
    """Another thread is changing the model until the test ends."""
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with registered.store.changing("alpha"):
            is_held.set()
            is_over.wait(600)

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_held.wait(60)
    registered.let_go = is_over.set
    yield registered
    is_over.set()
    holder.join()


def test_a_look_of_the_scheduler_does_not_wait_for_a_refresh_by_hand(held: Any) -> None:
    held.artifacts.write_group("ETH_ret_1h", 5)
    assert [held.poll() for _ in range(3)] == [None, None, None]
    assert held.seed("ETH") == 1


def test_whoever_changes_a_model_is_no_burden_on_those_who_read(held: Any) -> None:
    counts: list[int] = []
    seen = threading.Event()

    def note(n_waiting: int) -> None:
        counts.append(n_waiting)
        seen.set()

    held.store.waiting.on_count = note
    second = threading.Thread(target=held.refresh)
    second.start()
    assert seen.wait(60)
    assert counts[0] == 2  # the holder and the one that waits: the server has a thread more for each
    held.let_go()
    second.join()
    assert counts[-1] == 0


def test_a_change_is_refused_when_too_many_wait(held: Any) -> None:
    held.store.waiting._limit = 1
    with pytest.raises(Overloaded, match="alpha"):
        held.refresh()


def test_a_change_that_nobody_is_in_the_way_of_is_never_refused(registered: Any) -> None:
    registered.store.waiting._limit = 0
    assert not registered.refresh().changed
