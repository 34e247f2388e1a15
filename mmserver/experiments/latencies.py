"""Latencies as counts in fixed log-spaced bins: two histograms always merge, and a percentile is never off by more than 1 %.

A percentile here is the nearest rank: the least latency that at least q % of all are at or below (numpy's
`inverted_cdf`), read off as the middle of its bin.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mmserver.experiments.moments import Moments, finite_values

RELATIVE_ERROR = 0.01
"""How far a percentile may be from the latency at that rank, as a share of it; within MIN_MS and MAX_MS."""
MIN_MS = 0.001
MAX_MS = 1_000_000.0
_GROWTH = (1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR)
_LOG_GROWTH = math.log(_GROWTH)
_N_BINS = math.ceil(math.log(MAX_MS / MIN_MS) / _LOG_GROWTH) + 1

PercentileDefinition = Literal["nearest_rank", "linear"]


@dataclass(frozen=True, slots=True)
class Latencies:
    """How many latencies fell in each bin, and their exact moments; the zero of it is `Latencies()`.

    Bin 0 holds all up to MIN_MS, bin i those above MIN_MS × growth^(i - 1) up to MIN_MS × growth^i, the last all above too.

    Raises:
        ValueError: the bins do not hold as many as there are moments of.

    Source:
        Masson, Rim, Lee (2019), DDSketch, with bins that are fixed once for all.
    """

    bins: Mapping[int, int] = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)

    def __post_init__(self) -> None:
        if sum(self.bins.values()) != self.moments.n:
            raise ValueError(f"bins of {sum(self.bins.values())} latencies are not those of {self.moments.n}")
        if not all(0 <= index < _N_BINS and count > 0 for index, count in self.bins.items()):
            raise ValueError(f"bins must be 0 to {_N_BINS - 1} and hold something")

    @classmethod
    def from_ms(cls, latencies_ms: ArrayLike) -> "Latencies":
        """Those of latencies in milliseconds.

        Raises:
            ValueError: one is negative or not finite.
        """
        array = finite_values(latencies_ms)
        if array.size and array.min() < 0.0:
            raise ValueError(f"a latency is {array.min()} ms; it must not be negative")
        indices = np.ceil(np.log(np.maximum(array, MIN_MS) / MIN_MS) / _LOG_GROWTH - 1e-9)
        found, counts = np.unique(np.clip(indices, 0, _N_BINS - 1).astype(np.int64), return_counts=True)
        return cls(dict(zip(found.tolist(), counts.tolist(), strict=True)), Moments.from_values(array))

    @classmethod
    def merged(cls, parts: Iterable["Latencies"]) -> "Latencies":
        """All parts' latencies together."""
        bins: dict[int, int] = {}
        moments = Moments()
        for part in parts:
            for index, count in part.bins.items():
                bins[index] = bins.get(index, 0) + count
            moments = moments.merge(part.moments)
        return cls(dict(sorted(bins.items())), moments)

    def merge(self, other: "Latencies") -> "Latencies":
        """Both parts' latencies together."""
        return Latencies.merged((self, other))

    @property
    def average_ms(self) -> float | None:
        """Exact; None without any."""
        return self.moments.mean if self.moments.n else None

    def percentile_ms(self, q: float) -> float | None:
        """The latency at the nearest rank, within RELATIVE_ERROR; None without any.

        Raises:
            ValueError: q is not within 0 and 100.
        """
        if not self.moments.n:
            _check_percent(q)
            return None
        rank = _nearest_rank(q, self.moments.n)
        for index in sorted(self.bins):
            rank -= self.bins[index]
            if rank <= 0:
                return _middle_ms(index)
        raise AssertionError("the bins hold as many as there are ranks")

    @property
    def p50_ms(self) -> float | None:
        """The median, by nearest rank."""
        return self.percentile_ms(50.0)

    @property
    def p95_ms(self) -> float | None:
        """The 95th percentile, by nearest rank."""
        return self.percentile_ms(95.0)


def percentile(values: ArrayLike, q: float, *, definition: PercentileDefinition) -> float | None:
    """A percentile of numbers that are all at hand, by its named definition; None without any.

    Args:
        definition: "nearest_rank" is one of the values (numpy `inverted_cdf`); "linear" lies between two (numpy's default).

    Raises:
        ValueError: q is not within 0 and 100, or a value is not finite.
    """
    _check_percent(q)
    array = np.sort(finite_values(values))
    if not array.size:
        return None
    if definition == "nearest_rank":
        return float(array[_nearest_rank(q, array.size) - 1])
    return float(np.percentile(array, q))


def _nearest_rank(q: float, n: int) -> int:
    """From 1 to n; products like 0.07 × 100 are rounded before their ceiling is taken."""
    _check_percent(q)
    return max(1, math.ceil(round(q * n / 100.0, 9)))


def _middle_ms(index: int) -> float:
    """The value that no latency of the bin is further from than RELATIVE_ERROR of itself."""
    return MIN_MS if index == 0 else MIN_MS * _GROWTH**index * 2.0 / (_GROWTH + 1.0)


def _check_percent(q: float) -> None:
    if not 0.0 <= q <= 100.0:
        raise ValueError(f"the percentile is {q}; it must lie within 0 and 100")
