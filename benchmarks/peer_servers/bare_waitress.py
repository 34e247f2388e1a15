"""The least that a WSGI application can do with the same engine, run by mmserver's own server in its I/O thread.

python -m benchmarks.peer_servers.bare_waitress MODEL.msgpack PORT

It decodes, predicts and encodes: no catalog, no checks, no interpretation, no ids.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.peer_servers.exact_engine import load
from mmserver.server.connections import Channel
from mmserver.server.http_server import HttpServer, InlineAnswerer, Limits
from mmserver.server.pool import Pool
from mmserver.server.requests import Request


class Asked(msgspec.Struct):
    """One row."""

    symbol: str
    features: list[float]


def application(predicted: Callable[[list[float]], float]) -> Callable[..., Iterable[bytes]]:
    """The application."""
    decode, encode = msgspec.json.Decoder(Asked).decode, msgspec.json.Encoder().encode

    def answer(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        body = b"{}"
        if environ["REQUEST_METHOD"] == "POST":
            asked = decode(environ["wsgi.input"].read())
            body = encode({"symbol": asked.symbol, "prediction": predicted(asked.features)})
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


class Everything(InlineAnswerer):
    """Every request is answered by the I/O thread, by the application."""

    def knows(self, request: Request) -> bool:
        """All of them."""
        return True

    def answer(self, channel: Channel, request: Request) -> bool:
        """By a task of waitress's, as a thread of the pool would."""
        channel.service()
        return True


def main() -> None:
    """Serve until the process is ended."""
    with socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=1024) as listener:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # mmserver keeps its Python on one CPU, too
        server = HttpServer(application(load(Path(sys.argv[1]))), listener, Pool(1, 1), Limits(), Everything())
        while True:
            server.turn(1.0)


if __name__ == "__main__":
    main()
