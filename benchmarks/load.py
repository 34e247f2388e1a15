"""Load of one request over keep-alive connections, from another process: `wrk` where it is installed, else a small client here."""

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from benchmarks.measuring import median, percentile

UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
CLIENT_TIMEOUT_S = 30
SCRIPT = """
local file = assert(io.open("{path}", "rb"))
wrk.method = "{method}"
wrk.body = file:read("*all")
file:close()
"""
"""What wrk needs to send a body, in its own language."""


@dataclass(frozen=True)
class Asked:
    """One request, to be sent again and again."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    body: bytes = b""

    def encoded(self) -> bytes:
        """As it goes over the connection."""
        parts = urlsplit(self.url)
        path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        lines = [f"{self.method} {path} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.method != "GET":
            lines.append(f"Content-Length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode("ascii") + self.body

    def saved(self, directory: Path) -> str:
        """As JSON, with its body in a file of that directory: how another process gets it."""
        body_path = directory / "body"
        body_path.write_bytes(self.body)
        return json.dumps(vars(self) | {"body": str(body_path)})

    @classmethod
    def loaded(cls, text: str) -> "Asked":
        """What was `saved`."""
        values = json.loads(text)
        return cls(**values | {"body": Path(values["body"]).read_bytes()})


@dataclass(frozen=True)
class Load:
    """What came of one run. Units: latencies in s; `n_failed` counts other statuses than wanted and broken connections."""

    tool: str
    requests_per_s: float
    p50_s: float
    p99_s: float
    n_requests: int
    n_failed: int


def put_load(asked: Asked, *, duration_s: float, n_connections: int) -> Load:
    """Ask as fast as the connections allow, each one again as soon as it has its whole answer."""
    with tempfile.TemporaryDirectory() as temporary:
        saved = asked.saved(Path(temporary))
        if shutil.which("wrk"):
            return _wrk(asked, Path(temporary), duration_s, n_connections)
        command = [sys.executable, "-m", "benchmarks.load", saved, str(duration_s), str(n_connections)]
        done = subprocess.run(command, check=True, capture_output=True, timeout=duration_s + 60)
    return Load(**json.loads(done.stdout))


def _wrk(asked: Asked, directory: Path, duration_s: float, n_connections: int) -> Load:
    given = [part for name, value in asked.headers.items() for part in ("-H", f"{name}: {value}")]
    if asked.method != "GET":
        script = directory / "request.lua"
        script.write_text(SCRIPT.format(path=directory / "body", method=asked.method))
        given += ["-s", str(script)]
    seconds = max(1, round(duration_s))
    command = ["wrk", "-t1", f"-c{n_connections}", f"-d{seconds}s", "--latency", "--timeout", "30s", *given, asked.url]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    n_requests = int(_found(r"(\d+) requests in", text, "0"))
    failed = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text)))
    failed += int(_found(r"Non-2xx or 3xx responses: (\d+)", text, "0"))
    rate = float(_found(r"Requests/sec:\s+([\d.]+)", text, "0"))
    return Load("wrk", rate, _latency_s("50", text), _latency_s("99", text), n_requests, failed)


def _found(pattern: str, text: str, otherwise: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else otherwise


def _latency_s(percent: str, text: str) -> float:
    match = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s|m)\b", text)
    return float(match[1]) * UNITS_S[match[2]] if match else float("nan")


# --- the client for where wrk is missing ------------------------------------------------------------------------------


def python_load(asked: Asked, duration_s: float, n_connections: int) -> Load:
    """As wrk does it, with a thread for each connection."""
    address = urlsplit(asked.url)
    request = asked.encoded()
    latencies: list[list[float]] = [[] for _ in range(n_connections)]
    failures: list[int] = [0] * n_connections
    until = time.perf_counter() + duration_s

    def ask(number: int) -> None:
        with socket.create_connection((str(address.hostname), address.port or 80), CLIENT_TIMEOUT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = connection.makefile("rb")
            started = time.perf_counter()
            while True:  # once at least
                connection.sendall(request)
                failures[number] += read_answer(answers) not in (200, 304)
                ended = time.perf_counter()
                latencies[number].append(ended - started)
                if (started := ended) >= until:
                    break

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(n_connections)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - started
    every = [latency for one in latencies for latency in one]
    rate = len(every) / took_s
    return Load("Python client", rate, median(every), percentile(every, 0.99), len(every), sum(failures))


def read_answer(answers: BinaryIO) -> int:
    """Read one whole answer and return its status; it must have a Content-Length unless it is a 304."""
    status = int(answers.readline().split()[1])
    length = None
    while (line := answers.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if status != 304:
        if length is None:
            raise SystemExit("an answer without a Content-Length: install wrk to measure that server")
        answers.read(length)
    return status


if __name__ == "__main__":
    print(json.dumps(vars(python_load(Asked.loaded(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))))
