"""Changing what is said of a version; what it predicts never changes."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.formats import Event
from mmserver.registry.changes import announce, touch, touch_model
from mmserver.registry.fields import (
    Number,
    check_size,
    checked_description,
    checked_metrics,
    checked_tags,
    set_and_removed,
)
from mmserver.registry.finding import find_registered_model, find_version
from mmserver.registry.versions import RegisteredVersion, registered_version
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import RegisteredVersionRow
from mmserver.storage.times import text_from_datetime


def update_metrics(
    store: Store, model_name: str, label: str, metrics: Mapping[str, Number | None], by: Actor
) -> RegisteredVersion:
    """Set the metrics that are named and remove those that are None; the others stay.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound, ReadOnly
        RequestInvalid: names the metric that is not a finite number.
    """
    named, gone = set_and_removed(metrics, "metrics")
    given = checked_metrics(named)

    def merged(row: Row[Any]) -> dict[str, str]:
        before: dict[str, Number] = msgspec.json.decode(row.metrics)
        after = {name: number for name, number in {**before, **given}.items() if name not in gone}
        check_size(after, "metrics")
        return {"metrics": _json(after)}

    detail = {"metrics": {**given, **dict.fromkeys(sorted(gone))}}
    return _change(store, model_name, label, merged, action="version.measured", detail=detail, by=by)


def annotate_version(
    store: Store,
    model_name: str,
    label: str,
    by: Actor,
    *,
    description: str | None = None,
    tags: Mapping[str, str | None] | None = None,
) -> RegisteredVersion:
    """Say something else of a version. Tags that are named are set, those that are None removed; None as a whole: as it is.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound, ReadOnly
        RequestInvalid: names the field that cannot be used.
    """
    text = checked_description(description) if description is not None else None
    named, gone = set_and_removed(tags or {}, "tags")
    given = checked_tags(named)

    def described(row: Row[Any]) -> dict[str, str]:
        before: dict[str, str] = msgspec.json.decode(row.tags)
        after = {name: value for name, value in {**before, **given}.items() if name not in gone}
        check_size(after, "tags")
        return {"description": row.description if text is None else text, "tags": _json(after)}

    detail: dict[str, Any] = {"tags": {**given, **dict.fromkeys(sorted(gone))}} if tags else {}
    if text is not None:
        detail["description"] = text
    return _change(store, model_name, label, described, action="version.described", detail=detail, by=by)


def _change(
    store: Store,
    model_name: str,
    label: str,
    changed: Callable[[Row[Any]], dict[str, str]],
    *,
    action: str,
    detail: dict[str, Any],
    by: Actor,
) -> RegisteredVersion:
    """One transaction: the columns that `changed` gives for the row as it is, and the audit if they differ from it."""
    store.check_writable()
    with store.changing(model_name):
        with store.database.write() as connection:
            at = text_from_datetime(store.now())
            model = find_registered_model(connection, model_name)
            version = find_version(connection, model, label)
            before = _row(connection, version.id)
            values = changed(before)
            is_changed = any(getattr(before, name) != value for name, value in values.items())
            if is_changed:
                touch(connection, model, version.id, at, **values)
                touch_model(connection, model.id, at)
                record_audit(connection, at=at, actor=by.name, action=action, target=model_name,
                             detail={"version": version.label, **detail}, request_id=by.request_id)  # fmt: skip
            result = registered_version(connection, model, version.id)
        described = Event(kind="version_described", model_name=model_name, version=version.label)
        announce(store, model_name, [described] if is_changed else [])
        return result


def _row(connection: Connection, version_id: int) -> Row[Any]:
    query = select(RegisteredVersionRow.__table__).where(RegisteredVersionRow.version_id == version_id)
    return connection.execute(query).one()


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
