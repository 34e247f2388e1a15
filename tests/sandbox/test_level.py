"""The level that a sandbox reports, and that each layer guards alone where the others are missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmserver.errors import Undecodable
from mmserver.sandbox.level import SandboxLevel, self_test

IS_ROOT = os.geteuid() == 0

AS_NOBODY = """
import json, sys
from pathlib import Path
from mmserver.errors import MmserverError
from mmserver.sandbox.limits import JobLimits
from mmserver.sandbox.pool import Sandbox
limits = JobLimits(memory_bytes=256 << 20, cpu_s=1)
found = {}
with Sandbox("hostile_handlers:make", {}, extra_paths=[Path(sys.argv[1])], limits=limits) as sandbox:
    level = sandbox.level()
    for job in sys.argv[2:]:
        try:
            found[job] = sandbox.run(job, b"1").decode()
        except MmserverError as error:
            found[job] = str(error)
print(json.dumps({"name": level.name, "steps": dict(level.steps), "found": found}))
"""

ONE_LAYER = """
import ctypes, errno, os, resource, socket, sys
from mmserver.sandbox.hardening import Hardener
from mmserver.sandbox.limits import JobLimits
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
hardener = Hardener(JobLimits(memory_bytes=64 << 20, max_open_files=8))
getattr(hardener, sys.argv[1])(*[int(value) for value in sys.argv[3:]])
try:
    found = eval(sys.argv[2])
except (OSError, MemoryError, ValueError) as error:
    found = getattr(error, "errno", None) and errno.errorcode[error.errno] or type(error).__name__
