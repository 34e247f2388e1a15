"""What is counted for a whole server: of all its processes, of those that died, and never less than was said before."""

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mmserver.serving import statistics
from mmserver.serving.siblings import Siblings
from mmserver.serving.statistics import Duration, ModelStatistics, Statistics


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Statistics]]:
    """The statistics of each process of a server, made anew at each call; they are published at every chance."""
    monkeypatch.setattr(statistics, "PUBLISH_INTERVAL_S", 0.0)
    with tempfile.TemporaryFile() as file:
        yield lambda slot: Statistics(Siblings.of_file(file.fileno(), 0, 3, slot))


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


def test_one_process_counts_alone(served: tuple[Any, Any]) -> None:
    counted = Statistics()
    count(counted, served)
    counted.publish()
    assert seen(counted, served).queue == Duration(1, 10_000)
