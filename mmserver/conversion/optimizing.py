"""Smaller and quicker forms of an ONNX model, each measured against it: one that is bigger, slower or off is not accepted.

Everything runs in the caller's process, on the caller's thread. What is accepted is still another model: it may decide
otherwise for rows that lie close between two classes.
"""

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mmserver.async_faces import in_thread
from mmserver.conversion.benchmarking import N_ROUNDS, Timing, timed_models
from mmserver.conversion.exporting import one_torch_thread, onnx_from_torch, torch_outputs
from mmserver.conversion.graph_rewriting import GraphLevel, opened, opened_for, optimized_graph
from mmserver.conversion.judging import (
    FP32_GATES,
    GATES,
    VARIANTS,
    Gates,
    Optimised,
    Variant,
    distance_text,
    judged,
    judging_rows,
    measured,
    tolerance,
)
from mmserver.conversion.parity import ParityReport, compared
from mmserver.conversion.quantizing import quantized_dynamic, quantized_static
from mmserver.errors import NotConvertible, Undecodable
from mmserver.formats import FloatRows
from mmserver.storage.files import fsync_directory, fsync_file

OnnxPath: TypeAlias = str | os.PathLike[str]
OnnxFile: TypeAlias = bytes | OnnxPath
"""A model as its bytes, or where they are."""

CALIBRATION_ROWS = 200
_SOURCE = "source"
_SAME_ROWS = "calibrated with some of the rows that it is judged by"


@dataclass(frozen=True)
class Candidate:
    """One form and its report; without content where it could not be made."""

    content: bytes | None
    report: Optimised


def optimized(
    content: bytes,
    rows: FloatRows | None = None,
    *,
    variants: Sequence[Variant] = VARIANTS,
    gates: Mapping[Variant, Gates] = GATES,
    calibration: FloatRows | None = None,
    n_rounds: int = N_ROUNDS,
    input_shape: Sequence[int] | None = None,
    outputs: Collection[str] | None = None,
) -> list[Candidate]:
    """The forms of an ONNX model in the order of `variants`, all timed in the same rounds, accepted or not.

    Shapes:
        rows: rows as the model meets them, to judge by: n_rows × n_features or n_rows × the shape of a row; without any, made-up
            ones. calibration: the same, to find the scales of static quantisation with; without any, some of `rows`.
            input_shape: of one row, where the graph leaves it open and no rows say it.

    outputs: those to judge by, where not all are served.

    Raises:
        Undecodable: not an ONNX model, one that cannot be served, or the rows are none for it.
        ExtraMissing: the package that reads ONNX files is not installed.
    """
    if input_shape is None and rows is not None and rows.ndim > 2:
        input_shape = rows.shape[1:]
    source = opened(content, input_shape=input_shape, outputs=outputs)
    judging = judging_rows(source, rows)
    expected = source.run(judging.rows)
    forms = {variant: _form(content, variant, judging.rows, calibration, outputs) for variant in variants}
    models = {_SOURCE: content}
    models.update((name, form.content) for name, form in forms.items() if form.content and form.outputs)
    timings = timed_models(models, judging.rows, n_rounds=n_rounds)
    found = []
    for variant, form in forms.items():
        report = Optimised(
            variant=variant,
            size_bytes=None if form.content is None else len(form.content),
            source_size_bytes=len(content),
            timing=timings.get(variant),
            source_timing=timings[_SOURCE],
            reasons=() if form.refused is None else (form.refused,),
            notes=judging.notes
            if variant != "int8_static" or calibration is not None
            else (*judging.notes, _SAME_ROWS),
        )
        if form.outputs is not None:
            report = judged(measured(report, expected, form.outputs, gates[variant]), gates[variant])
        found.append(Candidate(form.content, report))
    return found


def best_of(candidates: Sequence[Candidate]) -> Candidate | None:
    """The quickest that was accepted."""
    accepted = [one for one in candidates if one.report.accepted and one.report.timing is not None]
    return min(accepted, key=lambda one: one.report.timing.p50_ms if one.report.timing else 0.0, default=None)


@dataclass(frozen=True)
class _Form:
    """A variant that was tried: its bytes and its outputs for the rows, or why there are none."""

    content: bytes | None = None
    outputs: Mapping[str, FloatRows] | None = None
    refused: str | None = None


def _form(
    content: bytes,
    variant: Variant,
    rows: FloatRows,
    calibration: FloatRows | None,
    outputs: Collection[str] | None,
) -> _Form:
    made = None
    try:
        made = _made(content, variant, calibration if calibration is not None else rows[:CALIBRATION_ROWS])
        return _Form(made, opened(made, input_shape=rows.shape[1:], outputs=outputs).run(rows))
    except (NotConvertible, Undecodable) as error:
        return _Form(made, refused=str(error))


def _made(content: bytes, variant: Variant, calibration: FloatRows) -> bytes:
    if variant == "fp32":
        return optimized_graph(content)
    if variant == "int8_dynamic":
        return quantized_dynamic(content)
    return quantized_static(content, calibration)


# --- the names that users of the earlier service know -------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A torch module and its ONNX export, on one thread each."""

    parity: ParityReport
    torch_timing: Timing
    onnx_timing: Timing

    @property
    def speedup(self) -> float:
        """How many times as fast the export is, by p50."""
        return self.torch_timing.p50_ms / self.onnx_timing.p50_ms


