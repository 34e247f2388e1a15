"""`/api/venues`: order-size thresholds by venue and symbol."""

from collections.abc import Callable

import flask
import msgspec

from mmserver.catalog import venues
from mmserver.security.scopes import needs
from mmserver.web.current import current_actor, current_store
from mmserver.web.negotiation import opaque_tags
from mmserver.web.requests import read_body
from mmserver.web.responses import json_response

blueprint = flask.Blueprint("venues", __name__)


class SetQuantiles(msgspec.Struct, frozen=True):
    """The body of `PUT /api/venues/{venue}/quantiles`."""

    pkl_path: str


@blueprint.get("/api/venues")
@needs("read")
def list_venues() -> flask.Response:
    """Every venue that has thresholds."""
    known = current_store().catalog.venues
    items = [
        {
            "venue": venue.name,
            "pkl_path": venue.pkl_path,
            "updated_at": venue.updated_at,
            "symbol_count": len(venue.symbols),
            "status": venue.status,
            "error": venue.error,
        }
        for _, venue in sorted(known.items())
    ]
    return json_response({"items": items})


@blueprint.put("/api/venues/<venue>/quantiles")
@needs("manage", "venue")
def set_quantiles(venue: str) -> flask.Response:
    """Read the venue's thresholds from a file and watch it from now on.

    `If-Match` with the tag of a GET, or `*` for any, lets it happen only if nobody else changed the table meanwhile.
    """
    body = read_body(flask.request, SetQuantiles)
    updated = venues.set_quantiles(current_store(), venue, body.pkl_path, current_actor(), _only_if(flask.request))
    return json_response({"venue": updated.name, "symbol_count": len(updated.symbols)})


@blueprint.get("/api/venues/<venue>/quantiles")
@needs("read", "venue")
def get_quantiles(venue: str) -> flask.Response:
    """The venue's whole table."""
    found = venues.find_venue(current_store().catalog, venue)
    symbols = {symbol: _thresholds(medium, large) for symbol, (medium, large) in found.symbols.items()}
    response = json_response({"venue": found.name, "symbols": symbols})
    response.set_etag(venues.table_sha256(found.symbols))
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(flask.request)
    return response


@blueprint.get("/api/venues/<venue>/quantiles/<path:symbol>")
@needs("read", "venue")
def get_symbol_quantiles(venue: str, symbol: str) -> flask.Response:
    """One symbol's thresholds; symbols may be written with their slash."""
    found = venues.find_venue(current_store().catalog, venue)
    name, medium, large = venues.venue_symbol(found, symbol)
    return json_response({"venue": found.name, "symbol": name, **_thresholds(medium, large)})


def _thresholds(medium: float, large: float) -> dict[str, float]:
    return {"medium_notional_threshold": medium, "large_notional_threshold": large}


def _only_if(request: flask.Request) -> Callable[[str | None], bool] | None:
    """What the request's `If-Match` says about a table; the tags of its compressed forms end in their coding."""
    header = request.headers.get("If-Match")
    if header is None:
        return None
    tags = {tag.partition(":")[0] for tag in opaque_tags(header)}
    return lambda current: current is not None and ("*" in tags or current in tags)
