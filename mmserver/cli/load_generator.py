"""A small closed-loop load generator for `mmserver bench`, run as a process of its own: `python -m mmserver.cli.load_generator`.

Each connection sends one request, waits for the whole answer, then sends the next. The plan comes as JSON on stdin, the
result goes as JSON to stdout; it uses the standard library alone.
"""

import array
import json
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

WARM_UP_S = 0.3
STUCK_S = 30.0
_CHUNK_BYTES = 1 << 16


class LoadFailed(Exception):
    """The server gave something else than a prediction."""


class Connection:
    """One client: what it sends, and what it has got so far of the answer."""

    def __init__(self, address: tuple[str, int], requests: Sequence[bytes], first: int) -> None:
        self.socket = socket.create_connection(address, timeout=STUCK_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = requests
        self._next = first
        self._got = b""
        self._started = 0.0

    def send(self) -> None:
        """Send the next request."""
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        self._got = b""
        self._started = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Take what has come; the seconds since the request once the answer is whole.

        Raises:
            LoadFailed: the answer is not 200, or the connection is closed.
        """
        part = self.socket.recv(_CHUNK_BYTES)
        if not part:
            raise LoadFailed("the server closed the connection")
        self._got += part
        head, blank, body = self._got.partition(b"\r\n\r\n")
        if not blank or len(body) < _content_length(head):
            return None
        took_s = time.perf_counter() - self._started
        if not head.startswith(b"HTTP/1.1 200 "):
            status = head.partition(b"\r\n")[0].decode("latin-1")
            raise LoadFailed(f"{status}: {body[:500].decode('utf-8', 'replace')}")
        return took_s


def run_load(address: tuple[str, int], requests: Sequence[bytes], n_connections: int, seconds: float) -> dict[str, Any]:
    """Keep that many connections busy for that long, after a short warm-up.

    Returns:
        n_calls, seconds, and the latencies p50_us and p99_us.
    """
    selector = selectors.DefaultSelector()
    connections = [Connection(address, requests, first) for first in range(n_connections)]
    try:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        _keep_busy(selector, time.perf_counter() + WARM_UP_S)
        began = time.perf_counter()
        latencies = _keep_busy(selector, began + seconds)
        return {"n_calls": len(latencies), "seconds": time.perf_counter() - began, **percentiles(latencies)}
    finally:
        selector.close()
        for connection in connections:
            connection.socket.close()


def percentiles(latencies: Sequence[float]) -> dict[str, float]:
    """The median and the 99th percentile of some seconds, in microseconds."""
    ordered = sorted(latencies)
    at = {"p50_us": 0.50, "p99_us": 0.99}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e6 for name, share in at.items()}


def request_bytes(host: str, path: str, body: bytes, authorization: str = "") -> bytes:
    """One POST of JSON over a connection that stays open."""
    says_who = f"Authorization: {authorization}\r\n" if authorization else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{says_who}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def _keep_busy(selector: selectors.BaseSelector, until: float) -> "array.array[float]":
    latencies = array.array("d")
    while time.perf_counter() < until or not latencies:
        ready = selector.select(STUCK_S)
        if not ready:
            raise LoadFailed(f"the server gave no answer for {STUCK_S:g} s")
        for key, _ in ready:
            took_s = key.data.receive()
            if took_s is not None:
                latencies.append(took_s)
                key.data.send()
    return latencies


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise LoadFailed("the answer has no Content-Length")


def main() -> None:
    """Read the plan, run it, and print what came of it."""
    plan = json.load(sys.stdin)
    requests = [
        request_bytes(plan["host"], plan["path"], body.encode(), plan["authorization"]) for body in plan["bodies"]
    ]
    try:
        result = run_load((plan["address"], plan["port"]), requests, plan["n_connections"], plan["seconds"])
    except (LoadFailed, OSError) as error:
        result = {"error": str(error)}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
