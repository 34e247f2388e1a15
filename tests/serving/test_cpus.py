"""On which CPUs threads run."""

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mmserver.serving.cpus import beside_python, keep_this_thread_on, leave_cpu, put_this_thread_first, threads_kept_on

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


def test_threads_that_are_started_within_stay_on_the_cpu_and_the_caller_comes_back() -> None:
    cpu = min(CPUS)

    def work() -> tuple[set[int], set[int]]:
        with threads_kept_on(cpu):
            started = in_a_thread(lambda: os.sched_getaffinity(0))
        return started, os.sched_getaffinity(0)

    assert in_a_thread(work) == ({cpu}, CPUS)


def test_a_thread_leaves_a_cpu_to_others_but_never_its_only_one() -> None:
    cpu = min(CPUS)

    def work() -> tuple[set[int], set[int]]:
        leave_cpu(cpu)
        left = os.sched_getaffinity(0)
        keep_this_thread_on(cpu)
        leave_cpu(cpu)
        return left, os.sched_getaffinity(0)

    assert in_a_thread(work) == (CPUS - {cpu}, {cpu})


def test_where_no_cpu_is_named_nothing_is_changed() -> None:
    def work() -> set[int]:
        with threads_kept_on(None):
            leave_cpu(None)
            keep_this_thread_on(None)
        return os.sched_getaffinity(0)

    assert in_a_thread(work) == CPUS


def test_a_thread_that_is_put_first_does_not_put_others_first() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    assert in_a_thread(lambda: (put_this_thread_first(), niceness())[1]) <= before
    assert niceness() == before
