"""Processes: what starts, what is started again, and that nothing is left."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from mmserver.errors import SandboxUnavailable, WorkerCrashed
from mmserver.sandbox.pool import MAX_STARTS, Sandbox

SERVER = """
import sys, threading
from pathlib import Path
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
sandbox = Sandbox("hostile_handlers:make", {}, extra_paths=[Path(sys.argv[1])], limits=JobLimits(wall_s=600))
print(sandbox.run("pids", b"").decode(), flush=True)
for _ in range(2):
    threading.Thread(target=sandbox.run, args=("sleep", b"")).start()
"""


def zygote_of(sandbox: Sandbox) -> int:
    return int(json.loads(sandbox.run("pids", b""))[1])


@contextlib.contextmanager
def sleeping_job(sandbox: Sandbox) -> Iterator[list[BaseException]]:
    """A job that sleeps, in a thread; the thread is joined at the end, and what it raised is in the list then."""
    raised: list[BaseException] = []

    def sleep() -> None:
        try:
            sandbox.run("sleep", b"")
        except (SandboxUnavailable, WorkerCrashed) as error:
            raised.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    yield raised
    thread.join(60)
    assert not thread.is_alive()


def zygote_with_a_job(children_of, wait_until, *, besides: Collection[int]) -> int:
    """Wait for a zygote of this process that has a job, and name it; other children may be servers of other tests."""

    def found() -> list[int]:
        return [pid for pid in children_of(os.getpid()) if pid not in besides and children_of(pid)]

    wait_until(found)
    return int(found()[0])


def test_nothing_is_started_before_the_first_job(make_sandbox, children_of) -> None:
    before = children_of(os.getpid())
    with make_sandbox():
        assert children_of(os.getpid()) == before


def test_close_leaves_no_process_and_no_descriptor(make_sandbox, is_running) -> None:
    before = os.listdir("/proc/self/fd")
    sandbox = make_sandbox()
    zygote_pid = zygote_of(sandbox)
    sandbox.close()
    assert not is_running(zygote_pid)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    sandbox.close()
    with pytest.raises(SandboxUnavailable, match="closed"):
        sandbox.run("echo", b"")


def test_close_ends_the_jobs_under_way(make_sandbox, children_of, is_running, wait_until) -> None:
    others = children_of(os.getpid())
    sandbox = make_sandbox()
    with sleeping_job(sandbox) as ended:
        zygote_pid = zygote_with_a_job(children_of, wait_until, besides=others)
        child_pid = children_of(zygote_pid)[0]
        sandbox.close()
    assert isinstance(ended[0], SandboxUnavailable)
    assert not is_running(child_pid)


def test_a_killed_zygote_is_started_again(make_sandbox) -> None:
    with make_sandbox() as sandbox:
        first = zygote_of(sandbox)
        os.kill(first, signal.SIGKILL)
        assert zygote_of(sandbox) != first


def test_a_job_whose_zygote_is_killed_is_run_once_more(make_sandbox, children_of, wait_until) -> None:
    others = children_of(os.getpid())
    with make_sandbox() as sandbox:
        with sleeping_job(sandbox) as ended:
            first = zygote_with_a_job(children_of, wait_until, besides=others)
            os.kill(first, signal.SIGKILL)
            second = zygote_with_a_job(children_of, wait_until, besides=[*others, first])
            os.kill(second, signal.SIGKILL)
        assert str(ended[0]) == "the worker died: the zygote died with it, twice"
        assert sandbox.run("echo", b"on") == b"on"


def test_a_stopped_zygote_is_replaced(make_sandbox) -> None:
    with make_sandbox() as sandbox:
        first = zygote_of(sandbox)
        os.kill(first, signal.SIGSTOP)
        assert sandbox.run("echo", b"on", timeout_s=4) == b"on"
        assert zygote_of(sandbox) != first


def test_a_zygote_that_keeps_dying_is_not_started_for_ever(make_sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserver.sandbox.pool.STARTS_WINDOW_S", 3600.0)
    with make_sandbox() as sandbox:
        for _ in range(MAX_STARTS):
            os.kill(zygote_of(sandbox), signal.SIGKILL)
        with pytest.raises(SandboxUnavailable, match="5 starts within 3600 s were not enough; the last: it died"):
            sandbox.run("echo", b"")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"fail": True}, "LookupError: 'no such thing'|LookupError: no such thing", id="raises"),
        pytest.param({"exit": True}, "these are my last words", id="exits"),
    ],
)
def test_handlers_that_cannot_be_loaded_are_named(make_sandbox, options: dict[str, object], expected: str) -> None:
    with make_sandbox(options) as sandbox, pytest.raises(SandboxUnavailable, match=expected):
        sandbox.start()


def test_handlers_that_cannot_be_loaded_are_not_tried_for_ever(make_sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmserver.sandbox.pool.STARTS_WINDOW_S", 3600.0)
    with make_sandbox({"fail": True}) as sandbox:
        for _ in range(MAX_STARTS):
            with pytest.raises(SandboxUnavailable):
                sandbox.start()
        with pytest.raises(SandboxUnavailable, match=r"were not enough; the last: .*LookupError"):
            sandbox.start()


def test_a_module_that_is_not_there_is_named() -> None:
    with Sandbox("no_such_module:make", {}) as sandbox, pytest.raises(SandboxUnavailable, match="no_such_module"):
        sandbox.start()


def test_nothing_outlives_a_killed_server(children_of, is_running, wait_until) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    with server:
        zygote_pid = json.loads(server.stdout.readline())[1]
        wait_until(lambda: len(children_of(zygote_pid)) == 2)
        jobs = children_of(zygote_pid)
        server.kill()
    wait_until(lambda: not any(is_running(pid) for pid in [zygote_pid, *jobs]))


def test_no_job_outlives_a_killed_zygote(make_sandbox, children_of, is_running, wait_until) -> None:
    others = children_of(os.getpid())
    sandbox = make_sandbox()
    with sleeping_job(sandbox):
        zygote_pid = zygote_with_a_job(children_of, wait_until, besides=others)
        child_pid = children_of(zygote_pid)[0]
        os.kill(zygote_pid, signal.SIGKILL)
        wait_until(lambda: not is_running(child_pid))
        sandbox.close()


def test_the_zygote_holds_no_lock_of_the_server(make_sandbox, tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(lock, True)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with make_sandbox() as sandbox:
        sandbox.start()
        os.close(lock)
        again = os.open(tmp_path / "lock", os.O_RDWR)
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(again)


def test_two_hundred_jobs_leak_nothing(make_sandbox, children_of, wait_until) -> None:
    with make_sandbox() as sandbox:
        zygote_pid = zygote_of(sandbox)
        for _ in range(20):
            sandbox.run("echo", b"x")
        wait_until(lambda: children_of(zygote_pid) == [])
        before = footprint(os.getpid()), footprint(zygote_pid)
        for n in range(200):
            if n % 10:
                sandbox.run("echo", b"x" * n)
            else:
                with pytest.raises(WorkerCrashed):
                    sandbox.run("fork_bomb", b"")
        wait_until(lambda: children_of(zygote_pid) == [])
        after = footprint(os.getpid()), footprint(zygote_pid)
    for (n_fds_before, kib_before), (n_fds_after, kib_after) in zip(before, after, strict=True):
        assert n_fds_after == n_fds_before
        assert kib_after - kib_before < 2048


def footprint(pid: int) -> tuple[int, int]:
    """Open descriptors, and resident KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return len(os.listdir(f"/proc/{pid}/fd")), int(status.split("VmRSS:")[1].split()[0])


def test_closing_does_not_wait_for_one_that_is_still_starting(
    make_sandbox: Callable[..., Sandbox],
    wait_until: Callable[[Callable[[], object]], None],
    children_of: Callable[[int], list[int]],
) -> None:
    sandbox = make_sandbox({"hang": True}, start_timeout_s=600)
    before = set(children_of(os.getpid()))
    refused: list[BaseException] = []

    def start() -> None:
        with pytest.raises(SandboxUnavailable) as caught:
            sandbox.start()
        refused.append(caught.value)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: set(children_of(os.getpid())) - before)
    begun = time.monotonic()
    sandbox.close()
    thread.join(60)
    assert time.monotonic() - begun < 60
    assert refused
    assert not set(children_of(os.getpid())) - before
