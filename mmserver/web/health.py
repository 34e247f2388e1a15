"""`/livez` and `/readyz`: whether the process answers, and whether it can do its work."""

import flask

from mmserver.web.current import current_store
from mmserver.web.responses import json_response

blueprint = flask.Blueprint("health", __name__)


@blueprint.get("/livez")
def get_livez() -> flask.Response:
    """200 as long as requests are answered at all."""
    return flask.Response("ok\n", content_type="text/plain; charset=utf-8")


@blueprint.get("/readyz")
def get_readyz() -> flask.Response:
    """200 while models can be served, degraded ones included; 503 when the state cannot be read."""
    return json_response({})
