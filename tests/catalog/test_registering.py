"""Registering and removing: all of it or nothing, by a name that can be used anywhere, and never by two at once."""

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import list_versions
from mmserver.catalog.registering import register_model, remove_model
from mmserver.errors import (
    AmbiguousSymbols,
    DirectoryInvalid,
    ModelNameTaken,
    ModelNotFound,
    NameInvalid,
    NothingParseable,
    OutsideRoots,
    ReadOnly,
)
from mmserver.storage.tables import BlobRow, FactorListRow, GroupRow, MembershipRow, ModelRow, Row

TEST = Actor("test")


def n_rows(opened: Any, table: type[Row]) -> int:
    with opened.store.database.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def assert_nothing_is_left(opened: Any) -> None:
    assert not opened.catalog.models
    tables = (ModelRow, MembershipRow, GroupRow, FactorListRow, BlobRow)
    assert [n_rows(opened, table) for table in tables] == [0] * len(tables)


def test_a_directory_is_served_with_what_its_files_say(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    alpha.artifacts.write_group("deep/er/ETH_mid_chg_1m", 1)
    progress: list[tuple[int, int]] = []
    model = register_model(
        alpha.store, "alpha", str(alpha.artifacts.path), TEST, progress=lambda *at: progress.append(at)
    )
    assert progress == [(1, 2), (2, 2)]
    assert (model.status, model.error, model.refusals, model.root_path) == ("ok", None, (), str(alpha.artifacts.path))
    eth = alpha.group("eth")
    assert (eth.symbol, eth.return_name, eth.dim, eth.train_samples) == ("ETH", "mid_chg_1m", 3, 300)
    assert (eth.factors, eth.has_model, eth.integrity) == (("momentum", "volume", "spread"), True, "unverified")
    assert eth.ic_mean == pytest.approx(0.03)
    assert model.serving.factors == ("momentum", "volume", "spread")
    [record] = list_versions(alpha.store, "alpha", 10)
    assert (record.seq, record.reason, record.added) == (1, "registered", ("BTC_ret_1h", "ETH_mid_chg_1m"))
    assert (record.is_serving, record.label) == (True, model.serving.label)
    [entry] = alpha.audit()
    assert (entry.actor, entry.action, entry.target) == ("test", "model.registered", "alpha")
    assert entry.detail == {"root_path": str(alpha.artifacts.path), "version": record.label}


def test_bad_files_are_refused_with_their_reason_and_their_neighbours_served(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    alpha.artifacts.write_group("ETH_ret_1h", 1)
    alpha.artifacts.write("ETH_ret_1h_model.pkl", b"")
    os.mkfifo(alpha.artifacts.path / "SOL_ret_1h_model.pkl")
    model = alpha.register()
    assert list(model.serving.groups) == ["BTC_ret_1h"]
    assert (model.status, alpha.refusals()) == ("degraded", {"ETH_ret_1h": "empty", "SOL_ret_1h": "not_regular"})


def test_a_directory_with_nothing_usable_is_refused_naming_the_files(alpha: Any) -> None:
    alpha.artifacts.write("BTC_ret_1h_model.pkl", pickle.dumps([1]))
    alpha.artifacts.write("README.md", b"hello")
    with pytest.raises(NothingParseable, match=r"BTC_ret_1h_model\.pkl: wrong_type"):
        alpha.register()
    assert_nothing_is_left(alpha)
    assert not alpha.audit()


def test_an_empty_directory_is_refused_saying_what_would_be_artifacts(alpha: Any) -> None:
    with pytest.raises(NothingParseable, match=r"_factors\.txt"):
        alpha.register()
    assert_nothing_is_left(alpha)


def test_two_groups_of_one_symbol_are_refused_naming_both_and_the_name_is_free(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    alpha.artifacts.write_group("BTC_ret_5m", 1)
    with pytest.raises(AmbiguousSymbols, match="BTC maps to BTC_ret_1h and BTC_ret_5m"):
        alpha.register()
    assert_nothing_is_left(alpha)
    alpha.artifacts.delete_group("BTC_ret_5m")
    assert list(alpha.register().serving.groups) == ["BTC_ret_1h"]


def test_symbols_that_compare_equal_are_ambiguous_too(alpha: Any) -> None:
    alpha.artifacts.write_group("BTCUSDT_ret_1h", 0)
    alpha.artifacts.write_group("btc-usdt_ret_1h", 1)
    with pytest.raises(AmbiguousSymbols, match="BTCUSDT maps to BTCUSDT_ret_1h and btc-usdt_ret_1h"):
        alpha.register()


def test_a_name_is_taken_once(registered: Any) -> None:
    with pytest.raises(ModelNameTaken):
        registered.register()
    assert registered.seed("BTC") == 0
    assert registered.actions() == ["model.registered"]


def test_of_two_registrations_at_once_one_succeeds_and_both_are_answered(alpha: Any) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    outcomes: list[str] = []

    def register() -> None:
        try:
            alpha.register()
            outcomes.append("registered")
        except ModelNameTaken:
            outcomes.append("taken")

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["registered", "taken", "taken", "taken"]
    assert alpha.actions() == ["model.registered"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            ".hidden",
            "-x",
            "a/b",
            "a b",
            "a\nb",
            "a\n",
            "ä",
            "a\0",
            "a%2fb",
            "'; drop table models",
            "<b>",
        ),
        pytest.param("x" * 129, id="129 characters"),
        pytest.param("x" * 300, id="300 characters"),
    ],
)
def test_a_name_that_cannot_stand_in_a_url_is_refused_before_anything_is_read(alpha: Any, name: str) -> None:
    with pytest.raises(NameInvalid):
        register_model(alpha.store, name, str(alpha.artifacts.path / "nowhere"), TEST)
    assert_nothing_is_left(alpha)


@pytest.mark.parametrize("name", ["a", "_x", "A.b-c_1", "0", pytest.param("x" * 128, id="128 characters")])
def test_an_ordinary_name_is_taken(alpha: Any, name: str) -> None:
    alpha.artifacts.write_group("BTC_ret_1h", 0)
    assert register_model(alpha.store, name, str(alpha.artifacts.path), TEST).name == name


@pytest.mark.parametrize(
    "path", ["relative", "", "/no/such/directory", "/etc/hostname", "/x\0y", pytest.param("/" + "x" * 5000, id="long")]
)
def test_a_path_that_is_no_directory_is_refused(alpha: Any, path: str) -> None:
    with pytest.raises(DirectoryInvalid):
        register_model(alpha.store, "alpha", path, TEST)
    assert_nothing_is_left(alpha)


def test_only_directories_beneath_the_allowed_roots_are_taken(open_alpha: Callable[..., Any], tmp_path: Path) -> None:
    opened = open_alpha(artifact_roots=(tmp_path / "artifacts" / "alp",))
    opened.artifacts.write_group("BTC_ret_1h", 0)
    (tmp_path / "artifacts" / "alp").mkdir()
    link = tmp_path / "artifacts" / "alp" / "link"
    link.symlink_to(opened.artifacts.path)
    for path in (opened.artifacts.path, link, f"{tmp_path}/artifacts/alp/../alpha"):
        with pytest.raises(OutsideRoots):
            register_model(opened.store, "alpha", str(path), TEST)
    inside = tmp_path / "artifacts" / "alp" / "inside"
    opened.artifacts.path.rename(inside)
    assert register_model(opened.store, "alpha", str(inside), TEST).status == "ok"


def test_removing_leaves_nothing_but_the_audit_and_the_directory(registered: Any) -> None:
    files = sorted(registered.artifacts.path.iterdir())
    remove_model(registered.store, "alpha", TEST)
    assert_nothing_is_left(registered)
    assert registered.actions() == ["model.registered", "model.removed"]
    assert sorted(registered.artifacts.path.iterdir()) == files
    with pytest.raises(ModelNotFound):
        remove_model(registered.store, "alpha", TEST)
    assert registered.actions() == ["model.registered", "model.removed"]
    assert len(registered.register().serving.groups) == 4


def test_a_model_that_shares_its_content_with_another_survives_its_removal(registered: Any) -> None:
    register_model(registered.store, "beta", str(registered.artifacts.path), TEST)
    remove_model(registered.store, "beta", TEST)
    assert registered.seed("SOL") == 2
    assert registered.store.payloads.body(registered.model.serving, registered.group("SOL"), "json", "identity").content


def test_a_read_only_store_registers_and_removes_nothing(registered: Any) -> None:
    registered.store.read_only = True
    with pytest.raises(ReadOnly):
        register_model(registered.store, "beta", str(registered.artifacts.path), TEST)
    with pytest.raises(ReadOnly):
        remove_model(registered.store, "alpha", TEST)


def test_a_restart_serves_the_same_and_reads_nothing_again(registered: Any, restart: Callable[..., Any]) -> None:
    before = registered.model
    again = restart(registered)
    assert again.model == before
    data_version = again.store.database.data_version()
    again.settle()
    assert (again.model, again.store.database.data_version()) == (before, data_version)


def test_readers_see_the_whole_model_or_none_of_it(alpha: Any) -> None:
    for number in range(6):
        alpha.artifacts.write_group(f"S{number}_ret_1h", number)
    seen: set[int] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            model = alpha.catalog.models.get("alpha")
            seen.add(len(model.serving.groups) if model else 0)

    reader = threading.Thread(target=look)
    reader.start()
    alpha.register()
    while 6 not in seen:
        pass
    done.set()
    reader.join()
    assert seen <= {0, 6}
