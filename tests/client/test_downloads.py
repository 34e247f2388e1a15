"""Models as files: fetched once, never damaged, there when the server is not, and announced when they change."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mmserver.client import (
    AnswerInvalid,
    Forbidden,
    ModelClient,
    ModelDownload,
    NotAuthenticated,
    NotFound,
    RequestRefused,
    Retries,
    ServerBusy,
    ServerError,
    ServerFailed,
    ServerUnavailable,
    SyncModelClient,
    Timeouts,
)
from mmserver.client.downloads import EARLY_S, MAX_PAUSE_S, MAX_RETRY_AFTER_S, _pause_s
from mmserver.client.payload_cache import Entry, PayloadCache
from tests.client.conftest import LONG_S, Ask, Misbehaving, answer, threads_end
from tests.e2e.conftest import FACTORS, Artifacts, Server, Servers, wait_until

Make = Callable[..., Misbehaving]
QUICK = Retries(attempts=1)


def downloading(client: Any) -> Any:
    return client.download_model("m", "X")


def payload(number: int, *, is_right: bool = True) -> bytes:
    """A payload as servers answer it; the hash beside the model may be wrong."""
    model = json.dumps({"model": number})
    sha256 = hashlib.sha256(model.encode()).hexdigest() if is_right else "0" * 64
    metadata = {"model": {"model_json_sha256": sha256}}
    content = {"model_json": model, "metadata": metadata, "dim_factors": []}
    named = {"model_name": "m", "symbol": "X", "group_key": "X_r", "version": str(number), "payload": content}
    headers = {"ETag": f'W/"{number}"', "X_Model_Version": str(number), "X_Group_Key": "X_r"}
    return answer("200 OK", json.dumps(named).encode(), **headers)


def serving(number: int) -> Callable[[Any, bytes], None]:
    """Answers as a server does that has this number."""

    def behave(connection: Any, request: bytes) -> None:
        is_known = f'If-None-Match: W/"{number}"'.encode() in request
        connection.sendall(answer("304 NOT MODIFIED", ETag=f'W/"{number}"') if is_known else payload(number))

    return behave


def entry_of(directory: Path) -> Path:
    [path] = directory.glob("*.model")
    return path


def test_a_real_model_is_downloaded_and_asked_for_again_by_its_tag(
    server: Server, alpha: str, cache_dir: Path, ask: Ask
) -> None:
    first = ask(server.url, lambda c: c.download_model(alpha, "BTC/USDT"), cache_dir=cache_dir)
    again = ask(server.url, lambda c: c.download_model(alpha, "BTC/USDT"), cache_dir=cache_dir)
    assert again.content == first.content
    assert again.fetched_at == first.fetched_at < again.confirmed_at
    assert not again.is_offline
    assert [one.factor_name for one in again.payload.payload.dim_factors] == list(FACTORS)
    assert (again.group_key, again.version) == ("BTCUSDT_mid_chg_1m", server.item(alpha)["version"])
    plain = server.client.get(f"/api/models/{alpha}/model/BTCUSDT?format=json").content
    alone = ask(server.url, lambda c: c.download_model(alpha, "BTCUSDT", form="json"), cache_dir=cache_dir)
    assert alone.content == plain == first.payload.payload.model_json.encode()
    manifest = ask(server.url, lambda c: c.download_model(alpha, "BTCUSDT", form="manifest"))
    assert json.loads(manifest.content)["sha256"]["json"] == hashlib.sha256(plain).hexdigest()
    with pytest.raises(NotFound):
        ask(server.url, lambda c: c.download_model(alpha, "NONE"), cache_dir=cache_dir)


def test_what_is_known_costs_a_304_and_what_changed_is_fetched(misbehaving: Make, cache_dir: Path, ask: Ask) -> None:
    server = misbehaving(serving(1))
    ask(server.url, downloading, cache_dir=cache_dir)
    assert ask(server.url, downloading, cache_dir=cache_dir).version == "1"
    assert b"If-None-Match" not in server.requests[0]
    assert b'If-None-Match: W/"1"' in server.requests[1]
    server.behave = serving(2)
    changed = ask(server.url, downloading, cache_dir=cache_dir)
    assert (changed.version, json.loads(changed.payload.payload.model_json)) == ("2", {"model": 2})
    assert len(list(cache_dir.iterdir())) == 1


def test_while_the_server_is_away_the_last_model_is_given_with_its_age(
    misbehaving: Make, cache_dir: Path, ask: Ask
) -> None:
    server = misbehaving(serving(1))
    ask(server.url, downloading, cache_dir=cache_dir)
    an_hour_ago = time.time() - 3600
    os.utime(entry_of(cache_dir), (an_hour_ago, an_hour_ago))
    server.behave = lambda connection, _: connection.close()
    offline = ask(server.url, downloading, cache_dir=cache_dir, retries=QUICK)
    assert offline.is_offline
    assert offline.version == "1"
    assert 3600 <= offline.age_s < 3660
    server.behave = lambda connection, _: connection.sendall(answer("404 X", b'{"code":"model_not_found"}'))
    with pytest.raises(NotFound):
        ask(server.url, downloading, cache_dir=cache_dir)
    server.behave = lambda connection, _: None
    hung = ask(server.url, downloading, cache_dir=cache_dir, timeouts=Timeouts(total_s=0.3))
    assert hung.is_offline
    server.behave = serving(1)
    assert ask(server.url, downloading, cache_dir=cache_dir).age_s < 60


TRANSIENT = [
    pytest.param(answer(status, b'{"code":"x"}', Retry_After="0"), id=status.partition(" ")[0])
    for status in ("408 X", "429 X", "500 X", "502 X", "503 X", "504 X", "507 X", "599 X", "302 X")
]
TRANSIENT += [
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", id="cut"),
    pytest.param(answer("200 OK", b"<html>"), id="a-page"),
    pytest.param(payload(2, is_right=False), id="damaged"),
]
PERMANENT = [
    pytest.param(status, kind, id=status.partition(" ")[0])
    for status, kind in (
        ("400 X", RequestRefused), ("401 X", NotAuthenticated), ("403 X", Forbidden), ("404 X", NotFound), ("501 X", NotFound),
    )
]  # fmt: skip


def saying(said: bytes) -> Callable[[Any, bytes], None]:
    """Answers so, and ends the connection."""

    def behave(connection: Any, _: bytes) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_RDWR)

    return behave


@pytest.mark.parametrize("said", TRANSIENT)
def test_a_server_in_trouble_costs_no_model_that_is_there_already(
    said: bytes, misbehaving: Make, cache_dir: Path, ask: Ask
) -> None:
    server = misbehaving(serving(1))
    ask(server.url, downloading, cache_dir=cache_dir)
    server.behave = saying(said)
    found = ask(server.url, downloading, cache_dir=cache_dir, retries=QUICK)
    assert (found.version, found.is_offline) == ("1", True)


@pytest.mark.parametrize(("status", "kind"), PERMANENT)
def test_whom_the_server_refuses_gets_nothing_from_the_cache(
    status: str, kind: type[ServerError], misbehaving: Make, cache_dir: Path, ask: Ask
) -> None:
    server = misbehaving(serving(1))
    ask(server.url, downloading, cache_dir=cache_dir)
    server.behave = saying(answer(status))
    with pytest.raises(kind):
        ask(server.url, downloading, cache_dir=cache_dir)


def test_without_a_cache_a_server_that_is_away_is_an_error(misbehaving: Make, cache_dir: Path, ask: Ask) -> None:
    server = misbehaving(lambda connection, _: connection.close())
    for options in ({}, {"cache_dir": cache_dir}):
        with pytest.raises(ServerUnavailable):
            ask(server.url, downloading, retries=QUICK, **options)


def test_a_server_that_is_known_to_be_away_is_not_waited_for(misbehaving: Make, cache_dir: Path) -> None:
    server = misbehaving(serving(1))
    before = SyncModelClient(server.url, cache_dir=cache_dir)
    before.download_model("m", "X")
    before.cleanup()
    server.behave = lambda connection, _: None
    server.requests.clear()
    with SyncModelClient(server.url, cache_dir=cache_dir, health_timeout_s=0.2) as client:
        assert client.download_model("m", "X").is_offline
        assert server.paths() == ["GET /readyz"]


@pytest.mark.parametrize("at", [0, 10, 64, 65, 100, -1])
def test_a_damaged_entry_is_fetched_again_wherever_the_damage_is(
    at: int, misbehaving: Make, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = misbehaving(serving(1))
    client = SyncModelClient(server.url, cache_dir=cache_dir, retries=QUICK)
    whole = client.download_model("m", "X")
    content = bytearray(entry_of(cache_dir).read_bytes())
    content[at] ^= 1
    entry_of(cache_dir).write_bytes(content)
    assert client.download_model("m", "X").content == whole.content
    assert b"If-None-Match" not in server.requests[1]
    assert "damaged" in caplog.text
    entry_of(cache_dir).write_bytes(bytes(content[: len(content) // 2]))
    server.behave = lambda connection, _: connection.close()
    with pytest.raises(ServerUnavailable):
        client.download_model("m", "X")
    assert list(cache_dir.iterdir()) == []
    client.cleanup()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(payload(2, is_right=False), id="wrong-hash"),
        pytest.param(answer("200 OK", b"{}", ETag='W/"2"', X_Model_Version="2", X_Group_Key="X_r"), id="no-payload"),
        pytest.param(answer("200 OK", b"<html>login</html>"), id="a-page"),
    ],
)
def test_what_is_not_the_model_that_the_server_read_is_neither_given_nor_kept(
    reply: bytes, misbehaving: Make, cache_dir: Path, ask: Ask
) -> None:
    server = misbehaving(lambda connection, _: connection.sendall(reply))
    with pytest.raises(AnswerInvalid):
        ask(server.url, downloading, cache_dir=cache_dir)
    assert not cache_dir.exists()


def test_servers_and_versions_do_not_share_entries(misbehaving: Make, cache_dir: Path) -> None:
    one, other = misbehaving(serving(1)), misbehaving(serving(2))
    for server in (one, other):
        client = SyncModelClient(server.url, cache_dir=cache_dir)
        client.download_model("m", "X")
        client.download_model("m", "X", version="production")
        client.cleanup()
    assert len(list(cache_dir.iterdir())) == 4
    assert all(b"If-None-Match" not in request for request in one.requests + other.requests)


def test_a_directory_that_cannot_be_written_costs_the_cache_only(
    misbehaving: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    client = SyncModelClient(misbehaving(serving(1)).url, cache_dir=tmp_path / "file" / "cache")
    assert client.download_model("m", "X").version == "1"
    assert "cannot be cached" in caplog.text
    client.cleanup()


# --- how much is kept -------------------------------------------------------------------------------------------------


def kept(directory: Path) -> set[str]:
    """The keys of the entries that are there, without the server."""
    lines = [path.read_bytes().split(b"\n", 2)[1] for path in directory.glob("*.model")]
    return {json.loads(line)["key"].partition("/api/models/")[2] for line in lines}


def write(cache: PayloadCache, key: str, n_bytes: int = 1000) -> None:
    entry = Entry(key=key, etag="1", version="1", group_key="g", media_type="", fetched_at=datetime.now(UTC))
    cache.write(entry, b"x" * n_bytes)


def age(directory: Path, keys: str) -> None:
    """As if each had been used an hour after the one before it, long ago."""
    for hours, key in enumerate(keys):
        at_s = time.time() - 86_400 + 3600 * hours
        os.utime(PayloadCache(directory, 1)._path(f"/api/models/{key}"), (at_s, at_s))


def test_what_was_not_used_for_the_longest_time_goes_first(cache_dir: Path) -> None:
    cache = PayloadCache(cache_dir, 3800)  # three entries and what stands before each
    for key in "abc":
        write(cache, f"/api/models/{key}")
    age(cache_dir, "abc")
    confirmed = cache.read("/api/models/a")
    assert confirmed is not None
    assert confirmed.confirmed_at.timestamp() == pytest.approx(time.time() - 86_400, abs=60)
    again = cache.read("/api/models/a")
    assert again is not None
    assert again.confirmed_at == confirmed.confirmed_at, "to be used is not to be confirmed"
    write(cache, "/api/models/d")
    assert kept(cache_dir) == {"a", "c", "d"}
    age(cache_dir, "acd")
    cache.confirm("/api/models/c")
    write(cache, "/api/models/e", 2000)
    assert kept(cache_dir) == {"c", "e"}
    write(cache, "/api/models/f", 50_000)
    assert kept(cache_dir) == {"f"}, "what was just written stays, whatever its size"


def test_the_newest_of_each_model_in_use_stays_whatever_the_bound(misbehaving: Make, cache_dir: Path, ask: Ask) -> None:
    server = misbehaving(serving(1))

    def several(client: Any) -> Any:
        asked: list[tuple[str, str | None]] = [("m", None), ("m", "1"), ("n", "production"), ("m", "2"), ("o", None)]
        if isinstance(client, SyncModelClient):
            return [client.download_model(name, "X", version=version) for name, version in asked]

        async def run() -> Any:
            return [await client.download_model(name, "X", version=version) for name, version in asked]

        return run()

    ask(server.url, several, cache_dir=cache_dir, cache_bytes=1)
    assert kept(cache_dir) == {"m/model/X?", "n/model/X?version=production", "o/model/X?"}


def test_a_bound_that_keeps_nothing_is_refused(cache_dir: Path) -> None:
    with pytest.raises(ValueError, match="cache_bytes"):
        SyncModelClient("http://x", cache_dir=cache_dir, cache_bytes=0)


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from mmserver.client.downloads import EARLY_S, MAX_PAUSE_S, MAX_RETRY_AFTER_S, _pause_s
from mmserver.client.payload_cache import Entry, PayloadCache
cache, n = PayloadCache(Path(sys.argv[1]), 1 << 30), 0
print("ready", flush=True)
while True:
    n += 1
    entry = Entry(key="k", etag=str(n), version="1", group_key="g", media_type="", fetched_at=datetime.now(UTC))
    cache.write(entry, str(n).encode() * 50_000)
"""


