"""`/openapi.json`, `/docs` and `/redoc`: what the API is, for programs and for people.

Imported at the first request for one of them. Everything that the pages need comes from this server.
"""

import hashlib
from typing import NamedTuple

import flask

from mmserver.web.api_description.contents import api_document
from mmserver.web.current import current_store
from mmserver.web.responses import JSON_MEDIA_TYPE, json_bytes

DOCUMENT_KEY = "mmserver.openapi"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' {styles}; img-src 'self' data:; connect-src 'self'; {more}"
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
OF_NO_TEXT = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
"""What libraries put into style elements before they add rules through the object model, which needs no leave."""
OF_REDOCS_SCROLLBAR = "'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='"
"""The one style sheet that ReDoc's bundle writes as text; another version has another."""


class Document(NamedTuple):
    """The description, ready to send."""

    content: bytes
    etag: str


def get_openapi() -> flask.Response:
    """The description; made once for each application."""
    document = _document()
    response = flask.Response(document.content, content_type=JSON_MEDIA_TYPE)
    response.headers["Cache-Control"] = "no-cache"
    response.set_etag(document.etag)
    response.make_conditional(flask.request)
    return response


def get_docs() -> flask.Response:
    """Swagger UI."""
    return _page(
        "API in Swagger UI", ("swagger-ui.css", "api_page.css"), ("swagger-ui-bundle.js", "swagger_page.js"),
        PAGE_POLICY.format(styles=OF_NO_TEXT, more=""),
    )  # fmt: skip


def get_redoc() -> flask.Response:
    """ReDoc; it searches in a worker that it makes from its own text."""
    return _page(
        "API in ReDoc", ("api_page.css",), ("redoc.standalone.js", "redoc_page.js"),
        PAGE_POLICY.format(styles=f"{OF_NO_TEXT} {OF_REDOCS_SCROLLBAR}", more="worker-src blob:; "),
    )  # fmt: skip


def _document() -> Document:
    extensions = flask.current_app.extensions
    found: Document | None = extensions.get(DOCUMENT_KEY)
    if found is None:
        # two threads may make it at once: the same bytes
        content = json_bytes(api_document(current_store().settings))
        found = extensions[DOCUMENT_KEY] = Document(content, hashlib.sha256(content).hexdigest()[:32])
    return found


def _page(title: str, styles: tuple[str, ...], scripts: tuple[str, ...], policy: str) -> flask.Response:
    html = flask.render_template("api_page.html", title=title, styles=styles, scripts=scripts)
    return flask.Response(html, headers={"Content-Security-Policy": policy}, content_type="text/html; charset=utf-8")
