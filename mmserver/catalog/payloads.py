"""The bodies that bots download, held compressed: built from a stored blob at the first request, then only looked up."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import brotli
import msgspec
import zstandard

from mmserver.catalog import gzip_splice
from mmserver.catalog.catalog import Group, Version
from mmserver.catalog.stored_models import model_kind, stored_model
from mmserver.errors import GroupHasNoModel, NotConvertible
from mmserver.plugin_loading import Plugins
from mmserver.storage.blobs import get_blob, get_stored_blob
from mmserver.storage.database import Database

Encoding: TypeAlias = Literal["identity", "gzip", "br", "zstd"]

PAYLOAD = "payload"
MANIFEST = "manifest"
BROTLI_QUALITY = 4  # higher costs more than it saves (measured: 72 ms for 3 % less at 5)
ZSTD_LEVEL = 9


@dataclass(frozen=True, slots=True)
class PayloadBody:
    """A body ready to send.

    `etag` names the content apart from the envelope's version label, which may change while the content does not; it is the
    same for every encoding, so as an HTTP entity tag it is a weak one.
    """

    content: bytes
    etag: str
    media_type: str
    encoding: Encoding


class Payloads:
    """All bodies of one process, least recently used first out, bounded in bytes."""

    def __init__(self, database: Database, plugins: Plugins, cache_bytes: int) -> None:
        self._database = database
        self._plugins = plugins
        self._cache = ByteCache(cache_bytes)

    def etag(self, group: Group, form: str) -> str:
        """The entity tag without quotes.

        Raises:
            GroupHasNoModel: there is nothing to download in that form.
        """
        sha256 = _payload_sha256(group) if form == PAYLOAD else _download_sha256(group)
        # a manifest says more than the payload, such as the estimator's class
        sha256 = (group.manifest_sha256 or _payload_sha256(group)) if form == MANIFEST else sha256
        return f"{sha256[:40]}-{form}"

    def body(self, version: Version, group: Group, form: str, encoding: Encoding) -> PayloadBody:
        """The group's model in one form (payload, manifest, or what a converter offers) and one content encoding.

        Raises:
            GroupHasNoModel: there is nothing to download.
            NotConvertible: the model cannot be given in that form.
        """
        etag = self.etag(group, form)
        key = _cache_key(version, group, form, encoding)
        content = self._cache.get(key, lambda: self._encoded(version, group, form, encoding))
        return PayloadBody(content=content, etag=etag, media_type=self._media_type(group, form), encoding=encoding)

    def is_held(self, version: Version, group: Group, form: str, encoding: Encoding) -> bool:
        """Whether `body` would find the content in memory."""
        return group.can_predict and self._cache.holds(_cache_key(version, group, form, encoding))

    def forms(self, group: Group) -> list[str]:
        """Every form that the group's model can be asked for in; empty when there is no model."""
        if not group.can_predict:
            return []
        kind = self._kind(group)
        converted = [c.target for c in self._plugins.converters if c.kind == kind]
        payload = [PAYLOAD] if group.has_model else []
        return [*payload, *converted, *([MANIFEST] if group.has_model or group.manifest_sha256 else [])]

    def _encoded(self, version: Version, group: Group, form: str, encoding: Encoding) -> bytes:
        if form == PAYLOAD and encoding == "gzip":
            head, tail = _envelope(version, group)
            return gzip_splice.splice(head, self._stored_gzip(_payload_sha256(group)), tail)
        text = self._text(version, group, form)
        if encoding == "gzip":
            return gzip_splice.compress(text)
        if encoding == "br":
            return bytes(brotli.compress(text, quality=BROTLI_QUALITY))
        if encoding == "zstd":
            return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(text)
        return text

    def _text(self, version: Version, group: Group, form: str) -> bytes:
        if form == MANIFEST:
            return self._manifest(version, group)
        if form == PAYLOAD:
            head, tail = _envelope(version, group)
            return head + self._payload_text(group) + tail
        model = stored_model(self._database, group).model
        converter = self._plugins.converter_for(model.kind, form)
        if converter is None:
            offered = ", ".join(self.forms(group)) or "none"
            raise NotConvertible(target=form, reason=f"format must be one of {offered}")
        return converter.convert(model)

    def _media_type(self, group: Group, form: str) -> str:
        if form in (PAYLOAD, MANIFEST):
            return "application/json"
        kind = self._cache.get(("kind", group.id), lambda: self._kind(group).encode()).decode()
        converter = self._plugins.converter_for(kind, form)
        return converter.media_type if converter else "application/octet-stream"

    def _kind(self, group: Group) -> str:
        return model_kind(self._database, group)

    def _payload_text(self, group: Group) -> bytes:
        with self._database.read() as connection:
            return get_blob(connection, _payload_sha256(group))

    def _stored_gzip(self, sha256: str) -> bytes:
        def load() -> bytes:
            with self._database.read() as connection:
                stored = get_stored_blob(connection, sha256)
                text = get_blob(connection, sha256)
            return stored.content if stored.codec == "gzip" else gzip_splice.compress(text)

        return self._cache.get(("stored", sha256), load)

    def _manifest(self, version: Version, group: Group) -> bytes:
        with self._database.read() as connection:
            stored = get_blob(connection, group.manifest_sha256 or "")
        head: dict[str, Any] = {
            "model_name": version.model_name,
            "version": version.label,
            "symbol": group.symbol,
            "group_key": group.group_key,
            "return_name": group.return_name,
            "sha256": {},
        }
        for form in self.forms(group):
            if form not in (PAYLOAD, MANIFEST):
                try:
                    head["sha256"][form] = hashlib.sha256(self._text(version, group, form)).hexdigest()
                except NotConvertible:
                    head["sha256"][form] = None
        return msgspec.json.encode({**head, **msgspec.json.decode(stored)})


