"""Which models took the whole process down while a library loaded them: a note on the disk that only a survivor removes."""

import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIRECTORY_NAME = "loading"
MAX_CRASHES = 2
"""After as many, the model is not loaded any more: each attempt could cost everybody the server."""

log = logging.getLogger(__name__)


class CrashLedger:
    """One file for each load that is under way, locked by whoever loads; one that nobody holds is a crash.

    Without a directory, nothing is noted and nothing is known.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def n_crashes(self, sha256: str) -> int:
        """How often a process died while it loaded that content."""
        return len(self._abandoned(sha256))

    @contextmanager
    def noted(self, sha256: str) -> Iterator[None]:
        """Notes that the content is being loaded, until the block ends; a load that succeeds clears what was before.

        A disk that takes no note does not keep the model from being loaded.
        """
        held = self._note(sha256)
        try:
            yield
            self.forget(sha256)
        finally:
            if held is not None:
                descriptor, path = held
                path.unlink(missing_ok=True)
                os.close(descriptor)

    def forget(self, sha256: str) -> None:
        """Load it again, whatever happened."""
        for path in self._abandoned(sha256):
            path.unlink(missing_ok=True)

    def _note(self, sha256: str) -> tuple[int, Path] | None:
        if self._directory is None:
            return None
        token = secrets.token_hex(8)
        path, unlocked = self._directory / f"{sha256}.{token}", self._directory / f".{token}"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            unlocked.rename(path)  # so that nobody sees it without its lock
        except OSError as error:
            log.warning("the crash ledger in %s takes no note: %s", self._directory, error.strerror)
            return None
        return descriptor, path

    def _abandoned(self, sha256: str) -> list[Path]:
        if self._directory is None:
            return []
        return [path for path in self._directory.glob(f"{sha256}.*") if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # its load has just ended
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_nlink > 0  # else its load ended after it was opened here
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
