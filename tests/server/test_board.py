"""What workers say of themselves is read whole or not at all, by all of them, whatever one of them does."""

import os
import time
from collections.abc import Iterator

import pytest

from mmserver.server.board import ALIVE_S, SLOT_BYTES, Board, Status


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board.create(3)
    yield made
    made.close()


def status(pid: int, *, beat_at: float | None = None, **more: int) -> Status:
    return Status(pid=pid, started_at=0.0, beat_at=time.monotonic() if beat_at is None else beat_at, **more)


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


def test_a_torn_status_is_not_read(board: Board) -> None:
    board.write(1, status(12345))
    os.pwrite(board.fd, b"9", SLOT_BYTES + 16)
    assert board.read() == []


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