def test_a_process_killed_while_it_writes_leaves_a_whole_entry(cache_dir: Path) -> None:
    cache = PayloadCache(cache_dir, 1 << 30)
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, cache_dir], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            found = wait_until(lambda: cache.read("k"), "an entry")
            time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
        found = cache.read("k")
        assert found is not None
        assert found.content == found.entry.etag.encode() * 50_000
    for path in cache_dir.glob(".*.new"):
        os.utime(path, (0, 0))
    entry = Entry(key="l", etag="1", version="1", group_key="g", media_type="", fetched_at=datetime.now(UTC))
    cache.write(entry, b"x")
    assert list(cache_dir.glob(".*.new")) == [], "what a killed process left is taken away"


# --- watching ---------------------------------------------------------------------------------------------------------


def watched_in_a_thread(
    client: SyncModelClient, seen: list[ModelDownload], *names: str, **options: Any
) -> threading.Thread:
    """A thread that adds to `seen` what is watched, as it comes."""

    def watch() -> None:
        for found in client.watch(*names, **options):
            seen.append(found)  # noqa: PERF402 (at once, not at the end)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_watch_yields_the_present_model_and_each_change_and_survives_a_restart(
    servers: Servers, artifacts: Artifacts, tmp_path: Path
) -> None:
    server, directory = servers.start(), tmp_path / "w"
    artifacts.write(directory, "BTCUSDT_mid_chg_1m", 0)
    server.register("w", directory)
    client = SyncModelClient(server.url)
    seen: list[ModelDownload] = []
    with threads_end():
        thread = watched_in_a_thread(client, seen, "w", "BTCUSDT", wait_s=LONG_S)
        wait_until(lambda: len(seen) == 1, "the present model")
        artifacts.write(directory, "BTCUSDT_mid_chg_1m", 1)
        wait_until(lambda: len(seen) == 2, "the change")
        server.kill()
        again = servers.start("--port", str(server.port), data_dir=server.data_dir)
        artifacts.write(directory, "BTCUSDT_mid_chg_1m", 2)
        wait_until(lambda: len(seen) == 3, "the change after the restart", 60)
        assert seen[2].version == again.item("w")["version"]
        assert len({one.etag for one in seen}) == 3
        begun = time.monotonic()
        client.cleanup()
        thread.join(LONG_S)
        assert not thread.is_alive()
        assert time.monotonic() - begun < LONG_S - 5, "the long poll was waited for"


