"""Resampling whole stretches of paired blocks, so that what resembles its neighbours still does.

The arms are resampled together: what both felt at one time stays together.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmserver.experiments.distributions import check_level
from mmserver.experiments.intervals import Interval
from mmserver.experiments.moments import finite_values

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
"""Rows of series → one number for each row; NaN where a row has none."""

MIN_BLOCKS = 10
"""Fewer blocks than this are too few to say how far resamples of them would lie apart."""
MAX_CELLS = 2_000_000
"""How many numbers are resampled at a time: 16 MB."""


@dataclass(frozen=True, slots=True)
class BlockLengths:
    """The expected length of blocks for the stationary bootstrap, and the fixed one for the circular."""

    stationary: float
    circular: float


def optimal_block_length(values: ArrayLike) -> BlockLengths:
    """Of a series, from how far its autocorrelation reaches; 1 for a series too short or constant to say.

    Of values that hardly resemble their neighbours it comes out below 1, which means blocks of 1.

    Source:
        Politis and White (2004) as Patton, Politis, White (2009) corrected; arch `optimal_block_length`, whose lags and
        limits these are.
    """
    array = finite_values(values)
    n = array.size
    if n < MIN_BLOCKS or not np.ptp(array):
        return BlockLengths(1.0, 1.0)
    distances = (array - array.mean()) / np.abs(array - array.mean()).max()
    autocovariances, n_significant = _reach(distances)
    flat = sum_at_zero = 0.0
    for lag in range(1, n_significant + 1):
        share = lag / n_significant
        weight = 1.0 if share <= 0.5 else 2.0 * (1.0 - share)
        flat += 2.0 * weight * lag * autocovariances[lag]
        sum_at_zero += 2.0 * weight * autocovariances[lag]
    density = autocovariances[0] + sum_at_zero
    longest = math.ceil(min(3.0 * math.sqrt(n), n / 3.0))
    if not density:
        return BlockLengths(longest, longest)
    stationary, circular = (
        min((2.0 * flat**2 / (factor * density**2)) ** (1.0 / 3.0) * n ** (1.0 / 3.0), longest)
        for factor in (2.0, 4.0 / 3.0)
    )
    return BlockLengths(stationary, circular)


def _reach(distances: FloatArray) -> tuple[list[float], int]:
    """The autocovariances, and twice the first lag from which on a run of autocorrelations is insignificant."""
    n = distances.size
    run = max(5, int(math.log10(n)))
    last = min(math.ceil(math.sqrt(n)) + run, n - 1)
    limit = 2.0 * math.sqrt(math.log10(n) / n)
    autocovariances: list[float] = []
    is_small: list[bool] = []
    first: int | None = None
    for lag in range(last + 1):
        product = float(distances[lag:] @ distances[: n - lag])
        ends = float(distances[lag + 1 :] @ distances[lag + 1 :]) * float(distances[: -lag - 1] @ distances[: -lag - 1])
        autocovariances.append(product / n)
        if first is None and lag >= run and all(is_small[lag - run : lag]):
            first = lag - run
        is_small.append(ends > 0.0 and abs(product) / math.sqrt(ends) < limit)
    return autocovariances, min(2 * max(first, 1), last) if first is not None else last


def stationary_indices(n: int, block_length: float, n_resamples: int, generator: np.random.Generator) -> NDArray[Any]:
    """Rows of indices into a series of n: stretches of random length, block_length on average, that wrap around its end.

    Source:
        Politis and Romano (1994), The stationary bootstrap.
    """
    if not (block_length >= 1.0 and n >= 1):
        raise ValueError(f"blocks of {block_length} of {n} values are none")
    columns = np.arange(n)
    begins = generator.random((n_resamples, n)) < 1.0 / block_length
    begins[:, 0] = True
    latest = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    starts = generator.integers(n, size=(n_resamples, n))
    return (np.take_along_axis(starts, latest, axis=1) + columns - latest) % n


@dataclass(frozen=True, slots=True)
class BootstrapDifference:
    """statistic(treatment) - statistic(control), how far resamples of it lie apart, and all that is needed to repeat it."""

    estimate: float
    standard_error: float
    interval: Interval
    p_value: float
    block_length: float
    n_resamples: int
    seed: int


def sharpe_rows(rows: FloatArray) -> FloatArray:
    """The Sharpe ratio of each row, deviations with ddof 1."""
    deviations = rows.std(axis=-1, ddof=1)
    # What is left of a constant row's deviation is rounding.
    ratios: FloatArray = np.where(
        deviations > 1e-12 * np.abs(rows).max(axis=-1),
        rows.mean(axis=-1) / np.where(deviations, deviations, 1.0),
        np.nan,
    )
    return ratios


def mean_rows(rows: FloatArray) -> FloatArray:
    """The mean of each row."""
    means: FloatArray = rows.mean(axis=-1)
    return means


def bootstrap_difference(
    *,
    control: ArrayLike,
    treatment: ArrayLike,
    statistic: Statistic = sharpe_rows,
    seed: int,
    n_resamples: int = 2000,
    confidence: float = 0.95,
    block_length: float | None = None,
) -> BootstrapDifference | None:
    """The difference of a statistic of two series over the same blocks of time, and its symmetric interval.

    The interval leaves out zero exactly where the p-value is below 1 - confidence, but for the grain of the resamples.

    Args:
        block_length: on average, at least 1; None takes the longer of what suits either series.

    Returns:
        None for fewer than MIN_BLOCKS blocks, or where the statistic is undefined or never differs.

    Raises:
        ValueError: the series do not pair up, a value is not finite, or a parameter is out of range.

    Source:
        Politis and Romano (1994); symmetric intervals as in Ledoit and Wolf (2008), without studentising.
    """
    check_level("the confidence", confidence)
    ours, theirs = finite_values(treatment), finite_values(control)
    if ours.size != theirs.size:
        raise ValueError(f"{theirs.size} and {ours.size} blocks are not pairs")
    if n_resamples < 100:
        raise ValueError(f"{n_resamples} resamples are too few; at least 100 are needed")
    if ours.size < MIN_BLOCKS:
        return None
    length = block_length or max(1.0, *(optimal_block_length(series).stationary for series in (ours, theirs)))
    estimate = float(statistic(ours[None])[0] - statistic(theirs[None])[0])
    found = _resampled(
        ours, theirs, statistic, length=length, n_resamples=n_resamples, generator=np.random.default_rng(seed)
    )
    if not math.isfinite(estimate) or found.size < 0.9 * n_resamples or not np.ptp(found):
        return None
    distances = np.abs(found - estimate)
    half = float(np.quantile(distances, confidence, method="inverted_cdf"))
    p_value = (1.0 + float(np.count_nonzero(distances >= abs(estimate)))) / (found.size + 1.0)
    interval = Interval(estimate - half, estimate + half)
    return BootstrapDifference(estimate, float(found.std(ddof=1)), interval, p_value, length, int(found.size), seed)


def _resampled(
    ours: FloatArray,
    theirs: FloatArray,
    statistic: Statistic,
    *,
    length: float,
    n_resamples: int,
    generator: np.random.Generator,
) -> FloatArray:
    """The differences of the resamples that have one."""
    rows = max(1, MAX_CELLS // ours.size)
    parts = []
    for start in range(0, n_resamples, rows):
        indices = stationary_indices(ours.size, length, min(rows, n_resamples - start), generator)
        parts.append(statistic(ours[indices]) - statistic(theirs[indices]))
    whole = np.concatenate(parts)
    return whole[np.isfinite(whole)]
