"""Numbers for the benchmarks: processor time and memory of processes, medians, percentiles, goals, and tables in Markdown."""

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LIBRARIES = ("flask", "waitress", "sqlalchemy", "numpy", "msgspec", "xgboost-cpu", "xgboost", "onnxruntime")


def median(values: Iterable[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def cpu_s(pid: int) -> float:
    """User and system time of the process and its descendants so far, with the children of each that have ended."""
    children: dict[int, list[int]] = defaultdict(list)
    used_s: dict[int, float] = {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                fields = (directory / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children[int(fields[1])].append(int(directory.name))
            used_s[int(directory.name)] = sum(map(int, fields[11:15])) / TICKS_PER_S
    total_s, found = 0.0, [pid]
    while found:
        one = found.pop()
        total_s += used_s.get(one, 0.0)
        found += children[one]
    return total_s


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


@dataclass(frozen=True)
class Goal:
    """A figure and what it has to be: `at_least` or `at_most`, or neither for one that is only worth knowing."""

    what: str
    measured: float
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether it is what it has to be."""
        return (self.at_least is None or self.measured >= self.at_least) and (
            self.at_most is None or self.measured <= self.at_most
        )

    @property
    def row(self) -> tuple[str, str, str]:
        """Its cells: the goal, the figure, what came of it."""
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        wanted = "".join(f": {sign} {bound:,g} {self.unit}" for sign, bound in bounds if bound is not None).rstrip()
        verdict = ("met" if self.is_met else "**missed**") if wanted else ""
        return self.what + wanted, f"{_shown(float(self.measured))} {self.unit}".rstrip(), verdict


GOALS_TITLE = "Goals"


def print_goals(goals: Iterable[Goal]) -> None:
    """The table by which a benchmark is judged."""
    print_table(GOALS_TITLE, ("goal", "measured", ""), [goal.row for goal in goals])


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One table in Markdown, ready for docs/benchmarks.md."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_shown(cell) for cell in row)} |", flush=True)


def _shown(cell: object) -> str:
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
