"""`mmserver serve`: start the server."""

import sys
from typing import Any

import click

from mmserver.cli.logs import configure_logging
from mmserver.cli.options import with_settings
from mmserver.settings import Settings


@click.command()
@with_settings("host", "port", "workers", "threads", "plugins_dir", "snapshot", "read_only", "watch_enabled")
def serve(settings: Settings, **_: Any) -> None:
    """Serve models over HTTP until SIGTERM or Ctrl-C."""
    from mmserver.server.running import serve as run
    from mmserver.server.sockets import open_listeners

    configure_logging(settings)
    sys.exit(run(settings, open_listeners(settings)))
