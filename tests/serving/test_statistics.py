"""What is counted for a whole server: of all its processes, of those that died, and never less than was said before."""

import dataclasses
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmserver.serving import statistics
from mmserver.serving.siblings import SharedPlace, Siblings
from mmserver.serving.statistics import Duration, ModelStatistics, Statistics


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Statistics]]:
    """The statistics of each process of a server, made anew at each call; they are published at every chance."""
    monkeypatch.setattr(statistics, "PUBLISH_INTERVAL_S", 0.0)
    with tempfile.TemporaryFile() as file:
        yield lambda slot: Statistics(Siblings.of_file(file.fileno(), 0, 3, slot))


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns often, in the middle of things."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def served(desk: Any) -> tuple[Any, Any]:
    """A version and its group."""
    desk.write_weights("alpha", "BTC_ret")
    desk.register("alpha")
    return desk.store.model("alpha").serving, desk.group()


def count(counted: Statistics, served: tuple[Any, Any], n_rows: int = 1) -> None:
    counted.succeeded(*served, n_rows=n_rows, input_ns=10, infer_ns=100, output_ns=1000, queue_ns=10_000)


def seen(counted: Statistics, served: tuple[Any, Any]) -> ModelStatistics:
    counted.gather()
    return counted.of(*served)


def test_what_all_processes_counted_is_summed(process: Callable[[int], Statistics], served: tuple[Any, Any]) -> None:
    all_three = [process(slot) for slot in range(3)]
    for n_rows, counted in enumerate(all_three, 1):
        count(counted, served, n_rows)
        counted.failed(*served, 7)
        counted.publish()
    last_ms = all_three[2].of(*served).last_inference_ms
    for counted in all_three:
        found = seen(counted, served)
        assert found == ModelStatistics(
            model_name="alpha",
            version=served[0].label,
            group_key="BTC_ret",
            symbol="BTC",
            inference_count=6,
            execution_count=3,
            last_inference_ms=last_ms,
            success=Duration(3, 3 * 11_110),
            fail=Duration(3, 21),
            queue=Duration(3, 30_000),
            compute_input=Duration(3, 30),
            compute_infer=Duration(3, 300),
            compute_output=Duration(3, 3000),
        )


def test_what_one_answer_has_counted_no_later_answer_of_another_process_lacks(
    process: Callable[[int], Statistics], served: tuple[Any, Any]
) -> None:
    """Clients take differences: a number that became smaller would be a negative count."""
    first, second, _ = (process(slot) for slot in range(3))
    numbers = []
    for turn in range(6):
        count(first, served)
        count(second, served)
        numbers.append(seen((first, second)[turn % 2], served).inference_count)
    assert numbers == sorted(numbers)
    first.publish()
    assert seen(second, served).inference_count == seen(first, served).inference_count == 12


def test_what_a_process_counted_that_died_stays_counted(
    process: Callable[[int], Statistics], served: tuple[Any, Any]
) -> None:
    other = process(0)
    for died in range(1, 4):
        successor = process(1)
        assert seen(other, served).inference_count == seen(successor, served).inference_count == died - 1
        count(successor, served)
        successor.publish()
    last = process(1)
    assert seen(last, served).success.count == 3
    count(last, served)
    assert seen(last, served).success.count == seen(other, served).success.count == 4


def test_a_process_that_has_counted_nothing_shows_what_others_have(
    process: Callable[[int], Statistics], served: tuple[Any, Any]
) -> None:
    count(process(0), served)
    first, second = process(0), process(1)
    count(first, served)
    first.publish()
    assert seen(second, served).inference_count == 1
    assert second.all() == []


