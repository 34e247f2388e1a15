"""One row per request, as JSON, over keep-alive connections: mmserver beside other model servers and hand-written ones.

python -m benchmarks.predict_peers [--smoke]

Before anything is measured, every server has to answer what XGBoost itself predicts.
"""

import argparse
import json
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.contest import Contender, Results, Rules, interleaved, print_results
from benchmarks.data_dirs import make_data_dir
from benchmarks.measuring import Goal, machine, print_goals
from benchmarks.peer_servers.contenders import BARE, Starting, bare, mmserver_alone, peers
from benchmarks.servers import SMOKE_OPTIONS
from benchmarks.subject import MODEL_NAME, Subject, make_subject

RULES = Rules(n_connections=(1, 8, 64), n_rounds=3, round_s=3.0)
SMOKE_RULES = Rules(n_connections=(8,), n_rounds=1, round_s=1.0, warm_up_s=0.0)
TOLERANCE = 1e-6
JUDGED_AT = (8, 64)
RATIOS = {
    "MLServer": 6.0,
    "BentoML": 10.0,
    "LitServe": 6.0,
    "MLflow": 12.0,
    "FastAPI, plain": 5.0,
    "FastAPI, tuned": 1.1,
    BARE: 0.9,
}
"""How many times the requests/s of each mmserver has to answer, one worker against one."""


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predict_peers", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round; only peers whose environments exist")
    is_smoke = parser.parse_args(arguments).smoke
    rules = SMOKE_RULES if is_smoke else RULES
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        subject = make_subject(work, is_small=is_smoke)
        contenders = list(_started(subject, work, stack, is_smoke=is_smoke))
        results = interleaved(contenders, rules)
    names = [contender.name for contender in contenders]
    tool = next(iter(results.values())).tool
    print(f"\n{machine()}; {tool}, {rules}; {subject.description}")
    print_results("One row per request", results, names, rules)
    print_goals(_goals(results, names, rules))


def _started(subject: Subject, work: Path, stack: ExitStack, *, is_smoke: bool) -> Iterator[Contender]:
    """Every server, running, and its answer checked."""
    subject.write_for_peers(work)
    make_data_dir(work / "registered", {MODEL_NAME: subject.artifacts})
    options = SMOKE_OPTIONS if is_smoke else ()
    for starting in (*mmserver_alone(*options), bare(), *peers(may_install=not is_smoke)):
        if starting.skipped:
            print(f"{starting.name} is left out: {starting.skipped}", file=sys.stderr, flush=True)
            continue
        directory = work / starting.name.replace(" ", "_").replace(",", "")
        directory.mkdir()
        shutil.copytree(work / "registered", directory / "data")
        server, asked = stack.enter_context(starting.start(subject, work, directory))
        contender = Contender(starting.name, server, asked)
        _check(contender, starting, float(subject.expected[0]))
        yield contender


def _check(contender: Contender, starting: Starting, expected: float) -> None:
    """Raises SystemExit where a server predicts something else."""
    asked = contender.asked
    request = urllib.request.Request(asked.url, asked.body, asked.headers, method=asked.method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    predicted = starting.predicted(json.loads(text))
    same = np.float32(predicted) == np.float32(expected)
    if not same and (starting.is_exact or abs(predicted - expected) > TOLERANCE):
        raise SystemExit(f"{contender.name} predicts {predicted!r}, XGBoost {expected!r}: {text[:300]!r}")


def _goals(results: Results, names: list[str], rules: Rules) -> Iterator[Goal]:
    def rate(name: str, n: int) -> float:
        return results[name, n].requests_per_s

    for name, at_least in RATIOS.items():
        for n in sorted({*JUDGED_AT} & {*rules.n_connections}):
            if name in names:
                what = f"one row, {n} connections, against {name}"
                yield Goal(what, rate("mmserver", n) / rate(name, n), at_least=at_least, unit="×")
    for n in sorted({*JUDGED_AT} & {*rules.n_connections}):
        two = rate("mmserver, 2 workers", n)
        yield Goal(f"two workers, {n} connections, against one", two / rate("mmserver", n), at_least=1.5, unit="×")
        if "FastAPI, tuned, 2 workers" in names:
            ratio = two / rate("FastAPI, tuned, 2 workers", n)
            yield Goal(f"two workers, {n} connections, against two of FastAPI, tuned", ratio, at_least=1, unit="×")
    most = max(rules.n_connections)
    for name in ("mmserver", "mmserver, 2 workers"):
        figures = results[name, most]
        what = f"{name}, {most} connections: p99 against p50"
        yield Goal(what, figures.p99_s / figures.p50_s, at_most=3, unit="×")


if __name__ == "__main__":
    main()
