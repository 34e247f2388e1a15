"""pandas' arrays, dtypes, timestamps and indexes as data, from the layouts that pandas 1.5, 2 and 3 write."""

import datetime as dt
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmserver.errors import Undecodable
from mmserver.inert.arrays import malformed
from mmserver.inert.machine import Global, Machine, Maker, Pending
from mmserver.inert.records import (
    Array,
    ExtensionArray,
    Index,
    Instance,
    Timestamp,
    TimeZone,
    Value,
    Values,
    labels_from_values,
)

_UNIT_BY_RESOLUTION = {7: "s", 8: "ms", 9: "us", 10: "ns"}  # numpy's NPY_DATETIMEUNIT
_INT64 = range(-(1 << 63), 1 << 63)
_MAX_LEVELS = 16
_MAX_RANGE = 1 << 40
_OFFSETS = "pandas._libs.tslibs.offsets"
_CLASS_NAME = re.compile(r"[A-Z][A-Za-z]{0,40}")


@dataclass(frozen=True)
class _ZonedDtype:
    unit: str
    tz: str


@dataclass(frozen=True, eq=False)
class _Categories:
    labels: list[Any]


def state_dict(state: Value, what: str) -> dict[Value, Value]:
    """The state, when it is a dict."""
    if type(state) is not dict:
        raise malformed(f"the state of {what} is a {type(state).__name__}")
    return state


def short_name(value: Value) -> str:
    """The last part of a global's dotted name; refused where the value is no global."""
    if type(value) is not Global:
        raise malformed(f"a {type(value).__name__} where a class is due")
    return value.name.rpartition(".")[2]


# --- dtypes -----------------------------------------------------------------------------------------------------------------


def _bare_dtype(name: str) -> Maker:
    def make(machine: Machine, args: tuple[Value, ...]) -> Instance:
        return machine.opened(Instance(name, args))

    return make


def _zoned_dtype(_: Machine, args: tuple[Value, ...]) -> Pending:
    return Pending("pandas.DatetimeTZDtype", _finish_zoned_dtype)


def _finish_zoned_dtype(_: Machine, state: Value) -> _ZonedDtype:
    fields = state_dict(state, "a datetime dtype")
    unit, tz = fields.get("unit"), zone_name(fields.get("tz"))
    if type(unit) is not str or unit not in _UNIT_BY_RESOLUTION.values() or tz is None:
        raise malformed("the state of a datetime dtype")
    return _ZonedDtype(unit, tz)


def zone_name(zone: Value) -> str | None:
    """The name of a decoded time zone; None for none."""
    if zone is None:
        return None
    if type(zone) is TimeZone:
        return zone.name
    if type(zone) is dt.timezone:
        return str(zone)
    raise malformed(f"a time zone that is a {type(zone).__name__}")


def _category_dtype(_: Machine, args: tuple[Value, ...]) -> Pending:
    return Pending("pandas.CategoricalDtype", _finish_category_dtype)


def _finish_category_dtype(machine: Machine, state: Value) -> _Categories:
    categories = state_dict(state, "a categorical dtype").get("categories")
    if type(categories) is not Index:
        raise malformed("a categorical dtype without categories")
    return _Categories(labels_from_index(machine, categories))


# --- arrays -----------------------------------------------------------------------------------------------------------------


def _backed(_: Machine, args: tuple[Value, ...]) -> Pending:
    if len(args) != 3 or args[2] is not None:
        raise malformed("a pandas array with unexpected arguments")
    kind = short_name(args[0])
    finish = _BACKED.get(kind)
    if finish is None:
        raise Undecodable("unsupported", f"pandas {kind}")
    return Pending(f"pandas.{kind}", lambda machine, state: _finish_backed(machine, state, finish))


def _finish_backed(
    machine: Machine, state: Value, finish: Callable[[Machine, Value, Value], ExtensionArray]
) -> ExtensionArray:
    if type(state) is not tuple or not 2 <= len(state) <= 3:
        raise malformed("the state of a pandas array")
    return finish(machine, state[0], state[1])


