"""A bot goes on deciding, at once, whatever the server does, and uses the model again when it is back."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.client import ModelClient, SignalValidator, SyncModelClient, Timeouts
from mmserver.client.validation import MAX_REMEMBERED, Decision
from tests.client.conftest import LONG_S, Misbehaving, answer, threads_end
from tests.e2e.conftest import FACTORS, Artifacts, Server, Servers, wait_until

Make = Callable[..., Misbehaving]
READY = answer("200 OK", b'{"status":"ok"}')
TIMEOUT_S = 0.4
ROW = np.zeros(len(FACTORS))


def says(direction: str, confidence: float | None) -> bytes:
    """A prediction as servers answer it."""
    prediction = {"direction": direction, "signal": direction, "confidence": confidence}
    document = {
        "symbol": "X", "prediction": prediction, "model_name": "m", "model_version": "1", "model_info": {},
        "variant": None, "prediction_id": "p", "latency_ms": 0.1, "timestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return answer("200 OK", json.dumps(document).encode())


def ready_and(then: Callable[[socket.socket], None]) -> Callable[[socket.socket, bytes], None]:
    """Healthy, as far as `/readyz` tells."""

    def behave(connection: socket.socket, request: bytes) -> None:
        if b"GET /readyz" in request:
            connection.sendall(READY)
        else:
            then(connection)

    return behave


@pytest.mark.parametrize(
    ("said", "confidence", "expected"),
    [
        pytest.param("BUY", 0.9, ("BUY", 0.86, "hybrid"), id="agrees"),
        pytest.param("SELL", 0.9, ("SELL", 0.22, "hybrid"), id="disagrees"),
        pytest.param("HOLD", 0.9, ("HOLD", 0.22, "hybrid"), id="holds"),
        pytest.param("SELL", 0.6, ("SELL", 0.04, "hybrid"), id="just-sure-enough"),
        pytest.param("SELL", 0.599, ("BUY", 0.8, "below_min_confidence"), id="not-sure-enough"),
        pytest.param("SELL", None, ("BUY", 0.8, "no_confidence"), id="without-confidence"),
    ],
)
def test_what_the_model_says_counts_as_the_formula_says(
    said: str, confidence: float | None, expected: tuple[str, float, str], misbehaving: Make
) -> None:
    server = misbehaving(ready_and(lambda connection: connection.sendall(says(said, confidence))))
    with SyncModelClient(server.url, health_timeout_s=LONG_S) as client:
        found = SignalValidator(client, timeout_s=LONG_S).decide("X", "buy", 0.8, ROW)
    assert (found.direction, round(found.confidence, 9), found.reason) == expected
    assert found.prediction is not None


def test_a_model_without_weight_is_not_asked(misbehaving: Make) -> None:
    server = misbehaving(ready_and(lambda connection: connection.sendall(says("SELL", 1.0))))
    with SyncModelClient(server.url, health_timeout_s=LONG_S) as client:
        found = SignalValidator(client, ml_weight=0).decide("X", 2, 0.8, ROW)
    assert (found.direction, found.confidence, found.reason) == ("SELL", 0.8, "no_weight")
    assert server.paths() == ["GET /readyz"]


def test_a_hung_server_costs_the_timeout_once_and_then_nothing_until_it_is_healthy(misbehaving: Make) -> None:
    server = misbehaving(ready_and(lambda _: None))
    options: dict[str, Any] = {"timeouts": Timeouts(read_s=LONG_S, total_s=LONG_S), "health_timeout_s": LONG_S}
    with threads_end(), SyncModelClient(server.url, health_interval_s=3600, **options) as client:
        validator = SignalValidator(client, timeout_s=TIMEOUT_S)
        begun = time.monotonic()
        first = validator.decide("X", "BUY", 0.8, ROW)
        assert TIMEOUT_S <= time.monotonic() - begun < LONG_S
        assert (first.direction, first.confidence, first.reason) == ("BUY", 0.8, "server_away")
        assert first.error is not None
        assert not client.available
        later = [validator.decide("X", "BUY", 0.8, ROW) for _ in range(1000)]
        assert {one.reason for one in later} == {"server_away"}
        assert server.paths().count("POST /predict") <= 1


def test_a_hung_server_costs_a_task_the_timeout_once_too(misbehaving: Make) -> None:
    server = misbehaving(ready_and(lambda _: None))

    async def run() -> list[Decision]:
        async with ModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=3600) as client:
            validator = SignalValidator(client, timeout_s=TIMEOUT_S)
            return [await validator.decide("X", "BUY", 0.8, ROW) for _ in range(3)]

    assert {one.reason for one in asyncio.run(run())} == {"server_away"}
    assert server.paths().count("POST /predict") <= 1


def test_a_slow_server_does_not_block_the_event_loop(misbehaving: Make) -> None:
    """It answers when another task of the same loop has gone on for some turns."""
    asked, turned = threading.Event(), threading.Event()

    def answer_late(connection: socket.socket) -> None:
        asked.set()
        if turned.wait(LONG_S):
            connection.sendall(says("BUY", 0.9))

    server = misbehaving(ready_and(answer_late))

    async def turn() -> None:
        while not asked.is_set():
            await asyncio.sleep(0.01)
        for _ in range(5):
            await asyncio.sleep(0)
        turned.set()

    async def run() -> Decision:
        async with ModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=3600) as client:
            turning = asyncio.create_task(turn())
            decision = await SignalValidator(client, timeout_s=LONG_S / 2).decide("X", "BUY", 0.8, ROW)
            await turning
            return decision

    assert asyncio.run(run()).reason == "hybrid"


def test_a_health_check_that_succeeds_brings_the_model_back(misbehaving: Make) -> None:
    server = misbehaving(ready_and(lambda _: None))
    with SyncModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=0.05) as client:
        validator = SignalValidator(client, timeout_s=TIMEOUT_S)
        assert validator.decide("X", "BUY", 0.8, ROW).reason == "server_away"
        server.behave = ready_and(lambda connection: connection.sendall(says("BUY", 0.9)))
        wait_until(lambda: client.available, "the server to be available")
        patient = SignalValidator(client, timeout_s=LONG_S)
        assert patient.decide("X", "BUY", 0.8, ROW).reason == "hybrid"


@pytest.mark.parametrize(
    ("reply", "reason", "is_available"),
    [
        pytest.param(answer("503 X", b'{"code":"queue_full"}', Retry_After="1"), "server_away", False, id="overloaded"),
        pytest.param(answer("502 Bad Gateway"), "server_away", False, id="behind-a-proxy"),
        pytest.param(b"garbage\r\n\r\n", "server_away", False, id="garbage"),
        pytest.param(answer("200 OK", b"<html>"), "server_away", False, id="something-else"),
        pytest.param(answer("503 X", b'{"code":"not_ready"}'), "refused", True, id="model-not-loaded"),
        pytest.param(answer("404 X", b'{"code":"model_not_found"}'), "refused", True, id="no-model"),
        pytest.param(answer("422 X", b'{"code":"features_invalid"}'), "refused", True, id="wrong-features"),
        pytest.param(answer("500 X", b'{"code":"internal"}'), "refused", True, id="a-bug"),
    ],
)
def test_every_failure_leaves_the_strategy_s_own_signal(
    reply: bytes, reason: str, is_available: bool, misbehaving: Make
) -> None:
    server = misbehaving(ready_and(lambda connection: connection.sendall(reply)))
    with SyncModelClient(server.url, health_timeout_s=LONG_S) as client:
        found = SignalValidator(client, timeout_s=LONG_S).decide("X", "SELL", 0.7, ROW)
        assert (found.direction, found.confidence, found.reason) == ("SELL", 0.7, reason)
        assert client.available is is_available
    assert server.paths().count("POST /predict") == 1, "it was tried again"


def test_an_infinite_feature_leaves_the_strategy_s_own_signal_and_is_said_once(
    misbehaving: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server = misbehaving(ready_and(lambda _: None))
    with SyncModelClient(server.url, health_timeout_s=LONG_S) as client:
        validator = SignalValidator(client, timeout_s=LONG_S)
        found = [validator.decide("X", "SELL", 0.7, [np.inf]) for _ in range(3)]
    assert {one.reason for one in found} == {"refused"}
    assert [record.levelname for record in caplog.records if "infinite" in record.getMessage()] == ["WARNING"]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_symbols_that_are_refused_in_turn_are_each_warned_of_once_and_so_is_a_new_reason(
    misbehaving: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    refusing = {code: answer("422 X", b'{"code":"%s","detail":"d"}' % code) for code in (b"features_invalid", b"other")}
    server = misbehaving(ready_and(lambda connection: connection.sendall(refusing[b"features_invalid"])))
    with SyncModelClient(server.url, health_timeout_s=LONG_S) as client:
        validator = SignalValidator(client, timeout_s=LONG_S)
        for _ in range(5):
            for symbol, model in (("X", None), ("Y", None), ("X", "m")):
                assert validator.decide(symbol, "BUY", 0.5, ROW, model_name=model).reason == "refused"
        assert [text.split(":")[0] for text in warnings_in(caplog)] == [
            "no prediction for X", "no prediction for Y", "no prediction for X of m",
        ]  # fmt: skip
        caplog.clear()
        server.behave = ready_and(lambda connection: connection.sendall(refusing[b"other"]))
        for _ in range(3):
            validator.decide("X", "BUY", 0.5, ROW)
        assert warnings_in(caplog) == ["no prediction for X: 422 other: d"]


def test_what_is_remembered_of_refusals_is_bounded(misbehaving: Make, caplog: pytest.LogCaptureFixture) -> None:
    server = misbehaving(ready_and(lambda _: None))
    with SyncModelClient(server.url, health_timeout_s=LONG_S) as client:
        validator = SignalValidator(client, timeout_s=LONG_S)
        for number in range(MAX_REMEMBERED + 10):
            validator.decide(f"S{number}", "BUY", 0.5, [np.inf])
        assert len(validator._warned_at_s) <= MAX_REMEMBERED
    assert len(warnings_in(caplog)) == MAX_REMEMBERED + 10


def test_the_watching_of_health_is_logged_at_debug_only(misbehaving: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = misbehaving(lambda connection, _: connection.sendall(READY))
    with SyncModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=0.02) as client:
        wait_until(lambda: len(server.requests) > 3, "some checks")
        server.behave = lambda connection, _: connection.close()
        wait_until(lambda: not client.available, "the server to be away")
        server.behave = lambda connection, _: connection.sendall(READY)
        wait_until(lambda: client.available, "the server to be back")
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    said = [record.getMessage() for record in caplog.records if record.name == "mmserver.client.availability"]
    assert any("away" in text for text in said)


def test_a_real_server_that_is_killed_and_comes_back_is_away_in_between(
    servers: Servers, artifacts: Artifacts, tmp_path: Any
) -> None:
    server: Server = servers.start()
    artifacts.write(tmp_path / "a", "BTCUSDT_mid_chg_1m", 0)
    server.register("a", tmp_path / "a")
    with threads_end(), SyncModelClient(server.url, health_timeout_s=LONG_S, health_interval_s=0.1) as client:
        validator = SignalValidator(client, ml_min_confidence=0, timeout_s=LONG_S)
        assert validator.decide("BTCUSDT", "BUY", 0.8, ROW).reason in ("hybrid", "no_confidence")
        server.kill()
        assert validator.decide("BTCUSDT", "BUY", 0.8, ROW).reason == "server_away"
        again = servers.start("--port", str(server.port), data_dir=server.data_dir)
        assert again.port == server.port
        wait_until(lambda: client.available, "the server to be back")
        assert validator.decide("BTCUSDT", "BUY", 0.8, ROW).prediction is not None


def test_a_client_starts_and_ends_where_no_server_is() -> None:
    with threads_end(), SyncModelClient("http://127.0.0.1:1") as client:
        assert not client.available
        assert SignalValidator(client).decide("X", "HOLD", 0.1, ROW).reason == "server_away"
