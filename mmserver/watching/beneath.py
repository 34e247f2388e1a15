"""Opening files beneath a root directory, so that no symlink, rename or `..` can lead out of it."""

import ctypes
import errno
import functools
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

_SYS_OPENAT2 = 437
"""The same number on every architecture that Linux gave system calls to since 5.6."""
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_MAX_TRIES = 32
"""The kernel answers EAGAIN when a rename anywhere made it unsure that the path stayed beneath."""
_DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(dir_fd: int, relpath: str, flags: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    path = os.fsencode(relpath)
    error_number = errno.EAGAIN
    for _ in range(_MAX_TRIES):
        fd = int(_libc().syscall(_SYS_OPENAT2, dir_fd, path, ctypes.byref(how), ctypes.sizeof(how)))
        if fd >= 0:
            return fd
        error_number = ctypes.get_errno()
        if error_number not in {errno.EAGAIN, errno.EINTR}:
            break
    raise OSError(error_number, os.strerror(error_number), relpath)


def _open_component_wise(dir_fd: int, relpath: str, flags: int) -> int:
    """For kernels and containers without openat2: no symlink is followed, so none can lead out."""
    *parents, name = relpath.split("/")
    if ".." in parents or name == "..":
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), relpath)
    fd = dir_fd
    try:
        for parent in parents:
            parent_fd, fd = fd, os.open(parent, _DIRECTORY_FLAGS | os.O_NOFOLLOW, dir_fd=fd)
            if parent_fd != dir_fd:
                os.close(parent_fd)
        opened = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    finally:
        if fd != dir_fd:
            os.close(fd)
    if stat.S_ISLNK(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), relpath)
    return opened


class RootHandle:
    """An open root directory: goes on meaning the same directory when its path comes to mean another."""

    def __init__(self, path: Path, *, allow_openat2: bool = True) -> None:
        self.path = path
        self.fd = os.open(path, _DIRECTORY_FLAGS)
        status = os.fstat(self.fd)
        self.dev, self.ino = status.st_dev, status.st_ino
        self.follows_symlinks = allow_openat2 and self._has_openat2()

    def open(self, relpath: str, flags: int) -> int:
        """A file descriptor for what `relpath` ("" is the root) means beneath the root; symlinks that stay inside count.

        Raises:
            OSError: EXDEV, a symlink leads out; ELOOP, a symlink that cannot be followed; ENOENT, EACCES, … as open().
        """
        relpath = relpath or "."
        if not self.follows_symlinks:
            return _open_component_wise(self.fd, relpath, flags)
        try:
            return _openat2(self.fd, relpath, flags)
        except OSError as error:
            target = self._absolute_target_inside(relpath) if error.errno == errno.EXDEV else None
            if target is None:
                raise
            return _openat2(self.fd, target, flags)

    def stat(self, relpath: str) -> os.stat_result:
        """The status of what `relpath` means beneath the root, without opening it (a FIFO does not block)."""
        fd = self.open(relpath, os.O_PATH)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let the directory go; the handle cannot be used again."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _has_openat2(self) -> bool:
        try:
            os.close(_openat2(self.fd, ".", _DIRECTORY_FLAGS))
        except OSError:
            return False  # ENOSYS before Linux 5.6; EPERM from a container's system call filter
        return True

    def _absolute_target_inside(self, relpath: str) -> str | None:
        """Where an absolute symlink leads, relative to the root, if by its text it stays inside (the kernel refuses all)."""
        try:
            target = os.readlink(relpath, dir_fd=self.fd)
        except OSError:
            return None
        root = f"{os.path.realpath(self.path)}/"
        return target[len(root) :] or None if target.startswith(root) else None


def open_root(path: Path) -> RootHandle:
    """Open a root directory for scanning and reading beneath it.

    Raises:
        OSError: ENOENT or ENOTDIR, there is no such directory; EACCES and others, it cannot be told.
    """
    return RootHandle(path)
