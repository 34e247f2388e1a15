"""Decoded values as JSON trees, for pages and responses: what JSON cannot say is written as text, null or a short note."""

import datetime as dt
import math
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from mmserver.errors import Undecodable
from mmserver.inert.records import (
    NAT_TICKS,
    TICKS_PER_S,
    Array,
    ExtensionArray,
    Frame,
    Index,
    Instance,
    ObjectArray,
    Series,
    Timestamp,
    TimeZone,
    Value,
    ZonedTime,
    iso_from_ticks,
    ticks_from_datetimes,
    zone_from_dtype,
)

_MICROS_PER_S = 10**6
_JSON_INTEGERS = range(-(1 << 63), 1 << 64)


def to_jsonable(value: Value, max_items: int = 1_000_000, max_depth: int = 64) -> Any:
    """Render a decoded value with dicts, lists, str, int, finite float, bool and None only.

    NaN, ±inf, NaT and NA become null; datetimes RFC 3339 text (`Z` where the instant is known); durations ISO 8601 text;
    a frame {"columns", "rows"} and, unless rows are just numbered, "index"; a series a mapping; bytes {"bytes": count};
    an instance {"instance": class name, "state"}; integers beyond 64 bits text. Keys become text, made unique where two
    would be equal.

    Raises:
        Undecodable: `too_large` above max_items values, `too_complex` above max_depth.
    """
    return _Renderer(max_items).render(value, max_depth)


