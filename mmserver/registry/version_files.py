"""One registered version as files: what was handed in, the converted model beside it, and `metadata.json` that says what they are."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, select

from mmserver.catalog.ingest import GroupRecord
from mmserver.catalog.shown import ShownVersion
from mmserver.catalog.stored_models import group_record
from mmserver.registry.fields import Number
from mmserver.registry.owned_files import is_beneath, read_file, size_of_file
from mmserver.registry.stage_names import stage_name
from mmserver.registry.versions import RegisteredVersion, registered_version, size_mb
from mmserver.storage.blobs import get_blob
from mmserver.storage.tables import BlobRow, GroupFileRow, RegisteredVersionRow
from mmserver.storage.times import datetime_from_text

METADATA = "metadata.json"
MODEL = "model"
CONVERTED = "model.onnx"
MAX_METADATA_BYTES = 4 << 20
_SAID = select(RegisteredVersionRow.description, RegisteredVersionRow.metrics, RegisteredVersionRow.tags).where(
    RegisteredVersionRow.version_id == bindparam("version_id")
)


class VersionFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `path` is where it lies in the version's directory, `name` what it was handed in as."""

    path: str
    name: str
    role: str
    """`model`, `data` (the model refers to it), or `converted`: what is served in place of the model."""
    sha256: str
    size_bytes: int


