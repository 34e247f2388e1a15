"""Models as they are handed in over HTTP: a multipart body, read part by part, or files that are on the server already.

A large body waits in a file while it arrives. Its files are read into memory when their size is known to be allowed, and no
part of a body is ever a file under a name that a client chose.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import flask
import msgspec
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.sansio import multipart

from mmserver.catalog.roots import allowed_path
from mmserver.errors import ArtifactInvalid, ArtifactUnstable, DirectoryInvalid, RequestInvalid, UploadTooLarge
from mmserver.formats import ModelSource
from mmserver.registry.registering import NewVersion
from mmserver.settings import Settings
from mmserver.watching.beneath import open_root
from mmserver.watching.reading import ReadFile, read_file
from mmserver.web.late_routes import MAX_UPLOAD_FIELDS_BYTES, UPLOAD_MEDIA_TYPE
from mmserver.web.registry_bodies import NewVersionFields, RegisterVersion
from mmserver.web.requests import error_summary, field_errors, place_from_message, read_body, strict_json

FILE_PART = "file"
TEXT_PARTS = ("name", "version", "model_type", "description", "derived_from", "sha256")
JSON_PARTS = ("metrics", "training_params", "tags", "factors", "info", "options")
_FIELDS = frozenset({*TEXT_PARTS, *JSON_PARTS})
_CHUNK_BYTES = 1 << 20
_MAX_PART_HEAD_BYTES = 64 << 10
_MAX_PARTS = 1100  # more than a model may have files, so that those are counted where it says so
_MAX_BOUNDARY_CHARS = 200
"""RFC 2046 allows 70; some clients, Werkzeug among them, now and then make one a little longer."""


def read_new_version(request: flask.Request, settings: Settings) -> NewVersion:
    """The version that a request hands in.

    Raises:
        RequestInvalid: names the field that does not fit.
        UploadTooLarge: the files together are larger than `max_artifact_bytes`.
        UnsupportedMediaType: neither multipart nor JSON.
        OutsideRoots, ArtifactInvalid, ArtifactUnstable: a file on the server cannot be read.
    """
    if request.mimetype == UPLOAD_MEDIA_TYPE:
        fields, source = _read_upload(request, _Parts(settings.max_artifact_bytes, is_form=False))
    else:
        body = read_body(request, RegisterVersion)
        fields, source = body, source_from_paths((body.path, *body.other_paths), settings)
    return _new_version(fields, source)


def _new_version(fields: NewVersionFields, source: ModelSource) -> NewVersion:
    _check_sha256(source, fields.sha256)
    return NewVersion(
        model_name=fields.name,
        label=fields.version,
        source=msgspec.structs.replace(source, options=fields.options),
        model_type=fields.model_type,
        description=fields.description,
        metrics=fields.metrics,
        training_params=fields.training_params,
        tags=fields.tags,
        factors=None if fields.factors is None else tuple(fields.factors),
        info=fields.info,
        derived_from=fields.derived_from,
    )


def read_new_version_form(request: flask.Request, settings: Settings, typed: dict[str, str]) -> NewVersion:
    """The version that our page's form hands in: a browser sends all of its fields, also those that were left empty.

    What was typed is put into `typed`, whatever becomes of the rest.

    Raises:
        As `read_new_version`. RequestInvalid also for a field that the form does not have.
    """
    parts = _Parts(settings.max_artifact_bytes, is_form=True)
    try:
        return _new_version(*_read_upload(request, parts))
    finally:
        typed.update((name, data.decode(errors="replace")) for name, data in parts.texts.items())


def source_from_paths(paths: Sequence[str], settings: Settings) -> ModelSource:
    """Files on this machine, the model first; others are named as they lie relative to it, where they lie beneath its directory.

    Raises:
        RequestInvalid, OutsideRoots, UploadTooLarge, ArtifactInvalid, ArtifactUnstable
    """
    files: dict[str, bytes] = {}
    left_bytes = settings.max_artifact_bytes
    directory = Path(paths[0]).parent
    for at, path in enumerate(paths):
        where = "path" if at == 0 else f"other_paths[{at - 1}]"
        found = _read_path(where, path, settings, left_bytes)
        left_bytes -= len(found.data)
        is_beneath = at > 0 and Path(path).is_relative_to(directory)
        _add(files, Path(path).relative_to(directory).as_posix() if is_beneath else Path(path).name, found.data, where)
    return ModelSource(file_name=next(iter(files)), files=files)


def _read_path(where: str, path_text: str, settings: Settings, left_bytes: int) -> ReadFile:
    try:
        path = allowed_path(path_text, settings.artifact_roots)
        with open_root(path.parent) as root:
            return read_file(root, path.name, left_bytes)
    except DirectoryInvalid as error:
        _refuse(where, str(error.values["reason"]), error)
    except OSError as error:
        _refuse(where, error.strerror or "it cannot be opened", error)
    except ArtifactInvalid as error:
        if error.values["reason"] == "too_large":
            raise _too_large(f"{where} with what comes before it", settings.max_artifact_bytes) from error
        raise
    except ArtifactUnstable as error:
        if error.values["reason"] == "vanished":
            _refuse(where, f"no such file: {path_text!r}"[:300], error)
        file = path_text[:300]  # not ".", as it is read relative to its directory
        raise ArtifactUnstable(file=file, reason=error.values["reason"], detail=error.values["detail"]) from error


# --- multipart --------------------------------------------------------------------------------------------------------


def _read_upload(request: flask.Request, parts: "_Parts") -> tuple[NewVersionFields, ModelSource]:
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("send the body uncompressed, without Content-Encoding")
    request.max_content_length = parts.max_file_bytes + MAX_UPLOAD_FIELDS_BYTES
    with _upload_errors(parts.max_file_bytes):
        for event in _events(request):
            parts.take(event)
    if not parts.files or parts.lacks_model:
        _refuse(FILE_PART, "choose the model’s file" if parts.is_form else "the part is missing")
    value_of = _form_value if parts.is_form else _value
    document = {name: value_of(name, data) for name, data in parts.texts.items()}
    try:
        fields = msgspec.convert(document, NewVersionFields)
    except msgspec.ValidationError as error:
        errors = field_errors(document, NewVersionFields) or [place_from_message(str(error))]
        raise RequestInvalid(reason=error_summary(errors), errors=errors) from error
    return fields, ModelSource(file_name=next(iter(parts.files)), files=parts.files)


@contextmanager
def _upload_errors(max_file_bytes: int) -> Iterator[None]:
    """Say of a body that ends too late what it is longer than."""
    try:
        yield
    except RequestEntityTooLarge as error:
        raise _too_large("the upload", max_file_bytes) from error


def _events(request: flask.Request) -> Iterator[multipart.Event]:
    """The body's parts in pieces, as they are read."""
    boundary = request.mimetype_params.get("boundary", "")
    if not (1 <= len(boundary) <= _MAX_BOUNDARY_CHARS and boundary.isascii() and boundary.isprintable()):
        _refuse("", f"the Content-Type names no boundary of 1 to {_MAX_BOUNDARY_CHARS} characters")
    decoder = multipart.MultipartDecoder(boundary.encode(), _CHUNK_BYTES + _MAX_PART_HEAD_BYTES, max_parts=_MAX_PARTS)
    while not isinstance(event := _next_event(decoder), multipart.Epilogue):
        if isinstance(event, multipart.NeedData):
            chunk = request.stream.read(_CHUNK_BYTES)
            _give(decoder, chunk or None)
        else:
            yield event


