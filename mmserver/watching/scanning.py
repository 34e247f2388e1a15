"""One look at a whole root by stat alone: which groups of files are there, what cannot be used, what could not be seen."""

import errno
import os
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from mmserver.watching.beneath import RootHandle, open_root
from mmserver.watching.identities import GroupFiles, Problem, join_relpath
from mmserver.watching.listing import DirectoryListing, DirectoryReader, listing_from_reader
from mmserver.watching.names import ArtifactNames, displayed, is_searched

MAX_FILES = 200_000
TIME_BUDGET_S = 30.0
_MAX_QUANTUM_ENTRIES = 8192
"""A directory with more entries is read in turns with the others, so that it cannot starve them."""
_LIST_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_BLOCKING = {"not_regular", "outside_root", "unreadable"}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}

Clock = Callable[[], float]
RootState = Literal["ok", "missing", "unreadable"]


@dataclass(frozen=True, slots=True)
class Scan:
    """What a root looked like; all containers are shared with the scan before wherever nothing differs.

    `groups` has one entry per group key; where several directories have the key, `duplicates` has all of them, sorted, and
    `groups` the first, unless a directory symlink points at exactly one: then that one is meant and nothing is reported.
    `blocked` are the (directory, group key) of which a file is there but cannot be used.
    `unknown` has the directories that could not be listed (unreadable, or over the budget): they and what is below them are
    shown as they were last seen, and absence there means nothing. `looked_at`: None means everything; a scan made by `restat`
    looked at these group keys only, and shows all else as it was last seen. Over the budget, `deferred` directories were
    not begun and come first next time, `unfinished` ones were not read to their end; every second time this is insisted on, lest
    what is at their end be never found. Times are the clock's, in seconds.
    """

    root_path: Path
    names: ArtifactNames
    started_at: float
    finished_at: float
    root_state: RootState
    root_dev: int | None = None
    listings: Mapping[str, DirectoryListing] = field(default_factory=dict)
    pointed_at: frozenset[str] = frozenset()
    groups: Mapping[str, GroupFiles] = field(default_factory=dict)
    duplicates: Mapping[str, tuple[GroupFiles, ...]] = field(default_factory=dict)
    blocked: frozenset[tuple[str, str]] = frozenset()
    unknown: Mapping[str, Problem] = field(default_factory=dict)
    truncated: bool = False
    deferred: tuple[str, ...] = ()
    unfinished: frozenset[str] = frozenset()
    insisted_on: frozenset[str] = frozenset()
    n_entries: int = 0
    looked_at: frozenset[str] | None = None

    def is_unknown(self, directory: str) -> bool:
        """True if the directory, or one above it, could not be listed."""
        return _is_under(directory, self.unknown)

    @property
    def problems(self) -> list[Problem]:
        """All that is not served, by path."""
        found = list(self.unknown.values())
        for listing in self.listings.values():
            found.extend(listing.problems.values())
        for group_key, candidates in self.duplicates.items():
            paths = ", ".join(displayed(join_relpath(group.directory, group.files[0][0])) for group in candidates)
            path = displayed(candidates[0].directory)
            found.append(Problem("duplicate_group", path, f"{group_key} is in several directories: {paths}", group_key))
        return sorted(found, key=lambda problem: (problem.path, problem.reason, problem.detail))


def scan_tree(
    root_path: Path,
    names: ArtifactNames,
    previous: Scan | None,
    *,
    clock: Clock,
    max_files: int = MAX_FILES,
    time_budget_s: float = TIME_BUDGET_S,
) -> Scan:
    """Look at everything beneath a root; never raises for what the file system does.

    Over the budget, what was not reached is `unknown`, and the next scan begins with it.
    """
    started_at = clock()
    if previous is not None and previous.names.suffixes != names.suffixes:
        previous = None
    try:
        root = open_root(root_path)
    except OSError as error:
        return _without_root(root_path, names, previous, error=error, started_at=started_at, clock=clock)
    with root:
        walk = _Walk(root, names, previous, max_files=max_files, deadline=started_at + time_budget_s, clock=clock)
        walk.run()
        return walk.scan(started_at)


def restat(scan: Scan, targets: Iterable[tuple[str, str]], clock: Clock) -> Scan:
    """Look again at some groups only, each given as (directory, group key), and at directories that changed around them."""
    started_at = clock()
    keys_by_directory: dict[str, set[str]] = {}
    for directory, group_key in targets:
        keys_by_directory.setdefault(directory, set()).add(group_key)
    try:
        root = open_root(scan.root_path)
    except OSError as error:
        return _without_root(scan.root_path, scan.names, scan, error=error, started_at=started_at, clock=clock)
    listings, unknown = dict(scan.listings), dict(scan.unknown)
    with root:
        for directory, group_keys in keys_by_directory.items():
            try:
                listings[directory] = _restat_directory(root, scan, directory, group_keys)
                unknown.pop(directory, None)
            except OSError as error:
                if error.errno in _ABSENT:
                    listings.pop(directory, None)
                else:
                    unknown[directory] = _unreadable(directory, error)
    groups, duplicates, blocked = _merged(listings, scan.pointed_at)
    return replace(
        scan,
        started_at=started_at,
        finished_at=clock(),
        root_dev=root.dev,
        listings=listings,
        groups=groups,
        duplicates=duplicates,
        blocked=blocked,
        unknown=unknown,
        looked_at=frozenset(chain.from_iterable(keys_by_directory.values())),
    )


