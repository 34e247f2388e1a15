"""A request's features as the rows that a model takes: in input order, in float32, every value accounted for."""

import math
import struct
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
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

    def __init__(
        self, factors: Sequence[str], *, accepts_missing: bool, row_shape: tuple[int, ...] | None = None
    ) -> None:
        """`row_shape`: what one row is to clients, where it is not flat; the factors name its last axis."""
        self.factors = tuple(map(sys.intern, factors))  # so that two models' are compared by identity
        self.accepts_missing = accepts_missing
        self.row_shape = row_shape or (len(self.factors),)
        self.width = math.prod(self.row_shape)
        """Numbers of a row."""
        self.lengths: tuple[int, ...] = (1, self.width)
        """How long features can be that are not refused for that: a matrix is as long as it has rows."""
        self._shape = (1, self.width)
        self._pack = struct.Struct(f"<{self.width}f").pack
        getter = itemgetter(*self.factors)
        self._values_of = getter if len(self.factors) > 1 else lambda features: (getter(features),)

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
                    {"loc": self._place(row, dim), "msg": self._told(dim, float(rows[row, dim]))}
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

    def _place(self, row: int, dim: int) -> str:
        return f"features[{row}][{dim}]"

    def _name(self, dim: int) -> str:
        return self.factors[dim]

    def _told(self, dim: int, value: Any) -> str:
        name = self._name(dim)
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


class ShapedLayout(RowLayout):
    """Rows of a model whose input is not flat, such as timesteps × features; the row is still flat, row-major."""

    def __init__(self, factors: Sequence[str], *, accepts_missing: bool, row_shape: tuple[int, ...]) -> None:
        super().__init__(factors, accepts_missing=accepts_missing, row_shape=row_shape)
        self._is_matrix = len(row_shape) == 2
        self.lengths = (row_shape[0], self.width) if self._is_matrix else (self.width,)
        self._lines_fit = {row_shape[-1]}.issuperset
        self._expected = f"{shown_shape(row_shape)} numbers"
        if self._is_matrix:
            self._expected = f"a matrix of {row_shape[0]} timesteps, each of {row_shape[1]} features,"

    def plain_row(self, features: Any) -> FloatRows | None:
        """The row if it is a plain one: a matrix of the model's shape, or as many finite numbers; else None."""
        if isinstance(features, dict):
            return None
        if self._is_matrix and len(features) == self.row_shape[0]:
            try:
                if not self._lines_fit(map(len, features)):
                    return None
                features = list(chain.from_iterable(features))
            except TypeError:  # numbers, which may be the row itself
                pass
        return super().plain_row(features)

    def row(self, features: Features) -> FloatRows:
        """The row that a request means, written as a matrix of the model's shape or as one flat list.

        Raises:
            FeaturesInvalid: names every place, up to a bound.
        """
        plain = self.plain_row(features)
        if plain is not None:
            return plain
        if isinstance(features, dict):
            told = f"the model takes {self._expected} by place; it takes no features by name"
            raise FeaturesInvalid(reason=told, errors=[{"loc": "features", "msg": told}])
        if any(isinstance(line, list | tuple) for line in features):
            self._check_matrix(features)
            values: list[Any] = [value for line in features for value in line]  # type: ignore[union-attr]
            n_columns = self.row_shape[-1]
            places: Sequence[str] = _Places(lambda dim: f"features[{dim // n_columns}][{dim % n_columns}]", self.width)
        elif len(features) == self.width:
            values = list(features)
            places = _Places(lambda dim: f"features[{dim}]", self.width)
        else:
            either = f"or its {self.width} numbers in one list" if self._is_matrix else "in one flat list"
            reason = f"{self._expected} {either} are expected, found {len(features)}"
            raise FeaturesInvalid(reason=reason, errors=[{"loc": "features", "msg": reason}])
        with_missing = self._row_with_missing(values)
        return with_missing if with_missing is not None else self._slow_row(values, places)

    def _check_matrix(self, features: Sequence[Any]) -> None:
        """Raises FeaturesInvalid, with the lines that do not fit, unless it is a matrix of the model's shape."""
        if not self._is_matrix:
            reason = f"the model takes {self._expected}: send its {self.width} numbers in one flat list"
            raise FeaturesInvalid(reason=reason, errors=[{"loc": "features", "msg": reason}])
        n_lines, n_columns = self.row_shape
        if len(features) != n_lines:
            reason = f"{self._expected} is expected, found {len(features)} timesteps"
            raise FeaturesInvalid(reason=reason, errors=[{"loc": "features", "msg": reason}])
        told = []
        for at, line in enumerate(features):
            if not isinstance(line, list | tuple):
                told.append({"loc": f"features[{at}]", "msg": f"a list of {n_columns} numbers is expected"})
            elif len(line) != n_columns:
                told.append({"loc": f"features[{at}]", "msg": f"{n_columns} numbers are expected, found {len(line)}"})
        if told:
            first = f"{told[0]['loc']}: {told[0]['msg']}"
            reason = f"{self._expected} is expected; {first if len(told) == 1 else f'{len(told)} timesteps do not fit'}"
            raise FeaturesInvalid(reason=reason, errors=told[:MAX_TOLD])

    def _place(self, row: int, dim: int) -> str:
        within = "".join(f"[{at}]" for at in np.unravel_index(dim, self.row_shape))
        return f"features[{row}]{within}"

    def _name(self, dim: int) -> str:
        line, column = divmod(dim, self.row_shape[-1])
        return f"{self.factors[column]} of timestep {line}" if self._is_matrix else self.factors[column]


class _Places(Sequence[str]):
    """Where each value stands in the request, written out when it is asked for."""

    def __init__(self, place_of: Callable[[int], str], n_values: int) -> None:
        self._place_of = place_of
        self._n_values = n_values

    def __len__(self) -> int:
        return self._n_values

    def __getitem__(self, dim: Any) -> Any:
        return self._place_of(dim)


def row_layout(factors: Sequence[str], row_shape: tuple[int, ...], *, accepts_missing: bool) -> RowLayout:
    """How rows of a model are made whose one row has that shape; the factors name its last axis."""
    if len(row_shape) == 1:
        return RowLayout(factors, accepts_missing=accepts_missing)
    return ShapedLayout(factors, accepts_missing=accepts_missing, row_shape=row_shape)


def shown_shape(row_shape: Sequence[int]) -> str:
    """`60 × 110`."""
    return " × ".join(map(str, row_shape))


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
