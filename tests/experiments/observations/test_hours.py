"""What is kept hour by hour: the same numbers as in the totals, spread over the hours of the predictions."""

from pathlib import Path

from mmserver.experiments.observations.hours import read_hours
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.store import ObservationStore
from mmserver.experiments.observations.tables import VERSION
from mmserver.experiments.observations.values import Observation, Outcome, ShadowAnswer
from mmserver.storage.sqlite import connect

HOUR_US = 3_600_000_000
FIRST_HOUR = 490_000


def observed(number: int, hour: int, arm: str, latency_us: int, **said: object) -> Observation:
    fields = {
        "prediction_id": f"p{number}",
        "at_us": (FIRST_HOUR + hour) * HOUR_US + number,
        "experiment_key": 7,
        "arm": arm,
        "unit": f"BTC|{hour}|{arm}",
        "symbol": "BTC",
        "direction": 1,
        "latency_us": latency_us,
        **said,
    }
    return Observation(**fields)  # type: ignore[arg-type]


def filled(folder: Path, *batches: list[Observation]) -> ObservationLog:
    log = ObservationLog(folder, now=lambda: (FIRST_HOUR + 100) * 3600.0)
    for batch in batches:
        for one in batch:
            log.append(one, must_keep=True)
        log.flush()
    return log


def test_each_hour_has_its_own_latencies_and_together_they_are_those_of_the_arm(tmp_path: Path) -> None:
    first = [observed(n, 0, "control", 1000) for n in range(5)] + [observed(5, 1, "treatment", 4000)]
    second = [observed(6, 0, "control", 9000), observed(7, 0, "control", 9000, error="model_failed")]
    log = filled(tmp_path, first, second)
    hours = read_hours(log.store(), 7)
    assert [(hour.phase, hour.number) for hour in hours] == [(1, FIRST_HOUR), (1, FIRST_HOUR + 1)]
    assert hours[0].control.latencies.moments.n == 6, "what failed has no latency"
    assert hours[0].treatment.latencies.moments.n == 0
    assert abs((hours[1].treatment.latencies.p95_ms or 0.0) / 4.0 - 1.0) < 0.011
    whole = hours[0].control.merge(hours[1].control).latencies
    assert whole.bins == log.read_totals(7).control.latencies.bins
    assert read_hours(log.store(), 8) == []
    log.close()


def test_a_return_counts_in_the_hour_of_its_prediction_however_late_it_comes(tmp_path: Path) -> None:
    log = filled(tmp_path, [observed(0, 0, "control", 1), observed(1, 2, "treatment", 1, direction=2)])
    log.add_outcomes([Outcome(prediction_id="p0", realized_return=0.02, label="BUY")])
    log.add_outcomes([Outcome(prediction_id="p1", realized_return=0.03)])
    hours = read_hours(log.store(), 7)
    assert [(one.control.total_return, one.treatment.total_return) for one in hours] == [(0.02, 0.0), (0.0, -0.03)]
    assert [(one.control.n_returns, one.treatment.n_returns) for one in hours] == [(1, 0), (0, 1)]
    log.close()


def test_the_treatment_of_a_shadow_has_hours_too_and_the_wash_out_has_none(tmp_path: Path) -> None:
    shadow = ShadowAnswer(2, None, 8000)
    log = filled(
        tmp_path,
        [
            observed(0, 0, "control", 1000, shadow=shadow),
            observed(1, 0, "control", 1000, shadow=shadow, is_washed_out=True),
        ],
    )
    [hour] = read_hours(log.store(), 7)
    assert (hour.control.latencies.moments.n, hour.treatment.latencies.moments.n) == (1, 1)
    assert hour.treatment.latencies.moments.mean == 8.0
    log.close()


def test_a_file_from_before_the_hours_gets_them_and_keeps_what_it_has(tmp_path: Path) -> None:
    log = filled(tmp_path, [observed(0, 0, "control", 1000)])
    path = log.store().path
    log.close()
    connection = connect(path, "rw")
    for statement in ("DROP TABLE hour_sums", "DROP TABLE model_days", "DROP INDEX predictions_outside"):
        connection.execute(statement)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    store = ObservationStore(path)
    assert read_hours(store, 7) == []
    assert store.read_totals(7).control.n_predictions == 1
    with store.read() as raw:
        assert raw.execute("PRAGMA user_version").fetchone()[0] == VERSION
    store.close()
