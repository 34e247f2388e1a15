"""A request's features as the rows that a model takes: in input order, in float32, every value accounted for."""

import math
import struct
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from mmserver.errors import FeaturesInvalid
from mmserver.formats import FloatRows

Features: TypeAlias = list[float | None] | list[list[float | None]] | dict[str, float | None]

MAX_TOLD = 50
"""As many errors are listed one by one; the reason counts them all."""

_FLOAT32 = np.dtype("<f4")
_BAD_VALUES = (struct.error, OverflowError, TypeError, ValueError)


class RowLayout:
    """How rows of one model are made; shared by all threads.

    Values are converted as `float32(value)` converts them; what float32 cannot hold is refused, never made infinite. A missing
    value is None or NaN, and is refused unless the model knows what to do with it.
    """

    def __init__(self, factors: Sequence[str], *, accepts_missing: bool) -> None:
        self.factors = tuple(factors)
        self.accepts_missing = accepts_missing
        self.width = len(self.factors)
        self._shape = (1, self.width)
        self._pack = struct.Struct(f"<{self.width}f").pack
        getter = itemgetter(*self.factors)
        self._values_of = getter if self.width > 1 else lambda features: (getter(features),)

    def plain_row(self, features: Any) -> FloatRows | None:
        """The row if it is a plain one: as many finite numbers as there should be, or exactly the names; else None.

        Shapes:
            returns: 1 × n_features.
        """
        values = features
        if isinstance(features, dict):
            if len(features) != self.width:
                return None
            try:
                values = self._values_of(features)
            except KeyError:
                return None
        try:
            packed = self._pack(*values)
            if math.isfinite(sum(values)):  # as float64 it cannot overflow: float32 holds each of them
                return np.ndarray(self._shape, _FLOAT32, bytearray(packed))  # libraries may want it writable
        except _BAD_VALUES:
            return None
        return None

    def row(self, features: Features) -> FloatRows:
        """The row that a request means, written as a list, as a list of one list, or by factor name in any order.

        Raises:
            FeaturesInvalid: names every place, up to a bound.
        """
        plain = self.plain_row(features)
        if plain is not None:
            return plain
        if isinstance(features, dict):
            self._check_names(features)
            values: Sequence[Any] = self._values_of(features)
            with_missing = self._row_with_missing(values)
            if with_missing is not None:
                return with_missing
            return self._slow_row(values, [f"features.{name}" for name in self.factors])
        where = "features"
        if features and all(isinstance(row, list | tuple) for row in features):
            if len(features) > 1:
                reason = f"{len(features)} rows, where the model takes one; for several, send a batch"
                told = "one row is expected here; send the rows to the batch endpoint, one request each"
                raise FeaturesInvalid(reason=reason, errors=[{"loc": where, "msg": told}])
            features, where = features[0], "features[0]"  # type: ignore[assignment]
            plain = self.plain_row(features)
            if plain is not None:
                return plain
        if len(features) != self.width:
            reason = f"{self.width} features are expected, found {len(features)}"
            raise FeaturesInvalid(reason=reason, errors=[{"loc": where, "msg": reason}])
        with_missing = self._row_with_missing(features)
        if with_missing is not None:
            return with_missing
        return self._slow_row(features, [f"{where}[{dim}]" for dim in range(self.width)])

    def rows(self, rows: np.ndarray[Any, Any]) -> FloatRows:
        """A whole table of rows, checked and as the engines take it: float32, C-contiguous.

        Raises:
            FeaturesInvalid: another shape or kind of values; or values that are missing or not finite, by row and factor.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width:
            reason = f"rows of {self.width} features are expected, found the shape {list(rows.shape)}"
            raise FeaturesInvalid(reason=reason, errors=[{"loc": "features", "msg": reason}])
        if rows.shape[0] == 0:
            raise FeaturesInvalid(reason="there are no rows", errors=[{"loc": "features", "msg": "no rows"}])
        if rows.dtype.kind not in "fiu":
            reason = f"numbers are expected, found {rows.dtype}"
            raise FeaturesInvalid(reason=reason, errors=[{"loc": "features", "msg": reason}])
        with np.errstate(over="ignore"):  # what becomes infinite is refused below
            converted: FloatRows = np.ascontiguousarray(rows, dtype=np.float32)
        is_finite = np.isfinite(converted)
        if is_finite.all():
            return converted
        is_wrong = np.isinf(converted) if self.accepts_missing else ~is_finite
        if is_wrong.any():
            places = np.argwhere(is_wrong)
            self._refuse(
                len(places),
                (
                    {"loc": f"features[{row}][{dim}]", "msg": self._told(dim, float(rows[row, dim]))}
                    for row, dim in places[:MAX_TOLD].tolist()
                ),
            )
        return converted

    def _check_names(self, features: dict[str, Any]) -> None:
        known = frozenset(self.factors)
        missing = [name for name in self.factors if name not in features]
        unknown = [name for name in features if name not in known]
        if not missing and not unknown:
            return
        counted = [f"{len(names)} {what}" for names, what in ((missing, "missing"), (unknown, "unknown")) if names]
        told = [{"loc": f"features.{name}", "msg": "missing"} for name in missing]
        told += [{"loc": f"features.{_shown(name)}", "msg": "the model has no such factor"} for name in unknown]
        raise FeaturesInvalid(
            reason=f"the features do not fit the model's: {', '.join(counted)}", errors=told[:MAX_TOLD]
        )

    def _row_with_missing(self, values: Sequence[Any]) -> FloatRows | None:
        """The row if all that keeps it from being plain is that some values are missing, and the model takes that; else None."""
        if not self.accepts_missing or bool in map(type, values):
            return None
        try:
            packed = self._pack(*[math.nan if value is None else value for value in values])
        except _BAD_VALUES:
            return None
        row: FloatRows = np.ndarray(self._shape, _FLOAT32, bytearray(packed))
        return None if np.isinf(row).any() else row

    def _slow_row(self, values: Sequence[Any], places: Sequence[str]) -> FloatRows:
        """As `plain_row`, where something is missing or wrong; says what."""
        told: list[dict[str, str]] = []
        numbers: list[float] = []
        for dim, value in enumerate(values):
            number = math.nan if value is None else _number(value)
            numbers.append(math.nan if number is None else number)
            is_missing = number is not None and math.isnan(number)
            if number is None or math.isinf(number) or (is_missing and not self.accepts_missing):
                told.append({"loc": places[dim], "msg": self._told(dim, value)})
        if told:
            self._refuse(len(told), told[:MAX_TOLD])
        return np.array([numbers], dtype=np.float32)

    def _told(self, dim: int, value: Any) -> str:
        name = self.factors[dim]
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return f"{name} is missing, and the model takes no missing values"
        if _number(value) is None:
            return f"{name} is not a number"
        return f"{name} is not finite in float32"

    @staticmethod
    def _refuse(n_wrong: int, told: Iterable[dict[str, str]]) -> None:
        entries = list(told)
        reason = entries[0]["msg"] if n_wrong == 1 else f"{n_wrong} features have no value that the model can take"
        raise FeaturesInvalid(reason=reason, errors=entries)


def _number(value: Any) -> float | None:
    """The value in float32, infinite where that overflows; None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.inf
    except struct.error:
        return math.inf if isinstance(value, int | np.integer) else None


def _shown(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:100]}…"
