"""INT8 forms of an ONNX model, as bytes; whether one is worth having is for `optimizing` to judge.

Weights get seven bits a channel: processors without VNNI add two 8-bit products in 16 bits, which saturate, so that a model
with eight bits could be right where it was made and wrong where it is served.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmserver.conversion.graph_rewriting import (
    TEMPORARY_PREFIX,
    OpenedGraph,
    graph_bytes,
    opened_for,
    optimized_graph,
    read_graph,
)
from mmserver.errors import ExtraMissing, NotConvertible
from mmserver.formats import FloatRows
from mmserver.graphs.sessions import runtime

if TYPE_CHECKING:
    from onnx import ModelProto

DYNAMIC_OPERATORS = ("MatMul", "Gemm", "LSTM")
"""Products with weights, which are most of a network; the scale of their input is found at every call."""
STATIC_OPERATORS = ("Conv", "MatMul", "Gemm")
"""Those whose input may have a scale that is fixed; onnxruntime has none for LSTM, which stays as it is."""
_QUANTIZED = ("DynamicQuantizeLSTM", "MatMulInteger", "QuantizeLinear")
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""What the library looks for before it warns, through the root logger, that shapes were not inferred."""
_LEFTOVERS = (_PREPARED[0], "onnx.infer")


def quantized_dynamic(content: bytes) -> bytes:
    """The model with 8-bit weights in its products and LSTMs, whose inputs are quantised at every call.

    Together, rows share one scale and so change each other's results: the served model runs them one by one.

    Raises:
        NotConvertible: nothing in it can be quantised, or the library fails on it.
        Undecodable: not an ONNX model.
        ExtraMissing: the package that reads ONNX files is not installed.
    """
    quantization = _library()

    def write(source: Path, target: Path) -> None:
        quantization.quantize_dynamic(
            source,
            target,
            op_types_to_quantize=list(DYNAMIC_OPERATORS),
            per_channel=True,
            reduce_range=True,
            weight_type=quantization.QuantType.QUInt8,
            extra_options={"MatMulConstBOnly": True},
        )

    return _quantized(content, "int8_dynamic", DYNAMIC_OPERATORS, write)


def quantized_static(content: bytes, calibration: FloatRows) -> bytes:
    """The model with 8-bit weights and 8-bit values between its nodes, whose scales are those that the rows need.

    Shapes:
        calibration: n_rows × n_features, or n_rows × the shape of a row; rows with anything that is not finite are left out.

    Raises:
        NotConvertible: nothing in it can be quantised, no row is usable, or the library fails on it.
        Undecodable: not an ONNX model, or one that does not take such rows.
        ExtraMissing: the package that reads ONNX files is not installed.
    """
    quantization = _library()
    usable = np.ascontiguousarray(
        calibration[np.isfinite(calibration.reshape(len(calibration), -1)).all(axis=1)], np.float32
    )
    if not len(usable):
        raise NotConvertible(target="int8_static", reason="there is no row of finite numbers to find the scales with")
    graph = opened_for(content, usable)
    graph.run(usable[:1])

    def write(source: Path, target: Path) -> None:
        quantization.quantize_static(
            source,
            target,
            _reader(quantization, graph, usable),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(STATIC_OPERATORS),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )

    return _quantized(content, "int8_static", STATIC_OPERATORS, write)


def _library() -> Any:
    runtime()
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise ExtraMissing(what="quantising ONNX models", extra="onnx") from error
    return quantization


def _quantized(content: bytes, target: str, operators: tuple[str, ...], write: Callable[[Path, Path], None]) -> bytes:
    model = read_graph(optimized_graph(content))  # weights that are only computed from constants count as weights then
    del model.graph.value_info[:]  # shapes that the exporter wrote contradict those that are inferred anew
    _note(model, *_PREPARED)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as directory:
        source, found = Path(directory) / "source.onnx", Path(directory) / "quantized.onnx"
        source.write_bytes(graph_bytes(model))
        try:
            write(source, found)
        except Exception as error:  # the library is Python over graphs of any shape: KeyError, AssertionError, …
            raise NotConvertible(target=target, reason=f"{type(error).__name__}: {error}"[:300]) from error
        result = read_graph(found.read_bytes())
    if not any(node.op_type in _QUANTIZED for node in result.graph.node):
        reason = f"it has no {', '.join(operators)} with constant float32 weights"
        raise NotConvertible(target=target, reason=reason)
    kept = [entry for entry in result.metadata_props if entry.key not in _LEFTOVERS]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    return graph_bytes(result)


def _note(model: "ModelProto", key: str, value: str) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = key, value


def _reader(quantization: Any, graph: OpenedGraph, rows: FloatRows) -> Any:
    """The rows one by one, as the library reads them."""
    signature = graph.signature

    class Rows(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = self._one_by_one()

        def _one_by_one(self) -> Iterator[dict[str, FloatRows]]:
            for row in rows:
                yield {signature.input_name: row.reshape(1, *signature.shape).astype(signature.dtype)}

        def get_next(self) -> dict[str, FloatRows] | None:
            return next(self._rows, None)

    return Rows()
