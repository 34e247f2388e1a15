"""Small ONNX graphs for tests, made with the `onnx` package, which whoever imports this needs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
BATCH = "batch"
IR_VERSION = 8
N_FEATURES = 5


def graph(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    outputs: Mapping[str, tuple[int, Sequence[int | str]]] | Sequence[ValueInfoProto],
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    domains: Mapping[str, int] | None = None,
) -> ModelProto:
    """A graph; inputs and outputs are name → (element type, shape)."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    given = (
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()]
        if isinstance(outputs, Mapping)
        else list(outputs)
    )
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    opsets = [helper.make_opsetid(domain, version) for domain, version in (domains or {"": 17}).items()]
    body = helper.make_graph(list(nodes), "g", values, given, tensors)
    return helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION)


def weights(*shape: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random numbers of a usual size."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dense(n_features: int = N_FEATURES, hidden: int = 64, n_classes: int = 3, batch: int | str = BATCH) -> ModelProto:
    """Two layers and a softmax, as `probabilities`: matrix products, whose last bits depend on how many rows there are."""
    nodes = [
        helper.make_node("MatMul", ["rows", "w1"], ["m1"]),
        helper.make_node("Tanh", ["m1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["m2"]),
        helper.make_node("Softmax", ["m2"], ["probabilities"], axis=1),
    ]
    return graph(
        nodes,
        {"rows": (FLOAT, [batch, n_features])},
        {"probabilities": (FLOAT, [batch, n_classes])},
        {"w1": weights(n_features, hidden), "w2": weights(hidden, n_classes, seed=2)},
    )


def recurrent(timesteps: int = 6, n_factors: int = 4, hidden: int = 8) -> ModelProto:
    """An LSTM over rows of timesteps × factors; its last state, as `prediction`."""
    nodes = [
        helper.make_node("Transpose", ["rows"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "zero"], ["state"]),
        helper.make_node("ReduceMean", ["state"], ["prediction"], axes=[1], keepdims=1),
    ]
    return graph(
        nodes,
        {"rows": (FLOAT, [BATCH, timesteps, n_factors])},
        {"prediction": (FLOAT, [BATCH, 1])},
        {
            "w": weights(1, 4 * hidden, n_factors),
            "r": weights(1, 4 * hidden, hidden, seed=2),
            "zero": np.array([0], np.int64),
        },
    )


def one_node(operator: str, shape: Sequence[int | str] = (BATCH, N_FEATURES), **attributes: Any) -> ModelProto:
    """One operator from `rows` to `out` of the same shape."""
    node = helper.make_node(operator, ["rows"], ["out"], **attributes)
    return graph([node], {"rows": (FLOAT, shape)}, {"out": (FLOAT, shape)})


def trees(n_features: int = N_FEATURES) -> ModelProto:
    """Two stumps."""
    node = helper.make_node(
        "TreeEnsembleRegressor",
        ["rows"],
        ["prediction"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0, 0, 0, 1, 1, 1],
        nodes_nodeids=[0, 1, 2, 0, 1, 2],
        nodes_featureids=[0, 0, 0, n_features - 1, 0, 0],
        nodes_modes=["BRANCH_LT", "LEAF", "LEAF"] * 2,
        nodes_values=[0.25, 0.0, 0.0, -0.5, 0.0, 0.0],
        nodes_truenodeids=[1, 0, 0, 1, 0, 0],
        nodes_falsenodeids=[2, 0, 0, 2, 0, 0],
        target_treeids=[0, 0, 1, 1],
        target_nodeids=[1, 2, 1, 2],
        target_ids=[0, 0, 0, 0],
        target_weights=[0.1, -0.2, 0.3, 0.7],
    )
    return graph(
        [node],
        {"rows": (FLOAT, [BATCH, n_features])},
        {"prediction": (FLOAT, [BATCH, 1])},
        domains={"": 17, "ai.onnx.ml": 3},
    )


def saved(model: ModelProto) -> bytes:
    """The graph's bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def with_weights_outside(model: ModelProto, location: str) -> tuple[bytes, bytes]:
    """(the graph without the numbers of its weights, the numbers), as `location` says where they are."""
    data = b""
    for tensor in model.graph.initializer:
        raw = numpy_helper.to_array(tensor).tobytes()
        for key, value in (("location", location), ("offset", str(len(data))), ("length", str(len(raw)))):
            tensor.external_data.add(key=key, value=value)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        data += raw
    return saved(model), data
