"""How near a converted model comes to its source: the same rows through both, number by number."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmserver.formats import Conversion, FloatRows

_NOISE = 16 * float(np.finfo(np.float32).eps)
"""What two libraries that add up the same float32 numbers in another order differ by, of the numbers' magnitude."""
_MAX_NOISE_OF_SPREAD = 1e-3
"""Noise that is more than this of how far a column moves is a loss: it changes which of two rows a bot prefers."""
_QUARTILES_OF_NORMAL = 1.349
"""Standard deviations between the first and the last quarter of normal numbers."""


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one comparison; kept with the version and shown beside it.

    Units:
        max_abs_difference: of numbers that both give, None where one has what the other has not (an output, a shape, a finite
        number). max_rel_difference: the same relative to the source's number, where that is not 0. n_beyond: rows with a
        number further off than it may be, which is never more than `absolute + relative * |source|`. absolute: of the column that may differ most.
        class_agreement: share of the rows whose largest number is the same one, of outputs that are wider than one; None where there is none.
    """

    source: str
    target: str
    n_rows: int
    max_abs_difference: float | None
    max_rel_difference: float | None
    n_beyond: int
    absolute: float
    relative: float
    max_share_beyond: float
    class_agreement: float | None
    passed: bool
    note: str | None = None
    """What cannot be compared at all, in words."""


def compared(
    expected: Mapping[str, FloatRows],
    found: Mapping[str, FloatRows],
    conversion: Conversion,
    target: str,
    *,
    absolutes: Mapping[str, NDArray[np.float64]] | None = None,
) -> ParityReport:
    """`found`, which the converted model gives, against `expected`, which its source gave for the same rows.

    Two NaN are the same, and so are two infinities of one sign; what only one of them has is beyond every tolerance. How far a number may
    be off follows from how far its column moves over the rows, not from its size alone: a price that is off by a hundred-thousandth is off
    by more than it moves in a minute. `absolute` is of the column's spread where that is below 1, `relative` of the distance from the column's
    middle. Noise of float32 is allowed for as long as it is small beside those, and the next float32 always, within what was said.

    Shapes:
        both: output name → n_rows × width. The converted model may have more outputs; each of `expected` must be there.
        absolutes: output name → width; what each column may differ by, instead of the one number for all in `conversion`, and
            of its numbers themselves the relative part.
    """
    n_rows = len(next(iter(expected.values()), ()))
    given = absolutes or {}
    allowed = {name: _allowed(values, conversion, given.get(name)) for name, values in expected.items()}
    beyond: NDArray[np.bool_] = np.zeros(n_rows, np.bool_)
    absolute, relative, agreements, notes = [0.0], [0.0], [], []
    for name, theirs in expected.items():
        ours = found.get(name)
        if ours is None or np.shape(ours) != np.shape(theirs):
            what = "nothing" if ours is None else str(np.shape(ours))
            notes.append(f"{name}: the source gives {np.shape(theirs)}, the converted model {what}")
            continue
        distance = _Distance(np.asarray(theirs, np.float64), np.asarray(ours, np.float64))
        beyond |= distance.is_beyond(allowed[name].cells)
        absolute.append(distance.largest_absolute)
        relative.append(distance.largest_relative)
        if np.shape(theirs)[1] > 1:
            agreements.append(_class_agreement(theirs, ours))
    if n_rows == 0:
        notes.append("there is no row to compare")
    n_beyond = n_rows if notes else int(beyond.sum())
    return ParityReport(
        source=conversion.source,
        target=target,
        n_rows=n_rows,
        max_abs_difference=_finite(max(absolute)) if not notes else None,
        max_rel_difference=_finite(max(relative)) if not notes else None,
        n_beyond=n_beyond,
        absolute=max((float(one.absolutes.max(initial=0.0)) for one in allowed.values()), default=conversion.absolute),
        relative=conversion.relative,
        max_share_beyond=conversion.max_share_beyond,
        class_agreement=min(agreements) if agreements else None,
        passed=not notes and n_beyond <= conversion.max_share_beyond * n_rows,
        note="; ".join(notes)[:500] or None,
    )


class _Allowed(NamedTuple):
    """What an output may differ by.

    Shapes:
        cells: n_rows × width. absolutes: width, the part that is the same for all rows.
    """

    cells: NDArray[np.float64]
    absolutes: NDArray[np.float64]


def _allowed(values: FloatRows, conversion: Conversion, absolutes: NDArray[np.float64] | None) -> _Allowed:
    sizes = np.where(np.isfinite(values), np.abs(values), 0.0).astype(np.float64)
    if absolutes is not None:
        return _Allowed(absolutes + conversion.relative * sizes, absolutes)
    largest = sizes.max(axis=0, initial=0.0)
    widths = _widths(values, largest)
    distances = np.minimum(np.abs(np.where(np.isfinite(values), values, 0.0) - _middles(values)), sizes)
    least = conversion.absolute * np.minimum(1.0, widths)
    noise = np.minimum(conversion.relative, _NOISE) * sizes + np.minimum(conversion.absolute, _NOISE * largest)
    noise = np.minimum(noise, _MAX_NOISE_OF_SPREAD * (widths + distances))
    neighbour = np.minimum(conversion.absolute + conversion.relative * sizes, np.spacing(sizes.astype(np.float32)))
    cells = np.maximum(np.maximum(least + conversion.relative * distances, noise), neighbour)
    return _Allowed(cells, np.minimum(conversion.absolute, np.maximum(least, noise.max(axis=0, initial=0.0))))


def _widths(values: FloatRows, largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each column moves over ordinary rows: a few rows of large inputs do not widen it.

    What lies between 0 and 1 is measured by its standard deviation: most probabilities of a sure model are nearly the same one.
    A column of one number only is as wide as that number; one of zeros, as the others of the output.
    """
    finite = np.isfinite(values)
    deviations = spread_of(values)
    numbers = np.where(finite, values, np.nan).astype(np.float64)
    numbers[:, ~finite.any(axis=0)] = 0.0
    low, high = (
        np.nanquantile(numbers, (0.25, 0.75), axis=0, method="inverted_cdf")
        if len(values)
        else (deviations, deviations)
    )
    ordinary = (high - low) / _QUARTILES_OF_NORMAL
    is_share = (np.where(finite, values, 0.0).min(axis=0, initial=0.0) >= 0) & (largest <= 1)
    spreads = np.where((ordinary > 0) & ~is_share, np.minimum(ordinary, deviations), deviations)
    found: NDArray[np.float64] = np.where(
        spreads > 0, spreads, np.where(largest > 0, largest, largest.max(initial=0.0))
    )
    return found


