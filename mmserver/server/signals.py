"""What signals ask of a process: SIGTERM and SIGINT end it, and again hasten that; SIGHUP is left alone.

`threading.Event` would not do: a signal that comes while the main thread is inside one of its methods would wait for its lock,
which that thread holds. A `SimpleQueue` may be put to from anywhere.
"""

import signal
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType

SAME_WISH_S = 1.5
"""Ctrl-C reaches a supervisor and its workers, and so does a service manager's SIGTERM; the supervisor then says it again."""


class Wishes:
    """What was asked of this process so far, and a way to wait for more."""

    is_stopping = False
    is_hastened = False
    """It was asked again: whatever is not answered yet need not be."""

    def __init__(self) -> None:
        self._first_at = 0.0
        self._news: SimpleQueue[None] = SimpleQueue()

    @classmethod
    def of_signals(cls) -> "Wishes":
        """Those that this process is sent from now on; for the main thread."""
        wishes = cls()
        signal.signal(signal.SIGTERM, wishes._on_stop)
        signal.signal(signal.SIGINT, wishes._on_stop)
        # Nothing is there to be read again: files are watched, settings are fixed.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return wishes

    def stop(self) -> None:
        """Ask it from within."""
        self.is_stopping = True
        self.wake()

    def wake(self) -> None:
        """End somebody's `wait`."""
        self._news.put(None)

    def wait(self, timeout_s: float | None = None) -> None:
        """Return at the next news, or when the time has passed."""
        with suppress(Empty):
            self._news.get(timeout=timeout_s)

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._first_at:
            self._first_at = now
        elif now - self._first_at > SAME_WISH_S:
            self.is_hastened = True
        self.stop()
