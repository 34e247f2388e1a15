"""Documents as bytes: JSON text or UBJSON that XGBoost loads and predicts with bit for bit, the same bytes for the same document."""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mmserver.trees.document import Document
from mmserver.trees.ubjson import write_ubjson

_MAX_EXACT_POWER = 22
"""10**22 is the largest power of ten that a float64 holds exactly: scaling by it rounds once."""

_DIGITS = (6, 7, 8, 9)
"""Nine digits tell all float32 apart, six survive in all of them; shorter texts come out of six with zeros at the end."""


def json_from_document(document: Document) -> bytes:
    """The document as JSON text, keys sorted; its own version and its form of base_score are kept, so is its meaning.

    Every float is the shortest decimal text that reads back as the same float32, always with a point or an exponent:
    XGBoost refuses an integer where a float is due.
    """
    floats: list[NDArray[np.float32]] = []
    _collect_floats(document, floats)
    values = float64_from_float32(np.concatenate(floats)).tolist() if floats else []
    return msgspec.json.encode(_plain(document, _Cursor(values)), order="sorted")


def ubjson_from_document(document: Document) -> bytes:
    """The document as UBJSON with the typed arrays that XGBoost's loader expects, keys sorted."""
    return write_ubjson(_sorted(document))


def float64_from_float32(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """For each float32 the float64 whose own decimal text is the shortest that reads back as that float32.

    At ties and at powers of two the text may have a digit more than the shortest.

    Read as float64 and rounded, or read as float32 at once, the text gives the same bits.
    """
    wide = values.astype(np.float64)
    result = wide.copy()
    magnitude = np.abs(wide)
    is_ordinary = (magnitude >= np.finfo(np.float32).tiny) & (magnitude < np.inf)
    exponent = np.zeros(values.shape, np.int64)
    exponent[is_ordinary] = np.floor(np.log10(magnitude[is_ordinary])).astype(np.int64)
    pending = np.flatnonzero(is_ordinary)
    slow = [np.flatnonzero(~is_ordinary & (magnitude > 0) & (magnitude < np.inf))]
    for digits in _DIGITS:
        in_reach = np.abs(digits - 1 - exponent[pending]) <= _MAX_EXACT_POWER
        slow.append(pending[~in_reach])
        pending = pending[in_reach]
        rounded = _rounded_to_power(wide[pending], digits - 1 - exponent[pending])
        is_same = (rounded.astype(np.float32) == values[pending]) & ~_is_midpoint(rounded)
        result[pending[is_same]] = rounded[is_same]
        pending = pending[~is_same]
    for index in np.concatenate([*slow, pending]).tolist():
        result[index] = float(np.format_float_scientific(values[index], unique=True))
    return result


def _rounded_to_power(values: NDArray[np.float64], power: NDArray[np.int64]) -> NDArray[np.float64]:
    """Round to whole multiples of 10**-power; correctly rounded, since the multiple and the power are exact float64s."""
    scale = np.array([float(10**exponent) for exponent in range(_MAX_EXACT_POWER + 1)])[np.abs(power)]
    rounded: NDArray[np.float64] = np.where(
        power >= 0, np.rint(values * scale) / scale, np.rint(values / scale) * scale
    )
    return rounded


def _is_midpoint(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Halfway between two float32s, where rounding the text at once might go the other way."""
    is_midpoint: NDArray[np.bool_] = (values.view(np.int64) & ((1 << 29) - 1)) == (1 << 28)
    return is_midpoint


def _sorted(value: Any) -> Any:
    match value:
        case dict():
            return {key: _sorted(value[key]) for key in sorted(value)}
        case list():
            return [_sorted(member) for member in value]
        case _:
            return value


class _Cursor:
    """The converted floats, taken from the front in the order in which they were collected."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.position = 0

    def take(self, count: int) -> list[float]:
        self.position += count
        return self.values[self.position - count : self.position]


def _collect_floats(value: Any, found: list[NDArray[np.float32]]) -> None:
    match value:
        case dict():
            for member in value.values():
                _collect_floats(member, found)
        case list():
            for member in value:
                _collect_floats(member, found)
        case float():
            found.append(np.array([value], np.float32))
        case np.ndarray() if value.dtype == np.float32:
            found.append(value)


def _plain(value: Any, floats: _Cursor) -> Any:
    """The document with lists for arrays; walks in the same order as `_collect_floats`."""
    match value:
        case dict():
            return {key: _plain(member, floats) for key, member in value.items()}
        case list():
            return [_plain(member, floats) for member in value]
        case float():
            return floats.take(1)[0]
        case np.ndarray():
            return floats.take(value.size) if value.dtype == np.float32 else value.tolist()
        case _:
            return value