def test_nothing_is_published_before_its_time_or_without_news(
    process: Callable[[int], Statistics], served: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[bytes] = []
    monkeypatch.setattr("mmserver.serving.siblings.SharedPlace.replace", lambda _, content: published.append(content))
    counted = process(0)
    counted.publish()
    assert published == []
    count(counted, served)
    counted.publish()
    counted.publish()
    assert len(published) == 1
    monkeypatch.setattr(statistics, "PUBLISH_INTERVAL_S", 1000.0)
    count(counted, served)
    counted.publish()
    assert len(published) == 2
    count(counted, served)
    counted.publish()
    assert len(published) == 2


def groups_like(served: tuple[Any, Any], n: int) -> list[tuple[Any, Any]]:
    """The version with as many groups, each another one."""
    version, group = served
    return [(version, dataclasses.replace(group, id=1000 + number)) for number in range(n)]


def test_whatever_processes_count_tell_ask_and_die_the_sums_are_exact(
    process: Callable[[int], Statistics], served: tuple[Any, Any]
) -> None:
    """Only those die that have told all: what a process counted in its last second is lost with it."""
    chance = random.Random(7)
    many = groups_like(served, 12)
    processes = [process(slot) for slot in range(3)]
    expected: Counter[int] = Counter()
    for _ in range(600):
        slot = chance.randrange(3)
        step = chance.choice(["count", "count", "fail", "publish", "gather", "die"])
        if step == "count":
            at = chance.randrange(12)
            count(processes[slot], many[at], n_rows=at)
            expected[at] += 1
        elif step == "fail":
            processes[slot].failed(*many[chance.randrange(12)], 5)
        elif step == "publish":
            processes[slot].publish()
        elif step == "gather":
            processes[slot].gather()
        else:
            processes[slot].publish()
            processes[slot] = process(slot)
    for counted in processes:
        counted.publish()
    for counted in processes:
        counted.gather()
        found = [counted.of(*one) for one in many]
        assert [one.success.count for one in found] == [expected[at] for at in range(12)]
        assert [one.inference_count for one in found] == [expected[at] * at for at in range(12)]
        assert [one.queue.ns for one in found] == [expected[at] * 10_000 for at in range(12)]


def test_threads_that_count_while_others_tell_and_ask_lose_nothing_and_see_no_number_go_back(
    process: Callable[[int], Statistics], served: tuple[Any, Any], eager_threads: None
) -> None:
    first, second, _ = (process(slot) for slot in range(3))
    many = groups_like(served, 3)
    stop = threading.Event()
    answers: list[list[int]] = []
    in_order = threading.Lock()

    def work() -> None:
        for number in range(24_000):
            count((first, second)[number % 2], many[number % 3])

    def tell() -> None:
        while not stop.is_set():
            first.publish()
            second.publish()

    def ask(turn: int) -> None:
        while not stop.is_set():
            with in_order:  # so that each answer is later than the one before
                turn += 1
                counted = (first, second)[turn % 2]
                counted.gather()
                answers.append([counted.of(*one).inference_count for one in many])

    working = [threading.Thread(target=work) for _ in range(4)]
    others = [threading.Thread(target=tell), *(threading.Thread(target=ask, args=[turn]) for turn in range(2))]
    for thread in (*others, *working):
        thread.start()
    for thread in working:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    first.publish()
    second.publish()
    for counted in (first, second):
        assert [seen(counted, one).inference_count for one in many] == [32_000] * 3
    for at in range(3):
        numbers = [answer[at] for answer in answers]
        assert numbers == sorted(numbers)


def test_an_answer_counts_in_only_what_the_other_processes_can_know(
    process: Callable[[int], Statistics], served: tuple[Any, Any]
) -> None:
    first, second, _ = (process(slot) for slot in range(3))
    count(first, served)
    first.gather()
    count(first, served)
    assert first.of(*served).inference_count == seen(second, served).inference_count == 1
    assert seen(first, served).inference_count == seen(second, served).inference_count == 2


def test_what_a_place_could_not_take_is_told_the_next_time(
    process: Callable[[int], Statistics], served: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(place: SharedPlace, content: bytes) -> int:
        raise OSError("no space left")

    first, second, _ = (process(slot) for slot in range(3))
    count(first, served)
    with monkeypatch.context() as patched:
        patched.setattr(SharedPlace, "replace", full)
        for _ in range(2):
            with pytest.raises(OSError, match="no space"):
                first.publish()
    assert seen(second, served).inference_count == 0
    first.publish()
    assert seen(second, served).inference_count == seen(first, served).inference_count == 1


def test_what_a_process_forgot_the_others_forget_and_not_what_came_from_those_that_died(
    process: Callable[[int], Statistics], served: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MAX_ENTRIES", 2)
    one, other, third = groups_like(served, 3)
    died = process(0)
    count(died, one)
    died.publish()
    first, second = process(0), process(1)
    for each in (one, other):
        count(first, each)
    first.publish()
    assert [seen(second, each).inference_count for each in (one, other, third)] == [2, 1, 0]
    count(first, third)
    first.publish()
    assert [seen(second, each).inference_count for each in (one, other, third)] == [1, 1, 1]
    count(first, one)
    first.publish()
    for counted in (second, first):
        assert [seen(counted, each).inference_count for each in (one, other, third)] == [2, 0, 1]


def test_telling_costs_what_has_changed_and_not_all_that_was_ever_counted(
    process: Callable[[int], Statistics], served: tuple[Any, Any]
) -> None:
    counted, many = process(0), groups_like(served, 5000)

    def seconds(n_changed: int) -> float:
        for one in many[:n_changed]:
            count(counted, one)
        begun = time.thread_time()
        counted.publish()
        return time.thread_time() - begun

    everything = min(seconds(5000) for _ in range(3))
    assert min(seconds(1) for _ in range(5)) < everything / 10
    assert min(seconds(0) for _ in range(5)) < everything / 100
    assert seen(process(1), many[0]).inference_count == 8
    assert seen(process(1), many[-1]).inference_count == 3


def test_one_process_counts_alone(served: tuple[Any, Any]) -> None:
    counted = Statistics()
    count(counted, served)
    counted.publish()
    assert seen(counted, served).queue == Duration(1, 10_000)
