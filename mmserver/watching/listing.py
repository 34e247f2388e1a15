"""One directory as a scan found it: compared whole with the last scan, and looked at name by name only where it differs."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from mmserver.watching.beneath import RootHandle
from mmserver.watching.identities import (
    FileIdentity,
    GroupFiles,
    Problem,
    StatRecord,
    identity_from_record,
    join_relpath,
    record_from_stat,
)
from mmserver.watching.names import ArtifactNames, displayed, is_ignored, name_fault

_CHUNK_ENTRIES = 1024
"""Entries between two looks at the clock: a millisecond on a local disk."""
_LINK_REFUSED = {errno.EXDEV, errno.ELOOP}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_S_IFMT = 0o170000
"""The bits of a mode that say what kind of file it is."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectoryListing:
    """What one directory holds; scans of an unchanged directory share one object.

    `own` is the directory's own stat record from before it was listed. `links` has what each symlink in it resolves to
    beneath the root: a stat record, or the error number that resolving gave. Groups with a file in `unknown_names`
    (its status could not be read) are withheld.
    """

    directory: str
    own: StatRecord
    entries: Mapping[str, StatRecord]
    links: Mapping[str, StatRecord | int]
    unknown_names: frozenset[str]
    groups: Mapping[str, GroupFiles]
    subdirectories: Mapping[str, None]
    linked_directories: Mapping[str, None]
    problems: Mapping[str, Problem]


class DirectoryReader:
    """Lists one open directory, a quantum of entries at a time; owns the file descriptor."""

    def __init__(self, directory: str, fd: int) -> None:
        self.directory = directory
        self.own = record_from_stat(os.fstat(fd))
        self.entries: dict[str, StatRecord] = {}
        self.unknown_names: set[str] = set()
        self.is_complete = False
        self._n_asked = 0
        self._fd = fd
        self._iterator = os.scandir(fd)

    def read(self, n_entries: int, is_late: Callable[[], bool]) -> int:
        """Read up to n_entries more, fewer when it gets late; how many were read.

        Raises:
            OSError: the directory cannot be listed to its end.
        """
        n_read = 0
        while n_read < n_entries and not self.is_complete:
            n_wanted = min(_CHUNK_ENTRIES, n_entries - n_read)
            try:
                chunk = {
                    entry.name: record_from_stat(entry.stat(follow_symlinks=False))
                    for entry in islice(self._iterator, n_wanted)
                }
            except OSError:
                self._read_one_by_one()
                return len(self.entries)
            self.entries.update(chunk)
            n_read += len(chunk)
            self.is_complete = len(chunk) < n_wanted
            if is_late():
                break
        return n_read

    def _read_one_by_one(self) -> None:
        """Start again, slower, to learn which entry it was: one that vanished is no news, another error is "unknown"."""
        self._iterator.close()
        self._iterator = os.scandir(self._fd)
        self.entries.clear()
        for entry in self._iterator:
            try:
                self.entries[entry.name] = record_from_stat(entry.stat(follow_symlinks=False))
            except FileNotFoundError:
                continue
            except OSError:
                self.unknown_names.add(entry.name)
        self.is_complete = True

    def look_at(self, names: Iterable[str]) -> None:
        """Take the entries as they were filled in from elsewhere, but look again at these names."""
        for name in names:
            try:
                self.entries[name] = record_from_stat(os.stat(name, dir_fd=self._fd, follow_symlinks=False))
            except FileNotFoundError:
                self.entries.pop(name, None)
            except OSError:
                self.unknown_names.add(name)
        self.is_complete = True

    def new_subdirectory_names(self) -> list[str]:
        """The subdirectories among the entries read since the last call."""
        entries = islice(self.entries.items(), self._n_asked, None)
        self._n_asked = len(self.entries)
        return [name for name, record in entries if record[0] & _S_IFMT == stat.S_IFDIR]

    def close(self) -> None:
        """Let the directory go."""
        self._iterator.close()
        os.close(self._fd)


def listing_from_reader(
    root: RootHandle, reader: DirectoryReader, previous: DirectoryListing | None, names: ArtifactNames
) -> DirectoryListing:
    """Sort a directory's entries into groups, subdirectories and problems; the previous listing if nothing differs.

    Entries whose status could not be read keep their previous one.
    """
    directory, own, entries, unknown_names = (
        reader.directory,
        reader.own,
        reader.entries,
        frozenset(reader.unknown_names),
    )
    if previous is not None:
        for name in unknown_names & previous.entries.keys():
            entries[name] = previous.entries[name]
    is_same = previous is not None and entries == previous.entries
    link_names: Iterable[str] = previous.links if previous is not None and is_same else _link_names(entries)
    links = _resolved_links(root, directory, link_names)
    unknown_names |= _keep_unreadable(links, previous)
    if previous is None:
        return _Draft(directory, names, None).listing(own, entries, links, unknown_names)
    if is_same and links == previous.links and unknown_names == previous.unknown_names:
        return previous
    is_incremental = not unknown_names and not previous.unknown_names
    return _Draft(directory, names, previous if is_incremental else None).listing(own, entries, links, unknown_names)


def _link_names(entries: Mapping[str, StatRecord]) -> list[str]:
    return [name for name, record in entries.items() if record[0] & _S_IFMT == stat.S_IFLNK and not is_ignored(name)]


