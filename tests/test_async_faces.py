"""Asynchronous faces of synchronous classes."""

import asyncio
import threading

import pytest

from mmserver.async_faces import in_thread


class Adder:
    def __init__(self, start: int) -> None:
        self.start = start
        self.threads: list[int] = []

    def add(self, number: int, *, times: int = 1) -> int:
        """The sum."""
        self.threads.append(threading.get_ident())
        if number < 0:
            raise ValueError("negative")
        return self.start + number * times


class AsyncAdder:
    def __init__(self, start: int) -> None:
        self.sync = Adder(start)

    add = in_thread(Adder.add)


def test_an_asynchronous_method_gives_what_the_synchronous_one_gives_from_another_thread() -> None:
    adder = AsyncAdder(1)
    assert asyncio.run(adder.add(2, times=3)) == 7
    assert adder.sync.threads != [threading.get_ident()]


def test_an_asynchronous_method_raises_what_the_synchronous_one_raises() -> None:
    with pytest.raises(ValueError, match="negative"):
        asyncio.run(AsyncAdder(1).add(-1))


def test_an_asynchronous_method_keeps_its_name_and_its_words() -> None:
    assert (AsyncAdder.add.__name__, AsyncAdder.add.__doc__) == ("add", "The sum.")
