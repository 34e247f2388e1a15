"""How much one decode may cost; the budget is shared by nested streams, so nesting buys an attacker nothing."""

import time
from dataclasses import dataclass

from mmserver.errors import Undecodable

_LARGE_STEP_BYTES = 1 << 16  # work beyond this looks at the clock at once


@dataclass(frozen=True)
class Limits:
    """What a decoder refuses to exceed.

    Units:
        max_bytes: bytes of input, of decompressed output, and of everything copied while decoding, each.
        max_ratio: decompressed size over compressed size; applies above 16 MiB of output.
        max_items: values in the result when shared ones are counted each time they are reached.
    """

    max_bytes: int = 512 << 20
    max_ratio: int = 200
    max_ops: int = 5_000_000
    max_items: int = 20_000_000
    max_depth: int = 100
    max_memo: int = 2_000_000
    max_nested_pickles: int = 4
    max_long_bytes: int = 64
    deadline_s: float = 10.0


class Budget:
    """What is left of the limits during one decode."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._ops_left = limits.max_ops
        self._bytes_left = limits.max_bytes
        self._ends_at = time.monotonic() + limits.deadline_s

    def spend_ops(self, n_ops: int) -> None:
        """Count opcodes and look at the clock.

        Raises:
            Undecodable: `too_complex` or `too_slow`.
        """
        self._ops_left -= n_ops
        if self._ops_left < 0:
            raise Undecodable("too_complex", f"more than {self.limits.max_ops} opcodes")
        self.check_time()

    def spend_bytes(self, n_bytes: int) -> None:
        """Count bytes that are about to be copied or examined.

        Raises:
            Undecodable: `too_large` or `too_slow`.
        """
        self._bytes_left -= n_bytes
        if self._bytes_left < 0:
            raise Undecodable("too_large", f"its values need more than {self.limits.max_bytes} bytes")
        if n_bytes > _LARGE_STEP_BYTES:
            self.check_time()

    def check_time(self) -> None:
        """Refuse with `too_slow` once the deadline has passed."""
        if time.monotonic() > self._ends_at:
            raise Undecodable("too_slow", f"not decoded within {self.limits.deadline_s} s")