def _next_event(decoder: multipart.MultipartDecoder) -> multipart.Event:
    try:
        return decoder.next_event()
    except RequestEntityTooLarge as error:
        _refuse("", f"more than {_MAX_PARTS} parts", error)
    except ValueError as error:
        _refuse("", f"not a whole multipart body: {error}"[:300], error)


def _give(decoder: multipart.MultipartDecoder, chunk: bytes | None) -> None:
    try:
        decoder.receive_data(chunk)
    except RequestEntityTooLarge as error:
        _refuse("", f"no part of multipart, or the head of one, has more than {_MAX_PART_HEAD_BYTES} bytes", error)


class _Parts:
    """The parts of one body, put together and counted."""

    def __init__(self, max_file_bytes: int, *, is_form: bool) -> None:
        self.is_form = is_form
        self.max_file_bytes = max_file_bytes
        self.files: dict[str, bytes] = {}
        self.texts: dict[str, bytes] = {}
        self.lacks_model = False
        """A form's first file, which is the model, was not chosen."""
        self._n_file_bytes = self._n_text_bytes = 0
        self._part: multipart.File | multipart.Field | None = None
        self._content = io.BytesIO()

    def take(self, event: multipart.Event) -> None:
        """The next piece of the body."""
        if isinstance(event, multipart.File | multipart.Field):
            self._begin(event)
        elif isinstance(event, multipart.Data) and self._part is not None:
            self._count(self._part, len(event.data))
            self._content.write(event.data)
            if not event.more_data:
                self._end(self._part)

    def _begin(self, part: multipart.File | multipart.Field) -> None:
        name = _shown(part.name)
        if isinstance(part, multipart.File) and part.name != FILE_PART:
            _refuse(name, f"files are sent as parts named {FILE_PART!r}")
        if isinstance(part, multipart.Field) and part.name == FILE_PART:
            _refuse(FILE_PART, "the part has no filename")
        if isinstance(part, multipart.Field) and part.name in self.texts:
            _refuse(name, "the field is given twice")
        if self.is_form and isinstance(part, multipart.Field) and part.name not in _FIELDS:
            _refuse(name, "this form has no such field")
        self._part = part
        self._content = io.BytesIO()

    def _count(self, part: multipart.File | multipart.Field, n_bytes: int) -> None:
        if isinstance(part, multipart.File):
            self._n_file_bytes += n_bytes
            if self._n_file_bytes > self.max_file_bytes:
                raise _too_large(FILE_PART, self.max_file_bytes)
            return
        self._n_text_bytes += n_bytes
        if self._n_text_bytes > MAX_UPLOAD_FIELDS_BYTES:
            _refuse(_shown(part.name), f"the fields have more than {MAX_UPLOAD_FIELDS_BYTES} bytes together")

    def _end(self, part: multipart.File | multipart.Field) -> None:
        content = self._content.getvalue()
        was_left_empty = not content.strip() and not (isinstance(part, multipart.File) and part.filename)
        if self.is_form and was_left_empty:
            self.lacks_model |= isinstance(part, multipart.File) and not self.files
            return
        if isinstance(part, multipart.File):
            _add(self.files, part.filename, content, FILE_PART)
        elif part.name in _FIELDS:
            self.texts[part.name] = content


