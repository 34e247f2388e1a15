"""`/api/models/{model}/model/{symbol}`: what bots download. Stored compressed bytes go out as they are.

The hot route: no database, no JSON, no compression; a bot that has the newest content is told so in a 304 without a body.
"""

import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import flask

from mmserver.catalog import groups, history
from mmserver.catalog.catalog import Catalog, Group, Version
from mmserver.catalog.payloads import MANIFEST, PAYLOAD, Encoding, PayloadBody
from mmserver.catalog.store import Store
from mmserver.catalog.symbols import ALL_SYMBOLS, comparable_symbol
from mmserver.security.access import Access
from mmserver.security.scopes import needs
from mmserver.web.current import current_store
from mmserver.web.negotiation import choose_encoding, opaque_tags
from mmserver.web.requests import query_seconds, query_text, query_time, refuse_parameter

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

blueprint = flask.Blueprint("payloads", __name__)

MAX_WAIT_S = 60.0
_PATH = re.compile(r"/api/models/(?P<model_name>[^/]+)/model/(?P<symbol>.+)")
_UNSAFE_IN_FILE_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request wants; the defaults are those of a request without a query."""

    encoding: Encoding
    known_tags: tuple[str, ...]
    group_key: str | None = None
    form: str = PAYLOAD
    version: str | None = None
    as_of: datetime | None = None
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Served:
    """What there is for it at this moment; the body itself is only looked up when it has to be sent."""

    version: Version
    group: Group
    etag: str


@blueprint.get("/api/models/<model_name>/model/<path:symbol>")
@needs("read", "model_name")
def get_payload(model_name: str, symbol: str) -> flask.Response:
    """The group's payload, or with `?format=` its model alone; `?wait=&etag=` answers when it changes."""
    store = current_store()
    asked = asked_from_request(flask.request)
    served = _find(store, model_name, symbol, asked)
    known = is_known(served.etag, asked.known_tags)
    if known and asked.wait_s:
        store.wait_for_change(lambda catalog: _serves_other(catalog, served), asked.wait_s)
        served = _find(store, model_name, symbol, asked)
        known = is_known(served.etag, asked.known_tags)
    headers = _headers(served, asked)
    if known:
        return flask.Response(status=304, headers=headers)
    body = store.payloads.body(served.version, served.group, asked.form, asked.encoding)
    return flask.Response(body.content, 200, headers + _content_headers(body))


