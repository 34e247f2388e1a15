"""Which values may be dict keys or set members: cheap to hash, and not many with a hash that the file could choose."""

import datetime as dt
from decimal import Decimal
from uuid import UUID

import numpy as np

from mmserver.errors import Undecodable
from mmserver.inert.records import Timestamp, TimeZone, Value, ZonedTime

# Text hashes are keyed per process; a float or a small integer shares its hash with a few dozen others at most.
_SAFE = frozenset((str, bytes, bool, float, type(None), dt.datetime, dt.date, dt.time, Timestamp))
_SAFE_NUMPY = (np.integer, np.floating, np.str_, np.bytes_, np.bool_, np.datetime64, np.timedelta64)
_COSTLY = frozenset((Decimal, UUID, complex, dt.timedelta, dt.timezone, TimeZone, ZonedTime))
_HASH_MODULUS = (1 << 61) - 1  # sys.hash_info.modulus: integers below it hash to themselves
_MAX_EQUAL_HASHES = 64
_MAX_KEY_LENGTH = 64
_MAX_KEY_DEPTH = 2


class KeyGuard:
    """Refuses keys that would make one decode quadratic."""

    def __init__(self) -> None:
        self._n_by_hash: dict[tuple[int, int], int] = {}

    def check(self, target: Value, key: Value) -> None:
        """Raise Undecodable where `key` cannot or should not be put into the dict or set `target`.

        Raises:
            Undecodable: `unsupported` for a kind that is no key here, `too_complex` for too many equal hashes.
        """
        kind = type(key)
        if kind in _SAFE or (kind is int and -_HASH_MODULUS < key < _HASH_MODULUS):
            return
        self._check_kind(key, 0)
        if isinstance(key, _SAFE_NUMPY):
            return
        at = (id(target), hash(key))
        n = self._n_by_hash.get(at, 0) + 1
        if n > _MAX_EQUAL_HASHES:
            raise Undecodable("too_complex", f"more than {_MAX_EQUAL_HASHES} keys with one hash")
        self._n_by_hash[at] = n

    def _check_kind(self, key: Value, depth: int) -> None:
        kind = type(key)
        if kind in _SAFE or kind in _COSTLY or kind is int or isinstance(key, _SAFE_NUMPY):
            return
        if kind not in (tuple, frozenset) or depth >= _MAX_KEY_DEPTH or len(key) > _MAX_KEY_LENGTH:
            raise Undecodable("unsupported", f"a {kind.__name__} as a key or set member")
        for item in key:
            self._check_kind(item, depth + 1)