class ByteCache:
    """Bytes by key, bounded in their sum, least recently used first out; one thread builds what several miss."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._entries: OrderedDict[Any, bytes] = OrderedDict()
        self._building: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, build: Callable[[], bytes]) -> bytes:
        """What is held under the key, or what `build` gives; its errors are the caller's and nothing is held."""
        with self._lock:
            if (content := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                return content
            turn = self._building.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if (content := self._entries.get(key)) is not None:
                    return content
            try:
                content = build()
                self._hold(key, content)
            finally:
                with self._lock:
                    self._building.pop(key, None)
        return content

    def holds(self, key: Any) -> bool:
        """Whether something is held under the key at this moment."""
        return key in self._entries

    def _hold(self, key: Any, content: bytes) -> None:
        with self._lock:
            if len(content) > self._limit_bytes:
                return
            self._size_bytes += len(content) - len(self._entries.get(key, b""))
            self._entries[key] = content
            self._entries.move_to_end(key)
            while self._size_bytes > self._limit_bytes:
                _, dropped = self._entries.popitem(last=False)
                self._size_bytes -= len(dropped)


def _cache_key(version: Version, group: Group, form: str, encoding: Encoding) -> tuple[object, ...]:
    """Only the payload and the manifest name the version in their text."""
    return (form, encoding, version.id if form in (PAYLOAD, MANIFEST) else 0, group.id)


def _payload_sha256(group: Group) -> str:
    if group.payload_sha256 is None:
        raise GroupHasNoModel(group_key=group.group_key, reason=group.no_model_reason)
    return group.payload_sha256


def _download_sha256(group: Group) -> str:
    if group.download_sha256 is None:
        raise GroupHasNoModel(group_key=group.group_key, reason=group.no_model_reason)
    return group.download_sha256


def _envelope(version: Version, group: Group) -> tuple[bytes, bytes]:
    fields = {
        "model_name": version.model_name,
        "symbol": group.symbol,
        "group_key": group.group_key,
        "version": version.label,
    }
    return msgspec.json.encode(fields)[:-1] + b',"payload":', b"}"
