"""Static files under addresses that hold their hash, so that browsers keep them for ever."""

import hashlib
import mimetypes
from dataclasses import dataclass
from importlib import resources

import flask
from werkzeug.exceptions import NotFound

ASSETS_KEY = "mmserver.assets"
FOR_EVER = "public, max-age=31536000, immutable"
FOR_A_DAY = "public, max-age=86400"

blueprint = flask.Blueprint("assets", __name__)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, whole."""

    name: str
    digest: str
    media_type: str
    content: bytes


def load_assets() -> dict[str, Asset]:
    """Every file in `static/`, by name; they are few and small."""
    assets = {}
    for file in (resources.files("mmserver.web") / "static").iterdir():
        if not file.is_file():
            continue
        content = file.read_bytes()
        media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        if media_type.startswith("text/"):
            media_type += "; charset=utf-8"
        assets[file.name] = Asset(file.name, hashlib.sha256(content).hexdigest()[:16], media_type, content)
    return assets


def asset_path(name: str) -> str:
    """The address of a file, for templates."""
    asset: Asset = flask.current_app.extensions[ASSETS_KEY][name]
    return f"/static/{asset.digest}/{asset.name}"


@blueprint.get("/static/<digest>/<name>")
def get_asset(digest: str, name: str) -> flask.Response:
    """A file, if it still is the one that the address means."""
    asset: Asset | None = flask.current_app.extensions[ASSETS_KEY].get(name)
    if asset is None or asset.digest != digest:
        raise NotFound
    return _response(asset, FOR_EVER)


@blueprint.get("/favicon.svg")
def get_favicon() -> flask.Response:
    """The icon under the address that browsers and bookmarks guess."""
    return _response(flask.current_app.extensions[ASSETS_KEY]["favicon.svg"], FOR_A_DAY)


def _response(asset: Asset, cache_control: str) -> flask.Response:
    response = flask.Response(asset.content, content_type=asset.media_type)
    response.headers["Cache-Control"] = cache_control
    response.set_etag(asset.digest)
    response.make_conditional(flask.request)
    return response
