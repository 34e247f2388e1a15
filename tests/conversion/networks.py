"""Tiny ONNX models, made with the onnx package: real graphs with weights that one can check by hand."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18


def model_of(
    nodes: list[Any], weights: dict[str, npt.NDArray[Any]], *, inputs: list[Any], outputs: list[Any]
) -> onnx.ModelProto:
    """The checked model."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, outputs)],
        initializer=[numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def dense(n_features: int = 8, width: int = 3, hidden: int = 4, *, seed: int = 0) -> bytes:
    """Two products with a ReLU between."""
    random = np.random.default_rng(seed)
    weights = {
        "first": random.normal(size=(n_features, hidden)).astype(np.float32),
        "second": random.normal(size=(hidden, width)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["features", "first"], ["products"]),
        helper.make_node("Relu", ["products"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "second"], ["prediction"]),
    ]
    return bytes(model_of(nodes, weights, inputs=["batch", n_features], outputs=["batch", width]).SerializeToString())


def outlying(n_features: int = 64, width: int = 3) -> bytes:
    """A network whose weights span eight orders of magnitude in every channel, so that eight bits keep only the largest.

    The largest weight meets a feature that is always nearly the same, so all that differs between rows is lost.
    """
    random = np.random.default_rng(3)
    first = random.normal(size=(n_features, 64)).astype(np.float32)
    first[0] = 1e6
    second = random.normal(size=(64, width)).astype(np.float32)
    cancel = -(first[:1] @ second)
    nodes = [
        helper.make_node("MatMul", ["features", "first"], ["products"]),
        helper.make_node("MatMul", ["products", "second"], ["scores"]),
        helper.make_node("Slice", ["features", "zero", "one", "one"], ["constant"]),
        helper.make_node("MatMul", ["constant", "cancel"], ["offset"]),
        helper.make_node("Add", ["scores", "offset"], ["prediction"]),
    ]
    weights = {
        "first": first,
        "second": second,
        "cancel": cancel.astype(np.float32),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
    }
    return bytes(model_of(nodes, weights, inputs=["batch", n_features], outputs=["batch", width]).SerializeToString())


def recurrent(n_timesteps: int = 6, n_factors: int = 16, hidden: int = 64, width: int = 3) -> bytes:
    """An LSTM over the timesteps, and a product of its last state."""
    random = np.random.default_rng(1)
    scale = 1 / np.sqrt(hidden)
    weights = {
        "w": random.uniform(-scale, scale, size=(1, 4 * hidden, n_factors)).astype(np.float32),
        "r": random.uniform(-scale, scale, size=(1, 4 * hidden, hidden)).astype(np.float32),
        "head": random.normal(size=(hidden, width)).astype(np.float32),
        "axes": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["features"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "axes"], ["state"]),
        helper.make_node("MatMul", ["state", "head"], ["prediction"]),
    ]
    model = model_of(nodes, weights, inputs=["batch", n_timesteps, n_factors], outputs=["batch", width])
    return bytes(model.SerializeToString())


def doubling(n_features: int = 4) -> bytes:
    """No weights at all."""
    nodes = [helper.make_node("Add", ["features", "features"], ["prediction"])]
    return bytes(model_of(nodes, {}, inputs=["batch", n_features], outputs=["batch", n_features]).SerializeToString())


def branching(n_features: int = 8) -> bytes:
    """Where the sum of all is positive, an operator that only onnxruntime has."""
    value = helper.make_tensor_value_info
    then = helper.make_graph(
        [helper.make_node("Gelu", ["features"], ["then_out"], domain="com.microsoft")],
        "then",
        [],
        [value("then_out", TensorProto.FLOAT, ["batch", n_features])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Neg", ["features"], ["else_out"])],
        "else",
        [],
        [value("else_out", TensorProto.FLOAT, ["batch", n_features])],
    )
    nodes = [
        helper.make_node("ReduceSum", ["features"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["is_positive"]),
        helper.make_node("If", ["is_positive"], ["prediction"], then_branch=then, else_branch=otherwise),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [value("features", TensorProto.FLOAT, ["batch", n_features])],
        [value("prediction", TensorProto.FLOAT, ["batch", n_features])],
        initializer=[numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


def with_external_weights(location: str) -> bytes:
    """As `dense`, but one tensor names a file."""
    model = onnx.load_model_from_string(dense())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return bytes(model.SerializeToString())
