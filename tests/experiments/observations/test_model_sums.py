"""Sums of what is observed outside experiments: per model, version and day, equal to those of the rows themselves."""

from collections.abc import Callable
from dataclasses import astuple
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from mmserver.experiments.observations.dead_bands import DeadBands
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.model_sums import ModelTotals, whole_totals
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.values import Observation, Outcome, Price

START_S = 1_790_000_000.0
DAY_S = 86_400.0
HOLD, BUY, SELL = range(3)
Make = Callable[..., Observation]


@pytest.fixture
def see(observe: Make) -> Make:
    """Make one prediction outside experiments."""

    def make(prediction_id: str, **changes: Any) -> Observation:
        return observe(prediction_id, **({"experiment_key": None, "arm": None, "unit": ""} | changes))

    return make


def recomputed(store: ObservationStore) -> dict[tuple[str, str, int], ModelTotals]:
    """The sums, from the rows alone."""
    with store.read() as raw:
        rows = raw.execute(
            "SELECT model_name, version, p.at_us, direction, latency_us, error, label, realized_return FROM predictions p "
            "LEFT JOIN outcomes ON prediction = p.id WHERE experiment IS NULL"
        ).fetchall()
    found: dict[tuple[str, str, int], ModelTotals] = {}
    for name, version, at_us, direction, latency_us, error, label, made in rows:
        counts = error is None and direction is not None
        gain = {None: 0.0, HOLD: 0.0, BUY: made or 0.0, SELL: -(made or 0.0)}[direction]
        has_label, has_return = counts and label is not None, counts and made is not None
        one = ModelTotals(
            n_predictions=1,
            n_errors=error is not None,
            latency_us=0 if error else latency_us,
            n_labelled=has_label,
            n_right=has_label and label == direction,
            n_returns=has_return,
            returns=gain if has_return else 0.0,
        )
        key = (name, version, at_us // int(DAY_S * 1e6))
        found[key] = found.get(key, ModelTotals()).merge(one)
    return found


def test_the_sums_are_those_of_the_rows(observations: ObservationLog, see: Make, observe: Make) -> None:
    for n in range(60):
        failed = {"error": "predictor_unloadable", "direction": None} if n % 11 == 0 else {}
        direction = {"direction": (None, HOLD, BUY, SELL)[n % 4]}
        at_us = int((START_S - n % 3 * DAY_S) * 1e6)
        observations.append(
            see(
                f"p{n}", model_name=f"m{n % 2}", version=f"v{n % 5}", at_us=at_us, latency_us=n, **(direction | failed)
            ),
            must_keep=False,
        )
    observations.append(observe("in an experiment"), must_keep=True)
    outcomes = [Outcome(prediction_id=f"p{n}", realized_return=(n - 30) / 1000) for n in range(0, 60, 2)]
    observations.add_outcomes(outcomes, dead_bands=DeadBands(0.005))
    observations.add_outcomes([Outcome(prediction_id=f"p{n}", label="BUY") for n in range(1, 60, 4)])
    observations.add_outcomes([Outcome(prediction_id="in an experiment", label="BUY")])
    days = observations.read_model_days()
    epoch = date(1970, 1, 1)
    found = {(one.model_name, one.version, (one.day - epoch).days): one.totals for one in days}
    expected = recomputed(observations.store())
    assert found.keys() == expected.keys()
    for key, totals in found.items():
        assert astuple(totals) == pytest.approx(astuple(expected[key]), abs=1e-12)


def test_a_prediction_counts_on_the_day_it_was_made_whenever_its_outcome_comes(
    observations: ObservationLog, see: Make
) -> None:
    observations.append(see("old", at_us=int((START_S - 3 * DAY_S) * 1e6), direction=BUY), must_keep=False)
    observations.add_outcomes([Outcome(prediction_id="old", realized_return=0.02, label="BUY")])
    [day] = observations.read_model_days()
    assert day.day == date(1970, 1, 1) + timedelta(seconds=START_S - 3 * DAY_S)
    assert (day.totals.accuracy, day.totals.average_return) == (1.0, 0.02)


def test_what_is_sent_again_is_counted_once_and_a_label_that_comes_later_is_added(
    observations: ObservationLog, see: Make
) -> None:
    observations.append(see("p", direction=SELL), must_keep=False)
    for _ in range(3):
        observations.add_outcomes([Outcome(prediction_id="p", realized_return=-0.02)])
    observations.add_outcomes([Outcome(prediction_id="p", label="SELL")])
    [day] = observations.read_model_days()
    assert (day.totals.n_returns, day.totals.n_labelled, day.totals.accuracy) == (1, 1, 1.0)
    assert day.totals.average_return == 0.02


def test_sums_stay_when_their_predictions_are_deleted(tmp_path: Path, see: Make) -> None:
    log = ObservationLog(tmp_path, retention_days=1, now=lambda: START_S + 3 * DAY_S)
    log.append(see("p", direction=BUY), must_keep=False)
    log.add_outcomes([Outcome(prediction_id="p", label="BUY")])
    assert log.prune().n_too_old == 1
    [day] = log.read_model_days("wide")
    assert (day.totals.n_predictions, day.totals.accuracy) == (1, 1.0)
    assert log.read_model_days("another") == []
    log.close()


def test_experiments_keep_their_predictions_longer_than_others_where_space_is_short(
    tmp_path: Path, see: Make, observe: Make
) -> None:
    log = ObservationLog(tmp_path, retention_bytes=1, now=lambda: START_S)
    for n in range(5):
        log.append(observe(f"e{n}"), must_keep=True)
        log.append(see(f"o{n}"), must_keep=False)
    log.flush()
    with log.store().write() as raw:
        raw.execute(
            "CREATE TRIGGER told AFTER DELETE ON predictions BEGIN INSERT INTO marks VALUES (old.prediction_id, 1 + (SELECT count(*) FROM marks)); END"
        )
    log.prune()
    with log.store().read() as raw:
        names = [name for (name,) in raw.execute("SELECT name FROM marks WHERE name <> 'due_until_us' ORDER BY value")]
    assert sorted(names[:5]) == [f"o{n}" for n in range(5)]
    assert sorted(names[5:]) == [f"e{n}" for n in range(5)]
    log.close()


def test_a_return_is_labelled_by_the_dead_band_of_its_model_and_of_its_experiment(
    observations: ObservationLog, see: Make, observe: Make
) -> None:
    dead_bands = DeadBands(0.0, {"calm": 0.05, "wide": 0.5}, {1: 0.01})
    for name in ("calm", "other"):
        observations.append(see(name, model_name=name, direction=HOLD), must_keep=False)
    observations.append(observe("in one", model_name="wide"), must_keep=True)
    ids = ("calm", "other", "in one")
    observations.add_outcomes([Outcome(prediction_id=one, realized_return=0.03) for one in ids], dead_bands=dead_bands)
    assert labels(observations) == {"calm": HOLD, "other": BUY, "in one": BUY}


def test_prices_label_by_each_model_s_own_dead_band(observations: ObservationLog, see: Make) -> None:
    at_us = int((START_S - 100) * 1e6)
    for name in ("calm", "other"):
        observations.append(see(name, model_name=name, at_us=at_us, horizon_us=50_000_000), must_keep=False)
    prices = [Price(symbol="BTCUSDT", price=price, at=START_S + at) for at, price in ((-100, 100.0), (-50, 103.0))]
    report = observations.add_prices(prices, dead_bands=DeadBands(0.0, {"calm": 0.05}))
    assert report.n_outcomes == 2
    assert labels(observations) == {"calm": HOLD, "other": BUY}
    totals = whole_totals(observations.read_model_days())
    assert {name: one.accuracy for (name, _), one in totals.items()} == {"calm": 0.0, "other": 1.0}


def test_a_label_that_was_given_stays_when_a_return_comes_that_says_otherwise(
    observations: ObservationLog, see: Make
) -> None:
    observations.append(see("p"), must_keep=False)
    observations.add_outcomes([Outcome(prediction_id="p", label="SELL")], dead_bands=DeadBands())
    report = observations.add_outcomes([Outcome(prediction_id="p", realized_return=0.1)], dead_bands=DeadBands())
    assert (report.n_accepted, report.n_conflicts, labels(observations)) == (1, 0, {"p": SELL})


def labels(log: ObservationLog) -> dict[str, int]:
    with log.store().read() as raw:
        query = "SELECT prediction_id, label FROM outcomes JOIN predictions ON id = prediction"
        return dict(raw.execute(query).fetchall())
