"""The standard library's values: our own code stands in for each constructor that a pickle may name."""

import datetime as dt
import decimal
import pathlib
import uuid
from typing import Any

from mmserver.errors import Undecodable
from mmserver.inert.arrays import bytes_from, is_global, is_text, malformed
from mmserver.inert.machine import Global, Machine, Maker, Pending
from mmserver.inert.records import TimeZone, Value, ZonedTime

_MAX_DECIMAL_LENGTH = 200
_MAX_ZONE_LENGTH = 64
_FOLD = 0x80  # the top bit of the month (datetime) or hour (time) byte
_UTC_NAMES = frozenset(("UTC", "Etc/UTC", "Zulu", "Etc/Zulu"))
_FACTORIES = ("list", "dict", "set", "int", "float", "str", "bool", "tuple")


def _is_ints(values: tuple[Value, ...]) -> bool:
    return all(type(value) is int for value in values)


# --- builtins and collections ---------------------------------------------------------------------------------------------


def _encode(machine: Machine, args: tuple[Value, ...]) -> bytes:
    if len(args) != 2 or type(args[0]) is not str or not is_text(args[1], "latin1", "latin-1"):
        raise malformed("_codecs.encode with anything but text and latin1")
    machine.budget.spend_bytes(len(args[0]))
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise malformed("bytes written as text beyond latin1") from error


def _bytearray(machine: Machine, args: tuple[Value, ...]) -> bytearray:
    if not args:
        return bytearray()
    if len(args) == 2 and type(args[0]) is str:
        return bytearray(_encode(machine, args))
    if len(args) != 1:
        raise malformed("bytearray with unexpected arguments")
    raw = bytes_from(args[0], "a bytearray's content")
    machine.budget.spend_bytes(len(raw))
    return bytearray(raw)


def _bytes(machine: Machine, args: tuple[Value, ...]) -> bytes:
    return bytes(_bytearray(machine, args))


def _listed(machine: Machine, args: tuple[Value, ...]) -> list[Value]:
    if not args:
        return []
    if len(args) != 1 or type(args[0]) not in (list, tuple):
        raise malformed("a collection made from anything but a list")
    machine.budget.spend_bytes(8 * len(args[0]))
    return list(args[0])


def _set(machine: Machine, args: tuple[Value, ...]) -> set[Value]:
    filled: set[Value] = set()
    machine.fill_set(filled, _listed(machine, args))
    return filled


def _frozenset(machine: Machine, args: tuple[Value, ...]) -> frozenset[Value]:
    return frozenset(_set(machine, args))


def _ordered(machine: Machine, args: tuple[Value, ...]) -> dict[Value, Value]:
    pairs = _listed(machine, args)
    if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise malformed("an OrderedDict made from anything but pairs")
    filled: dict[Value, Value] = {}
    machine.fill_dict(filled, [item for pair in pairs for item in pair])
    return filled


def _defaulted(_: Machine, args: tuple[Value, ...]) -> dict[Value, Value]:
    if len(args) > 1 or (args and args[0] is not None and type(args[0]) is not Global):
        raise malformed("a defaultdict with unexpected arguments")
    return {}


def _counter(machine: Machine, args: tuple[Value, ...]) -> dict[Value, Value]:
    if len(args) > 1 or (args and type(args[0]) is not dict):
        raise malformed("a Counter made from anything but a dict")
    counts: dict[Value, Value] = args[0] if args else {}
    machine.budget.spend_bytes(32 * len(counts))
    return dict(counts)


def _deque(machine: Machine, args: tuple[Value, ...]) -> list[Value]:
    return _listed(machine, args[:1])


def _slice(_: Machine, args: tuple[Value, ...]) -> slice:
    if len(args) != 3 or any(part is not None and type(part) is not int for part in args):
        raise malformed("a slice with unexpected arguments")
    return slice(*args)


def _range(_: Machine, args: tuple[Value, ...]) -> range:
    if len(args) != 3 or not _is_ints(args) or args[2] == 0:
        raise malformed("a range with unexpected arguments")
    return range(*args)


def _complex(_: Machine, args: tuple[Value, ...]) -> complex:
    if len(args) != 2 or any(type(part) is not float for part in args):
        raise malformed("a complex number with unexpected arguments")
    return complex(args[0], args[1])


def _decimal(_: Machine, args: tuple[Value, ...]) -> decimal.Decimal:
    if len(args) != 1 or type(args[0]) is not str or len(args[0]) > _MAX_DECIMAL_LENGTH:
        raise malformed("a Decimal with unexpected arguments")
    try:
        return decimal.Decimal(args[0])
    except decimal.InvalidOperation as error:
        raise malformed("a Decimal that is not a number") from error


def _uuid(_: Machine, args: tuple[Value, ...]) -> Pending:
    if args:
        raise malformed("a UUID with unexpected arguments")
    return Pending("uuid.UUID", _finish_uuid)


def _finish_uuid(_: Machine, state: Value) -> uuid.UUID:
    number = state.get("int") if type(state) is dict else None
    if type(number) is not int or not 0 <= number < 1 << 128:
        raise malformed("the state of a UUID")
    return uuid.UUID(int=number)


def _posix_path(machine: Machine, args: tuple[Value, ...]) -> str:
    return str(pathlib.PurePosixPath(*_parts(args)))


def _windows_path(machine: Machine, args: tuple[Value, ...]) -> str:
    return str(pathlib.PureWindowsPath(*_parts(args)))


def _parts(args: tuple[Value, ...]) -> tuple[str, ...]:
    if any(type(part) is not str for part in args):
        raise malformed("a path whose parts are not text")
    return args


# --- dates and times --------------------------------------------------------------------------------------------------------