sys.stdout.write(str(found))
"""


@pytest.fixture
def run_one_layer():
    """Call one hardening step in a fresh process of an unprivileged user, then evaluate an expression there."""

    def run(step: str, expression: str, *arguments: int) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ONE_LAYER, step, expression, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout or done.stderr

    return run


def test_every_step_and_every_refusal_is_in_the_level(sandbox) -> None:
    level = sandbox.level()
    assert {
        "rlimits",
        "namespaces",
        "no_new_privs",
        "landlock",
        "not_dumpable",
        "parent_death_signal",
        "seccomp",
    } <= set(level.steps)
    assert {f"refuses {attack}" for attack in ("open", "socket", "fork", "execve", "ptrace")} <= set(level.steps)
    not_taken = {step: outcome for step, outcome in level.steps.items() if outcome != "on"}
    assert (level.name == "full") == (not_taken == {})
    assert all(outcome.startswith("unavailable: ") for outcome in not_taken.values())
    assert not [step for step in not_taken if step.startswith("refuses ")]


def test_the_self_test_is_done_once(make_sandbox, cpu_s_of) -> None:
    with make_sandbox() as sandbox:
        zygote_pid = json.loads(sandbox.run("pids", b""))[1]
        level = sandbox.level()
        used_s = cpu_s_of(zygote_pid)
        assert sandbox.level() is level
        assert cpu_s_of(zygote_pid) == used_s


def test_threads_in_the_zygote_are_told(make_sandbox) -> None:
    with make_sandbox({"thread": True}) as sandbox:
        assert sandbox.level().steps["single_threaded"] == "unavailable: handlers started 1 threads"


@pytest.mark.parametrize(
    ("seccomp", "answer", "expected"),
    [
        pytest.param("on", b"refused", "full", id="all refused"),
        pytest.param("on", b"done", "partial", id="attacks succeed"),
        pytest.param("unavailable: EPERM", b"refused", "rlimits-only", id="no filter"),
    ],
)
def test_the_name_says_how_far_the_guard_goes(seccomp: str, answer: bytes, expected: str) -> None:
    def run(job: str, _request: bytes) -> bytes:
        return json.dumps({"seccomp": seccomp}).encode() if job == "sandbox.report" else answer

    assert self_test(run, 1).name == expected


@pytest.mark.skipif(not IS_ROOT or shutil.which("setpriv") is None, reason="only root can become another user")
def test_an_unprivileged_server_has_the_same_guard() -> None:
    jobs = ["libraries", "connect", "fork_bomb", "execute", "kill_parent", "trace_parent", "memory_bomb", "cpu_loop"]
    # The interpreter or this checkout may lie below a directory that only root can enter; the capability lets it pass.
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    pass_directories = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
    done = subprocess.run(
        [*become, *pass_directories, sys.executable, "-B", "-c", AS_NOBODY, str(Path(__file__).parent), *jobs],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert not [step for step, outcome in told["steps"].items() if step.startswith("refuses ") and outcome != "on"]
    assert told["steps"]["seccomp"] == "on"
    assert "unprivileged" not in told["steps"]
    killed = dict.fromkeys(
        ["connect", "fork_bomb", "execute", "kill_parent", "trace_parent"], "the worker died: SIGSYS"
    )
    assert told["found"] == {
        **killed,
        "libraries": told["found"]["libraries"],
        "memory_bomb": "the worker died: out of memory (limit 256 MiB)",
        "cpu_loop": "the worker died: SIGXCPU (over 1 s of CPU time)",
    }


def test_landlock_alone_refuses_files(run_one_layer, sandbox) -> None:
    if sandbox.level().steps["landlock"] != "on":
        pytest.skip("this kernel has no Landlock")
    refuse = "(hardener._prctl(38, 1), hardener._renounce_files(), open('/etc/passwd'))"
    assert run_one_layer("_prctl", refuse, 38, 1) == "EACCES"


def test_no_capability_is_left(run_one_layer) -> None:
    capabilities = "(hardener._drop_capabilities(), open('/proc/self/status').read().split('CapEff:')[1].split()[0])[1]"
    assert run_one_layer("_user_leaves_namespaces", capabilities) == "0" * 16


def test_namespaces_alone_cut_the_network(run_one_layer, sandbox) -> None:
    if sandbox.level().steps["namespaces"] != "on":
        pytest.skip("namespaces cannot be made here")
    assert run_one_layer("_user_leaves_namespaces", "[name for _, name in socket.if_nameindex()]") == "['lo']"
    assert run_one_layer("_user_leaves_namespaces", "socket.socket().connect(('127.0.0.1', 9))") == "ENETUNREACH"


def test_without_a_filter_the_other_layers_still_guard(make_sandbox, sandbox) -> None:
    if sandbox.level().name != "full":
        pytest.skip("this machine has not all of the other layers")
    with make_sandbox({"unknown_machine": True}) as unfiltered:
        level = unfiltered.level()
        assert level.name == "rlimits-only"
        assert level.steps["seccomp"].startswith("unavailable: no filter is written for ")
        refusals = {step: outcome for step, outcome in level.steps.items() if step.startswith("refuses ")}
        assert refusals.pop("refuses socket") == "unavailable: it was allowed"
        assert set(refusals.values()) == {"on"}
        for job, expected in {
            "fork_bomb": "BlockingIOError",
            "connect": "PermissionError|Network is unreachable",
            "kill_parent": "PermissionError",
            "write_parent_memory": "PermissionError",
        }.items():
            with pytest.raises(Undecodable, match=expected):
                unfiltered.run(job, b"9")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param("bytearray(128 << 20)", "MemoryError", id="memory"),
        pytest.param("os.fork()", "EAGAIN", id="processes"),
        pytest.param("[os.open('/dev/null', os.O_RDONLY) for _ in range(8)]", "EMFILE", id="open files"),
        pytest.param("resource.getrlimit(resource.RLIMIT_CORE)", "(0, 0)", id="core dumps"),
        pytest.param("resource.getrlimit(resource.RLIMIT_FSIZE)", "(0, 0)", id="written files"),
        pytest.param("resource.getrlimit(resource.RLIMIT_CPU)", "(20, 21)", id="processor time"),
    ],
)
def test_resource_limits_alone_bound(run_one_layer, expression: str, expected: str) -> None:
    assert run_one_layer("_limit_resources", expression) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        pytest.param({}, True, id="whole"),
        pytest.param({"namespaces": "unavailable: EPERM"}, True, id="a-step-less"),
        pytest.param({"seccomp": "unavailable: EINVAL"}, False, id="no-filter"),
        pytest.param({"refuses open": "unavailable: it was allowed"}, False, id="an-attack-came-through"),
    ],
)
def test_only_where_every_attack_was_refused_a_stranger_s_code_can_just_compute(
    changed: dict[str, str], expected: bool
) -> None:
    steps = {"namespaces": "on", "seccomp": "on", "refuses open": "on", "refuses fork": "on", **changed}
    assert SandboxLevel("partial", steps).refuses_attacks is expected