def _datetimes(_: Machine, dtype: Value, values: Value) -> ExtensionArray:
    if type(values) is not np.ndarray or values.dtype.kind not in "Mm":
        raise malformed("a datetime array without datetimes")
    if type(dtype) is not _ZonedDtype:
        return ExtensionArray(str(values.dtype), values)
    if values.dtype.kind != "M" or values.dtype.name != f"datetime64[{dtype.unit}]":
        raise malformed("a datetime array in another unit than its dtype's")
    return ExtensionArray(f"datetime64[{dtype.unit}, {dtype.tz}]", values)


def _strings(machine: Machine, dtype: Value, values: Value) -> ExtensionArray:
    if type(values) is not list:
        raise malformed("a text array that is not one-dimensional")
    machine.budget.spend_bytes(8 * len(values))
    texts: list[Any] = [_text_or_none(value) for value in values]
    return ExtensionArray(text_dtype(dtype), texts)


def text_dtype(dtype: Value) -> str:
    """The name of a text dtype: `str` is pandas 3's own, which marks missing entries by NaN."""
    has_nan = type(dtype) is Instance and any(type(arg) is float for arg in dtype.args)
    return "str" if has_nan else "string"


def _text_or_none(value: Value) -> str | None:
    if type(value) is str:
        return value
    if value is None or (type(value) is float and math.isnan(value)):
        return None
    raise malformed(f"a {type(value).__name__} in a text array")


def _categorical(machine: Machine, dtype: Value, codes: Value) -> ExtensionArray:
    if type(dtype) is not _Categories:
        raise malformed("a categorical array without categories")
    return ExtensionArray("category", _picked(machine, dtype.labels, codes))


def _picked(machine: Machine, labels: list[Any], codes: Value) -> list[Any]:
    if type(codes) is not np.ndarray or codes.ndim != 1 or codes.dtype.kind != "i":
        raise malformed("codes that are not a row of integers")
    if codes.size and not (int(codes.min()) >= -1 and int(codes.max()) < len(labels)):
        raise malformed("a code beyond the categories")
    machine.budget.spend_bytes(16 * codes.size + 8 * len(labels))
    with_missing = [*labels, None]
    return [with_missing[code] for code in codes.tolist()]


_BACKED: dict[str, Callable[[Machine, Value, Value], ExtensionArray]] = {
    "DatetimeArray": _datetimes,
    "TimedeltaArray": _datetimes,
    "StringArray": _strings,
    "StringArrayNumpySemantics": _strings,
    "Categorical": _categorical,
}


def _masked(kind: str) -> Maker:
    def make(_: Machine, args: tuple[Value, ...]) -> Pending:
        return Pending(f"pandas.{kind}Array", lambda machine, state: _finish_masked(machine, kind, state))

    return make


def _finish_masked(machine: Machine, kind: str, state: Value) -> ExtensionArray:
    fields = state_dict(state, "a masked array")
    data, mask = fields.get("_data"), fields.get("_mask")
    if type(data) is not np.ndarray or type(mask) is not np.ndarray or data.ndim != 1 or mask.shape != data.shape:
        raise malformed("a masked array whose parts do not fit")
    if mask.dtype.kind != "b" or data.dtype.kind not in "iufb":
        raise malformed("a masked array of unexpected dtypes")
    machine.budget.spend_bytes(16 * data.size)
    values = [None if missing else value for value, missing in zip(data.tolist(), mask.tolist(), strict=True)]
    name = "boolean" if kind == "Boolean" else str(data.dtype).replace("ui", "UI").replace("i", "I", 1)
    return ExtensionArray(name.replace("float", "Float"), values)


# --- timestamps -------------------------------------------------------------------------------------------------------------


def _timestamp(_: Machine, args: tuple[Value, ...]) -> Timestamp:
    if not 3 <= len(args) <= 4 or type(args[0]) is not int or args[0] not in _INT64:
        raise malformed("a Timestamp with unexpected arguments")
    return Timestamp(args[0], _unit(args[3] if len(args) == 4 else 10), zone_name(args[2]))