def test_a_watch_with_a_known_tag_yields_only_what_is_new_and_waits_at_the_server(misbehaving: Make) -> None:
    server = misbehaving(serving(1))
    seen: list[ModelDownload] = []
    server.behave = lambda connection, request: (time.sleep(0.1), serving(1)(connection, request))[0]
    client = SyncModelClient(server.url)
    thread = watched_in_a_thread(client, seen, "m", "X", known_etag='W/"1"', wait_s=20)
    wait_until(lambda: server.requests, "a question")
    server.behave = serving(2)
    wait_until(lambda: seen, "the change")
    client.cleanup()
    thread.join(LONG_S)
    assert seen[0].version == "2"
    assert all("wait=20" in path for path in server.paths())


def test_a_watch_does_not_ask_without_a_pause_where_the_server_does_not_wait(misbehaving: Make) -> None:
    asked_at: list[float] = []

    def behave(connection: Any, request: bytes) -> None:
        asked_at.append(time.monotonic())
        serving(1)(connection, request)

    seen: list[ModelDownload] = []
    client = SyncModelClient(misbehaving(behave).url)
    thread = watched_in_a_thread(client, seen, "m", "X")
    wait_until(lambda: len(asked_at) >= 4, "the fourth question")
    client.cleanup()
    thread.join(LONG_S)
    assert min(asked_at[2] - asked_at[1], asked_at[3] - asked_at[2]) >= EARLY_S