def _packed(args: tuple[Value, ...], size: int, what: str) -> tuple[bytes, dt.tzinfo | TimeZone | None]:
    if not 1 <= len(args) <= 2 or type(args[0]) is not bytes or len(args[0]) != size:
        raise malformed(f"a {what} with unexpected arguments")
    zone = args[1] if len(args) == 2 else None
    if zone is not None and type(zone) not in (dt.timezone, TimeZone):
        raise malformed(f"a {what} with a time zone that is a {type(zone).__name__}")
    return args[0], zone


def _datetime(_: Machine, args: tuple[Value, ...]) -> dt.datetime | ZonedTime:
    raw, zone = _packed(args, 10, "datetime")
    year, month, fold = raw[0] * 256 + raw[1], raw[2] & ~_FOLD, int(raw[2] >= _FOLD)
    micros = int.from_bytes(raw[7:10], "big")
    try:
        wall = dt.datetime(year, month, raw[3], raw[4], raw[5], raw[6], micros, fold=fold)
    except ValueError as error:
        raise malformed("a datetime out of range") from error
    return ZonedTime(wall, zone.name) if isinstance(zone, TimeZone) else wall.replace(tzinfo=zone)


def _time(_: Machine, args: tuple[Value, ...]) -> dt.time | ZonedTime:
    raw, zone = _packed(args, 6, "time")
    micros = int.from_bytes(raw[3:6], "big")
    try:
        wall = dt.time(raw[0] & ~_FOLD, raw[1], raw[2], micros, fold=int(raw[0] >= _FOLD))
    except ValueError as error:
        raise malformed("a time out of range") from error
    return ZonedTime(wall, zone.name) if isinstance(zone, TimeZone) else wall.replace(tzinfo=zone)


def _date(_: Machine, args: tuple[Value, ...]) -> dt.date:
    raw, _zone = _packed(args[:1], 4, "date")
    try:
        return dt.date(raw[0] * 256 + raw[1], raw[2], raw[3])
    except ValueError as error:
        raise malformed("a date out of range") from error


def _timedelta(_: Machine, args: tuple[Value, ...]) -> dt.timedelta:
    if len(args) > 3 or not _is_ints(args):
        raise malformed("a timedelta with unexpected arguments")
    try:
        return dt.timedelta(*args)
    except OverflowError as error:
        raise malformed("a timedelta out of range") from error


def _timezone(_: Machine, args: tuple[Value, ...]) -> dt.timezone:
    if not 1 <= len(args) <= 2 or type(args[0]) is not dt.timedelta or any(type(name) is not str for name in args[1:]):
        raise malformed("a timezone with unexpected arguments")
    try:
        return dt.timezone(*args)
    except ValueError as error:
        raise malformed("a timezone out of range") from error


def zone_from_name(name: Value) -> dt.timezone | TimeZone:
    """UTC itself for its names, else the bare name."""
    if type(name) is not str or not 0 < len(name) <= _MAX_ZONE_LENGTH or not name.isprintable():
        raise malformed("the name of a time zone")
    return dt.UTC if name in _UTC_NAMES else TimeZone(name)


def _named_zone(_: Machine, args: tuple[Value, ...]) -> dt.timezone | TimeZone:
    return zone_from_name(args[0] if args else None)


def _utc(_: Machine, args: tuple[Value, ...]) -> dt.timezone:
    if args:
        raise malformed("UTC with arguments")
    return dt.UTC


_UNPICKLE_ZONE = Global("zoneinfo.ZoneInfo._unpickle", reduce=_named_zone)


def _getattr(_: Machine, args: tuple[Value, ...]) -> Global:
    if len(args) == 2 and is_global(args[0], "zoneinfo.ZoneInfo") and is_text(args[1], "_unpickle"):
        return _UNPICKLE_ZONE
    raise Undecodable("forbidden_global", "builtins.getattr")


# --- the table --------------------------------------------------------------------------------------------------------------

_REDUCED: dict[tuple[str, str], Maker] = {
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): _defaulted,
    ("collections", "Counter"): _counter,
    ("collections", "deque"): _deque,
    ("decimal", "Decimal"): _decimal,
    ("datetime", "datetime"): _datetime,
    ("datetime", "date"): _date,
    ("datetime", "time"): _time,
    ("datetime", "timedelta"): _timedelta,
    ("datetime", "timezone"): _timezone,
    ("pytz", "_UTC"): _utc,
    ("pytz", "_p"): _named_zone,
}

_BUILTINS: dict[str, Maker] = {
    "bytearray": _bytearray,
    "bytes": _bytes,
    "set": _set,
    "frozenset": _frozenset,
    "slice": _slice,
    "range": _range,
    "xrange": _range,
    "complex": _complex,
    "getattr": _getattr,
}

_PATHS: dict[str, Maker] = {
    "PosixPath": _posix_path,
    "PurePosixPath": _posix_path,
    "WindowsPath": _windows_path,
    "PureWindowsPath": _windows_path,
}


def _globals() -> dict[tuple[str, str], Any]:
    found = {(module, name): Global(f"{module}.{name}", reduce=maker) for (module, name), maker in _REDUCED.items()}
    for module in ("builtins", "__builtin__"):
        for name in _FACTORIES:
            found[module, name] = Global(f"{module}.{name}")
        for name, maker in _BUILTINS.items():
            found[module, name] = Global(f"{module}.{name}", reduce=maker)
    for module in ("pathlib", "pathlib._local"):
        for name, maker in _PATHS.items():
            found[module, name] = Global(f"{module}.{name}", reduce=maker)
    found["zoneinfo", "ZoneInfo"] = Global("zoneinfo.ZoneInfo")
    found["uuid", "UUID"] = Global("uuid.UUID", new=_uuid)
    return found


GLOBALS = _globals()
