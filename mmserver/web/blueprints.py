"""Everything that the web layer adds to the application, in one call."""

from collections.abc import Mapping
from types import MappingProxyType

import flask
import flask_compress

from mmserver.catalog.store import Store
from mmserver.errors import PluginInvalid
from mmserver.plugin_loading import Plugins
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
from mmserver.web.current import SERVING_KEY, STORE_KEY, LateServing
from mmserver.web.framing import ResponseFrame
from mmserver.web.same_site import refuse_cross_site


def register_web(
    app: flask.Flask, store: Store, plugins: Plugins, *, checks: Mapping[str, health.Check] = MappingProxyType({})
) -> None:
    """Add the API, the pages, error rendering and response headers; the last word on what every response carries.

    `checks` are shown by `/readyz` besides those of the store: what only the application knows, such as its scheduler.
    """
    app.extensions[STORE_KEY] = store
    app.extensions[SERVING_KEY] = LateServing(store)
    app.extensions[assets.ASSETS_KEY] = assets.load_assets()
    app.extensions[health.CHECKS_KEY] = {**health.store_checks(store), **checks}
    app.config["MAX_CONTENT_LENGTH"] = store.settings.max_body_bytes
    app.before_request(refuse_cross_site)
    errors.register_errors(app)
    _register_templating(app, plugins)
    # bodies that are made anew for each answer are compressed on the way out; payloads are stored compressed
    compress = flask_compress.Compress()
    app.config["COMPRESS_REGISTER"] = False
    compress.init_app(app)
    app.after_request(lambda response: _compressed(compress, response))
    for part in (models, symbols, versions, payloads, venues, pages, assets, health, late_routes):
        app.register_blueprint(part.blueprint)
    for added in plugins.blueprints():
        try:
            app.register_blueprint(added)
        except ValueError as error:
            raise PluginInvalid(plugin=added.name, reason=str(error)) from error
    app.wsgi_app = ResponseFrame(payloads.QuickPayloads(app.wsgi_app, store))  # type: ignore[method-assign]


def _compressed(compress: flask_compress.Compress, response: flask.Response) -> flask.Response:
    if flask.request.blueprint == payloads.blueprint.name:
        return response
    compressed: flask.Response = compress.after_request(response)
    return compressed


def _register_templating(app: flask.Flask, plugins: Plugins) -> None:
    app.jinja_options = {**app.jinja_options, "trim_blocks": True, "lstrip_blocks": True}
    environment = app.jinja_env
    environment.globals.update(asset=assets.asset_path, plugin_pages=plugins.pages(), status_signs=figures.STATUS_SIGNS)
    for filter_ in (figures.number, figures.full, figures.utc, figures.rfc3339, figures.size, figures.label):
        environment.filters[filter_.__name__] = filter_
