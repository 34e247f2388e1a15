"""An application behind a plain waitress server, in a thread of this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import flask
from waitress import create_server, wasyncore


@contextmanager
def served(app: flask.Flask, n_threads: int) -> Iterator[str]:
    """Host and port. The server is closed by the thread that polls it: another would close sockets under its `select`."""
    server = create_server(app, host="127.0.0.1", port=0, threads=n_threads)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.effective_port}"
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))
        thread.join(60)
        assert not thread.is_alive()
