"""Numbers for the benchmarks: processor time and memory of processes, medians, percentiles, and tables in Markdown."""

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LIBRARIES = ("flask", "waitress", "sqlalchemy", "numpy", "msgspec", "xgboost-cpu", "xgboost")


def median(values: Iterable[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cpu_s(pid: int) -> float:
    """User and system time of the process so far, with its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Resident memory of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bare_walk(directory: str) -> int:
    """How many files there are: what anything that looks at a tree must do, recursively `scandir` and `stat`."""
    n_files = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            n_files += bare_walk(entry.path) if entry.is_dir(follow_symlinks=False) else 1
    return n_files


def machine() -> str:
    """One line that says where the figures are from."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {model}, Linux {platform.release()}, Python {platform.python_version()}; {_libraries()}"


def _libraries() -> str:
    from importlib.metadata import distributions

    installed = {str(d.metadata["Name"]).lower() for d in distributions()}
    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES if name in installed)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One table in Markdown, ready for docs/benchmarks.md."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_shown(cell) for cell in row)} |", flush=True)


def _shown(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
