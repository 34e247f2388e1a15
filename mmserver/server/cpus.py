"""On which CPU a process's Python runs: one interpreter uses no more than one, and handing it from CPU to CPU costs a lot.

The main thread is never kept on one, so that what the process starts can take the CPUs from there (see `sandbox.zygote`).
"""

import os
import secrets
from collections.abc import Sequence


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
