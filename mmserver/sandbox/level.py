"""How well jobs are guarded here: the hardening steps that were taken, and attacks that a job tries on itself to prove it."""

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import msgspec

from mmserver.errors import WorkerCrashed
from mmserver.sandbox.hardening import ON

REPORT = "sandbox.report"
_REFUSED, _DONE = b"refused", b"done"
_PTRACE_SEIZE = 0x4206

LevelName = Literal["full", "partial", "rlimits-only"]


class SandboxLevel(msgspec.Struct, frozen=True):
    """What guards a job on this machine.

    `name` is "full" when every step was taken and every attack refused, "rlimits-only" when there is no system-call filter, and
    "partial" otherwise. `steps` maps each hardening step, and "refuses …" for each attack, to "on" or "unavailable: why".
    """

    name: LevelName
    steps: Mapping[str, str]

    @property
    def refuses_attacks(self) -> bool:
        """Whether system calls are filtered, and every attack failed: the code of a stranger can only compute."""
        refused = [outcome for step, outcome in self.steps.items() if step.startswith("refuses ")]
        return bool(refused) and self.steps.get("seccomp") == ON and all(outcome == ON for outcome in refused)


def probes(steps: Mapping[str, str]) -> dict[str, Callable[[bytes], bytes]]:
    """The jobs that every zygote has for the self-test, by name; `steps` are those of the process that runs them."""
    attacks = {f"sandbox.{name}": partial(_attempt, attack) for name, attack in _ATTACKS.items()}
    return {REPORT: lambda _request: msgspec.json.encode(steps), **attacks}


def self_test(run: Callable[[str, bytes], bytes], n_threads: int) -> SandboxLevel:
    """Run the report and every attack, each in a child of its own.

    `n_threads` is how many the zygote has when it forks: more than one is no hole, but a child may find a lock taken.
    """
    steps = msgspec.json.decode(run(REPORT, b""), type=dict[str, str])
    for attack in _ATTACKS:
        steps[f"refuses {attack}"] = _outcome(run, f"sandbox.{attack}")
    name = _name(steps)
    steps["single_threaded"] = ON if n_threads == 1 else f"unavailable: handlers started {n_threads - 1} threads"
    return SandboxLevel(name=name, steps=steps)


def _name(steps: Mapping[str, str]) -> LevelName:
    if all(outcome == ON for outcome in steps.values()):
        return "full"
    return "partial" if steps.get("seccomp") == ON else "rlimits-only"


def _outcome(run: Callable[[str, bytes], bytes], job: str) -> str:
    try:
        answer = run(job, b"")
    except WorkerCrashed as error:
        how = str(error.values["how"])
        return ON if how.startswith(signal.SIGSYS.name) else f"unavailable: {how}"
    return ON if answer == _REFUSED else "unavailable: it was allowed"


def _attempt(attack: Callable[[], None], _request: bytes) -> bytes:
    try:
        attack()
    except OSError as error:
        # A missing file or a failed connection would be no refusal.
        return _REFUSED if error.errno in {errno.EACCES, errno.EPERM, errno.EAGAIN} else _DONE
    return _DONE


def _open() -> None:
    os.close(os.open("/etc/passwd", os.O_RDONLY))


def _socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _execve() -> None:
    os.execv("/proc/self/exe", ["python", "-c", ""])  # noqa: S606  it is meant to fail


def _ptrace() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # SEIZE does not stop its target, and the end of this process lets go of it.
    if libc.ptrace(ctypes.c_long(_PTRACE_SEIZE), ctypes.c_long(os.getppid()), None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


_ATTACKS: Mapping[str, Callable[[], None]] = {
    "open": _open,
    "socket": _socket,
    "fork": _fork,
    "execve": _execve,
    "ptrace": _ptrace,
}
