"""Nothing is told twice within a minute, everything is told at once the first time, and what was left out is counted."""

import threading

from mmserver.web.repeats import MAX_KINDS, REPEAT_S, Repeats


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_kind_is_told_once_a_minute_with_how_many_were_left_out() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    assert repeats.note("a", "all") == (True, [])
    assert [repeats.note("a", "all") for _ in range(3)] == [(False, [])] * 3
    assert repeats.note("b", "all") == (True, [])
    clock.now += REPEAT_S - 1
    assert repeats.note("a", "all") == (False, [])
    clock.now += 1
    assert repeats.note("a", "all") == (True, [("a", 4)])
    assert repeats.note("a", "all") == (False, [])


def test_what_stopped_is_told_by_whatever_comes_later() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    for kind in ("a", "b", "c", "a", "a", "c"):
        repeats.note(kind, "all")
    clock.now += 10 * REPEAT_S
    assert repeats.note("d", "all") == (True, [("a", 2), ("c", 1)])
    assert repeats.note("a", "all") == (True, [])


def test_too_many_kinds_are_told_by_the_word_that_they_share_and_kept_no_longer_than_a_minute() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    for number in range(MAX_KINDS):
        assert repeats.note(str(number), "all") == (True, [])
    assert repeats.note("one more", "all") == (True, [])
    assert repeats.note("another", "all") == (False, [])
    assert repeats.note("of another sort", "some") == (True, [])
    assert repeats.note("0", "all") == (False, []), "it was known before"
    clock.now += REPEAT_S
    assert repeats.note("one more", "all") == (True, [("0", 1), ("all", 1)])
    assert repeats.note("another", "all") == (True, [])


def test_of_many_threads_one_tells() -> None:
    clock = Clock()
    repeats = Repeats(clock)
    told: list[bool] = []
    threads = [
        threading.Thread(target=lambda: told.extend(repeats.note("a", "all")[0] for _ in range(500))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(told) == 1
    clock.now += REPEAT_S
    assert repeats.note("b", "all") == (True, [("a", 3999)])