def _value(name: str, data: bytes) -> Any:
    """A field's value: JSON, or text."""
    if name in JSON_PARTS:
        try:
            return strict_json(data)
        except RequestInvalid as error:
            problem = error.values["errors"][0]
            _refuse(name, f"{problem['loc']}: {problem['msg']}" if problem["loc"] else problem["msg"], error)
    return _text(name, data)


def _form_value(name: str, data: bytes) -> Any:
    """What a person typed: names of factors one a line, everything else as programs send it but for the ends of lines."""
    if name in JSON_PARTS and name != "factors":
        return _value(name, data)
    lines = _text(name, data).strip().splitlines()
    return [line.strip() for line in lines if line.strip()] if name == "factors" else "\n".join(lines)


def _text(name: str, data: bytes) -> str:
    if b"\0" in data:
        _refuse(name, "a string contains NUL")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        _refuse(name, "not UTF-8", error)


# --- what both ways share ---------------------------------------------------------------------------------------------


def _add(files: dict[str, bytes], name: str, data: bytes, where: str) -> None:
    if name in files:
        _refuse(where, f"two files are named {name[:200]!r}")
    if not data:
        _refuse(where, f"{name[:200]!r} is empty")
    files[name] = data


def _check_sha256(source: ModelSource, expected: str | None) -> None:
    if expected is not None:
        found = hashlib.sha256(source.content).hexdigest()
        if expected.strip().lower() != found:
            _refuse("sha256", f"the file that arrived has {found}; nothing was registered")


def _too_large(what: str, max_file_bytes: int) -> UploadTooLarge:
    return UploadTooLarge(what=what, setting="max_artifact_bytes", limit_bytes=max_file_bytes)


def _shown(name: str | None) -> str:
    return (name or "")[:200]


def _refuse(where: str, problem: str, cause: Exception | None = None) -> NoReturn:
    reason = f"{where}: {problem}" if where else problem
    raise RequestInvalid(reason, errors=[{"loc": where, "msg": problem}]) from cause
