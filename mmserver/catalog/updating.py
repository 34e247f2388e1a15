"""Bringing a model up to what its directory holds: take in what changed, make a version of it, remember what was refused."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from mmserver.catalog.catalog import ModelStatus, Version
from mmserver.catalog.intake import Taken, take_in
from mmserver.catalog.publishing import GroupContent, Published, publish_version, stage_groups
from mmserver.catalog.store import Store
from mmserver.storage.tables import ModelRow, RefusalRow, WatchedFileRow
from mmserver.storage.times import text_from_datetime
from mmserver.watching.beneath import RootHandle
from mmserver.watching.identities import FileIdentity, GroupFiles, Problem, join_relpath

BATCH_GROUPS = 100
BATCH_BYTES = 64 << 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LoadedFiles:
    """A group whose files were read and are good: what the watcher and the next start need to know of them."""

    group: GroupFiles
    read_at_ns: int
    hashes: tuple[tuple[str, FileIdentity, str], ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """A group, or a single path, that cannot be served as it is. `group` is None when it is not a group's own files."""

    key: str
    file: str
    reason: str
    detail: str
    files_sha256: str
    group: GroupFiles | None = None


@dataclass(slots=True)
class Gathered:
    """Everything that came of taking in groups, without their bytes."""

    contents: dict[str, GroupContent] = field(default_factory=dict)
    loaded: list[LoadedFiles] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    unstable: list[Refused] = field(default_factory=list)
    known_refused: list[GroupFiles] = field(default_factory=list)


def gather(
    store: Store,
    root: RootHandle,
    groups: Sequence[GroupFiles],
    *,
    model_id: int,
    next_seq: int,
    progress: Progress | None = None,
) -> Gathered:
    """Take in groups; the bytes of many are stored in batches on the way, tied to the version to come."""
    gathered = Gathered()
    batch: dict[str, GroupContent] = {}
    batch_bytes = 0
    with store.database.read() as connection:
        refused_before = refused_hashes(connection, model_id)
    for n_done, taken in enumerate(take_in(store, root, groups, refused_before), start=1):
        _sort_in(gathered, taken)
        if taken.content is not None:
            batch[taken.group.group_key] = taken.content
            batch_bytes += sum(len(file.data) for file in taken.files)
        if len(batch) >= BATCH_GROUPS or batch_bytes >= BATCH_BYTES:
            _stage(store, model_id, next_seq, batch, gathered)
            batch, batch_bytes = {}, 0
        if progress is not None:
            progress(n_done, len(groups))
    gathered.contents.update(batch)
    return gathered


def commit(
    connection: Connection,
    *,
    model_id: int,
    base: Version | None,
    gathered: Gathered,
    removed: Iterable[str],
    now: datetime,
    reason: str,
) -> Published | None:
    """In one transaction: the new version if there is one, the files' identities, and the refusals."""
    removed = tuple(removed)
    published = publish_version(
        connection,
        model_id=model_id,
        base=base,
        contents=gathered.contents,
        removed=removed,
        now=now,
        reason=reason,
    )
    _remember_files(connection, model_id, gathered.loaded, removed)
    good = [loaded.group.group_key for loaded in gathered.loaded]
    forget_refusals(connection, model_id, [*good, *removed])
    remember_all_refusals(connection, model_id, gathered, now)
    return published


def remember_all_refusals(connection: Connection, model_id: int, gathered: Gathered, now: datetime) -> None:
    """Say what could not be used; content that was refused before and came again is counted."""
    remember_refusals(connection, model_id, chain(gathered.refused, gathered.unstable), now)
    for group in gathered.known_refused:
        connection.execute(
            update(RefusalRow)
            .where(RefusalRow.model_id == model_id, RefusalRow.group_key == group.group_key)
            .values(attempts=RefusalRow.attempts + 1)
        )


def remember_refusals(connection: Connection, model_id: int, refused: Iterable[Refused], now: datetime) -> None:
    """Say what is not served and why; the same content keeps its first date."""
    for entry in refused:
        values = {
            "model_id": model_id,
            "group_key": entry.key,
            "files_sha256": entry.files_sha256,
            "file": entry.file,
            "reason": entry.reason,
            "detail": entry.detail[:2000],
            "since": text_from_datetime(now),
            "attempts": 1,
        }
        statement = upsert(RefusalRow).values(values)
        is_same = RefusalRow.files_sha256 == statement.excluded.files_sha256
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["model_id", "group_key"],
                set_={**values, "since": RefusalRow.since, "attempts": RefusalRow.attempts + 1},
                where=is_same,
            )
        )
        connection.execute(
            update(RefusalRow)
            .where(
                RefusalRow.model_id == model_id,
                RefusalRow.group_key == entry.key,
                RefusalRow.files_sha256 != entry.files_sha256,
            )
            .values(values)
        )


def refusals_from_problems(problems: Iterable[Problem], content_keys: Container[str]) -> dict[str, Refused]:
    """What a scan could not use, as refusals by their key: the group's, or the path where there is no group.

    One of each key; a refusal of the group's content (`content_keys`) says more than that, and stands alone.
    """
    refused = (
        Refused(key=p.group_key or p.path, file=p.path, reason=p.reason, detail=p.detail, files_sha256="")
        for p in problems
    )
    return {entry.key: entry for entry in refused if entry.key not in content_keys}


