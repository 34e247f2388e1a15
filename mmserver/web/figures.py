"""How values read on pages: four significant digits, UTC times, short hashes. The full value goes into a title."""

import math
from datetime import UTC, datetime

EMPTY = "–"
_LARGE = 10_000.0
_EXACT = 1e15


def number(value: object) -> str:
    """Four significant digits; whole numbers and large ones with thousands separators; a true minus sign."""
    if value is None:
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _signed(f"{value:,}")
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return EMPTY
    if value == 0:
        return "0"
    if _LARGE <= abs(value) < _EXACT:
        return _signed(f"{value:,.0f}")
    return _signed(f"{value:#.4g}".rstrip("."))


def full(value: object) -> str:
    """Every digit, as a program would write it."""
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def utc(moment: datetime) -> str:
    """To the second, in UTC, without saying so: the column or label does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def rfc3339(moment: datetime) -> str:
    """For the `datetime` attribute of a <time>."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(size_bytes: int) -> str:
    """A size in bytes, with the unit that makes it short."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def label(name: object) -> str:
    """A key as a label: underscores become spaces."""
    return str(name).replace("_", " ")


def _signed(text: str) -> str:
    return "\N{MINUS SIGN}" + text[1:] if text.startswith("-") else text
