"""How long an unchanged rescan takes beside a bare recursive scandir + stat of the same tree: `python benchmarks/scan_tree.py`."""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mmserver.watching.names import ArtifactNames
from mmserver.watching.scanning import Scan, scan_tree

SUFFIXES = ("_factors.txt", "_ic.csv", "_info.pkl", "_model.pkl", "_model.json")


def bare_walk(path: str) -> int:
    n_files = 0
    with os.scandir(path) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                n_files += bare_walk(entry.path)
            else:
                n_files += 1
    return n_files


def make_tree(root: Path, n_groups: int, n_directories: int) -> None:
    for i in range(n_groups):
        directory = root / f"part{i % n_directories:03}" if n_directories else root
        directory.mkdir(exist_ok=True)
        for suffix in SUFFIXES[:4]:
            (directory / f"SYM{i:05}_mid_chg_1m{suffix}").write_bytes(b"x")


def timed_ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def compare(root: Path, n_rounds: int, touched: Path | None) -> tuple[float, float]:
    names = ArtifactNames(SUFFIXES)
    previous: list[Scan] = [scan_tree(root, names, None, clock=time.monotonic)]

    def rescan() -> None:
        previous[0] = scan_tree(root, names, previous[0], clock=time.monotonic)

    bare_ms, rescan_ms = [], []
    for _ in range(n_rounds):
        bare_ms.append(timed_ms(lambda: bare_walk(str(root))))
        if touched is not None:
            touched.write_bytes(b"y")
        rescan_ms.append(timed_ms(rescan))
    return statistics.median(bare_ms), statistics.median(rescan_ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10_000, help="groups of four files each")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    for n_directories in (0, 100):
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            make_tree(root, arguments.groups, n_directories)
            one_file = next(path for path in root.rglob("*_model.pkl"))
            for label, touched in (("unchanged", None), ("one file changed", one_file)):
                bare_ms, rescan_ms = compare(root, arguments.rounds, touched)
                where = f"{n_directories} subdirectories" if n_directories else "one directory"
                ratio = rescan_ms / bare_ms
                print(f"{where}, {label}: bare {bare_ms:.1f} ms, rescan {rescan_ms:.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
