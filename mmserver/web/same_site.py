"""Keeping other sites' pages from changing anything here through a visitor's browser.

Until there are sessions with tokens, the browser's own word decides: `Sec-Fetch-Site`, or `Origin` from those that do not
send it (browsers leave it out over plain HTTP, but always send `Origin` with a form). Programs send neither; the API takes
them all the same, the pages' forms do not.
"""

import urllib.parse

import flask

from mmserver.errors import CrossSite

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


def refuse_cross_site() -> None:
    """Refuse a change that another site's page asked for; runs before every request.

    Raises:
        CrossSite: the browser says so, or a page's form came without a word about where from.
    """
    request = flask.request
    if request.method in _SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None:
        allowed = site in ("same-origin", "none")
    elif origin is not None:
        allowed = urllib.parse.urlsplit(origin).netloc.lower() == request.host.lower()
    else:
        allowed = not request.path.startswith("/ui/")
    if not allowed:
        raise CrossSite