class QuickPayloads:
    """A WSGI application in front of Flask that answers the hot route from memory, and passes on everything else.

    It answers what `get_payload` would, with the same functions; only Flask's own work for a request is saved.
    """

    def __init__(self, application: "WSGIApplication", store: Store, access: Access) -> None:
        self._application = application
        self._store = store
        self._access = access

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request."""
        if environ["REQUEST_METHOD"] == "GET" and not environ.get("QUERY_STRING"):
            encoding = choose_encoding(environ.get("HTTP_ACCEPT_ENCODING", ""))
            path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
            served = quick_payload(self._store, path, encoding)
            if served is not None and (not self._access.is_enforced or self._is_let_through(environ, served)):
                asked = Asked(encoding, opaque_tags(environ.get("HTTP_IF_NONE_MATCH", "")))
                headers = _headers(served, asked)
                if is_known(served.etag, asked.known_tags):
                    start_response("304 NOT MODIFIED", headers)
                    return []
                body = self._store.payloads.body(served.version, served.group, PAYLOAD, encoding)
                start_response("200 OK", headers + _content_headers(body))
                return [body.content]
        return self._application(environ, start_response)

    def _is_let_through(self, environ: "WSGIEnvironment", served: Served) -> bool:
        """Whether a key that is known already opens this; whatever else there is to say, Flask says."""
        if self._access.is_public("read"):
            return True
        headers = {
            "AUTHORIZATION": environ.get("HTTP_AUTHORIZATION", ""),
            "X_API_KEY": environ.get("HTTP_X_API_KEY", ""),
        }
        identity = self._access.known(headers)
        return identity is not None and identity.has_scope("read") and identity.may_use_model(served.version.model_name)


def quick_payload(store: Store, path: str, encoding: Encoding) -> Served | None:
    """What a GET of this path is answered with from memory alone: the payload that is served now, ready in that coding."""
    match = _PATH.fullmatch(path)
    model = store.catalog.models.get(match["model_name"]) if match else None
    if match is None or model is None or model.is_retired:
        return None
    keys_by_symbol = model.serving.group_keys_by_symbol
    keys = keys_by_symbol.get(comparable_symbol(match["symbol"])) or keys_by_symbol.get(ALL_SYMBOLS, ())
    if len(keys) != 1:
        return None
    group = model.serving.groups[keys[0]]
    if not store.payloads.is_held(model.serving, group, PAYLOAD, encoding):
        return None
    return Served(model.serving, group, store.payloads.etag(group, PAYLOAD))


def is_quick(store: Store, path: str, query: str, accept_encoding: str) -> bool:
    """Whether a GET of this path needs no waiting."""
    return not query and quick_payload(store, path, choose_encoding(accept_encoding)) is not None


def asked_from_request(request: flask.Request) -> Asked:
    """Read the headers and, where there is one, the query.

    Raises:
        RequestInvalid: a parameter that makes no sense, or `wait` on a version that cannot change.
    """
    environ = request.environ
    encoding = choose_encoding(environ.get("HTTP_ACCEPT_ENCODING", ""))
    known_tags = opaque_tags(environ.get("HTTP_IF_NONE_MATCH", ""))
    if not environ.get("QUERY_STRING"):
        return Asked(encoding, known_tags)
    etag = query_text(request, "etag")
    asked = Asked(
        encoding=encoding,
        known_tags=opaque_tags(etag) if etag else known_tags,
        group_key=query_text(request, "group_key"),
        form=query_text(request, "format") or PAYLOAD,
        version=query_text(request, "version"),
        as_of=query_time(request, "as_of"),
        wait_s=query_seconds(request, "wait", MAX_WAIT_S),
    )
    if asked.wait_s and (asked.as_of is not None or asked.version not in history.CURRENT):
        refuse_parameter("wait", "a fixed version does not change; leave out version and as_of")
    return asked


def is_known(etag: str, known_tags: tuple[str, ...]) -> bool:
    """Whether the client has this content, in whichever coding it got it."""
    return etag in known_tags or "*" in known_tags


def _serves_other(catalog: Catalog, served: Served) -> bool:
    """Whether the model now serves other content for the group, or none."""
    model = catalog.models.get(served.version.model_name)
    group = model.serving.groups.get(served.group.group_key) if model and not model.is_retired else None
    return group is None or group.download_sha256 != served.group.download_sha256


def _find(store: Store, model_name: str, symbol: str, asked: Asked) -> Served:
    version = history.resolve_version(store, model_name, asked.version, asked.as_of)
    group = groups.find_group(version, symbol, asked.group_key, store.model(version.model_name).refusals)
    return Served(version, group, store.payloads.etag(group, asked.form))


def _headers(served: Served, asked: Asked) -> list[tuple[str, str]]:
    """The tag is weak: it names the model and its metadata, and is the same for every coding and version label."""
    headers = [
        ("ETag", f'W/"{served.etag}"'),
        ("Vary", "Accept-Encoding"),
        ("Cache-Control", "no-cache"),
        ("X-Model-Version", served.version.label),
        ("X-Group-Key", _header_text(served.group.group_key)),
    ]
    if asked.form not in (PAYLOAD, MANIFEST):
        file_name = _UNSAFE_IN_FILE_NAME.sub("_", f"{served.group.group_key}_model.{asked.form}")
        headers.append(("Content-Disposition", f'attachment; filename="{file_name}"'))
    return headers


def _content_headers(body: PayloadBody) -> list[tuple[str, str]]:
    """What a 304 must leave out."""
    headers = [("Content-Type", body.media_type), ("Content-Length", str(len(body.content)))]
    if body.encoding != "identity":
        headers.append(("Content-Encoding", body.encoding))
    return headers


def _header_text(text: str) -> str:
    """The text itself, percent-encoded where a header could not carry it."""
    return text if text.isascii() and text.isprintable() else urllib.parse.quote(text, errors="backslashreplace")
