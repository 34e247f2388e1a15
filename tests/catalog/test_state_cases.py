"""kill -9, full disks and several processes: an operation is fully there or fully absent, and its audit row with it.

Cases C1, C3, C7, C9 and C10 of the project's fault table as far as they are the catalog's; the database, snapshots and
migrations alone (C2, C4, C8, C11, C12): see tests/storage. C14 (stopping) is in test_jobs and in the server's tests.
"""

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text, update

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import apply_retention, list_versions, rollback_model
from mmserver.catalog.leftovers import drop_unfinished
from mmserver.catalog.opening import open_store
from mmserver.catalog.refreshing import refresh_model
from mmserver.catalog.registering import register_model, remove_model
from mmserver.catalog.store import Store
from mmserver.catalog.venues import set_quantiles
from mmserver.errors import DataDirLocked, DiskFull, ModelChanged, ModelNotFound, SchemaTooNew
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import Settings
from mmserver.storage.audit import list_audit
from mmserver.storage.data_dir import DataDir
from mmserver.storage.tables import MetaRow

TEST = Actor("test")
VENUE = "okex-margin"


# --- what is compared -------------------------------------------------------------------------------------------------


def state(store: Store) -> dict[str, Any]:
    """Everything that a client can see, and the audit; without times."""
    with store.database.read() as connection:
        audit = [(entry.action, entry.target) for entry in reversed(list_audit(connection, 10_000))]
        assert connection.execute(text("PRAGMA foreign_key_check")).all() == []
    models = {
        name: (
            model.status,
            model.serving.seq,
            [(version.seq, version.reason, version.is_serving) for version in list_versions(store, name, 99)],
            {key: group.sha256 for key, group in model.serving.groups.items()},
            [(refusal.group_key, refusal.reason) for refusal in model.refusals],
        )
        for name, model in store.catalog.models.items()
    }
    venues = {name: (venue.status, dict(venue.symbols)) for name, venue in store.catalog.venues.items()}
    return {"models": models, "venues": venues, "audit": audit}


