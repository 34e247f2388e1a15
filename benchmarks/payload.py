"""Requests/s for a wide model's payload by gzip, beside the bare bytes, JSON and gzip per request, and 304 answers.

python -m benchmarks.payload [--smoke]
"""

import argparse
import gzip
import json
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.generate import generate
from benchmarks.load import Load, put_load
from benchmarks.measuring import cpu_s, machine, median, print_table
from benchmarks.servers import Server, free_port, mmserver, running

N_CONNECTIONS = 4
N_ROUNDS, ROUND_S = 5, 3.0
SMOKE_ROUNDS, SMOKE_ROUND_S = 1, 1.0
GZIP = {"Accept-Encoding": "gzip"}


@dataclass(frozen=True)
class Contender:
    """One thing to measure: where it is and what is asked."""

    name: str
    server: Server
    path: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Round:
    """One turn of one contender. Units: cpu_s_per_request in s of the server's process."""

    load: Load
    cpu_s_per_request: float


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.payload", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round with a smaller model")
    is_smoke = parser.parse_args(arguments).smoke
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        generate(work / "artifacts", 1, "daily_5d" if is_smoke else "wide")
        contenders = _start(work, stack)
        n_rounds, round_s = (SMOKE_ROUNDS, SMOKE_ROUND_S) if is_smoke else (N_ROUNDS, ROUND_S)
        rounds: dict[str, list[Round]] = {contender.name: [] for contender in contenders}
        for _ in range(n_rounds):
            for contender in contenders:
                rounds[contender.name].append(_measure(contender, round_s))
    _print(rounds, n_rounds, round_s)


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
        Contender("mmserver", ours, path, GZIP),
        Contender("bare waitress, same bytes", peers["bare"], "/", GZIP),
        Contender("JSON + gzip per request", peers["naive"], "/", GZIP),
        Contender("mmserver, 304", ours, path, GZIP | {"If-None-Match": etag}),
    ]


def _measure(contender: Contender, round_s: float) -> Round:
    before_s = cpu_s(contender.server.pid)
    url = contender.server.url + contender.path
    load = put_load(url, contender.headers, duration_s=round_s, n_connections=N_CONNECTIONS)
    if load.n_failed or not load.n_requests:
        raise SystemExit(f"{contender.name}: {load}")
    return Round(load, (cpu_s(contender.server.pid) - before_s) / load.n_requests)


def _print(rounds: dict[str, list[Round]], n_rounds: int, round_s: float) -> None:
    ours = median(r.load.requests_per_s for r in rounds["mmserver"])
    rows = []
    for name, measured in rounds.items():
        rate = median(r.load.requests_per_s for r in measured)
        p50 = median(r.load.p50_s for r in measured) * 1e3
        p99 = median(r.load.p99_s for r in measured) * 1e3
        cpu = median(r.cpu_s_per_request for r in measured) * 1e6
        rows.append((name, rate, p50, p99, cpu, rate / ours))
    tool = rounds["mmserver"][0].load.tool
    print(f"\n{machine()}; {tool}, {N_CONNECTIONS} connections, {n_rounds} interleaved rounds of {round_s:.0f} s")
    columns = ("server", "requests/s", "p50 ms", "p99 ms", "CPU µs/request", "× mmserver")
    print_table("Payload of a wide model by gzip", columns, rows)
    bare, naive, not_modified = (median(r.load.requests_per_s for r in rounds[name]) for name in list(rounds)[1:])
    goals = [
        ("mmserver / bare waitress", ours / bare, "≥ 0.8"),
        ("mmserver / JSON + gzip per request", ours / naive, "≥ 50"),
        ("304 / mmserver's own 200", not_modified / ours, "≥ 1.5"),
        ("304 / bare waitress with the body", not_modified / bare, "-"),
    ]
    print_table("Goals", ("ratio", "measured", "goal"), goals)


if __name__ == "__main__":
    main()
