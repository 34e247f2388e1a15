"""waitress's server with our connections and our pool; the thread that calls `turn` is its I/O thread.

All that this folder relies on in waitress's own workings is named in tests/server/test_waitress.py; setup.cfg pins its version.
"""

import errno
import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from waitress import wasyncore
from waitress.server import create_server

from mmserver.errors import QueueFull
from mmserver.server.bodies import BodyRules, UploadRules
from mmserver.server.connections import MAX_UNSENT_BYTES, Channel, Overdue
from mmserver.server.pool import Pool
from mmserver.server.requests import MAX_HEAD_BYTES, KnownHeads, Request
from mmserver.settings import Settings
from mmserver.web.framing import RequestIds

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

SWEEP_S = 1.0
CROWDED_IDLE_S = 1.0
"""How long a connection may be idle while others wait to be let in."""
CROWDED_DEADLINE_S = 5.0
"""How long a request may take to come, and its answer to be read, while others wait to be let in."""
LET_GO_A_SWEEP = 64
LET_IN_A_TURN = 64
"""waitress lets in one a turn, and a turn answers everybody who is in already: the last of many would wait for all of that."""
N_OWN = 2
"""What waitress counts as connections besides: the listening socket and its trigger."""
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Why the system lets nobody in; whoever waits still waits, and the loop would ask again at once, for ever."""
REFUSAL_LOG_S = 10.0
IDLE_TIMEOUT_S = 75.0
READ_BYTES = 64 << 10
"""What one turn takes of a body that has begun: a batch of some hundred rows is there in two."""
LARGE_BODY_BYTES = 1 << 20
"""A longer body waits in a file until it is whole."""
MAX_IN_MEMORY_BYTES = 256 << 20
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take of the server, and all together."""

    max_body_bytes: int = 8 << 20
    uploads: UploadRules | None = None
    request_deadline_s: float = 30.0
    idle_timeout_s: float = IDLE_TIMEOUT_S
    connection_limit: int = 1000
    trusted_hosts: tuple[str, ...] = ()

    @property
    def bodies(self) -> BodyRules:
        """What holds for the bodies of requests."""
        return BodyRules(self.max_body_bytes, self.uploads)

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Those that the settings name."""
        return cls(
            max_body_bytes=settings.max_body_bytes,
            uploads=UploadRules.of(settings),
            request_deadline_s=settings.request_deadline_s,
            connection_limit=settings.connection_limit,
            trusted_hosts=settings.trusted_hosts,
        )


class InlineAnswerer:
    """What the I/O thread answers by itself; this one leaves everything to the pool."""

    def knows(self, request: Request) -> bool:
        """Whether it is worth a try; a lookup, without reading the body."""
        return False

    def answer(self, channel: Channel, request: Request) -> bool:
        """Answer the connection's first request; False leaves it to the pool."""
        return False


