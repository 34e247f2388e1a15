"""Processes that die of themselves: each ends or is replaced, and none is tried all the time."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOST_LISTENER = """
import socket, sys, threading, time
from pathlib import Path
from mmserver.server.running import serve
from mmserver.server.sockets import open_listeners
from mmserver.settings import Settings
settings = Settings(data_dir=Path(sys.argv[1]), port=0)
listeners = open_listeners(settings)
port = listeners.main[0].getsockname()[1]
def lose():
    while True:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /livez HTTP/1.0\\r\\n\\r\\n")
            if client.recv(100):
                break
    listeners.main[0].shutdown(socket.SHUT_RDWR)
threading.Thread(target=lose, daemon=True).start()
sys.exit(serve(settings, listeners))
"""


def test_a_process_whose_io_thread_fails_ends_and_does_not_say_that_all_was_well(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", LOST_LISTENER, str(tmp_path / "state")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "RuntimeError: the server's own socket failed" in done.stderr


def test_a_worker_that_dies_again_and_again_is_started_ever_less_often(servers: Any, until: Callable[..., Any]) -> None:
    server = servers.start("--workers", "2")

    def workers() -> set[int]:
        found = set()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == server.process.pid and b"mmserver.cli.worker" in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue  # it has ended since
        return found

    known = until(lambda: len(workers()) == 2 and workers(), "two workers")
    victim, other = known
    for _ in range(3):
        os.kill(victim, signal.SIGKILL)
        victim = until(lambda: workers() - {other, victim}, "another worker").pop()  # noqa: B023
    assert re.findall(r"ended with -9; starting another in (\S+) s", server.log) == ["0", "1", "2"]
    assert server.stop() == 0
