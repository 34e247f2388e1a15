"""How long the first registration of many groups takes, from the command to the end of it.

python -m benchmarks.registration [--smoke]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from benchmarks.generate import generate
from benchmarks.measuring import Goal, machine, print_goals, print_table
from benchmarks.startup import add_model

N_GROUPS, SMOKE_GROUPS = 1000, 20
GOAL_S = 60


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registration", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few groups only")
    parser.add_argument("--groups", type=int)
    given = parser.parse_args(arguments)
    n_groups = given.groups or (SMOKE_GROUPS if given.smoke else N_GROUPS)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        generate(work / "artifacts", n_groups, "daily_5d")
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        add_model(work / "data", work / "artifacts")
        took_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        stored_bytes = sum(p.stat().st_size for p in (work / "data").rglob("*") if p.is_file())
        read_bytes = sum(p.stat().st_size for p in (work / "artifacts").iterdir())
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"\n{machine()}")
    columns = ("groups", "s", "CPU s", "ms/group", "MB read", "MB stored")
    row = (n_groups, took_s, cpu_s, took_s / n_groups * 1e3, read_bytes / 1e6, stored_bytes / 1e6)
    print_table("First registration of groups of the `daily_5d` kind", columns, [row])
    if n_groups == N_GROUPS:
        print_goals([Goal("first registration of 1,000 groups", took_s, at_most=GOAL_S, unit="s")])


if __name__ == "__main__":
    main()
