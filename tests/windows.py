"""Models whose one row is several timesteps of several factors, as a plugin of numpy alone, for tests of every protocol.

A window model is a linear one over all its numbers, so that each place counts and none can be mistaken for another.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

PLUGIN = '''
"""Linear models over windows of timesteps × factors: `_window.json` has the shape and the weights of each output."""
import json

import numpy as np

from mmserver import ArtifactFormat, ModelFile, hookimpl


def parse(artifact):
    document = json.loads(artifact.data)
    shape = tuple(document["shape"])
    return ModelFile(kind="window", content=artifact.data, n_features=int(np.prod(shape)), n_outputs=document["n_outputs"],
                     objective=document["objective"], library_version="1", input_shape=shape,
                     feature_names=tuple(document["factors"]))


class WindowPredictor:
    def __init__(self, model):
        document = json.loads(model.content)
        self.shape = tuple(document["shape"])
        self.n_features = model.n_features
        self.size_bytes = 8 * model.n_features
        self.accepts_missing = document["accepts_missing"]
        self.weights = {name: np.array(weights) for name, weights in document["outputs"].items()}

    def predict(self, rows):
        windows = np.nan_to_num(rows.reshape(-1, 1, *self.shape).astype(np.float64))
        axes = tuple(range(2, windows.ndim))
        return {name: (windows * weights).sum(axis=axes).astype(np.float32) for name, weights in self.weights.items()}


class ExplainedPredictor(WindowPredictor):
    def contributions(self, rows):
        windows = rows.reshape(-1, 1, *self.shape).astype(np.float64)
        moved = (windows * next(iter(self.weights.values()))).reshape(len(rows), -1, self.n_features)
        return np.concatenate([moved, np.zeros((*moved.shape[:2], 1))], axis=2)


@hookimpl
def mmserver_formats():
    return [ArtifactFormat(name="window", suffix="_window.json", role="model", parse=parse)]


@hookimpl
def mmserver_load_predictor(model):
    if model.kind != "window":
        return None
    return ExplainedPredictor(model) if json.loads(model.content)["explains"] else WindowPredictor(model)
'''


def write_plugin(directory: Path) -> Path:
    """The plugin in a directory of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "windows.py").write_text(PLUGIN)
    return directory


def write_window(
    directory: Path,
    group_key: str,
    shape: tuple[int, ...],
    *,
    n_outputs: int = 1,
    output: str = "prediction",
    objective: str = "regression",
    accepts_missing: bool = False,
    explains: bool = False,
) -> Any:
    """Write one model; its weights, n_outputs × shape: what a window gives is the sum of its numbers times these."""
    weights = np.random.default_rng(len(group_key)).normal(size=(n_outputs, *shape))
    document = {
        "shape": shape,
        "factors": [f"factor_{dim}" for dim in range(shape[-1])],
        "n_outputs": n_outputs,
        "outputs": {output: weights.tolist()},
        "objective": objective,
        "accepts_missing": accepts_missing,
        "explains": explains,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{group_key}_window.json").write_text(json.dumps(document))
    return weights


def window_outputs(weights: Any, windows: Any) -> Any:
    """What the model gives: n_rows × n_outputs."""
    stacked = np.asarray(windows, np.float32).astype(np.float64)[:, None]
    return (stacked * weights).sum(axis=tuple(range(2, stacked.ndim))).astype(np.float32)