def _timedelta(_: Machine, args: tuple[Value, ...]) -> np.timedelta64:
    if not 1 <= len(args) <= 2 or type(args[0]) is not int or args[0] not in _INT64:
        raise malformed("a Timedelta with unexpected arguments")
    return np.timedelta64(args[0], _unit(args[1] if len(args) == 2 else 10))  # type: ignore[call-overload,no-any-return]


def _unit(resolution: Value) -> str:
    unit = _UNIT_BY_RESOLUTION.get(resolution) if type(resolution) is int else None
    if unit is None:
        raise malformed("the resolution of a pandas time")
    return unit


def _missing(_: Machine, args: tuple[Value, ...]) -> None:
    return None


# --- indexes ----------------------------------------------------------------------------------------------------------------


def _index(machine: Machine, args: tuple[Value, ...]) -> Index:
    if len(args) != 2:
        raise malformed("a pandas index with unexpected arguments")
    kind, fields = short_name(args[0]), state_dict(args[1], "an index")
    if kind == "RangeIndex":
        return _range_index(fields)
    if kind == "MultiIndex":
        return _multi_index(machine, fields)
    if kind not in _INDEXES:
        raise Undecodable("unsupported", f"pandas {kind}")
    values, dtype = column_from_values(machine, fields.get("data"))
    return Index(values, fields.get("name"), dtype)


def _range_index(fields: dict[Value, Value]) -> Index:
    bounds = [fields.get(key) for key in ("start", "stop", "step")]
    if any(type(bound) is not int or bound not in _INT64 for bound in bounds) or bounds[2] == 0:
        raise malformed("the bounds of a RangeIndex")
    labels = range(*bounds)  # type: ignore[arg-type]
    if (labels.stop - labels.start) // labels.step > _MAX_RANGE:
        raise Undecodable("too_large", f"a RangeIndex of more than {_MAX_RANGE} rows")
    return Index(labels, fields.get("name"), "int64")


def _multi_index(machine: Machine, fields: dict[Value, Value]) -> Index:
    levels, codes, names = (fields.get(key) for key in ("levels", "codes", "names"))
    if type(levels) is not list or type(codes) is not list or type(names) is not list:
        raise malformed("a MultiIndex without its parts")
    if not len(levels) == len(codes) == len(names) <= _MAX_LEVELS or not levels:
        raise malformed("a MultiIndex whose parts do not fit")
    if any(type(level) is not Index for level in levels):
        raise malformed("a level that is not an index")
    columns = [
        _picked(machine, labels_from_index(machine, level), code) for level, code in zip(levels, codes, strict=True)
    ]
    if len({len(column) for column in columns}) != 1:
        raise malformed("the levels of a MultiIndex differ in length")
    return Index(list(zip(*columns, strict=True)), tuple(names), "multi")


def labels_from_index(machine: Machine, index: Index) -> list[Any]:
    """One Python value per label."""
    machine.budget.spend_bytes(16 * len(index))
    return labels_from_values(index.values, index.dtype)


def column_from_values(machine: Machine, values: Value) -> tuple[Array | list[Any], str]:
    """One-dimensional values and the name of their dtype, from whatever a pandas container may hold."""
    if type(values) is ExtensionArray:
        if type(values.values) is np.ndarray and values.values.ndim != 1:
            raise malformed("a column that is not one-dimensional")
        return values.values, values.dtype
    if type(values) is np.ndarray and values.ndim == 1:
        return values, str(values.dtype)
    if type(values) is list:
        machine.budget.spend_bytes(8 * len(values))
        return list(values), "object"
    if type(values) is Index:
        plain: Values = values.values
        return (labels_from_index(machine, values) if isinstance(plain, range) else plain), values.dtype
    raise malformed(f"a column that is a {type(values).__name__}")


_INDEXES = frozenset(
    ("Index", "Int64Index", "UInt64Index", "Float64Index", "DatetimeIndex", "TimedeltaIndex", "CategoricalIndex")
)

# --- the table --------------------------------------------------------------------------------------------------------------

