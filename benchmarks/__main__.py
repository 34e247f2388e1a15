"""All benchmarks, one after the other: `python -m benchmarks [--smoke] [--only NAME] [--markdown FILE]`."""

import argparse
import contextlib
import importlib
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

from benchmarks.measuring import GOALS_TITLE, machine

NAMES = (
    "startup",
    "sandbox",
    "payload",
    "registration",
    "refresh",
    "one_row",
    "batches",
    "predict_peers",
    "open_loop",
    "many_models",
    "client",
    "registry",
    "optimizer",
    "experiments",
    "observations",
    "experiment_rate",
)
HEADER_LINES = 2
"""Of a table in Markdown."""


class Tee(io.StringIO):
    """Keeps what is printed, and prints it."""

    def __init__(self, beside: TextIO) -> None:
        super().__init__()
        self._beside = beside

    def write(self, text: str) -> int:
        """As any text file."""
        self._beside.write(text)
        return super().write(text)

    def flush(self) -> None:
        """What it stands in front of; itself it holds nothing back."""
        self._beside.flush()


def main() -> None:
    """Run them; `--smoke` only shows that all of them still run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="as small and as short as possible, several at once")
    parser.add_argument("--only", action="append", choices=NAMES, help="this one (may be given again)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the results for docs/benchmarks.md")
    given = parser.parse_args()
    names = given.only or NAMES
    printed = _smoke(names) if given.smoke else _measure(names)
    if given.markdown:
        given.markdown.write_text(results_page(printed))


def _measure(names: Sequence[str]) -> str:
    """One after the other; what they printed."""
    printed = Tee(sys.stdout)
    for name in names:
        started = time.perf_counter()
        print(f"\n## {name}", flush=True)
        with contextlib.redirect_stdout(printed):
            importlib.import_module(f"benchmarks.{name}").main([])
        print(f"\n({time.perf_counter() - started:.1f} s)", flush=True)
    return printed.getvalue()


def _smoke(names: Sequence[str]) -> str:
    """As many at once as there are processors, because their figures mean nothing; what they printed."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke"]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    started = time.perf_counter()
    printed, failed = [], []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for name, done in zip(names, pool.map(run, names), strict=True):
            print(f"\n## {name}\n{done.stdout}", flush=True)
            printed.append(done.stdout)
            if done.returncode:
                failed.append(name)
    print(f"\n({time.perf_counter() - started:.1f} s)", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    return "".join(printed)


def results_page(printed: str) -> str:
    """What the benchmarks printed, with the machine and all their goals once, at the beginning."""
    goals: list[str] = []
    others: list[str] = []
    is_goals = False
    for line in printed.replace(f"{machine()}; ", "").replace(machine(), "").splitlines():
        if line.startswith("### "):
            is_goals = line == f"### {GOALS_TITLE}"
        if not is_goals or (line and not line.startswith(("|", "#"))):
            is_goals = False
            others.append(line)
        elif line.startswith("|") and (len(goals) < HEADER_LINES or line not in goals[:HEADER_LINES]):
            goals.append(line)
    text = "\n".join([f"{machine()}.", "", *goals, "", *others, ""])
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    main()
