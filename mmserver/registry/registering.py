"""Taking in one version of a model that is handed in by itself: read in the guarded worker, proven, stored for good."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, Row, func, insert, select
from sqlalchemy.dialects.sqlite import insert as upsert

from mmserver.catalog.catalog import Actor
from mmserver.catalog.ingest import INGEST_REVISION, IngestedGroup
from mmserver.catalog.loading import load_groups
from mmserver.catalog.publishing import GroupContent, GroupFile, store_group, stored_group_id, version_sha256
from mmserver.catalog.registering import check_name
from mmserver.catalog.store import Store
from mmserver.conversion.worker import GROUP_KEY
from mmserver.errors import ModelChanged, RequestInvalid, VersionTaken
from mmserver.formats import Event, ModelFormat, ModelSource
from mmserver.registry.changes import announce, serve_what_is_due, touch_model
from mmserver.registry.fields import (
    checked_description,
    checked_factors,
    checked_metrics,
    checked_model_type,
    checked_object,
    checked_tags,
)
from mmserver.registry.finding import REGISTERED, check_registered
from mmserver.registry.semantic_versions import check_label
from mmserver.registry.versions import RegisteredVersion, model_facts, registered_version
from mmserver.storage.audit import record_audit
from mmserver.storage.tables import (
    MembershipRow,
    ModelRow,
    RegisteredVersionRow,
    UsedLabelRow,
    VersionRow,
)
from mmserver.storage.times import text_from_datetime

_MAX_FILES = 1000
_MAX_FILE_NAME_CHARS = 255
_MAX_NAMED = 5


class Reader(Protocol):
    """What turns a model's files into what is stored of it."""

    def read(
        self, source: ModelSource, claim: ModelFormat, *, factors: tuple[str, ...] | None, info: dict[str, Any]
    ) -> IngestedGroup:
        """Raises ArtifactInvalid, ExtraMissing or SandboxUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A version as it is handed in. `model_type` names the format; where it is another word, such as LSTM, or None, the format
    is found by the file's name.
    """

    model_name: str
    label: str
    source: ModelSource
    model_type: str | None = None
    description: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    training_params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    factors: tuple[str, ...] | None = None
    """Names of the last axis of the model's input, in order; None: the model's own names, else f0, f1, …"""
    info: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of the training; what interprets the model's outputs looks here."""
    derived_from: str | None = None
    parity: Mapping[str, Any] | None = None
    """How near it comes to that, where it was measured."""


@dataclass(frozen=True, slots=True)
class Registered:
    """`is_new` is False where the very same content had that label already; nothing was changed then."""

    version: RegisteredVersion
    is_new: bool
    unlike: tuple[str, ...] = ()
    """What was said of it now and is not what is kept."""


def register_version(
    store: Store, reader: Reader, new: NewVersion, by: Actor, *, only_content: bool = False
) -> Registered:
    """Read a model and keep it under its label, from now on unchangeable; it is served at once if it is what is due.

    The same content under another label, or of another model, is read and stored once. The same content under the same label is
    there already, and what is left out now may be known of it; with `only_content` it may be described otherwise, too.

    Raises:
        NameInvalid, VersionInvalid, ReadOnly
        RequestInvalid: names the field that cannot be used.
        ArtifactInvalid, ExtraMissing, SandboxUnavailable: the model could not be read; nothing was changed.
        VersionTaken: the label has other content, or had before its version was removed, or is described otherwise.
        WrongModelKind: a directory is watched under that name.
        DiskFull, DatabaseBusy: nothing was changed.
    """
    store.check_writable()
    new = _checked(new)
    claim = _claim(store, new)
    content_sha256 = sha256_of_content(new, claim)
    with store.database.read() as connection:
        known = _known(connection, new, content_sha256)
        is_stored = stored_group_id(connection, _group_sha256(content_sha256)) is not None
    if known is not None:
        store.reload_model(new.model_name)  # another process may have registered it just now
        return _registered_before(new, known, only_content)
    # Reading may take minutes, and nobody's promotion waits for it.
    read = partial(reader.read, new.source, claim, factors=new.factors, info=dict(new.info))
    keep = partial(_keep, store, new, claim, content_sha256, by=by, only_content=only_content)
    if not is_stored:
        return keep(read())
    try:
        return keep(None)
    except ModelChanged:  # the last version that had this content was removed meanwhile
        return keep(read())


