"""Outcomes from prices: the last price before each end of a horizon, never one after it."""

from collections.abc import Callable
from typing import Any

import pytest

from mmserver.experiments.observations.dead_bands import DeadBands
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.prices import MAX_AGE_S
from mmserver.experiments.observations.values import Observation, Outcome, Price


@pytest.fixture
def price() -> Callable[..., Price]:
    """A price some seconds after the predictions."""
    start_s = 1_790_000_000.0
    return lambda after_s, price, symbol="BTCUSDT": Price(symbol=symbol, price=price, at=start_s + after_s)


@pytest.fixture
def log(observations: ObservationLog, observe: Callable[..., Observation], clock: Any) -> ObservationLog:
    """A prediction with a horizon of 100 s, of which 200 s have passed."""
    observations.append(observe("p", horizon_us=100_000_000), must_keep=True)
    clock.now_s += 200
    return observations


def _returns(log: ObservationLog) -> tuple[float, float]:
    returns = log.read_totals(1).control.returns
    return returns.x, pytest.approx(returns.y)


def test_the_return_is_that_of_the_last_prices_at_start_and_end(
    log: ObservationLog, price: Callable[..., Price]
) -> None:
    report = log.add_prices([price(-10, 90), price(0, 100), price(1, 500), price(99, 110), price(101, 700)])
    assert (report.n_prices, report.n_outcomes, report.n_unpriced) == (5, 1, 0)
    assert _returns(log) == (1, 0.1)


def test_a_prediction_waits_until_a_price_reaches_the_end_of_its_horizon(
    log: ObservationLog, price: Callable[..., Price]
) -> None:
    assert log.add_prices([price(0, 100), price(99, 110)]).n_outcomes == 0
    assert log.add_prices([price(100, 120)]).n_outcomes == 1
    assert _returns(log) == (1, 0.2)
    assert log.add_prices([price(100, 130), price(150, 1)]).n_outcomes == 0
    assert _returns(log) == (1, 0.2)


def test_a_price_that_is_too_old_prices_nothing_until_one_comes_late(
    log: ObservationLog, price: Callable[..., Price]
) -> None:
    report = log.add_prices([price(-MAX_AGE_S - 1, 100), price(100, 110)])
    assert (report.n_outcomes, report.n_unpriced) == (0, 1)
    assert log.add_prices([price(100, 110)]).n_outcomes == 0
    assert log.add_prices([price(-1, 100)]).n_outcomes == 1
    assert _returns(log) == (1, 0.1)


def test_an_outcome_that_was_reported_stays_and_its_label_too(log: ObservationLog, price: Callable[..., Price]) -> None:
    log.add_outcomes([Outcome(prediction_id="p", label="SELL")])
    report = log.add_prices([price(0, 100), price(100, 110)], dead_bands=DeadBands(0.0))
    assert report.n_outcomes == 1
    assert _returns(log) == (1, 0.1)
    assert log.read_totals(1).control.labels.counts[2][1] == 1
    log.add_outcomes([Outcome(prediction_id="p", realized_return=0.1)])


def test_with_a_dead_band_a_price_gives_a_label(log: ObservationLog, price: Callable[..., Price]) -> None:
    log.add_prices([price(0, 100), price(100, 110)], dead_bands=DeadBands(0.05))
    assert log.read_totals(1).control.accuracy.y == 1


def test_symbols_do_not_mix(log: ObservationLog, price: Callable[..., Price]) -> None:
    log.add_prices([price(0, 100), price(150, 999, "ETHUSDT"), price(100, 5, "ETHUSDT")])
    assert log.read_totals(1).control.returns.x == 0


def test_many_predictions_are_priced_some_at_a_time(
    observations: ObservationLog,
    observe: Callable[..., Observation],
    price: Callable[..., Price],
    clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmserver.experiments.observations.prices._AT_ONCE", 4)
    start_us = int(clock.now_s * 1e6)
    for number in range(30):
        observation = observe(f"p{number}", at_us=start_us + number // 7 * 1_000_000, horizon_us=10_000_000)
        observations.append(observation, must_keep=True)
    clock.now_s += 100
    report = observations.add_prices([price(second, 100 + second) for second in range(60)])
    assert (report.n_outcomes, report.n_unpriced) == (30, 0)
    assert _returns(observations)[0] == 30


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        pytest.param({"price": float("nan")}, "positive number", id="NaN"),
        pytest.param({"price": 0.0}, "positive number", id="zero"),
        pytest.param({"price": -1.0}, "positive number", id="negative"),
        pytest.param({"price": "1"}, "positive number", id="text"),
        pytest.param({"symbol": ""}, "no symbol", id="no symbol"),
        pytest.param({"at": float("inf")}, "not seconds", id="no time"),
        pytest.param({"at": 3e9}, "ahead of the clock", id="years ahead"),
    ],
)
def test_what_is_no_price_is_refused_and_the_rest_is_added(
    log: ObservationLog, price: Callable[..., Price], values: dict[str, Any], reason: str
) -> None:
    wrong = Price(**({"symbol": "BTCUSDT", "price": 1.0, "at": 1.0} | values))
    report = log.add_prices([price(0, 100), wrong, price(100, 110)])
    assert (report.n_prices, report.n_invalid, report.n_outcomes) == (2, 1, 1)
    assert report.errors[0].index == 1
    assert reason in report.errors[0].message
