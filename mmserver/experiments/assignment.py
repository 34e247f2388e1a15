"""Which arm a unit gets: a hash of its name, so every process, every restart and any client in any language agrees.

A unit's bucket depends on the salt and its name alone. It is treated iff its bucket lies below the weight, so raising the
weight only ever adds treated units; a new phase is a new salt, and draws anew.
"""

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Literal, assert_never

Arm = Literal["control", "treatment"]
UnitKind = Literal["prediction", "symbol", "symbol|time-block", "unit_id"]

N_BUCKETS = 10_000
HASH_VERSION = 1
"""Stored with each experiment; another way of hashing needs another number."""


def prefix_u64(text: str) -> int:
    """The first 8 bytes of the SHA-256 of the text in UTF-8, as a big-endian integer."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def bucket_of(salt: str, unit: str) -> int:
    """The bucket, 0 to 9999, of a unit; the bias of the modulo is below 1e-15."""
    return prefix_u64(f"{salt}.{unit}") % N_BUCKETS


def salt_of(experiment_id: str, phase: int) -> str:
    """The salt of one phase of an experiment: `experiment_id:phase`."""
    return f"{experiment_id}:{phase}"


@functools.lru_cache(maxsize=256)
def n_treated_buckets(treatment_weight: float) -> int:
    """How many buckets, from 0 up, are treated: the least whole number that is not below 10000 × weight.

    The product is rounded at the sixth decimal first: 0.07 × 10000 is 700.0000000000001 in binary, and would treat 701.

    Raises:
        ValueError: the weight is not within 0 and 1.
    """
    if not 0.0 <= treatment_weight <= 1.0:
        raise ValueError(f"the treatment's weight is {treatment_weight}; it must lie within 0 and 1")
    return math.ceil(round(N_BUCKETS * treatment_weight, 6))


def arm_of_bucket(bucket: int, *, treatment_weight: float) -> Arm:
    """Treatment iff bucket < 10000 × weight.

    Raises:
        ValueError: the weight is not within 0 and 1.
    """
    return "treatment" if bucket < n_treated_buckets(treatment_weight) else "control"


def arm_of(*, salt: str, unit: str, treatment_weight: float) -> Arm:
    """The arm of a unit, from its name alone.

    Raises:
        ValueError: the weight is not within 0 and 1.
    """
    return arm_of_bucket(bucket_of(salt, unit), treatment_weight=treatment_weight)


# --- units --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TimeBlocks:
    """Stretches of time in which a symbol keeps its arm; counted from the epoch in UTC, so all processes agree.

    The first horizon of each block is washed out: what was predicted there is realised under what the block before did.

    Raises:
        ValueError: a block has no length, or the horizon leaves nothing of it.
    """

    block_s: float
    horizon_s: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.block_s) and self.block_s > 0.0):
            raise ValueError(f"a block of {self.block_s} s has no length")
        if not 0.0 <= self.horizon_s < self.block_s:
            raise ValueError(f"a horizon of {self.horizon_s} s does not fit in a block of {self.block_s} s")

    def index_at(self, epoch_s: float) -> int:
        """The block's number: whole blocks since the epoch."""
        return int(epoch_s // self.block_s)

    def is_washed_out(self, epoch_s: float) -> bool:
        """Whether the moment lies in the first horizon of its block, and is left out of the analysis."""
        return epoch_s % self.block_s < self.horizon_s


def unit_of(
    kind: UnitKind,
    *,
    prediction_id: str | None = None,
    symbol: str | None = None,
    epoch_s: float | None = None,
    blocks: TimeBlocks | None = None,
    unit_id: str | None = None,
) -> str:
    """The text that is hashed for one prediction: its id, its symbol, `symbol|block number`, or what the caller named.

    Raises:
        ValueError: the kind of unit needs something that was not given.
    """
    match kind:
        case "prediction":
            return _given(kind, "prediction_id", prediction_id)
        case "symbol":
            return _given(kind, "symbol", symbol)
        case "unit_id":
            return _given(kind, "unit_id", unit_id)
        case "symbol|time-block":
            if epoch_s is None or not math.isfinite(epoch_s) or blocks is None:
                raise ValueError(f"the unit {kind} needs a time and the length of a block")
            return f"{_given(kind, 'symbol', symbol)}|{blocks.index_at(epoch_s)}"
        case _:
            assert_never(kind)


def _given(kind: UnitKind, name: str, value: str | None) -> str:
    if not value:
        raise ValueError(f"the unit {kind} needs a {name}")
    return value


# --- experiments that must not meet -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NamespaceSlice:
    """The share [start, end) of a namespace's units that one experiment may have; slices that are apart never share a unit.

    Raises:
        ValueError: start and end are not 0 <= start < end <= 1.
    """

    namespace: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(f"a slice of a namespace from {self.start} to {self.end} is none")

    def has(self, unit: str) -> bool:
        """Whether the unit belongs to this slice, by a second hash that says nothing about its arm."""
        bucket = bucket_of(f"namespace/{self.namespace}", unit)
        return n_treated_buckets(self.start) <= bucket < n_treated_buckets(self.end)

    def overlaps(self, other: "NamespaceSlice") -> bool:
        """Whether some unit may belong to both."""
        return self.namespace == other.namespace and self.start < other.end and other.start < self.end
