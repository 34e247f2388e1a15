"""Which predictions outside experiments are observed: drawn from their ids alone, so anybody who has an id can draw again.

A request for several rows has one id, and its rows have that with `.0`, `.1`, … behind it.
"""

import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.assignment import prefix_u64

_N_U64 = 1 << 64
_STEP = 0x9E3779B97F4A7C15
_MIXERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""SplitMix64 (Steele, Lea and Flood, 2014): the step and the multipliers."""


def row_id(prediction_id: str, row: int, n_rows: int) -> str:
    """The id of one row of a request, counted from 0; of a single one it is the request's."""
    return prediction_id if n_rows == 1 else f"{prediction_id}.{row}"


class Sample:
    """A share of all predictions, 0 to 1. Whatever is in a sample is in every larger one."""

    def __init__(self, share: float) -> None:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"a sample of {share} is none; it must lie within 0 and 1")
        self._below = round(share * _N_U64)
        self._is_whole = share == 1.0

    def has(self, prediction_id: str, row: int = 0) -> bool:
        """Whether a row of a request is in the sample."""
        return self._is_whole or _mixed((_drawn(prediction_id) + row * _STEP) % _N_U64) < self._below

    def rows(self, prediction_id: str, n_rows: int) -> NDArray[np.int64]:
        """Which rows of a request are in the sample, in order; as `has`, of thousands at once."""
        if self._is_whole or not self._below:
            return np.arange(n_rows if self._is_whole else 0)
        with np.errstate(over="ignore"):
            z = np.arange(n_rows, dtype=np.uint64) * np.uint64(_STEP) + np.uint64(_drawn(prediction_id))
            for shift, mixer in zip((30, 27), _MIXERS, strict=True):
                z = (z ^ (z >> np.uint64(shift))) * np.uint64(mixer)
        return np.flatnonzero((z ^ (z >> np.uint64(31))) < np.uint64(self._below))


def _drawn(prediction_id: str) -> int:
    return prefix_u64(f"observed.{prediction_id}")


def _mixed(z: int) -> int:
    for shift, mixer in zip((30, 27), _MIXERS, strict=True):
        z = (z ^ (z >> shift)) * mixer % _N_U64
    return z ^ (z >> 31)
