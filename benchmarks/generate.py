"""Artifact directories of any size: one real model is trained, and every group gets its leaves with other values.

python -m benchmarks.generate DIR --groups 10000 --kind tiny
"""

import argparse
import pickle
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Kind:
    """The size of one group's model."""

    n_factors: int
    n_rows: int
    n_trees: int
    max_depth: int


KINDS = {
    "tiny": Kind(n_factors=6, n_rows=400, n_trees=4, max_depth=2),
    "daily_5d": Kind(n_factors=27, n_rows=3475, n_trees=120, max_depth=4),
    "wide": Kind(n_factors=110, n_rows=6500, n_trees=300, max_depth=6),
}
IC_COLUMNS = ("factor", "ic", "rank_ic", "kendall_tau", "p_value", "n")
CHILDREN = re.compile(rb"left_children\[\$l#L(.{8})", re.DOTALL)
SPLITS = re.compile(rb"split_conditions\[\$d#L(.{8})", re.DOTALL)


@dataclass(frozen=True)
class Template:
    """One trained model, and where in its pickle the values of the leaves are.

    Shapes:
        model: the pickle's bytes. leaf_offsets: n_leaves; each is the first of four bytes, a big-endian float32.
    """

    factors: list[str]
    model: npt.NDArray[np.uint8]
    leaf_offsets: npt.NDArray[np.intp]
    info: dict[str, Any]


def make_template(kind: Kind) -> Template:
    """Train one model of that size on seeded noise with a weak signal in it."""
    from xgboost import XGBRegressor

    random = np.random.default_rng(7)
    inputs = random.normal(size=(kind.n_rows, kind.n_factors)).astype(np.float32)
    returns = 0.02 * random.normal(size=kind.n_rows) + 0.002 * inputs[:, 0] * inputs[:, 1]
    params = {"n_estimators": kind.n_trees, "max_depth": kind.max_depth, "learning_rate": 0.05, "n_jobs": 1}
    model = XGBRegressor(**params, random_state=7)
    model.fit(inputs, returns)
    pickled = pickle.dumps(model, protocol=4)
    info = {"dim": kind.n_factors, "train_start": "1999-10-18", "train_end": "2013-08-09", "params": params}
    factors = [f"factor_{i}" for i in range(kind.n_factors)]
    return Template(factors, np.frombuffer(pickled, np.uint8), _leaf_offsets(pickled), info)


def _leaf_offsets(pickled: bytes) -> npt.NDArray[np.intp]:
    """Where the leaves' values are: the split_conditions of nodes without children, in XGBoost's UBJSON."""
    found = []
    for children, splits in zip(CHILDREN.finditer(pickled), SPLITS.finditer(pickled), strict=True):
        n_nodes = int.from_bytes(children[1], "big")
        left = np.frombuffer(pickled, ">i4", n_nodes, children.end())
        found.append(splits.end() + 4 * np.flatnonzero(left == -1))
    return np.concatenate(found)


def group_files(template: Template, symbol: str, seed: int) -> dict[str, bytes]:
    """The four files of one group, by suffix; another seed gives another model, IC table and info."""
    random = np.random.default_rng(seed)
    places = template.leaf_offsets[:, None] + np.arange(4)
    leaves = np.ascontiguousarray(template.model[places]).view(">f4")
    model = template.model.copy()
    model[places] = (leaves * (1 + 0.05 * random.normal(size=leaves.shape))).astype(">f4").view(np.uint8)
    table = random.uniform(-0.1, 0.1, size=(len(template.factors), 4)).round(9).tolist()
    rows = (f"{name},{a},{b},{c},{abs(d)},4344" for name, (a, b, c, d) in zip(template.factors, table, strict=True))
    samples = int(random.integers(1000, 9000))
    info = template.info | {"symbol": symbol, "train_samples": samples, "metrics": {"ic": table[0][0]}}
    return {
        "_factors.txt": "\n".join([*template.factors, ""]).encode(),
        "_ic.csv": "\n".join([",".join(IC_COLUMNS), *rows, ""]).encode(),
        "_info.pkl": pickle.dumps(info, protocol=4),
        "_model.pkl": model.tobytes(),
    }


def write_group(directory: Path, template: Template, index: int, seed: int | None = None) -> str:
    """Write group number `index`, over an older one if there is one, and return its key."""
    symbol = f"S{index:05d}USDT"
    key = f"{symbol}_ret_5d"
    for suffix, content in group_files(template, symbol, index if seed is None else seed).items():
        beside = directory / f".{key}{suffix}.tmp-new"
        beside.write_bytes(content)
        beside.replace(directory / f"{key}{suffix}")
    return key


def generate(directory: Path, n_groups: int, kind: str) -> Template:
    """Write `n_groups` groups into the directory, and return what they were made from."""
    directory.mkdir(parents=True, exist_ok=True)
    template = make_template(KINDS[kind])
    for index in range(n_groups):
        write_group(directory, template, index)
    return template


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--kind", choices=KINDS, default="daily_5d")
    given = parser.parse_args()
    started = time.perf_counter()
    generate(given.directory, given.groups, given.kind)
    print(f"{given.groups} groups of kind {given.kind} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