def _resolved_links(root: RootHandle, directory: str, link_names: Iterable[str]) -> dict[str, StatRecord | int]:
    resolved: dict[str, StatRecord | int] = {}
    for name in link_names:
        try:
            resolved[name] = record_from_stat(root.stat(join_relpath(directory, name)))
        except OSError as error:
            resolved[name] = error.errno or errno.EIO
    return resolved


def _keep_unreadable(links: dict[str, StatRecord | int], previous: DirectoryListing | None) -> frozenset[str]:
    """The links whose targets cannot be read now; they keep what they last resolved to."""
    unreadable = frozenset(
        name for name, found in links.items() if isinstance(found, int) and found not in _ABSENT | _LINK_REFUSED
    )
    for name in unreadable:
        before = previous.links.get(name) if previous is not None else None
        if isinstance(before, tuple):
            links[name] = before
    return unreadable


class _Draft:
    """A listing in the making: a copy of the previous one, in which each changed name is removed and put in again."""

    def __init__(self, directory: str, names: ArtifactNames, previous: DirectoryListing | None) -> None:
        self._directory = directory
        self._names = names
        self._previous = previous
        self._groups = dict(previous.groups) if previous else {}
        self._subdirectories = dict(previous.subdirectories) if previous else {}
        self._linked_directories = dict(previous.linked_directories) if previous else {}
        self._problems = dict(previous.problems) if previous else {}
        self._files: dict[str, dict[str, FileIdentity]] = {}

    def listing(
        self,
        own: StatRecord,
        entries: Mapping[str, StatRecord],
        links: Mapping[str, StatRecord | int],
        unknown_names: frozenset[str],
    ) -> DirectoryListing:
        for name in self._changed_names(entries, links):
            self._remove(name)
            record = links.get(name) or entries.get(name)
            if record is not None:
                self._add(name, record, is_link=name in links)
        self._store_groups()
        for name in unknown_names:
            self._withhold(name, is_known=name in entries and not isinstance(links.get(name), int))
        return DirectoryListing(
            directory=self._directory,
            own=own,
            entries=entries,
            links=links,
            unknown_names=unknown_names,
            groups=self._groups,
            subdirectories=self._subdirectories,
            linked_directories=self._linked_directories,
            problems=self._problems,
        )

    def _changed_names(self, entries: Mapping[str, StatRecord], links: Mapping[str, StatRecord | int]) -> Iterable[str]:
        if self._previous is None:
            return entries
        old_entries, old_links = self._previous.entries, self._previous.links
        get_old = old_entries.get
        changed = {name for name, record in entries.items() if get_old(name) != record}
        changed.update(old_entries.keys() - entries.keys())
        changed.update(name for name in links.keys() | old_links.keys() if links.get(name) != old_links.get(name))
        return changed

    def _remove(self, name: str) -> None:
        self._subdirectories.pop(name, None)
        self._linked_directories.pop(name, None)
        self._problems.pop(name, None)
        split = self._names.split(name)
        if split is not None and self._previous is not None:
            self._files_of(split[0]).pop(name, None)

    def _add(self, name: str, record: StatRecord | int, *, is_link: bool) -> None:
        split = self._names.split(name)
        if isinstance(record, int):
            self._add_broken_link(name, record, split)
        elif stat.S_ISDIR(record[0]) and split is None:
            self._add_directory(name, is_link=is_link)
        elif split is not None:
            self._add_artifact(name, split[0], record)

    def _add_broken_link(self, name: str, error_number: int, split: tuple[str, str] | None) -> None:
        if error_number in _LINK_REFUSED:
            self._report(name, "outside_root", "the symlink leads out of the root or cannot be followed", split)
        elif split is not None:
            self._report(name, "vanished", f"the symlink's target: {os.strerror(error_number)}", split)

    def _add_directory(self, name: str, *, is_link: bool) -> None:
        if is_ignored(name):
            return
        fault = name_fault(name)
        if fault is not None:
            self._report(name, "bad_name", f"the directory's name {fault}; it is not searched", None)
        else:
            (self._linked_directories if is_link else self._subdirectories)[name] = None

    def _add_artifact(self, name: str, group_key: str, record: StatRecord) -> None:
        fault = name_fault(group_key)
        if fault is not None:
            self._report(name, "bad_name", f"the group key {fault}", None)
        elif record[0] & _S_IFMT != stat.S_IFREG:
            self._report(name, "not_regular", f"it is {_kind(record[0])}, not a file", (group_key, ""))
        else:
            self._files_of(group_key)[name] = identity_from_record(record)

    def _report(self, name: str, reason: str, detail: str, split: tuple[str, str] | None) -> None:
        group_key = split[0] if split is not None and name_fault(split[0]) is None else None
        self._problems[name] = Problem(reason, displayed(join_relpath(self._directory, name)), detail, group_key)

    def _files_of(self, group_key: str) -> dict[str, FileIdentity]:
        files = self._files.get(group_key)
        if files is None:
            group = self._groups.get(group_key)
            files = self._files[group_key] = dict(group.files) if group is not None else {}
        return files

    def _store_groups(self) -> None:
        for group_key, files in self._files.items():
            if files:
                self._groups[group_key] = GroupFiles(group_key, self._directory, tuple(sorted(files.items())))
            else:
                self._groups.pop(group_key, None)

    def _withhold(self, name: str, *, is_known: bool) -> None:
        split = self._names.split(name)
        if split is None:
            return
        self._report(name, "unreadable", "its status cannot be read", split)
        if not is_known:
            self._groups.pop(split[0], None)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(mode & _S_IFMT, "something else")
