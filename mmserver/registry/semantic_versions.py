"""Labels of registered versions: semantic versions 2.0.0, and the order in which they come."""

import re
from functools import lru_cache
from typing import TypeAlias

import semver

from mmserver.errors import VersionInvalid

RESERVED = frozenset({"latest", "production", "staging", "archived", "none"})
"""Words that mean a version elsewhere, in any case."""

MAX_LABEL_CHARS = 128

Precedence: TypeAlias = tuple[tuple[int, int, int], bool, tuple[tuple[bool, int, str], ...], bool, str]

_NUMBERS = re.compile(r"[vV]?(\d+)(?:\.(\d+))?(?:\.(\d+))?([-+].*)?", re.ASCII)


def check_label(label: str) -> None:
    """Raises VersionInvalid for what is not a semantic version; the reason says what to write instead."""
    if label.strip().casefold() in RESERVED:
        raise _invalid(
            label, "it means whichever version is there; register a number such as 1.0.0, then set its stage"
        )
    if len(label) > MAX_LABEL_CHARS:
        raise _invalid(label, f"longer than {MAX_LABEL_CHARS} characters")
    if not _is_semantic(label):
        suggestion = _suggestion(label)
        instead = f"write {suggestion}" if suggestion else "write three numbers, such as 1.0.0 or 1.0.0-rc.1"
        raise _invalid(label, f"not a semantic version (MAJOR.MINOR.PATCH, no leading zeros); {instead}")


@lru_cache(maxsize=16384)
def precedence(label: str) -> Precedence:
    """What labels sort by: `1.10.0` after `1.9.0`, pre-releases before their release.

    With the same precedence the one with build metadata sorts first: `1.0.0+int8` is a form of `1.0.0` and not newer.

    Raises:
        ValueError: not a semantic version.

    Source:
        Semantic Versioning 2.0.0, clauses 10 and 11.
    """
    version = semver.Version.parse(label)
    parts = version.prerelease.split(".") if version.prerelease else []
    prerelease = tuple((False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts)
    numbers = (version.major, version.minor, version.patch)
    return (numbers, not parts, prerelease, version.build is None, version.build or "")


def _is_semantic(label: str) -> bool:
    if not label.isascii():  # the parser takes any script's digits
        return False
    try:
        return str(semver.Version.parse(label)) == label
    except ValueError:
        return False


def _suggestion(label: str) -> str | None:
    """`v01.2` → `1.2.0`; None where it cannot be told what was meant."""
    found = _NUMBERS.fullmatch(label.strip())
    if found is None:
        return None
    numbers = ".".join(str(int(number or 0)) for number in found.groups()[:3])
    suggested = numbers + (found.group(4) or "")
    return suggested if _is_semantic(suggested) else None


def _invalid(label: str, reason: str) -> VersionInvalid:
    return VersionInvalid(version=label[:200], reason=reason)
