"""The sockets that a server listens on; bound before anything else is done, so that a port that is taken is found at once."""

import socket
from typing import NamedTuple

from mmserver.errors import SettingInvalid
from mmserver.settings import Settings

BACKLOG = 1024


class Listeners(NamedTuple):
    """`main` has one socket for each worker, or one for all where the platform cannot share an address."""

    main: tuple[socket.socket, ...]
    probe: socket.socket | None = None


def open_listeners(settings: Settings) -> Listeners:
    """Everything that the settings ask to listen on.

    Raises:
        SettingInvalid: an address is taken, or not one of this machine.
    """
    n_sockets = settings.workers if hasattr(socket, "SO_REUSEPORT") else 1
    main = _bound(settings.host, settings.port, n_sockets, f"--host {settings.host} --port {settings.port}")
    if not settings.probe_port:
        return Listeners(main)
    (probe,) = _bound(settings.host, settings.probe_port, 1, f"MMSERVER_PROBE_PORT={settings.probe_port}")
    return Listeners(main, probe)


def _bound(host: str, port: int, n_sockets: int, setting: str) -> tuple[socket.socket, ...]:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        first = socket.socket(family, kind, protocol)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(address)
        if n_sockets == 1:
            first.listen(BACKLOG)
            return (first,)
        # It was bound without SO_REUSEPORT, which shares with every other server that has it; held while the others are bound.
        with first:
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared = tuple(socket.socket(family, kind, protocol) for _ in range(n_sockets))
            for listener in shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                listener.bind((address[0], first.getsockname()[1], *address[2:]))
        for listener in shared:
            listener.listen(BACKLOG)
    except OSError as error:
        raise SettingInvalid(setting=setting, reason=error.strerror or str(error)) from error
    return shared
