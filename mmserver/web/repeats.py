"""What happens again and again is told once a minute, with how often it was left out: whoever asks too often fills no log."""

import threading
import time
from collections.abc import Callable

REPEAT_S = 60.0
MAX_KINDS = 256
"""How many are told apart within that time; others are known by a word that many share."""


class Repeats:
    """Says what is to be told and what is left out; safe for all threads."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}
        """When each was told, the first told first, and how many were left out since."""

    def note(self, kind: str, shared_kind: str) -> tuple[bool, list[tuple[str, int]]]:
        """Whether to tell of this one, and how many of each kind were left out in a time that is over now.

        `shared_kind` is what it counts as where too many kinds are told apart already.
        """
        with self._lock:
            now = self._now()
            left_out = self._end_all_before(now - REPEAT_S)
            if kind not in self._told and len(self._told) >= MAX_KINDS:
                kind = shared_kind
            if (before := self._told.get(kind)) is None:
                self._told[kind] = (now, 0)
                return True, left_out
            told_at, n_left_out = before
            self._told[kind] = (told_at, n_left_out + 1)
            return False, left_out

    def _end_all_before(self, time_s: float) -> list[tuple[str, int]]:
        found = []
        while self._told:
            kind, (told_at, n_left_out) = next(iter(self._told.items()))
            if told_at > time_s:
                break
            del self._told[kind]
            if n_left_out:
                found.append((kind, n_left_out))
        return found
