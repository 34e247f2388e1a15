"""What a client has between `initialize` and `cleanup`.

When the client is opened again another session takes its place, so that what is still under way in the old one, such as a watch,
ends there and does not go on in the new.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from mmserver.client.availability import Availability
from mmserver.client.errors import ClientClosed

CLOSED = "the client was closed by cleanup(); initialize() opens it again"


class Session(ABC):
    """Connections, and what is known of the server. Nothing is connected before the first call."""

    def __init__(self) -> None:
        self.availability = Availability()
        self.is_watched = False
        """Whether the server's health is looked at again and again."""
        self._lock = threading.Lock()
        self._successor: list[Self] = []

    @abstractmethod
    def is_closed(self) -> bool:
        """Whether it is over."""

    @property
    def is_available(self) -> bool:
        """Whether the server answered the last health check, and nobody has met it away since."""
        return self.availability.is_available and not self.is_closed()

    def check_open(self) -> None:
        """Raises ClientClosed."""
        if self.is_closed():
            raise ClientClosed(CLOSED)

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
        """The one that takes its place: the same for all who ask."""
        with self._lock:
            if not self._successor:
                self._successor.append(make())
            return self._successor[0]
