"""One row in one process, without HTTP: through the engine, and through all of the prediction service; and golden rows, bit by bit.

python -m benchmarks.one_row [--smoke]
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.data_dirs import make_data_dir
from benchmarks.measuring import Goal, machine, print_goals, print_table
from benchmarks.servers import clean_environ
from benchmarks.subject import MODEL_NAME, make_subject, shared_artifacts

N_CALLS, SMOKE_CALLS = 20_000, 500
GOAL_ENGINE_US = 25.0


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.one_row", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few calls")
    is_smoke = parser.parse_args(arguments).smoke
    n_calls = SMOKE_CALLS if is_smoke else N_CALLS
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        subject = make_subject(work, is_small=is_smoke)
        golden = _golden_models(work / "golden")
        make_data_dir(work / "data", {MODEL_NAME: subject.artifacts} | golden)
        asked = {
            "data_dir": str(work / "data"),
            "model_name": MODEL_NAME,
            "symbol": subject.symbol,
            "features": subject.features,
            "expected": float(subject.expected[0]),
            "golden": {name: str(directory / "golden.json") for name, directory in golden.items()},
            "n_calls": n_calls,
        }
        (work / "asked.json").write_text(json.dumps(asked))
        command = [sys.executable, "-m", "benchmarks.one_row_calls", str(work / "asked.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environ())
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    print(f"\n{machine()}; {n_calls:,} calls each, in turns; {subject.description}")
    print_table(
        "One row in one process", ("what", "p50 µs", "p99 µs"), [(what, *us) for what, us in found["us"].items()]
    )
    print(f"\nof the heavy modules loaded: {', '.join(found['heavy']) or 'none'}")
    if golden:
        differ = [f"{name}: {n}" for name, n in found["differ"].items() if n]
        print(f"\n{len(golden)} golden files; rows that differ in any bit: {', '.join(differ) or 'none'}")
    else:
        print("\nthe golden rows are skipped: there are no shared artifacts here")
    goals = [
        Goal("one row through the engine: p50", found["us"]["the engine"][0], at_most=GOAL_ENGINE_US, unit="µs"),
        Goal("heavy modules (xgboost, onnxruntime, …) that predicting loads", len(found["heavy"]), at_most=0),
    ]
    if golden:
        n_rows = sum(found["differ"].values())
        goals.append(
            Goal(f"golden rows of {len(golden)} models that differ in any bit from their writer's", n_rows, at_most=0)
        )
    print_goals(goals)


def _golden_models(directory: Path) -> dict[str, Path]:
    """A directory for each group that has a golden file, with the group's files and `golden.json`, by model name."""
    shared, found = shared_artifacts(), {}
    for golden in sorted((shared / "golden").glob("*.json")) if shared else ():
        artifacts, _, group_key = golden.stem.partition("__")
        name = golden.stem.replace("__", ".")
        found[name] = directory / name
        found[name].mkdir(parents=True)
        shutil.copy(golden, found[name] / "golden.json")
        for path in (golden.parents[1] / artifacts).glob(f"{group_key}_*"):
            shutil.copy(path, found[name])
    return found


if __name__ == "__main__":
    main()