def _keep(
    store: Store,
    new: NewVersion,
    claim: ModelFormat,
    content_sha256: str,
    ingested: IngestedGroup | None,
    *,
    by: Actor,
    only_content: bool,
) -> Registered:
    """As `register_version`. Raises ModelChanged where what was not read, because it was stored, is not stored any more."""
    content = _group_content(new.source, content_sha256, ingested)
    with store.changing(new.model_name):
        events: list[Event] = []
        with store.database.write() as connection:
            version = _known(connection, new, content_sha256)  # somebody may have been quicker
            if version is None:
                version, events = _insert(
                    connection, new, claim, content, content_sha256=content_sha256, now=store.now(), by=by
                )
        announce(store, new.model_name, events)
        return Registered(version, is_new=True) if events else _registered_before(new, version, only_content)


def sha256_of_content(new: NewVersion, claim: ModelFormat) -> str:
    """The identity of what decides how a version predicts: files, format, options, factors and info.

    The model's own file counts by what is in it and by its suffix, which a format may go by; the others by their names too,
    because the model refers to them.
    """
    source = new.source
    others = [
        (name, hashlib.sha256(data).hexdigest()) for name, data in source.files.items() if name != source.file_name
    ]
    described = [
        claim.name,
        PurePosixPath(source.file_name).suffix.lower(),
        hashlib.sha256(source.content).hexdigest(),
        sorted(others),
        source.options,
        new.factors,
        new.info,
    ]
    return hashlib.sha256(msgspec.json.encode(described, order="deterministic")).hexdigest()


def is_content_of(store: Store, new: NewVersion, sha256: str) -> bool:
    """Whether that is the content's hash. Raises RequestInvalid where no format reads the file."""
    return sha256_of_content(new, _claim(store, new)) == sha256


def _group_sha256(content_sha256: str) -> str:
    """The identity of what is stored of the content; another one where later releases make something else of it."""
    described = ["registered", INGEST_REVISION, GROUP_KEY, content_sha256]
    return hashlib.sha256(msgspec.json.encode(described)).hexdigest()


def _checked(new: NewVersion) -> NewVersion:
    check_name(new.model_name)
    check_label(new.label)
    if new.derived_from is not None:
        check_label(new.derived_from)
    _check_files(new.source)
    options = checked_object(new.source.options, "options")
    return replace(
        new,
        source=msgspec.structs.replace(new.source, options=options),
        model_type=checked_model_type(new.model_type),
        description=checked_description(new.description),
        metrics=checked_metrics(new.metrics),
        training_params=checked_object(new.training_params, "training_params"),
        tags=checked_tags(new.tags),
        factors=checked_factors(new.factors),
        info=checked_object(new.info, "info"),
    )


def _check_files(source: ModelSource) -> None:
    if source.file_name not in source.files:
        raise _invalid("file", "there is no file of that name")
    if len(source.files) > _MAX_FILES:
        raise _invalid("file", f"more than {_MAX_FILES} files")
    for name in source.files:
        parts = name.split("/")
        if not 1 <= len(name) <= _MAX_FILE_NAME_CHARS or not name.isprintable() or "\\" in name:
            raise _invalid("file", f"{name[:200]!r} cannot be a file's name")
        if any(part in ("", ".", "..") for part in parts):
            raise _invalid("file", f"{name!r} must be a path beneath the model's own directory")


