"""Predictions at a fixed rate, whether the ones before are answered or not: alone, and while the server has other work.

    python -m benchmarks.open_loop [--smoke]

The other work: an ONNX model that takes two seconds a request, a watched directory in which a group changes every second, and
somebody who looks at the pages.
"""

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.arrivals import Offered, offer
from benchmarks.data_dirs import make_data_dir
from benchmarks.generate import generate, write_group
from benchmarks.load import Asked
from benchmarks.measuring import Goal, machine, median, print_goals, print_table
from benchmarks.onnx_loop import N_FEATURES, onnx_loop
from benchmarks.servers import Server, mmserver, wait_until_idle
from benchmarks.subject import MODEL_NAME, make_subject

RATE_PER_S = 1000.0
N_ROUNDS, ROUND_S = 3, 10.0
SMOKE_ROUNDS, SMOKE_ROUND_S = 1, 2.0
WARM_UP_S = 1.0
GOAL_P99_MS = 5.0

SLOW_S, SMOKE_SLOW_S = 2.0, 0.5
N_WATCHED, SMOKE_WATCHED = 300, 10
CHANGE_EVERY_S = 1.0
PAGE_EVERY_S = 0.25
"""Four pages a second: somebody in a hurry, or several who are not."""
PAGES = ("/", "/ui/models/watched", "/ui/models/watched/symbols/S00001USDT", f"/ui/models/{MODEL_NAME}")
PLUGINS = Path(__file__).resolve().parent / "slow_plugins"
QUICK_TO_SETTLE = {"MMSERVER_WATCH_INTERVAL_S": "0.25", "MMSERVER_WATCH_DEBOUNCE_S": "0.1"}
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class OtherWork:
    """What goes on beside the predictions; `done` counts it."""

    server: Server
    change_group: Callable[[int], object]
    done: Counter[str]

    def ask_slow_model(self) -> None:
        """One request after the other."""
        _post(
            self.server.url + "/predict", {"symbol": "SLOWUSDT", "model_name": "slow", "features": [1.0] * N_FEATURES}
        )
        self.done["slow ONNX requests"] += 1

    def change_directory(self) -> None:
        """One group of the watched directory gets other content; the server finds that by itself."""
        time.sleep(CHANGE_EVERY_S)
        self.done["groups changed"] += 1
        self.change_group(self.done["groups changed"])

    def look_at_page(self) -> None:
        """One page, and a moment to read it."""
        time.sleep(PAGE_EVERY_S)
        page = PAGES[self.done["pages"] % len(PAGES)]
        with urllib.request.urlopen(self.server.url + page, timeout=60) as answer:
            answer.read()
        self.done["pages"] += 1

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """All three, each in a thread of its own, until the end of the block."""
        ended = threading.Event()
        failures: list[BaseException] = []

        def again_and_again(work: Callable[[], None]) -> None:
            try:
                while not ended.is_set():
                    work()
            except OSError as error:
                failures.append(error)

        works = (self.ask_slow_model, self.change_directory, self.look_at_page)
        threads = [threading.Thread(target=again_and_again, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        if failures:
            raise SystemExit(f"the other work failed: {failures[0]!r}")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_loop", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round with less other work")
    is_smoke = parser.parse_args(arguments).smoke
    n_rounds, round_s = (SMOKE_ROUNDS, SMOKE_ROUND_S) if is_smoke else (N_ROUNDS, ROUND_S)
    alone: list[Offered] = []
    beside: list[Offered] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        subject = make_subject(work, is_small=is_smoke)
        template = generate(work / "watched", SMOKE_WATCHED if is_smoke else N_WATCHED, "tiny")
        (work / "slow").mkdir()
        slow_model = onnx_loop(_turns_in(SMOKE_SLOW_S if is_smoke else SLOW_S))
        (work / "slow" / "SLOWUSDT_ret_5d_slow.onnx").write_bytes(slow_model)
        models = {MODEL_NAME: subject.artifacts, "watched": work / "watched", "slow": work / "slow"}
        make_data_dir(work / "data", models, PLUGINS)
        with mmserver(work / "data", "--plugins-dir", str(PLUGINS), environ=QUICK_TO_SETTLE) as server:
            body = {"symbol": subject.symbol, "model_name": MODEL_NAME, "features": subject.features}
            asked = Asked(server.url + "/predict", JSON, "POST", json.dumps(body).encode())
            other_work = OtherWork(
                server, lambda n: write_group(work / "watched", template, n % 5, seed=10_000 + n), Counter()
            )
            other_work.ask_slow_model()  # the first one loads it
            other_work.done.clear()
            if not is_smoke:
                wait_until_idle([server])
            offer(asked, rate_per_s=RATE_PER_S, duration_s=WARM_UP_S)
            versions_before = _n_versions(server)
            for number in range(n_rounds):
                alone.append(offer(asked, rate_per_s=RATE_PER_S, duration_s=round_s, seed=number))
                with other_work.going_on():
                    beside.append(offer(asked, rate_per_s=RATE_PER_S, duration_s=round_s, seed=number))
            other_work.done["versions published"] = _n_versions(server) - versions_before
    _print({"alone": alone, "beside other work": beside}, other_work.done, n_rounds, round_s)


def _turns_in(seconds: float) -> int:
    """How often the loop goes round in that time, on this machine."""
    import onnxruntime

    n_turns = 20_000
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_loop(n_turns), options, providers=["CPUExecutionProvider"])
    row = np.ones((1, N_FEATURES), np.float32)
    took_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        session.run(None, {"features": row})
        took_s.append(time.perf_counter() - started_s)
    return int(n_turns * seconds / min(took_s))


def _post(url: str, body: object) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), JSON, method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        received: bytes = answer.read()
    return received


def _n_versions(server: Server) -> int:
    with urllib.request.urlopen(server.url + "/api/models/watched/versions?limit=500", timeout=60) as answer:
        return len(json.loads(answer.read())["items"])


def _print(found: dict[str, list[Offered]], done: Counter[str], n_rounds: int, round_s: float) -> None:
    print(
        f"\n{machine()}; {n_rounds} interleaved rounds of {round_s:.0f} s, Poisson arrivals; medians of the rounds, most of all"
    )
    rows, goals = [], []
    for name, rounds in found.items():
        p99_ms = median(r.p99_s for r in rounds) * 1e3
        rows.append((
            name,
            median(r.offered_per_s for r in rounds),
            median(r.answered_per_s for r in rounds),
            median(r.p50_s for r in rounds) * 1e3,
            p99_ms,
            max(r.most_s for r in rounds) * 1e3,
            median(r.lateness_p99_s for r in rounds) * 1e3,
            sum(r.n_failed for r in rounds),
        ))  # fmt: skip
        goals.append(
            Goal(f"{RATE_PER_S:,.0f} predictions/s offered, {name}: p99", p99_ms, at_most=GOAL_P99_MS, unit="ms")
        )
    failed = sum(r.n_failed for rounds in found.values() for r in rounds)
    columns = (
        "",
        "offered/s",
        "answered/s",
        "p50 ms",
        "p99 ms",
        "most ms",
        "of that the client's own p99 ms",
        "failed",
    )
    print_table(f"{RATE_PER_S:,.0f} predictions a second, open loop", columns, rows)
    print(f"\nThe other work: {', '.join(f'{count:,} {what}' for what, count in done.items())}.")
    print_goals([*goals, Goal("… of them failed", failed, at_most=0)])


if __name__ == "__main__":
    main()
