"""Whether the server can be had, as far as is known without asking it: what keeps a bot from waiting for a server that is away."""

import logging

from mmserver.client.errors import ClientError

log = logging.getLogger(__name__)


class Availability:
    """A breaker: any sign that the server is away opens it at once; only a health check that succeeds closes it again."""

    def __init__(self) -> None:
        self.is_available = False
        """Whether the last health check succeeded and no call has met a server that was away since."""
        self._was_failure_told = False

    def note_check(self, *, is_ready: bool) -> None:
        """A health check was answered."""
        was, self.is_available = self.is_available, is_ready
        if was != is_ready:
            log.debug("the server is %s", "available" if is_ready else "away")

    def note_away(self, error: ClientError) -> None:
        """A call, or a health check, found the server away."""
        self.is_available = False
        log.debug("the server is away: %s", error)

    def note_failed_check(self, error: Exception) -> None:
        """A health check did not come about, for a reason that nobody foresaw: said once, with where it happened."""
        self.is_available = False
        level = logging.DEBUG if self._was_failure_told else logging.WARNING
        self._was_failure_told = True
        log.log(level, "the server's health cannot be asked for", exc_info=error)
