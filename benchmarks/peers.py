"""The two servers that the payload route is compared with: stored bytes as they are, and JSON and gzip made for every request.

python -m benchmarks.peers bare BODY.gz 8080
python -m benchmarks.peers naive BODY.gz 8080
"""

import gzip
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from waitress import serve

THREADS = 8
"""As many as mmserver has by default."""
OUTBUF_OVERFLOW_BYTES = 64 * 2**20
"""Above its own default of 1 MiB waitress writes a body to a temporary file first."""
GZIP_LEVEL = 6


def bare(body: bytes) -> Callable[..., Iterable[bytes]]:
    """The least that a WSGI application can do: one body with its headers."""
    headers = [
        ("Content-Type", "application/json"),
        ("Content-Encoding", "gzip"),
        ("Vary", "Accept-Encoding"),
        ("Content-Length", str(len(body))),
    ]

    def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [body]

    return application


def naive(body: bytes) -> Callable[..., Iterable[bytes]]:
    """What one writes first: the payload is in memory as objects, and each request encodes and compresses it."""
    import flask

    document = json.loads(gzip.decompress(body))
    app = flask.Flask("naive")

    @app.get("/")
    def payload() -> flask.Response:
        compressed = gzip.compress(json.dumps(document).encode(), GZIP_LEVEL)
        headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return flask.Response(compressed, mimetype="application/json", headers=headers)

    return app


def main() -> None:
    """Serve until the process is ended."""
    kind, path, port = sys.argv[1:4]
    application = {"bare": bare, "naive": naive}[kind](Path(path).read_bytes())
    options = {
        "threads": THREADS,
        "outbuf_overflow": OUTBUF_OVERFLOW_BYTES,
        "outbuf_high_watermark": OUTBUF_OVERFLOW_BYTES,
    }
    serve(application, host="127.0.0.1", port=int(port), **options)


if __name__ == "__main__":
    main()
