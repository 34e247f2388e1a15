"""Processor time of `create_app()` on an existing database, beside importing the libraries that it stands on.

python -m benchmarks.startup [--smoke]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.generate import generate
from benchmarks.measuring import Goal, machine, median, print_goals, print_table
from benchmarks.servers import clean_environ

N_ROUNDS, SMOKE_ROUNDS = 15, 2
N_GROUPS, SMOKE_GROUPS = 100, 3
HEAVY = ("xgboost", "onnxruntime", "scipy", "pandas", "sklearn", "torch", "matplotlib", "statsmodels", "arch")
END = f"""
import json, sys, time
print(json.dumps([time.process_time(), [name for name in {HEAVY!r} if name in sys.modules], len(sys.modules)]))
"""
BARE = "import flask, sqlalchemy, numpy, msgspec, pluggy" + END
OURS = """
import sys
from pathlib import Path
from mmserver.app import create_app
from mmserver.settings import Settings
app = create_app(Settings(data_dir=Path(sys.argv[1])))
"""
LEAVE = "\nsys.stdout.flush()\nimport os\nos._exit(0)\n"
"""Without waiting for the threads that the app started."""
CODE = {"bare imports": BARE, "create_app()": OURS + END + LEAVE}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="two rounds on a small database")
    is_smoke = parser.parse_args(arguments).smoke
    n_rounds = SMOKE_ROUNDS if is_smoke else N_ROUNDS
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        generate(work / "artifacts", SMOKE_GROUPS if is_smoke else N_GROUPS, "tiny")
        add_model(work / "data", work / "artifacts")
        cpu_s: dict[str, list[float]] = {name: [] for name in CODE}
        heavy: list[str] = []
        n_modules = {name: _run(code, work)[2] for name, code in CODE.items()}
        for _ in range(n_rounds):
            for name, code in CODE.items():
                used_s, found, n_modules[name] = _run(code, work)
                cpu_s[name].append(used_s)
                heavy += found if code != BARE else []
    bare_s, ours_s = (median(values) for values in cpu_s.values())
    print(f"\n{machine()}; medians of {n_rounds} interleaved runs")
    rows = [(name, median(v) * 1e3, min(v) * 1e3, max(v) * 1e3, n_modules[name]) for name, v in cpu_s.items()]
    print_table("Start", ("what", "CPU ms, median", "least", "most", "modules"), rows)
    print(f"\nof the heavy modules loaded: {', '.join(sorted(set(heavy))) or 'none'}")
    print_goals(
        [
            Goal("`create_app()`, against bare imports", ours_s / bare_s, at_most=1.5, unit="×"),
            Goal(f"heavy modules ({', '.join(HEAVY[:4])}, …) that it loads", len(set(heavy)), at_most=0),
        ]
    )


def add_model(data_dir: Path, artifacts: Path) -> None:
    """Register the directory as model `bench`, by the command line."""
    call = "from mmserver.cli.main import main; main(prog_name='mmserver')"
    command = [sys.executable, "-c", call, "models", "add", "bench", str(artifacts), "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environ())
    if done.returncode:
        raise SystemExit(f"mmserver models add: {done.returncode}\n{done.stdout}{done.stderr}")


def _run(code: str, work: Path) -> tuple[float, list[str], int]:
    """Run it with compiled modules, as an installed package has them; the first run compiles."""
    environ = clean_environ() | {"PYTHONPYCACHEPREFIX": str(work / "pycache")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", code, str(work / "data")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if done.returncode:
        raise SystemExit(done.stderr)
    used_s, heavy, n_modules = json.loads(done.stdout.splitlines()[-1])
    return used_s, heavy, n_modules


if __name__ == "__main__":
    main()
