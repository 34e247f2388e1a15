"""Files and links beneath one directory that others may write to as well: what is written is whole, and no link is followed.

Every name is looked up in an open directory, never by a path, so that a link that somebody plants leads nowhere. Names that
begin with `.mmserver-` are ours, and left over where nobody holds the lock.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

TEMPORARY = ".mmserver-"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SYMLINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
_NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError)
_RETRY_S = 0.02


@contextmanager
def opened_root(path: Path) -> Iterator[int]:
    """The directory beneath which everything is, made if need be, as a descriptor."""
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a link of the operator's is followed
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened_directory(within: int, name: str, *, makes: bool = False) -> Iterator[int]:
    """The directory of that name in another, as a descriptor.

    Raises:
        FileNotFoundError: there is none, and none was to be made.
        NotADirectoryError: something else has that name, such as a link.
    """
    if makes:
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=within)
    descriptor = os.open(name, _DIRECTORY, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked_directory(within: int, name: str, timeout_s: float, *, makes: bool = False) -> Iterator[int]:
    """As `opened_directory`, and nobody else has it locked, in any process.

    Raises:
        TimeoutError: somebody else has it locked for that long already.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with opened_directory(within, name, makes=makes) as descriptor:
            if _is_locked(descriptor) and _is_at(descriptor, within, name):
                yield descriptor
                return
        if time.monotonic() >= deadline:
            raise TimeoutError(errno.ETIMEDOUT, "somebody else is writing to it")
        time.sleep(_RETRY_S)


@contextmanager
def opened_parent(within: int, path: str, *, makes: bool = False) -> Iterator[tuple[int, str]]:
    """The directory that holds what `a/b/c` means beneath another, and the name in there."""
    first, slash, rest = path.partition("/")
    if not slash:
        yield within, path
        return
    with (
        opened_directory(within, first, makes=makes) as descriptor,
        opened_parent(descriptor, rest, makes=makes) as found,
    ):
        yield found


def is_there(within: int, name: str) -> bool:
    """Whether anything has that name, a link to nothing too."""
    try:
        os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def is_beneath(path: str) -> bool:
    """Whether a relative path can only mean something beneath where it starts."""
    return "\0" not in path and "\\" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def size_of_file(within: int, path: str) -> int | None:
    """In bytes; None where no regular file is there."""
    try:
        with opened_parent(within, path) as (parent, name):
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def read_file(within: int, path: str, limit_bytes: int) -> bytes | None:
    """The bytes of a regular file; None where there is none, or it is larger than that.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        with opened_parent(within, path) as (parent, name):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if isinstance(error, _NO_SUCH_FILE) or error.errno in (errno.ELOOP, errno.ENXIO):
            return None
        raise
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        content = file.read(limit_bytes + 1)
    return content if len(content) <= limit_bytes else None


def write_file(within: int, path: str, content: bytes, *, syncs_directory: bool = True) -> None:
    """Put a file there, whole at any moment: under another name first, on the disk, then renamed.

    Without `syncs_directory` the file that was there before may be back after a power cut.
    """
    with opened_parent(within, path, makes=True) as (parent, name):
        temporary = temporary_name()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o666, dir_fd=parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except OSError:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
        if syncs_directory:
            os.fsync(parent)


def read_pointer(within: int, name: str) -> str | None:
    """What a symlink points at, or the one line that stands for one where there are no symlinks; None where neither is there."""
    try:
        return os.readlink(name, dir_fd=within)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:  # something else than a symlink
            raise
    content = read_file(within, name, os.pathconf(within, "PC_NAME_MAX"))
    if content is None or not content.endswith(b"\n") or not content.isascii():
        return None
    return content.decode().removesuffix("\n")


def write_pointer(within: int, name: str, target: str) -> None:
    """Make a symlink to a neighbour, or replace one, in one step; a file with its name where symlinks cannot be made."""
    temporary = temporary_name()
    try:
        os.symlink(target, temporary, dir_fd=within)
    except OSError as error:
        if error.errno not in _NO_SYMLINKS:
            raise
        write_file(within, name, f"{target}\n".encode())
        return
    try:
        os.rename(temporary, name, src_dir_fd=within, dst_dir_fd=within)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=within)
        raise
    os.fsync(within)


def names_in(within: int) -> list[str]:
    """What is in a directory, sorted."""
    with os.scandir(within) as entries:
        return sorted(entry.name for entry in entries)


def files_beneath(within: int, prefix: str = "") -> Iterator[str]:
    """Everything in a directory that is no directory, by its path from there; links are named, not followed."""
    for name in names_in(within):
        try:
            with opened_directory(within, name) as descriptor:
                yield from files_beneath(descriptor, f"{prefix}{name}/")
        except OSError as error:
            if not isinstance(error, NotADirectoryError) and error.errno != errno.ELOOP:
                raise
            yield prefix + name


def remove_files(within: int, paths: list[str]) -> None:
    """Remove files in that order, and the directories that are empty then."""
    for path in paths:
        with suppress(*_NO_SUCH_FILE), opened_parent(within, path) as (parent, name):
            os.unlink(name, dir_fd=parent)
        for above in PurePosixPath(path).parents[:-1]:
            with suppress(OSError), opened_parent(within, str(above)) as (parent, name):
                os.rmdir(name, dir_fd=parent)


def remove_leftovers(within: int) -> None:
    """Remove what somebody who was killed left half-written; the lock must be held."""
    for name in names_in(within):
        if name.startswith(TEMPORARY):
            try:
                os.unlink(name, dir_fd=within)
            except (IsADirectoryError, PermissionError):  # POSIX lets unlink of a directory say either
                shutil.rmtree(name, dir_fd=within)


def temporary_name() -> str:
    """A name of ours that nobody has."""
    return TEMPORARY + secrets.token_hex(8)


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, within: int, name: str) -> bool:
    """False where it was removed while somebody waited for its lock."""
    try:
        there = os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
