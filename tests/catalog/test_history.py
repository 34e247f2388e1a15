"""Versions through time: which one a name or a moment means, going back, and letting old ones go but never one in use."""

import pickle
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from mmserver.catalog.catalog import Actor, Version
from mmserver.catalog.groups import group_detail
from mmserver.catalog.history import apply_retention, list_versions, resolve_version, rollback_model
from mmserver.errors import ModelNotFound, ReadOnly, VersionNotFound
from mmserver.storage.tables import BlobRow, GroupRow, MembershipRow

TEST = Actor("test")


@pytest.fixture
def history(registered: Any) -> Any:
    """ETH was trained anew twice: versions with its seeds 1, 5 and 4; `labels` has the three labels."""
    labels = [registered.model.serving.label]
    for seed in (5, 4):
        registered.artifacts.write_group("ETH_ret_1h", seed)
        registered.settle()
        labels.append(registered.model.serving.label)
    registered.labels = labels
    return registered


def eth_seed(opened: Any, version: Version) -> Any:
    return group_detail(opened.store, version.groups["ETH_ret_1h"]).record.info["seed"]


def test_every_version_is_whole_although_its_files_were_overwritten(history: Any) -> None:
    versions = [resolve_version(history.store, "alpha", label) for label in history.labels]
    assert [eth_seed(history, version) for version in versions] == [1, 5, 4]
    assert [list(version.groups) for version in versions] == [list(history.model.serving.groups)] * 3
    bodies = {
        history.store.payloads.body(version, version.groups["ETH_ret_1h"], "json", "identity").content
        for version in versions
    }
    assert len(bodies) == 3


def test_the_history_is_listed_newest_first_in_pages(history: Any) -> None:
    records = list_versions(history.store, "alpha", 10)
    assert [record.label for record in records] == history.labels[::-1]
    assert [record.updated for record in records] == [("ETH_ret_1h",), ("ETH_ret_1h",), ()]
    assert [record.is_serving for record in records] == [True, False, False]
    page = list_versions(history.store, "alpha", 1, before_seq=records[0].seq)
    assert page == records[1:2]


def test_references(history: Any) -> None:
    serving = history.model.serving
    assert resolve_version(history.store, "alpha") is serving
    assert resolve_version(history.store, "alpha", "latest") is serving
    assert resolve_version(history.store, "alpha", history.labels[0]).label == history.labels[0]
    assert resolve_version(history.store, "alpha", "production") is serving
    for wrong in ("", "20000101_000000", "%", history.labels[0][:-1] + "_"):
        with pytest.raises(VersionNotFound):
            resolve_version(history.store, "alpha", wrong)
    with pytest.raises(ModelNotFound):
        resolve_version(history.store, "beta")


def test_as_of_gives_what_was_served_at_that_moment(history: Any) -> None:
    first, second, third = list_versions(history.store, "alpha", 10)[::-1]
    before_all = first.created_at - timedelta(microseconds=1)
    expected = [(first.created_at, 1), (second.created_at - timedelta(microseconds=1), 1), (second.created_at, 5)]
    for moment, seed in [*expected, (third.created_at, 4), (third.created_at + timedelta(days=9999), 4)]:
        assert eth_seed(history, resolve_version(history.store, "alpha", as_of=moment)) == seed
    with pytest.raises(VersionNotFound):
        resolve_version(history.store, "alpha", as_of=before_all)
    with pytest.raises(VersionNotFound):
        resolve_version(history.store, "alpha", second.label, as_of=first.created_at)
    assert eth_seed(history, resolve_version(history.store, "alpha", second.label, as_of=third.created_at)) == 5


def test_as_of_knows_of_rollbacks(history: Any) -> None:
    rollback_model(history.store, "alpha", history.labels[0], TEST)
    rolled_back_at = datetime.fromisoformat(history.audit()[-1].at)
    rollback_model(history.store, "alpha", history.labels[1], TEST)
    moments = [rolled_back_at - timedelta(microseconds=1), rolled_back_at, rolled_back_at + timedelta(days=1)]
    seeds = [eth_seed(history, resolve_version(history.store, "alpha", as_of=moment)) for moment in moments]
    assert seeds == [4, 1, 5]


