"""How the values of settings are read: each kind takes what TOML, click or the environment gave, and refuses the rest."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value: `parse` raises ValueError for what it is not, `expects` says what it is."""

    expects: str
    parse: Callable[[object], Any]


def whole(low: int, high: int) -> Kind:
    """Whole numbers from `low` to `high`."""

    def parse(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip(), re.ASCII):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"a whole number from {low} to {high}", parse)


def _quantity(value: object, units: Mapping[str, float]) -> float:
    """The number that `value` means in the unit of a bare number, whether it came as a number or as text."""
    if isinstance(value, str):
        found = _QUANTITY.fullmatch(value.strip())
        if not found or found[2].lower() not in units:
            raise ValueError
        return float(found[1]) * units[found[2].lower()]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return float(value)


def duration(low_s: float) -> Kind:
    """Times of `low_s` or more, as seconds (float)."""

    def parse(value: object) -> float:
        seconds = _quantity(value, _SECONDS)
        if not math.isfinite(seconds) or not low_s <= seconds <= 10 * 365 * 86400:
            raise ValueError
        return seconds

    return Kind(f"a time of {low_s:g} s or more, in seconds or as 500ms, 5s, 2m, 1h, 1d", parse)


def size(low_bytes: int) -> Kind:
    """Sizes of `low_bytes` or more, as bytes (int)."""

    def parse(value: object) -> int:
        size_bytes = _quantity(value, _BYTES)
        if not math.isfinite(size_bytes) or size_bytes != int(size_bytes) or not low_bytes <= size_bytes < 2**60:
            raise ValueError
        return int(size_bytes)

    return Kind(f"a size of {low_bytes} bytes or more, in bytes or as 64KiB, 512MiB, 2GiB", parse)


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if not isinstance(value, str | int) or word not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[word]


def number(low: float, high: float = math.inf) -> Kind:
    """Finite numbers of `low` or more, up to `high`."""

    def parse(value: object) -> float:
        try:
            found = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except OverflowError as error:
            raise ValueError from error
        if not (math.isfinite(found) and low <= found <= high):
            raise ValueError
        return found

    return Kind(f"a number of {low:g} or more" if high == math.inf else f"a number from {low:g} to {high:g}", parse)


def one_of(*words: str) -> Kind:
    """One of `words`, in any case; comes out as spelt here."""

    def parse(value: object) -> str:
        for word in words:
            if isinstance(value, str) and value.strip().lower() == word.lower():
                return word
        raise ValueError

    return Kind(f"one of {', '.join(words)}", parse)


def words_of(*words: str) -> Kind:
    """Some of `words`, in any case; they come out as spelt here."""
    read = one_of(*words).parse

    def parse(value: object) -> tuple[str, ...]:
        return tuple(read(name) for name in _names(value))

    return Kind(f"one or more of {', '.join(words)}, separated by commas (in TOML a list)", parse)


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError from error


def _paths(value: object) -> tuple[Path, ...]:
    if isinstance(value, str):
        value = [part for part in value.split(os.pathsep) if part]
        if not value:
            raise ValueError  # an empty tuple allows every directory: never reach that by a stray separator
    if not isinstance(value, list | tuple):
        raise ValueError
    return tuple(_path(part) for part in value)


def _host(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9A-Za-z.:_%-]{1,255}", value, re.ASCII):
        raise ValueError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 512:
        raise ValueError
    return value.strip()


def _names(value: object) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError
    names = tuple(name for name in map(_text, parts) if name)
    if not names:
        raise ValueError
    return names


def _numbers_by_name(value: object) -> Mapping[str, float]:
    if isinstance(value, str):
        pairs = [part.rpartition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): digits.strip() for name, _, digits in pairs}
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError
    read = number(0).parse
    return {name: read(digits) for name, digits in value.items()}


TEXT = Kind("a word", _text)
NAMES = Kind("one or more names, separated by commas (in TOML a list)", _names)
NUMBERS_BY_NAME = Kind("pairs such as name=0.001, separated by commas (in TOML a table)", _numbers_by_name)
BOOLEAN = Kind("true or false (also yes, no, on, off, 1, 0)", _boolean)
PATH = Kind("a path", _path)
PATHS = Kind(f"one or more directories, separated by {os.pathsep!r} (in TOML a list)", _paths)
HOST = Kind("an address or host name to listen on", _host)


def size_text(size_bytes: int) -> str:
    """A size as a setting takes it: the largest binary unit that divides it."""
    for unit in ("tib", "gib", "mib", "kib"):
        if size_bytes and size_bytes % _BYTES[unit] == 0:
            return f"{size_bytes // _BYTES[unit]}{unit[0].upper()}iB"
    return str(size_bytes)
