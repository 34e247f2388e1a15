"""`mmserver bench`: how fast one model predicts here: the engine alone, a whole prediction, and over HTTP.

The rows are the model's own probe rows, which every download of the model carries too; nothing is made up.
"""

import contextlib
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import click

from mmserver.cli.load_generator import STUCK_S, WARM_UP_S, percentiles
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows, shown
from mmserver.errors import GroupHasNoModel, RequestInvalid, SymbolAmbiguous
from mmserver.settings import CONFIG_FILE_NAME, Settings

if TYPE_CHECKING:
    from mmserver.catalog.catalog import Group
    from mmserver.catalog.store import Store
    from mmserver.serving.predictions import Resolved, Serving

COLUMNS = ("what", "rows", "connections", "p50_us", "p99_us", "calls_per_s", "rows_per_s")
CONNECTIONS = (1, 8, 64)
BATCH_ROWS = 256
START_S = 30.0
NOTE = (
    "Over HTTP each connection sends one row, waits for the answer, and sends the next. The load generator is Python and shares "
    "this machine's processors with the server: what is shown is what both reach together."
)
OF_ITS_OWN = {"MMSERVER_PROBE_PORT": "0", "MMSERVER_TRUSTED_HOSTS": "127.0.0.1", "MMSERVER_AUTH": "off"}
"""What the copy cannot have as the server beside it has it: a port, the name that it is called by, and keys that nobody here has."""
Rows: TypeAlias = list[list[float | None]]
Subject: TypeAlias = dict[str, Any]
Line: TypeAlias = dict[str, Any]


