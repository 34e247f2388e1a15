"""A second port that answers `/livez` and `/readyz` only, from threads of its own: whatever the load on the first."""

import socket
import threading
from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmserver.server.http_server import HttpServer, Limits
from mmserver.server.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PATHS = ("/livez", "/readyz")
LIMITS = Limits(max_body_bytes=0, request_deadline_s=5.0, idle_timeout_s=30.0, connection_limit=64)
_TURN_S = 0.5


@contextmanager
def probe_server(application: "WSGIApplication", listener: socket.socket | None) -> "Iterator[None]":
    """Answer probes on the socket, if there is one, for as long as the block lasts."""
    if listener is None:
        yield
        return
    server = HttpServer(only_probes(application), listener, Pool(1, max_waiting=64), LIMITS)
    ending = threading.Event()

    def serve() -> None:
        while not ending.is_set():
            server.turn(_TURN_S)

    thread = threading.Thread(target=serve, name="probes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        server.pool.shutdown(cancel_pending=True, timeout=1)
        server.close()


def only_probes(application: "WSGIApplication") -> "WSGIApplication":
    """The application, of which only the probes can be reached."""

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if environ["PATH_INFO"] in PATHS:
            return application(environ, start_response)
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []

    return answer
