"""A registry of ten thousand versions: how long a server with them takes to start, and what its calls cost.

python -m benchmarks.registry [--smoke]
"""

import argparse
import http.client
import json
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa

from benchmarks.generate import KINDS, group_files, make_template
from benchmarks.measuring import Goal, cpu_s, machine, percentile, print_goals, print_table
from benchmarks.servers import Server, mmserver, wait_until_idle
from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.conversion.reading import ModelReader
from mmserver.formats import ModelSource
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.stages import promote
from mmserver.settings import Settings
from mmserver.storage.database import Database

N_MODELS, N_VERSIONS, N_CALLS = 100, 100, 300
SMOKE_MODELS, SMOKE_VERSIONS, SMOKE_CALLS = 3, 4, 6
KIND, SMOKE_KIND = "daily_5d", "tiny"
MAX_CPU_MS, MAX_START_S = 5.0, 2.0
API = "/api/ml/registry/models"
OWN = "model_0000"
PROMOTE = "promote a version"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few versions and calls")
    is_smoke = parser.parse_args(arguments).smoke
    n_models, n_versions, n_calls = (
        (SMOKE_MODELS, SMOKE_VERSIONS, SMOKE_CALLS) if is_smoke else (N_MODELS, N_VERSIONS, N_CALLS)
    )
    with tempfile.TemporaryDirectory() as temporary:
        data_dir = Path(temporary) / "data"
        fill(data_dir, n_versions, SMOKE_KIND if is_smoke else KIND)
        promotions = calls_of(1, n_versions, n_calls)[PROMOTE]
        with mmserver(data_dir, environ={"MMSERVER_REGISTRY_DIR": str(Path(temporary) / "models")}) as server:
            if not is_smoke:
                wait_until_idle([server])
            with_directory = measured(server, f"{PROMOTE}, with the registry's directory", promotions)
        with open_store(Settings(data_dir=data_dir)) as store:
            copy_models(store.database, n_models)
        begun_s = time.perf_counter()
        with mmserver(data_dir) as server:
            start_s, start_cpu_s = time.perf_counter() - begun_s, cpu_s(server.pid)
            if not is_smoke:
                wait_until_idle([server])
            rows = [measured(server, what, calls) for what, calls in calls_of(n_models, n_versions, n_calls).items()]
    rows.append(with_directory)
    print(f"\n{machine()}; {n_models:,} models of {n_versions} versions, one connection, {n_calls} calls each")
    print_table("Calls of the registry", ("call", "CPU ms/call", "p50 ms", "p99 ms"), rows)
    goals = [Goal(f"{what}, CPU of the server", cpu_ms, at_most=MAX_CPU_MS, unit="ms") for what, cpu_ms, _, _ in rows]
    goals.append(Goal("from its start to its first answer", start_s, at_most=MAX_START_S, unit="s"))
    goals.append(Goal("processor time until then", start_cpu_s, unit="s"))
    print_goals(goals)


def fill(data_dir: Path, n_versions: int, kind: str) -> None:
    """Register the versions of one model, each with its own trees."""
    template = make_template(KINDS[kind])
    by = Actor("benchmarks", None)
    with open_store(Settings(data_dir=data_dir)) as store:
        reader = ModelReader(store.settings, store.plugins)
        try:
            for number in range(n_versions):
                content = group_files(template, "ALL", number)["_model.pkl"]
                source = ModelSource(file_name="model.pkl", files={"model.pkl": content})
                new = NewVersion(
                    model_name=OWN, label=f"1.{number}.0", source=source, factors=tuple(template.factors),
                    metrics={"accuracy": 0.5 + number / 1000, "sharpe": 1.5}, training_params={"eta": 0.05, "depth": 6},
                    tags={"desk": "futures"}, description="one of many",
                )  # fmt: skip
                register_version(store, reader, new, by)
        finally:
            reader.close()
        promote(store, OWN, "1.0.0", by)


def copy_models(database: Database, n_models: int) -> None:
    """As many models as there shall be, by copying every row of the first, with groups of their own: reading all of them would
    take an hour.
    """
    tables = sa.MetaData()
    names = ["models", "versions", "registered_versions", "groups", "group_files", "memberships", "servings", "stages",
             "promotions"]  # fmt: skip
    with database.write() as connection:
        tables.reflect(connection, only=names)
        rows = {
            name: [dict(row._mapping) for row in connection.execute(sa.select(tables.tables[name]))] for name in names
        }
        for number in range(1, n_models):
            step = number * 1_000_000
            for name in names:
                copies = [_copy(name, row, step, f"model_{number:04d}") for row in rows[name]]
                connection.execute(tables.tables[name].insert(), copies)


def _copy(table: str, row: dict[str, object], step: int, model_name: str) -> dict[str, object]:
    ids = {key: value + step for key, value in row.items()
           if (key == "id" or key.endswith("_id")) and isinstance(value, int)}  # fmt: skip
    copied = {**row, **ids}
    if table == "models":
        copied["name"] = model_name
    if table == "groups":
        copied["sha256"] = f"{step}:{row['sha256']}"
    return copied


def calls_of(n_models: int, n_versions: int, n_calls: int) -> dict[str, list[tuple[str, str]]]:
    """Method and path of each call, by what is measured."""
    at = [(number % n_models, number % n_versions) for number in range(n_calls)]
    return {
        "list the models": [("GET", f"{API}?limit=100")] * n_calls,
        "list a model's versions": [("GET", f"{API}/model_{model:04d}") for model, _ in at],
        "get a version": [("GET", f"{API}/model_{model:04d}/1.{version}.0") for model, version in at],
        PROMOTE: [("POST", f"{API}/model_{model:04d}/1.{version}.0/promote") for model, version in at],
    }


def measured(server: Server, what: str, calls: list[tuple[str, str]]) -> tuple[str, float, float, float]:
    """What it is, the server's processor time a call, and the median and 99th percentile of what a client waits, in ms."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    ask(connection, *calls[0])
    took_s = []
    before_s = cpu_s(server.pid)
    for method, path in calls:
        begun_s = time.perf_counter()
        ask(connection, method, path)
        took_s.append(time.perf_counter() - begun_s)
    used_s = cpu_s(server.pid) - before_s
    connection.close()
    return what, 1e3 * used_s / len(calls), 1e3 * percentile(took_s, 0.5), 1e3 * percentile(took_s, 0.99)


def ask(connection: http.client.HTTPConnection, method: str, path: str) -> None:
    """One call, which has to succeed."""
    connection.request(method, path, headers={"Content-Length": "0"} if method == "POST" else {})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{method} {path}: {answer.status} {body[:500]!r}")
    json.loads(body)


if __name__ == "__main__":
    main()
