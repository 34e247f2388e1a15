"""Making a new version of a model out of changed groups, in one transaction."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or

from mmserver.catalog.catalog import Version
from mmserver.catalog.history import PRODUCTION, append_serving
from mmserver.catalog.ingest import INGEST_REVISION, IngestedGroup
from mmserver.catalog.loading import (
    changed_group_keys,
    changed_groups,
    group_keys_by_symbol,
    load_groups,
    union_of_factors,
)
from mmserver.errors import AmbiguousSymbols, ModelChanged
from mmserver.storage.blobs import put_blob, put_encoded_blob
from mmserver.storage.tables import (
    FactorListRow,
    GroupFileRow,
    GroupRow,
    MembershipRow,
    ModelRow,
    StageRow,
    VersionRow,
)
from mmserver.storage.times import text_from_datetime


@dataclass(frozen=True, slots=True)
class GroupFile:
    """One file of a group with the bytes that were read and hashed; `data` is empty where the group is stored already."""

    name: str
    role: str
    sha256: str
    data: bytes


@dataclass(frozen=True, slots=True)
class GroupContent:
    """A group ready to be stored; `ingested` is None where the very same content is stored already."""

    sha256: str
    files: tuple[GroupFile, ...]
    integrity: str
    ingested: IngestedGroup | None


@dataclass(frozen=True, slots=True)
class Published:
    """A version that was just made; the groups are named against the version before."""

    version_id: int
    label: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    updated: tuple[str, ...]


def group_sha256(group_key: str, files: Iterable[tuple[str, str]], integrity: str) -> str:
    """The identity of a group's content: its key, its files' names and hashes, and how they are read.

    `files` are (name, sha256) pairs.
    """
    described = [INGEST_REVISION, group_key, integrity, sorted(files)]
    return hashlib.sha256(msgspec.json.encode(described)).hexdigest()


def stored_group_id(connection: Connection, sha256: str) -> int | None:
    """The id of the group with that content, if it was ever stored."""
    return connection.execute(select(GroupRow.id).where(GroupRow.sha256 == sha256)).scalar()


def stage_groups(connection: Connection, model_id: int, seq: int, contents: Iterable[GroupContent]) -> None:
    """Store groups of a version that is not there yet, so that a large one need not be held in memory.

    They are tied to the model from that version on, which keeps them from being taken for garbage; if the version never
    comes, the next one clears the ties away.
    """
    _require_model(connection, model_id)
    ids = [store_group(connection, content) for content in contents]
    connection.execute(
        insert(MembershipRow),
        [{"model_id": model_id, "group_id": group_id, "first_seq": seq, "last_seq": None} for group_id in ids],
    )


def publish_version(
    connection: Connection,
    *,
    model_id: int,
    base: Version | None,
    contents: Mapping[str, GroupContent],
    removed: Iterable[str],
    now: datetime,
    reason: str,
) -> Published | None:
    """Store the changed groups and make them a version; None when nothing differs from `base`.

    `contents` is by group key; the transaction is the caller's.

    Raises:
        AmbiguousSymbols: two groups of the result have one symbol; nothing may be committed then.
        ModelChanged: `base` is not the newest version any more, or the model is not there any more.
    """
    _require_model(connection, model_id)
    seq = base.seq + 1 if base else 1
    newest = connection.execute(select(func.max(VersionRow.seq)).where(VersionRow.model_id == model_id)).scalar() or 0
    if newest != seq - 1:
        raise ModelChanged(model_name=base.model_name if base else "the model")
    before = {key: group.id for key, group in base.groups.items()} if base else {}
    ids = {key: store_group(connection, content) for key, content in contents.items()}
    removed_keys = tuple(sorted(key for key in removed if key in before and key not in ids))
    changed = {key: group_id for key, group_id in ids.items() if before.get(key) != group_id}
    if not changed and not removed_keys:
        return None
    loaded = load_groups(connection, list(changed.values()))
    new = {key: loaded[group_id] for key, group_id in changed.items()}
    groups = changed_groups(base.groups if base else {}, removed_keys, new)
    if base is not None:
        _check_symbols(changed_group_keys(base, removed_keys, new))
    else:
        _check_symbols(group_keys_by_symbol(groups.values()))
    label = _free_label(connection, model_id, now)
    published_added = tuple(sorted(key for key in changed if key not in before))
    published_updated = tuple(sorted(key for key in changed if key in before))
    version_id = connection.execute(
        insert(VersionRow)
        .values(
            model_id=model_id,
            seq=seq,
            label=label,
            sha256=version_sha256(group.sha256 for group in groups.values()),
            created_at=text_from_datetime(now),
            reason=reason,
            added=_json(published_added),
            removed=_json(removed_keys),
            updated=_json(published_updated),
            symbol_count=len({group.symbol for group in groups.values()}),
            group_count=len(groups),
            factor_count=len(union_of_factors(groups.values())),
        )
        .returning(VersionRow.id)
    ).scalar_one()
    connection.execute(delete(MembershipRow).where(MembershipRow.model_id == model_id, MembershipRow.first_seq >= seq))
    _move_memberships(connection, model_id, seq, [before[key] for key in (*removed_keys, *published_updated)], changed)
    if not _is_pinned(connection, model_id):
        append_serving(
            connection,
            model_id=model_id,
            version_id=version_id,
            version_label=label,
            since=text_from_datetime(now),
            reason=reason,
        )
    return Published(version_id, label, published_added, removed_keys, published_updated)


def _is_pinned(connection: Connection, model_id: int) -> bool:
    """Whether its production stage says what it serves, whatever arrives."""
    query = select(StageRow.version_id).where(StageRow.model_id == model_id, StageRow.stage == PRODUCTION)
    return connection.execute(query).first() is not None


def _require_model(connection: Connection, model_id: int) -> None:
    """A registration that is under way beside a server that starts is taken for an unfinished one, and cleared away."""
    if connection.execute(select(ModelRow.id).where(ModelRow.id == model_id)).first() is None:
        raise ModelChanged(model_name="the model")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def version_sha256(group_hashes: Iterable[str]) -> str:
    """The identity of a version's content: its groups', in any order."""
    return hashlib.sha256("\n".join(sorted(group_hashes)).encode()).hexdigest()


def _check_symbols(keys_by_symbol: Mapping[str, tuple[str, ...]]) -> None:
    several = [
        f"symbol {symbol.upper()} maps to {' and '.join(sorted(keys))}"
        for symbol, keys in sorted(keys_by_symbol.items())
        if len(keys) > 1
    ]
    if several:
        raise AmbiguousSymbols(detail="; ".join(several[:10]))


def _free_label(connection: Connection, model_id: int, now: datetime) -> str:
    """UTC `YYYYMMDD_HHMMSS`, with `_2`, `_3`, … where a version of that second is there already."""
    first = now.strftime("%Y%m%d_%H%M%S")
    taken = set(
        connection.execute(
            select(VersionRow.label).where(VersionRow.model_id == model_id, VersionRow.label.startswith(first))
        ).scalars()
    )
    label, number = first, 1
    while label in taken:
        number += 1
        label = f"{first}_{number}"
    return label


def _move_memberships(
    connection: Connection, model_id: int, seq: int, ended_ids: list[int], begun: Mapping[str, int]
) -> None:
    for start in range(0, len(ended_ids), 5000):
        connection.execute(
            update(MembershipRow)
            .where(
                MembershipRow.model_id == model_id,
                MembershipRow.last_seq.is_(None),
                MembershipRow.group_id.in_(ended_ids[start : start + 5000]),
            )
            .values(last_seq=seq - 1)
        )
    if begun:
        connection.execute(
            insert(MembershipRow),
            [
                {"model_id": model_id, "group_id": group_id, "first_seq": seq, "last_seq": None}
                for group_id in begun.values()
            ],
        )


def store_group(connection: Connection, content: GroupContent) -> int:
    """Store a group with its files, unless the very same content is stored already.

    Returns:
        its id

    Raises:
        ModelChanged: it was stored when it was looked for, and has been let go since.
    """
    known = stored_group_id(connection, content.sha256)
    if known is not None:
        return known
    group = content.ingested
    if group is None:
        raise ModelChanged(model_name="the model")
    factors = _json(group.factors)
    factors_sha256 = hashlib.sha256(factors.encode()).hexdigest()
    connection.execute(insert_or(FactorListRow).values(sha256=factors_sha256, factors=factors).on_conflict_do_nothing())
    if group.payload_gzip is not None and group.payload_sha256 is not None:
        put_encoded_blob(
            connection,
            sha256=group.payload_sha256,
            codec="gzip",
            content=group.payload_gzip,
            size_bytes=group.payload_size_bytes,
        )
    group_id: int = connection.execute(
        insert(GroupRow)
        .values(
            sha256=content.sha256,
            group_key=group.group_key,
            symbol=group.symbol,
            return_name=group.return_name,
            dim=group.dim,
            train_samples=group.train_samples,
            ic_mean=group.ic_mean,
            factors_sha256=factors_sha256,
            detail_sha256=put_blob(connection, group.detail),
            payload_sha256=group.payload_sha256,
            manifest_sha256=put_blob(connection, group.manifest) if group.manifest is not None else None,
            model_sha256=put_blob(connection, group.model_content) if group.model_content is not None else None,
            no_model_reason=group.no_model_reason,
            integrity=content.integrity,
        )
        .returning(GroupRow.id)
    ).scalar_one()
    connection.execute(
        insert(GroupFileRow),
        [
            {
                "group_id": group_id,
                "name": file.name,
                "role": file.role,
                "sha256": put_blob(connection, file.data),
                "size_bytes": len(file.data),
            }
            for file in content.files
        ],
    )
    return group_id
