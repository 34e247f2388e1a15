"""Reading artifact files into private bytes: what was settled, whole, from one directory, or an error with a stable reason."""

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from mmserver.errors import ArtifactInvalid, ArtifactUnstable, MmserverError
from mmserver.watching.beneath import RootHandle
from mmserver.watching.identities import (
    FileIdentity,
    GroupFiles,
    identity_from_record,
    join_relpath,
    record_from_stat,
)
from mmserver.watching.names import displayed

_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_WallClockNs = Callable[[], int]


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A file's bytes as they were at one moment.

    `read_at_ns` is the wall clock just before the file was opened, to be compared with the file's own timestamps only.
    """

    name: str
    data: bytes
    sha256: str
    identity: FileIdentity
    read_at_ns: int


def read_file(
    root: RootHandle, relpath: str, max_bytes: int, *, wall_clock_ns: _WallClockNs = time.time_ns
) -> ReadFile:
    """Read one file beneath a root.

    Raises:
        ArtifactInvalid: it can only be read after somebody changes it: empty, too_large, not_regular, outside_root.
        ArtifactUnstable: it may be readable later: changing, vanished, unreadable.
    """
    directory, _, name = relpath.rpartition("/")
    with _OpenDirectory(root, directory) as opened:
        found = opened.read(name, None, max_bytes, wall_clock_ns)
        opened.require(name, found.identity)
        return found


def read_group(
    root: RootHandle, group: GroupFiles, max_bytes: int, *, wall_clock_ns: _WallClockNs = time.time_ns
) -> list[ReadFile]:
    """Read a group's files, all from one open directory; each must be what the group says, before, after and at the end.

    Raises:
        ArtifactInvalid, ArtifactUnstable: as read_file; one file that cannot be read refuses the group.
    """
    with _OpenDirectory(root, group.directory) as opened:
        found = [opened.read(name, identity, max_bytes, wall_clock_ns) for name, identity in group.files]
        for name, identity in group.files:
            opened.require(name, identity)
        return found


class _OpenDirectory:
    """A directory held open, so that a symlink on the way to it can be swapped without mixing old and new files."""

    def __init__(self, root: RootHandle, directory: str) -> None:
        self._root = root
        self._directory = directory
        try:
            self._fd = root.open(directory, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            raise self._error("", error) from error

    def __enter__(self) -> "_OpenDirectory":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, name: str, expected: FileIdentity | None, max_bytes: int, wall_clock_ns: _WallClockNs) -> ReadFile:
        """The file's bytes; `expected` is what it was when it settled, None to take it as it is."""
        read_at_ns = wall_clock_ns()
        self._require_regular(name, self._stat(name))  # before the open: opening a device can have effects
        fd = self._open(name)
        try:
            before = os.fstat(fd)
            identity = self._require_regular(name, before)
            if expected is not None and identity != expected:
                raise self._changing(name, "it is not what it was when it settled")
            if not 0 < before.st_size <= max_bytes:
                raise self._wrong_size(name, before.st_size, max_bytes)
            data = self._read_bytes(fd, name, before.st_size)
            if identity_from_record(record_from_stat(os.fstat(fd))) != identity or len(data) != before.st_size:
                raise self._changing(name, "it was written to while it was read")
        finally:
            os.close(fd)
        return ReadFile(name, data, hashlib.sha256(data).hexdigest(), identity, read_at_ns)

    def require(self, name: str, identity: FileIdentity) -> None:
        """Check that the name still means the file with this identity."""
        if self._require_regular(name, self._stat(name)) != identity:
            raise self._changing(name, "it was replaced while it was read")

    def _stat(self, name: str) -> os.stat_result:
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                return self._root.stat(join_relpath(self._directory, name))
        except OSError as error:
            raise self._error(name, error) from error
        return status

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _READ_FLAGS | os.O_NOFOLLOW, dir_fd=self._fd)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise self._error(name, error) from error
        try:
            return self._root.open(join_relpath(self._directory, name), _READ_FLAGS)
        except OSError as error:
            raise self._error(name, error) from error

    def _read_bytes(self, fd: int, name: str, size_bytes: int) -> bytes:
        """One byte more than expected is asked for, to notice growth; one read gives up to 2 GiB."""
        chunks = []
        n_left = size_bytes + 1
        try:
            while n_left > 0 and (chunk := os.read(fd, n_left)):
                chunks.append(chunk)
                n_left -= len(chunk)
        except OSError as error:
            raise self._error(name, error) from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _require_regular(self, name: str, status: os.stat_result) -> FileIdentity:
        if not stat.S_ISREG(status.st_mode):
            raise ArtifactInvalid(file=self._shown(name), reason="not_regular", detail="it is not a regular file")
        return identity_from_record(record_from_stat(status))

    def _wrong_size(self, name: str, size_bytes: int, max_bytes: int) -> MmserverError:
        if size_bytes == 0:
            return ArtifactInvalid(file=self._shown(name), reason="empty", detail="it has no bytes")
        detail = f"it has {size_bytes} bytes, allowed are {max_bytes}"
        return ArtifactInvalid(file=self._shown(name), reason="too_large", detail=detail)

    def _changing(self, name: str, detail: str) -> MmserverError:
        return ArtifactUnstable(file=self._shown(name), reason="changing", detail=detail)

    def _error(self, name: str, error: OSError) -> MmserverError:
        file, detail = self._shown(name), os.strerror(error.errno or 0)
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            return ArtifactUnstable(file=file, reason="vanished", detail=detail)
        if error.errno in {errno.EXDEV, errno.ELOOP}:
            return ArtifactInvalid(file=file, reason="outside_root", detail="a symlink leads out of the root")
        if error.errno in {errno.ENXIO, errno.EISDIR}:
            return ArtifactInvalid(file=file, reason="not_regular", detail="it is not a regular file")
        return ArtifactUnstable(file=file, reason="unreadable", detail=detail)

    def _shown(self, name: str) -> str:
        return displayed(join_relpath(self._directory, name)) or "."
