"""What was said of registered versions, for lists of many: one query for all of them."""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec
from sqlalchemy import select

from mmserver.catalog.catalog import Model
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


class ServedSaid:
    """What was said of the versions that are served, read when they, or anything of their model, changed; safe for all threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: Mapping[tuple[int, datetime], Said] = {}
        self._lock = threading.Lock()

    def of_models(self, models: Iterable[Model]) -> Mapping[int, Said]:
        """By the id of the version that is served; watched models are left out. `models` are all there are: what was kept of
        others is dropped.
        """
        # Every change of a registered model moves its `refreshed_at`, and what is read is never older than the catalog.
        keys = {(model.serving.id, model.refreshed_at) for model in models if not model.is_watched}
        with self._lock:
            missing = {key: key[0] for key in keys if key not in self._kept}
            found = said_of_versions(self._database, missing.values())
            new = {key: found[version_id] for key, version_id in missing.items() if version_id in found}
            self._kept = {key: said for key, said in self._kept.items() if key in keys} | new
            return {version_id: said for (version_id, _), said in self._kept.items()}


def said_of_versions(database: Database, version_ids: Collection[int]) -> Mapping[int, Said]:
    """By version id; those that were not registered one by one are left out."""
    ids = sorted(set(version_ids))
    found: dict[int, Said] = {}
    if not ids:
        return found
    table = RegisteredVersionRow
    with database.read() as connection:
        for first in range(0, len(ids), _IDS_A_QUERY):
            query = select(table.version_id, table.model_type, table.metrics, table.archived_at)
            rows = connection.execute(query.where(table.version_id.in_(ids[first : first + _IDS_A_QUERY])))
            for row in rows:
                metrics = msgspec.json.decode(row.metrics)
                found[row.version_id] = Said(row.model_type, metrics, row.archived_at is not None)
    return found
