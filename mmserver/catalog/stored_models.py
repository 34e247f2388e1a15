"""A group's model as it was parsed, whole again, from what the database has of it."""

import hashlib
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection

from mmserver.catalog.catalog import Group
from mmserver.catalog.ingest import GroupRecord
from mmserver.errors import GroupHasNoModel
from mmserver.formats import ModelFile
from mmserver.storage.blobs import get_blob
from mmserver.storage.database import Database


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model with its content, and what is known of its group beside it."""

    model: ModelFile
    record: GroupRecord


class _Carrier(msgspec.Struct, frozen=True):
    """The one member of a payload that may be the model's content."""

    model_json: str


def stored_model(database: Database, group: Group) -> StoredModel:
    """The group's model, with the content that its hash promises.

    Raises:
        GroupHasNoModel: there is none, or only its download was stored.
        BlobNotFound: the group was let go since.
        BlobCorrupt: what is stored is not what was stored.
    """
    with database.read() as connection:
        record = group_record(connection, group)
        content = _content(connection, group)
    if record.model is None or content is None:
        raise GroupHasNoModel(group_key=group.group_key, reason=group.no_model_reason or "only its files are stored")
    if hashlib.sha256(content).hexdigest() != record.model["content_sha256"]:
        reason = "an earlier release stored its download only; remove the model and register it again"
        raise GroupHasNoModel(group_key=group.group_key, reason=reason)
    return StoredModel(model=_model_file(record, content), record=record)


def stored_content_sha256(database: Database, group: Group) -> str | None:
    """The hash of the model's content, without reading it; None where there is no model."""
    with database.read() as connection:
        record = group_record(connection, group)
    return str(record.model["content_sha256"]) if record.model is not None else None


def model_kind(database: Database, group: Group) -> str:
    """The kind of the group's model, without reading the model; empty where there is none."""
    with database.read() as connection:
        record = group_record(connection, group)
    return str(record.model["kind"]) if record.model is not None else ""


def group_record(connection: Connection, group: Group) -> GroupRecord:
    """What is stored of the group besides its model's content."""
    return msgspec.json.decode(get_blob(connection, group.detail_sha256), type=GroupRecord)


def _content(connection: Connection, group: Group) -> bytes | None:
    if group.model_sha256 is not None:
        return get_blob(connection, group.model_sha256)
    if group.payload_sha256 is not None:
        payload_text = get_blob(connection, group.payload_sha256)
        return msgspec.json.decode(payload_text, type=_Carrier).model_json.encode()
    return None


def _model_file(record: GroupRecord, content: bytes) -> ModelFile:
    described = {key: value for key, value in (record.model or {}).items() if key != "content_sha256"}
    return msgspec.convert({**described, "type": "ModelFile", "content": content}, ModelFile, strict=False,
                           builtin_types=(bytes,))  # fmt: skip
