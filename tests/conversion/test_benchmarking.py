"""Timing calls side by side."""

import time

import pytest

from mmserver.conversion.benchmarking import timed, timing_of


def test_calls_take_turns_and_the_warm_up_is_not_counted() -> None:
    order: list[str] = []
    found = timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, n_rounds=3, n_warm_up=2)
    assert order == ["a", "b"] * 5
    assert {name: timing.n_calls for name, timing in found.items()} == {"a": 3, "b": 3}


def test_the_slower_call_is_found_to_be_slower() -> None:
    found = timed({"slow": lambda: time.sleep(0.002), "quick": lambda: None}, n_rounds=5, n_warm_up=0)
    assert found["slow"].p50_ms >= 2 > found["quick"].p50_ms


def test_one_slow_call_in_a_hundred_moves_the_99th_percentile_but_not_the_median() -> None:
    found = timing_of([0.001] * 99 + [1.0])
    assert found.p50_ms == pytest.approx(1)
    assert found.p99_ms == pytest.approx(1000)
    assert found.n_calls == 100


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="measure nothing"):
        timed({"a": lambda: None}, n_rounds=0)
