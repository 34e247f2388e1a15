"""Zip archives that models come in: looked through before any library opens them, and refused by the entry that is wrong.

Libraries check neither names nor, some of them, checksums; one that is fooled would read another file than was sent, or memory
without end.
"""

import io
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator

from mmserver.errors import Undecodable
from mmserver.inert.limits import Limits

_BEGINNING = b"PK"
_RATIO_APPLIES_ABOVE = 16 << 20
_IS_ENCRYPTED = 1
_LOCAL_HEADER_BYTES = 30
_MAX_ENTRIES = 100_000
_MAX_NAME = 80
_HOST_WITH_MODES = 3
"""Archives made on Unix say what kind of file an entry was."""


def archive_names(content: bytes, limits: Limits | None = None) -> tuple[str, ...]:
    """The names of the entries of an archive in which nothing is wrong, in the archive's order; none of what is no archive.

    Raises:
        Undecodable: torn or malformed, where it is damaged; unsafe_archive, where an entry has a path that leads out of it, is a
            link, has the name or the place of another, is encrypted, or unpacks to far more than it is.
    """
    if not zipfile.is_zipfile(io.BytesIO(content)):
        if content.startswith(_BEGINNING):
            raise Undecodable("torn", "it begins as an archive, and has no end")
        return ()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            # Of a file that is cut, an archive inside of it may be the last that has an end.
            if content.startswith(_BEGINNING) and min((entry.header_offset for entry in entries), default=0) > 0:
                raise Undecodable("torn", "it begins as an archive, and has no end")
            for wrong in _wrong(entries, limits or Limits()):
                raise Undecodable("unsafe_archive", wrong)
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError, zlib.error) as error:
        raise Undecodable("malformed", f"the archive is damaged: {error}"[:300]) from error
    if damaged is not None:
        raise Undecodable("malformed", f"{_shown(damaged)} is damaged, or was written without its checksum")
    return tuple(entry.filename for entry in entries)


def _wrong(entries: list[zipfile.ZipInfo], limits: Limits) -> Iterator[str]:
    """What is wrong with the entries, in words that name one of them."""
    if len(entries) > _MAX_ENTRIES:
        yield f"it has {len(entries)} entries; at most {_MAX_ENTRIES} are looked at"
    seen: set[str] = set()
    n_bytes, end = 0, 0
    for entry in sorted(entries, key=lambda one: one.header_offset):
        name, n_bytes = entry.orig_filename, n_bytes + entry.file_size
        kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == _HOST_WITH_MODES else 0
        if reason := _wrong_name(name):
            yield f"its entry {_shown(name)} {reason}"
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            what = "a symbolic link" if kind == stat.S_IFLNK else "no ordinary file"
            yield f"its entry {_shown(name)} is {what}"
        if name.casefold() in seen:
            yield f"it has two entries named {_shown(name)}"
        if entry.flag_bits & _IS_ENCRYPTED:
            yield f"its entry {_shown(name)} is encrypted"
        if entry.header_offset < end:
            yield f"its entry {_shown(name)} lies where another lies"
        if n_bytes > limits.max_bytes or (
            entry.file_size > _RATIO_APPLIES_ABOVE and entry.file_size > limits.max_ratio * entry.compress_size
        ):
            sizes = f"{entry.file_size} bytes out of {entry.compress_size}, {n_bytes} with those before it"
            yield f"its entry {_shown(name)} would be {sizes}; at most {limits.max_ratio} times as many, or {limits.max_bytes} in all"
        seen.add(name.casefold())
        end = entry.header_offset + _LOCAL_HEADER_BYTES + entry.compress_size


def _wrong_name(name: str) -> str | None:
    if not name or re.search(r"[\x00-\x1f\x7f]", name):
        return "has no name that can be written"
    if "\\" in name:
        return "has a backslash in its path"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "has an absolute path"
    return "leads out of the archive" if ".." in name.split("/") else None


def _shown(name: str) -> str:
    return repr(name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…")
