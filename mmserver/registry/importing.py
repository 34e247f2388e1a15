"""Importing a directory of models as other registries keep it: `{name}/v{version}/model.*`, `metadata.json`, links as stages.

Only `metadata.json` of our own says which file is what; elsewhere the model is the file that it names, `model.onnx`, or the one
`model.*` that is there. No link is followed but `production` and `staging`, and those by name only.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import msgspec

from mmserver.catalog.catalog import Actor
from mmserver.catalog.registering import check_name
from mmserver.catalog.store import Store
from mmserver.errors import ArtifactInvalid, RequestInvalid, UploadTooLarge
from mmserver.formats import ModelSource
from mmserver.registry.fields import checked_factors, checked_metrics, checked_tags
from mmserver.registry.model_directory import LINKS
from mmserver.registry.owned_files import (
    TEMPORARY,
    files_beneath,
    is_beneath,
    names_in,
    opened_directory,
    read_file,
    read_pointer,
    size_of_file,
)
from mmserver.registry.registering import NewVersion, Reader
from mmserver.registry.stage_names import ModelStage
from mmserver.registry.taking_over import Candidate, Importer, Readable, TakenOver
from mmserver.registry.version_files import CONVERTED, MAX_METADATA_BYTES, METADATA, VersionFile

_MODEL = re.compile(r"model\.[^.]+")
_VERSION = re.compile(r"[vV]\d")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_FILE_FIELDS = ("model_file", "file_name", "file", "model_path", "file_path", "path")
"""Where other registries' metadata names the model's file."""
_USED = {"name", "version", "stage", "model_type", "description", "metrics", "training_params", "tags", "factors", "info",
         "options", "served_options", "files"}  # fmt: skip
_DROPPED = {"sha256", "size_bytes", "size_mb", "kind", "n_features", "input_shape", "factor_count", "parity", "updated_at",
            "derived_from", "written_for", *_FILE_FIELDS}  # fmt: skip
"""Facts that are found out anew, or are true of that place only."""


def import_directory(store: Store, reader: Reader, directory: Path, by: Actor) -> TakenOver:
    """Register every version in a directory that is not registered yet, with its stage where that is empty here.

    Metadata that is unknown here is kept as tags: texts and numbers as they are, lists and objects as JSON text.

    Raises:
        ReadOnly
        OSError: it is no directory, or cannot be opened.
    """
    store.check_writable()
    importer = Importer(store, reader, by)
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        names = [name for name in names_in(root_fd) if not name.startswith(".")]
        if any(_VERSION.match(name) for name in names):
            importer.done.skipped.append(
                f"{directory}: it seems to be the directory of one model; name the one above it"
            )
            return importer.done
        for name in names:
            with importer.skipping(name):
                check_name(name)
                with opened_directory(root_fd, name) as model_fd:
                    importer.take_over(name, _candidates(importer, model_fd, name))
    finally:
        os.close(root_fd)
    return importer.done


def _candidates(importer: Importer, model_fd: int, model_name: str) -> dict[str, Candidate]:
    """The versions in a model's directory; their files are read only when it is their turn."""
    stages = {}
    for entry in names_in(model_fd):
        if entry.startswith("v"):
            stages[entry[1:]] = ModelStage.NONE
        elif entry not in LINKS and not entry.startswith("."):
            importer.done.notes.append(f"{model_name}/{entry}: no version, left out")
    for link in LINKS:
        target = read_pointer(model_fd, link)
        label = PurePath(target).name.removeprefix("v") if target else None
        if label in stages:
            stages[label] = ModelStage(link.capitalize())
        elif target is not None:
            importer.done.notes.append(f"{model_name}/{link}: points at {target}, which is no version here")
    found = {}
    for label, stage in stages.items():
        with importer.skipping(f"{model_name} {label}"), opened_directory(model_fd, f"v{label}") as version_fd:
            metadata = _read_metadata(version_fd, model_name, label)
            directory = _VersionDirectory(importer.store, model_fd, model_name, label, metadata)
            found[label] = directory.candidate(stage)
    return found


