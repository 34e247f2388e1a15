"""Running the application: in this process, or in several that share an address."""

from mmserver.server.board import Board
from mmserver.server.process import Place, serve_here
from mmserver.server.sockets import Listeners
from mmserver.server.workers import supervise
from mmserver.serving.cpus import cpus_for
from mmserver.settings import Settings


def serve(settings: Settings, listeners: Listeners) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted. Returns the exit code."""
    if settings.workers > 1:
        return supervise(settings, listeners)
    cpus = cpus_for(1) if settings.pin_cpus else ()
    serve_here(settings, listeners, Place(Board.create(1), cpu=cpus[0] if cpus else None))
    return 0
