"""Servers side by side: the same load on each in turn, round by round, so that what else the machine does hits all of them."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.load import Asked, Load, put_load
from benchmarks.measuring import cpu_s, median, print_table
from benchmarks.servers import Server, wait_until_idle


@dataclass(frozen=True)
class Contender:
    """One thing to measure: which server, and what it is asked."""

    name: str
    server: Server
    asked: Asked


@dataclass(frozen=True)
class Figures:
    """Medians of one contender's rounds. Units: cpu_s_per_request in s of all the server's processes."""

    tool: str
    requests_per_s: float
    p50_s: float
    p99_s: float
    cpu_s_per_request: float


@dataclass(frozen=True)
class Rules:
    """How long, how often, and over how many connections."""

    n_connections: tuple[int, ...]
    n_rounds: int
    round_s: float
    warm_up_s: float = 1.0

    def __str__(self) -> str:
        return f"{self.n_rounds} interleaved rounds of {self.round_s:.0f} s"


Results = Mapping[tuple[str, int], Figures]
"""By contender's name and number of connections."""


def interleaved(contenders: Sequence[Contender], rules: Rules) -> Results:
    """All rounds, after each has warmed up.

    Raises:
        SystemExit: a server refused a request or broke a connection; its rate would mean nothing.
    """
    if rules.warm_up_s:
        wait_until_idle(contender.server for contender in contenders)
        for contender in contenders:
            _round(contender, max(rules.n_connections), rules.warm_up_s)
    found: dict[tuple[str, int], list[tuple[Load, float]]] = defaultdict(list)
    for number in range(rules.n_rounds):
        for n_connections in rules.n_connections:
            print(f"round {number + 1} of {rules.n_rounds}, {n_connections} connections", file=sys.stderr, flush=True)
            for contender in contenders:
                found[contender.name, n_connections].append(_round(contender, n_connections, rules.round_s))
    return {key: _figures(rounds) for key, rounds in found.items()}


def _round(contender: Contender, n_connections: int, round_s: float) -> tuple[Load, float]:
    before_s = cpu_s(contender.server.pid)
    load = put_load(contender.asked, duration_s=round_s, n_connections=n_connections)
    if load.n_failed or not load.n_requests:
        raise SystemExit(f"{contender.name}, {n_connections} connections: {load}")
    return load, (cpu_s(contender.server.pid) - before_s) / load.n_requests


def _figures(rounds: Sequence[tuple[Load, float]]) -> Figures:
    loads = [load for load, _ in rounds]
    return Figures(
        tool=loads[0].tool,
        requests_per_s=median(load.requests_per_s for load in loads),
        p50_s=median(load.p50_s for load in loads),
        p99_s=median(load.p99_s for load in loads),
        cpu_s_per_request=median(cpu for _, cpu in rounds),
    )


def print_results(title: str, results: Results, names: Iterable[str], rules: Rules) -> None:
    """One table: a row for each contender, four columns for each number of connections."""
    columns = ["server"]
    for n in rules.n_connections:
        first = f"{n} connection{'s' * (n > 1)}: requests/s" if len(rules.n_connections) > 1 else "requests/s"
        columns += [first, "p50 ms", "p99 ms", "CPU µs/request"]
    rows = []
    for name in names:
        row: list[object] = [name]
        for n in rules.n_connections:
            figures = results[name, n]
            row += [figures.requests_per_s, figures.p50_s * 1e3, figures.p99_s * 1e3, figures.cpu_s_per_request * 1e6]
        rows.append(row)
    print_table(title, columns, rows)
