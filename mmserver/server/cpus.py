"""On which CPU a process's I/O thread runs."""

import os


def pin_this_thread(index: int) -> int | None:
    """Keep the calling thread, and those that it starts, on one of the CPUs that it may use. Returns which, None for any."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[index % len(cpus)]})
    return cpus[index % len(cpus)]
