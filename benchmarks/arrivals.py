"""An open loop: requests that come when they come, whether the one before is answered or not, from a process of its own.

A latency counts from the moment at which the request was due. A client that waits for its answers would ask less while the server
is slow, and so measure least where it hurts most. Arrivals are a Poisson process, the same one for the same seed.
"""

import contextlib
import gc
import json
import random
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.load import CLIENT_TIMEOUT_S, Asked
from benchmarks.measuring import percentile
from mmserver.serving.cpus import put_this_thread_first

MAX_CONNECTIONS = 64
"""Above them requests wait here, and that counts too."""
RECEIVE_BYTES = 1 << 16


@dataclass(frozen=True)
class Offered:
    """What came of it. Units: seconds from when a request was due; `lateness`: how much of that was before it was sent."""

    offered_per_s: float
    answered_per_s: float
    p50_s: float
    p99_s: float
    most_s: float
    lateness_p99_s: float
    n_requests: int
    n_failed: int


def offer(asked: Asked, *, rate_per_s: float, duration_s: float, seed: int = 7) -> Offered:
    """Offer so many requests a second for so long."""
    with tempfile.TemporaryDirectory() as temporary:
        saved = asked.saved(Path(temporary))
        command = [sys.executable, "-m", "benchmarks.arrivals", saved, str(rate_per_s), str(duration_s), str(seed)]
        done = subprocess.run(command, check=True, capture_output=True, timeout=duration_s + 90)
    return Offered(**json.loads(done.stdout))


class _Connection:
    """One request at a time, and what has come of its answer."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, CLIENT_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due_s = 0.0
        self._received = b""

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, request: bytes, due_s: float) -> None:
        """Send it; that the server has closed the connection is found by `receive`."""
        self.due_s = due_s
        self._received = b""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(request)

    def receive(self) -> int | None:
        """The status, once the whole answer is here; 0 where the server has closed the connection."""
        try:
            more = self.socket.recv(RECEIVE_BYTES)
        except ConnectionError:
            return 0
        self._received += more
        if not more:
            return 0
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:")
        return int(head[9:12]) if len(body) >= length else None


def _offer(asked: Asked, rate_per_s: float, duration_s: float, seed: int) -> Offered:
    request, address = asked.encoded(), urlsplit(asked.url)
    idle = deque(_Connection((str(address.hostname), address.port or 80)) for _ in range(MAX_CONNECTIONS))
    busy: set[_Connection] = set()
    waiting: deque[float] = deque()
    latencies, lateness, n_failed = [], [], 0
    gc.disable()
    started_s = time.perf_counter()
    to_come = deque(started_s + due_s for due_s in _arrivals_s(rate_per_s, duration_s, seed))
    n_requests = len(to_come)
    while to_come or waiting or busy:
        now_s = time.perf_counter()
        while to_come and to_come[0] <= now_s:
            waiting.append(to_come.popleft())
        while waiting and idle:
            connection, due_s = idle.popleft(), waiting.popleft()
            connection.send(request, due_s)
            lateness.append(time.perf_counter() - due_s)
            busy.add(connection)
        timeout_s = max(0.0, to_come[0] - time.perf_counter()) if to_come else CLIENT_TIMEOUT_S
        answered = select.select(busy, (), (), timeout_s)[0]
        if not (answered or to_come):
            raise SystemExit(f"{len(busy)} requests were not answered within {CLIENT_TIMEOUT_S} s")
        for connection in answered:
            status = connection.receive()
            if status is None:
                continue
            latencies.append(time.perf_counter() - connection.due_s)
            n_failed += status != 200
            busy.discard(connection)
            if not status:
                connection.socket.close()
                connection = _Connection((str(address.hostname), address.port or 80))  # noqa: PLW2901 (in its place)
            idle.append(connection)
    took_s = time.perf_counter() - started_s
    return Offered(
        offered_per_s=n_requests / duration_s,
        answered_per_s=len(latencies) / took_s,
        p50_s=percentile(latencies, 0.5),
        p99_s=percentile(latencies, 0.99),
        most_s=max(latencies),
        lateness_p99_s=percentile(lateness, 0.99),
        n_requests=n_requests,
        n_failed=n_failed,
    )


def _arrivals_s(rate_per_s: float, duration_s: float, seed: int) -> list[float]:
    between, at_s, found = random.Random(seed), 0.0, []
    while (at_s := at_s + between.expovariate(rate_per_s)) < duration_s:
        found.append(at_s)
    return found


if __name__ == "__main__":
    put_this_thread_first()  # it stands for a client on another machine
    print(json.dumps(vars(_offer(Asked.loaded(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))))
