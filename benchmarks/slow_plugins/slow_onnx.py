"""Models of `benchmarks.onnx_loop` for mmserver: `ONEUSDT_ret_5d_slow.onnx`, run by ONNX Runtime with one thread."""

from collections.abc import Mapping

import onnxruntime  # here, not where it is used: the worker that tries a model out can open no file by then

from mmserver import Artifact, ArtifactFormat, FloatRows, ModelFile, Predictor, hookimpl

KIND = "slow_onnx"
N_FEATURES = 8


def parse(artifact: Artifact) -> ModelFile:
    """Nothing is looked at: ONNX Runtime checks the bytes when it makes the session."""
    return ModelFile(
        kind=KIND,
        content=artifact.data,
        n_features=N_FEATURES,
        n_outputs=1,
        objective="regression",
        library_version=onnxruntime.__version__,
        feature_names=tuple(f"factor_{i}" for i in range(N_FEATURES)),
    )


class SlowPredictor:
    """A session is made once and may be run by all threads."""

    n_features = N_FEATURES

    def __init__(self, model: ModelFile) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model.content, options, providers=["CPUExecutionProvider"])
        self.size_bytes = len(model.content)

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """Without the interpreter's lock, for as long as it takes."""
        return {"prediction": self._session.run(["prediction"], {"features": rows})[0]}


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    """A suffix of its own: `_model.onnx` is somebody else's."""
    return [ArtifactFormat(name="slow_onnx", suffix="_slow.onnx", role="model", parse=parse)]


@hookimpl
def mmserver_load_predictor(model: ModelFile) -> Predictor | None:
    """The session."""
    return SlowPredictor(model) if model.kind == KIND else None
