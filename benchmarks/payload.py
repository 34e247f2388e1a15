"""Requests/s for a wide model's payload by gzip, beside the bare bytes, JSON and gzip per request, and 304 answers.

python -m benchmarks.payload [--smoke]
"""

import argparse
import gzip
import json
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from benchmarks.contest import Contender, Results, Rules, interleaved, print_results
from benchmarks.generate import generate
from benchmarks.load import Asked
from benchmarks.measuring import Goal, machine, print_goals
from benchmarks.servers import free_port, mmserver, running

N_CONNECTIONS = 4
RULES = Rules((N_CONNECTIONS,), n_rounds=5, round_s=3.0)
SMOKE_RULES = Rules((N_CONNECTIONS,), n_rounds=1, round_s=1.0, warm_up_s=0.0)
GZIP = {"Accept-Encoding": "gzip"}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.payload", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round with a smaller model")
    is_smoke = parser.parse_args(arguments).smoke
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        generate(work / "artifacts", 1, "daily_5d" if is_smoke else "wide")
        contenders = _start(work, stack)
        rules = SMOKE_RULES if is_smoke else RULES
        results = interleaved(contenders, rules)
    _print(results, [contender.name for contender in contenders], rules)


def _start(work: Path, stack: ExitStack) -> list[Contender]:
    ours = stack.enter_context(mmserver(work / "data"))
    asked = {"model_name": "bench", "root_path": str(work / "artifacts")}
    register = urllib.request.Request(
        ours.url + "/api/models", json.dumps(asked).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(register, timeout=120) as answer:
        assert answer.status == 201
    path = "/api/models/bench/model/S00000USDT"
    with urllib.request.urlopen(urllib.request.Request(ours.url + path, headers=GZIP), timeout=60) as answer:
        body, etag = answer.read(), answer.headers["ETag"]
        assert answer.headers["Content-Encoding"] == "gzip"
    (work / "body.gz").write_bytes(body)
    print(f"payload: {len(body):,} bytes by gzip, {len(gzip.decompress(body)):,} plain", flush=True)
    peers = {}
    for kind in ("bare", "naive"):
        port = free_port()
        arguments = ["-m", "benchmarks.peers", kind, str(work / "body.gz"), str(port)]
        peers[kind] = stack.enter_context(running(arguments, port, "/", work / f"{kind}.log"))
    return [
        Contender("mmserver", ours, Asked(ours.url + path, GZIP)),
        Contender("bare waitress, same bytes", peers["bare"], Asked(peers["bare"].url, GZIP)),
        Contender("JSON + gzip per request", peers["naive"], Asked(peers["naive"].url, GZIP)),
        Contender("mmserver, 304", ours, Asked(ours.url + path, GZIP | {"If-None-Match": etag})),
    ]


def _print(results: Results, names: list[str], rules: Rules) -> None:
    ours, bare, naive, not_modified = (results[name, N_CONNECTIONS].requests_per_s for name in names)
    tool = results[names[0], N_CONNECTIONS].tool
    print(f"\n{machine()}; {tool}, {N_CONNECTIONS} connections, {rules}")
    print_results("Payload of a wide model by gzip", results, names, rules)
    print_goals(
        [
            Goal("payload by gzip, against bare waitress with the same bytes", ours / bare, at_least=0.8, unit="×"),
            Goal("… against JSON + gzip for every request", ours / naive, at_least=50, unit="×"),
            Goal("304, against mmserver's own 200", not_modified / ours, at_least=1.5, unit="×"),
        ]
    )


if __name__ == "__main__":
    main()
