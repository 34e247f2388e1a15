"""The round trip to the guarded worker, beside the same work in this process.

python -m benchmarks.sandbox [--smoke]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.generate import generate
from benchmarks.measuring import machine, median, percentile, print_table
from mmserver.catalog.ingest import INGEST_GROUPS, IngestRequest, SourceFile, ingest_group
from mmserver.plugin_loading import load_plugins
from mmserver.sandbox.pool import Sandbox

N_JOBS, SMOKE_JOBS = 200, 10
HANDLERS = "mmserver.catalog.ingest:handlers"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few jobs")
    n_jobs = SMOKE_JOBS if parser.parse_args(arguments).smoke else N_JOBS
    rows: list[tuple[object, ...]] = []
    with Sandbox(HANDLERS, {"plugins_dir": None}, n_workers=1) as sandbox:
        started = time.perf_counter()
        sandbox.start()
        start_s = time.perf_counter() - started
        level = sandbox.level()
        plugins = load_plugins()
        for kind in ("tiny", "daily_5d"):
            request = _request(kind)
            encoded = msgspec.msgpack.encode([request])
            in_process = partial(ingest_group, request, plugins)
            here, there = _interleaved(in_process, partial(sandbox.run, INGEST_GROUPS, encoded), n_jobs)
            added_s = median(there) - median(here)
            for name, times in (("in this process", here), ("in the worker", there)):
                rows.append((f"{kind}, {name}", median(times) * 1e3, percentile(times, 0.99) * 1e3))
            rows.append((f"{kind}, added by the worker", added_s * 1e3, "-"))
    print(f"\n{machine()}; {n_jobs} jobs each, interleaved; the guard's level is {level.name}")
    print(f"first start of the worker: {start_s:.2f} s")
    print_table("Reading one group", ("what", "p50 ms", "p99 ms"), rows)


def _request(kind: str) -> IngestRequest:
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary), 1, kind)
        files = tuple(SourceFile(path.name, path.read_bytes()) for path in sorted(Path(temporary).iterdir()))
    return IngestRequest("S00000USDT_ret_5d", files)


def _interleaved(
    first: Callable[[], object], second: Callable[[], object], n_rounds: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    first()
    second()
    for _ in range(n_rounds):
        for call, taken in zip((first, second), times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
