"""What the request at hand works with: the store, and who is asking."""

import flask

from mmserver.catalog.catalog import Actor
from mmserver.catalog.store import Store
from mmserver.web.framing import REQUEST_ID_KEY

STORE_KEY = "mmserver.store"


def current_store() -> Store:
    """The store that this application serves."""
    store: Store = flask.current_app.extensions[STORE_KEY]
    return store


def current_actor() -> Actor:
    """Who asks for a change. Without keys there is only an address to go by."""
    request = flask.request
    return Actor(f"anonymous@{request.remote_addr or 'local'}", request.environ.get(REQUEST_ID_KEY))
