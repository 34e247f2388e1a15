"""The measured half of `benchmarks.one_row`: a process of its own, to see what predicting imports.

python -m benchmarks.one_row_calls ASKED.json
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import percentile
from mmserver.catalog.opening import open_store
from mmserver.serving.predictions import Asked, Serving
from mmserver.settings import Settings

HEAVY = ("xgboost", "onnxruntime", "scipy", "pandas", "sklearn", "torch")


def main() -> None:
    """Print what was found as JSON."""
    asked = json.loads(Path(sys.argv[1]).read_bytes())
    with open_store(Settings(data_dir=Path(asked["data_dir"]))) as store:
        serving = Serving(store)
        calls = _calls(serving, asked)
        times = _in_turns(list(calls.values()), asked["n_calls"])
        us = {
            name: (percentile(taken, 0.5) / 1e3, percentile(taken, 0.99) / 1e3)
            for name, taken in zip(calls, times, strict=True)
        }
        differ = {name: _n_differing(serving, name, Path(path)) for name, path in asked["golden"].items()}
    print(json.dumps({"us": us, "differ": differ, "heavy": [name for name in HEAVY if name in sys.modules]}))


def _calls(serving: Serving, asked: dict[str, Any]) -> dict[str, Callable[[], object]]:
    resolved = serving.resolve(asked["symbol"], asked["model_name"])
    engine = serving.predictors.get(resolved.group).engine
    row = np.array([asked["features"]], np.float32)
    for value in engine.predict(row)["prediction"][0]:
        assert value == np.float32(asked["expected"]), "another prediction than XGBoost's"
    one = Asked(symbol=asked["symbol"], features=asked["features"], model_name=asked["model_name"])
    assert np.float32(serving.predict(one).decision.expected_return) == np.float32(asked["expected"])
    return {
        "the engine": lambda: engine.predict(row),
        "the prediction service: resolve, check, predict, interpret": lambda: serving.predict(one),
    }


def _in_turns(calls: list[Callable[[], object]], n_calls: int) -> list[list[float]]:
    """Nanoseconds of each call of each."""
    times: list[list[float]] = [[] for _ in calls]
    gc.disable()
    for _ in range(n_calls):
        for call, taken in zip(calls, times, strict=True):
            started_ns = time.perf_counter_ns()
            call()
            taken.append(time.perf_counter_ns() - started_ns)
    gc.enable()
    return times


def _n_differing(serving: Serving, model_name: str, golden: Path) -> int:
    """Rows of that golden file that differ in any bit from what the library that wrote the model predicted."""
    content = json.loads(golden.read_bytes())
    rows = np.array([[np.nan if cell is None else cell for cell in row] for row in content["rows"]], np.float32)
    expected = np.array(content["native"], np.float32).reshape(len(rows), -1)
    found = serving.predictors.get(serving.resolve(None, model_name).group).engine.predict(rows)["prediction"]
    if (found.shape[1], expected.shape[1]) == (1, 2):  # of two classes only the second one's probability
        expected = np.ascontiguousarray(expected[:, 1:])
    return int((np.ascontiguousarray(found).view(np.uint32) != expected.view(np.uint32)).any(axis=1).sum())


if __name__ == "__main__":
    main()
