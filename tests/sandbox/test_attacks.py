"""What a job that was taken over can do: nothing but lie in its own answer."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from mmserver.errors import DiskFull, Undecodable, WorkerCrashed
from mmserver.sandbox.pool import Sandbox

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the hardening is Linux's")


def how(sandbox: Sandbox, job: str, request: bytes = b"", **given: float) -> str:
    with pytest.raises(WorkerCrashed) as caught:
        sandbox.run(job, request, **given)
    return str(caught.value.values["how"])


def detail(sandbox: Sandbox, job: str, request: bytes = b"") -> str:
    with pytest.raises(Undecodable) as caught:
        sandbox.run(job, request)
    assert caught.value.reason == "handler_failed"
    return caught.value.detail


def test_a_job_opens_no_file(sandbox: Sandbox, tmp_path: Path) -> None:
    assert detail(sandbox, "read_file", b"/etc/passwd").startswith("PermissionError")
    assert detail(sandbox, "read_file", b"/proc/self/environ").startswith("PermissionError")
    assert detail(sandbox, "list_directory").startswith("PermissionError")
    tmp_path.chmod(0o777)
    assert detail(sandbox, "write_file", bytes(tmp_path / "canary")).startswith("PermissionError")
    assert list(tmp_path.iterdir()) == []


def test_a_job_sees_nothing_of_the_servers_environment(make_sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSERVER_API_KEY", "secret")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with make_sandbox() as sandbox:
        seen = json.loads(sandbox.run("environment", b""))
    harmless = {
        "LC_ALL",
        "LC_CTYPE",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "ORT_DISABLE_TELEMETRY",
    }
    assert set(seen) <= harmless


def test_a_job_has_no_descriptor_but_its_own_socket(sandbox: Sandbox) -> None:
    assert json.loads(sandbox.run("open_descriptors", b"")) == [0, 1, 2, 3]


def test_a_job_connects_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert how(sandbox, "connect", str(port).encode()) == "SIGSYS"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        assert how(sandbox, "connect_unix", bytes(tmp_path / "s")) == "SIGSYS"


@pytest.mark.parametrize("job", ["fork_bomb", "start_thread", "execute", "kill_parent", "kill_group", "trace_parent"])
def test_a_forbidden_call_kills_the_job_only(sandbox: Sandbox, job: str) -> None:
    zygote_pid = json.loads(sandbox.run("pids", b""))[1]
    assert how(sandbox, job) == "SIGSYS"
    assert json.loads(sandbox.run("pids", b""))[1] == zygote_pid


def test_a_job_cannot_signal_the_server(sandbox: Sandbox) -> None:
    me = str(os.getpid()).encode()
    assert how(sandbox, "kill_given", me) == "SIGSYS"
    assert detail(sandbox, "signal_by_descriptor", me).startswith("PermissionError")


def test_a_job_cannot_write_into_its_zygote(sandbox: Sandbox) -> None:
    assert detail(sandbox, "write_parent_memory").startswith("PermissionError")


def test_a_job_maps_no_executable_memory(sandbox: Sandbox) -> None:
    assert detail(sandbox, "executable_memory").startswith("PermissionError")


def test_a_job_cannot_undo_its_hardening(sandbox: Sandbox) -> None:
    assert detail(sandbox, "lift_limits") == "ValueError: not allowed to raise maximum limit"
    assert sandbox.run("outlive_parent", b"") == b"-1"


def test_memory_is_limited(sandbox: Sandbox) -> None:
    assert how(sandbox, "memory_bomb") == "out of memory (limit 256 MiB)"


def test_processor_time_is_limited(sandbox: Sandbox) -> None:
    assert how(sandbox, "cpu_loop") == "SIGXCPU (over 1 s of CPU time)"


def test_processor_time_is_limited_where_the_signal_is_ignored(sandbox: Sandbox) -> None:
    assert how(sandbox, "stubborn_cpu_loop") == "SIGKILL (over 1 s of CPU time)"


def test_a_sleeping_job_ends_at_its_timeout(sandbox: Sandbox, children_of, wait_until) -> None:
    zygote_pid = json.loads(sandbox.run("pids", b""))[1]
    wait_until(lambda: children_of(zygote_pid) == [])
    assert how(sandbox, "sleep", timeout_s=0.2) == "timeout after 0.2 s"
    assert children_of(zygote_pid) == []


def test_a_dribbled_answer_ends_at_the_timeout(sandbox: Sandbox) -> None:
    assert how(sandbox, "dribble", timeout_s=0.5) == "timeout after 0.5 s"


def test_an_end_without_an_answer_is_told(sandbox: Sandbox) -> None:
    assert how(sandbox, "exit_silently") == "exited with 0 and no answer"
    assert how(sandbox, "exit_silently", b"7") == "exited with 7 and no answer"


def test_a_giant_answer_is_refused(sandbox: Sandbox) -> None:
    limit = 128 << 20
    assert how(sandbox, "giant_answer", str(limit + 1).encode()).startswith(f"an answer of {limit + 1} bytes is over")


def length(n: int) -> bytes:
    return n.to_bytes(8, "big")


def error(text: bytes) -> bytes:
    return b"E" + length(len(text)) + text


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(b"", "exited with 0 and no answer", id="nothing"),
        pytest.param(b"X" * 100, "a garbled answer", id="unknown kind"),
        pytest.param(b"R\0\0", "exited with 0 and no answer", id="torn length"),
        pytest.param(b"R" + length(10) + b"abc", "exited with 0 and no answer", id="torn body"),
        pytest.param(b"R" + b"\xff" * 8, "an answer of", id="length of 2^64-1"),
        pytest.param(b"E" + length(1 << 20), "an answer of", id="long error"),
        pytest.param(error(b"nonsense"), "a garbled error", id="error that is no JSON"),
        pytest.param(error(b"[" * 60_000), "a garbled error", id="deep error"),
        pytest.param(error(b'{"code":"undecodable","values":{}}'), "a garbled error", id="error without its values"),
        pytest.param(error(b'{"code":"undecodable","values":{"a":1}}'), "a garbled error", id="error of other values"),
        pytest.param(error(b'{"code":5,"values":{}}'), "a garbled error", id="error without a code"),
    ],
)
def test_a_garbled_answer_is_a_crash(sandbox: Sandbox, answer: bytes, expected: str) -> None:
    assert how(sandbox, "raw_answer", answer).startswith(expected)


def test_a_job_cannot_claim_that_the_servers_disk_is_full(sandbox: Sandbox) -> None:
    forged = error(json.dumps({"code": DiskFull.code, "values": {}}).encode())
    assert detail(sandbox, "raw_answer", forged).startswith("disk_full")


def test_what_follows_an_answer_is_dropped(sandbox: Sandbox) -> None:
    assert sandbox.run("raw_answer", b"R" + length(2) + b"ok" + b"garbage" * 1000) == b"ok"


def test_a_native_crash_is_named(sandbox: Sandbox) -> None:
    assert how(sandbox, "segfault") == "SIGSEGV"
    assert how(sandbox, "abort") == "SIGABRT"
    assert sandbox.run("echo", b"still here") == b"still here"
