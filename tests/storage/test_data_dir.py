"""One server at a time uses a data directory, and says clearly when it cannot."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mmserver.errors import DataDirLocked, SettingInvalid
from mmserver.storage.data_dir import DataDir

HOLD = """
import sys
from pathlib import Path
from mmserver.storage.data_dir import DataDir
with DataDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_server_is_refused_at_once_also_after_files_were_deleted(
    data_dir: DataDir, start_script: Callable[..., subprocess.Popen[str]]
) -> None:
    other = start_script(HOLD, data_dir.path)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    for path in data_dir.path.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(DataDirLocked, match=str(data_dir.path)):
        data_dir.lock()
    assert other.poll() is None  # it was not waited for
    other.kill()
    other.wait()
    with data_dir.lock() as lock:
        assert lock.is_held()


def test_a_process_started_while_the_lock_is_held_does_not_keep_it(data_dir: DataDir) -> None:
    lock = data_dir.lock()
    pipe = subprocess.PIPE
    child = subprocess.Popen([sys.executable, "-c", "input(1)"], stdin=pipe, stdout=pipe, close_fds=False)
    assert child.stdout is not None
    assert child.stdout.read(1) == b"1"
    lock.release()
    assert not lock.is_held()
    with data_dir.lock() as again:
        assert again.is_held()
    child.communicate(b"\n")


def test_a_lock_on_a_directory_that_was_replaced_is_no_longer_held(data_dir: DataDir) -> None:
    with data_dir.lock() as lock:
        moved = data_dir.path.rename(data_dir.path.with_name("moved"))
        assert not lock.is_held()
        data_dir.create()
        assert not lock.is_held()
        moved.joinpath("snapshots").rmdir()


def test_a_new_directory_is_for_its_user_only(tmp_path: Path) -> None:
    made = DataDir(tmp_path / "a" / "b")
    made.create()
    made.create()
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in made.path.iterdir()] == ["snapshots"]


def test_a_file_in_the_place_of_the_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingInvalid, match=r"--data-dir: .*not a directory"):
            DataDir(path).create()
    with pytest.raises(SettingInvalid, match="--data-dir"):
        DataDir(tmp_path / "missing").lock()


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self/setgroups").exists(), reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    root = Path("/proc") if os.geteuid() == 0 else tmp_path
    tmp_path.chmod(0o500)
    with pytest.raises(SettingInvalid, match="--data-dir: /"):
        DataDir(root / "data").create()


def test_leftovers_are_removed_and_nothing_else(data_dir: DataDir) -> None:
    kept = [data_dir.database_path, data_dir.path / "state.db.broken-1", data_dir.snapshots_dir / "x.snapshot"]
    left = [
        data_dir.path / "state.db.0123.tmp",
        data_dir.path / "state.db.0123.tmp-wal",
        data_dir.path / "state.db.restore-1.tmp",
        data_dir.snapshots_dir / "x.tmp",
        data_dir.snapshots_dir / "x.tmp-journal",
    ]
    for path in (*kept, *left):
        path.write_bytes(b"")
    assert sorted(data_dir.remove_leftovers()) == sorted(left)
    assert all(path.exists() for path in kept)
    assert data_dir.remove_leftovers() == []
