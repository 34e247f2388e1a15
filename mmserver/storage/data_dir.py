"""The data directory: where the state is, that one server at a time uses it, and what an interrupted one left behind."""

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from mmserver.errors import DataDirLocked, SettingInvalid
from mmserver.storage.files import disk_errors, fsync_directory

SIDE_FILES = ("-wal", "-shm")  # what SQLite keeps beside a database; they belong to it and move with it


class DataDirLock:
    """The right to use a data directory, until `release` or the end of the process, however it ends.

    The lock is on the directory itself, so that there is no lock file to delete. A forked child would keep it alive: start
    workers by exec (the descriptor is closed there).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DataDirLocked(data_dir=str(path)) from error
            raise SettingInvalid(setting="--data-dir", reason=f"{path} cannot be locked: {error.strerror}") from error

    def fileno(self) -> int:
        """The descriptor that holds the lock; a process that inherits it holds the lock too, for as long as it lives."""
        return self._descriptor

    def is_held(self) -> bool:
        """Whether the locked directory is still the one at its path, not one that was moved away or deleted."""
        if self._descriptor < 0:
            return False
        try:
            there = self._path.stat()
        except OSError:
            return False
        return os.path.samestat(os.fstat(self._descriptor), there)

    def release(self) -> None:
        """Let another server have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class DataDir:
    """The names inside a data directory; nothing is touched before `create`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def database_path(self) -> Path:
        """The database; only SQLite may open it."""
        return self.path / "state.db"

    @property
    def snapshots_dir(self) -> Path:
        """Where snapshots go unless they are sent elsewhere."""
        return self.path / "snapshots"

    def create(self) -> None:
        """Make the directories, for this user only, and prove that files can be made there.

        Raises:
            SettingInvalid: this user may not write there, or it is not a directory.
            DiskFull: the disk is full or read-only.
        """
        probe = self.path / f"probe-{os.getpid()}.tmp"
        try:
            with disk_errors():
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self.snapshots_dir.mkdir(mode=0o700, exist_ok=True)
                probe.write_bytes(b"\n")
                probe.unlink()
        except (FileExistsError, NotADirectoryError) as error:
            raise SettingInvalid(setting="--data-dir", reason=f"{error.filename} is not a directory") from error
        except OSError as error:
            raise SettingInvalid(setting="--data-dir", reason=f"{error.filename}: {error.strerror}") from error

    def lock(self) -> DataDirLock:
        """Take the directory for this process; does not wait.

        Raises:
            DataDirLocked: another process has it.
            SettingInvalid: it is no directory, or on a file system without locks.
        """
        try:
            return DataDirLock(self.path)
        except OSError as error:
            raise SettingInvalid(setting="--data-dir", reason=f"{self.path}: {error.strerror}") from error

    def remove_leftovers(self) -> list[Path]:
        """Clean up after a process that was killed in a snapshot, a restore or the making of the database. Needs the lock.

        A restore that had moved the old database aside but not yet put the new one in its place is undone.

        Returns:
            the files deleted
        """
        self._undo_half_a_restore()
        leftovers = [
            path
            for directory in (self.path, self.snapshots_dir)
            for path in sorted(directory.glob("*.tmp*"))
            if path.is_file() and not path.is_symlink()
        ]
        for path in leftovers:
            path.unlink()
        return leftovers

    def restore_paths(self, stamp: str) -> tuple[Path, Path]:
        """Where a restore builds the new database, and where it keeps the one that was there."""
        name = self.database_path.name
        return self.path / f"{name}.restore-{stamp}.tmp", self.path / f"{name}.broken-{stamp}"

    def move_database(self, source: Path, target: Path) -> None:
        """Move a database with its side files: its own file first, so that it is never at its place without its log."""
        for suffix in ("", *SIDE_FILES):
            _rename_if_there(Path(f"{source}{suffix}"), Path(f"{target}{suffix}"))
        fsync_directory(self.path)

    def _undo_half_a_restore(self) -> None:
        if self.database_path.exists():
            return
        for building in sorted(self.path.glob(f"{self.database_path.name}.restore-*.tmp")):
            stamp = building.name.removeprefix(f"{self.database_path.name}.restore-").removesuffix(".tmp")
            _, broken = self.restore_paths(stamp)
            if broken.exists():
                for suffix in (*SIDE_FILES, ""):  # its own file last: until then this can be done again
                    _rename_if_there(Path(f"{broken}{suffix}"), Path(f"{self.database_path}{suffix}"))
                fsync_directory(self.path)
                return


def _rename_if_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:
        return
