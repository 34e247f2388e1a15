"""Which models took the whole process down while a library loaded them: a note on the disk that only a survivor removes."""

import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DIRECTORY_NAME = "loading"
MAX_CRASHES = 2
"""After as many, the model is not loaded any more: each attempt could cost everybody the server."""

log = logging.getLogger(__name__)


class CrashLedger:
    """One file for each load that is under way, locked by whoever loads; one that nobody holds is a crash.

    Without a directory, nothing is noted and nothing is known. A disk that fails keeps no model from being loaded: the log says
    once that the ledger is not kept, until it takes a note again.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._is_failing = False
        self._ended: list[tuple[int, Path]] = []
        """Notes of loads that were survived, which the disk did not let go of yet; locked, or they would look like crashes."""
        self._forgotten: set[Path] = set()
        """Crashes that count no more, which the disk did not let go of."""
        self._lock = threading.Lock()

    def n_crashes(self, sha256: str) -> int:
        """How often a process died while it loaded that content."""
        return sum(path not in self._forgotten for path in self._abandoned(sha256))

    @contextmanager
    def noted(self, sha256: str) -> Iterator[None]:
        """Notes that the content is being loaded, until the block ends; a load that succeeds clears what was before."""
        held = self._note(sha256)
        try:
            yield
            self.forget(sha256)
        finally:
            if held is not None:
                self._end(held)

    def forget(self, sha256: str) -> None:
        """Load it again, whatever happened."""
        for path in self._abandoned(sha256):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._forgotten.add(path)
                self._complain(error)

    def _note(self, sha256: str) -> tuple[int, Path] | None:
        if self._directory is None:
            return None
        token = secrets.token_hex(8)
        path, unlocked = self._directory / f"{sha256}.{token}", self._directory / f".{token}"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._complain(error)
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            unlocked.rename(path)  # so that nobody sees it without its lock
        except OSError as error:
            self._complain(error)
            os.close(descriptor)
            with suppress(OSError):
                unlocked.unlink()
            return None
        self._is_failing = False
        return descriptor, path

    def _end(self, note: tuple[int, Path]) -> None:
        """Remove it, and what could not be removed before."""
        with self._lock:
            self._ended = [ended for ended in (*self._ended, note) if not self._is_removed(*ended)]

    def _is_removed(self, descriptor: int, path: Path) -> bool:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)
            return False
        os.close(descriptor)
        return True

    def _complain(self, error: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            log.warning("the crash ledger in %s is not kept: %s", self._directory, error)

    def _abandoned(self, sha256: str) -> list[Path]:
        if self._directory is None:
            return []
        try:
            return [path for path in self._directory.glob(f"{sha256}.*") if _is_abandoned(path)]
        except OSError as error:
            self._complain(error)
            return []


def _is_abandoned(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # its load has just ended
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_nlink > 0  # else its load ended after it was opened here
    except OSError:
        return False  # it is going on, or nobody can tell
    finally:
        os.close(descriptor)
