"""A listening socket, its connections and its pool of threads; one thread takes turns with all of them.

waitress asks every connection at every turn what it waits for, which at 64 connections costs more than most requests do. Here the
kernel keeps that (epoll), and it is changed only when it changes.
"""

import errno
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.proxy_headers import proxy_headers_middleware

from mmserver.errors import QueueFull
from mmserver.server.connections import Channel, Overdue
from mmserver.server.heads import HeadReader
from mmserver.server.pool import Pool
from mmserver.server.refusals import problem_from_refusal
from mmserver.server.requests import Request
from mmserver.settings import Settings
from mmserver.web.framing import RequestIds

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

SWEEP_S = 1.0
ACCEPTS_A_TURN = 64
EVENTS_A_TURN = 256
CROWDED_IDLE_S = 1.0
"""How long a connection may be idle while others wait to be let in."""
REFUSAL_LOG_S = 10.0
IDLE_TIMEOUT_S = 75.0
MAX_IN_MEMORY_BYTES = 256 << 20
_TRANSIENT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_GONE = select.EPOLLHUP | select.EPOLLERR
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take of the server, and all together."""

    max_body_bytes: int = 8 << 20
    request_deadline_s: float = 30.0
    idle_timeout_s: float = IDLE_TIMEOUT_S
    connection_limit: int = 1000
    trusted_hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Those that the settings name."""
        return cls(
            max_body_bytes=settings.max_body_bytes,
            request_deadline_s=settings.request_deadline_s,
            connection_limit=settings.connection_limit,
            trusted_hosts=settings.trusted_hosts,
        )


