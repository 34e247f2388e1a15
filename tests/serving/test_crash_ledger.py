"""A model that takes the process down while it is loaded is not loaded for ever."""

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmserver.errors import PredictorUnloadable
from mmserver.serving.crash_ledger import DIRECTORY_NAME, CrashLedger

SHA = "a" * 64
LOADING = f"""
import os, sys
from pathlib import Path
from mmserver.serving.crash_ledger import CrashLedger
with CrashLedger(Path(sys.argv[1])).noted("{SHA}"):
    print("loading", flush=True)
    if sys.argv[2] == "crash":
        os.abort()
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / DIRECTORY_NAME


@pytest.fixture
def start(directory: Path) -> Any:
    """Starts another process that loads the content and crashes, or waits until its stdin is closed."""
    started: list[subprocess.Popen[bytes]] = []

    def it(how: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", LOADING, str(directory), how]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        return process

    yield it
    for process in started:
        process.kill()
        process.communicate()


def crash(start: Any) -> None:
    assert start("crash").wait() == -signal.SIGABRT


def test_a_load_that_ends_leaves_nothing(directory: Path) -> None:
    ledger = CrashLedger(directory)
    with ledger.noted(SHA):
        assert ledger.n_crashes(SHA) == 0
    with pytest.raises(RuntimeError), ledger.noted(SHA):
        raise RuntimeError("it does not load")
    assert ledger.n_crashes(SHA) == 0
    assert list(directory.iterdir()) == []


def test_each_crash_is_counted(directory: Path, start: Any) -> None:
    crash(start)
    assert CrashLedger(directory).n_crashes(SHA) == 1
    crash(start)
    assert CrashLedger(directory).n_crashes(SHA) == 2
    assert CrashLedger(directory).n_crashes("b" * 64) == 0


def test_a_load_that_is_still_going_on_is_no_crash(directory: Path, start: Any) -> None:
    process = start("wait")
    assert CrashLedger(directory).n_crashes(SHA) == 0
    process.kill()
    process.wait()
    assert CrashLedger(directory).n_crashes(SHA) == 1


def test_a_load_that_succeeds_clears_what_was_before(directory: Path, start: Any) -> None:
    crash(start)
    with CrashLedger(directory).noted(SHA):
        pass
    assert CrashLedger(directory).n_crashes(SHA) == 0


def test_forgetting_clears_crashes_and_not_what_is_being_loaded(directory: Path, start: Any) -> None:
    crash(start)
    process = start("wait")
    CrashLedger(directory).forget(SHA)
    assert CrashLedger(directory).n_crashes(SHA) == 0
    process.kill()
    process.wait()
    assert CrashLedger(directory).n_crashes(SHA) == 1


def test_without_a_directory_nothing_is_noted(tmp_path: Path) -> None:
    ledger = CrashLedger(None)
    with ledger.noted(SHA):
        assert ledger.n_crashes(SHA) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_note_does_not_stop_the_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / DIRECTORY_NAME).write_bytes(b"a file")
    loaded = False
    with CrashLedger(tmp_path / DIRECTORY_NAME).noted(SHA):
        loaded = True
    assert loaded
    assert "is not kept" in caplog.text


# --- on a disk that fails ---------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes system calls on this test's files fail by name, as a disk does that turned read-only, and mends them again."""

    def failing(*names: str) -> None:
        for name in names:

            def call(*args: Any, name: str = name, **more: Any) -> None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)

            monkeypatch.setattr(os, name, call)

    return SimpleNamespace(failing=failing, mend=monkeypatch.undo)


def n_complaints(caplog: pytest.LogCaptureFixture) -> int:
    return sum("is not kept" in record.message for record in caplog.records)


