"""On which CPU a process's Python runs: one interpreter uses no more than one, and handing it from CPU to CPU costs a lot.

The main thread is never kept on one, so that what the process starts can take the CPUs from there (see `sandbox.zygote`).
"""

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

FIRST = -5


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


def put_this_thread_first() -> None:
    """Let the calling thread run before others, where the system allows that: to root, and as far as LimitNICE says."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FIRST)


@contextmanager
def beside_python() -> Iterator[None]:
    """For a call that leaves Python for long, from a thread that is kept on Python's CPU: it runs on the others meanwhile."""
    here = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    others = os.sched_getaffinity(os.getpid()) - here if len(here) == 1 else None  # of the main thread: all there are
    if not others:
        yield
        return
    os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, here)
