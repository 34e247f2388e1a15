"""Directories that forms are made in: none stays, whatever became of the process that made it, and none goes too early."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from mmserver.conversion.job_directories import PREFIX, job_directory, remove_leftovers

HOLDS_ONE = """
import sys
from mmserver.conversion.job_directories import job_directory
with job_directory() as path:
    (path / "part").mkdir()
    (path / "part" / "model.onnx").write_bytes(b"half")
    print(path, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary directories are made."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def test_a_killed_process_s_directory_goes_when_the_next_looks_and_not_before(temporary: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS_ONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        assert process.stdout is not None
        path = Path(process.stdout.readline().strip())
        assert remove_leftovers() == []
        assert (path / "part" / "model.onnx").read_bytes() == b"half"
        process.kill()
        process.wait()
    assert path.exists()
    assert remove_leftovers() == [path]
    assert list(temporary.iterdir()) == []


def test_a_directory_goes_with_its_use(temporary: Path) -> None:
    with job_directory() as path:
        (path / "request").write_bytes(b"1")
        assert path.stat().st_mode & 0o777 == 0o700
    assert list(temporary.iterdir()) == []


def test_what_is_no_directory_of_this_user_is_left_alone(temporary: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (temporary / f"{PREFIX}link").symlink_to(kept)
    (temporary / f"{PREFIX}file").write_text("mine")
    (temporary / "mmserver-other").mkdir()
    there = {"link", "file"}
    if os.geteuid() == 0:
        (temporary / f"{PREFIX}somebody").mkdir()
        os.chown(temporary / f"{PREFIX}somebody", 65534, 65534)
        there.add("somebody")
    assert remove_leftovers() == []
    assert {path.name for path in temporary.iterdir()} == {f"{PREFIX}{name}" for name in there} | {"mmserver-other"}
    assert kept.exists()


def test_a_directory_that_is_just_being_made_is_not_taken_for_a_leftover(temporary: Path) -> None:
    is_over = threading.Event()

    def remove() -> None:
        while not is_over.is_set():
            remove_leftovers()

    removing = threading.Thread(target=remove)
    removing.start()
    try:
        for _ in range(300):
            with job_directory() as path:
                (path / "answer").write_bytes(b"1")
                assert (path / "answer").read_bytes() == b"1"
    finally:
        is_over.set()
        removing.join()
    assert list(temporary.iterdir()) == []
