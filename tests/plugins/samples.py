"""A small model of every format that is installed here, as the file that its library writes, with the options it needs."""

import importlib.util
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROWS = np.random.default_rng(0).normal(size=(200, 4))
RETURNS = ROWS @ [1.0, 2.0, -1.0, 0.0]
TFLITE = Path(__file__).with_name("tflite")


@dataclass(frozen=True)
class Sample:
    """`make` gives the bytes; `needs` are the modules without which neither they nor the format can be had."""

    name: str
    file_name: str
    make: Callable[[], bytes]
    needs: tuple[str, ...] = ()
    model_type: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def missing(self) -> str | None:
        """The first module that is not installed."""
        return next((name for name in self.needs if importlib.util.find_spec(name) is None), None)


def network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).eval()


def torch_program() -> bytes:
    import torch

    batch, file = torch.export.Dim("batch"), io.BytesIO()
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)), file)
    return file.getvalue()


def onnx_graph() -> bytes:
    import onnx_graphs

    data: bytes = onnx_graphs.saved(onnx_graphs.dense())
    return data


def ridge() -> Any:
    from sklearn.linear_model import Ridge

    return Ridge().fit(ROWS, RETURNS)


def sklearn_skops() -> bytes:
    import skops.io

    data: bytes = skops.io.dumps(ridge())
    return data


def sklearn_joblib() -> bytes:
    import joblib

    file = io.BytesIO()
    joblib.dump(ridge(), file, compress=3)
    return file.getvalue()


def lightgbm_text() -> bytes:
    import lightgbm

    options = {"verbosity": -1, "num_threads": 1}
    text: str = lightgbm.train(options, lightgbm.Dataset(ROWS, RETURNS), 3).model_to_string()
    return text.encode()


def catboost_cbm() -> bytes:
    import catboost

    options = {"iterations": 5, "depth": 2, "verbose": False, "thread_count": 1, "allow_writing_files": False}
    data: bytes = catboost.CatBoostRegressor(**options).fit(ROWS, RETURNS)._serialize_model()
    return data


def booster() -> Any:
    import xgboost

    matrix = xgboost.DMatrix(ROWS, RETURNS)
    return xgboost.train({"max_depth": 2, "nthread": 1}, matrix, 3)


def tflite_dense() -> bytes:
    return (TFLITE / "dense.tflite").read_bytes()


def tflite_outputs() -> dict[str, Any]:
    """What TensorFlow predicted for rows, by model."""
    found: dict[str, Any] = json.loads((TFLITE / "outputs.json").read_text())["models"]
    return found


SAMPLES = [
    Sample("xgboost-json", "a.json", lambda: bytes(booster().save_raw("json"))),
    Sample("xgboost-ubj", "a.ubj", lambda: bytes(booster().save_raw("ubj"))),
    Sample("xgboost-pickle", "a.pkl", lambda: pickle.dumps(booster())),
    Sample("onnx", "a.onnx", onnx_graph, needs=("onnx",)),
    Sample("sklearn-skops", "a.skops", sklearn_skops, needs=("skops", "skl2onnx")),
    Sample("sklearn-joblib", "a.joblib", sklearn_joblib, needs=("skops", "skl2onnx")),
    Sample("lightgbm", "a.txt", lightgbm_text, needs=("lightgbm", "onnx")),
    Sample("catboost", "a.cbm", catboost_cbm, needs=("catboost", "onnx")),
    Sample("torch-program", "a.pt2", torch_program, needs=("torch", "onnxscript")),
    Sample("tflite", "a.tflite", tflite_dense, needs=("ai_edge_litert",)),
]