_REFERENCES = {
    "pandas.core.indexes.base": ("Index",),
    "pandas.core.indexes.range": ("RangeIndex",),
    "pandas.core.indexes.numeric": ("Int64Index", "UInt64Index", "Float64Index"),
    "pandas.core.indexes.datetimes": ("DatetimeIndex",),
    "pandas.core.indexes.timedeltas": ("TimedeltaIndex",),
    "pandas.core.indexes.category": ("CategoricalIndex",),
    "pandas.core.indexes.multi": ("MultiIndex",),
    "pandas.core.indexes.interval": ("IntervalIndex",),
    "pandas.core.indexes.period": ("PeriodIndex",),
    "pandas.core.arrays.datetimes": ("DatetimeArray",),
    "pandas.core.arrays.timedeltas": ("TimedeltaArray",),
    "pandas.core.arrays.period": ("PeriodArray",),
    "pandas.core.arrays.categorical": ("Categorical",),
    "pandas.core.arrays.string_": ("StringArray", "StringArrayNumpySemantics"),
}

_MASKED = {
    "Integer": ("integer", ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")),
    "Floating": ("floating", ("Float32", "Float64")),
    "Boolean": ("boolean", ("Boolean",)),
}

_REDUCED: dict[str, Maker] = {
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": _backed,
    "pandas.core.indexes.base._new_Index": _index,
    "pandas.core.indexes.datetimes._new_DatetimeIndex": _index,
    "pandas.core.indexes.timedeltas._new_TimedeltaIndex": _index,
    "pandas.core.indexes.interval._new_IntervalIndex": _index,
    "pandas.core.indexes.period._new_PeriodIndex": _index,
    "pandas._libs.tslibs.timestamps._unpickle_timestamp": _timestamp,
    "pandas._libs.tslibs.timestamps.Timestamp": _timestamp,
    "pandas._libs.tslibs.timedeltas._timedelta_unpickle": _timedelta,
    "pandas._libs.tslibs.nattype._nat_unpickle": _missing,
    "pandas._libs.tslibs.nattype.__nat_unpickle": _missing,
}


def key_from_name(dotted: str) -> tuple[str, str]:
    """(module, name) of a dotted name."""
    module, _, name = dotted.rpartition(".")
    return module, name


def _globals() -> dict[tuple[str, str], Any]:
    found: dict[tuple[str, str], Any] = {
        key_from_name(dotted): Global(dotted, reduce=maker) for dotted, maker in _REDUCED.items()
    }
    for module, names in _REFERENCES.items():
        for name in names:
            for place in (module, "pandas", "pandas.arrays"):
                found[place, name] = Global(f"{place}.{name}")
    for kind, (module, dtypes) in _MASKED.items():
        for place in (f"pandas.core.arrays.{module}", "pandas.arrays"):
            found[place, f"{kind}Array"] = Global(f"{place}.{kind}Array", new=_masked(kind))
        for place in (f"pandas.core.arrays.{module}", "pandas"):
            for name in dtypes:
                found[place, f"{name}Dtype"] = Global(f"{place}.{name}Dtype", new=_bare_dtype(f"pandas.{name}Dtype"))
    string = _bare_dtype("pandas.StringDtype")
    for place in ("pandas", "pandas.core.arrays.string_"):
        found[place, "StringDtype"] = Global(f"{place}.StringDtype", reduce=string, new=string)
    for place in ("pandas", "pandas.core.dtypes.dtypes"):
        found[place, "DatetimeTZDtype"] = Global(f"{place}.DatetimeTZDtype", new=_zoned_dtype)
        found[place, "CategoricalDtype"] = Global(f"{place}.CategoricalDtype", new=_category_dtype)
        period = _bare_dtype("pandas.PeriodDtype")
        found[place, "PeriodDtype"] = Global(f"{place}.PeriodDtype", reduce=period, new=period)
    for place in ("pandas", "pandas._libs.missing"):
        found[place, "NA"] = None
    return found


GLOBALS = _globals()


def offset_from_name(module: str, name: str) -> Global | None:
    """A calendar offset (the `freq` of an index), kept as opaque data."""
    if module != _OFFSETS or not _CLASS_NAME.fullmatch(name):
        return None
    maker = _bare_dtype(f"{module}.{name}")
    return Global(f"{module}.{name}", reduce=maker, new=maker)