def _claim(store: Store, new: NewVersion) -> ModelFormat:
    plugins, file_name = store.plugins, new.source.file_name
    named = None if new.model_type is None else plugins.model_format_for(file_name, new.model_type)
    claim = named or plugins.model_format_for(file_name)
    if claim is None:
        known = ", ".join(sorted(found.name for found in plugins.model_formats))
        where = "file" if new.model_type is None else "model_type"
        raise _invalid(where, f"no format reads {file_name!r} by its name; name one as the model_type ({known})")
    return claim


def _invalid(where: str, problem: str) -> RequestInvalid:
    return RequestInvalid(f"{where}: {problem}", errors=[{"loc": where, "msg": problem}])


def _known(connection: Connection, new: NewVersion, content_sha256: str) -> RegisteredVersion | None:
    """The version, if its label has this content already."""
    model = connection.execute(select(ModelRow.__table__).where(ModelRow.name == new.model_name)).one_or_none()
    if model is not None:
        check_registered(model)
    model_id = model.id if model is not None else None
    if new.derived_from is not None:
        source = select(VersionRow.id).where(VersionRow.model_id == model_id, VersionRow.label == new.derived_from)
        if connection.execute(source).first() is None:
            raise _invalid("derived_from", f"{new.model_name} has no version {new.derived_from!r}")
    row = connection.execute(
        select(VersionRow.id, RegisteredVersionRow.content_sha256)
        .join(RegisteredVersionRow, RegisteredVersionRow.version_id == VersionRow.id)
        .where(VersionRow.model_id == model_id, VersionRow.label == new.label)
    ).one_or_none()
    if row is None or model is None:
        _check_label_unused(connection, new, content_sha256)
        return None
    if row.content_sha256 != content_sha256:
        problem = "is registered with other content; choose another version"
        raise VersionTaken(model_name=new.model_name, version=new.label, problem=problem)
    return registered_version(connection, model, row.id)


def _check_label_unused(connection: Connection, new: NewVersion, content_sha256: str) -> None:
    """Raises VersionTaken where the label meant other content before: who kept that would never learn of this."""
    of_label = UsedLabelRow.model_name == new.model_name, UsedLabelRow.label == new.label
    used_for = connection.execute(select(UsedLabelRow.content_sha256).where(*of_label)).scalar()
    if used_for not in (None, content_sha256):
        problem = "was registered with other content before it was removed; choose another version"
        raise VersionTaken(model_name=new.model_name, version=new.label, problem=problem)


def _registered_before(new: NewVersion, known: RegisteredVersion, only_content: bool) -> Registered:
    unlike = tuple(_unlike(new, known))
    if unlike and not only_content:
        problem = (
            f"is registered with this content, but with other {', '.join(unlike)}; nothing was changed. PATCH "
            "…/{name}/{version}/metrics (mmserver registry metrics) changes metrics, PATCH …/{name}/{version} tags and the "
            "description; the rest never changes"
        )
        raise VersionTaken(model_name=new.model_name, version=new.label, problem=problem)
    return Registered(known, is_new=False, unlike=unlike)


def _unlike(new: NewVersion, known: RegisteredVersion) -> Iterator[str]:
    """What was said and is not what is kept; nothing is lost of what was not said."""
    for name in ("metrics", "training_params", "tags"):
        said, kept = getattr(new, name), getattr(known, name)
        others = [member for member, value in said.items() if member not in kept or kept[member] != value]
        if others:
            yield f"{name} ({', '.join(others[:_MAX_NAMED])}{', …' if len(others) > _MAX_NAMED else ''})"
    for name in ("description", "model_type", "derived_from"):
        if getattr(new, name) not in ("", None, getattr(known, name)):
            yield name


def _group_content(source: ModelSource, content_sha256: str, ingested: IngestedGroup | None) -> GroupContent:
    """With the files as they were handed in, so that nothing is lost of what was converted."""
    files = tuple(
        GroupFile(
            name=name,
            role="model" if name == source.file_name else "data",
            sha256=hashlib.sha256(data).hexdigest(),
            data=data,
        )
        for name, data in source.files.items()
    )
    return GroupContent(_group_sha256(content_sha256), files, integrity="unverified", ingested=ingested)