def test_a_rollback_is_served_at_once_and_until_the_files_change(history: Any) -> None:
    model = rollback_model(history.store, "alpha", history.labels[0], TEST)
    assert (model.serving.label, model.newest_label) == (history.labels[0], history.labels[2])
    assert history.seed("ETH") == 1
    history.settle()
    assert history.seed("ETH") == 1
    history.artifacts.write_group("SOL_ret_1h", 5)
    history.settle()
    assert (history.seed("SOL"), history.seed("ETH")) == (5, 4)
    assert history.model.serving.label == history.model.newest_label
    assert history.actions()[-2:] == ["model.rolled_back", "model.refreshed"]
    assert history.audit()[-2].detail == {"from": history.labels[2], "to": history.labels[0]}


def test_a_rollback_survives_a_restart(history: Any, restart: Callable[..., Any]) -> None:
    rollback_model(history.store, "alpha", history.labels[1], TEST)
    again = restart(history)
    assert again.seed("ETH") == 5
    again.settle()
    assert again.seed("ETH") == 5


def test_going_back_to_what_is_served_changes_nothing(history: Any) -> None:
    n_entries = len(history.audit())
    for reference in ("latest", history.labels[2]):
        assert rollback_model(history.store, "alpha", reference, TEST).serving.label == history.labels[2]
    assert len(history.audit()) == n_entries


def test_a_rollback_to_nowhere_changes_nothing(history: Any) -> None:
    with pytest.raises(VersionNotFound):
        rollback_model(history.store, "alpha", "20000101_000000", TEST)
    history.store.read_only = True
    with pytest.raises(ReadOnly):
        rollback_model(history.store, "alpha", history.labels[0], TEST)
    assert history.seed("ETH") == 4


def test_versions_of_one_second_have_labels_of_their_own(registered: Any) -> None:
    moment = registered.calendar()
    registered.store.now = lambda: moment
    for seed in (5, 4, 3):
        registered.artifacts.write_group("ETH_ret_1h", seed)
        registered.settle()
    second, third, fourth = [record.label for record in list_versions(registered.store, "alpha", 3)][::-1]
    assert (third, fourth) == (f"{second}_2", f"{second}_3")
    assert eth_seed(registered, resolve_version(registered.store, "alpha", third)) == 4


def test_a_group_that_was_away_and_is_back_belongs_to_the_right_versions(registered: Any) -> None:
    registered.artifacts.delete_group("ETH_ret_1h")
    registered.settle()
    registered.artifacts.write_group("ETH_ret_1h", 1)
    registered.settle()
    listed = [resolve_version(registered.store, "alpha", r.label) for r in list_versions(registered.store, "alpha", 9)]
    assert [("ETH_ret_1h" in version.groups) for version in listed] == [True, False, True]
    assert listed[0].sha256 == listed[2].sha256 != listed[1].sha256


def test_old_versions_are_read_by_many_at_once(registered: Any) -> None:
    """More of them than are held in memory."""
    for number in range(20):
        registered.artifacts.write("ETH_ret_1h_info.pkl", pickle.dumps(registered.artifacts.info(number)))
        registered.refresh()
    labels = [record.label for record in list_versions(registered.store, "alpha", 99)]
    failures: list[BaseException] = []

    def read(offset: int) -> None:
        try:
            for label in labels[offset:] + labels[:offset]:
                assert resolve_version(registered.store, "alpha", label).label == label
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(offset,)) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(registered.store._old_versions) <= 16


# --- retention --------------------------------------------------------------------------------------------------------


