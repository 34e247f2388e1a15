"""On which CPUs threads run."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.serving.cpus import beside_python, keep_this_thread_on

CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs that this process may use")


def in_a_thread(work: Callable[[], Any]) -> Any:
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_long_call_leaves_the_cpu_that_python_is_kept_on_and_comes_back() -> None:
    cpu = min(CPUS)

    def work() -> tuple[set[int], set[int]]:
        keep_this_thread_on(cpu)
        with beside_python():
            within = os.sched_getaffinity(0)
        return within, os.sched_getaffinity(0)

    assert in_a_thread(work) == (CPUS - {cpu}, {cpu})


def test_a_long_call_that_fails_comes_back_too() -> None:
    cpu = min(CPUS)

    def work() -> set[int]:
        keep_this_thread_on(cpu)
        with pytest.raises(ZeroDivisionError), beside_python():
            raise ZeroDivisionError
        return os.sched_getaffinity(0)

    assert in_a_thread(work) == {cpu}


def test_a_thread_that_is_kept_nowhere_stays_as_it_is() -> None:
    def work() -> tuple[set[int], set[int]]:
        with beside_python():
            within = os.sched_getaffinity(0)
        return within, os.sched_getaffinity(0)

    assert in_a_thread(work) == (CPUS, CPUS)