class Metadata(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `metadata.json`. `written_for` is the database that it is a copy of: another's is never changed."""

    name: str
    version: str
    stage: str
    model_type: str
    description: str
    metrics: dict[str, Number]
    training_params: dict[str, Any]
    tags: dict[str, str]
    kind: str
    n_features: int
    input_shape: tuple[int, ...] | None
    factors: tuple[str, ...]
    info: dict[str, Any]
    options: dict[str, Any]
    served_options: dict[str, Any] | None
    """What the converted model has to be registered with to mean the same; None where there is none."""
    derived_from: str | None
    parity: dict[str, Any] | None
    sha256: str
    size_bytes: int
    size_mb: float
    created_at: datetime
    updated_at: datetime
    files: tuple[VersionFile, ...]
    written_for: str


@dataclass(frozen=True, slots=True)
class DescribedVersion:
    """What belongs into a version's directory: `metadata` is its JSON, which names the files."""

    metadata: bytes
    files: tuple[VersionFile, ...]


class Identity(msgspec.Struct, frozen=True):
    """What tells whether a version's directory is ours and as it should be; the rest is passed over unread."""

    sha256: str
    stage: str
    updated_at: datetime
    files: tuple[VersionFile, ...]
    written_for: str


def described_version(connection: Connection, model: Row[Any], version_id: int, written_for: str) -> DescribedVersion:
    """A version's metadata and the files beside it, which are not read.

    Raises:
        NoResultFound, BlobNotFound: it was removed just now.
    """
    version = registered_version(connection, model, version_id)
    query = select(GroupFileRow.__table__).where(GroupFileRow.group_id == version.group.id)
    handed_in = connection.execute(query.order_by(GroupFileRow.name)).all()
    paths = _paths({row.name: row.role for row in handed_in})
    files = [
        VersionFile(path=paths[row.name], name=row.name, role=row.role, sha256=row.sha256, size_bytes=row.size_bytes)
        for row in handed_in
    ]
    converted = _converted(connection, version, taken=paths.values())
    record = group_record(connection, version.group)
    served_options = _served_options(record) if converted is not None else None
    if converted is not None:
        files.append(converted)
    metadata = _metadata(version, tuple(files), record.info, served_options, written_for)
    return DescribedVersion(_text(metadata), tuple(files))


def metadata_told_again(connection: Connection, text: bytes, wanted: ShownVersion) -> bytes | None:
    """The metadata with what can be changed of a version as it is now; None where they have to be made anew.

    Everything else in them is as it was when they were written, which is much quicker than to read all of the version.
    """
    row = connection.execute(_SAID, {"version_id": wanted.version_id}).one_or_none()
    if row is None:
        return None
    try:
        before = msgspec.json.decode(text, type=Metadata)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    after = msgspec.structs.replace(
        before,
        stage=wanted.stage,
        description=row.description,
        metrics=msgspec.json.decode(row.metrics),
        tags=msgspec.json.decode(row.tags),
        updated_at=datetime_from_text(wanted.updated_at),
    )
    return _text(after)


def read_contents(connection: Connection, files: Iterable[VersionFile]) -> dict[str, bytes]:
    """The bytes of these files by their paths, from the database.

    Raises:
        BlobNotFound: they were removed just now.
        BlobCorrupt: what is stored is not what was stored.
    """
    return {file.path: get_blob(connection, file.sha256) for file in files}


def options_of_graph(row_shape: Sequence[int], objective: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what a graph's outputs mean and that it does not say itself, as options of the format onnx."""
    classes = summary.get("classes")
    return {
        "input_shape": list(row_shape),
        "outputs": list(summary["graph"]["outputs"]),
        **({} if classes is None else {"classes": classes}),
        **({"objective": objective} if objective else {}),
    }


def identity_of_directory(version_fd: int) -> Identity | None:
    """What the directory says that it is; None where that is nothing that we wrote."""
    content = read_file(version_fd, METADATA, MAX_METADATA_BYTES)
    if content is None:
        return None
    try:
        found = msgspec.json.decode(content, type=Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if all(is_beneath(file.path) for file in found.files) else None


def broken_files(version_fd: int, files: tuple[VersionFile, ...], *, verifies: bool) -> list[str]:
    """Paths of the files that are missing or have another size; with `verifies`, or another content."""
    broken = []
    for file in files:
        if size_of_file(version_fd, file.path) != file.size_bytes:
            broken.append(file.path)
        elif verifies:
            content = read_file(version_fd, file.path, file.size_bytes)
            if content is None or hashlib.sha256(content).hexdigest() != file.sha256:
                broken.append(file.path)
    return broken


def _paths(roles: dict[str, str]) -> dict[str, str]:
    """Where each file lies: the model's own as `model.<suffix>`, the others under their names, which the model refers to.

    A name that is taken by what we write goes beneath `files/`.
    """
    paths: dict[str, str] = {}
    own = {name: MODEL + PurePosixPath(name).suffix for name, role in roles.items() if role == "model"}
    taken = {METADATA, CONVERTED, *own.values()}
    for name in roles:
        if name in own:
            paths[name] = own[name]
        else:
            paths[name] = f"files/{name}" if name.partition("/")[0] in (*taken, "files") else name
    return paths


def _converted(connection: Connection, version: RegisteredVersion, taken: Any) -> VersionFile | None:
    """The ONNX model that is served in place of what was handed in; None where that is what is served."""
    sha256 = version.group.model_sha256
    if version.kind != "onnx" or CONVERTED in taken or sha256 is None:
        return None
    size_bytes = connection.execute(select(BlobRow.size_bytes).where(BlobRow.sha256 == sha256)).scalar_one()
    return VersionFile(path=CONVERTED, name=CONVERTED, role="converted", sha256=sha256, size_bytes=size_bytes)


def _served_options(record: GroupRecord) -> dict[str, Any] | None:
    model = record.model
    if model is None:
        return None
    row_shape = model.get("input_shape") or [model["n_features"]]
    return options_of_graph(row_shape, model.get("objective", ""), model["summary"])


def _text(metadata: Metadata) -> bytes:
    return msgspec.json.format(msgspec.json.encode(metadata), indent=2) + b"\n"


def _metadata(
    version: RegisteredVersion,
    files: tuple[VersionFile, ...],
    info: dict[str, Any],
    served_options: dict[str, Any] | None,
    written_for: str,
) -> Metadata:
    return Metadata(
        name=version.model_name,
        version=version.label,
        stage=stage_name(version.stage),
        model_type=version.model_type,
        description=version.description,
        metrics=version.metrics,
        training_params=version.training_params,
        tags=version.tags,
        kind=version.kind,
        n_features=version.n_features,
        input_shape=version.input_shape,
        factors=version.factors,
        info=info,
        options=version.options,
        served_options=served_options,
        derived_from=version.derived_from,
        parity=version.parity,
        sha256=version.sha256,
        size_bytes=version.size_bytes,
        size_mb=size_mb(version.size_bytes),
        created_at=version.created_at,
        updated_at=version.updated_at,
        files=files,
        written_for=written_for,
    )
