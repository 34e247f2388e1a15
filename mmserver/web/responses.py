"""Pages, and the one JSON encoder: times as RFC 3339 UTC with `Z`, non-finite numbers as null, and never text that is not JSON."""

from collections.abc import Mapping
from typing import Any

import flask
import msgspec

JSON_MEDIA_TYPE = "application/json"


def json_bytes(value: object) -> bytes:
    """The value as UTF-8 JSON.

    File names that were not UTF-8 on disk carry lone surrogates; those are written as `\\udcXX` text.
    """
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        return _ENCODER.encode(_printable(msgspec.to_builtins(value, enc_hook=_plain)))


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> flask.Response:
    """A JSON response of the value."""
    return flask.Response(json_bytes(value), status, headers, content_type=JSON_MEDIA_TYPE)


def render_page(template: str, **values: Any) -> flask.Response:
    """A page made from a template."""
    html = flask.render_template(template, **values)
    return flask.Response(printable_text(html), content_type="text/html; charset=utf-8")


def printable_text(text: str) -> str:
    """The text with lone surrogates written out, so that it can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: object) -> Any:
    """What msgspec does not know by itself: read-only mappings."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable_text(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
