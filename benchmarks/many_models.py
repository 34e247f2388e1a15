"""A thousand models in one server: what loaded ones take in memory, and whether one that is in use suffers from the others.

python -m benchmarks.many_models [--smoke]
"""

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arrivals import Offered, offer
from benchmarks.data_dirs import make_data_dir
from benchmarks.generate import KINDS, generate
from benchmarks.load import Asked
from benchmarks.measuring import Goal, machine, median, print_goals, print_table, rss_bytes
from benchmarks.servers import SMOKE_OPTIONS, Server, mmserver, wait_until_idle
from benchmarks.subject import MODEL_NAME

N_MODELS, SMOKE_MODELS = 1000, 12
KIND, SMOKE_KIND = "daily_5d", "tiny"
CACHE_BYTES, SMOKE_CACHE_BYTES = 64 << 20, 1 << 20
"""Room for a part of them only, so that they have to make way."""
WARM_SYMBOL = "S00000USDT"
RATE_PER_S = 500.0
N_ROUNDS, ROUND_S = 3, 8.0
SMOKE_ROUNDS, SMOKE_ROUND_S = 1, 1.0
OTHERS_PER_S = 100.0
SLACK_BYTES = 32 << 20
"""What else a process may grow by while it answers: buffers, the allocator, the threads' stacks."""
ALONE, AMONG, BESIDE = "alone in a server", "among the others", "while the others are asked too"
JSON = {"Content-Type": "application/json"}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_models", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few models and one short round")
    is_smoke = parser.parse_args(arguments).smoke
    n_models, kind = (SMOKE_MODELS, SMOKE_KIND) if is_smoke else (N_MODELS, KIND)
    n_rounds, round_s = (SMOKE_ROUNDS, SMOKE_ROUND_S) if is_smoke else (N_ROUNDS, ROUND_S)
    cache_bytes = SMOKE_CACHE_BYTES if is_smoke else CACHE_BYTES
    options = SMOKE_OPTIONS if is_smoke else ()
    environ = {"MMSERVER_PREDICTOR_CACHE_BYTES": str(cache_bytes)}
    features: list[float] = np.random.default_rng(7).normal(size=KINDS[kind].n_factors).astype(np.float32).tolist()
    found: dict[str, list[Offered]] = {ALONE: [], AMONG: [], BESIDE: []}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        started_s = time.perf_counter()
        generate(work / "one", 1, kind)
        generate(work / "many", n_models, kind)
        make_data_dir(work / "lone", {MODEL_NAME: work / "one"})
        make_data_dir(work / "data", {MODEL_NAME: work / "many"})
        print(f"{n_models:,} models of kind {kind} registered in {time.perf_counter() - started_s:.0f} s", flush=True)
        lone = stack.enter_context(mmserver(work / "lone", *options, environ=environ))
        server = stack.enter_context(mmserver(work / "data", *options, environ=environ))
        if not is_smoke:
            wait_until_idle([lone, server])
        for one in (lone, server):
            offer(_asked(one, WARM_SYMBOL, features), rate_per_s=RATE_PER_S, duration_s=1.0)
        before_bytes = rss_bytes(server.pid)
        others = Others(server, n_models, features)
        rss: list[int] = []
        for number in range(n_rounds):
            for name, one in ((ALONE, lone), (AMONG, server)):
                asked = _asked(one, WARM_SYMBOL, features)
                found[name].append(offer(asked, rate_per_s=RATE_PER_S, duration_s=round_s, seed=number))
            with others:
                asked = _asked(server, WARM_SYMBOL, features)
                found[BESIDE].append(offer(asked, rate_per_s=RATE_PER_S, duration_s=round_s, seed=number))
            rss.append(rss_bytes(server.pid))
        others.ask_all()
        rss.append(rss_bytes(server.pid))
    print(
        f"\n{machine()}; {n_rounds} interleaved rounds of {round_s:.0f} s, {RATE_PER_S:,.0f} requests/s, Poisson arrivals"
    )
    rows = [_row(name, rounds) for name, rounds in found.items()]
    print_table(
        f"One warm model and {n_models - 1:,} others", ("the warm model", "p50 ms", "p99 ms", "most ms", "failed"), rows
    )
    grown_bytes = max(rss) - before_bytes
    print(
        f"\nMemory of the server: {before_bytes / 2**20:.0f} MiB with one model loaded, at most {max(rss) / 2**20:.0f} MiB after "
        f"{others.n_asked:,} requests over all of them; a bound of {cache_bytes / 2**20:.0f} MiB for loaded models. "
        f"The first request for each took {median(others.first_s) * 1e3:.1f} ms (median)."
    )
    p99_s = {name: median(r.p99_s for r in rounds) for name, rounds in found.items()}
    failed = others.n_failed + sum(r.n_failed for rounds in found.values() for r in rounds)
    room_mib = (cache_bytes + SLACK_BYTES) / 2**20
    print_goals([
        Goal(f"{n_models:,} models asked in turn: memory grows by", grown_bytes / 2**20, at_most=room_mib, unit="MiB"),
        Goal("p99 of one warm model among the others, against alone", p99_s[AMONG] / p99_s[ALONE], at_most=1.25, unit="×"),
        Goal("… while the others are asked too", p99_s[BESIDE] * 1e3, at_most=5, unit="ms"),
        Goal("… of all these requests failed", failed, at_most=0),
    ])  # fmt: skip


class Others:
    """A client that asks all the other models in turn, at a moderate rate, while in a `with` block."""

    def __init__(self, server: Server, n_models: int, features: list[float]) -> None:
        self._asked = [_asked(server, f"S{index:05d}USDT", features) for index in range(1, n_models)]
        self._features = features
        self._ended = threading.Event()
        self._thread = threading.Thread()
        self.n_asked = self.n_failed = 0
        self.first_s: list[float] = []

    def __enter__(self) -> "Others":
        self._ended.clear()
        self._thread = threading.Thread(target=self._ask_until_ended)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def ask_all(self) -> None:
        """Each of them once more, as fast as they are answered."""
        for _ in self._asked:
            self._ask_next()

    def _ask_until_ended(self) -> None:
        while not self._ended.wait(1 / OTHERS_PER_S):
            self._ask_next()

    def _ask_next(self) -> None:
        asked = self._asked[self.n_asked % len(self._asked)]
        started_s = time.perf_counter()
        try:
            answer = _answer(asked)
            self.n_failed += answer["symbol"] not in asked.body.decode()
        except OSError:
            self.n_failed += 1
        if self.n_asked < len(self._asked):
            self.first_s.append(time.perf_counter() - started_s)
        self.n_asked += 1


def _asked(server: Server, symbol: str, features: list[float]) -> Asked:
    body = {"symbol": symbol, "model_name": MODEL_NAME, "features": features}
    return Asked(server.url + "/predict", JSON, "POST", json.dumps(body).encode())


def _answer(asked: Asked) -> Any:
    request = urllib.request.Request(asked.url, asked.body, asked.headers, method=asked.method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def _row(name: str, rounds: list[Offered]) -> tuple[object, ...]:
    p50_ms, p99_ms = median(r.p50_s for r in rounds) * 1e3, median(r.p99_s for r in rounds) * 1e3
    return name, p50_ms, p99_ms, max(r.most_s for r in rounds) * 1e3, sum(r.n_failed for r in rounds)


if __name__ == "__main__":
    main()
