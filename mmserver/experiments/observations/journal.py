"""The journal: each prediction is appended to a file of this process before its answer is sent, so a kill loses none of them.

A written file outlives its process, not a power cut: that is what the page cache gives, for a few microseconds a record.
"""

import errno
import fcntl
import logging
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path

from mmserver.errors import DiskFull, Overloaded
from mmserver.experiments.observations.records import record_from_observation
from mmserver.experiments.observations.values import Observation
from mmserver.storage.files import NO_SPACE

FILE_BYTES = 16 << 20
SUFFIX = ".journal"
_WRITE_BYTES = 256 << 10
_OTHERS_SHARE = 0.5
"""Of the bound: how much may wait to be moved before predictions outside experiments are dropped."""

log = logging.getLogger(__name__)


class Journal:
    """This process's own journal files in a folder that all processes share; any thread may append, without waiting for another.

    A file is locked (flock) for as long as its process lives and writes to it; `mover.Mover` takes what lies in all of them.

    Args:
        limit_bytes: how much may wait to be moved, of all processes; the mover says how much there is now and then.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = 1 << 30, file_bytes: int = FILE_BYTES) -> None:
        self.folder = folder
        self.n_dropped = 0
        self._limit_bytes = limit_bytes
        self._others_limit_bytes = int(limit_bytes * _OTHERS_SHARE)
        self._file_bytes = file_bytes
        self._prefix = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._n_files = 0
        self._size = 0  # of the current file, about: threads may count at the same time
        self._n_unmoved_bytes = 0
        self._is_failing = False
        self._turn_to_roll = threading.Lock()
        self._turn_to_count = threading.Lock()
        self._descriptor = -1

    def append(self, observation: Observation, *, must_keep: bool) -> None:
        """Write one prediction; when this returns, it is kept even if the process is killed at once.

        One that need not be kept is dropped, and counted, where it cannot be kept.

        Raises:
            Overloaded: too much waits to be moved to keep more; the prediction must not be answered.
            DiskFull: the disk is full, read-only or failing; the same.
        """
        self._write([record_from_observation(observation)], must_keep)

    def append_all(self, observations: Iterable[Observation], *, must_keep: bool) -> None:
        """As `append`, for many: one write for some hundreds of them.

        Raises:
            Overloaded, DiskFull: they must be kept, and not all of them could be.
        """
        records: list[bytes] = []
        n_bytes = 0
        for observation in observations:
            record = record_from_observation(observation)
            records.append(record)
            n_bytes += len(record)
            if n_bytes >= _WRITE_BYTES:
                self._write(records, must_keep)
                records, n_bytes = [], 0
        if records:
            self._write(records, must_keep)

    def set_unmoved(self, n_bytes: int) -> None:
        """Say how much of all processes' journals waits to be moved."""
        self._n_unmoved_bytes = n_bytes

    @property
    def n_unmoved_bytes(self) -> int:
        """How much waits, as far as this process knows."""
        return self._n_unmoved_bytes

    def close(self) -> None:
        """Let go of the file; nothing may be appended meanwhile or afterwards."""
        with self._turn_to_roll:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def _say_failing(self, reason: str) -> None:
        """Once, not thousands of times a second."""
        if not self._is_failing:
            self._is_failing = True
            log.warning("predictions cannot be written to the observation log: %s", reason)

    def _write(self, records: Sequence[bytes], must_keep: bool) -> None:
        limit = self._limit_bytes if must_keep else self._others_limit_bytes
        if self._n_unmoved_bytes > limit:
            self._drop(len(records), must_keep, Overloaded(what="the observation log"))
            return
        data = b"".join(records)
        try:
            if self._descriptor < 0 or self._size >= self._file_bytes:
                self._roll()
            n_written = os.write(self._descriptor, data)
        except OSError as error:
            self._say_failing(str(error))
            self._drop(len(records), must_keep, _error_from_os(error))
            return
        self._size += n_written
        self._n_unmoved_bytes += n_written
        if n_written != len(data):
            # What is there of a record is skipped when the file is read, wherever another thread appended meanwhile.
            self._say_failing("the disk took a part of it")
            n_lost = sum(end > n_written for end in accumulate(map(len, records)))
            self._drop(n_lost, must_keep, DiskFull())
        elif self._is_failing:
            self._is_failing = False
            log.info("predictions can be written to the observation log again")

    def _drop(self, n_records: int, must_keep: bool, error: Overloaded | DiskFull) -> None:
        if must_keep:
            raise error
        with self._turn_to_count:
            self.n_dropped += n_records

    def _roll(self) -> None:
        """Begin the next file, unless another thread did. The descriptor's number stays: others may be writing to it now."""
        with self._turn_to_roll:
            if self._descriptor >= 0 and self._size < self._file_bytes:
                return
            opened = self._open_next()
            if self._descriptor < 0:
                self._descriptor = opened
            else:
                os.dup2(opened, self._descriptor, inheritable=False)
                os.close(opened)
            self._size = 0

    def _open_next(self) -> int:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{self._prefix}-{self._n_files:06}{SUFFIX}"
        with names_lock(self.folder):  # between making and locking it, the file looks like one of a process that ended
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._n_files += 1
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor


def _error_from_os(error: OSError) -> Overloaded | DiskFull:
    if error.errno in NO_SPACE or error.errno in (errno.EACCES, errno.EPERM):
        return DiskFull()
    return Overloaded(what="the observation log")  # such as too many open files


# --- what the mover needs of files ----------------------------------------------------------------------------------------


def journal_files(folder: Path) -> list[Path]:
    """All processes' journal files, in the order of their names."""
    return sorted(path for path in folder.glob(f"*{SUFFIX}"))


def size_of(path: Path) -> int:
    """In bytes; 0 where it was deleted meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def locked_if_ended(path: Path) -> Iterator[bool]:
    """Whether nobody writes to the file any more; while inside, nobody else can find that too."""
    with names_lock(path.parent):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = -1
        is_locked = descriptor >= 0 and lock_now(descriptor)
    try:
        yield is_locked
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def lock_now(descriptor: int) -> bool:
    """Lock an open file for this descriptor alone, without waiting; False where another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return False
    return True


@contextmanager
def names_lock(folder: Path) -> Iterator[None]:
    """While inside, no other process or thread makes or deletes a journal file in the folder."""
    descriptor = os.open(folder / "names.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)
