"""What was said of registered versions, for lists of many: one query for all of them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec
from sqlalchemy import select

from mmserver.registry.fields import Number
from mmserver.storage.database import Database
from mmserver.storage.tables import RegisteredVersionRow

_IDS_A_QUERY = 5000  # below SQLite's limit of bound values in one statement


@dataclass(frozen=True, slots=True)
class Said:
    """What lists show of a registered version."""

    model_type: str
    metrics: dict[str, Number]
    is_archived: bool


def said_of_versions(database: Database, version_ids: Collection[int]) -> Mapping[int, Said]:
    """By version id; those that were not registered one by one are left out."""
    ids = sorted(set(version_ids))
    found = {}
    table = RegisteredVersionRow
    with database.read() as connection:
        for first in range(0, len(ids), _IDS_A_QUERY):
            query = select(table.version_id, table.model_type, table.metrics, table.archived_at)
            rows = connection.execute(query.where(table.version_id.in_(ids[first : first + _IDS_A_QUERY])))
            for row in rows:
                metrics = msgspec.json.decode(row.metrics)
                found[row.version_id] = Said(row.model_type, metrics, row.archived_at is not None)
    return found
