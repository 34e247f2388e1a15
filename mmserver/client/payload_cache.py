"""Downloaded models on the disk: one file each, put in place whole, and read only if its hash says that it is what was written.

A file is the hex SHA-256 of all that follows, a line of JSON, and the content. Its modification time is when the server last
said that it is current, its access time when it was last used.
"""

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

STALE_NEW_FILE_S = 3600.0
"""A file that was being written that long ago is of a process that was killed."""
_DIGEST_LENGTH = 64


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one download besides its content."""

    key: str
    etag: str
    version: str
    group_key: str
    media_type: str
    fetched_at: datetime


class Cached(msgspec.Struct, frozen=True):
    """An entry with its content. `confirmed_at`: when the server last said that it is current."""

    entry: Entry
    content: bytes
    confirmed_at: datetime


_decode_entry = msgspec.json.Decoder(Entry).decode


class PayloadCache:
    """A directory of downloads. Several processes may share it: the last one to write an entry wins.

    `max_bytes`: with each write, what was not used for the longest time is deleted until no more is left, except what is needed
    while the server is away: the newest content of each model that is in use here.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._in_use: set[Path] = set()

    def hold(self, key: str) -> None:
        """Never delete that entry: it is the newest content of a model that is in use."""
        self._in_use.add(self._path(key))

    def read(self, key: str) -> Cached | None:
        """The entry of that key; None where there is none, or where it is damaged: then it is deleted."""
        path = self._path(key)
        try:
            with path.open("rb") as file:
                confirmed_s = _note_use(file.fileno())
                digest, written = file.read(_DIGEST_LENGTH + 1), file.read()
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("the cached model %s cannot be read: %s", path, error)
            return None
        if digest != hashlib.sha256(written).hexdigest().encode() + b"\n":
            log.warning("the cached model %s is damaged; it is deleted and will be fetched again", path)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        line, _, content = written.partition(b"\n")
        try:
            entry = _decode_entry(line)
        except msgspec.DecodeError:  # of another release
            return None
        if entry.key != key:
            return None
        return Cached(entry, content, datetime.fromtimestamp(confirmed_s, UTC))

    def write(self, entry: Entry, content: bytes) -> None:
        """Put it in place; a disk that cannot take it is logged, for the model itself was downloaded."""
        written = msgspec.json.encode(entry) + b"\n" + content
        path = self._path(entry.key)
        new: str | None = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._delete_stale()
            descriptor, new = tempfile.mkstemp(".new", ".", self._directory)
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(written).hexdigest().encode() + b"\n" + written)
                file.flush()
                os.fsync(file.fileno())
            Path(new).replace(path)
            self._trim(path)
        except OSError as error:
            log.warning("the model cannot be cached in %s: %s", self._directory, error)
            if new is not None:
                with contextlib.suppress(OSError):
                    Path(new).unlink()

    def confirm(self, key: str) -> None:
        """The server has just said that it is current."""
        with contextlib.suppress(OSError):
            os.utime(self._path(key))

    def _path(self, key: str) -> Path:
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()[:40]}.model"

    def _trim(self, newest: Path) -> None:
        found: list[tuple[int, int, Path]] = []
        for path in self._directory.glob("*.model"):
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                stat = path.stat()
                found.append((stat.st_atime_ns, stat.st_size, path))
        n_bytes = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if n_bytes <= self._max_bytes:
                break
            if path != newest and path not in self._in_use:
                path.unlink(missing_ok=True)
                n_bytes -= size

    def _delete_stale(self) -> None:
        for path in self._directory.glob(".*.new"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_NEW_FILE_S:
                    path.unlink()


def _note_use(descriptor: int) -> float:
    """The open entry is used now. When it was confirmed, in seconds since 1970, which stays."""
    stat = os.fstat(descriptor)
    if os.utime in os.supports_fd:
        with contextlib.suppress(OSError):  # on a disk that cannot be written
            os.utime(descriptor, ns=(time.time_ns(), stat.st_mtime_ns))
    return stat.st_mtime
