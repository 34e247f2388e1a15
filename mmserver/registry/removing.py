"""Removing a model, or one version of a registered model, and the model with its last one."""

from sqlalchemy import delete, select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import remove_model
from mmserver.catalog.store import Store
from mmserver.formats import Event
from mmserver.registry.changes import announce, serve_what_is_due, touch_model
from mmserver.registry.finding import find_registered_model, find_version
from mmserver.registry.layout import show_change
from mmserver.registry.stages import check_not_in_production
from mmserver.storage.audit import record_audit
from mmserver.storage.blobs import delete_orphan_blobs
from mmserver.storage.tables import MembershipRow, ModelRow, StageRow, VersionRow
from mmserver.storage.times import text_from_datetime


def delete_model(store: Store, model_name: str, by: Actor) -> None:
    """Forget a model with all its versions, and what the registry's directory has of it.

    Raises:
        ModelNotFound, ReadOnly
        VersionInUse: it is registered, and has a version in production.
    """
    remove_model(store, model_name, by)
    show_change(store, model_name)


def delete_version(store: Store, model_name: str, label: str, by: Actor) -> None:
    """Forget a version with everything that no other has; with its last version the model is gone.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound, ReadOnly
        VersionInUse: it is in production.
    """
    store.check_writable()
    with store.changing(model_name):
        served: str | None = None
        with store.database.write() as connection:
            at = text_from_datetime(store.now())
            model = find_registered_model(connection, model_name)
            version = find_version(connection, model, label)
            check_not_in_production(connection, model, version)
            connection.execute(delete(StageRow).where(StageRow.version_id == version.id))
            connection.execute(
                delete(MembershipRow).where(MembershipRow.model_id == model.id, MembershipRow.first_seq == version.seq)
            )
            connection.execute(delete(VersionRow).where(VersionRow.id == version.id))
            of_model = select(VersionRow.id).where(VersionRow.model_id == model.id).limit(1)
            is_last = connection.execute(of_model).first() is None
            if is_last:
                connection.execute(delete(ModelRow).where(ModelRow.id == model.id))
            else:
                served = serve_what_is_due(connection, model, at, "newest")
                touch_model(connection, model.id, at)
            delete_orphan_blobs(connection)
            detail = {"version": version.label, "was_last": is_last}
            record_audit(connection, at=at, actor=by.name, action="version.removed", target=model_name, detail=detail,
                         request_id=by.request_id)  # fmt: skip
        events = [Event(kind="version_removed", model_name=model_name, version=version.label)]
        if is_last:
            store.drop_model(model_name)
            show_change(store, model_name)
            events.append(Event(kind="model_removed", model_name=model_name))
            for event in events:
                store.plugins.notify(event)
            return
        if served is not None:
            events.append(Event(kind="version_served", model_name=model_name, version=served))
        announce(store, model_name, events)