class NotMeasured(click.ClickException):
    """A server is not there, or gives no predictions; the exit code is that of the same refusal without HTTP."""

    def __init__(self, message: str, status: int = 503) -> None:
        super().__init__(message)
        self._status = status

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        """What the command ends with."""
        return {404: 4, 410: 4}.get(self._status, 5 if self._status >= 500 else 2)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it as every refusal is printed."""
        click.echo(f"mmserver: {shown(self.message)}", file=file, err=True)


@click.command()
@click.argument("model")
@click.option("--symbol", help="Needed where the model has several.")
@click.option("--version", metavar="LABEL", help="Another version than the one that is served.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.1, 3600),
    default=3.0,
    show_default=True,
    help="How long each line is measured.",
)
@click.option("--url", help="Measure this running server, over HTTP alone, instead of the data directory's models.")
@with_settings("plugins_dir")
@json_option
def bench(
    settings: Settings,
    *,
    model: str,
    symbol: str | None,
    version: str | None,
    seconds: float,
    url: str | None,
    as_json: bool,
) -> None:
    """Measure how fast MODEL predicts: the engine alone, a whole prediction, and over HTTP.

    The server that is measured is started for it, on a copy of the state, and ends with it.
    """
    if url is not None:
        if urllib.parse.urlsplit(url).scheme != "http":
            raise RequestInvalid(f"{url}: only http://HOST:PORT can be measured")
        subject, lines = _of_server(url.rstrip("/"), model, symbol, version, seconds)
    else:
        subject, lines = _of_state(settings, model, symbol, version, seconds)
    machine = f"{os.cpu_count()} processors, {platform.python_implementation()} {platform.python_version()}"
    if as_json:
        print_json({**subject, "machine": machine, "note": NOTE, "items": lines})
        return
    click.echo(shown(" ".join(f"{name}={value}" for name, value in subject.items())))
    print_rows(lines, COLUMNS, as_json=False)
    click.echo(f"{NOTE} ({machine})", err=True)


def _of_state(
    settings: Settings, model: str, symbol: str | None, version: str | None, seconds: float
) -> tuple[Subject, list[Line]]:
    """Measure a model of the data directory, in this process and then in a server."""
    from mmserver.catalog.opening import open_store
    from mmserver.serving.predictions import Serving

    with open_store(settings, owns_data_dir=False) as store:
        serving = Serving(store)
        resolved = _resolved(serving, model, symbol, version)
        rows = _probe_rows(store, resolved.group)
        subject = {
            "model_name": resolved.version.model_name,
            "version": resolved.version.label,
            "symbol": resolved.group.symbol,
            "dim": resolved.group.dim,
            "engine": serving.predictors.get(resolved.group).engine.name,
        }
        lines = list(_in_process(serving, resolved, rows, seconds))
        with _server_on_a_copy(store) as url:
            lines += _over_http(url, _bodies(subject, rows), seconds)
    return subject, lines


def _resolved(serving: "Serving", model: str, symbol: str | None, version: str | None) -> "Resolved":
    try:
        return serving.resolve(symbol, model, version)
    except SymbolAmbiguous as error:
        if symbol is not None:
            raise
        listed = error.values["group_keys"]
        raise RequestInvalid(f"{model} has several symbols, in {listed}; name one with --symbol") from error


def _of_server(
    url: str, model: str, symbol: str | None, version: str | None, seconds: float
) -> tuple[Subject, list[Line]]:
    """Measure a model of a server that runs already."""
    if symbol is None:
        listed = _get(f"{url}/api/models/{_quoted(model)}/symbols", version)["symbols"]
        if len(listed) != 1:
            raise RequestInvalid(f"{model} has {len(listed)} symbols; name one with --symbol")
        symbol = str(listed[0]["symbol"])
    manifest = _get(f"{url}/api/models/{_quoted(model)}/model/{_quoted(symbol)}", version, format="manifest")
    rows = manifest["golden"]["rows"]
    subject = {
        "model_name": manifest["model_name"],
        "version": manifest["version"],
        "symbol": manifest["symbol"],
        "dim": len(manifest["feature_order"]),
    }
    return subject, list(_over_http(url, _bodies(subject, rows), seconds))


# --- in this process --------------------------------------------------------------------------------------------------


def _probe_rows(store: "Store", group: "Group") -> Rows:
    from mmserver.storage.blobs import get_blob

    if group.manifest_sha256 is None:
        raise GroupHasNoModel(group_key=group.group_key, reason="it has no probe rows to measure with")
    with store.database.read() as connection:
        rows: Rows = json.loads(get_blob(connection, group.manifest_sha256))["golden"]["rows"]
    return rows


def _in_process(serving: "Serving", resolved: "Resolved", rows: Rows, seconds: float) -> Iterator[Line]:
    import numpy as np

    from mmserver.serving.predictions import Asked

    group, label = resolved.group, resolved.version.label
    engine = serving.predictors.get(group).engine
    singles = [np.array([row], np.float32) for row in rows]
    batch = np.resize(np.array(rows, np.float32), (BATCH_ROWS, group.dim))
    asked = [Asked(group.symbol, row, model_name=resolved.version.model_name, version=label) for row in rows]
    yield _measured("engine", 1, [partial(engine.predict, single) for single in singles], seconds)
    yield _measured("prediction", 1, [partial(serving.predict, one) for one in asked], seconds)
    yield _measured("engine", BATCH_ROWS, [partial(engine.predict, batch)], seconds)
    many = [asked[at % len(asked)] for at in range(BATCH_ROWS)]
    yield _measured("predictions", BATCH_ROWS, [partial(serving.predict_many, many)], seconds)


def _measured(what: str, n_rows: int, calls: Sequence[Callable[[], object]], seconds: float) -> Line:
    """Call one after another, over and over, for that long."""
    _timed(calls, WARM_UP_S)
    began = time.perf_counter()
    latencies = _timed(calls, seconds)
    result = {"n_calls": len(latencies), "seconds": time.perf_counter() - began, **percentiles(latencies)}
    return _line(what, n_rows, None, result)


def _timed(calls: Sequence[Callable[[], object]], seconds: float) -> list[float]:
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    for call in itertools.cycle(calls):
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        latencies.append(ended - began)
        if ended >= until:
            break
    return latencies


def _line(what: str, n_rows: int, n_connections: int | None, result: dict[str, Any]) -> Line:
    calls_per_s = result["n_calls"] / result["seconds"]
    return {
        "what": what,
        "rows": n_rows,
        "connections": n_connections,
        "p50_us": round(result["p50_us"], 1),
        "p99_us": round(result["p99_us"], 1),
        "calls_per_s": round(calls_per_s),
        "rows_per_s": round(calls_per_s * n_rows),
    }


# --- over HTTP --------------------------------------------------------------------------------------------------------


def _bodies(subject: Subject, rows: Rows) -> list[str]:
    """One request a probe row."""
    named = {
        "symbol": subject["symbol"],
        "model_name": subject["model_name"],
        "model_version": subject["version"],
    }
    return [json.dumps({**named, "features": row}) for row in rows]


def _over_http(url: str, bodies: list[str], seconds: float) -> Iterator[Line]:
    """The same requests over a few connections and over many, from another process."""
    parts = urllib.parse.urlsplit(url)
    plan = {
        "address": parts.hostname,
        "port": parts.port or 80,
        "host": parts.netloc.rpartition("@")[2],
        "path": f"{parts.path}/predict",
        "authorization": _authorization(),
        "bodies": bodies,
        "seconds": seconds,
    }
    for n_connections in CONNECTIONS:
        result = _generated({**plan, "n_connections": n_connections}, seconds)
        yield _line("POST /predict", 1, n_connections, result)


def _generated(plan: dict[str, Any], seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "mmserver.cli.load_generator"]
    done = subprocess.run(  # noqa: S603
        command, input=json.dumps(plan), capture_output=True, text=True, timeout=seconds + 2 * STUCK_S, check=False
    )
    if done.returncode != 0:
        raise click.ClickException(shown((done.stderr.strip().splitlines() or ["the load generator died"])[-1]))
    result: dict[str, Any] = json.loads(done.stdout)
    if "error" in result:
        raise NotMeasured(result["error"])
    return result


@contextlib.contextmanager
def _server_on_a_copy(store: "Store") -> Iterator[str]:
    """A server on a snapshot of the state, with the settings that a server here would have; yields its address."""
    from mmserver.storage.snapshots import create_snapshot

    settings = store.settings
    with tempfile.TemporaryDirectory(prefix="mmserver-bench-") as name:
        place = Path(name)
        snapshot = settings.snapshot or create_snapshot(store.database, place, datetime.now(UTC)).path
        port = _free_port()
        command = [
            sys.executable,
            "-c",
            "from mmserver.cli.main import main; main()",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--data-dir", name, "--snapshot", str(snapshot)]
        config = settings.data_dir / CONFIG_FILE_NAME
        given = click.get_current_context().params.get("config")
        if given is not None or config.is_file():
            command += ["--config", str(given or config)]
        with (
            (place / "log").open("w+") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **OF_ITS_OWN}) as process,  # noqa: S603
        ):
            try:
                _wait_for(process, port)
                yield f"http://127.0.0.1:{port}"
            except NotMeasured as error:
                told = (place / "log").read_text(errors="replace")[-500:].strip()
                raise NotMeasured(f"{error.message}; the server's log ends with: {told}") from error
            finally:
                process.terminate()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise NotMeasured("the server did not start")


def _get(url: str, version: str | None, **query: str) -> Any:
    import httpx

    try:
        asked = {**query, **({"version": version} if version else {})}
        headers = {"Authorization": _authorization()} if _authorization() else {}
        answer = httpx.get(url, params=asked, headers=headers, timeout=STUCK_S)
        document = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise NotMeasured(f"{url}: {error}") from error
    if answer.status_code != httpx.codes.OK:
        detail = document.get("detail") if isinstance(document, dict) else None
        raise NotMeasured(f"{url}: {detail or answer.status_code}", answer.status_code)
    return document


def _authorization() -> str:
    """What says who is asking, as the client has it; empty where no key is given."""
    key = os.environ.get("MMSERVER_API_KEY")
    return f"Bearer {key}" if key else ""


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")
