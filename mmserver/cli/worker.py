"""One of several server processes; started by the supervisor with the listening socket and, on stdin, the settings."""

import os
import signal
import socket
import sys
import threading

import msgspec

from mmserver.cli.logs import configure_logging
from mmserver.server import serve_as_worker
from mmserver.settings import Settings


def main() -> None:
    """Serve until the supervisor says so, or is gone."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings, dec_hook=lambda kind, value: kind(value))
    configure_logging(settings)
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    serve_as_worker(settings, listener)


def _end_with_supervisor() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
