"""On which CPUs threads run."""

import ctypes
import os
import platform
import re
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mmserver.serving import engines
from mmserver.serving.cpus import (
    FIRST,
    SLICE_NS,
    beside_python,
    keep_this_thread_on,
    leave_cpu,
    put_this_thread_first,
    threads_kept_on,
)
from mmserver.serving.engines import LONG_NS, LibraryEngine

CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
KERNEL = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
SCHED_GETATTR = 315
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
        with beside_python(is_long=True):
            within = os.sched_getaffinity(0)
        return within, os.sched_getaffinity(0)

    assert in_a_thread(work) == (CPUS - {cpu}, {cpu})


def test_a_long_call_that_fails_comes_back_too() -> None:
    cpu = min(CPUS)

    def work() -> set[int]:
        keep_this_thread_on(cpu)
        with pytest.raises(ZeroDivisionError), beside_python(is_long=True):
            raise ZeroDivisionError
        return os.sched_getaffinity(0)

    assert in_a_thread(work) == {cpu}


def test_a_thread_that_is_kept_nowhere_stays_as_it_is() -> None:
    def work() -> tuple[set[int], set[int]]:
        with beside_python(is_long=True):
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


def test_a_short_call_stays_where_it_is() -> None:
    cpu = min(CPUS)

    def work() -> set[int]:
        keep_this_thread_on(cpu)
        with beside_python(is_long=False):
            return os.sched_getaffinity(0)

    assert in_a_thread(work) == {cpu}


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run a thread before others")
def test_a_thread_that_is_put_first_does_not_put_others_first() -> None:
    before = niceness()
    assert in_a_thread(lambda: (put_this_thread_first(), niceness())[1]) == min(before, FIRST)
    assert niceness() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run a thread before others")
def test_a_thread_that_runs_before_others_already_goes_on_doing_so() -> None:
    def work() -> int:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FIRST - 5)
        put_this_thread_first()
        return niceness()

    assert in_a_thread(work) == FIRST - 5


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64" or KERNEL < (6, 12), reason="needs Linux 6.12 on x86-64"
)
def test_a_thread_that_is_put_first_asks_for_short_slices_even_where_it_is_nice() -> None:
    def work() -> tuple[int, int]:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 3)
        put_this_thread_first()
        found = ctypes.create_string_buffer(48)
        assert ctypes.CDLL(None).syscall(SCHED_GETATTR, 0, found, len(found), 0) == 0
        _, _, _, found_niceness, _, slice_ns, _, _ = struct.unpack("=IIQiIQQQ", found.raw)
        return slice_ns, found_niceness

    slice_ns, found_niceness = in_a_thread(work)
    assert slice_ns == SLICE_NS
    assert found_niceness in (3, FIRST)


class Recording:
    """A predictor that notes where it runs, and takes as long as it is told."""

    n_features, size_bytes = 1, 1

    def __init__(self) -> None:
        self.now_ns = self.takes_ns = 0
        self.ran_on: list[set[int]] = []

    def predict(self, rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        self.ran_on.append(os.sched_getaffinity(0))
        self.now_ns += self.takes_ns
        return {"prediction": rows}

    def perf_counter_ns(self) -> int:
        """In the place of that of the module `time`."""
        return self.now_ns


def test_a_library_that_was_slow_runs_beside_python_and_one_that_was_not_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, predictor, row = min(CPUS), Recording(), np.zeros((1, 1), np.float32)
    monkeypatch.setattr(engines, "time", predictor)
    engine = LibraryEngine("slow", predictor)

    def work() -> None:
        keep_this_thread_on(cpu)
        engine.predict(row)
        predictor.takes_ns = 2 * LONG_NS
        engine.predict(row)  # nobody knows that yet
        predictor.takes_ns = 0
        engine.predict(row)
        engine.predict(row)

    in_a_thread(work)
    assert predictor.ran_on == [{cpu}, {cpu}, CPUS - {cpu}, {cpu}]
