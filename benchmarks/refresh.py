"""A refresh of many groups with one changed, beside a bare walk of the same tree; and memory over many refreshes.

    python -m benchmarks.refresh [--smoke]

The time that a refresh waits for the files to settle is not counted: it is a setting.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.measuring import Goal, bare_walk, machine, median, print_goals, print_table, rss_bytes

N_GROUPS, SMOKE_GROUPS = 10_000, 200
N_ROUNDS, SMOKE_ROUNDS = 15, 3
MEMORY_AT, SMOKE_MEMORY_AT = (1, 50, 200), (1, 3, 5)
SETTLE_S = 0.05
KEY = "S00000USDT_ret_5d"


@dataclass
class Times:
    """Seconds of each round."""

    walk_s: list[float] = field(default_factory=list)
    parse_s: list[float] = field(default_factory=list)
    refresh_s: list[float] = field(default_factory=list)
    unchanged_s: list[float] = field(default_factory=list)


class Changing:
    """The watched directory, and other models that take turns as one of its groups' model."""

    def __init__(self, work: Path, n_groups: int, n_others: int) -> None:
        self.root, self.others = work / "artifacts", work / "others"
        for directory, count in ((self.root, n_groups), (self.others, n_others)):
            command = [sys.executable, "-m", "benchmarks.generate", str(directory), "--groups", str(count + 1)]
            subprocess.run([*command, "--kind", "tiny"], check=True, capture_output=True)
        self.n_changes = 0

    def change_one(self) -> Path:
        """Put another model file over the first group's, by renaming."""
        self.n_changes += 1
        beside = self.root / ".tmp-next"
        shutil.copyfile(self.others / f"S{self.n_changes:05d}USDT_ret_5d_model.pkl", beside)
        return beside.replace(self.root / f"{KEY}_model.pkl")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few groups and few rounds")
    is_smoke = parser.parse_args(arguments).smoke
    n_groups, n_rounds = (SMOKE_GROUPS, SMOKE_ROUNDS) if is_smoke else (N_GROUPS, N_ROUNDS)
    memory_at = SMOKE_MEMORY_AT if is_smoke else MEMORY_AT
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        changing = Changing(work, n_groups, n_rounds + memory_at[-1])
        times, memory, registered_s = _measure(work / "data", changing, n_rounds, memory_at)
    _print(n_groups, n_rounds, times, memory, registered_s)


def _measure(
    data_dir: Path, changing: Changing, n_rounds: int, memory_at: tuple[int, ...]
) -> tuple[Times, dict[int, int], float]:
    from mmserver.catalog.catalog import Actor
    from mmserver.catalog.opening import open_store
    from mmserver.catalog.refreshing import refresh_model
    from mmserver.catalog.registering import register_model
    from mmserver.settings import Settings

    by = Actor(name="benchmark")
    times, memory = Times(), {}
    settings = Settings(data_dir=data_dir, watch_debounce_s=SETTLE_S, watch_enabled=False, rehash_interval_s=0)
    with open_store(settings) as store:
        started = time.perf_counter()
        register_model(store, "bench", str(changing.root), by)
        registered_s = time.perf_counter() - started

        def refresh() -> tuple[float, bool]:
            waited_s: list[float] = []

            def wait(wanted_s: float) -> None:
                began = time.perf_counter()
                time.sleep(wanted_s)
                waited_s.append(time.perf_counter() - began)

            began = time.perf_counter()
            changed = refresh_model(store, "bench", by, wait=wait).changed
            return time.perf_counter() - began - sum(waited_s), changed

        refresh()
        for _ in range(n_rounds):
            changing.change_one()
            times.walk_s.append(_timed(lambda: bare_walk(str(changing.root))))
            times.parse_s.append(_timed(lambda: _parse_one(store, changing.root)))
            took_s, changed = refresh()
            assert changed, "the changed file was not found"
            times.refresh_s.append(took_s)
            times.unchanged_s.append(refresh()[0])
        for n_done in range(1, memory_at[-1] + 1):
            changing.change_one()
            refresh()
            if n_done in memory_at:
                memory[n_done] = rss_bytes(os.getpid())
    return times, memory, registered_s


def _parse_one(store: Any, root: Path) -> None:
    """Read one group's files and have them parsed as a refresh does."""
    from mmserver.catalog.ingest import INGEST_GROUPS, IngestRequest, SourceFile

    names = [f"{KEY}{suffix}" for suffix in ("_factors.txt", "_ic.csv", "_info.pkl", "_model.pkl")]
    files = tuple(SourceFile(name, (root / name).read_bytes()) for name in names)
    store.sandbox.run(INGEST_GROUPS, msgspec.msgpack.encode([IngestRequest(KEY, files)]))


def _timed(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _print(n_groups: int, n_rounds: int, times: Times, memory: dict[int, int], registered_s: float) -> None:
    walk_s, parse_s = median(times.walk_s), median(times.parse_s)
    refresh_s, unchanged_s = median(times.refresh_s), median(times.unchanged_s)
    print(f"\n{machine()}; medians of {n_rounds} interleaved rounds; registered in {registered_s:.1f} s")
    rows = [
        ("bare scandir + stat", walk_s * 1e3, max(times.walk_s) * 1e3),
        ("parse one group in the worker", parse_s * 1e3, max(times.parse_s) * 1e3),
        ("refresh, one group changed", refresh_s * 1e3, max(times.refresh_s) * 1e3),
        ("refresh, nothing changed", unchanged_s * 1e3, max(times.unchanged_s) * 1e3),
    ]
    print_table(f"Refresh of {n_groups:,} groups", ("what", "ms, median", "most"), rows)
    rows_memory = [(n_done, size / 2**20) for n_done, size in memory.items()]
    print_table("Memory of the process after so many refreshes", ("refreshes", "RSS MiB"), rows_memory)
    what = f"refresh of {n_groups:,} groups, one changed, less its parsing, against a bare walk"
    print_goals([Goal(what, (refresh_s - parse_s) / walk_s, at_most=2, unit="×")])


if __name__ == "__main__":
    main()