class HttpServer:
    """Answers requests while somebody calls `turn`; that thread is its I/O thread.

    The names without a comment are those by which waitress's channels and tasks know their server.
    """

    server_name = "waitress.invalid"

    def __init__(
        self,
        application: "WSGIApplication",
        listener: socket.socket,
        pool: Pool,
        limits: Limits,
        answer_inline: Callable[[Channel, Request], bool] = lambda _channel, _request: False,
    ) -> None:
        """`answer_inline` answers a request in the I/O thread, or returns False and leaves it to the pool."""
        self.application = proxy_headers_middleware(application, clear_untrusted=True)
        self.adj = Adjustments(
            ident=None,
            threads=1,
            outbuf_overflow=MAX_IN_MEMORY_BYTES,
            outbuf_high_watermark=MAX_IN_MEMORY_BYTES,
            log_socket_errors=False,
        )
        self.active_channels: dict[int, Channel] = {}
        self.effective_port = listener.getsockname()[1]
        self.pool = pool
        self.limits = limits
        self.heads = HeadReader(trusted_hosts=limits.trusted_hosts, max_body_bytes=limits.max_body_bytes)
        self.request_ids = RequestIds()
        self.is_stopping = False
        self.now = time.monotonic()
        self.n_requests = 0
        self.n_errors = 0
        self.n_refused = 0
        self._answer_inline = answer_inline
        self._errors_lock = threading.Lock()
        self._epoll = select.epoll()
        self._listener = listener
        self._listens = False
        self._changed: deque[Channel] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_woken = False
        self._some_channel_changed = False
        self._listens_again_at: float | None = None
        self._io_thread = threading.get_ident()
        self._next_sweep = 0.0
        self._refusal_logged_at = float("-inf")
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        listener.setblocking(False)
        self.listen()

    # --- the I/O thread ---

    def turn(self, timeout_s: float) -> None:
        """Wait for something to happen, and see to it."""
        self._io_thread = threading.get_ident()
        until_sweep_s = max(0.0, self._next_sweep - self.now)
        events = self._epoll.poll(min(timeout_s, until_sweep_s), EVENTS_A_TURN)
        self.now = time.monotonic()
        channels = self.active_channels
        for fd, event in events:
            channel = channels.get(fd)
            if channel is not None:
                self._serve(channel, event)
            elif fd == self._wake_fd:
                self._woken()
            elif self._listens and fd == self._listener.fileno():
                self._accept()
        self._listen_again()
        if self.now >= self._next_sweep:
            self._next_sweep = self.now + min(SWEEP_S, self.limits.request_deadline_s / 4)
            self._sweep()

    def begin(self, channel: Channel) -> None:
        """Begin with the first request of a connection whose requests nobody is working on."""
        while channel.requests and channel.connected and not channel.close_when_flushed:
            request = channel.requests[0]
            if request.error is not None:
                channel.answer_first()
            elif self._answer_inline(channel, request):
                continue
            elif self.pool.has_room():
                self.pool.add_task(channel)
                return
            else:
                self._refuse(channel)

    def listen(self) -> None:
        """Let clients in."""
        if not self._listens:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)
            self._listens = True

    def stop_listening(self) -> None:
        """Let nobody else in."""
        if self._listens:
            self._epoll.unregister(self._listener.fileno())
            self._listens = False

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
        self.stop_listening()
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        self._epoll.close()
        os.close(self._wake_fd)

    # --- other threads ---

    def attend(self, channel: Channel) -> None:
        """Let the I/O thread look at a connection that a thread of the pool is done with."""
        self._changed.append(channel)
        self._wake()

    def pull_trigger(self) -> None:
        """Called by a channel of which a part of a long answer could not be sent at once."""
        if threading.get_ident() != self._io_thread:
            self._some_channel_changed = True
            self._wake()

    def count_error(self) -> None:
        """An answer is of the kind 5xx."""
        with self._errors_lock:
            self.n_errors += 1

    # --- parts ---

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            os.eventfd_write(self._wake_fd, 1)

    def _woken(self) -> None:
        os.eventfd_read(self._wake_fd)
        self._is_woken = False  # before looking: who adds something now wakes again
        while self._changed:
            self._settle(self._changed.popleft())
        if self._some_channel_changed:
            self._some_channel_changed = False
            for channel in list(self.active_channels.values()):
                if channel.total_outbufs_len:
                    self._settle(channel)

    def _serve(self, channel: Channel, event: int) -> None:
        if event & select.EPOLLIN:
            if channel.readable():
                wasyncore.read(channel)
            else:
                self._mute(channel)
        elif event & _GONE:
            channel.handle_close()
        if event & select.EPOLLOUT or channel.total_outbufs_len or channel.close_when_flushed or channel.will_close:
            self._settle(channel)

    def _mute(self, channel: Channel) -> None:
        """Something came for which there is no room yet, and the kernel would go on saying so."""
        channel.is_muted = True
        if channel.readable():  # a thread was done with it just before it could see that
            channel.is_muted = False
        else:
            self._ask_for(channel, 0)

    def _settle(self, channel: Channel) -> None:
        """Send what can be sent, and let the kernel say when the rest can be, or when there is more to read."""
        if channel.connected and channel.needs_writing():
            wasyncore.write(channel)
        if not channel.connected:
            if channel.socket is not None:
                channel.handle_close()
        elif channel.needs_writing():
            self._ask_for(channel, select.EPOLLOUT)
        elif not channel.is_muted or channel.readable():
            channel.is_muted = False
            self._ask_for(channel, select.EPOLLIN)

    def _ask_for(self, channel: Channel, events: int) -> None:
        if channel.asked_for != events:
            channel.asked_for = events
            self._epoll.modify(channel.socket.fileno(), events)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if len(self.active_channels) >= self.limits.connection_limit:
                log.warning("%d connections are open; no other is let in", len(self.active_channels))
                self._pause(0.0)
                return
            try:
                connection, address = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                if error.errno in _TRANSIENT:
                    log.warning("no connection can be let in: %s", error.strerror)
                    self._pause(SWEEP_S)
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            channel = Channel(self, connection, address)
            self._epoll.register(connection.fileno(), channel.asked_for)

    def _pause(self, pause_s: float) -> None:
        self.stop_listening()
        self._listens_again_at = self.now + pause_s

    def _listen_again(self) -> None:
        at = self._listens_again_at
        if at is not None and self.now >= at and len(self.active_channels) < self.limits.connection_limit:
            self._listens_again_at = None
            self.listen()

    def _sweep(self) -> None:
        """Close what has had its time."""
        limits = self.limits
        for channel in list(self.active_channels.values()):
            overdue = channel.overdue(self.now, limits.request_deadline_s, limits.idle_timeout_s)
            if overdue is Overdue.CONNECTION:
                channel.handle_close()
            elif overdue is Overdue.REQUEST:
                channel.refuse_slow_request()
                self._settle(channel)
        if self._listens_again_at is not None and self.has_visitors():
            self._make_room()

    def _make_room(self) -> None:
        """Close the connections that were idle longest, so that others who wait at the door are let in."""
        idle = [channel for channel in self.active_channels.values() if channel.is_idle()]
        idle.sort(key=lambda channel: channel.idle_since)
        for channel in idle[:ACCEPTS_A_TURN]:
            if self.now - channel.idle_since > CROWDED_IDLE_S:
                channel.handle_close()

    def _refuse(self, channel: Channel) -> None:
        self.n_refused += 1
        n_waiting = self.pool.n_waiting()
        if self.now - self._refusal_logged_at > REFUSAL_LOG_S:
            self._refusal_logged_at = self.now
            log.warning("%d requests wait already; %d refused so far", n_waiting, self.n_refused)
        channel.answer_first(problem_from_refusal(QueueFull(n_waiting=n_waiting)))