class HttpServer:
    """Answers requests while somebody calls `turn`."""

    def __init__(
        self,
        application: "WSGIApplication",
        listener: socket.socket,
        pool: Pool,
        limits: Limits,
        inline: InlineAnswerer | None = None,
    ) -> None:
        self.limits = limits
        self.pool = pool
        self.request_ids = RequestIds()
        trusted_hosts = frozenset(host.lower() for host in limits.trusted_hosts)
        self.new_request = partial(Request, limits.bodies, trusted_hosts, KnownHeads())
        self.is_stopping = False
        self.now = time.monotonic()
        self.n_requests = 0
        self.n_errors = 0
        self.n_refused = 0
        self._inline = inline or InlineAnswerer()
        self._errors_lock = threading.Lock()
        self._io_thread = threading.get_ident()
        self._next_sweep = 0.0
        self._refusal_logged_at = self._no_room_logged_at = float("-inf")
        self._lacks_files = False
        self._listener = listener
        self._map: dict[int, wasyncore.dispatcher] = {}
        pool.take_by_io_thread = self._take_task
        self._server = create_server(
            application,
            map=self._map,
            _dispatcher=pool,
            sockets=[listener],
            ident=None,
            clear_untrusted_proxy_headers=True,
            channel_request_lookahead=1,  # a connection whose request is being worked on is still watched: is its client there?
            connection_limit=limits.connection_limit + N_OWN,
            max_request_header_size=MAX_HEAD_BYTES,
            # With the framing of chunks; requests.py is exact.
            max_request_body_size=2 * limits.bodies.most_bytes + (1 << 20),
            recv_bytes=READ_BYTES,
            inbuf_overflow=LARGE_BODY_BYTES,
            outbuf_overflow=MAX_IN_MEMORY_BYTES,
            outbuf_high_watermark=MAX_IN_MEMORY_BYTES,
            log_socket_errors=False,
            asyncore_use_poll=True,
        )
        self._server.channel_class = partial(Channel, self)
        self._let_one_in = self._server.handle_accept
        self._server.handle_accept = self._let_in
        self._server.accept = self._accept
        self._server.handle_error = self._server.handle_close = self._server.trigger.handle_error = _end_loop
        self._server.maintenance = lambda _now: None  # `_sweep` does more, by a clock that nobody sets
        self.wake: Callable[[], None] = self._server.pull_trigger
        """Ends the I/O thread's waiting; for other threads."""
        self._server.pull_trigger = self._pull_trigger

    @property
    def active_channels(self) -> dict[int, Channel]:
        """The open connections."""
        found: dict[int, Channel] = self._server.active_channels
        return found

    # --- the I/O thread ---

    def turn(self, timeout_s: float) -> None:
        """Wait for something to happen, and see to it."""
        self._io_thread = threading.get_ident()
        timeout_s = min(timeout_s, max(0.0, self._next_sweep - self.now))
        wasyncore.loop(timeout=timeout_s, map=self._map, use_poll=True, count=1)
        self.now = time.monotonic()
        if self.now >= self._next_sweep:
            self._next_sweep = self.now + min(SWEEP_S, self.limits.request_deadline_s / 4)
            self._sweep()

    def answer_inline(self, channel: Channel) -> None:
        """Answer the first request of a connection here, or hand it to the pool after all."""
        request = channel.requests[0]
        if request.error is not None:
            channel.service()
        elif not self._inline.answer(channel, request):
            self._queue(channel)

    def stop_listening(self) -> None:
        """Let nobody else in. The trigger stays: the pool's threads say by it that an answer is ready."""
        self._lacks_files = False
        wasyncore.dispatcher.close(self._server)

    def has_visitors(self) -> bool:
        """Whether somebody has connected and was not let in yet."""
        door = select.poll()
        door.register(self._listener, select.POLLIN)
        return bool(door.poll(0))

    def close_idle(self) -> None:
        """Close the connections on which nothing is going on."""
        for channel in list(self.active_channels.values()):
            if channel.is_idle():
                channel.handle_close()

    def close(self) -> None:
        """Drop what is left."""
        wasyncore.close_all(self._map)

    # --- other threads ---

    def count_error(self) -> None:
        """An answer is of the kind 5xx."""
        with self._errors_lock:
            self.n_errors += 1

    # --- parts ---

    def _let_in(self) -> None:
        """Let in who waits at the door, while there is room."""
        for _ in range(LET_IN_A_TURN):
            n_before = len(self._map)
            try:
                self._let_one_in()
            except OSError:
                log.info("a client was gone before it was let in", exc_info=True)
            if len(self._map) == n_before or not self._server.readable():
                return

    def _accept(self) -> Any:
        """As waitress's, which does not tell nobody from no room."""
        try:
            return wasyncore.dispatcher.accept(self._server)
        except OSError as error:
            if error.errno in NO_ROOM:
                self._lacks_files = True  # until the next sweep
                self._server.accepting = False
                if self.now - self._no_room_logged_at > REFUSAL_LOG_S:
                    self._no_room_logged_at = self.now
                    log.warning("nobody else is let in for now: %s; %d are", error.strerror, len(self.active_channels))
            return None

    def _pull_trigger(self) -> None:
        """Wake the I/O thread, which need not be woken by itself."""
        if threading.get_ident() != self._io_thread:
            self.wake()

    def _take_task(self, channel: Channel) -> bool:
        """Whether the pool has nothing to do with a task yet; it asks for every request that becomes a connection's first."""
        if channel.total_outbufs_len > MAX_UNSENT_BYTES:
            channel.is_held_back = True
            return True
        if threading.get_ident() != self._io_thread:
            return False
        request = channel.requests[0]
        channel.waits_inline = request.error is not None or self._inline.knows(request)
        return channel.waits_inline or not self._has_room(channel)

    def _queue(self, channel: Channel) -> None:
        if self._has_room(channel):
            self.pool.queue_task(channel)
        else:
            channel.waits_inline = True

    def _has_room(self, channel: Channel) -> bool:
        """Whether the pool can take the request; if not, it is refused, which takes no thread."""
        if self.pool.has_room():
            return True
        self.n_refused += 1
        n_waiting = self.pool.n_waiting()
        if self.now - self._refusal_logged_at > REFUSAL_LOG_S:
            self._refusal_logged_at = self.now
            log.warning("%d requests wait already; %d refused so far", n_waiting, self.n_refused)
        channel.requests[0].error = QueueFull(n_waiting=n_waiting)
        channel.waits_inline = True
        return False

    def _sweep(self) -> None:
        """Close what has had its time."""
        for channel in list(self.active_channels.values()):
            self._end_if_overdue(channel, self.limits.request_deadline_s, self.limits.idle_timeout_s)
        is_full = self._lacks_files or len(self.active_channels) >= self.limits.connection_limit
        if is_full and self.has_visitors():
            self._make_room()
        if self._lacks_files:
            self._lacks_files = False
            self._server.accepting = True

    def _end_if_overdue(self, channel: Channel, deadline_s: float, idle_timeout_s: float) -> bool:
        overdue = channel.overdue(self.now, deadline_s, idle_timeout_s)
        if overdue is Overdue.CONNECTION:
            channel.handle_close()
        elif overdue is Overdue.REQUEST:
            channel.refuse_slow_request()
        return overdue is not None

    def _make_room(self) -> None:
        """Part with those who keep others waiting at the door: who has been idle longest, or drags its request or answer out."""
        deadline_s = min(self.limits.request_deadline_s, CROWDED_DEADLINE_S)
        n_let_go = 0
        for channel in sorted(self.active_channels.values(), key=lambda channel: channel.idle_since):
            n_let_go += self._end_if_overdue(channel, deadline_s, CROWDED_IDLE_S)
            if n_let_go == LET_GO_A_SWEEP:
                break


def _end_loop() -> NoReturn:
    """What befalls the listening socket or the trigger ends the process: waitress would go on, and let nobody in."""
    raise RuntimeError("the server's own socket failed") from sys.exception()
