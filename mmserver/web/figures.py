"""How values read on pages: four significant digits, UTC times, short hashes. The full value goes into a title."""

import math
from datetime import UTC, datetime

EMPTY = "–"
STATUS_SIGNS = {"ok": "✓", "degraded": "△", "stale": "✕", "frozen": "‖"}
"""Beside the word, so that no status is told by colour alone."""
_LARGE = 1000.0
_EXACT = 1e15


def number(value: object) -> str:
    """Four significant digits; whole numbers and large ones with thousands separators; a true minus sign."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _signed(f"{value:,}")
    if isinstance(value, float):
        return _signed(_rounded(value)) if math.isfinite(value) else EMPTY
    return EMPTY if value is None else str(value)


def _rounded(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if _LARGE <= abs(value) < _EXACT else f"{value:#.4g}".rstrip(".")


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
