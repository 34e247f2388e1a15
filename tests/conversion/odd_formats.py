"""A plugin of model formats that misbehave, each in its own way; the tests put it into a plugins directory."""

import math
import os
import time

import numpy as np

from mmserver import Conversion, ModelFile, ModelFormat, ModelSource, Predictor, Probes, Undecodable, hookimpl

N_FEATURES = 4


def linear(source: ModelSource, **facts: object) -> ModelFile:
    weights = [float(word) for word in source.content.split()]
    named = {"feature_names": tuple(source.options["names"])} if "names" in source.options else {}
    return ModelFile(
        kind="odd_linear",
        content=source.content,
        n_features=len(weights),
        n_outputs=1,
        objective="",
        library_version="1",
        **named,
        **facts,
    )


class LinearPredictor:
    size_bytes = 1000

    def __init__(self, model: ModelFile) -> None:
        self.weights = np.array([float(word) for word in model.content.split()])
        self.n_features = len(self.weights)
        self.accepts_missing = bool(model.summary.get("accepts_missing"))

    def predict(self, rows):
        totals = (np.where(np.isnan(rows), 0, rows.astype(np.float64)) * self.weights).sum(axis=1, keepdims=True)
        return {"prediction": totals.astype(np.float32)}


def converted(source: ModelSource) -> ModelFile:
    """Its source predicts what the weights say, plus the option `off`."""
    missing = [[None if dim == hole else 0.5 for dim in range(N_FEATURES)] for hole in range(N_FEATURES)]
    rows = [[1.0] * N_FEATURES, [0.0] * N_FEATURES, *(missing if source.options.get("missing") else [])]
    weights = [float(word) for word in source.content.split()]
    off = source.options.get("off", 0.0)
    outputs = [[math.fsum((cell or 0.0) * w for cell, w in zip(row, weights, strict=True)) + off] for row in rows]
    probes = Probes(rows=rows, outputs={"prediction": outputs})
    return linear(source, probes=probes, conversion=Conversion(source="a pencil", absolute=1e-5))


def many_probes(source: ModelSource) -> ModelFile:
    rows = [[float(at)] * N_FEATURES for at in range(10_000)]
    rows[1][0] = math.inf
    return linear(source, probes=Probes(rows=rows, outputs={}))


def shaped(source: ModelSource) -> ModelFile:
    return linear(source, input_shape=tuple(source.options["shape"]))


def hanging(source: ModelSource) -> ModelFile:
    while True:
        time.sleep(0.01)


def crashing(source: ModelSource) -> ModelFile:
    os.abort()


def greedy(source: ModelSource) -> ModelFile:
    hoard = []
    while True:
        hoard.append(bytearray(64 << 20))


def prying(source: ModelSource) -> ModelFile:
    with open("/etc/passwd") as file:
        raise Undecodable("malformed", file.read())


def wrong(source: ModelSource) -> ModelFile:
    return "a model"


def telling(source: ModelSource) -> ModelFile:
    raise Undecodable("malformed", f"may_unpickle is {source.may_unpickle}")


def never_warm() -> None:
    raise RuntimeError("no luck today")


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    reads = {
        "linear": linear, "converted": converted, "many_probes": many_probes, "shaped": shaped, "hanging": hanging,
        "crashing": crashing, "greedy": greedy, "prying": prying, "wrong": wrong, "telling": telling,
    }  # fmt: skip
    formats = [ModelFormat(name=f"odd_{name}", suffixes=(f".{name}",), read=read) for name, read in reads.items()]
    formats.append(ModelFormat(name="odd_cold", suffixes=(".cold",), read=linear, warm_up=never_warm))
    formats.append(
        ModelFormat(
            name="odd_absent", suffixes=(".absent",), read=linear, modules=("no_such_library.inner",), extra="absent"
        )
    )
    return formats


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    return LinearPredictor(model) if model.kind == "odd_linear" else None
