"""What every change of a registry ends with: what the model serves now, who is told, and the catalog of this process."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, select, update

from mmserver.catalog.history import PRODUCTION, append_serving
from mmserver.catalog.store import Store
from mmserver.formats import Event
from mmserver.registry.finding import REGISTERED, in_stage, last_served_id
from mmserver.registry.layout import show_change
from mmserver.registry.semantic_versions import precedence
from mmserver.storage.tables import ModelRow, RegisteredVersionRow, VersionRow

_TOUCH_VERSION = update(RegisteredVersionRow).where(RegisteredVersionRow.version_id == bindparam("touched_id"))
_TOUCH_MODEL = update(ModelRow).where(ModelRow.id == bindparam("touched_id"))


def serve_what_is_due(connection: Connection, model: Row[Any], at: str, reason: str) -> str | None:
    """Serve what is in production, else the newest version, from now on.

    The newest of a registered model is the last in the order of semantic versions that was not retired; where all were, it
    goes on with the one that it had.

    Returns:
        the label, if it is another version than before
    """
    served_id = last_served_id(connection, model.id)
    due = in_stage(connection, model.id, PRODUCTION) or _newest(connection, model, served_id)
    if due.id == served_id:
        return None
    append_serving(connection, model_id=model.id, version_id=due.id, version_label=due.label, since=at, reason=reason)
    label: str = due.label
    return label


def touch(connection: Connection, model: Row[Any], version_id: int, at: str, **values: Any) -> None:
    """Note when a registered version changed last, and what (its model: `touch_model`); `values` are RegisteredVersionRow's columns."""
    if model.kind == REGISTERED:
        connection.execute(_TOUCH_VERSION, {"touched_id": version_id, "updated_at": at, **values})


def touch_model(connection: Connection, model_id: int, at: str) -> None:
    """Note when a registered model changed last."""
    connection.execute(_TOUCH_MODEL, {"touched_id": model_id, "refreshed_at": at})


def announce(store: Store, model_name: str, events: Iterable[Event]) -> None:
    """After the commit: serve what was committed, here or by another process, then tell the plugins."""
    store.reload_model(model_name)
    show_change(store, model_name)
    for event in events:
        store.plugins.notify(event)


def _newest(connection: Connection, model: Row[Any], served_id: int | None) -> Row[Any]:
    query: Select[*tuple[Any, ...]] = select(VersionRow.id, VersionRow.label).where(VersionRow.model_id == model.id)
    if model.kind != REGISTERED:
        return connection.execute(query.order_by(VersionRow.seq.desc()).limit(1)).one()
    query = query.add_columns(RegisteredVersionRow.archived_at).join(
        RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id
    )
    rows: Sequence[Row[Any]] = connection.execute(query).all()
    candidates = [row for row in rows if row.archived_at is None]
    if not candidates:
        candidates = [row for row in rows if row.id == served_id] or list(rows)
    return max(candidates, key=lambda row: precedence(row.label))