def _read_metadata(version_fd: int, model_name: str, label: str) -> dict[str, Any]:
    """Empty where there is none.

    Raises:
        RequestInvalid: it cannot be read, or speaks of another version.
    """
    if size_of_file(version_fd, METADATA) is None:
        return {}
    content = read_file(version_fd, METADATA, MAX_METADATA_BYTES)
    if content is None:
        raise _invalid(METADATA, "too large")
    try:
        metadata = json.loads(content)  # other programs write NaN
    except (ValueError, RecursionError) as error:
        raise _invalid(METADATA, f"not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise _invalid(METADATA, "not an object")
    for field, here in (("name", model_name), ("version", label)):
        said = metadata.get(field, here)
        if said != here and not (field == "version" and str(said).removeprefix("v") == here):
            raise _invalid(METADATA, f"it is of {field} {str(said)[:100]!r}")
    return metadata


class _VersionDirectory:
    """One version's directory, on its way to what can be registered."""

    def __init__(self, store: Store, model_fd: int, model_name: str, label: str, metadata: Mapping[str, Any]) -> None:
        self._store = store
        self._model_fd = model_fd
        self._name = model_name
        self._label = label
        self._metadata = metadata
        self._notes: list[str] = []

    def candidate(self, stage: ModelStage) -> Candidate:
        """What is known without reading the files."""
        said = self._metadata
        if stage is ModelStage.NONE and str(said.get("stage")).casefold() == "archived":
            stage = ModelStage.ARCHIVED
        return Candidate(
            label=self._label,
            stage=stage,
            read=self._read,
            derived_from=_text_or_none(said.get("derived_from")),
            sha256=_text_or_none(said.get("sha256")) if "written_for" in said else None,
        )

    def _read(self) -> Readable:
        """The version, and the converted model to fall back to.

        Raises:
            RequestInvalid, ArtifactInvalid, UploadTooLarge: why it cannot be taken.
        """
        listed = self._listed()
        with opened_directory(self._model_fd, f"v{self._label}") as version_fd:
            source, converted = self._listed_source(version_fd, listed) if listed else self._found_source(version_fd)
        metadata = self._metadata
        model_type = _text_or_none(metadata.get("model_type"))
        new = NewVersion(
            model_name=self._name,
            label=self._label,
            source=msgspec.structs.replace(source, options=self._object("options")),
            model_type=model_type,
            description=_text_or_none(metadata.get("description")) or "",
            metrics=self._metrics(),
            training_params=self._object("training_params"),
            tags=self._tags(),
            factors=checked_factors(metadata.get("factors")),
            info=self._object("info"),
            derived_from=_text_or_none(metadata.get("derived_from")),
        )
        if not metadata:
            self._notes.append(f"no {METADATA}, so nothing is known of it")
        if converted is None:
            return Readable(new, notes=tuple(self._notes))
        fallback = self._converted(new, converted)
        no_fallback = (
            f"{CONVERTED} cannot take its place: {METADATA} lacks served_options, which say what its outputs mean"
        )
        return Readable(new, fallback, tuple(self._notes), no_fallback=no_fallback if fallback is None else "")

    def _converted(self, new: NewVersion, content: bytes) -> NewVersion | None:
        """The same as it was served; None where nothing says what the graph's outputs mean: its classes might be others."""
        if not isinstance(self._metadata.get("served_options"), dict):
            return None
        options = self._object("served_options")
        as_onnx = ModelSource(file_name=CONVERTED, files={CONVERTED: content}, options=options)
        return replace(new, source=as_onnx, model_type=None)

    # --- files ------------------------------------------------------------------------------------------------------------

    def _listed(self) -> tuple[VersionFile, ...]:
        """What our own metadata says of the files."""
        if "written_for" not in self._metadata:
            return ()
        try:
            listed = msgspec.convert(self._metadata.get("files"), tuple[VersionFile, ...])
        except msgspec.ValidationError as error:
            raise _invalid(METADATA, f"files: {error}") from error
        if not all(is_beneath(file.path) for file in listed):
            raise _invalid(METADATA, "files: a path leads elsewhere")
        return listed

    def _listed_source(self, version_fd: int, listed: tuple[VersionFile, ...]) -> tuple[ModelSource, bytes | None]:
        contents = self._contents(version_fd, [file.path for file in listed])
        for file in listed:
            _check_sha256(file.path, contents[file.path], file.sha256)
        own = [file for file in listed if file.role == "model"]
        if len(own) != 1:
            raise _invalid(METADATA, "files: none is the model, or several are")
        handed_in = {file.name: contents[file.path] for file in listed if file.role != "converted"}
        converted = [contents[file.path] for file in listed if file.role == "converted"]
        return ModelSource(file_name=own[0].name, files=handed_in), converted[0] if converted else None

    def _found_source(self, version_fd: int) -> tuple[ModelSource, None]:
        """Of another registry: what lies beside the model may be its data; other forms of the model are left out."""
        paths = [path for path in files_beneath(version_fd) if path != METADATA and not path.startswith(TEMPORARY)]
        models = [path for path in paths if _MODEL.fullmatch(path)]
        named = {PurePath(said).name for field in _FILE_FIELDS if (said := _text_or_none(self._metadata.get(field)))}
        chosen = [path for path in paths if path in named] or [path for path in models if path == CONVERTED] or models
        if len(chosen) != 1:
            said = (
                f"several models: {', '.join(chosen)}; name one as model_file in {METADATA}" if chosen else "no model.*"
            )
            raise _invalid("file", said)
        others = [path for path in models if path not in chosen]
        self._notes += [f"{path} left out, {chosen[0]} is taken" for path in others]
        contents = self._contents(version_fd, [path for path in paths if path not in others])
        expected = _text_or_none(self._metadata.get("sha256"))
        if expected is not None and _SHA256.fullmatch(expected):
            _check_sha256(chosen[0], contents[chosen[0]], expected.lower())
        return ModelSource(file_name=chosen[0], files=contents), None

    def _contents(self, version_fd: int, paths: list[str]) -> dict[str, bytes]:
        left_bytes = limit_bytes = self._store.settings.max_artifact_bytes
        contents = {}
        for path in paths:
            size_bytes = size_of_file(version_fd, path)
            if size_bytes is None:
                raise ArtifactInvalid(file=path, reason="incomplete", detail="no such file, or not a regular one")
            content = read_file(version_fd, path, left_bytes)
            if content is None:
                raise UploadTooLarge(what=path, limit_bytes=limit_bytes, setting="MMSERVER_MAX_ARTIFACT_BYTES")
            contents[path] = content
            left_bytes -= len(content)
        return contents

    # --- what is said of it -------------------------------------------------------------------------------------------------

    def _object(self, field: str) -> dict[str, Any]:
        value = self._metadata.get(field)
        if value is None or isinstance(value, dict):
            return {name: _without_nan(part) for name, part in (value or {}).items()}
        self._notes.append(f"{field}: not an object, left out")
        return {}

    def _metrics(self) -> dict[str, Any]:
        """One by one: others write what is no number here."""
        metrics: dict[str, Any] = {}
        for name, value in self._object("metrics").items():
            try:
                metrics |= checked_metrics({name: value})
            except RequestInvalid as error:
                self._notes.append(f"{error}, left out")
        return metrics

    def _tags(self) -> dict[str, str]:
        given = self._metadata.get("tags") or {}
        if isinstance(given, list):
            given = {str(tag): "true" for tag in given}
        if not isinstance(given, dict):
            given = {"tags": given}
        others = {name: value for name, value in self._metadata.items() if name not in _USED | _DROPPED}
        tags: dict[str, str] = {}
        for name, value in {**others, **given}.items():
            try:
                tags |= checked_tags({name: value if isinstance(value, str) else json.dumps(value)})
            except RequestInvalid as error:
                self._notes.append(f"{error}, left out")
        return tags


def _check_sha256(path: str, content: bytes, expected: str) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise ArtifactInvalid(file=path, reason="manifest_mismatch", detail=f"its SHA-256 is not the one in {METADATA}")


def _without_nan(value: Any) -> Any:
    """The value with null for NaN and infinities, which JSON has not."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _invalid(where: str, problem: str) -> RequestInvalid:
    return RequestInvalid(f"{where}: {problem}", errors=[{"loc": where, "msg": problem}])