def _middles(values: FloatRows) -> NDArray[np.float64]:
    """The median of each column's finite numbers; 0 where there is none."""
    if not len(values):
        return np.zeros(values.shape[1])
    finite = np.isfinite(values)
    numbers = np.where(finite, values, np.nan).astype(np.float64)
    numbers[:, ~finite.any(axis=0)] = 0.0
    found: NDArray[np.float64] = np.nanmedian(numbers, axis=0)
    return found


def spread_of(values: FloatRows) -> NDArray[np.float64]:
    """The standard deviation of each column, of its finite numbers; 0 where there is none."""
    finite = np.isfinite(values)
    numbers = np.where(finite, values, 0.0).astype(np.float64)
    counts = np.maximum(finite.sum(axis=0), 1)
    centred = np.where(finite, numbers - numbers.sum(axis=0) / counts, 0.0)
    found: NDArray[np.float64] = np.sqrt((centred**2).sum(axis=0) / counts)
    return found


class _Distance:
    """How far one output of the converted model is from the source's, cell by cell."""

    def __init__(self, theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> None:
        same = (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
        comparable = np.isfinite(theirs) & np.isfinite(ours)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            distances = np.where(same, 0.0, np.where(comparable, np.abs(ours - theirs), np.inf))
            shares = np.where(theirs != 0, distances / np.abs(theirs), 0.0)
        self._distances: NDArray[np.float64] = distances
        self.largest_absolute = float(distances.max(initial=0.0))
        self.largest_relative = float(np.where(same, 0.0, shares).max(initial=0.0))

    def is_beyond(self, allowed: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which rows have a number that is further off than it may be."""
        within: NDArray[np.bool_] = np.all(self._distances <= allowed, axis=1)
        return ~within


def _class_agreement(theirs: FloatRows, ours: FloatRows) -> float:
    """Share of the rows with the largest number in the same place; rows of which that cannot be said do not agree."""
    unsaid = np.isnan(theirs).any(axis=1) | np.isnan(ours).any(axis=1)
    same = (theirs.argmax(axis=1) == ours.argmax(axis=1)) & ~unsaid
    return float(same.mean()) if len(same) else 0.0


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
