"""Models and versions as rows, for decisions inside of a transaction: other processes change them at the same time.

The statements are built once: a promotion asks a dozen, and to build them would cost as much as to run them.
"""

from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, select

from mmserver.catalog.history import LATEST, PRODUCTION, STAGING
from mmserver.errors import ModelNotFound, VersionNotFound, WrongModelKind
from mmserver.storage.tables import ModelRow, RegisteredVersionRow, ServingRow, StageRow, VersionRow

REFERENCES = frozenset({LATEST, PRODUCTION, STAGING})
WATCHED = "watched"
REGISTERED = "registered"

_HAS_VERSION = select(VersionRow.id).where(VersionRow.model_id == ModelRow.id).exists()
_MODEL = select(ModelRow.__table__).where(ModelRow.name == bindparam("model_name"), _HAS_VERSION)
_VERSIONS: Select[*tuple[Any, ...]] = select(VersionRow.id, VersionRow.seq, VersionRow.label).where(
    VersionRow.model_id == bindparam("model_id")
)
_BY_LABEL = _VERSIONS.where(VersionRow.label == bindparam("label"))
_BY_ID = _VERSIONS.where(VersionRow.id == bindparam("version_id"))
_IN_STAGE = _VERSIONS.join(StageRow, StageRow.version_id == VersionRow.id).where(
    StageRow.model_id == bindparam("model_id"), StageRow.stage == bindparam("stage")
)
_STAGES = select(StageRow.version_id, StageRow.stage).where(StageRow.model_id == bindparam("model_id"))
_LAST_SERVED = (
    select(ServingRow.version_id)
    .where(ServingRow.model_id == bindparam("model_id"))
    .order_by(ServingRow.id.desc())
    .limit(1)
)
_ARCHIVED_AT = select(RegisteredVersionRow.archived_at).where(
    RegisteredVersionRow.version_id == bindparam("version_id")
)


def find_model(connection: Connection, model_name: str) -> Row[Any]:
    """The model's row.

    Raises:
        ModelNotFound: there is none, or it is just being registered.
    """
    row = connection.execute(_MODEL, {"model_name": model_name}).one_or_none()
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


def reference_from_text(text: str) -> str:
    """Stages in any case, as everywhere here; labels cannot be those words."""
    lowered = text.casefold()
    return lowered if lowered in REFERENCES else text


def find_version(connection: Connection, model: Row[Any], reference: str) -> Row[Any]:
    """Id, seq and label of the version that a label, a stage or `latest` means.

    Raises:
        VersionNotFound: no such label, nothing is in the stage, or every version was retired.
    """
    row: Row[Any] | None
    reference = reference_from_text(reference)
    if reference in (PRODUCTION, STAGING):
        row = in_stage(connection, model.id, reference)
        if row is None and reference == PRODUCTION and model.kind == WATCHED:
            row = _served(connection, model)
        missing = f"in {reference}"
    elif reference == LATEST:
        row = _served(connection, model)
        missing = "that was not retired"
    else:
        row = connection.execute(_BY_LABEL, {"model_id": model.id, "label": reference}).one_or_none()
        missing = repr(reference)
    if row is None:
        raise VersionNotFound(model_name=model.name, which=missing)
    return row


def in_stage(connection: Connection, model_id: int, stage: str) -> Row[Any] | None:
    """Id, seq and label of the version that is in the stage."""
    return connection.execute(_IN_STAGE, {"model_id": model_id, "stage": stage}).one_or_none()


def stages_of_model(connection: Connection, model_id: int) -> dict[int, str]:
    """Stages by version id."""
    return {row.version_id: row.stage for row in connection.execute(_STAGES, {"model_id": model_id})}


def last_served_id(connection: Connection, model_id: int) -> int | None:
    """The version that the model serves; None where that was removed in this transaction."""
    return connection.execute(_LAST_SERVED, {"model_id": model_id}).scalar()


def archived_at(connection: Connection, version_id: int | None) -> str | None:
    """When it was retired; None where it was not, or was not registered one by one."""
    return connection.execute(_ARCHIVED_AT, {"version_id": version_id}).scalar()


def _served(connection: Connection, model: Row[Any]) -> Row[Any] | None:
    version_id = last_served_id(connection, model.id)
    if model.kind == REGISTERED and archived_at(connection, version_id) is not None:
        return None
    return connection.execute(_BY_ID, {"model_id": model.id, "version_id": version_id}).one_or_none()
