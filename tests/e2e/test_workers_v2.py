"""Unloads, loads and statistics of the Open Inference Protocol hold for a server as a whole, however many workers it has."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

INPUT: dict[str, Any] = {"name": "features", "shape": [1, 5], "datatype": "FP32", "data": [0.5, -0.25, 1.5, 55.0, 1.0]}
ROWS = {"inputs": [INPUT]}
PREDICT = {"symbol": "BTCUSDT", "features": INPUT["data"], "model_name": "alpha"}
BTC, ETH = "/v2/models/alpha.BTCUSDT", "/v2/models/alpha.ETHUSDT"
SLOW = "/v2/models/slow.ONEUSDT"
HELD_S = 0.3
LOAD, UNLOAD = ("/v2/repository/models/alpha.BTCUSDT/" + what for what in ("load", "unload"))


class Workers:
    """A client of each worker of one server: connections that stay with the worker that took them."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.clients: dict[str, httpx.Client] = {}

    def find(self, n_workers: int = 2, timeout_s: float = 60.0) -> list[httpx.Client]:
        """One client a worker, of new connections."""
        self.close()
        until = time.monotonic() + timeout_s
        while len(self.clients) < n_workers:
            assert time.monotonic() < until, f"only {len(self.clients)} workers answer"
            client = httpx.Client(base_url=self.server.url, trust_env=False, timeout=60)
            try:
                # ids of requests begin with a number of the process
                process = client.get("/livez").headers["X-Request-ID"][:12]
            except httpx.TransportError:
                client.close()
                continue
            if process in self.clients:
                client.close()
            else:
                self.clients[process] = client
        return list(self.clients.values())

    def close(self) -> None:
        for client in self.clients.values():
            client.close()
        self.clients = {}


@pytest.fixture
def serve(servers: Any, artifacts: Any, tmp_path: Path) -> Any:
    """Starts a server with two workers on one data directory, which has the model `alpha`."""
    artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m", 0)
    artifacts.write(tmp_path / "artifacts", "ETHUSDT_mid_chg_1m", 1)
    opened: list[Workers] = []

    def start(*flags: str) -> Workers:
        server = servers.start("--workers", "2", *flags, data_dir=tmp_path / "state")
        opened.append(Workers(server))
        if not server.get("/api/models")["items"]:
            server.register("alpha", tmp_path / "artifacts")
        return opened[-1]

    yield start
    for workers in opened:
        workers.close()


def statuses(client: httpx.Client) -> tuple[int, ...]:
    """What one worker answers to everything that predicts with the model, and whether it says that it is ready."""
    return (
        client.get(f"{BTC}/ready").status_code,
        client.post(f"{BTC}/infer", json=ROWS).status_code,
        client.post("/predict", json=PREDICT).status_code,
    )


def state(client: httpx.Client, name: str = "alpha.BTCUSDT") -> str:
    """What one worker's index says of a model."""
    return next(item["state"] for item in client.post("/v2/repository/index").json() if item["name"] == name)


GOOD, UNLOADED = (200, 200, 200), (503, 503, 503)


@pytest.mark.parametrize("flags", [pytest.param((), id="writable"), pytest.param(("--read-only",), id="read-only")])
def test_an_unload_reaches_every_worker_and_so_does_the_load(
    serve: Callable[..., Workers], until: Callable[..., Any], flags: Any
) -> None:
    workers = serve()
    if flags:
        assert workers.server.stop() == 0
        workers = serve(*flags)
    clients = workers.find()
    until_ready(clients)
    assert [statuses(client) for client in clients] == [GOOD, GOOD]
    for asked in (*clients, *clients):
        for path, expected, said in ((UNLOAD, UNLOADED, "UNAVAILABLE"), (LOAD, GOOD, "READY")):
            assert asked.post(path).status_code == 200
            assert statuses(asked) == expected  # at once where it was asked
            until(lambda: all(statuses(client) == expected for client in clients), f"both answer {expected}")  # noqa: B023
            assert [statuses(client) for client in clients] == [expected, expected]
            assert [state(client) for client in clients] == [said, said]
            assert [client.post(f"{ETH}/infer", json=ROWS).status_code for client in clients] == [200, 200]
    assert [statuses(client) for client in clients] == [GOOD, GOOD]


