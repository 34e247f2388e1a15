"""On which CPU a process's Python runs: one interpreter uses no more than one, and handing it from CPU to CPU costs a lot.

The main thread is not kept on it, so that what the process starts takes the CPUs from there (see `sandbox.zygote`).
"""

import ctypes
import os
import platform
import secrets
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

FIRST = -5
"""Niceness of what runs first, unless it is less already."""
SLICE_NS = 100_000
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_ATTRIBUTES_BYTES = 48


def cpus_for(n_processes: int) -> Sequence[int]:
    """A CPU for each process; as many different ones as this process may use, beginning anywhere.

    Several servers on one machine should not all take the first.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    cpus = sorted(os.sched_getaffinity(0))
    start = secrets.randbelow(len(cpus))
    return [cpus[(start + index) % len(cpus)] for index in range(n_processes)]


def keep_this_thread_on(cpu: int | None) -> None:
    """Keep the calling thread, and those that it starts, on one CPU; None leaves it where it is."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


@contextmanager
def threads_kept_on(cpu: int | None) -> Iterator[None]:
    """Threads that are started within are kept on the CPU: one that held the interpreter elsewhere, and had to make way there for
    something that computes for long, would hold up all others.
    """
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    keep_this_thread_on(cpu)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def leave_cpu(cpu: int | None) -> None:
    """Keep the calling thread, and what it starts, off a CPU, if there is another."""
    others = os.sched_getaffinity(0) - {cpu} if cpu is not None else None
    if others:
        os.sched_setaffinity(0, others)


def put_this_thread_first() -> None:
    """Let the calling thread run as soon as it has work, before threads that compute for long.

    It asks for slices of 0.1 ms instead of some 3 ms: Linux from 6.12 on lets who wants little interrupt who wants much, and
    older ones take no notice. Its niceness is lowered where the system allows that: to root, and as far as LimitNICE says.

    Source:
        sched_setattr(2); the kernel's EEVDF scheduler (`sched_runtime` of SCHED_OTHER, PREEMPT_SHORT).
    """
    thread_id = threading.get_native_id()
    niceness = os.getpriority(os.PRIO_PROCESS, thread_id)
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        attributes = struct.pack("=IIQiIQQQ", _ATTRIBUTES_BYTES, os.SCHED_OTHER, 0, niceness, 0, SLICE_NS, 0, 0)
        ctypes.CDLL(None).syscall(number, 0, attributes, 0)  # what it says if it cannot does not matter
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread_id, min(niceness, FIRST))


@contextmanager
def beside_python(*, is_long: bool) -> Iterator[None]:
    """For a call that leaves Python, from a thread that is kept on Python's CPU: if it is long, it runs on the others."""
    here = os.sched_getaffinity(0) if is_long and hasattr(os, "sched_getaffinity") else set()
    others = os.sched_getaffinity(os.getpid()) - here if len(here) == 1 else None  # of the main thread: all there are
    if not others:
        yield
        return
    os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, here)