@pytest.mark.parametrize("said", TRANSIENT)
def test_a_watch_outlives_a_server_in_trouble_and_yields_what_is_new_after_it(
    said: bytes, misbehaving: Make, ask: Ask
) -> None:
    server = misbehaving(serving(1))

    def trouble_once(connection: Any, request: bytes) -> None:
        server.behave = serving(2)
        saying(said)(connection, request)

    def watching(client: Any) -> Any:
        if isinstance(client, SyncModelClient):
            watch = client.watch("m", "X")
            first = next(watch).version
            server.behave = trouble_once
            return first, next(watch).version

        async def run() -> Any:
            watch = client.watch("m", "X")
            first = (await anext(watch)).version
            server.behave = trouble_once
            second = (await anext(watch)).version
            await watch.aclose()
            return first, second

        return run()

    assert ask(server.url, watching, retries=QUICK) == ("1", "2")


@pytest.mark.parametrize(("status", "kind"), PERMANENT)
def test_a_watch_ends_where_asking_again_would_not_help(
    status: str, kind: type[ServerError], misbehaving: Make
) -> None:
    server = misbehaving(saying(answer(status)))
    client = SyncModelClient(server.url)
    with pytest.raises(kind):
        next(client.watch("m", "X"))
    assert len(server.requests) == 1
    client.cleanup()


