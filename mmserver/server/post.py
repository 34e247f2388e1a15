"""Where a worker stands: told by its supervisor on the command line, beside the settings on stdin."""

import msgspec


class Post(msgspec.Struct, frozen=True):
    """The descriptors that a worker inherits, and which of them all it is."""

    listener_fd: int
    board_fd: int
    probe_fd: int | None
    slot: int
    cpu: int | None
