"""What a client has between `initialize` and `cleanup`.

When the client is opened again another session takes its place, so that what is still under way in the old one, such as a watch,
ends there and does not go on in the new. The same in a forked process: two processes that read from one socket would get each
other's answers.
"""

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from mmserver.client.availability import Availability
from mmserver.client.errors import ClientClosed

CLOSED = "the client was closed by cleanup(); initialize() opens it again"
OF_PARENT = "this was begun before the process was forked, and goes on in the parent only; begin it anew here"


class Session(ABC):
    """Connections, and what is known of the server. Nothing is connected before the first call."""

    closed: threading.Event | asyncio.Event

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.availability = Availability()
        self.is_watched = False
        """Whether the server's health is looked at again and again."""
        self._lock = threading.Lock()
        self._successor_by_pid: dict[int, Self] = {}

    def is_closed(self) -> bool:
        """Whether it is over."""
        return self.closed.is_set()

    @property
    def is_available(self) -> bool:
        """Whether the server answered the last health check, and nobody has met it away since."""
        return self.availability.is_available and not self.is_closed()

    def check_open(self) -> None:
        """Whether anything may be asked by it.

        Raises:
            ClientClosed
        """
        if self.is_closed():
            raise ClientClosed(CLOSED)
        if self.pid != os.getpid():
            raise ClientClosed(OF_PARENT)

    @contextmanager
    def beginning_to_watch(self) -> Iterator[bool]:
        """Whether it is the caller who is to watch the server's health: the first one, or the next if that one fails."""
        with self._lock:
            is_first, self.is_watched = not self.is_watched, True
        try:
            yield is_first
        except BaseException:
            self.is_watched = not is_first
            raise

    def successor(self, make: Callable[[], Self]) -> Self:
        """The one that takes its place in this process: the same for all who ask.

        Without the lock, which a thread of the parent may have held when it forked: nobody would ever give it back here.
        """
        return self._successor_by_pid.setdefault(os.getpid(), make())

    def take_state_of(self, inherited: Self) -> None:
        """Begin with what the parent knew when it forked."""
        self.availability.is_available = inherited.availability.is_available
        if inherited.is_closed():
            self.closed.set()

    @abstractmethod
    def abandon(self) -> None:
        """Leave it to the parent, in a forked process: nothing is said to the server, whose connections they still are."""
