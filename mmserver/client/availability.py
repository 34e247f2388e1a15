"""Whether the server can be had, as far as is known without asking it: what keeps a bot from waiting for a server that is away."""

import logging
import threading

from mmserver.client.errors import ClientError

log = logging.getLogger(__name__)


class Availability:
    """A breaker: any sign that the server is away opens it at once; only a health check that succeeds closes it again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_available = False
        self._is_checked = False

    @property
    def is_available(self) -> bool:
        """Whether the last health check succeeded and no call has met a server that was away since."""
        return self._is_available

    @property
    def is_known_away(self) -> bool:
        """Whether it was looked, and found away; before the first look nothing is known."""
        return self._is_checked and not self._is_available

    def note_check(self, error: ClientError | None, *, is_ready: bool) -> None:
        """What a health check found."""
        with self._lock:
            was, self._is_available, self._is_checked = self._is_available, is_ready, True
        if was != is_ready or error is not None:
            log.debug("the server is %s%s", "available" if is_ready else "away", f": {error}" if error else "")

    def note_away(self, error: ClientError) -> None:
        """A call found the server away."""
        with self._lock:
            was, self._is_available, self._is_checked = self._is_available, False, True
        if was:
            log.debug("the server is away: %s", error)