@dataclass(frozen=True)
class Optimization:
    """An export, how near it comes to the module, and its forms; `best` is the quickest of those accepted, else the export."""

    content: bytes
    comparison: Comparison
    candidates: tuple[Candidate, ...]
    best: bytes


class SyncONNXOptimizer:
    """Exports, quantises, simplifies and measures; whatever is written is written whole or not at all."""

    def __init__(self, gates: Mapping[Variant, Gates] = GATES, *, n_rounds: int = N_ROUNDS) -> None:
        self._gates = gates
        self._n_rounds = n_rounds

    def export_to_onnx(self, model: Any, input_shape: Sequence[int], output_path: OnnxPath | None = None) -> bytes:
        """As `onnx_from_torch`; also written to `output_path`."""
        return _written(onnx_from_torch(model, input_shape), output_path)

    def optimize_graph(
        self, model: OnnxFile, level: GraphLevel = "basic", output_path: OnnxPath | None = None
    ) -> bytes:
        """As `optimized_graph`; also written to `output_path`."""
        return _written(optimized_graph(_content(model), level), output_path)

    def quantize_model(
        self, model: OnnxFile, calibration: FloatRows | None = None, output_path: OnnxPath | None = None
    ) -> bytes:
        """In INT8: static with the scales that the rows of `calibration` need, without any dynamic. Not judged."""
        content = _content(model)
        made = quantized_dynamic(content) if calibration is None else quantized_static(content, calibration)
        return _written(made, output_path)

    def benchmark(self, models: Mapping[str, OnnxFile], rows: FloatRows) -> dict[str, Timing]:
        """One row, the first, through each of the models in turns, on one thread in this process."""
        return timed_models(
            {name: _content(model) for name, model in models.items()}, rows[:1], n_rounds=self._n_rounds
        )

    def compare_pytorch_onnx(self, model: Any, onnx_model: OnnxFile, rows: FloatRows) -> Comparison:
        """Outputs for all rows, and the time that the first takes.

        Shapes:
            rows: n_rows × n_features, or n_rows × the shape that the module takes.

        Raises:
            Undecodable: the export has other outputs than the module.
        """
        content = _content(onnx_model)
        with one_torch_thread():
            graph = opened_for(content, rows)
            found = graph.run(rows)
            shaped = rows.reshape(len(rows), *graph.signature.shape)
            outputs = torch_outputs(model, shaped)
            if len(outputs) != len(found):
                detail = f"it gives {len(found)} outputs, the module {len(outputs)}"
                raise Undecodable("unsupported", detail)
            expected = dict(zip(found, outputs, strict=True))
            times = timed_models(
                {"onnx": content},
                rows[:1],
                beside={"torch": lambda: torch_outputs(model, shaped[:1])},
                n_rounds=self._n_rounds,
            )
        parity = compared(expected, found, tolerance(FP32_GATES, source="torch"), "onnx")
        return Comparison(parity, times["torch"], times["onnx"])

    def export_and_optimize(
        self,
        model: Any,
        input_shape: Sequence[int],
        rows: FloatRows | None = None,
        *,
        calibration: FloatRows | None = None,
        variants: Sequence[Variant] = VARIANTS,
        output_path: OnnxPath | None = None,
    ) -> Optimization:
        """The export, and what became of each form; the best is written to `output_path`.

        Shapes:
            rows, calibration: as `optimized` takes them.

        Raises:
            NotConvertible: torch cannot export it, or the export does not give what the module gives.
        """
        content = onnx_from_torch(model, input_shape)
        judging = judging_rows(opened(content, input_shape=input_shape), rows)
        comparison = self.compare_pytorch_onnx(model, content, judging.rows)
        if not comparison.parity.passed:
            raise NotConvertible(target="onnx", reason=f"not what the module gives: {distance_text(comparison.parity)}")
        candidates = optimized(
            content, rows, variants=variants, gates=self._gates, calibration=calibration, n_rounds=self._n_rounds
        )
        best = best_of(candidates)
        chosen = content if best is None or best.content is None else best.content
        return Optimization(content, comparison, tuple(candidates), _written(chosen, output_path))


class ONNXOptimizer:
    """The same, to be awaited."""

    def __init__(self, gates: Mapping[Variant, Gates] = GATES, *, n_rounds: int = N_ROUNDS) -> None:
        self.sync = SyncONNXOptimizer(gates, n_rounds=n_rounds)

    export_to_onnx = in_thread(SyncONNXOptimizer.export_to_onnx)
    optimize_graph = in_thread(SyncONNXOptimizer.optimize_graph)
    quantize_model = in_thread(SyncONNXOptimizer.quantize_model)
    benchmark = in_thread(SyncONNXOptimizer.benchmark)
    compare_pytorch_onnx = in_thread(SyncONNXOptimizer.compare_pytorch_onnx)
    export_and_optimize = in_thread(SyncONNXOptimizer.export_and_optimize)


def _content(model: OnnxFile) -> bytes:
    return model if isinstance(model, bytes) else Path(model).read_bytes()


def _written(content: bytes, path: OnnxPath | None) -> bytes:
    """The content, also in a file where a path is given: a reader finds the old file or the new one."""
    if path is not None:
        directory = Path(path).parent
        with tempfile.TemporaryDirectory(prefix=".mmserver-", dir=directory) as own:
            part = Path(own) / "part"
            part.write_bytes(content)
            fsync_file(part)
            part.replace(path)
        fsync_directory(directory)
    return content
