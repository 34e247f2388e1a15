"""Models as files: fetched once, asked for again for the price of a 304, served from the disk while the server is away."""

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import httpx
import msgspec

from mmserver.client.answers import Payload
from mmserver.client.calls import Blocking, Call, Flow, Found, Pause, path, query
from mmserver.client.errors import AnswerInvalid, ClientError, ServerError, is_transient
from mmserver.client.payload_cache import Cached, Entry, PayloadCache

PAYLOAD = "payload"
MOVING = (None, "latest", "production", "staging")
"""Versions that are another one later; the others never change."""
WAIT_S = 30.0
READ_MARGIN_S = 10.0
"""How much longer than it was asked to wait the server may take to answer."""
EARLY_S = 1.0
"""A server that answers sooner that nothing changed has too many waiting; it asks for a pause."""
MAX_PAUSE_S = 30.0
MAX_RETRY_AFTER_S = 300.0
"""A server that asks for more may be back sooner all the same: somebody may have restarted it."""


class ModelDownload(msgspec.Struct, frozen=True, kw_only=True):
    """One model's file. `is_offline`: the server was away, and this is what it last served."""

    model_name: str
    symbol: str
    group_key: str
    version: str
    etag: str
    media_type: str
    content: bytes
    fetched_at: datetime
    confirmed_at: datetime
    is_offline: bool = False

    @property
    def age_s(self) -> float:
        """Seconds since the server last said that this is what it serves."""
        return max(0.0, (datetime.now(UTC) - self.confirmed_at).total_seconds())

    @property
    def payload(self) -> Payload:
        """The content, if it was asked for as a payload: the model with its metadata and what each input means."""
        return _payload(self.content)


@dataclass(frozen=True, slots=True)
class Downloading:
    """What downloads need of the client that they are made for."""

    url: str
    cache: PayloadCache | None
    is_known_away: Callable[[], bool]


class Answered(msgspec.Struct, frozen=True):
    """What the server said: content, or None if the client has it already."""

    entry: Entry | None
    content: bytes


def download_model(
    client: Downloading,
    model_name: str,
    symbol: str,
    *,
    group_key: str | None = None,
    version: str | None = None,
    as_of: datetime | None = None,
    form: str = PAYLOAD,
) -> Flow[ModelDownload]:
    """A model: the payload, `manifest`, or in another format (`json`, `ubj`, …) alone.

    With a cache directory it is fetched only if it changed, and while the server is away, busy or in trouble what was last fetched is
    given, with `is_offline`; `age_s` says how old it is.

    Raises:
        NotFound: the server does not have it; what is cached is not given then.
        NotAuthenticated, Forbidden: nor to whom the server gives nothing.
    """
    parameters = {"group_key": group_key, "version": version, "as_of": as_of}
    where = path("/api/models/{}/model/{}", model_name, symbol)
    asked = query({**parameters, "format": None if form == PAYLOAD else form})
    key = f"{client.url}{where}?{asked}"
    cache = client.cache
    cached: Cached | None = None
    if cache is not None:
        if as_of is None and version in MOVING:
            cache.hold(key)
        cached = yield Blocking(partial(cache.read, key))
    if cached is not None and client.is_known_away():
        return _download(model_name, symbol, cached, is_offline=True)
    try:
        answered: Answered = yield _fetch(key, where, asked, form, cached.entry.etag if cached else None)
    except ClientError as error:
        if cached is None or not is_transient(error):
            raise
        return _download(model_name, symbol, cached, is_offline=True)
    if answered.entry is None and cached is not None:
        if cache is not None:
            yield Blocking(partial(cache.confirm, key))
        found = Cached(cached.entry, cached.content, datetime.now(UTC))
    else:
        found = _cached(answered)
        if cache is not None:
            yield Blocking(partial(cache.write, found.entry, found.content))
    return _download(model_name, symbol, found, is_offline=False)


