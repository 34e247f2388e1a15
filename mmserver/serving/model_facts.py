"""Facts about models for lists of many: read for all of them together, kept by content, never one query a group."""

import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import func, select

from mmserver.catalog.catalog import Group, Version
from mmserver.catalog.info import InfoFacts
from mmserver.errors import BlobCorrupt
from mmserver.registry.said import Said
from mmserver.serving.training_facts import accuracy
from mmserver.storage.database import Database
from mmserver.storage.decoding import StoredBlob, decoded_blob
from mmserver.storage.tables import BlobRow, GroupFileRow, GroupRow, MembershipRow, VersionRow

_IDS_A_QUERY = 5000  # below SQLite's limit of bound values in one statement
_MAX_KEPT = 200_000  # groups; a few hundred bytes each
Key = TypeVar("Key", str, int)
log = logging.getLogger(__name__)


class GroupFacts(msgspec.Struct, frozen=True):
    """What is known of one group's model. `training_date` is as its info file has it, `accuracy` as `model_info` says it."""

    kind: str | None
    metrics: Mapping[str, float]
    accuracy: float | None
    training_date: str | int | float | None


class _Kind(msgspec.Struct, frozen=True):
    kind: str


class _Record(msgspec.Struct, frozen=True):
    """The part of a `GroupRecord` that facts are made of."""

    info: dict[str, Any]
    facts: InfoFacts
    model: _Kind | None


NOTHING = GroupFacts(None, {}, None, None)


class ModelFacts:
    """Facts of groups, read when they are first asked for; safe for all threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._facts: dict[str, GroupFacts] = {}
        self._sizes: dict[int, int] = {}
        self._lock = threading.Lock()

    def of_groups(self, details: Collection[str]) -> Mapping[str, GroupFacts]:
        """Facts by `Group.detail_sha256`."""
        with self._lock:
            _make_room(self._facts, details)
            missing = [sha256 for sha256 in dict.fromkeys(details) if sha256 not in self._facts]
            if missing:
                self._facts.update(self._read_facts(missing))
            return {sha256: self._facts.get(sha256, NOTHING) for sha256 in details}

    def sizes_bytes(self, versions: Iterable[Version]) -> Mapping[int, int]:
        """By version id: how large its model files are, as their producer wrote them; of one model in two forms, the larger."""
        wanted = {version.id: [group.id for group in version.groups.values()] for version in versions}
        with self._lock:
            ids = [group_id for group_ids in wanted.values() for group_id in group_ids]
            _make_room(self._sizes, ids)
            missing = [group_id for group_id in dict.fromkeys(ids) if group_id not in self._sizes]
            if missing:
                self._sizes.update(self._read_sizes(missing))
            return {version_id: sum(map(self._sizes.__getitem__, of_it)) for version_id, of_it in wanted.items()}

    def of_versions_with_one_group(self, model_id: int, seqs: Collection[int]) -> Mapping[int, GroupFacts]:
        """By the version's number: facts of those versions of the model that have one group."""
        found = {}
        with self._database.read() as connection:
            for some in _chunks(list(seqs)):
                rows = connection.execute(
                    select(VersionRow.seq, GroupRow.detail_sha256)
                    .join(MembershipRow, MembershipRow.model_id == VersionRow.model_id)
                    .join(GroupRow, GroupRow.id == MembershipRow.group_id)
                    .where(
                        VersionRow.model_id == model_id,
                        VersionRow.seq.in_(some),
                        VersionRow.group_count == 1,
                        MembershipRow.first_seq <= VersionRow.seq,
                        MembershipRow.last_seq.is_(None) | (MembershipRow.last_seq >= VersionRow.seq),
                    )
                )
                found.update({row.seq: row.detail_sha256 for row in rows})
        facts = self.of_groups(set(found.values()))
        return {seq: facts[detail] for seq, detail in found.items()}

    def _read_facts(self, details: Sequence[str]) -> Iterator[tuple[str, GroupFacts]]:
        with self._database.read() as connection:
            for some in _chunks(details):
                rows = connection.execute(
                    select(BlobRow.sha256, BlobRow.codec, BlobRow.content, BlobRow.size_bytes).where(
                        BlobRow.sha256.in_(some)
                    )
                )
                for row in rows:
                    stored = StoredBlob(row.codec, row.content, row.size_bytes)
                    try:
                        record = msgspec.json.decode(decoded_blob(row.sha256, stored), type=_Record)
                    except BlobCorrupt as error:
                        log.error("%s", error)
                        continue
                    yield row.sha256, _facts_from_record(record)

    def _read_sizes(self, group_ids: Sequence[int]) -> Iterator[tuple[int, int]]:
        with self._database.read() as connection:
            for some in _chunks(group_ids):
                rows = connection.execute(
                    select(GroupFileRow.group_id, func.max(GroupFileRow.size_bytes))
                    .where(GroupFileRow.group_id.in_(some), GroupFileRow.role == "model")
                    .group_by(GroupFileRow.group_id)
                )
                sizes = {row[0]: row[1] for row in rows}
                yield from ((group_id, sizes.get(group_id, 0)) for group_id in some)


def told_by(version: Version) -> Group | None:
    """The group that speaks for the kind of all models of a version: its first that has one."""
    return next((group for group in version.groups.values() if group.can_predict), None)


def said_accuracy(said: Said | None, of_info: float | None) -> float | None:
    """As the metrics of a registered version say it, which may be changed later, else as the info file does."""
    found = accuracy({"metrics": said.metrics}) if said else None
    return of_info if found is None else found


def training_date(facts: InfoFacts) -> str | int | float | None:
    """When the model was trained, as its info file says it; else the end of what it was trained on."""
    return facts.created_at if facts.created_at is not None else facts.train_end


def _facts_from_record(record: _Record) -> GroupFacts:
    kind = record.model.kind if record.model else None
    return GroupFacts(kind, record.facts.metrics, accuracy(record.info), training_date(record.facts))


def _make_room(kept: dict[Key, Any], wanted: Collection[Key]) -> None:
    """What is kept is dropped whole when there is too much of it; it is read again in a second."""
    if len(kept) + len(wanted) > _MAX_KEPT:
        kept.clear()


def _chunks(keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
    for first in range(0, len(keys), _IDS_A_QUERY):
        yield keys[first : first + _IDS_A_QUERY]
