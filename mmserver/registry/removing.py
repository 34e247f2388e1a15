"""Removing a model, or one version of a registered model, and the model with its last one."""

from typing import Any

from sqlalchemy import Connection, Row, delete, select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import remove_model
from mmserver.catalog.running import check_not_in_experiment
from mmserver.catalog.store import Store
from mmserver.errors import RequestInvalid, VersionInUse
from mmserver.formats import Event
from mmserver.registry.changes import announce, serve_what_is_due, touch_model
from mmserver.registry.finding import REFERENCES, find_registered_model, find_version, reference_from_text
from mmserver.registry.layout import show_change
from mmserver.registry.stages import check_not_in_production
from mmserver.storage.audit import record_audit
from mmserver.storage.blobs import delete_orphan_blobs
from mmserver.storage.tables import MembershipRow, ModelRow, RegisteredVersionRow, StageRow, VersionRow
from mmserver.storage.times import text_from_datetime

_MAX_NAMED = 5


def delete_model(store: Store, model_name: str, by: Actor) -> None:
    """Forget a model with all its versions, and what the registry's directory has of it.

    Raises:
        ModelNotFound, ReadOnly
        VersionInUse: it is registered and has a version in production, or one is in a running experiment.
    """
    remove_model(store, model_name, by)
    show_change(store, model_name)


def delete_version(store: Store, model_name: str, label: str, by: Actor) -> None:
    """Forget a version with everything that no other has; with its last version the model is gone.

    Raises:
        ModelNotFound, WrongModelKind, VersionNotFound, ReadOnly
        RequestInvalid: `latest` or a stage is no label: asked twice for what is the latest, two would be gone.
        VersionInUse: it is in production, in a running experiment, or another version derives from it.
    """
    store.check_writable()
    if reference_from_text(label) in REFERENCES:
        problem = "name the label of the version that is to be forgotten"
        raise RequestInvalid(f"version: {problem}", errors=[{"loc": "version", "msg": problem}])
    with store.changing(model_name):
        served: str | None = None
        with store.database.write() as connection:
            at = text_from_datetime(store.now())
            model = find_registered_model(connection, model_name)
            version = find_version(connection, model, label)
            check_not_in_production(connection, model, version)
            check_not_in_experiment(connection, model.name, version.label)
            _check_no_source(connection, model, version)
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


def _check_no_source(connection: Connection, model: Row[Any], version: Row[Any]) -> None:
    """Raises VersionInUse for what another version was made of: nothing could tell any more what that comes near to."""
    derived = (
        select(VersionRow.label)
        .join(RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id)
        .where(
            VersionRow.model_id == model.id,
            VersionRow.id != version.id,
            RegisteredVersionRow.derived_from == version.label,
        )
    )
    labels = connection.execute(derived.order_by(VersionRow.seq)).scalars().all()
    if labels:
        named = ", ".join(labels[:_MAX_NAMED]) + (" and others" if len(labels) > _MAX_NAMED else "")
        use, instead = f"what {named} was made of", "remove that first"
        raise VersionInUse(model_name=model.name, version=version.label, use=use, instead=instead)