def watch(
    client: Downloading,
    model_name: str,
    symbol: str,
    *,
    group_key: str | None = None,
    form: str = PAYLOAD,
    known_etag: str | None = None,
    wait_s: float = WAIT_S,
) -> Flow[None]:
    """Every content that is served from now on, beginning with the present one unless `known_etag` names it.

    While the server is away, busy or in trouble it waits, with growing pauses, and goes on. It ends when the client is closed.

    Units:
        wait_s: how long the server may wait for a change before it says that there is none; it takes 60 at most.

    Raises:
        NotFound: the model or the symbol is not there, or not any more.
        NotAuthenticated, Forbidden, RequestRefused: asking again would not help.
    """
    where = path("/api/models/{}/model/{}", model_name, symbol)
    shown = None if form == PAYLOAD else form
    key = f"{client.url}{where}?{query({'group_key': group_key, 'format': shown})}"
    cache, etag, n_failed = client.cache, known_etag, 0
    if cache is not None:
        cache.hold(key)
    is_kept = False  # what is in the cache may be older than what `known_etag` names
    while True:
        begun_s = time.monotonic()
        asked = query({"group_key": group_key, "format": shown, "wait": wait_s if etag else None})
        try:
            answered: Answered = yield _fetch(key, where, asked, form, etag, wait_s=wait_s)
        except ClientError as error:
            if not is_transient(error):
                raise
            n_failed += 1
            yield Pause(_pause_s(n_failed, error))
            continue
        n_failed = 0
        if answered.entry is None:
            if cache is not None and is_kept:
                yield Blocking(partial(cache.confirm, key))
            if time.monotonic() - begun_s < EARLY_S:
                yield Pause(EARLY_S + random.uniform(0, EARLY_S))  # noqa: S311 (no secret)
            continue
        etag = answered.entry.etag
        found = _cached(answered)
        if cache is not None:
            yield Blocking(partial(cache.write, found.entry, found.content))
            is_kept = True
        yield Found(_download(model_name, symbol, found, is_offline=False))


def _fetch(
    key: str,
    where: str,
    asked: str,
    form: str,
    etag: str | None,
    *,
    wait_s: float = 0.0,
) -> Call[Answered]:
    def decode(answer: httpx.Response) -> Answered:
        return _answered(answer, key, form)

    headers = [("Accept-Encoding", "gzip")]
    if etag is not None:
        headers.append(("If-None-Match", etag))
    long_s = wait_s + READ_MARGIN_S if wait_s else None
    return Call(
        method="GET",
        path=where,
        query=asked,
        headers=tuple(headers),
        decode=decode,
        is_repeatable=True,
        also=(304,),
        read_s=long_s,
        total_s=long_s,
    )


def _answered(answer: httpx.Response, key: str, form: str) -> Answered:
    """The content, proven where the answer has the means to."""
    if answer.status_code == 304:
        return Answered(None, b"")
    etag = answer.headers.get("ETag")
    version, group_key = answer.headers.get("X-Model-Version"), answer.headers.get("X-Group-Key")
    if not etag or version is None or group_key is None:
        raise AnswerInvalid("the answer has no ETag, X-Model-Version and X-Group-Key: it is not from mmserver")
    content = answer.content
    if form == PAYLOAD:
        _prove(_payload(content))
    entry = Entry(
        key=key,
        etag=etag,
        version=version,
        group_key=group_key,
        media_type=answer.headers.get("Content-Type", ""),
        fetched_at=datetime.now(UTC),
    )
    return Answered(entry, content)


_decode_payload = msgspec.json.Decoder(Payload).decode


def _payload(content: bytes) -> Payload:
    try:
        return _decode_payload(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AnswerInvalid(f"this is no payload: {error}") from error


def _prove(payload: Payload) -> None:
    """The hash that the server computed when it read the model."""
    told = payload.payload.metadata.get("model")
    expected = told.get("model_json_sha256") if isinstance(told, dict) else None
    if expected is not None and hashlib.sha256(payload.payload.model_json.encode()).hexdigest() != expected:
        raise AnswerInvalid(f"the model of {payload.group_key} does not have the hash that stands beside it")


def _cached(answered: Answered) -> Cached:
    if answered.entry is None:
        raise AnswerInvalid("304 to a request that named no ETag")
    return Cached(answered.entry, answered.content, answered.entry.fetched_at)


def _download(model_name: str, symbol: str, cached: Cached, *, is_offline: bool) -> ModelDownload:
    entry = cached.entry
    return ModelDownload(
        model_name=model_name,
        symbol=symbol,
        group_key=entry.group_key,
        version=entry.version,
        etag=entry.etag,
        media_type=entry.media_type,
        content=cached.content,
        fetched_at=entry.fetched_at,
        confirmed_at=cached.confirmed_at,
        is_offline=is_offline,
    )


def _pause_s(n_failed: int, error: ClientError) -> float:
    """Full jitter, never none at all, and as long as the server asks for."""
    pause_s = random.uniform(0.1, min(MAX_PAUSE_S, 0.5 * 2 ** min(n_failed, 10)))  # noqa: S311 (no secret)
    asked_s = error.retry_after_s if isinstance(error, ServerError) else None
    return pause_s + min(asked_s or 0.0, MAX_RETRY_AFTER_S)
