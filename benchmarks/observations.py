"""What the observation log costs: a prediction's append, moving 5,000 of them a second, and outcomes of all of them.

python -m benchmarks.observations [--smoke]
"""

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measuring import Goal, machine, percentile, print_goals, print_table
from mmserver.experiments.observations.log import ObservationLog
from mmserver.experiments.observations.values import Observation, Outcome

N_FEATURES, N_SYMBOLS, RATE, SECONDS = 110, 200, 5000, 60
SMOKE_RATE, SMOKE_SECONDS = 500, 1
HORIZON_S = 1
PACE_S = 0.01
"""Appends come in as many at once as this time holds: a thread cannot sleep for a fifth of a millisecond."""
MAX_APPEND_US, MAX_SHARE, MAX_TOTALS_MS = 10.0, 0.15, 50.0
UNIT_KINDS = ("symbol|time-block", "prediction")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observations", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few for a second")
    is_smoke = parser.parse_args(arguments).smoke
    rate, seconds = (SMOKE_RATE, SMOKE_SECONDS) if is_smoke else (RATE, SECONDS)
    print(f"## Observations\n\n{machine()}")
    measured = {kind: measured_log(kind, rate, seconds) for kind in UNIT_KINDS}
    print_table(
        f"{rate:,} predictions a second for {seconds} s, {N_FEATURES} features each, and an outcome of each",
        ("unit", "lost", "append p50, µs", "append p99, µs", "mover, share of a core", "longest journal, MB",
         "outcomes, CPU s per million", "more memory for them, MB", "read totals, CPU ms"),
        [(kind.replace("|", "\\|"), *values.values()) for kind, values in measured.items()],
    )  # fmt: skip
    if not is_smoke:
        print_goals(goals(measured))


def goals(measured: dict[str, dict[str, float]]) -> list[Goal]:
    """What must hold, of the unit that is the default."""
    default = measured[UNIT_KINDS[0]]
    return [
        Goal("predictions lost", sum(values["lost"] for values in measured.values()), at_most=0),
        Goal("append, median", default["p50_us"], at_most=MAX_APPEND_US, unit="µs"),
        Goal("mover's share of a core", default["share"], at_most=MAX_SHARE),
        Goal("totals read", default["totals_ms"], at_most=MAX_TOTALS_MS, unit="ms"),
    ]


def measured_log(kind: str, rate: int, seconds: int) -> dict[str, float]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as directory:
        log = ObservationLog(Path(directory), outcome_grace_s=0.0)
        log.start()
        [mover] = [thread for thread in threading.enumerate() if thread.name == "observations"]
        assert mover.ident is not None
        clock = time.pthread_getcpuclockid(mover.ident)
        before_s = time.clock_gettime(clock)
        times_us, most_bytes = append_all(log, kind, rate, seconds)
        share = (time.clock_gettime(clock) - before_s) / seconds
        log.flush()
        time.sleep(HORIZON_S)
        n = rate * seconds
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun_s = time.thread_time()
        report = log.add_outcomes(outcomes(n))
        outcomes_s = time.thread_time() - begun_s
        more_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        begun_s = time.thread_time()
        totals = log.read_totals(1)
        totals_ms = (time.thread_time() - begun_s) * 1e3
        log.close()
    n_found = min(totals.control.n_predictions + totals.treatment.n_predictions, report.n_accepted)
    return {
        "lost": n - n_found,
        "p50_us": percentile(times_us, 0.5),
        "p99_us": percentile(times_us, 0.99),
        "share": share,
        "most_mb": most_bytes / 1e6,
        "outcomes_s": outcomes_s / n * 1e6,
        "more_mb": more_memory / 1024,
        "totals_ms": totals_ms,
    }


def append_all(log: ObservationLog, kind: str, rate: int, seconds: int) -> tuple[list[float], int]:
    """Append at a rate; how long each call took, and how much waited at most."""
    times_us: list[float] = []
    most_bytes, start_s, n = 0, time.perf_counter(), rate * seconds
    for prediction in predictions(kind, n):
        if len(times_us) % max(1, int(rate * PACE_S)) == 0:
            time.sleep(max(0.0, start_s + len(times_us) / rate - time.perf_counter()))
            most_bytes = max(most_bytes, log.status.n_unmoved_bytes)
        begun_ns = time.perf_counter_ns()
        log.append(prediction, must_keep=True)
        times_us.append((time.perf_counter_ns() - begun_ns) / 1e3)
    return times_us, most_bytes


def predictions(kind: str, n: int) -> Iterator[Observation]:
    """Of 200 symbols in turn; every tenth treated."""
    features = bytes(4 * N_FEATURES)
    for number in range(n):
        symbol = f"SYM{number % N_SYMBOLS:03}USDT"
        now_us = time.time_ns() // 1000
        yield Observation(
            prediction_id=f"0123456789abcdef-{number:08x}",
            at_us=now_us,
            experiment_key=1,
            arm="treatment" if number % 10 == 0 else "control",
            unit=f"{symbol}|{now_us // 10_000_000}" if kind == UNIT_KINDS[0] else str(number),
            symbol=symbol,
            model_name="wide",
            version="1.0.0",
            direction=number % 3,
            confidence=0.7,
            expected_return=0.001,
            latency_us=321,
            features=features,
            horizon_us=HORIZON_S * 1_000_000,
        )


def outcomes(n: int) -> Iterator[Outcome]:
    """One of each prediction."""
    for number in range(n):
        yield Outcome(
            prediction_id=f"0123456789abcdef-{number:08x}", label=number % 2, realized_return=0.001 * (number % 7 - 3)
        )


if __name__ == "__main__":
    main()
