"""One of several server processes; started by the supervisor with its `Post` and, on stdin, the settings."""

import logging
import os
import signal
import socket
import sys
import threading

import msgspec

from mmserver.cli.logs import configure_logging
from mmserver.cli.main import exit_code
from mmserver.errors import MmserverError
from mmserver.server.board import Board
from mmserver.server.post import Post
from mmserver.server.process import Place, serve_here
from mmserver.server.sockets import Listeners
from mmserver.settings import Settings

log = logging.getLogger("mmserver.worker")


def main() -> None:
    """Serve until the supervisor says so, or is gone."""
    post = msgspec.json.decode(sys.argv[1], type=Post)
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0) as pipe:
        settings = msgspec.json.decode(pipe.readline(), type=Settings, dec_hook=lambda kind, value: kind(value))
    configure_logging(settings)
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()
    try:
        listeners = Listeners(
            main=(socket.socket(fileno=post.listener_fd),),
            probe=None if post.probe_fd is None else socket.socket(fileno=post.probe_fd),
        )
        place = Place(Board(post.board_fd, settings.workers), post.slot, post.cpu, is_one_of_several=True)
        serve_here(settings, listeners, place)
    except MmserverError as error:
        log.error("%s", error)
        sys.exit(exit_code(error))


def _end_with_supervisor() -> None:
    # Not through sys.stdin: its lock, held by a thread that waits, would abort the interpreter at its end.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
