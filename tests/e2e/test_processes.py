"""Starting, stopping and killing: one server a data directory, clean ends, and several workers that act as one."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

TAKEOVER_TIMEOUT_S = 120.0
"""A lease lives for 15 s and is looked at every 5 s."""


def children(pid: int) -> set[int]:
    """The ids of its worker processes; the guarded processes of a worker are not among them."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"mmserver.cli.worker" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue  # it has ended since
    return found


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ask(server: Any, path: str) -> httpx.Response:
    """One GET over a connection of its own, so that any worker may answer it."""
    return httpx.get(f"{server.url}{path}", trust_env=False, timeout=60)


# --- one server -----------------------------------------------------------------------------------------------------------


def test_a_second_server_on_the_same_data_directory_ends_with_3_and_says_why(servers: Any, tmp_path: Path) -> None:
    first = servers.start(data_dir=tmp_path / "state")
    second = servers.start(data_dir=tmp_path / "state", wait=False)
    assert second.process.wait(60) == 3
    assert f"another mmserver is using {tmp_path / 'state'}" in second.log
    assert "serving on" not in second.log
    assert first.client.get("/readyz").status_code == 200


def test_a_port_that_is_taken_ends_the_start_with_2_and_is_named(servers: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = servers.start("--port", str(port), wait=False)
        assert server.process.wait(60) == 2
        assert f"--port {port}" in server.log
    assert not (tmp_path / "data 0/state.db").exists()


def test_sigterm_answers_what_was_accepted_and_ends_with_0(servers: Any, artifacts: Any, tmp_path: Path) -> None:
    """Eight clients ask without a pause; each answer is whole, and only a connection that asked too late is refused."""
    artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m")
    server = servers.start()
    server.register("alpha", tmp_path / "artifacts")
    url = f"{server.url}/api/models/alpha/model/BTCUSDT"
    outcomes: list[str] = []
    counted = threading.Semaphore(0)

    def ask_until_refused() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while True:
                try:
                    with client.stream("GET", url) as answer:
                        answer.read()
                    outcomes.append(str(answer.status_code))
                    counted.release()
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    outcomes.append(f"{type(error).__name__}: {error}")
                    return

    clients = [threading.Thread(target=ask_until_refused) for _ in range(8)]
    for client in clients:
        client.start()
    for _ in range(100):
        counted.acquire(timeout=60)
    assert server.stop() == 0
    for client in clients:
        client.join(60)
    # A request that meets the closing of its idle connection, or waits unseen behind the closed door, was never accepted.
    unanswered = [outcome for outcome in outcomes if outcome != "200"]
    assert len(unanswered) <= len(clients)
    assert all(outcome.startswith(("ReadError", "RemoteProtocolError", "WriteError")) for outcome in unanswered), (
        unanswered
    )


def test_sigterm_answers_a_request_that_is_being_worked_on(
    slow_server: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    for index in range(40):
        artifacts.write(tmp_path / "many", f"C{index:02}USDT_mid_chg_1m", index % 3)
    server = slow_server(GRACE_S="600")
    answers: list[int] = []
    client = threading.Thread(target=lambda: answers.append(server.register("alpha", tmp_path / "many")["group_count"]))
    client.start()
    until(lambda: server.query("SELECT 1 FROM models WHERE name = 'alpha'"), "the name is reserved")
    assert server.stop() == 0
    client.join(60)
    assert answers == [40]


def test_sigterm_answers_clients_that_wait_for_a_change(servers: Any, artifacts: Any, tmp_path: Path) -> None:
    artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m")
    server = servers.start()
    server.register("alpha", tmp_path / "artifacts")
    url = f"{server.url}/api/models/alpha/model/BTCUSDT"
    etag = server.client.get(url).headers["ETag"].removeprefix('W/"').removesuffix('"')
    path = f"/api/models/alpha/model/BTCUSDT?wait=60&etag={etag}"
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(12)]
    for client in clients:
        client.sendall(request)
    assert server.stop() == 0
    for client in clients:  # who was not told in time is cut off instead
        with client, client.makefile("rb") as file:
            answer = file.read()
        assert answer.startswith(b"HTTP/1.1 304 ")
        assert b"\r\nConnection: close\r\n" in answer


def test_an_idle_connection_does_not_hold_up_the_end(slow_server: Any) -> None:
    server = slow_server(GRACE_S="600")
    with socket.create_connection(("127.0.0.1", server.port)):
        assert server.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_it_as_sigterm_does(servers: Any, workers: str) -> None:
    server = servers.start("--workers", workers)
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(60) == 0


WITHOUT_CALL_FILTER = """
import ctypes, os, platform, struct, sys
prctl, errno_eperm, allow = {"x86_64": 157, "aarch64": 167}[platform.machine()], 0x00050001, 0x7FFF0000
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, prctl), (0x20, 0, 0, 16), (0x15, 0, 1, 22), (6, 0, 0, errno_eperm), (6, 0, 0, allow)]
code = b"".join(struct.pack("=HBBI", *step) for step in steps)
buffer = ctypes.create_string_buffer(code, len(code))
class Program(ctypes.Structure):
    _fields_ = (("n_steps", ctypes.c_ushort), ("steps", ctypes.c_void_p))
program = Program(len(steps), ctypes.addressof(buffer))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command on a machine, as it were, whose kernel refuses every further call filter (PR_SET_SECCOMP is 22)."""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_server_starts_below_the_sandbox_level_that_is_required(servers: Any, tmp_path: Path, workers: str) -> None:
    before = (sys.executable, "-c", WITHOUT_CALL_FILTER)
    refused = servers.start("--workers", workers, before=before, wait=False, MMSERVER_REQUIRE_SANDBOX="partial")
    assert refused.process.wait(60) == 2
    assert "MMSERVER_REQUIRE_SANDBOX: 'partial' is required, but this machine gives 'rlimits-only' (" in refused.log
    assert "seccomp: unavailable: " in refused.log
    assert "serving on" not in refused.log
    served = servers.start("--workers", workers, before=before)
    assert served.client.get("/livez").status_code == 200


def test_a_server_whose_sandbox_is_good_enough_starts_and_says_so(servers: Any) -> None:
    level = servers.start().get("/readyz")["checks"]["sandbox"]["level"]
    strict = servers.start(MMSERVER_REQUIRE_SANDBOX=level)
    assert strict.get("/readyz")["checks"]["sandbox"]["level"] == level


# --- several workers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(servers: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]) -> Any:
    """A server with two workers, both of which answer, and one model."""
    server = servers.start("--workers", "2", data_dir=tmp_path / "state")
    until(lambda: len(children(server.process.pid)) == 2, "two workers")
    artifacts.write(tmp_path / "artifacts", "BTCUSDT_mid_chg_1m", 0)
    server.register("alpha", tmp_path / "artifacts")
    wait_for_both_to_have("alpha", server, until)
    return server


def wait_for_both_to_have(name: str, server: Any, until: Callable[..., Any]) -> None:
    """Returns once each of two workers has shown the model; one that did never hides it again."""
    seen_by: set[str] = set()

    def is_seen() -> bool:
        answer = ask(server, f"/api/models/{name}")
        worker = answer.headers["X-Request-ID"][:12]  # ids of requests begin with a number of the process
        assert answer.status_code == 200 or worker not in seen_by
        if answer.status_code == 200:
            seen_by.add(worker)
        return len(seen_by) == 2

    until(is_seen, f"both workers have {name}")


def watcher(server: Any) -> int | None:
    """The worker that holds the lease."""
    rows = server.query("SELECT holder FROM leases WHERE expires_at > 0")
    return int(rows[0][0].removeprefix("pid ")) if rows else None


def test_a_change_made_through_one_worker_is_seen_by_the_other_and_does_not_go_again(
    pair: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    artifacts.write(tmp_path / "more", "ETHUSDT_mid_chg_1m", 1)
    for round_ in range(5):
        pair.register(f"beta-{round_}", tmp_path / "more")
        wait_for_both_to_have(f"beta-{round_}", pair, until)


def test_a_worker_that_is_killed_is_replaced_and_nobody_is_refused_for_long(
    pair: Any, until: Callable[..., Any]
) -> None:
    before = children(pair.process.pid)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    until(lambda: len(children(pair.process.pid) - {victim}) == 2, "another worker")
    for _ in range(20):
        assert ask(pair, "/api/models/alpha/model/BTCUSDT").status_code == 200
    assert f"worker {victim} ended with -9" in pair.log


def test_when_the_worker_that_watches_is_killed_another_takes_over(
    pair: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    holder = until(lambda: watcher(pair), "somebody watches")
    assert holder in children(pair.process.pid)
    os.kill(holder, signal.SIGKILL)
    artifacts.write(tmp_path / "artifacts", "ETHUSDT_mid_chg_1m", 1)
    until(
        lambda: ask(pair, "/api/models/alpha/model/ETHUSDT").status_code == 200,
        "the other worker watches",
        TAKEOVER_TIMEOUT_S,
    )
    assert watcher(pair) != holder
    assert pair.stop() == 0


def test_when_the_supervisor_is_killed_its_workers_end(pair: Any, servers: Any, tmp_path: Path, until: Any) -> None:
    workers = children(pair.process.pid)
    pair.kill()
    until(lambda: not any(is_alive(pid) for pid in workers), "both workers end")
    again = servers.start(data_dir=tmp_path / "state")
    assert again.get("/api/models/alpha/model/BTCUSDT")["model_name"] == "alpha"


def test_all_workers_end_with_their_supervisor_and_nothing_is_logged_as_an_error(pair: Any, until: Any) -> None:
    workers = children(pair.process.pid)
    assert pair.stop() == 0
    assert not any(is_alive(pid) for pid in workers)
    assert " ERROR " not in pair.log
    assert "Fatal" not in pair.log


def test_what_a_killed_registration_left_is_cleared_by_the_next_start_with_workers(
    servers: Any, artifacts: Any, tmp_path: Path, until: Callable[..., Any]
) -> None:
    for index in range(60):
        artifacts.write(tmp_path / "artifacts", f"C{index:02}USDT_mid_chg_1m")
    server = servers.start(data_dir=tmp_path / "state")
    body = {"model_name": "alpha", "root_path": str(tmp_path / "artifacts")}

    def post() -> None:
        try:
            httpx.post(f"{server.url}/api/models", json=body, timeout=60, trust_env=False)
        except httpx.HTTPError:
            return

    client = threading.Thread(target=post)
    client.start()
    until(lambda: server.query("SELECT 1 FROM models"), "the name is reserved")
    server.kill()
    client.join(60)
    assert server.query("SELECT count(*) FROM versions") == [(0,)]
    again = servers.start("--workers", "2", data_dir=tmp_path / "state")
    assert again.register("alpha", tmp_path / "artifacts")["group_count"] == 60
