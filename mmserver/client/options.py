"""How a client talks: where to, with which key, how long it waits, and how often it tries again."""

import math
import os
import random
from dataclasses import dataclass, field

import httpx

from mmserver.client.errors import (
    AnswerInvalid,
    ClientError,
    DeadlineExceeded,
    ServerBusy,
    ServerError,
    ServerUnavailable,
)

DEFAULT_URL = "http://localhost:6300"
URL_VARIABLE = "MMSERVER_URL"
KEY_VARIABLE = "MMSERVER_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds. `total_s` is for the whole call, with every retry and every pause; no server can make it longer."""

    connect_s: float = 2.0
    read_s: float = 10.0
    write_s: float = 10.0
    pool_s: float = 2.0
    total_s: float = 30.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number of seconds, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often, and after which pauses: anything from 0 to `base_s` × 2ⁿ, at most `cap_s`, and as long as the server asks for.

    Source:
        Full jitter: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """

    attempts: int = 3
    base_s: float = 0.1
    cap_s: float = 2.0

    def pause_s(self, error: ClientError, n_failed: int, left_s: float, *, is_repeatable: bool) -> float | None:
        """How long to wait before the next attempt; None if there must be none."""
        if n_failed >= self.attempts or not _may_repeat(error, is_repeatable=is_repeatable):
            return None
        pause_s = random.uniform(0, min(self.cap_s, self.base_s * 2 ** (n_failed - 1)))  # noqa: S311 (no secret)
        if isinstance(error, ServerError) and error.retry_after_s is not None:
            pause_s += error.retry_after_s
        return pause_s if pause_s < left_s else None


NO_RETRIES = Retries(attempts=1)


def _may_repeat(error: ClientError, *, is_repeatable: bool) -> bool:
    """A change is repeated only if the server cannot have seen it."""
    if isinstance(error, ServerUnavailable | DeadlineExceeded) and not error.was_sent:
        return True
    if isinstance(error, DeadlineExceeded | AnswerInvalid) or not is_repeatable:
        return False
    return isinstance(error, ServerUnavailable | ServerBusy)


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is, and the key for it; the key is in no text that can be printed."""

    url: str
    api_key: str | None = field(repr=False)

    @property
    def is_encrypted(self) -> bool:
        """Whether it is asked over TLS."""
        return self.url.startswith("https:")

    @classmethod
    def given(cls, url: str | None, api_key: str | None) -> "Address":
        """As given, else from the environment."""
        url = (url if url is not None else os.environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"url {url!r}: {error}") from error
        if (
            parsed.scheme not in ("http", "https")
            or not parsed.host
            or parsed.query
            or parsed.fragment
            or parsed.userinfo
        ):
            raise ValueError(f"url must be http://HOST[:PORT][/PREFIX] or https://…, not {url!r}")
        api_key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE) or None
        if api_key is not None and not (
            api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""
        ):
            raise ValueError("the API key has characters that no header can carry")
        return cls(url, api_key)