class _Renderer:
    """One rendering, with what is left of its allowance."""

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items_left = max_items

    def _spend(self, n_items: int) -> None:
        self._items_left -= n_items
        if self._items_left < 0:
            raise Undecodable("too_large", f"more than {self._max_items} values to show")

    def render(self, value: Value, depth: int) -> Any:
        self._spend(1)
        if value is None or type(value) in (bool, str):
            return value
        if depth <= 0:
            raise Undecodable("too_complex", "nested too deep to show")
        if isinstance(value, np.generic):
            return self._array(np.asarray(value), str(value.dtype))
        render = _RENDERERS.get(type(value))
        if render is None:
            raise Undecodable("unsupported", f"a {type(value).__name__} cannot be shown")
        return render(self, value, depth)

    def _integer(self, value: int, _: int) -> int | str:
        return value if value in _JSON_INTEGERS else str(value)

    def _float(self, value: float, _: int) -> float | None:
        return value if math.isfinite(value) else None

    def _complex(self, value: complex, depth: int) -> Any:
        return {"real": self._float(value.real, depth), "imag": self._float(value.imag, depth)}

    def _decimal(self, value: Decimal, _: int) -> float | str | None:
        if not value.is_finite():
            return None
        number = float(value)
        return number if math.isfinite(number) else str(value)

    def _bytes(self, value: bytes | bytearray, _: int) -> dict[str, int]:
        return {"bytes": len(value)}

    def _list(self, value: Iterable[Value], depth: int) -> list[Any]:
        return [self.render(item, depth - 1) for item in value]

    def _set(self, value: Iterable[Value], depth: int) -> list[Any]:
        # Members of different types do not compare; their text does.
        return sorted(self._list(value, depth), key=lambda item: (type(item).__name__, _sortable(item)))

    def _range(self, value: range, depth: int) -> list[Any]:
        self._spend(len(value))
        return list(value)

    def _slice(self, value: slice, _: int) -> dict[str, Any]:
        return {"start": value.start, "stop": value.stop, "step": value.step}

    def _dict(self, value: dict[Value, Value], depth: int) -> dict[str, Any]:
        return self._mapping(value.keys(), self._list(value.values(), depth))

    def _mapping(self, keys: Iterable[Value], values: list[Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        n_by_text: dict[str, int] = {}
        for key, value in zip(keys, values, strict=True):
            text = wanted = self._key(key)
            while text in shown:
                n_by_text[wanted] = n_by_text.get(wanted, 1) + 1
                text = f"{wanted} ({n_by_text[wanted]})"
            shown[text] = value
        return shown

    def _key(self, key: Value) -> str:
        if type(key) is str:
            return key
        if isinstance(key, bytes | bytearray):
            return bytes(key).decode("utf-8", "backslashreplace")
        if type(key) in (tuple, frozenset):
            return ", ".join(self._key(part) for part in key)
        shown = self.render(key, 2)
        return shown if type(shown) is str else str(shown)

    def _iso(self, value: dt.date | dt.time | ZonedTime | Timestamp, _: int) -> str:
        return value.isoformat()

    def _datetime(self, value: dt.datetime, _: int) -> str:
        text = value.isoformat()
        return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text

    def _timedelta(self, value: dt.timedelta, _: int) -> str:
        return _duration((value.days * 86400 + value.seconds) * _MICROS_PER_S + value.microseconds, "us")

    def _text(self, value: dt.timezone | UUID, _: int) -> str:
        return str(value)

    def _zone(self, value: TimeZone, _: int) -> str:
        return value.name

    def _plain_array(self, value: Array, _: int) -> Any:
        return self._array(value, str(value.dtype))

    def _array(self, value: Array, dtype: str) -> Any:
        self._spend(_n_shown(value.shape))
        if value.dtype.fields is not None:
            names = value.dtype.names or ()
            columns = [
                self._array(value[name].reshape(value.size, *value[name].shape[value.ndim :]), "") for name in names
            ]
            rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
            return _nested(rows, value.shape)
        kind = value.dtype.kind
        if kind == "f":
            return _with_nulls(value, ~np.isfinite(value))
        if kind in "Mm":
            return _nested(_times(value.reshape(-1), dtype), value.shape)
        if kind in "cS":
            return _nested([self.render(item, 2) for item in value.reshape(-1).tolist()], value.shape)
        return value.tolist()

    def _objects(self, value: ObjectArray, depth: int) -> Any:
        self._spend(_n_shown(value.shape))
        return _nested(self._list(value.values, depth), value.shape)

    def _column(self, values: Array | list[Any] | range, dtype: str, depth: int) -> list[Any]:
        if isinstance(values, np.ndarray):
            shown: list[Any] = self._array(values, dtype)
            return shown
        return self._range(values, depth) if isinstance(values, range) else self._list(values, depth)

    def _extension(self, value: ExtensionArray, depth: int) -> list[Any]:
        return self._column(value.values, value.dtype, depth)

    def _index(self, value: Index, depth: int) -> list[Any]:
        return self._column(value.values, value.dtype, depth)

    def _series(self, value: Series, depth: int) -> dict[str, Any]:
        keys = value.index.values if isinstance(value.index.values, list) else self._index(value.index, depth)
        return self._mapping(keys, self._column(value.values, value.dtype, depth))

    def _frame(self, value: Frame, depth: int) -> dict[str, Any]:
        columns = [self._column(data, dtype, depth) for data, dtype in zip(value.data, value.dtypes, strict=True)]
        labels = [self._key(label) for label in value.columns]
        self._spend(len(value))
        rows = [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in range(len(value))]
        shown: dict[str, Any] = {"columns": labels, "rows": rows}
        if value.index.values != range(len(value)) if isinstance(value.index.values, range) else True:
            shown["index"] = self._index(value.index, depth)
        return shown

    def _instance(self, value: Instance, depth: int) -> dict[str, Any]:
        shown = {"instance": value.global_name, "state": self.render(value.state, depth - 1)}
        return {**shown, "args": self._list(value.args, depth - 1)} if value.args else shown


def _sortable(item: Any) -> Any:
    return item if isinstance(item, str | int | float) else str(item)


def _n_shown(shape: tuple[int, ...]) -> int:
    """How many list entries an array becomes, counting the lists themselves."""
    n_items = n_total = 1
    for extent in shape:
        n_items *= extent
        n_total += n_items
    return n_total


def _nested(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    for extent in reversed(shape[1:]):
        n_lists = len(flat) // extent if extent else math.prod(shape[: shape.index(0)])
        flat = [flat[at * extent : (at + 1) * extent] for at in range(n_lists)]
    return flat


def _with_nulls(value: Array, missing: Array) -> Any:
    if not missing.any():
        return value.tolist()
    flat = [
        None if is_missing else item for item, is_missing in zip(value.ravel().tolist(), missing.ravel(), strict=True)
    ]
    return _nested(flat, value.shape)


def _times(flat: Array, dtype: str) -> list[str | None]:
    ticks, unit = ticks_from_datetimes(flat)
    if flat.dtype.kind == "m":
        return [None if tick == NAT_TICKS else _duration(tick, unit) for tick in ticks]
    suffix = "Z" if zone_from_dtype(dtype) else ""
    return [None if tick == NAT_TICKS else iso_from_ticks(tick, unit) + suffix for tick in ticks]


def _duration(ticks: int, unit: str) -> str:
    seconds = Decimal(abs(ticks)) / TICKS_PER_S[unit]
    return f"{'-' if ticks < 0 else ''}PT{seconds.normalize():f}S"


_RENDERERS: dict[type, Callable[[_Renderer, Any, int], Any]] = {
    int: _Renderer._integer,
    float: _Renderer._float,
    complex: _Renderer._complex,
    bytes: _Renderer._bytes,
    bytearray: _Renderer._bytes,
    list: _Renderer._list,
    tuple: _Renderer._list,
    set: _Renderer._set,
    frozenset: _Renderer._set,
    dict: _Renderer._dict,
    range: _Renderer._range,
    slice: _Renderer._slice,
    Decimal: _Renderer._decimal,
    UUID: _Renderer._text,
    dt.datetime: _Renderer._datetime,
    dt.date: _Renderer._iso,
    dt.time: _Renderer._iso,
    dt.timedelta: _Renderer._timedelta,
    dt.timezone: _Renderer._text,
    Timestamp: _Renderer._iso,
    TimeZone: _Renderer._zone,
    ZonedTime: _Renderer._iso,
    np.ndarray: _Renderer._plain_array,
    ObjectArray: _Renderer._objects,
    ExtensionArray: _Renderer._extension,
    Index: _Renderer._index,
    Series: _Renderer._series,
    Frame: _Renderer._frame,
    Instance: _Renderer._instance,
}
