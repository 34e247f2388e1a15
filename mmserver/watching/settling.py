"""When a change is over: the polling state machine of one root, which says what to read, what is gone and what to wait for."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from mmserver.watching.identities import GroupFiles, LoadedGroup
from mmserver.watching.rehashing import RehashTurns, is_racy
from mmserver.watching.scanning import Scan

GONE_POLLS = 3
MAX_WAIT_S = 300.0
REHASH_S = 600.0
GRANULARITY_S = 2.0
"""The coarsest file timestamps in use: VFAT; NFS and others stay below."""
_MAX_BACKOFF_S = 60.0
_MIN_BACKOFF_S = 1.0
_VANISH_SHARE = 0.3
"""More than this share of the loaded groups, and at least _VANISH_MIN of them, do not disappear for a good reason at once."""
_VANISH_MIN = 3

PendingReason = Literal["settling", "missing", "never_settles", "backoff", "unknown", "frozen"]
FrozenReason = Literal["root_missing", "root_unreadable", "other_device", "mass_vanish"]


@dataclass(frozen=True, slots=True)
class Observation:
    """What one scan means, given those before it.

    `changed` are settled and to be read now; tell the watcher what came of each: loaded, refused or unstable.
    `gone` are loaded groups whose files stayed away; tell it forget. `suspicious` (loaded so soon after a write that another
    one could look the same) and `to_verify` (their turn has come) look unchanged; hash them again, then verified or loaded.
    `pending` says of every other group that is not as it was loaded what it waits for. `frozen`: so much is missing that
    the disk is to blame; nothing is gone until it is back or a person says so.
    """

    changed: tuple[GroupFiles, ...] = ()
    gone: tuple[str, ...] = ()
    pending: Mapping[str, PendingReason] = field(default_factory=lambda: MappingProxyType({}))
    suspicious: tuple[GroupFiles, ...] = ()
    to_verify: tuple[GroupFiles, ...] = ()
    frozen: FrozenReason | None = None

    @property
    def never_settles(self) -> tuple[str, ...]:
        """Groups that have been written to for longer than max_wait_s."""
        return tuple(key for key, reason in self.pending.items() if reason == "never_settles")


@dataclass(slots=True)
class _Pending:
    """A group that is not as it was loaded; `group` is None while all its files are missing."""

    group: GroupFiles | None
    first_changed_at: float
    last_changed_at: float
    n_missing_polls: int = 0
    was_offered: bool = False


@dataclass(slots=True)
class _Backoff:
    delay_s: float
    until: float


class Watcher:
    """The memory between scans of one root: what is loaded, what was refused, what is still being written.

    All times are seconds of the monotonic clock that the scans were made with.
    """

    def __init__(
        self,
        loaded: Mapping[str, LoadedGroup],
        *,
        settle_s: float,
        max_wait_s: float = MAX_WAIT_S,
        gone_polls: int = GONE_POLLS,
        rehash_s: float = REHASH_S,
        granularity_s: float = GRANULARITY_S,
        root_dev: int | None = None,
    ) -> None:
        self.settle_s = settle_s
        self.root_dev = root_dev
        self._max_wait_s = max_wait_s
        self._gone_polls = gone_polls
        self._granularity_s = granularity_s
        self._loaded = dict(loaded)
        self._refused: dict[str, GroupFiles] = {}
        self._known: dict[str, GroupFiles] = {}
        self._pending: dict[str, _Pending] = {}
        self._backoff: dict[str, _Backoff] = {}
        self._suspicious = {key: -math.inf for key, group in loaded.items() if is_racy(group, granularity_s)}
        self._rehash = RehashTurns(rehash_s, loaded)
        self._noisy_since: float | None = None
        self._n_before_freeze: int | None = None

    # --- what came of an observation --------------------------------------------------------------------------------

    def loaded(self, group: GroupFiles, read_at_ns: int, now: float) -> None:
        """These files were read (the earliest at `read_at_ns`) and are what is served now."""
        key = group.group_key
        self._loaded[key] = LoadedGroup(group, read_at_ns)
        self._refused.pop(key, None)
        self._settled(key)
        self._rehash.add(key)
        self._suspicious.pop(key, None)
        if is_racy(self._loaded[key], self._granularity_s):
            self._suspicious[key] = now + self._granularity_s

    def refused(self, group: GroupFiles) -> None:
        """These files were read and cannot be used; they are not offered again until one of them changes."""
        self._refused[group.group_key] = group
        self._settled(group.group_key)

    def unstable(self, group_key: str, now: float) -> None:
        """The files changed or could not be read when they were offered; try again, each time after twice as long."""
        before = self._backoff.get(group_key)
        delay_s = min(_MAX_BACKOFF_S, before.delay_s * 2 if before else max(self.settle_s, _MIN_BACKOFF_S))
        self._backoff[group_key] = _Backoff(delay_s, now + delay_s)

    def verified(self, group_key: str) -> None:
        """The content was hashed again and is what was loaded."""
        self._suspicious.pop(group_key, None)
        self._backoff.pop(group_key, None)

    def has_trouble(self, group_key: str) -> bool:
        """True if the group's files as they are now were refused, or were unstable when they were last offered."""
        return group_key in self._refused or group_key in self._backoff

    def forget(self, group_key: str) -> None:
        """The group is served no more; should its files come back, it is a new one."""
        self._loaded.pop(group_key, None)
        self._refused.pop(group_key, None)
        self._suspicious.pop(group_key, None)
        self._rehash.remove(group_key)
        self._settled(group_key)

    def pending_places(self) -> list[tuple[str, str]]:
        """Where the files are, and were, of all groups that are not as they were loaded: (directory, group key)."""
        found: set[tuple[str, str]] = set()
        for key, entry in self._pending.items():
            loaded = self._loaded.get(key)
            groups = (entry.group, loaded.group if loaded is not None else None)
            found.update((group.directory, key) for group in groups if group is not None)
        return sorted(found)

    # --- observing --------------------------------------------------------------------------------------------------

    def observe(
        self,
        scan: Scan,
        *,
        settle_s: float | None = None,
        gone_polls: int | None = None,
        accept_vanished: bool = False,
        ignore_backoff: bool = False,
    ) -> Observation:
        """Take in a scan. `accept_vanished`: a person says that what is missing is meant to be missing."""
        settle_s = self.settle_s if settle_s is None else settle_s
        gone_polls = self._gone_polls if gone_polls is None else gone_polls
        if accept_vanished and scan.root_state == "missing":
            return Observation(gone=tuple(sorted(self._loaded)))
        if accept_vanished:
            self.root_dev = scan.root_dev
        groups = self._groups_of(scan)
        frozen = self._root_fault(scan, groups)
        if frozen is not None:
            return Observation(pending=dict.fromkeys(sorted(self._pending), "frozen"), frozen=frozen)
        self.root_dev = scan.root_dev
        self._take_in(scan, groups)
        missing = self._take_in_missing(scan, groups)
        is_frozen = self._is_mass_vanish(len(missing)) and not accept_vanished
        self._count_missing_polls(scan, missing if is_frozen else set())
        waiting = self._waiting(scan, settle_s, gone_polls, ignore_backoff=ignore_backoff)
        if is_frozen:
            waiting.update(dict.fromkeys(missing, "frozen"))
        elif accept_vanished:
            waiting = {key: reason for key, reason in waiting.items() if key not in missing}
        released = self._pending.keys() - waiting.keys()
        return Observation(
            changed=self._offered(released - missing),
            gone=tuple(sorted(released & missing)),
            pending=dict(sorted(waiting.items())),
            suspicious=self._suspicious_groups(scan, groups),
            to_verify=self._groups_to_verify(scan, groups),
            frozen="mass_vanish" if is_frozen else None,
        )

    # --- how --------------------------------------------------------------------------------------------------------

    def _settled(self, group_key: str) -> None:
        self._known.pop(group_key, None)
        self._pending.pop(group_key, None)
        self._backoff.pop(group_key, None)

    def _groups_of(self, scan: Scan) -> Mapping[str, GroupFiles]:
        """One group a key: of duplicates the one that is loaded, else the first."""
        if not scan.duplicates:
            return scan.groups
        groups = dict(scan.groups)
        for key, candidates in scan.duplicates.items():
            loaded = self._loaded.get(key)
            if loaded is not None:
                same_place = (group for group in candidates if group.directory == loaded.group.directory)
                groups[key] = next(same_place, candidates[0])
        return groups

    def _root_fault(self, scan: Scan, groups: Mapping[str, GroupFiles]) -> FrozenReason | None:
        if scan.root_state != "ok":
            return "root_missing" if scan.root_state == "missing" else "root_unreadable"
        is_other_device = self.root_dev is not None and scan.root_dev != self.root_dev
        if is_other_device and not self._loaded.keys() <= groups.keys():
            return "other_device"  # with every group on it, it is the same disk mounted again
        return None

    def _take_in(self, scan: Scan, groups: Mapping[str, GroupFiles]) -> None:
        """Note every group that is not known to be as it was loaded or refused."""
        known = self._known
        for key, group in groups.items():
            if known.get(key) is not group:
                self._take_in_group(scan, key, group)
        for key in known.keys() - groups.keys():
            del known[key]
        for key in (self._pending.keys() | self._refused.keys()) - groups.keys() - self._loaded.keys():
            self._refused.pop(key, None)
            self._settled(key)

    def _take_in_group(self, scan: Scan, key: str, group: GroupFiles) -> None:
        loaded = self._loaded.get(key)
        if loaded is not None and group == loaded.group:
            self._refused.pop(key, None)  # what was bad beside it is gone
        if group == self._refused.get(key) or (loaded is not None and group == loaded.group):
            self._settled(key)
            self._known[key] = group
        elif loaded is not None and self._is_hidden(scan, loaded.group, group):
            self._settled(key)
        else:
            self._note_change(scan, key, group)

    def _take_in_missing(self, scan: Scan, groups: Mapping[str, GroupFiles]) -> set[str]:
        """Note the loaded groups of which no file is left, as far as that can be told."""
        missing = set()
        for key in self._loaded.keys() - groups.keys():
            if self._is_hidden(scan, self._loaded[key].group, None):
                self._settled(key)
                continue
            missing.add(key)
            self._note_change(scan, key, None)
        return missing

    @staticmethod
    def _is_hidden(scan: Scan, loaded: GroupFiles, found: GroupFiles | None) -> bool:
        """True if what is loaded may still be there: its directory cannot be seen, or a file of it is not what it should be."""
        if (loaded.directory, loaded.group_key) in scan.blocked:
            return True
        is_elsewhere = found is None or found.directory != loaded.directory
        return is_elsewhere and scan.is_unknown(loaded.directory)

    def _note_change(self, scan: Scan, key: str, group: GroupFiles | None) -> None:
        now = scan.finished_at
        entry = self._pending.get(key)
        if entry is None:
            self._pending[key] = _Pending(group, now, now)
        elif entry.group != group:
            entry.group = group
            entry.first_changed_at = now if entry.was_offered else entry.first_changed_at
            entry.last_changed_at = now
            entry.was_offered = False

    def _is_mass_vanish(self, n_missing: int) -> bool:
        """Sticky: groups that are loaded meanwhile do not make the missing ones few."""
        n_before = min(len(self._loaded), self._n_before_freeze or len(self._loaded))
        is_mass = n_missing == n_before if n_missing < _VANISH_MIN else n_missing > _VANISH_SHARE * n_before
        is_mass = is_mass and n_missing > 0
        self._n_before_freeze = n_before if is_mass else None
        return is_mass

    def _count_missing_polls(self, scan: Scan, held: set[str]) -> None:
        for key, entry in self._pending.items():
            if not self._is_fresh(scan, key, entry):
                continue
            loaded = self._loaded.get(key)
            present = {name for name, _ in entry.group.files} if entry.group is not None else set()
            is_any_missing = loaded is not None and any(name not in present for name, _ in loaded.group.files)
            entry.n_missing_polls = entry.n_missing_polls + 1 if is_any_missing and key not in held else 0

    def _is_fresh(self, scan: Scan, key: str, entry: _Pending) -> bool:
        """True if this scan really looked at the group."""
        if scan.looked_at is not None and key not in scan.looked_at:
            return False
        group = entry.group or self._loaded[key].group
        return not scan.is_unknown(group.directory)

    def _waiting(
        self, scan: Scan, settle_s: float, gone_polls: int, *, ignore_backoff: bool
    ) -> dict[str, PendingReason]:
        """What each pending group waits for; those that are not in it are settled."""
        waiting: dict[str, PendingReason] = {}
        restless: list[_Pending] = []
        for key, entry in self._pending.items():
            backoff = self._backoff.get(key)
            is_quiet = scan.started_at - entry.last_changed_at >= settle_s
            if not is_quiet and scan.finished_at - entry.first_changed_at >= self._max_wait_s:
                waiting[key] = "never_settles"
            elif not is_quiet:
                waiting[key] = "settling"
                restless.append(entry)
            elif not self._is_fresh(scan, key, entry):
                waiting[key] = "unknown" if scan.looked_at is None else "settling"
            elif 0 < entry.n_missing_polls < gone_polls:
                waiting[key] = "missing"
            elif backoff is not None and scan.finished_at < backoff.until and not ignore_backoff:
                waiting[key] = "backoff"
        if self._is_held_by_neighbours(scan, restless):
            for key in self._pending.keys() - waiting.keys():
                waiting[key] = "settling"
        return waiting

    def _is_held_by_neighbours(self, scan: Scan, restless: list[_Pending]) -> bool:
        """Files of one root are written together: none is read before all are quiet, or max_wait_s have passed."""
        if not restless:
            self._noisy_since = None
            return False
        if self._noisy_since is None:
            self._noisy_since = min(entry.first_changed_at for entry in restless)
        return scan.finished_at - self._noisy_since < self._max_wait_s

    def _offered(self, group_keys: set[str]) -> tuple[GroupFiles, ...]:
        groups = []
        for key in sorted(group_keys):
            entry = self._pending[key]
            entry.was_offered = True
            if entry.group is not None:
                groups.append(entry.group)
        return tuple(groups)

    def _suspicious_groups(self, scan: Scan, groups: Mapping[str, GroupFiles]) -> tuple[GroupFiles, ...]:
        due = [key for key, due_at in self._suspicious.items() if due_at <= scan.started_at]
        return self._unchanged(scan, groups, due)

    def _groups_to_verify(self, scan: Scan, groups: Mapping[str, GroupFiles]) -> tuple[GroupFiles, ...]:
        if scan.looked_at is not None:
            return ()
        return self._unchanged(scan, groups, self._rehash.due(scan.finished_at))

    def _unchanged(self, scan: Scan, groups: Mapping[str, GroupFiles], keys: Iterable[str]) -> tuple[GroupFiles, ...]:
        found = []
        for key in sorted(keys):
            group = groups.get(key)
            is_as_loaded = group is not None and self._loaded[key].group == group
            if group is not None and is_as_loaded and not scan.is_unknown(group.directory):
                found.append(group)
        return tuple(found)
