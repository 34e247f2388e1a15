"""The journal: what was appended is in the files, whatever happens to the process, its threads and its disk."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mmserver.errors import DiskFull, Overloaded
from mmserver.experiments.observations.journal import Journal, journal_files, locked_if_ended
from mmserver.experiments.observations.records import read_records
from mmserver.experiments.observations.values import Observation


def _observation(number: int, **changes: object) -> Observation:
    return Observation(prediction_id=f"p{number}", at_us=number, features=b"f" * 100, **changes)  # type: ignore[arg-type]


def _ids(folder: Path) -> list[str]:
    return [
        found.prediction_id for path in journal_files(folder) for found in read_records(path.read_bytes()).observations
    ]


def test_appended_predictions_are_in_the_files_at_once_and_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for number in range(50):
        journal.append(_observation(number), must_keep=True)
        assert _ids(tmp_path / "j")[-1] == f"p{number}"
    assert _ids(tmp_path / "j") == [f"p{number}" for number in range(50)]
    journal.close()


def test_files_roll_and_lose_nothing_while_threads_append(tmp_path: Path) -> None:
    journal = Journal(tmp_path, file_bytes=4096)
    start = threading.Barrier(8)

    def append(first: int) -> None:
        start.wait()
        for number in range(first, first + 300):
            journal.append(_observation(number), must_keep=True)

    threads = [threading.Thread(target=append, args=(first,)) for first in range(0, 2400, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    assert len(journal_files(tmp_path)) > 10
    assert sorted(_ids(tmp_path)) == sorted(f"p{number}" for number in range(2400))


def test_beyond_the_bound_what_must_be_kept_is_refused_and_the_rest_was_dropped_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path, limit_bytes=10_000)
    n_others = 0
    while not journal.n_dropped:
        journal.append(_observation(n_others), must_keep=False)
        n_others += 1
    n_kept = 0
    with pytest.raises(Overloaded, match="observation log"):
        while True:
            journal.append(_observation(10_000 + n_kept), must_keep=True)
            n_kept += 1
    assert n_kept >= 20
    assert len(_ids(tmp_path)) == n_others - 1 + n_kept
    journal.set_unmoved(0)
    journal.append(_observation(0), must_keep=True)
    journal.append(_observation(0), must_keep=False)
    assert journal.n_dropped == 1
    journal.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_refuses_what_must_be_kept_and_drops_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    caplog.set_level("INFO")
    journal = Journal(tmp_path)
    journal.append(_observation(1), must_keep=True)

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskFull):
            journal.append(_observation(2), must_keep=True)
        journal.append(_observation(3), must_keep=False)
    assert journal.n_dropped == 1
    journal.append(_observation(4), must_keep=True)
    journal.append(_observation(5), must_keep=True)
    assert _ids(tmp_path) == ["p1", "p4", "p5"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    journal.close()


def test_a_write_that_the_disk_cut_short_is_refused_and_hides_nothing_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append(_observation(1), must_keep=True)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:40]))
        with pytest.raises(DiskFull):
            journal.append(_observation(2), must_keep=True)
    journal.append(_observation(3), must_keep=True)
    assert _ids(tmp_path) == ["p1", "p3"]
    journal.close()


def test_a_folder_that_cannot_be_made_stops_only_what_must_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    journal = Journal(tmp_path / "file" / "j")
    journal.append(_observation(1), must_keep=False)
    assert journal.n_dropped == 1
    with pytest.raises(Overloaded):
        journal.append(_observation(2), must_keep=True)


def test_a_file_has_ended_only_when_its_writer_has(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(_observation(1), must_keep=True)
    [path] = journal_files(tmp_path)
    with locked_if_ended(path) as has_ended:
        assert not has_ended
    journal.close()
    with locked_if_ended(path) as has_ended:
        assert has_ended
        with locked_if_ended(path) as has_ended_for_another:
            assert not has_ended_for_another
    path.unlink()
    with locked_if_ended(path) as has_ended:
        assert not has_ended


def test_two_journals_of_one_process_never_share_a_file(tmp_path: Path) -> None:
    journals = [Journal(tmp_path) for _ in range(3)]
    for number, journal in enumerate(journals):
        journal.append(_observation(number), must_keep=True)
    assert len(journal_files(tmp_path)) == 3
    for journal in journals:
        journal.close()


def test_many_predictions_are_written_in_a_few_writes_and_each_is_there(
    tmp_path: Path, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path, file_bytes=1 << 20)
    journal.append_all((observe(f"p{n}", features=b"x" * 4000) for n in range(1000)), must_keep=False)
    journal.close()
    found = [
        one.prediction_id for path in journal_files(tmp_path) for one in read_records(path.read_bytes()).observations
    ]
    assert found == [f"p{n}" for n in range(1000)]
    assert journal.n_dropped == 0
    assert len(journal_files(tmp_path)) > 1


def test_of_many_that_need_not_be_kept_each_that_does_not_fit_is_counted(
    tmp_path: Path, observe: Callable[..., Observation]
) -> None:
    journal = Journal(tmp_path, limit_bytes=1 << 20)
    journal.append_all((observe(f"p{n}", features=b"x" * 4000) for n in range(1000)), must_keep=False)
    journal.close()
    n_kept = sum(len(read_records(path.read_bytes()).observations) for path in journal_files(tmp_path))
    assert journal.n_dropped == 1000 - n_kept
    assert 0 < n_kept < 1000
