"""Runs a stored ONNX graph."""

from collections.abc import Mapping, Sequence

import msgspec

from mmserver.formats import FloatRows, ModelFile
from mmserver.graphs.running import STEP, GraphRunner, StoppableRun, runs_together_here
from mmserver.graphs.sessions import open_session
from mmserver.graphs.signature import Signature
from mmserver.graphs.varying import varies

SIZE_FACTOR = 3
"""Memory of a session, in sizes of its file: the weights, their copy in the order that the kernels want."""
BUFFERS_FACTOR = 12
"""Memory that runs leave reserved, in sizes of the rows that go through together.

Source:
    measured with onnxruntime 1.31: 10 MB for 32 rows of 60 x 110 through an LSTM of 256, 0.1 MB or less for dense layers.
"""
SIZE_OF_A_SESSION_BYTES = 1 << 20


class OnnxPredictor:
    """A session on the caller's thread; rows go through together only where that was proven to change no bit."""

    def __init__(self, model: ModelFile, execution_providers: Sequence[str] = ()) -> None:
        """Open the stored content; `summary` has what was found out when it was read."""
        signature = msgspec.convert(model.summary["graph"], Signature)
        known = model.summary.get("may_take_long")  # models that were read by an earlier mmserver have none
        self.may_take_long = bool(varies(model.content, signature.input_name) if known is None else known)
        session = open_session(model.content, execution_providers, varies=self.may_take_long)
        together = (
            not self.may_take_long and bool(model.summary["runs_together"]) and runs_together_here(session, signature)
        )
        step = STEP if together else 1
        self._runner = GraphRunner(session, signature, step=step)
        self.accepts_missing = bool(model.summary.get("accepts_missing"))
        self.n_features = model.n_features
        buffers_bytes = BUFFERS_FACTOR * step * model.n_features * 4
        self.size_bytes = SIZE_OF_A_SESSION_BYTES + SIZE_FACTOR * len(model.content) + buffers_bytes

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """The graph's outputs under their own names, its labels left out."""
        return self._runner.run(rows)

    def stoppable_run(self) -> StoppableRun:
        """One run that another thread can stop."""
        return StoppableRun(self._runner)


def onnx_predictor(model: ModelFile, execution_providers: Sequence[str] = ()) -> OnnxPredictor:
    """What runs a model that `model_file_from_onnx` gave."""
    return OnnxPredictor(model, execution_providers)
