"""How each server is started and asked, so that all of them do the same work: one row of one model in, one number out.

The peers get what is kindest to them: one OpenMP thread (two get in each other's way on two cores), no access log, XGBoost's
fastest call where the code is ours, and a body with nothing in it but what they need.
"""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import environments
from benchmarks.load import Asked
from benchmarks.servers import Server, free_port, mmserver, running
from benchmarks.subject import MODEL_NAME, Subject

HERE = Path(__file__).resolve().parent
BARE = "bare waitress, same engine"
JSON = {"Content-Type": "application/json"}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

Started: TypeAlias = tuple[Server, Asked]
Start: TypeAlias = Callable[[Subject, Path, Path], AbstractContextManager[Started]]
"""Called with the subject, the directory with the model's files, and a directory for the server itself."""


@dataclass(frozen=True)
class Starting:
    """One server that is not started yet; `predicted` finds the number in its answer, `is_exact` asks for every bit of it."""

    name: str
    start: Start
    predicted: Callable[[Any], float]
    is_exact: bool = False
    skipped: str = ""


def mmserver_alone(*always: str) -> Iterator[Starting]:
    """mmserver as it is installed, with two workers, and with a thread for each prediction; all of them with these options."""

    def start(*options: str, environ: Mapping[str, str] | None = None) -> Start:
        @contextmanager
        def started(subject: Subject, models: Path, directory: Path) -> Iterator[Started]:
            body = {"symbol": subject.symbol, "model_name": MODEL_NAME, "features": subject.features}
            with mmserver(directory / "data", *always, *options, environ=environ) as server:
                yield server, _post(server, "/predict", body)

        return started

    def predicted(answer: Any) -> float:
        return float(answer["prediction"]["expected_return"])

    yield Starting("mmserver", start(), predicted, is_exact=True)
    yield Starting("mmserver, 2 workers", start("--workers", "2"), predicted, is_exact=True)
    yield Starting("mmserver, not inline", start(environ={"MMSERVER_INLINE": "false"}), predicted, is_exact=True)


def bare() -> Starting:
    """The least that a WSGI application can do with the same engine, in the same I/O thread."""

    @contextmanager
    def started(subject: Subject, models: Path, directory: Path) -> Iterator[Started]:
        port = free_port()
        arguments = ["-m", "benchmarks.peer_servers.bare_waitress", str(models / "model.msgpack"), str(port)]
        with running(arguments, port, "/", directory / "log") as server:
            yield server, _post(server, "/predict", _plain_body(subject))

    return Starting(BARE, started, _prediction, is_exact=True)


def peers(*, may_install: bool) -> Iterator[Starting]:
    """Those whose environment is there, or may be made."""
    for name, environment, start, predicted in (
        ("MLServer", "mlserver", _mlserver, lambda answer: answer["outputs"][0]["data"][0]),
        ("BentoML", "bentoml", _bentoml, lambda answer: answer),
        ("LitServe", "litserve", _litserve, _prediction),
        ("MLflow", "mlflow", _mlflow, lambda answer: answer["predictions"][0]),
        ("FastAPI, plain", "fastapi", _fastapi("fastapi_plain", "model.json", 1), _prediction),
        ("FastAPI, tuned", "fastapi", _fastapi("fastapi_tuned", "model.msgpack", 1), _prediction),
        ("FastAPI, tuned, 2 workers", "fastapi", _fastapi("fastapi_tuned", "model.msgpack", 2), _prediction),
    ):
        is_there = environments.python_of(environment, may_install=may_install)
        skipped = "" if is_there else f"no environment {environments.directory() / environment}"
        yield Starting(name, start, predicted, is_exact="tuned" in name, skipped=skipped)


def _post(server: Server, path: str, body: object) -> Asked:
    return Asked(server.url + path, JSON, "POST", json.dumps(body).encode())


def _plain_body(subject: Subject) -> object:
    return {"symbol": subject.symbol, "features": subject.features}


