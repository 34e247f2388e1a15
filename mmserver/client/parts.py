"""What both clients are made of besides their way of waiting."""

import os
import ssl
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import httpx

from mmserver.client.downloads import Downloading
from mmserver.client.errors import ClientError
from mmserver.client.options import Address, Retries, Timeouts
from mmserver.client.payload_cache import PayloadCache
from mmserver.client.requests import Requests
from mmserver.client.sessions import Session

S = TypeVar("S", bound=Session)

HEALTH_INTERVAL_S = 30.0
HEALTH_TIMEOUT_S = 2.0
N_CONNECTIONS = 32
CACHE_BYTES = 1 << 30
KEEP_ALIVE_S = 30.0
"""Below what servers and proxies allow an idle connection, so that it is this side that ends it."""


class ClientParts(ABC, Generic[S]):
    """Where to, how, and what is known of the server.

    `url` and `api_key` are `MMSERVER_URL` and `MMSERVER_API_KEY` where they are not given. `verify`: for https, False trusts anybody.
    `cache_dir`: where downloads are kept, which are at most `cache_bytes`, but for the newest of each model that is in use.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        cache_dir: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
        health_interval_s: float = HEALTH_INTERVAL_S,
        health_timeout_s: float = HEALTH_TIMEOUT_S,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        if not (health_interval_s > 0 and health_timeout_s > 0):
            raise ValueError("health_interval_s and health_timeout_s must be positive numbers of seconds")
        if not cache_bytes > 0:
            raise ValueError(f"cache_bytes must be a positive number of bytes, not {cache_bytes!r}")
        self._requests = Requests(Address.given(url, api_key), timeouts or Timeouts(), retries or Retries())
        self._health_interval_s = health_interval_s
        self._health_timeout_s = health_timeout_s
        cache = None if cache_dir is None else PayloadCache(Path(cache_dir).expanduser(), cache_bytes)
        self.downloading = Downloading(self.url, cache, lambda: self.is_initialized and not self.available)
        self._ssl_context: ssl.SSLContext | None = _ssl_context(verify) if self._requests.address.is_encrypted else None
        self._session = self._new_session()
        self._of_ancestors: list[S] = []
        """Kept, so that nothing tidies them away: what an event loop's connections hold is shared with the parent's."""

    @abstractmethod
    def _new_session(self) -> S:
        """Make what a client of this kind waits with; nothing is connected yet."""

    @abstractmethod
    def _begin_watching(self, session: S) -> None:
        """Look at the server's health again and again, from one interval on."""

    def _reopened_session(self) -> S:
        """The session; a new one where `cleanup` ended the last."""
        session = self._session_here()
        if session.is_closed():
            self._session = session = session.successor(self._new_session)
        return session

    def _session_here(self) -> S:
        """The session; in a process that was forked since, one that has the same state and connections of its own."""
        session = self._session
        return session if session.pid == os.getpid() else self._session_after_fork(session)

    def _session_after_fork(self, inherited: S) -> S:
        fresh = self._new_session()
        fresh.take_state_of(inherited)
        self._session = session = inherited.successor(lambda: fresh)
        if session is fresh:  # of this process's threads we are the first
            inherited.abandon()
            self._of_ancestors.append(inherited)
            if inherited.is_watched and not session.is_closed():
                with session.beginning_to_watch():
                    self._begin_watching(session)
        return session

    @property
    def url(self) -> str:
        """The server's address."""
        return self._requests.address.url

    @property
    def available(self) -> bool:
        """Whether the server answered the last health check, and nobody has met it away since. False before `initialize` and after `cleanup`."""
        return self._session_here().is_available

    @property
    def is_initialized(self) -> bool:
        """Whether the health of the server is being watched."""
        session = self._session_here()
        return session.is_watched and not session.is_closed()

    def note_away(self, error: ClientError) -> None:
        """Take the server for away until a health check succeeds, for this error of a call."""
        self._session_here().availability.note_away(error)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def _ssl_context(verify: ssl.SSLContext | bool) -> ssl.SSLContext:
    return verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify=verify)
