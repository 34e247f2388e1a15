"""`mmserver serve`: start the server."""

import logging
from typing import Any

import click

from mmserver.cli.logs import configure_logging
from mmserver.cli.options import with_settings
from mmserver.settings import Settings

log = logging.getLogger("mmserver")


@click.command()
@with_settings("host", "port", "workers", "threads", "plugins_dir", "snapshot", "read_only", "watch_enabled")
def serve(settings: Settings, **_: Any) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C."""
    from mmserver.server import listening_socket
    from mmserver.server import serve as run

    configure_logging(settings)
    listener = listening_socket(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    log.info("serving on http://%s:%d, state in %s", host, port, settings.snapshot or settings.data_dir)
    if not host.startswith("127.") and host != "::1":
        log.warning("no API key exists: everybody who can reach port %d can read and change models", port)
    run(settings, listener)
