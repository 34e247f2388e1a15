"""Files that must survive a power cut: what to fsync, and what an operating system's error about space means.

Never used on a live database: that is SQLite's alone to open.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmserver.errors import DiskFull

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""The disk is full, read-only or failing."""


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise DiskFull in place of an OSError that says that the disk is full, read-only or failing."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise DiskFull() from error


def fsync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    _fsync(path, os.O_RDONLY)


def fsync_directory(path: Path) -> None:
    """Wait until the names in the directory are on the disk: a rename is durable only then."""
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
