"""The measuring itself: that a figure cannot come out better than what was measured."""

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks.__main__ import results_page
from benchmarks.arrivals import offer
from benchmarks.load import Asked, python_load
from benchmarks.measuring import Goal, cpu_s, print_goals, print_table

STALL_S = 0.4


class StallingServer(http.server.ThreadingHTTPServer):
    """Answers at once, except that its third request makes all of them wait."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.n_asked = 0
        self.lock = threading.Lock()
        self.bodies: set[bytes] = set()


class Answering(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StallingServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.bodies.add(body)
            self.server.n_asked += 1
            if self.server.n_asked == 3:
                time.sleep(STALL_S)
        if body == b"dropped":
            self.close_connection = True
            return
        self.send_response(200 if body != b"refused" else 503)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StallingServer]:
    with StallingServer() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def asked(server: StallingServer, body: bytes = b"\x00\n\xff") -> Asked:
    return Asked(f"http://127.0.0.1:{server.server_port}/x", {"A": "b"}, "POST", body)


def test_an_open_loop_counts_what_requests_waited_for_while_the_server_stalled(server: StallingServer) -> None:
    found = offer(asked(server), rate_per_s=100, duration_s=1.5)
    assert found.n_requests == server.n_asked > 100
    assert found.p99_s > STALL_S / 2, "many were due during the stall, not one"
    assert found.most_s >= STALL_S
    assert found.n_failed == 0
    assert server.bodies == {b"\x00\n\xff"}


@pytest.mark.parametrize("body", [b"refused", b"dropped"], ids=["refused", "dropped"])
def test_an_open_loop_counts_requests_that_are_not_answered_well(server: StallingServer, body: bytes) -> None:
    found = offer(asked(server, body), rate_per_s=50, duration_s=0.5)
    assert found.n_failed == found.n_requests > 0


def test_the_client_for_where_wrk_is_missing_counts_refusals(server: StallingServer) -> None:
    found = python_load(asked(server, b"refused"), 0.5, 2)
    assert found.n_failed == found.n_requests == server.n_asked


def test_processor_time_is_that_of_a_process_and_all_its_descendants() -> None:
    burn = "import time, sys\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\nsys.stdin.read()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout and parent.stdin
        parent.stdout.readline()
        assert cpu_s(parent.pid) >= 0.5
        assert cpu_s(os.getpid()) >= 0.5
        parent.stdin.close()


@pytest.mark.parametrize(
    ("measured", "at_least", "at_most", "is_met"),
    [
        pytest.param(0.9, 0.9, None, True, id="just-enough"),
        pytest.param(0.89, 0.9, None, False, id="too-little"),
        pytest.param(5.01, None, 5, False, id="too-much"),
        pytest.param(float("nan"), None, 5, False, id="not-measured"),
    ],
)
def test_a_goal_is_met_only_within_its_bounds(
    measured: float, at_least: float | None, at_most: float | None, is_met: bool
) -> None:
    assert Goal("x", measured, at_least, at_most).is_met is is_met


def test_the_results_page_begins_with_every_goal_and_keeps_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("First", ("what", "ms"), [("a", 1.5)])
    print_goals([Goal("a", 1.5, at_most=2, unit="ms")])
    print("\nA sentence.")
    print_table("Second", ("what", "ms"), [("b", 3.0)])
    print_goals([Goal("b", 3.0, at_most=2, unit="ms"), Goal("c", 3.0)])
    page = results_page(capsys.readouterr().out)
    goals, tables = page.split("### First")
    assert [line for line in goals.splitlines() if line.startswith("|")] == [
        "| goal | measured |  |",
        "|---|---|---|",
        "| a: ≤ 2 ms | 1.5 ms | met |",
        "| b: ≤ 2 ms | 3 ms | **missed** |",
        "| c | 3 |  |",
    ]
    assert "| a | 1.5 |" in tables
    assert "A sentence." in tables
    assert "### Second" in tables
    assert "Goals" not in page