def replace_problems(connection: Connection, model_id: int, problems: Iterable[Problem], now: datetime) -> None:
    """The scan's findings take the place of those of the scan before; refusals of content stay."""
    found = refusals_from_problems(problems, refused_hashes(connection, model_id))
    rows = connection.execute(
        select(RefusalRow.group_key, RefusalRow.file, RefusalRow.reason).where(
            RefusalRow.model_id == model_id, RefusalRow.files_sha256 == ""
        )
    )
    known = {row.group_key: (row.file, row.reason) for row in rows}
    forget_refusals(connection, model_id, list(known.keys() - found.keys()))
    new = (entry for key, entry in found.items() if known.get(key) != (entry.file, entry.reason))
    remember_refusals(connection, model_id, new, now)


def refused_hashes(connection: Connection, model_id: int) -> Mapping[str, str]:
    """The content that was refused last, by group key."""
    rows = connection.execute(
        select(RefusalRow.group_key, RefusalRow.files_sha256).where(
            RefusalRow.model_id == model_id, RefusalRow.files_sha256 != ""
        )
    )
    return {row.group_key: row.files_sha256 for row in rows}


def set_status(connection: Connection, model_id: int, *, error: str | None, status: ModelStatus, now: datetime) -> None:
    """How the last look at the model's directory went."""
    connection.execute(
        update(ModelRow)
        .where(ModelRow.id == model_id)
        .values(status=status, error=error, refreshed_at=text_from_datetime(now))
    )


def status_of_content(connection: Connection, model_id: int, served: Iterable[str]) -> ModelStatus:
    """What the refusals make of a model that serves these group keys.

    stale: of something that is served the directory has other content, which is refused; degraded: something in the
    directory is not served at all; ok: nothing is refused.
    """
    keys = set(connection.execute(select(RefusalRow.group_key).where(RefusalRow.model_id == model_id)).scalars())
    if not keys:
        return "ok"
    return "degraded" if keys.isdisjoint(served) else "stale"


def file_hashes(connection: Connection, model_id: int, group_keys: Sequence[str]) -> dict[str, dict[str, str]]:
    """By group key: SHA-256 of the loaded group's files as they were read last, by path."""
    hashes: dict[str, dict[str, str]] = {key: {} for key in group_keys}
    for start in range(0, len(group_keys), 5000):
        rows = connection.execute(
            select(WatchedFileRow.group_key, WatchedFileRow.path, WatchedFileRow.sha256).where(
                WatchedFileRow.model_id == model_id,
                WatchedFileRow.group_key.in_(group_keys[start : start + 5000]),
            )
        )
        for row in rows:
            hashes[row.group_key][row.path] = row.sha256
    return hashes


def _sort_in(gathered: Gathered, taken: Taken) -> None:
    key = taken.group.group_key
    if taken.error is None:
        hashes = tuple((file.name, file.identity, file.sha256) for file in taken.files)
        gathered.loaded.append(LoadedFiles(taken.group, taken.read_at_ns, hashes))
        return
    values = taken.error.values
    if values["reason"] == "known":
        gathered.known_refused.append(taken.group)
        return
    refused = Refused(
        key=key,
        file=str(values["file"]),
        reason=str(values["reason"]),
        detail=str(values["detail"]),
        files_sha256=taken.files_sha256,
        group=taken.group,
    )
    (gathered.unstable if taken.is_unstable else gathered.refused).append(refused)


def _stage(store: Store, model_id: int, seq: int, batch: Mapping[str, GroupContent], gathered: Gathered) -> None:
    with store.database.write() as connection:
        stage_groups(connection, model_id, seq, batch.values())
    for key, content in batch.items():
        gathered.contents[key] = GroupContent(content.sha256, (), content.integrity, None)


def _remember_files(
    connection: Connection, model_id: int, loaded: Sequence[LoadedFiles], removed: Sequence[str]
) -> None:
    keys = [entry.group.group_key for entry in loaded]
    for start in range(0, len(all_keys := [*keys, *removed]), 5000):
        connection.execute(
            delete(WatchedFileRow).where(
                WatchedFileRow.model_id == model_id, WatchedFileRow.group_key.in_(all_keys[start : start + 5000])
            )
        )
    rows = [
        {
            "model_id": model_id,
            "path": join_relpath(entry.group.directory, name),
            "group_key": entry.group.group_key,
            "dev": identity.dev,
            "ino": identity.ino,
            "size_bytes": identity.size_bytes,
            "mtime_ns": identity.mtime_ns,
            "ctime_ns": identity.ctime_ns,
            "read_at_ns": entry.read_at_ns,
            "sha256": sha256,
        }
        for entry in loaded
        for name, identity, sha256 in entry.hashes
    ]
    if rows:
        connection.execute(insert(WatchedFileRow), rows)


def forget_refusals(connection: Connection, model_id: int, keys: Sequence[str]) -> None:
    """Their cause is gone."""
    for start in range(0, len(keys), 5000):
        connection.execute(
            delete(RefusalRow).where(
                RefusalRow.model_id == model_id, RefusalRow.group_key.in_(keys[start : start + 5000])
            )
        )
