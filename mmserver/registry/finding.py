"""Models and versions as rows, for decisions inside of a transaction: other processes change them at the same time."""

from typing import Any

from sqlalchemy import Connection, Row, Select, select

from mmserver.catalog.history import LATEST, PRODUCTION, STAGING
from mmserver.errors import ModelNotFound, VersionNotFound, WrongModelKind
from mmserver.storage.tables import ModelRow, RegisteredVersionRow, ServingRow, StageRow, VersionRow

WATCHED = "watched"
REGISTERED = "registered"


def find_model(connection: Connection, model_name: str) -> Row[Any]:
    """The model's row.

    Raises:
        ModelNotFound: there is none, or it is just being registered.
    """
    has_version = select(VersionRow.id).where(VersionRow.model_id == ModelRow.id).exists()
    row = connection.execute(
        select(ModelRow.__table__).where(ModelRow.name == model_name, has_version)
    ).one_or_none()  # fmt: skip
    if row is None:
        raise ModelNotFound(model_name=model_name)
    return row


def find_registered_model(connection: Connection, model_name: str) -> Row[Any]:
    """As `find_model`.

    Raises:
        WrongModelKind: a directory is behind it.
    """
    row = find_model(connection, model_name)
    check_registered(row)
    return row


def check_registered(model: Row[Any]) -> None:
    """Raises WrongModelKind for a model that has a directory behind it."""
    if model.kind != REGISTERED:
        instead = (
            "its versions come from its directory, and cannot be registered, described, retired or removed one by one"
        )
        raise WrongModelKind(model_name=model.name, kind=model.kind, instead=instead)


def find_version(connection: Connection, model: Row[Any], reference: str) -> Row[Any]:
    """Id, seq and label of the version that a label, a stage or `latest` means.

    Raises:
        VersionNotFound: no such label, nothing is in the stage, or every version was retired.
    """
    row: Row[Any] | None
    if reference in (PRODUCTION, STAGING):
        row = in_stage(connection, model.id, reference)
        if row is None and reference == PRODUCTION and model.kind == WATCHED:
            row = _served(connection, model)
        missing = f"in {reference}"
    elif reference == LATEST:
        row = _served(connection, model)
        missing = "that was not retired"
    else:
        row = connection.execute(_versions(model.id).where(VersionRow.label == reference)).one_or_none()
        missing = repr(reference)
    if row is None:
        raise VersionNotFound(model_name=model.name, which=missing)
    return row


def in_stage(connection: Connection, model_id: int, stage: str) -> Row[Any] | None:
    """Id, seq and label of the version that is in the stage."""
    query = _versions(model_id).join(StageRow, StageRow.version_id == VersionRow.id)
    return connection.execute(query.where(StageRow.model_id == model_id, StageRow.stage == stage)).one_or_none()


def stages_of_model(connection: Connection, model_id: int) -> dict[int, str]:
    """Stages by version id."""
    rows = connection.execute(select(StageRow.version_id, StageRow.stage).where(StageRow.model_id == model_id)).all()
    return {row.version_id: row.stage for row in rows}


def last_served_id(connection: Connection, model_id: int) -> int | None:
    """The version that the model serves; None where that was removed in this transaction."""
    query = select(ServingRow.version_id).where(ServingRow.model_id == model_id)
    return connection.execute(query.order_by(ServingRow.id.desc()).limit(1)).scalar()


def _served(connection: Connection, model: Row[Any]) -> Row[Any] | None:
    version_id = last_served_id(connection, model.id)
    if model.kind == REGISTERED and _is_retired(connection, version_id):
        return None
    return connection.execute(_versions(model.id).where(VersionRow.id == version_id)).one_or_none()


def _is_retired(connection: Connection, version_id: int | None) -> bool:
    query = select(RegisteredVersionRow.archived_at).where(RegisteredVersionRow.version_id == version_id)
    return connection.execute(query).scalar() is not None


def _versions(model_id: int) -> Select[*tuple[Any, ...]]:
    query: Select[*tuple[Any, ...]] = select(VersionRow.id, VersionRow.seq, VersionRow.label)
    return query.where(VersionRow.model_id == model_id)