def _restat_directory(root: RootHandle, scan: Scan, directory: str, group_keys: set[str]) -> DirectoryListing:
    fd = root.open(directory, _LIST_FLAGS)
    reader = DirectoryReader(directory, fd)
    try:
        previous = scan.listings.get(directory)
        n_stats = len(group_keys) * len(scan.names.suffixes)
        if previous is None or reader.own != previous.own or 2 * n_stats > len(previous.entries):
            reader.read(MAX_FILES, lambda: False)
            if not reader.is_complete:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), directory)
        else:
            reader.entries.update(previous.entries)
            reader.look_at(key + suffix for key in group_keys for suffix in scan.names.suffixes)
        return listing_from_reader(root, reader, previous, scan.names)
    finally:
        reader.close()


class _Walk:
    """One scan under way: directories take turns; symlinks to directories wait until all real ones were seen."""

    def __init__(
        self,
        root: RootHandle,
        names: ArtifactNames,
        previous: Scan | None,
        *,
        max_files: int,
        deadline: float,
        clock: Clock,
    ) -> None:
        self._root = root
        self._names = names
        self._previous = previous
        self._max_files = max_files
        self._quantum = max(1, min(_MAX_QUANTUM_ENTRIES, max_files // 8))
        self._deadline = deadline
        self._clock = clock
        self._queue: deque[DirectoryReader | str] = deque([""])
        self._queued: set[str] = {""}
        self._links: deque[str] = deque()
        self._visited: dict[tuple[int, int], str] = {}
        self._listings: dict[str, DirectoryListing] = {}
        self._pointed_at: set[str] = set()
        self._unknown: dict[str, Problem] = {}
        self._deferred: list[str] = []
        self._unfinished: set[str] = set()
        self._insisted_on = previous.unfinished - previous.insisted_on if previous is not None else frozenset()
        self._truncated = False
        self._n_entries = 0
        if previous is not None:
            self._enqueue(previous.deferred)

    def run(self) -> None:
        """Walk until everything was seen or the budget is spent."""
        while self._queue or self._links:
            if self._n_entries > self._max_files or self._is_late():
                self._defer_the_rest()
                break
            reader = self._next_reader()
            if reader is not None:
                self._take_turn(reader)

    def scan(self, started_at: float) -> Scan:
        """What was seen, completed by what the previous scan knew of the places that are unknown now."""
        previous, listings = self._previous, self._listings
        pointed_at = frozenset(self._pointed_at)
        if previous is not None and self._unknown:
            for directory, listing in previous.listings.items():
                if directory not in listings and _is_under(directory, self._unknown):
                    listings[directory] = listing
            pointed_at |= previous.pointed_at & listings.keys()
        root_problem = self._unknown.get("")
        scan = Scan(
            root_path=self._root.path,
            names=self._names,
            started_at=started_at,
            finished_at=0.0,
            root_state="unreadable" if root_problem is not None and root_problem.reason == "unreadable" else "ok",
            root_dev=self._root.dev,
            unknown=self._unknown,
            truncated=self._truncated,
            deferred=tuple(self._deferred),
            unfinished=frozenset(self._unfinished),
            insisted_on=self._insisted_on,
            n_entries=self._n_entries,
        )
        if previous is not None and previous.pointed_at == pointed_at and _is_same(listings, previous.listings):
            return replace(
                scan,
                listings=previous.listings,
                pointed_at=previous.pointed_at,
                groups=previous.groups,
                duplicates=previous.duplicates,
                blocked=previous.blocked,
                finished_at=self._clock(),
            )
        groups, duplicates, blocked = _merged(listings, pointed_at)
        return replace(
            scan,
            listings=listings,
            pointed_at=pointed_at,
            groups=groups,
            duplicates=duplicates,
            blocked=blocked,
            finished_at=self._clock(),
        )

    def _is_late(self) -> bool:
        return self._clock() > self._deadline

    def _enqueue(self, directories: Iterable[str]) -> None:
        for directory in directories:
            if directory not in self._queued:
                self._queued.add(directory)
                self._queue.append(directory)

    def _next_reader(self) -> DirectoryReader | None:
        if not self._queue:
            return self._opened(self._links.popleft(), is_link=True)
        item = self._queue.popleft()
        return item if isinstance(item, DirectoryReader) else self._opened(item, is_link=False)

    def _opened(self, directory: str, *, is_link: bool) -> DirectoryReader | None:
        """None if the directory was seen under another name, is gone, or cannot be read (noted)."""
        try:
            reader = DirectoryReader(
                directory, self._root.open(directory, _LIST_FLAGS if is_link else _LIST_FLAGS | os.O_NOFOLLOW)
            )
        except OSError as error:
            is_replaced_by_link = error.errno == errno.ELOOP and not is_link
            if error.errno not in _ABSENT and not is_replaced_by_link:
                self._unknown[directory] = _unreadable(directory, error)
            return None
        seen_as = self._visited.setdefault(reader.own[1:3], directory)
        if is_link and (seen_as == directory or not _is_under(directory, (seen_as,))):
            self._pointed_at.add(seen_as)
        if seen_as != directory:
            reader.close()
            return None
        return reader

    def _take_turn(self, reader: DirectoryReader) -> None:
        directory = reader.directory
        n_left = self._max_files + 1 - self._n_entries
        n_wanted = n_left if directory in self._insisted_on else min(self._quantum, n_left)
        try:
            self._n_entries += reader.read(n_wanted, self._is_late)
        except OSError as error:
            self._unknown[directory] = _unreadable(directory, error)
            reader.close()
            return
        if not reader.is_complete:
            names = (name for name in reader.new_subdirectory_names() if is_searched(name, self._names))
            self._enqueue(join_relpath(directory, name) for name in names)
            self._queue.append(reader)
            return
        previous = self._previous.listings.get(directory) if self._previous is not None else None
        listing = listing_from_reader(self._root, reader, previous, self._names)
        reader.close()
        self._listings[directory] = listing
        self._enqueue(join_relpath(directory, name) for name in listing.subdirectories)
        self._links.extend(join_relpath(directory, name) for name in listing.linked_directories)

    def _defer_the_rest(self) -> None:
        self._truncated = True
        for item in chain(self._queue, self._links):
            directory = item.directory if isinstance(item, DirectoryReader) else item
            if isinstance(item, DirectoryReader):
                item.close()
                self._unfinished.add(directory)
                detail = f"not listed to its end: the scan stopped after {self._n_entries} entries"
            else:
                detail = f"not reached: the scan stopped after {self._n_entries} entries"
                self._deferred.append(directory)
            self._unknown[directory] = Problem("truncated", displayed(directory) or ".", detail)


def _merged(
    listings: Mapping[str, DirectoryListing], pointed_at: frozenset[str]
) -> tuple[dict[str, GroupFiles], dict[str, tuple[GroupFiles, ...]], frozenset[tuple[str, str]]]:
    """All groups by key, those that several directories have, and those of which a file cannot be used."""
    groups: dict[str, GroupFiles] = {}
    several: dict[str, list[GroupFiles]] = {}
    blocked: set[tuple[str, str]] = set()
    for _, listing in sorted(listings.items()):
        blocked.update(
            (listing.directory, problem.group_key)
            for problem in listing.problems.values()
            if problem.group_key is not None and problem.reason in _BLOCKING
        )
        if groups.keys().isdisjoint(listing.groups):
            groups.update(listing.groups)
            continue
        for group_key, group in listing.groups.items():
            first = groups.setdefault(group_key, group)
            if first is not group:
                several.setdefault(group_key, [first]).append(group)
    duplicates: dict[str, tuple[GroupFiles, ...]] = {}
    for group_key, candidates in several.items():
        meant = [group for group in candidates if _is_under(group.directory, pointed_at)]
        if len(meant) == 1:
            groups[group_key] = meant[0]
        else:
            duplicates[group_key] = tuple(candidates)
    return groups, duplicates, frozenset(blocked)


def _is_same(listings: Mapping[str, DirectoryListing], previous: Mapping[str, DirectoryListing]) -> bool:
    return len(listings) == len(previous) and all(previous.get(name) is found for name, found in listings.items())


def _is_under(directory: str, tops: Container[str]) -> bool:
    """True if the directory or one above it is among `tops`."""
    while directory:
        if directory in tops:
            return True
        directory = directory.rpartition("/")[0]
    return "" in tops


def _unreadable(directory: str, error: OSError) -> Problem:
    return Problem("unreadable", displayed(directory) or ".", f"cannot be listed: {os.strerror(error.errno or 0)}")


def _without_root(
    root_path: Path, names: ArtifactNames, previous: Scan | None, *, error: OSError, started_at: float, clock: Clock
) -> Scan:
    """A scan of a root that could not even be opened: all is shown as it was last seen."""
    is_missing = error.errno in _ABSENT
    detail = "there is no such directory" if is_missing else f"cannot be opened: {os.strerror(error.errno or 0)}"
    return replace(
        previous or Scan(root_path, names, started_at, started_at, "ok"),
        started_at=started_at,
        finished_at=clock(),
        root_state="missing" if is_missing else "unreadable",
        unknown={"": Problem("vanished" if is_missing else "unreadable", ".", detail)},
        looked_at=None,
    )