def n_rows(opened: Any, table: Any) -> int:
    with opened.store.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_the_newest_n_are_kept_however_old(history: Any, restart: Callable[..., Any]) -> None:
    labels = history.labels
    opened = restart(history, keep_versions=2, keep_days=0)
    n_blobs = n_rows(opened, BlobRow)
    assert apply_retention(opened.store) == 1
    assert [record.label for record in list_versions(opened.store, "alpha", 9)] == labels[:0:-1]
    with pytest.raises(VersionNotFound):
        resolve_version(opened.store, "alpha", labels[0])
    assert n_rows(opened, BlobRow) < n_blobs
    assert [eth_seed(opened, resolve_version(opened.store, "alpha", label)) for label in labels[1:]] == [5, 4]
    dropped = opened.audit()[-1]
    assert (dropped.action, dropped.target, dropped.detail) == ("versions.dropped", "alpha", {"versions": 1})
    assert apply_retention(opened.store) == 0
    assert opened.actions().count("versions.dropped") == 1


def test_the_young_are_kept_however_many(history: Any, restart: Callable[..., Any]) -> None:
    opened = restart(history, keep_versions=1, keep_days=1)
    assert apply_retention(opened.store) == 0
    opened.calendar.moment += timedelta(days=2)
    assert apply_retention(opened.store) == 2


def test_the_version_that_is_served_is_kept_and_so_is_the_newest(history: Any, restart: Callable[..., Any]) -> None:
    labels = history.labels
    rollback_model(history.store, "alpha", labels[0], TEST)
    opened = restart(history, keep_versions=1, keep_days=0)
    assert apply_retention(opened.store) == 1
    assert [record.label for record in list_versions(opened.store, "alpha", 9)] == [labels[2], labels[0]]
    assert opened.seed("ETH") == 1
    assert eth_seed(opened, resolve_version(opened.store, "alpha", labels[2])) == 4
    again = restart(opened, keep_versions=1, keep_days=0)
    assert again.seed("ETH") == 1
    assert {group.symbol for group in again.model.serving.groups.values()} == {"BTC", "ETH", "SOL", "XRP"}
    again.artifacts.write_group("ETH_ret_1h", 3)
    again.settle()
    assert (again.seed("ETH"), len(again.model.serving.groups)) == (3, 4)


def test_as_of_a_version_that_was_let_go_says_so(history: Any, restart: Callable[..., Any]) -> None:
    labels = history.labels
    second = list_versions(history.store, "alpha", 9)[1]
    opened = restart(history, keep_versions=1, keep_days=0)
    apply_retention(opened.store)
    with pytest.raises(VersionNotFound, match=rf"'{labels[1]}' any more \(retention let it go\)"):
        resolve_version(opened.store, "alpha", as_of=second.created_at)
    assert eth_seed(opened, resolve_version(opened.store, "alpha", as_of=second.created_at + timedelta(days=9))) == 4


def test_a_version_that_is_let_go_while_it_is_asked_for_is_not_found(history: Any, restart: Callable[..., Any]) -> None:
    opened = restart(history, keep_versions=1, keep_days=0)
    version_id = resolve_version(opened.store, "alpha", history.labels[0]).id
    opened.store._old_versions.clear()
    apply_retention(opened.store)
    with pytest.raises(VersionNotFound):
        opened.store.version(opened.model, version_id)


def test_groups_that_only_let_go_versions_had_are_let_go(history: Any, restart: Callable[..., Any]) -> None:
    history.artifacts.delete_group("XRP_ret_1h")
    history.settle()
    opened = restart(history, keep_versions=1, keep_days=0)
    apply_retention(opened.store)
    assert (n_rows(opened, GroupRow), n_rows(opened, MembershipRow)) == (3, 3)


def test_a_process_that_slept_through_a_retention_serves_no_group_that_went(
    history: Any, open_stores: Callable[..., Any]
) -> None:
    other = open_stores()
    assert "XRP_ret_1h" in other.model("alpha").serving.groups
    history.artifacts.delete_group("XRP_ret_1h")
    history.settle()
    remembered = other.catalog
    assert apply_retention(open_stores(calendar=history.calendar, keep_versions=1, keep_days=0)) == 3
    assert other.catalog is remembered
    assert other.follow_commits()
    assert list(other.model("alpha").serving.groups) == list(history.model.serving.groups)
    assert "xrp" not in other.model("alpha").serving.group_keys_by_symbol
