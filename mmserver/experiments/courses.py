"""The course of an experiment in time, from its hours: what a unit earned so far in each arm, and how long answers took.

Hours are put together until they are few enough for a chart; what that costs does not grow with the predictions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from mmserver.experiments.bootstrap import MIN_BLOCKS, optimal_block_length, stationary_indices
from mmserver.experiments.latencies import Latencies
from mmserver.experiments.observations.hours import Hour, HourSums
from mmserver.experiments.totals import ExperimentTotals

MAX_POINTS = 120
"""More stretches than this cannot be told apart on a chart."""
COURSE_SEED = 20_260_102
"""Fixed, so that the same returns are always shown with the same band."""
N_RESAMPLES = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Band:
    """The least and the most of each point, but for a share of resamples beyond either."""

    lower: list[float]
    upper: list[float]


@dataclass(frozen=True, slots=True)
class ReturnCourse:
    """What a unit of each arm earned from the start until the end of each stretch, on average.

    Fields:
        ends: when each stretch ends. control_band, treatment_band: None for too few stretches to resample.
    """

    ends: list[datetime]
    control: list[float]
    treatment: list[float]
    control_band: Band | None
    treatment_band: Band | None


@dataclass(frozen=True, slots=True)
class LatencyCourse:
    """Percentiles of each stretch by itself, in milliseconds; None where an arm answered nothing."""

    starts: list[datetime]
    control_p50_ms: list[float | None]
    control_p95_ms: list[float | None]
    treatment_p50_ms: list[float | None]
    treatment_p95_ms: list[float | None]


def return_course(hours: Sequence[Hour], totals: ExperimentTotals, *, confidence: float = 0.95) -> ReturnCourse | None:
    """None where no outcome had a return.

    An arm's returns of a phase are divided by the units of that arm in that phase, so that neither an arm with more traffic nor
    a ramp looks like earning; the last point is the sum over phases of what a unit earned in each.
    """
    hours = [hour for hour in hours if hour.control.n_returns or hour.treatment.n_returns]
    if not hours:
        return None
    n_units = {number: (part.control.returns.n, part.treatment.returns.n) for number, part in totals.phases.items()}
    stretches = stretches_of([hour.number for hour in hours])
    earned = np.zeros((2, len(stretches)))
    place_of = {number: place for place, numbers in enumerate(stretches) for number in numbers}
    for hour in hours:
        for arm, sums in enumerate((hour.control, hour.treatment)):
            n = n_units.get(hour.phase, (0, 0))[arm]
            if n:
                earned[arm, place_of[hour.number]] += sums.total_return / n
    bands = _bands(earned, confidence)
    control, treatment = np.cumsum(earned, axis=1).tolist()
    ends = [_start_of(numbers[-1] + 1) for numbers in stretches]
    return ReturnCourse(ends, control, treatment, *bands)


def latency_course(hours: Sequence[Hour]) -> LatencyCourse | None:
    """None where nothing was answered."""
    hours = [hour for hour in hours if hour.control.latencies.moments.n or hour.treatment.latencies.moments.n]
    if not hours:
        return None
    stretches = stretches_of([hour.number for hour in hours])
    by_number: dict[int, list[Hour]] = {}
    for hour in hours:
        by_number.setdefault(hour.number, []).append(hour)
    arms = [
        [Latencies.merged(_latencies(by_number, numbers, part)) for numbers in stretches]
        for part in ("control", "treatment")
    ]
    return LatencyCourse(
        [_start_of(numbers[0]) for numbers in stretches],
        *([getattr(one, name) for one in arm] for arm in arms for name in ("p50_ms", "p95_ms")),
    )


def stretches_of(numbers: Sequence[int]) -> list[range]:
    """All hours from the first to the last, in stretches of equal length, at most MAX_POINTS; those without any hour left out."""
    known = sorted(set(numbers))
    length = math.ceil((known[-1] - known[0] + 1) / MAX_POINTS)
    starts = sorted({known[0] + (number - known[0]) // length * length for number in known})
    return [range(start, start + length) for start in starts]


def _latencies(by_number: Mapping[int, Sequence[Hour]], numbers: range, part: str) -> list[Latencies]:
    sums: list[HourSums] = [getattr(hour, part) for number in numbers for hour in by_number.get(number, ())]
    return [one.latencies for one in sums]


def _bands(earned: FloatArray, confidence: float) -> tuple[Band | None, Band | None]:
    """Of sums of stretches that were resampled, both arms' together, a block at a time."""
    n = earned.shape[1]
    if n < MIN_BLOCKS:
        return None, None
    length = max(1.0, *(optimal_block_length(series).stationary for series in earned))
    indices = stationary_indices(n, length, N_RESAMPLES, np.random.default_rng(COURSE_SEED))
    tail = (1.0 - confidence) / 2.0
    bands = []
    for series in earned:
        paths = np.cumsum(series[indices], axis=1)
        lower, upper = np.quantile(paths, (tail, 1.0 - tail), axis=0)
        bands.append(Band(lower.tolist(), upper.tolist()))
    return bands[0], bands[1]


def _start_of(hour: int) -> datetime:
    return _EPOCH + timedelta(hours=hour)
