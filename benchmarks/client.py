"""What the Python client costs beside a bare httpx POST of the same body: sync and async, one row, rows by name, and many as tensors.

The two take turns at every single call, at one connection each, so that whatever else the machine does meets both. The bare
call gets its body ready-made, and its answer is not even decoded.

python -m benchmarks.client [--smoke]
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.data_dirs import make_data_dir
from benchmarks.measuring import Goal, machine, median, percentile, print_goals, print_table
from benchmarks.servers import SMOKE_OPTIONS, mmserver, wait_until_idle
from benchmarks.subject import MODEL_NAME, Subject, make_subject
from mmserver.client import ModelClient, SyncModelClient, Timeouts
from mmserver.client.calls import Call
from mmserver.client.inference import infer
from mmserver.client.predicting import batch_predict, predict

N_CALLS, SMOKE_CALLS = 2_000, 30
N_WARM_UP = 20
GOAL = 1.3
TIMEOUTS = Timeouts(connect_s=60.0, read_s=60.0, total_s=60.0)
"""The model is loaded at its first prediction, on however busy a machine."""
BATCH = 32


@dataclass(frozen=True)
class Asked:
    """One kind of call; `describe` builds it anew each time, from numpy arrays as users have them."""

    what: str
    describe: Callable[[], Call[Any]]


Times = tuple[list[float], list[float]]
"""Seconds of the client's calls, and of the bare ones."""


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few calls")
    is_smoke = parser.parse_args(arguments).smoke
    n_calls = SMOKE_CALLS if is_smoke else N_CALLS
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        subject = make_subject(work, is_small=is_smoke)
        make_data_dir(work / "data", {MODEL_NAME: subject.artifacts})
        with mmserver(work / "data", *(SMOKE_OPTIONS if is_smoke else ())) as server:
            if not is_smoke:
                wait_until_idle([server])
            kinds = _kinds(subject, _proven_factors(server.url, subject))
            found = {
                f"{asked.what}, {name}": times
                for asked in kinds
                for name, times in (
                    ("sync", _sync(server.url, asked, n_calls)),
                    ("async", asyncio.run(_async(server.url, asked, n_calls))),
                )
            }
    print(f"\n{machine()}; {n_calls:,} calls each, in turns; {subject.description}")
    _print(found)


def _kinds(subject: Subject, factors: tuple[str, ...]) -> list[Asked]:
    row, symbol = subject.rows[0], subject.symbol
    names = dict(zip(factors, row.tolist(), strict=True))
    many = [{"symbol": symbol, "features": one} for one in subject.rows[:BATCH]]
    return [
        Asked("one row", lambda: predict(symbol, row, model_name=MODEL_NAME)),
        Asked("one row by name", lambda: predict(symbol, names, model_name=MODEL_NAME)),
        Asked(f"a batch of {BATCH}", lambda: batch_predict(many, model_name=MODEL_NAME)),
        Asked(f"{len(subject.rows)} rows as a tensor", lambda: infer(f"{MODEL_NAME}.{symbol}", subject.rows)),
    ]


def _proven_factors(url: str, subject: Subject) -> tuple[str, ...]:
    """The model's factors. Raises SystemExit if what is measured is not what XGBoost predicts."""
    client = SyncModelClient(url, timeouts=TIMEOUTS)
    found = client.infer(f"{MODEL_NAME}.{subject.symbol}", subject.rows, outputs=["prediction"]).outputs["prediction"]
    factors = client.get_symbol(MODEL_NAME, subject.symbol).factors
    client.cleanup()
    if found.tobytes() != np.asarray(subject.expected, np.float32).tobytes():
        raise SystemExit("the client gives other predictions than XGBoost")
    return factors


def _bare(url: str, asked: Asked) -> dict[str, Any]:
    """Arguments of `post`; like the client it asks for no compression, so that the server does the same for both."""
    call = asked.describe()
    headers = {**dict(call.headers), "Accept-Encoding": "identity"}
    return {"url": url + call.path, "content": call.content, "headers": headers}


def _sync(url: str, asked: Asked, n_calls: int) -> Times:
    client, bare, request = (
        SyncModelClient(url, timeouts=TIMEOUTS),
        httpx.Client(trust_env=False, timeout=60.0),
        _bare(url, asked),
    )
    ours: list[float] = []
    theirs: list[float] = []
    with bare:
        for number in range(N_WARM_UP + n_calls):
            begun = time.perf_counter()
            client.call(asked.describe())
            between = time.perf_counter()
            answer = bare.post(**request)
            ended = time.perf_counter()
            assert answer.status_code == 200
            if number >= N_WARM_UP:
                ours.append(between - begun)
                theirs.append(ended - between)
    client.cleanup()
    return ours, theirs


async def _async(url: str, asked: Asked, n_calls: int) -> Times:
    client, request = ModelClient(url, timeouts=TIMEOUTS), _bare(url, asked)
    ours: list[float] = []
    theirs: list[float] = []
    async with httpx.AsyncClient(trust_env=False, timeout=60.0) as bare:
        for number in range(N_WARM_UP + n_calls):
            begun = time.perf_counter()
            await client.call(asked.describe())
            between = time.perf_counter()
            answer = await bare.post(**request)
            ended = time.perf_counter()
            assert answer.status_code == 200
            if number >= N_WARM_UP:
                ours.append(between - begun)
                theirs.append(ended - between)
    await client.cleanup()
    return ours, theirs


def _print(found: dict[str, Times]) -> None:
    rows, goals = [], []
    for what, (ours, theirs) in found.items():
        ratio = median(ours) / median(theirs)
        figures = (median(ours), percentile(ours, 0.99), median(theirs), percentile(theirs, 0.99))
        rows.append((what, *(1e6 * seconds for seconds in figures), ratio))
        goals.append(Goal(f"{what}: p50 against bare httpx", ratio, at_most=GOAL, unit="×"))
    columns = ("what", "client p50 µs", "p99 µs", "bare httpx p50 µs", "p99 µs", "ratio of p50")
    print_table("The Python client", columns, rows)
    print_goals(goals)


if __name__ == "__main__":
    main()
