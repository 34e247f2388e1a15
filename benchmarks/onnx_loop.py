"""An ONNX model that takes as long as it is told to: a loop of matrix products, written byte by byte, without the onnx package.

Its prediction is the sum of the features, however often it goes round.

Source: onnx.proto3 of ONNX 1.16 (field numbers), opset 13.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

N_FEATURES = 8
WIDTH = 256
"""Of the square matrix that the loop multiplies with."""
_FLOAT, _INT64, _BOOL = 1, 7, 9
_GRAPH_ATTRIBUTE = 5


def onnx_loop(n_turns: int) -> bytes:
    """The file."""
    body = _graph(
        "turn",
        nodes=[_node("MatMul", ["state", "identity"], ["next"]), _node("Identity", ["go_on"], ["still"])],
        inputs=[("turn", _INT64, []), ("go_on", _BOOL, []), ("state", _FLOAT, [None, WIDTH])],
        outputs=[("still", _BOOL, []), ("next", _FLOAT, [None, WIDTH])],
    )
    spread = np.zeros((N_FEATURES, WIDTH), np.float32)
    spread[:, 0] = 1
    first = np.zeros((WIDTH, 1), np.float32)
    first[0] = 1
    graph = _graph(
        "loop",
        nodes=[
            _node("MatMul", ["features", "spread"], ["start"]),
            _node("Loop", ["n_turns", "always", "start"], ["end"], body=body),
            _node("MatMul", ["end", "first"], ["prediction"]),
        ],
        inputs=[("features", _FLOAT, [None, N_FEATURES])],
        outputs=[("prediction", _FLOAT, [None, 1])],
        initializers=[
            _tensor("spread", spread, _FLOAT),
            _tensor("identity", np.eye(WIDTH, dtype=np.float32), _FLOAT),
            _tensor("first", first, _FLOAT),
            _tensor("n_turns", np.array(n_turns, np.int64), _INT64),
            _tensor("always", np.array(True), _BOOL),
        ],
    )
    opset = _field(1, "") + _field(2, 13)
    return _field(1, 8) + _field(2, "mmserver benchmarks") + _field(7, graph) + _field(8, opset)


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    encoded = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(encoded)) + encoded


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str], body: bytes | None = None) -> bytes:
    encoded = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in outputs)
    encoded += _field(4, kind)
    if body is not None:
        encoded += _field(5, _field(1, "body") + _field(6, body) + _field(20, _GRAPH_ATTRIBUTE))
    return encoded


def _tensor(name: str, values: npt.NDArray[np.generic], kind: int) -> bytes:
    dims = b"".join(_field(1, size) for size in values.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, values.tobytes())


_Value = tuple[str, int, Sequence[int | None]]
"""A name, an element type, and a shape in which None is any size."""


def _value(value: _Value) -> bytes:
    name, kind, shape = value
    dims = b"".join(_field(1, _field(2, "n") if size is None else _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, dims)))


def _graph(
    name: str,
    *,
    nodes: Sequence[bytes],
    inputs: Sequence[_Value],
    outputs: Sequence[_Value],
    initializers: Sequence[bytes] = (),
) -> bytes:
    return (
        b"".join(_field(1, node) for node in nodes)
        + _field(2, name)
        + b"".join(_field(5, tensor) for tensor in initializers)
        + b"".join(_field(11, _value(value)) for value in inputs)
        + b"".join(_field(12, _value(value)) for value in outputs)
    )
