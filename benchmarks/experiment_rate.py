"""What a running experiment costs: one row per request at a server without one, with two arms, and with a shadow.

python -m benchmarks.experiment_rate [--smoke]

Both arms are the same model, so that all three do the same work but for the experiment: drawing an arm for each request, logging
the answer before it is sent, moving what is logged into its database meanwhile, and in the shadow scoring every row twice.
"""

import argparse
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.contest import Contender, Results, Rules, interleaved, print_results
from benchmarks.data_dirs import make_data_dir
from benchmarks.load import Asked
from benchmarks.measuring import Goal, machine, print_goals
from benchmarks.servers import Server, mmserver
from benchmarks.subject import MODEL_NAME, Subject, make_subject
from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.experiments.lifecycle import create_experiment
from mmserver.experiments.planning import checked_plan
from mmserver.settings import Settings

RULES = Rules(n_connections=(8,), n_rounds=5, round_s=3.0)
SMOKE_RULES = Rules(n_connections=(8,), n_rounds=1, round_s=1.0, warm_up_s=0.0)
GOAL_RATIO = 0.85
TREATMENT = "treatment"
WITHOUT = "none"
MODES = {"A/B, each prediction a unit": "split", "shadow": "shadow"}
PREDICT, TENSOR = "/predict", "/v2, binary"
HEADER_LENGTH = "Inference-Header-Content-Length"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiment_rate", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round")
    is_smoke = parser.parse_args(arguments).smoke
    rules = SMOKE_RULES if is_smoke else RULES
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = Path(temporary)
        subject = make_subject(work, is_small=is_smoke)
        contenders = list(_contenders(subject, work, stack))
        results = interleaved(contenders, rules)
    tool = next(iter(results.values())).tool
    print(f"\n{machine()}; {tool}, {rules}; {subject.description}")
    print_results("One row per request while an experiment runs", results, [one.name for one in contenders], rules)
    print_goals(_goals(results))


def _contenders(subject: Subject, work: Path, stack: ExitStack) -> Iterator[Contender]:
    """Every server with its experiment, asked in both ways; its answers are looked at first."""
    for name, mode in ((WITHOUT, None), *MODES.items()):
        data_dir = work / f"data-{mode}"
        make_data_dir(data_dir, {MODEL_NAME: subject.artifacts, TREATMENT: subject.artifacts})
        if mode is not None:
            _start_experiment(data_dir, mode)
        server = stack.enter_context(mmserver(data_dir))
        for path, asked in ((PREDICT, _predict(server, subject)), (TENSOR, _tensor(server, subject))):
            _check(asked, mode, float(subject.expected[0]))
            yield Contender(_name(path, name), server, asked)


def _start_experiment(data_dir: Path, mode: str) -> None:
    plan = checked_plan(
        experiment_id="rate",
        control=(MODEL_NAME, "latest"),
        treatment=(TREATMENT, "latest"),
        treatment_weight=0.5,
        mode=mode,
        unit="prediction",
    )
    with open_store(Settings(data_dir=data_dir)) as store:
        create_experiment(store, plan, Actor("benchmarks", None), start=True)


def _predict(server: Server, subject: Subject) -> Asked:
    body = {"symbol": subject.symbol, "features": subject.features, "model_name": MODEL_NAME}
    return Asked(f"{server.url}/predict", {"Content-Type": "application/json"}, "POST", json.dumps(body).encode())


def _tensor(server: Server, subject: Subject) -> Asked:
    data = np.array([subject.features], "<f4").tobytes()
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, len(subject.features)]}
    asked = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(data)}}],
        "outputs": [{"name": "prediction", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(asked).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
    url = f"{server.url}/v2/models/{MODEL_NAME}.{subject.symbol}/infer"
    return Asked(url, headers, "POST", text + data)


def _check(asked: Asked, mode: str | None, expected: float) -> None:
    """Raises SystemExit where the prediction is wrong, or belongs to no experiment though one runs."""
    request = urllib.request.Request(asked.url, asked.body, asked.headers, method=asked.method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        body, n_json = answer.read(), answer.headers.get(HEADER_LENGTH)
    said = json.loads(body if n_json is None else body[: int(n_json)])
    if n_json is None:
        predicted, variant = said["prediction"]["expected_return"], said["variant"]
    else:
        predicted = np.frombuffer(body[int(n_json) :], "<f4")[0]
        variant = said.get("parameters", {}).get("variant")
    if np.float32(predicted) != np.float32(expected) or (variant is None) != (mode is None):
        raise SystemExit(f"{asked.url} answers {said}, where {expected} is predicted; the experiment's mode is {mode}")


def _name(path: str, experiment: str) -> str:
    return f"{path}; experiment: {experiment}"


def _goals(results: Results) -> Iterator[Goal]:
    for path in (PREDICT, TENSOR):
        without = results[_name(path, WITHOUT), 8].requests_per_s
        for name in MODES:
            ratio = results[_name(path, name), 8].requests_per_s / without
            what = f"{path}, 8 connections, with an experiment ({name}), against without"
            yield Goal(what, ratio, at_least=GOAL_RATIO, unit="×")


if __name__ == "__main__":
    main()
