"""Starting servers for a benchmark, each a process of its own on a free port, and ending them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measuring import cpu_s

START_TIMEOUT_S = 120.0
"""Some import for a minute on a cold disk."""
STOP_TIMEOUT_S = 20.0
SMOKE_OPTIONS = ("--read-only",)
"""A server that reads no artifacts does not try out its sandbox when it starts, which costs more than a smoke test does."""
IDLE_CPU_S = 0.02
"""Processor time that an idle server may use in a second."""


@dataclass(frozen=True)
class Server:
    """A process that answers under `url`."""

    url: str
    pid: int


def clean_environ() -> dict[str, str]:
    """This environment without anybody's mmserver settings in it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("MMSERVER_", "MODEL_MANAGER_"))}


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    arguments: Sequence[str],
    port: int,
    ready_path: str,
    log_path: Path,
    *,
    python: Path | str = sys.executable,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run `python ARGUMENTS` until the end of the block, with all that it starts; it has to answer `ready_path` first.

    `environ`: what it has besides this environment.
    """
    url = f"http://127.0.0.1:{port}"
    given = clean_environ() | (environ or {})
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [str(python), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=given,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, url + ready_path, log_path)
        yield Server(url, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):  # what it left behind, or itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def mmserver(data_dir: Path, *options: str, environ: Mapping[str, str] | None = None) -> Iterator[Server]:
    """`mmserver serve` on that data directory."""
    port = free_port()
    call = "from mmserver.cli.main import main; main(prog_name='mmserver')"
    arguments = ["-c", call, "serve", "--data-dir", str(data_dir), "--host", "127.0.0.1", "--port", str(port)]
    log_path = data_dir.with_suffix(".log")
    with running([*arguments, *options], port, "/livez", log_path, environ=environ) as server:
        yield server


def wait_until_idle(servers: Iterable[Server]) -> None:
    """Until they are done with what they do after a start, like trying out their sandbox."""
    until_s = time.monotonic() + START_TIMEOUT_S
    for server in servers:
        used_s = 0.0
        while time.monotonic() < until_s and cpu_s(server.pid) - used_s > IDLE_CPU_S:
            used_s = cpu_s(server.pid)
            time.sleep(1)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log_path: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}:\n{log_path.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise SystemExit(f"{url} did not answer within {START_TIMEOUT_S:.0f} s:\n{log_path.read_text()[-3000:]}")