class Recorded:
    """The worker's true answers, for processes that are killed too soon to start a worker of their own."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox: Sandbox | None = sandbox
        self._answers: dict[tuple[str, bytes], bytes] = {}

    def run(self, job: str, request: bytes) -> bytes:
        key = (job, request)
        if key not in self._answers:
            assert self._sandbox is not None
            self._answers[key] = self._sandbox.run(job, request)
        return self._answers[key]


class Prepared:
    """A data directory with model `alpha` in two versions and a venue, and files that have changed since."""

    def __init__(self, registered: Any, open_stores: Any, tmp_path: Path, sandbox: Sandbox) -> None:
        self.opened = registered
        self.open_stores = open_stores
        self.recorded = Recorded(sandbox)
        self.quantiles = tmp_path / "quantiles.pkl"
        self.write_quantiles(1.0)
        set_quantiles(registered.store, VENUE, str(self.quantiles), TEST)
        self.first_label = registered.model.serving.label
        registered.artifacts.write_group("ETH_ret_1h", 5)
        registered.refresh()
        registered.artifacts.write_group("ETH_ret_1h", 4)
        registered.artifacts.write_group("ADA_ret_1h", 3)
        registered.artifacts.delete_group("SOL_ret_1h")
        registered.artifacts.write("BTC_ret_1h_info.pkl", b"")
        self.write_quantiles(2.0)
        self.root = str(registered.artifacts.path)
        open_stores.close(registered.store)
        self.database = DataDir(open_stores.data_dir).database_path
        self.kept = tmp_path / "kept.db"
        shutil.copyfile(self.database, self.kept)

    def write_quantiles(self, medium: float) -> None:
        row = {"symbol": "BTC", "medium_notional_threshold": medium, "large_notional_threshold": 9.0}
        self.quantiles.write_bytes(pickle.dumps([row]))

    def reset(self) -> None:
        for path in self.database.parent.glob(f"{self.database.name}*"):
            path.unlink()
        shutil.copyfile(self.kept, self.database)

    def open(self, **settings: Any) -> Store:
        store: Store = self.open_stores(sandbox=self.recorded, **settings)
        return store

    def state_after(self, operation: Callable[["Prepared", Store], object] | None) -> dict[str, Any]:
        self.reset()
        store = self.open()
        if operation is not None:
            operation(self, store)
        found = state(store)
        self.open_stores.close(store)
        reopened = self.open()
        assert state(reopened) == found
        self.open_stores.close(reopened)
        return found


@pytest.fixture
def prepared(registered: Any, open_stores: Any, tmp_path: Path, sandbox: Sandbox) -> Prepared:
    return Prepared(registered, open_stores, tmp_path, sandbox)


def do_register(prepared: Prepared, store: Store) -> None:
    register_model(store, "beta", prepared.root, TEST)


def do_refresh(_: Prepared, store: Store) -> None:
    clock = [1000.0]
    store.watches.clock = lambda: clock[0]

    def wait(seconds: float) -> None:
        clock[0] += seconds

    refresh_model(store, "alpha", TEST, wait=wait)


def do_rollback(prepared: Prepared, store: Store) -> None:
    rollback_model(store, "alpha", prepared.first_label, TEST)


def do_remove(_: Prepared, store: Store) -> None:
    remove_model(store, "alpha", TEST)


def do_venue(prepared: Prepared, store: Store) -> None:
    set_quantiles(store, VENUE, str(prepared.quantiles), TEST)


OPERATIONS = {
    "register": do_register,
    "refresh": do_refresh,
    "rollback": do_rollback,
    "remove": do_remove,
    "venue": do_venue,
}


# --- C1 ---------------------------------------------------------------------------------------------------------------


def killed_at(prepared: Prepared, operation: Callable[[Prepared, Store], object], moment: int) -> bool:
    """Do the operation in a process that kills itself before its statement number `moment`; True if it came to its end."""
    child = os.fork()
    if child == 0:
        n_left = moment

        def count(*_: object) -> None:
            nonlocal n_left
            n_left -= 1
            if n_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            store = prepared.open()
            for name in ("before_cursor_execute", "commit"):
                event.listen(Engine, name, count)
            operation(prepared, store)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status == 0


@pytest.mark.parametrize("batch_groups", [100, 2], ids=["at once", "in batches"])
@pytest.mark.parametrize("name", ["register", "refresh"])
def test_C1_killed_at_any_statement_a_reading_operation_is_there_or_not(
    prepared: Prepared, name: str, batch_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmserver.catalog.updating.BATCH_GROUPS", batch_groups)
    check_every_moment(prepared, OPERATIONS[name])


@pytest.mark.parametrize("name", ["rollback", "remove", "venue"])
def test_C1_killed_at_any_statement_a_quick_operation_is_there_or_not(prepared: Prepared, name: str) -> None:
    check_every_moment(prepared, OPERATIONS[name])


def check_every_moment(prepared: Prepared, operation: Callable[[Prepared, Store], object]) -> None:
    before, after = prepared.state_after(None), prepared.state_after(operation)
    assert before != after
    seen = []
    for moment in [*moments(prepared, operation), 1_000_000]:
        prepared.reset()
        is_done = killed_at(prepared, operation, moment)
        assert is_done == (moment == 1_000_000)
        store = prepared.open()
        found = state(store)
        assert found in (before, after), moment
        seen.append(found == after)
        if not seen[-1]:
            operation(prepared, store)
            assert state(store) == after, moment
        prepared.open_stores.close(store)
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[-1]


def moments(prepared: Prepared, operation: Callable[[Prepared, Store], object]) -> list[int]:
    """The numbers of the statements before which to kill: around every commit, and some of all the others."""
    prepared.reset()
    store = prepared.open()
    n_seen = 0
    chosen: set[int] = set()

    def count(*_: object) -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen % 5 == 1:
            chosen.add(n_seen)

    def count_commit(*_: object) -> None:
        count()
        chosen.update((n_seen - 1, n_seen, n_seen + 1))

    listeners = {"before_cursor_execute": count, "commit": count_commit}
    for name, listener in listeners.items():
        event.listen(Engine, name, listener)
    try:
        operation(prepared, store)
    finally:
        for name, listener in listeners.items():
            event.remove(Engine, name, listener)
    prepared.open_stores.close(store)
    return sorted(at for at in chosen if 0 < at <= n_seen)


def test_C1_killed_at_any_time_every_acknowledged_version_is_there(prepared: Prepared) -> None:
    """Retrains and refreshes until it is killed, again and again; what it said is there, with at most one more."""
    rng = random.Random(1)
    prepared.reset()
    artifacts = prepared.opened.artifacts
    artifacts.write_group("BTC_ret_1h", 0)
    store = prepared.open()
    for seed in range(6):  # the worker's answers, before anybody is killed
        artifacts.write_group("ETH_ret_1h", seed)
        do_refresh(prepared, store)
    prepared.open_stores.close(store)
    n_acknowledged = 0
    for _ in range(8):
        known = n_versions(prepared)
        read_fd, write_fd = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                own = prepared.open(watch_debounce_s=0.0)
                for number in range(10_000):
                    artifacts.write_group("ETH_ret_1h", number % 6)
                    os.write(write_fd, b"." if refresh_model(own, "alpha", TEST).changed else b"")
            finally:
                os._exit(1)
        os.close(write_fd)
        n_until = rng.randrange(1, 4)
        while n_until and os.read(read_fd, 1):
            n_until -= 1
            n_acknowledged += 1
            known += 1
        threading.Event().wait(rng.random() * 0.03)  # anywhere within the next one
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        while os.read(read_fd, 1):
            n_acknowledged += 1
            known += 1
        os.close(read_fd)
        assert known <= n_versions(prepared) <= known + 1
    assert n_acknowledged > 8


def n_versions(prepared: Prepared) -> int:
    store = prepared.open()
    versions = list_versions(store, "alpha", 9999)
    with store.database.read() as connection:
        audit = [entry.action for entry in list_audit(connection, 10_000)]
        assert [row[0] for row in connection.execute(text("PRAGMA integrity_check"))] == ["ok"]
    assert audit.count("model.refreshed") == len(versions) - 1
    assert [version.seq for version in versions] == list(range(len(versions), 0, -1))
    assert store.model("alpha").serving.seq == versions[0].seq
    for group in store.model("alpha").serving.groups.values():
        assert store.payloads.body(store.model("alpha").serving, group, "payload", "gzip").content
    prepared.open_stores.close(store)
    return len(versions)


# --- C3 ---------------------------------------------------------------------------------------------------------------


def fill_disk(store: Store) -> None:
    """No page more can be had, and those that are there are full."""
    with store.database.write() as connection:
        n_pages = connection.execute(text("PRAGMA page_count")).scalar()
        connection.execute(text(f"PRAGMA max_page_count={n_pages}"))
    number = 0
    for size in (3000, 500, 50, 1):
        with pytest.raises(DiskFull):
            while True:
                with store.database.write() as connection:
                    connection.execute(insert(MetaRow).values(key=f"full {size} {number}", value="x" * size))
                number += 1


def empty_disk(store: Store) -> None:
    with store.database.write() as connection:
        connection.execute(text("PRAGMA max_page_count=1073741823"))
        connection.execute(text("DELETE FROM meta WHERE key LIKE 'full %'"))


@pytest.mark.parametrize("name", ["register", "refresh"])
def test_C3_on_a_full_disk_nothing_changes_reads_go_on_and_later_it_works(prepared: Prepared, name: str) -> None:
    operation = OPERATIONS[name]
    before, after = prepared.state_after(None), prepared.state_after(operation)
    prepared.reset()
    store = prepared.open()
    catalog = store.catalog
    fill_disk(store)
    for _ in range(2):
        with pytest.raises(DiskFull):
            operation(prepared, store)
        assert store.catalog == catalog
        assert state(store) == before
    version = store.model("alpha").serving
    assert store.payloads.body(version, version.groups["ETH_ret_1h"], "payload", "gzip").content
    empty_disk(store)
    operation(prepared, store)
    assert state(store) == after


@pytest.mark.parametrize("name", OPERATIONS)
def test_C3_on_a_disk_that_became_read_only_nothing_changes_and_later_it_works(prepared: Prepared, name: str) -> None:
    operation = OPERATIONS[name]
    before, after = prepared.state_after(None), prepared.state_after(operation)
    prepared.reset()
    store = prepared.open()
    catalog = store.catalog

    def set_read_only(value: str) -> None:
        writer = store.database._writer
        assert writer is not None
        pooled = writer.raw_connection()
        pooled.driver_connection.execute(f"PRAGMA query_only={value}")
        pooled.close()

    set_read_only("ON")
    with pytest.raises(DiskFull):
        operation(prepared, store)
    assert store.catalog == catalog
    assert state(store) == before
    set_read_only("OFF")
    operation(prepared, store)
    assert state(store) == after


@pytest.mark.parametrize("name", ["rollback", "venue"])
def test_C3_when_the_disk_becomes_full_the_change_before_is_there_and_that_one_not(
    prepared: Prepared, name: str
) -> None:
    prepared.reset()
    store = prepared.open()
    labels = [version.label for version in list_versions(store, "alpha", 9)]
    fill_disk(store)
    with pytest.raises(DiskFull):
        for number in range(2000):
            before, catalog = state(store), store.catalog
            if name == "rollback":
                rollback_model(store, "alpha", labels[number % 2], TEST)
            else:
                prepared.write_quantiles(1.0 + number % 2)
                set_quantiles(store, VENUE, str(prepared.quantiles), TEST)
    assert state(store) == before
    assert store.catalog == catalog
    empty_disk(store)
    OPERATIONS[name](prepared, store)
    assert state(store)["audit"][-1][0] in ("model.rolled_back", "venue.set")


def test_C3_a_poll_on_a_full_disk_is_made_up_for_later(prepared: Prepared) -> None:
    from mmserver.catalog.refreshing import poll_model

    prepared.reset()
    store = prepared.open()
    clock = [1000.0]
    store.watches.clock = lambda: clock[0]
    fill_disk(store)
    for _ in range(5):
        clock[0] += 100
        try:
            poll_model(store, "alpha")
        except DiskFull:
            continue
    assert store.model("alpha").serving.seq == 2
    empty_disk(store)
    for _ in range(5):
        clock[0] += 100
        poll_model(store, "alpha")
    assert list(store.model("alpha").serving.groups) == ["ADA_ret_1h", "BTC_ret_1h", "ETH_ret_1h", "XRP_ret_1h"]


# --- several at once --------------------------------------------------------------------------------------------------


def test_two_processes_that_refresh_one_model_at_once_lose_and_double_nothing(prepared: Prepared) -> None:
    prepared.reset()
    artifacts = prepared.opened.artifacts
    artifacts.write_group("BTC_ret_1h", 0)
    do_refresh(prepared, store := prepared.open())
    prepared.open_stores.close(store)
    stores = [prepared.open(watch_debounce_s=0.0) for _ in range(2)]
    n_before = len(list_versions(stores[0], "alpha", 99))
    published: list[str] = []
    n_conflicts = 0
    for number in range(8):
        artifacts.write_group("ETH_ret_1h", number % 6)
        gate = threading.Barrier(2)
        outcomes: list[object] = []

        def refresh(store: Store, gate: threading.Barrier = gate, outcomes: list[object] = outcomes) -> None:
            gate.wait()
            try:
                outcomes.append(refresh_model(store, "alpha", TEST))
            except ModelChanged as error:
                outcomes.append(error)

        threads = [threading.Thread(target=refresh, args=(store,)) for store in stores]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 2
        results = [outcome for outcome in outcomes if not isinstance(outcome, ModelChanged)]
        n_conflicts += 2 - len(results)
        published += [result.version for result in results if result.changed]  # type: ignore[attr-defined]
        assert refresh_model(stores[number % 2], "alpha", TEST).changed is False
    versions = list_versions(stores[0], "alpha", 99)
    assert len(versions) - n_before == len(published) == len(set(published)) == 8
    for store in stores:
        store.follow_commits()
    assert stores[0].model("alpha").serving.sha256 == stores[1].model("alpha").serving.sha256


def test_a_refresh_that_another_process_was_quicker_with_finds_it_served(prepared: Prepared) -> None:
    prepared.reset()
    prepared.opened.artifacts.write_group("BTC_ret_1h", 0)
    first, second = prepared.open(watch_debounce_s=0.01), prepared.open()
    quicker: list[str] = []

    def wait(seconds: float) -> None:
        if not quicker:
            quicker.append(refresh_model(second, "alpha", TEST).version)
        time.sleep(seconds)

    result = refresh_model(first, "alpha", TEST, wait=wait)
    assert ([result.version], result.changed) == (quicker, False)
    assert [version.label for version in list_versions(first, "alpha", 1)] == quicker


def test_a_refresh_takes_what_came_after_the_version_that_another_process_was_quicker_with(prepared: Prepared) -> None:
    prepared.reset()
    first, second = prepared.open(watch_debounce_s=0.01), prepared.open()
    quicker: list[str] = []

    def wait(seconds: float) -> None:
        if not quicker:
            quicker.append(refresh_model(second, "alpha", TEST).version)
            prepared.opened.artifacts.write_group("NEW_ret_1h", 2)
        time.sleep(seconds)

    result = refresh_model(first, "alpha", TEST, wait=wait)
    assert ([result.previous_version], result.added) == (quicker, ("NEW_ret_1h",))


def test_what_another_process_did_is_followed_and_not_fought(prepared: Prepared) -> None:
    prepared.reset()
    first, second = prepared.open(), prepared.open()
    do_refresh(prepared, first)
    label = first.model("alpha").serving.label
    assert second.model("alpha").serving.label != label
    assert second.follow_commits()
    assert not second.follow_commits()
    assert second.model("alpha").serving.label == label
    do_rollback(prepared, second)
    do_venue(prepared, second)
    assert first.follow_commits()
    assert first.model("alpha").serving.label == prepared.first_label
    assert first.catalog.venues[VENUE].symbols["BTC"] == (2.0, 9.0)
    do_remove(prepared, first)
    with pytest.raises(ModelNotFound):
        do_remove(prepared, second)
    with pytest.raises(ModelNotFound):
        do_rollback(prepared, second)
    do_register(prepared, second)
    assert first.follow_commits()
    assert list(first.catalog.models) == ["beta"]
    with first.database.read() as connection:
        actions = [entry.action for entry in reversed(list_audit(connection, 99))]
    assert actions.count("model.removed") == 1


def test_unchanged_models_are_shared_between_catalogs(prepared: Prepared) -> None:
    prepared.reset()
    first, second = prepared.open(), prepared.open()
    do_register(prepared, first)
    alpha = second.model("alpha").serving
    second.follow_commits()
    assert second.model("alpha").serving is alpha
    assert "beta" in second.catalog.models


def test_a_model_added_by_the_command_line_is_served_by_the_running_store(prepared: Prepared, tmp_path: Path) -> None:
    prepared.reset()
    store = prepared.open()
    command = "import sys; from mmserver.cli.main import main; sys.exit(main())"
    data_dir = str(prepared.database.parent)
    done = subprocess.run(
        [sys.executable, "-c", command, "models", "add", "beta", prepared.root, "--data-dir", data_dir, "--json"],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert store.follow_commits()
    assert sorted(store.model("beta").serving.groups) == ["ADA_ret_1h", "ETH_ret_1h", "XRP_ret_1h"]


def test_C7_a_second_owner_of_the_data_directory_is_refused(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with open_store(settings):
        with pytest.raises(DataDirLocked), open_store(settings):
            pass
        with open_store(settings, owns_data_dir=False):
            pass
    with open_store(settings):
        pass


def test_C10_a_database_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    with open_store(settings) as store, store.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    path = DataDir(settings.data_dir).database_path
    content = path.read_bytes()
    with pytest.raises(SchemaTooNew), open_store(settings):
        pass
    assert path.read_bytes() == content


def test_content_that_is_let_go_while_it_is_read_is_read_again(prepared: Prepared) -> None:
    """Between the look whether a group is stored and the commit, another process may remove the last model that has it."""
    prepared.reset()
    first, second = prepared.open(), prepared.open()
    to_remove = ["alpha"]
    turn = threading.Lock()

    class Removing(Recorded):
        def run(self, job: str, request: bytes) -> bytes:
            with turn:
                while to_remove:
                    remove_model(second, to_remove.pop(), TEST)
            return super().run(job, request)

    removing = Removing.__new__(Removing)
    removing.__dict__.update(prepared.recorded.__dict__)
    first.sandbox = removing  # type: ignore[assignment]
    try:
        register_model(first, "beta", prepared.root, TEST)
    except ModelChanged:
        register_model(first, "beta", prepared.root, TEST)
    assert sorted(first.model("beta").serving.groups) == ["ADA_ret_1h", "ETH_ret_1h", "XRP_ret_1h"]
    for group in first.model("beta").serving.groups.values():
        assert first.payloads.body(first.model("beta").serving, group, "payload", "gzip").content


@pytest.mark.parametrize("batch_groups", [100, 1], ids=["at once", "in batches"])
def test_a_registration_that_a_starting_server_clears_away_says_try_again(
    prepared: Prepared, batch_groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmserver.catalog.updating.BATCH_GROUPS", batch_groups)
    prepared.reset()
    first, second = prepared.open(), prepared.open()
    to_do = [drop_unfinished]
    turn = threading.Lock()
    own = prepared.opened.artifacts

    class Starting(Recorded):
        def run(self, job: str, request: bytes) -> bytes:
            with turn:
                while to_do:
                    to_do.pop()(second)
            return super().run(job, request)

    starting = Starting.__new__(Starting)
    starting.__dict__.update(prepared.recorded.__dict__)
    first.sandbox = starting  # type: ignore[assignment]
    own.write_group("NEW_ret_1h", 2)
    with pytest.raises(ModelChanged):
        register_model(first, "beta", prepared.root, TEST)
    assert list(first.catalog.models) == ["alpha"]
    assert "NEW_ret_1h" in register_model(first, "beta", prepared.root, TEST).serving.groups


def test_a_damaged_blob_is_said_and_the_others_are_served(registered: Any) -> None:
    from mmserver.errors import BlobCorrupt
    from mmserver.storage.tables import BlobRow

    eth, btc = registered.group("ETH"), registered.group("BTC")
    with registered.store.database.write() as connection:
        connection.execute(update(BlobRow).where(BlobRow.sha256 == eth.payload_sha256).values(content=b"damaged"))
    version = registered.model.serving
    for encoding in ("gzip", "identity", "br"):
        with pytest.raises(BlobCorrupt):
            registered.store.payloads.body(version, eth, "payload", encoding)
        assert registered.store.payloads.body(version, btc, "payload", encoding).content


def test_retention_that_is_refused_by_a_full_disk_lets_nothing_go(prepared: Prepared) -> None:
    prepared.reset()
    calendar = type(prepared.opened.calendar)(prepared.opened.calendar.moment + timedelta(days=1))
    store = prepared.open(calendar=calendar, keep_versions=1, keep_days=0)
    before = state(store)
    fill_disk(store)
    try:
        apply_retention(store)
    except DiskFull:
        store.reload()
        assert state(store) == before
    empty_disk(store)
    apply_retention(store)
    assert [version.seq for version in list_versions(store, "alpha", 9)] == [2]
