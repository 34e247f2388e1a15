"""Everything that the web layer adds to the application, in one call."""

import io
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING

import flask
import flask_compress

from mmserver.catalog.store import Store
from mmserver.errors import PluginInvalid
from mmserver.plugin_loading import Plugins
from mmserver.security.access import Access
from mmserver.web import (
    assets,
    errors,
    figures,
    health,
    late_routes,
    models,
    pages,
    payloads,
    symbols,
    venues,
    versions,
)
from mmserver.web.current import (
    ACCESS_KEY,
    EXPERIMENTER_KEY,
    MODEL_READER_KEY,
    QUICK_KEY,
    SERVING_KEY,
    STORE_KEY,
    LateExperimenter,
    LateModelReader,
    LateObservations,
    LateQuickRoutes,
    LateServing,
)
from mmserver.web.framing import REQUEST_ID_KEY, WAITED_NS_KEY, ResponseFrame
from mmserver.web.guard import NEEDS_KEY, check_access, declared_needs
from mmserver.web.same_site import refuse_cross_site

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from mmserver.serving.siblings import Siblings

_QUICK_PREFIXES = ("/predict", "/api/ml/predict", "/v2/models/")
"""Of what the quick routes may know, so that other requests do not import them."""


def register_web(
    app: flask.Flask,
    store: Store,
    plugins: Plugins,
    *,
    checks: Mapping[str, health.Check] = MappingProxyType({}),
    siblings: "Siblings | None" = None,
) -> None:
    """Add the API, the pages, error rendering and response headers; the last word on what every response carries.

    `checks` are shown by `/readyz` besides those of the store: what only the application knows, such as its scheduler.
    `siblings` is what predictions share with other processes of the server.
    """
    app.extensions[STORE_KEY] = store
    settings = store.settings
    app.extensions[ACCESS_KEY] = access = Access(store.database, settings.auth, public_reads=settings.public_reads)
    observations = LateObservations(store)
    app.extensions[SERVING_KEY] = serving = LateServing(store, siblings, observations)
    app.extensions[EXPERIMENTER_KEY] = experimenter = LateExperimenter(store, serving, observations)
    app.extensions[QUICK_KEY] = quick = LateQuickRoutes(serving, experimenter, access)
    app.extensions[MODEL_READER_KEY] = LateModelReader(store)
    app.extensions[health.STARTED_KEY] = time.monotonic()
    app.extensions[assets.ASSETS_KEY] = assets.load_assets()
    app.extensions[health.CHECKS_KEY] = {**health.store_checks(store), **checks}
    app.config["MAX_CONTENT_LENGTH"] = store.settings.max_body_bytes
    app.before_request(check_access)
    app.before_request(refuse_cross_site)
    errors.register_errors(app)
    _register_templating(app, plugins)
    # bodies that are made anew for each answer are compressed on the way out; payloads are stored compressed
    compress = flask_compress.Compress()
    app.config["COMPRESS_REGISTER"] = False
    compress.init_app(app)
    app.after_request(lambda response: _compressed(compress, response))
    app.after_request(_kept_if_refused)
    for part in (models, symbols, versions, payloads, venues, pages, assets, health, late_routes):
        app.register_blueprint(part.blueprint)
    for added in plugins.blueprints():
        try:
            app.register_blueprint(added)
        except ValueError as error:
            raise PluginInvalid(plugin=added.name, reason=str(error)) from error
    app.extensions[NEEDS_KEY] = declared_needs(app)
    predictions = QuickPredictions(app.wsgi_app, quick, store.settings.max_body_bytes)
    app.wsgi_app = ResponseFrame(payloads.QuickPayloads(predictions, store, access))  # type: ignore[method-assign]


class QuickPredictions:
    """A WSGI application in front of Flask that answers plain predictions from memory, and passes on everything else.

    It stands within the `ResponseFrame`, which names the request. Where the server asks the quick routes itself before it hands a request on, this costs little and finds nothing.
    """

    def __init__(self, application: "WSGIApplication", quick: LateQuickRoutes, max_body_bytes: int) -> None:
        self._application = application
        self._quick = quick
        self._max_body_bytes = max_body_bytes

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request."""
        if environ["REQUEST_METHOD"] == "POST" and environ["PATH_INFO"].startswith(_QUICK_PREFIXES):
            routes = self._quick()
            path = environ["PATH_INFO"]
            if routes.is_candidate("POST", path, environ.get("QUERY_STRING", "")):
                body = _whole_body(environ, self._max_body_bytes)
                if body is not None:
                    request_id, waited_ns = environ[REQUEST_ID_KEY], environ.get(WAITED_NS_KEY, 0)
                    answer = routes.answer(path, _headers(environ), body, request_id, waited_ns, may_take_long=True)
                    if answer is not None:
                        start_response(answer.status, [*answer.headers, ("Content-Length", str(len(answer.body)))])
                        return [answer.body]
        return self._application(environ, start_response)


def _whole_body(environ: "WSGIEnvironment", limit: int) -> bytes | None:
    """The body, which stays to be read by others; None where it is larger, or its length is not known."""
    length = environ.get("CONTENT_LENGTH", "")
    if not (length.isascii() and length.isdigit() and len(length) <= 10 and int(length) <= limit):
        return None
    body: bytes = environ["wsgi.input"].read(int(length))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _headers(environ: "WSGIEnvironment") -> dict[str, str]:
    headers = {name[5:]: value for name, value in environ.items() if name.startswith("HTTP_")}
    headers["CONTENT_TYPE"] = environ.get("CONTENT_TYPE", "")
    return headers


def _kept_if_refused(response: flask.Response) -> flask.Response:
    """The response; what it refused is kept in the audit trail."""
    if HTTPStatus.BAD_REQUEST <= response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        from mmserver.web.refusals import note_refusal

        note_refusal(response)
    return response


def _compressed(compress: flask_compress.Compress, response: flask.Response) -> flask.Response:
    if flask.request.blueprint == payloads.blueprint.name or flask.request.path.startswith("/v2"):
        return response
    compressed: flask.Response = compress.after_request(response)
    return compressed


def _register_templating(app: flask.Flask, plugins: Plugins) -> None:
    app.jinja_options = {**app.jinja_options, "trim_blocks": True, "lstrip_blocks": True}
    environment = app.jinja_env
    environment.globals.update(asset=assets.asset_path, plugin_pages=plugins.pages(), status_signs=figures.STATUS_SIGNS)
    for filter_ in (figures.number, figures.full, figures.utc, figures.rfc3339, figures.size, figures.label):
        environment.filters[filter_.__name__] = filter_
