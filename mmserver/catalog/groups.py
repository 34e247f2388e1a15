"""Finding a group in a version, and reading what is stored about it."""

from collections.abc import Iterable

import msgspec
from sqlalchemy import select

from mmserver.catalog.catalog import Group, Refusal, Version
from mmserver.catalog.ingest import GroupRecord
from mmserver.catalog.store import Store
from mmserver.catalog.stored_models import group_record
from mmserver.catalog.symbols import ALL_SYMBOLS, comparable_symbol, split_group_key
from mmserver.errors import GroupRefused, SymbolAmbiguous, SymbolNotFound
from mmserver.storage.tables import GroupFileRow


class StoredArtifact(msgspec.Struct, frozen=True):
    """One source file of a group, as it was when it was read."""

    name: str
    role: str
    sha256: str
    size_bytes: int


class GroupDetail(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a group besides its model's trees."""

    record: GroupRecord
    artifacts: list[StoredArtifact]


def find_group(version: Version, symbol: str, group_key: str | None = None, refusals: Iterable[Refusal] = ()) -> Group:
    """The group of a symbol, whichever way the symbol is written, else the one of all symbols; `group_key` chooses where
    several share it.

    `refusals` are the model's: a symbol whose only artifacts were refused is not unknown, but not there yet.

    Raises:
        GroupRefused: there are artifacts, and none of them could ever be served.
        SymbolNotFound: no group has the symbol, or none of them has that group_key.
        SymbolAmbiguous: several groups share the symbol and no group_key was named.
    """
    keys = version.group_keys_by_symbol.get(comparable_symbol(symbol), ())
    if group_key is not None:
        if group_key not in keys:
            raise SymbolNotFound(model_name=version.model_name, symbol=f"{symbol} with group_key {group_key}")
        return version.groups[group_key]
    if not keys:
        for refusal in refusals:
            if comparable_symbol(split_group_key(refusal.group_key)[0]) == comparable_symbol(symbol):
                raise GroupRefused(file=refusal.file, reason=refusal.reason, detail=refusal.detail)
        for key in version.group_keys_by_symbol.get(ALL_SYMBOLS, ()):
            return version.groups[key]
        raise SymbolNotFound(model_name=version.model_name, symbol=symbol)
    if len(keys) > 1:
        raise SymbolAmbiguous(symbol=symbol, group_keys=" and ".join(keys), model_name=version.model_name)
    return version.groups[keys[0]]


def group_detail(store: Store, group: Group) -> GroupDetail:
    """The group's IC table, info, dimensions, model summary and files; reads the database."""
    with store.database.read() as connection:
        record = group_record(connection, group)
        rows = connection.execute(
            select(GroupFileRow.__table__).where(GroupFileRow.group_id == group.id).order_by(GroupFileRow.name)
        ).all()
    artifacts = [StoredArtifact(name=r.name, role=r.role, sha256=r.sha256, size_bytes=r.size_bytes) for r in rows]
    return GroupDetail(record=record, artifacts=artifacts)
