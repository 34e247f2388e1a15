"""Running rows through an ONNX graph so that the result of a row never depends on the rows beside it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmserver.formats import FloatRows
from mmserver.graphs.sessions import runtime

if TYPE_CHECKING:
    import onnxruntime

    from mmserver.graphs.signature import Signature

STEP = 32
"""Rows that are run together where that changes no bit; the proof tries every number up to it."""
_SIZES_AT_LOADING = (2, 3, 5, 8, 13, STEP)


class GraphRunner:
    """A session with what it takes and gives; a session may be run by many threads."""

    def __init__(self, session: "onnxruntime.InferenceSession", signature: "Signature", *, step: int = 1) -> None:
        """`step` rows are run at a time."""
        self._session = session
        self._signature = signature
        self._shape = (-1, *signature.shape)
        self._dtype = np.dtype(signature.dtype)
        self._outputs = list(signature.outputs)
        self._step = 1 if signature.has_fixed_batch else step

    def run(self, rows: FloatRows, options: "onnxruntime.RunOptions | None" = None) -> dict[str, FloatRows]:
        """Every output of every row, in float32; `options` can stop it.

        Shapes:
            rows: n_rows × n_features, at least one. An output of more axes is laid out flat, in C order.

        Raises:
            ValueError: an output has no row for each row.
        """
        shaped = rows.reshape(self._shape).astype(self._dtype, copy=False)
        step = self._step
        if len(rows) <= step:
            return self._tables(shaped, options)
        parts = [self._tables(shaped[at : at + step], options) for at in range(0, len(rows), step)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _tables(self, shaped: FloatRows, options: "onnxruntime.RunOptions | None") -> dict[str, FloatRows]:
        found = self._session.run(self._outputs, {self._signature.input_name: shaped}, options)
        return {name: _table(name, values, len(shaped)) for name, values in zip(self._outputs, found, strict=True)}


class StoppableRun:
    """One run through a graph; it ends soon after it was stopped, between two nodes, and raises."""

    def __init__(self, runner: GraphRunner) -> None:
        self._runner = runner
        self._options = runtime().RunOptions()

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """As `GraphRunner.run`; raises what the library does where it was stopped."""
        return self._runner.run(rows, self._options)

    def stop(self) -> None:
        """From any thread."""
        self._options.terminate = True


def _table(name: str, values: object, n_rows: int) -> FloatRows:
    if not isinstance(values, np.ndarray) or values.ndim == 0 or len(values) != n_rows or values.size == 0:
        found = values.shape if isinstance(values, np.ndarray) else type(values).__name__
        raise ValueError(f"its output {name} is {found} for {n_rows} rows; it must have one row for each")
    with np.errstate(over="ignore"):  # infinite then, which is refused where it matters
        return np.ascontiguousarray(values.reshape(n_rows, -1), np.float32)


def batch_difference(session: "onnxruntime.InferenceSession", signature: "Signature", rows: FloatRows) -> float | None:
    """How far the rows run together are from the same rows run alone, relative to 1 + |alone|; None where no bit differs.

    Kernels are chosen by the shape of their input: every number of rows up to `STEP` is tried, until a bit differs.
    """
    return _largest_difference(session, signature, rows, range(2, STEP + 1))


def runs_together_here(session: "onnxruntime.InferenceSession", signature: "Signature") -> bool:
    """The same in short, for a model that passed once: another machine has other kernels."""
    rows = np.random.default_rng(7).normal(size=(STEP, signature.n_features)).astype(np.float32)
    return _largest_difference(session, signature, rows, _SIZES_AT_LOADING) is None


def _largest_difference(
    session: "onnxruntime.InferenceSession", signature: "Signature", rows: FloatRows, sizes: Sequence[int]
) -> float | None:
    alone = GraphRunner(session, signature).run(rows)
    together = GraphRunner(session, signature, step=STEP)
    for size in sizes:
        found = together.run(rows[:size])
        if any(values.tobytes() != alone[name][:size].tobytes() for name, values in found.items()):
            return _distance(together.run(rows), alone)
    return None


def _distance(found: Mapping[str, FloatRows], expected: Mapping[str, FloatRows]) -> float:
    """The largest of all; what is not finite on one side only is infinitely far."""
    largest = 0.0
    for name, values in found.items():
        other = expected[name].astype(np.float64)
        finite = np.isfinite(values) & np.isfinite(other)
        same = (values == other) | (np.isnan(values) & np.isnan(other))
        if (~finite & ~same).any():
            return float("inf")
        if finite.any():
            distances = np.abs(values[finite] - other[finite]) / (1 + np.abs(other[finite]))
            largest = max(largest, float(distances.max()))
    return largest
