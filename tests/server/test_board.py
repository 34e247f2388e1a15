"""What workers say of themselves is read whole or not at all, by all of them, whatever one of them does."""

import os
import time
from collections.abc import Iterator

import pytest

from mmserver.server.board import ALIVE_S, Board, Status
from mmserver.serving.siblings import MAX_CONTENT_BYTES, PLACE_BYTES


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create(3)
    yield made
    made.close()


def status(pid: int, *, beat_at: float | None = None, **more: int) -> Status:
    """Of a worker that is alive, however long this test takes."""
    return Status(pid=pid, started_at=0.0, beat_at=time.monotonic() + 60 if beat_at is None else beat_at, **more)


def test_each_worker_is_read_by_all_and_gone_when_cleared(board: Board) -> None:
    assert board.read() == []
    said = [status(pid, requests=pid) for pid in (1, 2)]
    board.write(0, said[0])
    board.write(2, said[1])
    other = Board(board.fd, 3)
    assert other.read() == said
    assert other.check()["status"] == "degraded"
    board.clear(0)
    assert other.read() == said[1:]


def test_a_worker_that_has_not_written_for_long_is_not_alive(board: Board) -> None:
    for slot in range(3):
        board.write(slot, status(slot, requests=10, errors=1))
    found = board.check()
    assert (found["status"], found["alive"], found["requests"], found["errors"]) == ("ok", 3, 30, 3)
    board.write(1, status(1, beat_at=time.monotonic() - ALIVE_S - 1))
    found = board.check()
    assert (found["status"], found["alive"], found["workers"]) == ("degraded", 2, 3)


def test_a_worker_that_dies_in_the_middle_of_writing_leaves_its_last_word(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = status(1)
    board.write(1, said)
    write = os.pwrite

    def die_at_the_head(fd: int, content: bytes, at: int) -> int:
        if at == PLACE_BYTES:
            raise KeyboardInterrupt
        return write(fd, content, at)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", die_at_the_head)
        with pytest.raises(KeyboardInterrupt):
            board.write(1, status(2, requests=10**12))
    assert board.read() == [said]


def test_a_damaged_status_is_not_read_and_its_worker_not_alive(board: Board) -> None:
    for slot in range(3):
        board.write(slot, status(slot))
    content_at = PLACE_BYTES + 4096 + MAX_CONTENT_BYTES
    assert os.pread(board.fd, 8, content_at) == b'{"pid":1'
    os.pwrite(board.fd, b'{"pid":9', content_at)
    assert [found.pid for found in board.read()] == [0, 2]
    assert (board.check()["status"], board.check()["alive"]) == ("degraded", 2)
    board.write(1, status(1))
    assert board.check()["alive"] == 3


def test_what_predictions_share_lies_beside_the_statuses(board: Board) -> None:
    """Neither overwrites the other, and each worker has a place of its own."""
    said = [status(pid) for pid in range(3)]
    for slot in range(3):
        board.write(slot, said[slot])
        siblings = board.siblings(slot)
        siblings.statistics[siblings.own].replace(bytes([slot]) * 100_000)
    board.siblings(1).unloaded.replace(b"unloaded")
    assert board.read() == said
    assert [place.read()[:1] for place in Board(board.fd, 3).siblings(0).statistics] == [b"\0", b"\1", b"\2"]
    assert board.siblings(2).unloaded.read() == b"unloaded"