def _model_row(connection: Connection, model_name: str, at: str) -> tuple[Row[Any], bool]:
    """(the model, whether it was made just now)."""
    query = select(ModelRow.__table__).where(ModelRow.name == model_name)
    row = connection.execute(query).one_or_none()
    if row is not None:
        touch_model(connection, row.id, at)
        return row, False
    connection.execute(
        insert(ModelRow).values(
            name=model_name,
            kind=REGISTERED,
            root_path=None,
            status="ok",
            error=None,
            registered_at=at,
            refreshed_at=at,
        )
    )
    return connection.execute(query).one(), True


def _insert(
    connection: Connection,
    new: NewVersion,
    claim: ModelFormat,
    content: GroupContent,
    *,
    content_sha256: str,
    now: datetime,
    by: Actor,
) -> tuple[RegisteredVersion, list[Event]]:
    """The version as it is stored, and what there is to tell."""
    at = text_from_datetime(now)
    model, is_first = _model_row(connection, new.model_name, at)
    version_id = _insert_version(
        connection, model, new, content, model_type=new.model_type or claim.name, content_sha256=content_sha256, at=at
    )
    served = serve_what_is_due(connection, model, at, "registered")
    detail = {"version": new.label, "model_type": claim.name, "sha256": content_sha256}
    record_audit(connection, at=at, actor=by.name, action="version.registered", target=new.model_name, detail=detail,
                 request_id=by.request_id)  # fmt: skip
    return registered_version(connection, model, version_id), _events(new, is_first, served)


def _insert_version(
    connection: Connection,
    model: Row[Any],
    new: NewVersion,
    content: GroupContent,
    *,
    model_type: str,
    content_sha256: str,
    at: str,
) -> int:
    group_id = store_group(connection, content)
    group = load_groups(connection, [group_id])[group_id]
    facts = model_facts(connection, group)
    parity = facts.summary.get("parity") if new.parity is None else new.parity
    seq = (
        connection.execute(select(func.max(VersionRow.seq)).where(VersionRow.model_id == model.id)).scalar() or 0
    ) + 1
    version_id: int = connection.execute(
        insert(VersionRow)
        .values(
            model_id=model.id,
            seq=seq,
            label=new.label,
            sha256=version_sha256([content.sha256]),
            created_at=at,
            reason="registered",
            added=_json([GROUP_KEY] if seq == 1 else []),
            removed=_json([]),
            updated=_json([GROUP_KEY] if seq > 1 else []),
            symbol_count=1,
            group_count=1,
            factor_count=len(set(group.factors)),
        )
        .returning(VersionRow.id)
    ).scalar_one()
    connection.execute(insert(MembershipRow).values(model_id=model.id, group_id=group_id, first_seq=seq, last_seq=seq))
    used = upsert(UsedLabelRow).values(model_name=new.model_name, label=new.label, content_sha256=content_sha256)
    connection.execute(used.on_conflict_do_nothing())
    connection.execute(
        insert(RegisteredVersionRow).values(
            version_id=version_id,
            model_type=model_type,
            description=new.description,
            metrics=_json(new.metrics),
            training_params=_json(new.training_params),
            tags=_json(new.tags),
            options=_json(new.source.options),
            content_sha256=content_sha256,
            size_bytes=sum(len(data) for data in new.source.files.values()),
            kind=facts.kind,
            n_features=facts.n_features,
            input_shape=None if facts.input_shape is None else _json(facts.input_shape),
            derived_from=new.derived_from,
            parity=None if parity is None else _json(parity),
            archived_at=None,
            updated_at=at,
        )
    )
    return version_id


def _events(new: NewVersion, is_first: bool, served: str | None) -> list[Event]:
    events = [Event(kind="version_registered", model_name=new.model_name, version=new.label)]
    if is_first:
        events.insert(0, Event(kind="model_registered", model_name=new.model_name, version=new.label))
    elif served is not None:
        events.append(Event(kind="version_served", model_name=new.model_name, version=served))
    return events


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
