"""Which loaded groups to hash again although they look unchanged: stat does not see every write."""

from collections import OrderedDict
from collections.abc import Iterable

from mmserver.watching.identities import LoadedGroup

_MARGIN = 0.9
"""A round is planned to end a little before it is due, because turns come in whole groups and whole polls."""
_MAX_BURST = 0.25
"""After a long pause no more than this share of all groups is due at once."""


class RehashTurns:
    """Takes turns through all loaded groups so that each is hashed again within rehash_s, a few in each poll.

    This finds what a writer through a memory map changed without a new timestamp, and bit rot.
    """

    def __init__(self, rehash_s: float, group_keys: Iterable[str]) -> None:
        self._rehash_s = rehash_s
        self._turns = OrderedDict.fromkeys(group_keys)
        self._credit = 0.0
        self._last_at: float | None = None

    def add(self, group_key: str) -> None:
        """The group was just hashed: it is last in line."""
        self._turns[group_key] = None
        self._turns.move_to_end(group_key)

    def remove(self, group_key: str) -> None:
        """The group is loaded no more."""
        self._turns.pop(group_key, None)

    def due(self, now: float) -> list[str]:
        """The groups whose turn has come since the last call."""
        elapsed_s = 0.0 if self._last_at is None else now - self._last_at
        self._last_at = now
        n_groups = len(self._turns)
        earned = n_groups * elapsed_s / (self._rehash_s * _MARGIN)
        self._credit = min(self._credit + earned, max(1.0, n_groups * _MAX_BURST))
        n_due = min(int(self._credit), n_groups)
        self._credit -= n_due
        due = []
        for _ in range(n_due):
            group_key, _nothing = self._turns.popitem(last=False)
            self._turns[group_key] = None
            due.append(group_key)
        return due


def is_racy(loaded: LoadedGroup, granularity_s: float) -> bool:
    """True if a file was read so soon after a write that another write could have left the same timestamps."""
    granularity_ns = int(granularity_s * 1e9)
    return any(
        max(identity.mtime_ns, identity.ctime_ns) + granularity_ns > loaded.read_at_ns
        for _, identity in loaded.group.files
    )