def test_the_pauses_of_a_watch_grow_differ_are_bounded_and_as_long_as_the_server_asks() -> None:
    trouble, busy = ServerFailed(500, "x", "y"), ServerBusy(503, "x", "y", retry_after_s=7.0)
    late = [_pause_s(50, trouble) for _ in range(200)]
    assert len(set(late)) > 100
    assert 0.1 <= min(late) < max(late) <= MAX_PAUSE_S
    assert max(_pause_s(1, trouble) for _ in range(200)) <= 1.0
    assert 7.1 <= _pause_s(1, busy) <= 8.0
    asks_for_years = ServerBusy(429, "x", "y", retry_after_s=1e9)
    assert _pause_s(50, asks_for_years) <= MAX_RETRY_AFTER_S + MAX_PAUSE_S


def test_a_watch_that_hears_of_no_change_keeps_what_it_wrote_young_and_nothing_else(
    misbehaving: Make, cache_dir: Path
) -> None:
    server = misbehaving(serving(1))
    client, seen = SyncModelClient(server.url, cache_dir=cache_dir, retries=QUICK), []
    thread = watched_in_a_thread(client, seen, "m", "X")
    wait_until(lambda: seen, "the present model")
    long_ago = time.time() - 3600
    os.utime(entry_of(cache_dir), (long_ago, long_ago))
    wait_until(lambda: entry_of(cache_dir).stat().st_mtime > long_ago + 1800, "the server's word that it is current")
    client.cleanup()
    thread.join(LONG_S)

    os.utime(entry_of(cache_dir), (long_ago, long_ago))
    server.behave = serving(2)
    client.initialize()
    server.requests.clear()
    thread = watched_in_a_thread(client, seen, "m", "X", known_etag='W/"2"')
    wait_until(lambda: sum("/model/" in path for path in server.paths()) >= 2, "two questions")
    assert entry_of(cache_dir).stat().st_mtime == pytest.approx(long_ago, abs=1), "an older model is said to be current"
    client.cleanup()
    thread.join(LONG_S)


def test_a_watch_of_a_model_that_goes_ends_with_not_found(server: Server, artifacts: Artifacts, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "gone", "BTCUSDT_mid_chg_1m", 0)
    server.register("gone", tmp_path / "gone")

    async def run() -> None:
        client = ModelClient(server.url)
        watch = client.watch("gone", "BTCUSDT")
        try:
            assert (await anext(watch)).model_name == "gone"
            following = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.2)
            await client.remove_model("gone")
            with pytest.raises(NotFound):
                await asyncio.wait_for(following, 30)
        finally:
            await client.cleanup()

    asyncio.run(run())


@pytest.mark.parametrize("end", ["cancel", "cleanup", "aclose"])
def test_an_async_watch_ends_at_once_and_leaves_nothing_running(end: str, server: Server, alpha: str) -> None:
    async def run() -> None:
        client = ModelClient(server.url)
        watch = client.watch(alpha, "BTCUSDT", wait_s=LONG_S)
        assert (await anext(watch)).model_name == alpha
        begun = time.monotonic()
        if end == "aclose":
            await watch.aclose()
        else:
            following = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.2)
            if end == "cancel":
                following.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await following
            else:
                await client.cleanup()
                with pytest.raises(StopAsyncIteration):
                    await following
        await client.cleanup()
        assert time.monotonic() - begun < LONG_S - 5, "the long poll was waited for"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
