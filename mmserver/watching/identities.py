"""What a file on disk is known by without reading it, and what files make a group."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

StatRecord = tuple[int, int, int, int, int, int]
"""mode, then the fields of FileIdentity; a plain tuple because a scan makes one for every file."""

record_from_stat: Callable[[os.stat_result], StatRecord] = attrgetter(
    "st_mode", "st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"
)


class FileIdentity(NamedTuple):
    """Equal identities mean "probably unchanged"; only equal SHA-256 mean "the same content".

    All five are needed: `utime` restores mtime but not ctime, a rename keeps mtime but not ino, and an ino is
    used again at once after an unlink.
    """

    dev: int
    ino: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


def identity_from_record(record: StatRecord) -> FileIdentity:
    """The identity in a stat record."""
    return FileIdentity(*record[1:])


@dataclass(frozen=True, slots=True)
class GroupFiles:
    """The files of one group, all in one directory; two of them are equal when no file's identity differs.

    `directory` is relative to the root, "" for the root itself; `files` has each file's name and identity, by name.
    """

    group_key: str
    directory: str
    files: tuple[tuple[str, FileIdentity], ...]

    @property
    def relpaths(self) -> tuple[str, ...]:
        """The files' paths relative to the root."""
        return tuple(join_relpath(self.directory, name) for name, _ in self.files)


@dataclass(frozen=True, slots=True)
class LoadedGroup:
    """A group as it was when its bytes were last read.

    `read_at_ns` is wall-clock time, because it is compared with the files' own timestamps and with nothing else.
    """

    group: GroupFiles
    read_at_ns: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a root that is not served, and why.

    `reason` is a stable word: duplicate_group, bad_name, not_regular, outside_root, unreadable, vanished, truncated.
    `path` is relative to the root and safe to show: what cannot be printed is escaped.
    """

    reason: str
    path: str
    detail: str
    group_key: str | None = None


def join_relpath(directory: str, name: str) -> str:
    """The path of a name in a directory, both relative to the root."""
    return f"{directory}/{name}" if directory else name
