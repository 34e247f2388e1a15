"""What SIGTERM, SIGINT and SIGHUP do to the process that is sent them."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mmserver.server import signals
from mmserver.server.signals import SAME_WISH_S, Wishes

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def wishes() -> Iterator[Wishes]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield Wishes.of_signals()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_waiting_and_asks_for_the_end(wishes: Wishes, number: int) -> None:
    os.kill(os.getpid(), number)
    began = time.monotonic()
    wishes.wait(600)
    assert time.monotonic() - began < 300
    assert (wishes.is_stopping, wishes.is_hastened) == (True, False)


def test_the_same_wish_said_by_several_is_one_and_said_again_later_it_hastens(
    wishes: Wishes, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches a worker from the terminal and through its supervisor."""
    monkeypatch.setattr(signals, "time", clock)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert not wishes.is_hastened
    clock.pass_s(SAME_WISH_S + 0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert wishes.is_hastened


def test_sighup_asks_for_nothing(wishes: Wishes) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    wishes.wait(0.05)
    assert not wishes.is_stopping


def test_signals_that_come_while_the_main_thread_waits_or_wakes_never_hang_it(wishes: Wishes) -> None:
    """With `threading.Event` they do, now and then: the handler wants the lock that the interrupted method holds."""
    signal.signal(signal.SIGALRM, lambda _number, _frame: wishes.wake())
    signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
    try:
        for _ in range(2000):
            wishes.wait(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
