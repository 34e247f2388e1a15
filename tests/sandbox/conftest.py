"""Sandboxes over the hostile handlers, and ways to look at processes."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox

HANDLERS = "hostile_handlers:make"
LIMITS = JobLimits(memory_bytes=256 << 20, cpu_s=1, wall_s=60, max_result_bytes=128 << 20)


@pytest.fixture(scope="session")
def make_sandbox() -> Callable[..., Sandbox]:
    """Sandbox over hostile_handlers with small limits; the caller closes it."""

    def make(options: dict[str, object] | None = None, **given: object) -> Sandbox:
        settings = {
            "n_workers": 2,
            "limits": LIMITS,
            "start_timeout_s": 115.0,
            "extra_paths": [Path(__file__).parent],
            **given,
        }
        return Sandbox(HANDLERS, options or {}, **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def sandbox(make_sandbox: Callable[..., Sandbox]) -> Iterator[Sandbox]:
    """One for all tests that leave it alive."""
    with make_sandbox() as shared:
        yield shared


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, a minute at most."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "it did not happen within 60 s"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def children_of() -> Callable[[int], list[int]]:
    """The living and the unreaped children of a process."""

    def children(parent: int) -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                status = _stat(int(entry))
                if status and int(status[1]) == parent:
                    found.append(int(entry))
        return found

    return children


@pytest.fixture(scope="session")
def cpu_s_of() -> Callable[[int], float]:
    """The processor time of a process and of its children that have ended."""

    def cpu_s(pid: int) -> float:
        return sum(map(int, _stat(pid)[11:15])) / os.sysconf("SC_CLK_TCK")

    return cpu_s


@pytest.fixture(scope="session")
def is_running() -> Callable[[int], bool]:
    """Whether a process exists and is not a zombie."""

    def running(pid: int) -> bool:
        status = _stat(pid)
        return bool(status) and status[0] != "Z"

    return running


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