def until_ready(clients: list[httpx.Client]) -> None:
    """Until every worker has seen the registration."""
    until = time.monotonic() + 60
    while any(statuses(client) != GOOD for client in clients):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_worker_that_replaces_another_knows_what_is_unloaded_and_what_was_counted(
    serve: Callable[..., Workers], until: Callable[..., Any]
) -> None:
    workers = serve()
    clients = workers.find()
    until_ready(clients)
    assert clients[0].post(UNLOAD).status_code == 200
    for _ in range(3):
        for client in clients:
            assert client.post(f"{ETH}/infer", json=ROWS).status_code == 200
    n_before = until(lambda: agreed(clients), "both have told what they counted")
    assert agreed(clients, ETH) == 6
    processes = set(workers.clients)
    for pid in worker_pids(workers.server):
        os.kill(pid, signal.SIGKILL)
    until(lambda: all_answer_anew(workers, processes), "two other workers", 120)
    assert [statuses(client) for client in workers.clients.values()] == [UNLOADED, UNLOADED]
    for client in workers.clients.values():
        assert count(client, ETH) == 6
        assert count(client) == n_before
    last = next(iter(workers.clients.values()))
    assert last.post(f"{ETH}/infer", json=ROWS).status_code == 200
    until(lambda: [count(client, ETH) for client in workers.clients.values()] == [7, 7], "both count on")


def worker_pids(server: Any) -> list[int]:
    """Of the worker processes of a server."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server.process.pid and b"mmserver.cli.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended since
    return found


def all_answer_anew(workers: Workers, before: set[str]) -> bool:
    """Whether both workers are others than these."""
    workers.find()
    return not before & set(workers.clients)


def test_a_server_that_is_started_again_has_forgotten_what_was_unloaded(serve: Callable[..., Workers]) -> None:
    workers = serve()
    clients = workers.find()
    until_ready(clients)
    assert clients[0].post(UNLOAD).status_code == 200
    assert workers.server.query("SELECT count(*) FROM audit WHERE action = 'model.unloaded'") == [(1,)]
    assert workers.server.stop() == 0
    again = serve().find()
    assert [statuses(client) for client in again] == [GOOD, GOOD]
    assert count(again[0], ETH) == 0


def stats(client: httpx.Client, model: str = BTC) -> Any:
    return client.get(f"{model}/stats").json()["model_stats"][0]["inference_stats"]


def count(client: httpx.Client, model: str = BTC) -> int:
    """Inferences of the whole server, as one worker gives them."""
    found: int = client.get(f"{model}/stats").json()["model_stats"][0]["inference_count"]
    return found


def agreed(clients: list[httpx.Client], model: str = BTC) -> int:
    """The number, once each worker says the same; 0 until then."""
    for client in clients:
        count(client, model)  # whoever is asked tells the others first
    found = {count(client, model) for client in clients}
    return found.pop() if len(found) == 1 else 0


def test_statistics_never_go_back_and_end_with_what_all_workers_did(
    serve: Callable[..., Workers], until: Callable[..., Any]
) -> None:
    workers = serve()
    clients = workers.find()
    until_ready(clients)
    begun = until(lambda: agreed(clients), "both have told what they counted")
    seen = []

    def ask(client: httpx.Client) -> None:
        for _ in range(100):
            assert client.post(f"{BTC}/infer", json=ROWS).status_code == 200

    reading = workers.__class__(workers.server)
    readers = reading.find()
    asking = [threading.Thread(target=ask, args=[client]) for client in clients]
    for thread in asking:
        thread.start()
    while any(thread.is_alive() for thread in asking):
        seen += [count(reader) for reader in readers]
    for thread in asking:
        thread.join()
    reading.close()
    assert seen == sorted(seen)
    until(lambda: [count(client) for client in clients] == [begun + 200] * 2, "all are counted")
    everything = clients[1].get("/v2/models/stats").json()["model_stats"]
    assert [item["inference_count"] for item in everything] == [begun + 200, 0]


def test_the_queue_is_what_requests_waited_for_a_thread(slow_server: Any) -> None:
    """Two that come while the only thread is held wait for as long as it is."""
    server = slow_server(MMSERVER_INLINE="off", MMSERVER_THREADS="1")
    before = stats(server.client, SLOW)
    body = json.dumps({"inputs": [INPUT | {"shape": [1, 2], "data": [1.0, 2.0]}]}).encode()
    head = f"POST {SLOW}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with ExitStack() as opened:
        with slow_server.hold():
            clients = [
                opened.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60)) for _ in range(3)
            ]
            for client in clients:
                client.sendall(head + body)
            server.see_what_was_sent()
            time.sleep(HELD_S)
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    after = stats(server.client, SLOW)
    counted = {part: after[part]["count"] - before[part]["count"] for part in ("success", "queue")}
    assert counted == {"success": 3, "queue": 3}
    spent = {part: after[part]["ns"] - before[part]["ns"] for part in after if part not in ("cache_hit", "cache_miss")}
    worked_ns = spent["compute_input"] + spent["compute_infer"] + spent["compute_output"]
    assert spent["queue"] >= 2 * HELD_S * 1e9
    assert worked_ns >= HELD_S * 1e9
    assert spent["success"] == spent["queue"] + worked_ns
