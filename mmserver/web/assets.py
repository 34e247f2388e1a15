"""Static files under addresses that hold their hash, so that browsers keep them for ever."""

import hashlib
import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

import flask
from werkzeug.exceptions import NotFound

from mmserver.security.scopes import needs

ASSETS_KEY = "mmserver.assets"
FOR_EVER = "public, max-age=31536000, immutable"
FOR_A_DAY = "public, max-age=86400"
VENDORED_SUFFIXES = (".js", ".css")
"""What pages refer to; licences lie beside it for those who have the files."""

blueprint = flask.Blueprint("assets", __name__)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file, whole."""

    name: str
    digest: str
    media_type: str
    content: bytes


class Assets:
    """Every file in `static/`, by name. Our own are few and small and are read at once; those of others, under `vendor/`, are
    megabytes that only their pages need, and are read when they are first asked for.
    """

    def __init__(self) -> None:
        self._held = {file.name: _asset(file) for file in _static().iterdir() if file.is_file()}
        self._vendored: dict[str, Traversable] | None = None

    def find(self, name: str) -> Asset | None:
        """The file of that name; None where there is none."""
        asset = self._held.get(name)
        if asset is None and name.endswith(VENDORED_SUFFIXES):
            if self._vendored is None:
                self._vendored = {file.name: file for folder in _vendor_folders() for file in folder.iterdir()}
            file = self._vendored.get(name)
            if file is not None:
                self._held[name] = asset = _asset(file)
        return asset


def load_assets() -> Assets:
    """What an application serves; our own files are read now."""
    return Assets()


def _static() -> Traversable:
    return resources.files("mmserver.web") / "static"


def _vendor_folders() -> Iterator[Traversable]:
    """One for each package, named with its version; its licence lies beside its files."""
    return (folder for folder in (_static() / "vendor").iterdir() if folder.is_dir())


def _asset(file: Traversable) -> Asset:
    content = file.read_bytes()
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    if media_type.startswith("text/"):
        media_type += "; charset=utf-8"
    return Asset(file.name, hashlib.sha256(content).hexdigest()[:16], media_type, content)


def asset_path(name: str) -> str:
    """The address of a file, for templates."""
    asset = _known(name)
    return f"/static/{asset.digest}/{asset.name}"


@blueprint.get("/static/<digest>/<name>")
@needs("open")
def get_asset(digest: str, name: str) -> flask.Response:
    """A file, if it still is the one that the address means."""
    asset = _find(name)
    if asset is None or asset.digest != digest:
        raise NotFound
    return _response(asset, FOR_EVER)


@blueprint.get("/favicon.svg")
@needs("open")
def get_favicon() -> flask.Response:
    """The icon under the address that browsers and bookmarks guess."""
    return _response(_known("favicon.svg"), FOR_A_DAY)


def _find(name: str) -> Asset | None:
    assets: Assets = flask.current_app.extensions[ASSETS_KEY]
    return assets.find(name)


def _known(name: str) -> Asset:
    asset = _find(name)
    if asset is None:
        raise KeyError(name)
    return asset


def _response(asset: Asset, cache_control: str) -> flask.Response:
    response = flask.Response(asset.content, content_type=asset.media_type)
    response.headers["Cache-Control"] = cache_control
    response.set_etag(asset.digest)
    response.make_conditional(flask.request)
    return response