def test_a_disk_that_turns_read_only_during_a_load_does_not_spoil_it(
    directory: Path, disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = CrashLedger(directory)
    with ledger.noted(SHA):
        disk.failing("unlink", "open")
    for _ in range(3):
        with ledger.noted(SHA):
            pass
    assert n_complaints(caplog) == 1
    disk.mend()
    with ledger.noted(SHA):
        pass
    assert list(directory.iterdir()) == []
    disk.failing("unlink", "open")
    with ledger.noted(SHA):
        pass
    assert n_complaints(caplog) == 2


def test_a_survived_load_whose_note_stays_is_no_crash_for_any_process(directory: Path, disk: Any) -> None:
    ledger = CrashLedger(directory)
    with ledger.noted(SHA), ledger.noted(SHA):
        disk.failing("unlink")
    disk.mend()
    assert len(list(directory.iterdir())) == 2
    assert ledger.n_crashes(SHA) == CrashLedger(directory).n_crashes(SHA) == 0
    with ledger.noted("b" * 64):
        pass
    assert list(directory.iterdir()) == []


def test_the_error_of_a_load_is_not_replaced_by_the_disk_s(directory: Path, disk: Any) -> None:
    with pytest.raises(RuntimeError, match="it does not load"), CrashLedger(directory).noted(SHA):
        disk.failing("unlink")
        raise RuntimeError("it does not load")


def test_crashes_that_cannot_be_removed_are_forgotten_all_the_same(directory: Path, start: Any, disk: Any) -> None:
    crash(start)
    crash(start)
    ledger = CrashLedger(directory)
    disk.failing("unlink")
    ledger.forget(SHA)
    assert ledger.n_crashes(SHA) == 0
    disk.mend()
    crash(start)
    assert ledger.n_crashes(SHA) == 1
    ledger.forget(SHA)
    assert list(directory.iterdir()) == []


def test_a_directory_that_cannot_be_read_does_not_stop_the_load(directory: Path, start: Any, disk: Any) -> None:
    crash(start)
    disk.failing("scandir")
    ledger = CrashLedger(directory)
    assert ledger.n_crashes(SHA) == 0
    with ledger.noted(SHA):
        pass
    disk.mend()
    assert ledger.n_crashes(SHA) == 1


@pytest.mark.parametrize("gone", ["note", "directory", "replaced"])
def test_a_note_that_is_gone_before_its_load_ends_is_no_trouble(directory: Path, gone: str) -> None:
    with CrashLedger(directory).noted(SHA):
        for path in directory.iterdir():
            path.unlink()
        if gone != "note":
            directory.rmdir()
        if gone == "replaced":
            directory.write_bytes(b"a file")


def test_a_note_that_fails_halfway_leaves_nothing(directory: Path, disk: Any) -> None:
    ledger = CrashLedger(directory)
    n_open = len(os.listdir("/proc/self/fd"))
    disk.failing("rename")
    for _ in range(3):
        with ledger.noted(SHA):
            pass
    assert len(os.listdir("/proc/self/fd")) == n_open
    assert list(directory.iterdir()) == []


def test_threads_that_load_the_same_do_not_accuse_each_other(directory: Path) -> None:
    ledger = CrashLedger(directory)
    found: list[int] = []

    def load() -> None:
        for _ in range(200):
            with ledger.noted(SHA):
                found.append(ledger.n_crashes(SHA))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {0}
    assert list(directory.iterdir()) == []


# --- in the service ---------------------------------------------------------------------------------------------------


@pytest.fixture
def crashed(open_desk: Callable[..., Any], tmp_path: Path) -> Any:
    """A function: how many crashes of BTC's model are on the disk → a desk that starts with them."""

    def after(n_crashes: int, **settings: Any) -> Any:
        desk = open_desk(**settings)
        desk.write_weights("alpha", "BTC_ret_1h")
        desk.register()
        sha256 = desk.group().model_sha256
        directory = tmp_path / "data" / DIRECTORY_NAME
        directory.mkdir()
        for number in range(n_crashes):
            (directory / f"{sha256}.{number}").touch()
        return desk

    return after


def test_after_one_crash_the_model_is_tried_again(crashed: Any) -> None:
    assert crashed(1).predict([1.0, 2.0, 3.0]).decision.expected_return == 1.0


def test_after_two_crashes_the_model_is_not_loaded_any_more(crashed: Any) -> None:
    desk = crashed(2)
    loads: list[Any] = []
    desk.switches["loading"] = loads.append
    with pytest.raises(PredictorUnloadable, match="died 2 times while it was loaded; reload it"):
        desk.predict([1.0, 2.0, 3.0])
    assert loads == []


PREDICTING = """
import os, sys
from pathlib import Path
from mmserver.catalog.opening import open_store
from mmserver.serving.predictions import Asked, Serving
from mmserver.settings import Settings
with open_store(Settings(data_dir=Path(sys.argv[1]), plugins_dir=Path(sys.argv[2]))) as store:
    store.plugins._manager.get_plugin("weights").switches["loading"] = lambda document: os.abort()
    Serving(store).predict(Asked("BTC", [1.0, 2.0, 3.0], "alpha"))
"""


def test_a_server_that_dies_over_a_model_twice_survives_the_third_time(
    desk: Any, tmp_path: Path, test_plugins_dir: Path
) -> None:
    desk.write_weights("alpha", "BTC_ret_1h")
    desk.register()
    command = [sys.executable, "-c", PREDICTING, str(tmp_path / "data"), str(test_plugins_dir)]
    ended = [subprocess.run(command, capture_output=True, check=False, timeout=300) for _ in range(3)]
    assert [process.returncode for process in ended] == [-signal.SIGABRT, -signal.SIGABRT, 1]
    assert b"PredictorUnloadable: BTC_ret_1h cannot be loaded: mmserver died 2 times" in ended[2].stderr


def test_a_reload_tries_it_again(crashed: Any, tmp_path: Path) -> None:
    desk = crashed(2)
    with pytest.raises(PredictorUnloadable):
        desk.predict([1.0, 2.0, 3.0])
    assert desk.serving.predictors.reload([desk.group()]).failed == {}
    assert desk.predict([1.0, 2.0, 3.0]).decision.expected_return == 1.0
    assert list((tmp_path / "data" / DIRECTORY_NAME).iterdir()) == []


def test_a_prediction_whose_load_was_fine_is_given_though_the_disk_turned_read_only(crashed: Any, disk: Any) -> None:
    desk = crashed(1)
    desk.switches["loading"] = lambda document: disk.failing("unlink")
    assert desk.predict([1.0, 2.0, 3.0]).decision.expected_return == 1.0


def test_a_reload_tries_it_again_where_nothing_can_be_removed(crashed: Any, disk: Any) -> None:
    desk = crashed(2)
    disk.failing("unlink")
    assert desk.serving.predictors.reload([desk.group()]).failed == {}
    assert desk.predict([1.0, 2.0, 3.0]).decision.expected_return == 1.0


def test_a_model_that_our_own_evaluator_runs_is_not_noted(desk: Any, tmp_path: Path) -> None:
    desk.write_trees("alpha", "BTC_ret_1h")
    desk.register()
    desk.predict([1.0, 2.0, 3.0])
    assert desk.serving.predictors.get(desk.group()).engine.name == "exact"
    assert not (tmp_path / "data" / DIRECTORY_NAME).exists()


def test_a_read_only_server_notes_nothing(open_desk: Callable[..., Any], desk: Any, tmp_path: Path) -> None:
    desk.write_weights("alpha", "BTC_ret_1h")
    desk.register()
    reader = open_desk(read_only=True)
    noted: list[bool] = []
    reader.switches["loading"] = lambda document: noted.append((tmp_path / "data" / DIRECTORY_NAME).exists())
    reader.predict([1.0, 2.0, 3.0])
    assert noted == [False]