def _prediction(answer: Any) -> float:
    return float(answer["prediction"])


def _python(environment: str) -> Path:
    python = environments.python_of(environment, may_install=False)
    assert python
    return python


@contextmanager
def _mlserver(subject: Subject, models: Path, directory: Path) -> Iterator[Started]:
    port = free_port()
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings |= {"parallel_workers": 0, "debug": False}
    (directory / "settings.json").write_text(json.dumps(settings))
    model = {"name": "bench", "implementation": "mlserver_xgboost.XGBoostModel"}
    model["parameters"] = {"uri": str(models / "model.json")}  # type: ignore[assignment]
    (directory / "model-settings.json").write_text(json.dumps(model))
    python = _python("mlserver")
    arguments = [str(python.parent / "mlserver"), "start", str(directory)]
    row = {"name": "features", "shape": [1, len(subject.features)], "datatype": "FP32", "data": subject.features}
    ready = "/v2/models/bench/ready"
    with running(arguments, port, ready, directory / "log", python=python, environ=ONE_THREAD) as server:
        yield server, _post(server, "/v2/models/bench/infer", {"inputs": [row]})


@contextmanager
def _bentoml(subject: Subject, models: Path, directory: Path) -> Iterator[Started]:
    port = free_port()
    arguments = ["-m", "bentoml", "serve", "bentoml_service:Predictor", "--host", "127.0.0.1", "--port", str(port)]
    environ = ONE_THREAD | {"BENCH_MODEL": str(models / "model.json"), "BENTOML_HOME": str(directory)}
    environ |= {"BENTOML_DO_NOT_TRACK": "True"}
    arguments += ["--working-dir", str(HERE)]
    python = _python("bentoml")
    with running(arguments, port, "/readyz", directory / "log", python=python, environ=environ) as server:
        yield server, _post(server, "/predict", {"features": subject.features})


@contextmanager
def _litserve(subject: Subject, models: Path, directory: Path) -> Iterator[Started]:
    port = free_port()
    arguments = [str(HERE / "litserve_server.py"), str(models / "model.json"), str(port)]
    python = _python("litserve")
    with running(arguments, port, "/health", directory / "log", python=python, environ=ONE_THREAD) as server:
        yield server, _post(server, "/predict", _plain_body(subject))


@contextmanager
def _mlflow(subject: Subject, models: Path, directory: Path) -> Iterator[Started]:
    port = free_port()
    python = _python("mlflow")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": str(directory)}
    saving = [str(python), str(HERE / "save_mlflow.py"), str(models / "model.json"), str(directory / "model")]
    with (directory / "log").open("ab") as log:
        subprocess.run(saving, check=True, stdout=log, stderr=log, timeout=300, env=quiet)
    # what `mlflow models serve` runs
    arguments = ["-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--no-access-log"]
    arguments.append("mlflow.pyfunc.scoring_server.app:app")
    environ = ONE_THREAD | quiet | {"__pyfunc_model_path__": str(directory / "model")}
    with running(arguments, port, "/ping", directory / "log", python=python, environ=environ) as server:
        yield server, _post(server, "/invocations", {"inputs": [subject.features]})


def _fastapi(module: str, model: str, n_workers: int) -> Start:
    @contextmanager
    def started(subject: Subject, models: Path, directory: Path) -> Iterator[Started]:
        port = free_port()
        arguments = ["-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port), "--workers", str(n_workers)]
        arguments += ["--no-access-log", "--log-level", "warning", "--app-dir", str(HERE), f"{module}:app"]
        environ = ONE_THREAD | {"BENCH_MODEL": str(models / model), "PYTHONPATH": str(HERE.parents[1])}
        python = _python("fastapi")
        with running(arguments, port, "/ready", directory / "log", python=python, environ=environ) as server:
            yield server, _post(server, "/predict", _plain_body(subject))

    return started
