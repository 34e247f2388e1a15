"""What decoded pickles consist of where plain Python and numpy values cannot say it; all of it is data, none of it acts."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Value: TypeAlias = Any
Array: TypeAlias = np.ndarray[Any, Any]
Values: TypeAlias = Array | list[Any] | range

TICKS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_FRACTION_DIGITS = {"s": 0, "ms": 3, "us": 6, "ns": 9}
_EPOCH = dt.datetime(1970, 1, 1)


def iso_from_ticks(ticks: int, unit: str) -> str:
    """RFC 3339 text without an offset; years outside 1..9999 give the bare count with its unit."""
    seconds, fraction = divmod(ticks, TICKS_PER_S[unit])
    try:
        text = (_EPOCH + dt.timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return f"{ticks} {unit} since 1970"
    digits = f"{fraction:0{_FRACTION_DIGITS[unit]}d}".rstrip("0") if fraction else ""
    return f"{text}.{digits}" if digits else text


@dataclass(frozen=True)
class Timestamp:
    """A pandas Timestamp: `ticks` of `unit` (s, ms, us, ns) since 1970, UTC where `tz` is set, else a bare wall clock."""

    ticks: int
    unit: str
    tz: str | None = None

    def __hash__(self) -> int:
        # Text hashes are keyed per process, so a file cannot choose timestamps that collide in a dict.
        return hash(f"{self.ticks} {self.unit} {self.tz}")

    def isoformat(self) -> str:
        """RFC 3339 text, to the nanosecond; with `Z` where the time zone is known."""
        return iso_from_ticks(self.ticks, self.unit) + ("Z" if self.tz is not None else "")


@dataclass(frozen=True)
class TimeZone:
    """A zone known by name only; looking it up would open files."""

    name: str


@dataclass(frozen=True)
class ZonedTime:
    """A datetime or time on the wall clock of a zone known by name only."""

    wall: dt.datetime | dt.time
    tz: str

    def isoformat(self) -> str:
        """The wall clock with the zone's name in brackets."""
        return f"{self.wall.isoformat()}[{self.tz}]"


@dataclass(frozen=True, eq=False)
class ObjectArray:
    """An object array that is not one-dimensional: `values` in C order."""

    shape: tuple[int, ...]
    values: list[Any]


@dataclass(frozen=True, eq=False)
class ExtensionArray:
    """A pandas array: missing entries are None in a list, NaT in a datetime array, whose ticks are UTC when zoned."""

    dtype: str
    values: Array | list[Any]


@dataclass(frozen=True, eq=False)
class Index:
    """Row or column labels; a MultiIndex has tuples as values and a tuple as name."""

    values: Values
    name: Any
    dtype: str

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, eq=False)
class Series:
    """A pandas Series as data."""

    name: Any
    index: Index
    values: Array | list[Any]
    dtype: str

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class Frame:
    """A pandas DataFrame as data.

    Shapes:
        columns, data, dtypes: one entry per column, in order; names may repeat.
        data[i]: one value per row; ndarray, or list where numpy has no fitting type (None: missing).
    """

    columns: list[Any]
    index: Index
    data: list[Array | list[Any]]
    dtypes: list[str]

    def __len__(self) -> int:
        return len(self.index)

    def column(self, name: Any) -> Array | list[Any]:
        """The values of the first column of that name; KeyError where there is none."""
        for label, values in zip(self.columns, self.data, strict=True):
            if label == name:
                return values
        raise KeyError(name)


@dataclass(eq=False)
class Instance:
    """An object of an allowed class, kept as data: what it was called with and its state, never the object itself."""

    global_name: str
    args: tuple[Any, ...] = ()
    state: Any = field(default=None)


def zone_from_dtype(dtype: str) -> str | None:
    """The zone in the name of a datetime dtype; None for a bare wall clock."""
    return dtype.partition(", ")[2].rstrip("]") or None


def ticks_from_datetimes(values: Array) -> tuple[list[int], str]:
    """Counts since 1970 (or lengths, for timedeltas) and their unit: s, ms, us or ns. NaT is the smallest int64."""
    unit, number = np.datetime_data(values.dtype)
    if unit not in TICKS_PER_S or number != 1:
        unit, values = "s", values.astype(f"{values.dtype.kind}8[s]")
    ticks: list[int] = values.astype(np.int64).tolist()
    return ticks, unit


NAT_TICKS = -(1 << 63)


def labels_from_values(values: Values, dtype: str) -> list[Any]:
    """One Python value per entry: datetimes as Timestamp, missing ones as None."""
    if isinstance(values, range | list):
        return list(values)
    if values.dtype.kind == "M":
        ticks, unit = ticks_from_datetimes(values)
        zone = zone_from_dtype(dtype)
        return [None if tick == NAT_TICKS else Timestamp(tick, unit, zone) for tick in ticks]
    if values.dtype.kind == "m":
        return list(values)
    labels: list[Any] = values.tolist()
    return labels
