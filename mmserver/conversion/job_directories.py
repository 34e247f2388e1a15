"""Where a form is made: a directory that goes with its process, or when the next one looks, if the process had no time to.

Who uses a directory holds a lock on it, which ends with the process however that ends. So what is not locked is left over.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "mmserver-optimize-"
_MAX_TRIES = 10

log = logging.getLogger(__name__)


@contextmanager
def job_directory() -> Iterator[Path]:
    """A new directory for this user only, which is removed afterwards with whatever lies in it."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as name:
        path = Path(name)
        lock = _locked(path)
        try:
            yield path
        finally:
            os.close(lock)


def remove_leftovers() -> list[Path]:
    """Remove the directories of processes that ended without doing so; those of other users are left alone.

    Returns:
        the directories removed
    """
    removed = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with suppress(OSError):  # in use, gone meanwhile, a link, or on a file system without locks
            descriptor = _opened(path)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                    removed.append(path)
            finally:
                os.close(descriptor)
    if removed:
        log.info("removed %d directories that optimisations had left behind", len(removed))
    return removed


def _locked(path: Path) -> int:
    """A descriptor of the directory; who took it for a leftover before it was locked finds it made again."""
    for _ in range(_MAX_TRIES):
        with suppress(FileNotFoundError):
            descriptor = _opened(path)
            with suppress(OSError):  # without locks nobody removes it either
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
            os.close(descriptor)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
    raise FileNotFoundError(f"{path} is removed again and again")


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
