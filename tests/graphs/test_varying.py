"""Graphs whose rows cost more or less, by their numbers: told from those whose rows all cost the same, bounded, stopped, or refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx is not installed (the extra onnx)")

import onnx_graphs as graphs
from onnx import NodeProto, TensorProto, helper

from mmserver.errors import PredictionTooLong, Undecodable
from mmserver.graphs.model_file import model_file_from_onnx
from mmserver.graphs.predictor import onnx_predictor
from mmserver.graphs.varying import varies
from mmserver.serving.engines import LibraryEngine

INT64, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
node = helper.make_node
SIZED = [
    pytest.param([node("ConstantOfShape", ["size"], ["made"], name="of size")], id="ConstantOfShape"),
    pytest.param([node("Expand", ["one_number", "size"], ["made"], name="of size")], id="Expand"),
    pytest.param([node("Tile", ["one_number", "size"], ["made"], name="of size")], id="Tile"),
    pytest.param([node("Range", ["nought", "scalar", "step"], ["counts"], name="of size"), node("Cast", ["counts"], ["made"], to=FLOAT)],
                 id="Range"),
    pytest.param([node("Concat", ["one", "one", "one", "size"], ["sizes"], axis=0),
                  node("Resize", ["image", "", "", "sizes"], ["made"], name="of size")], id="Resize"),
    pytest.param([node("Concat", ["zero", "size"], ["pads"], axis=0), node("Pad", ["one_number", "pads"], ["made"], name="of size")],
                 id="Pad"),
    pytest.param([node("OneHot", ["one", "scalar", "values"], ["made"], name="of size")], id="OneHot"),
]  # fmt: skip
OF_NUMBERS = [
    node("Squeeze", ["rows", "zero"], ["row"]),
    node("ReduceMax", ["row"], ["largest"], keepdims=1),
]
AS_SIZE = [node("Cast", ["largest"], ["size"], to=INT64), node("Squeeze", ["size", "zero"], ["scalar"])]
ANSWER = [
    node("ReduceMax", ["made"], ["most"], keepdims=0),
    node("ReduceSum", ["rows", "one"], ["sum"]),
    node("Add", ["sum", "most"], ["prediction"]),
]
NUMBERS = {
    "zero": np.array([0], np.int64), "one": np.array([1], np.int64), "nought": np.array(0, np.int64), "step": np.array(1, np.int64),
    "one_number": np.ones(1, np.float32), "image": np.ones((1, 1, 1, 2), np.float32), "values": np.array([0, 1], np.float32),
    "most_rows": np.array([5.0], np.float32), "many": np.array([1 << 29], np.float32), "many_at_most": np.array(1 << 29, np.float32),
    "half": np.array(0.5, np.float32), "large": np.array(9e9, np.float32), "far": np.array([1 << 29], np.int64),
    "yes": np.array(True),
}  # fmt: skip


def made(nodes: Sequence[NodeProto]) -> Any:
    """A graph of one row that gives `prediction`."""
    return graphs.graph(nodes, {"rows": (FLOAT, [1, 5])}, {"prediction": (FLOAT, [1, 1])}, NUMBERS)


@pytest.mark.parametrize("nodes", SIZED)
def test_a_tensor_as_large_as_a_number_of_the_row_is_refused_by_the_name_of_its_node(nodes: list[NodeProto]) -> None:
    with pytest.raises(Undecodable, match=r"'of size'.*without a bound") as refusal:
        model_file_from_onnx(graphs.saved(made([*OF_NUMBERS, *AS_SIZE, *nodes, *ANSWER])))
    assert refusal.value.reason == "unsupported"
    assert nodes[-1].op_type in refusal.value.detail or nodes[0].op_type in refusal.value.detail


@pytest.mark.parametrize("nodes", SIZED)
def test_the_same_of_a_size_that_every_row_has_is_taken_and_costs_nothing(nodes: list[NodeProto]) -> None:
    of_shape = [
        node("Shape", ["rows"], ["both"]),
        node("Gather", ["both", "one"], ["size"]),
        node("Squeeze", ["size", "zero"], ["scalar"]),
    ]
    model = model_file_from_onnx(graphs.saved(made([*of_shape, *nodes, *ANSWER])))
    assert onnx_predictor(model).may_take_long is False


@pytest.mark.parametrize(
    "bound",
    [
        pytest.param([node("Min", ["largest", "most_rows"], ["bounded"])], id="Min"),
        pytest.param([node("Clip", ["largest", "", "large"], ["bounded"])], id="Clip"),
        pytest.param([node("ArgMax", ["row"], ["at"]), node("Cast", ["at"], ["bounded"], to=FLOAT)], id="ArgMax"),
        pytest.param(
            [
                node("Greater", ["row", "half"], ["is_large"]),
                node("NonZero", ["is_large"], ["places"]),
                node("Shape", ["places"], ["both"]),
                node("Gather", ["both", "one"], ["count"]),
                node("Cast", ["count"], ["bounded"], to=FLOAT),
            ],
            id="NonZero",
        ),
    ],
)
def test_what_is_as_large_as_a_bounded_number_is_taken_and_watched(bound: list[NodeProto]) -> None:
    size = [
        node("Max", ["bounded", "one_number"], ["at_least"]),
        node("Cast", ["at_least"], ["size"], to=INT64),
        node("ConstantOfShape", ["size"], ["made"]),
    ]
    assert varies(graphs.saved(made([*OF_NUMBERS, *bound, *size, *ANSWER])), "rows") is True


def test_rows_that_are_picked_by_their_numbers_are_taken_and_watched() -> None:
    nodes = [
        *OF_NUMBERS,
        node("IsNaN", ["row"], ["is_missing"]),
        node("Not", ["is_missing"], ["is_there"]),
        node("Compress", ["row", "is_there"], ["made"]),
        *ANSWER,
    ]
    assert onnx_predictor(model_file_from_onnx(graphs.saved(made(nodes)))).may_take_long is True


def test_nodes_in_any_order_are_followed() -> None:
    model = made([*OF_NUMBERS, *AS_SIZE, node("ConstantOfShape", ["size"], ["made"]), *ANSWER])
    backwards = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(backwards)
    with pytest.raises(Undecodable, match="ConstantOfShape that gives 'made'"):
        varies(graphs.saved(model), "rows")


def body(nodes: Sequence[NodeProto], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """A graph within a node."""
    return helper.make_graph(list(nodes), "body", list(inputs), list(outputs))


def info(name: str, kind: int, shape: Sequence[int | str] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def looping(*, inner: Sequence[NodeProto] = (), trips: str = "trips") -> list[NodeProto]:
    """As often as the row's largest number says, `made` is halved."""
    nodes = [*inner, node("Identity", ["go"], ["goes"]), node("Mul", ["held", "half"], ["holds"])]
    parts = body(
        nodes, [info("n", INT64, []), info("go", BOOL, []), info("held", FLOAT, [])], [info("goes", BOOL, []), info("holds", FLOAT, [])]
    )  # fmt: skip
    return [
        *OF_NUMBERS,
        *AS_SIZE,
        node("Identity", ["scalar"], ["trips"]),
        node("Loop", [trips, "yes", "half"], ["made"], body=parts),
    ]


def test_a_size_within_a_loop_a_branch_or_a_function_is_seen() -> None:
    sized = [node("ConstantOfShape", ["size"], ["unused"])]
    with pytest.raises(Undecodable, match="ConstantOfShape"):
        varies(graphs.saved(made([*looping(inner=sized), *ANSWER])), "rows")
    counted = [node("Unsqueeze", ["n", "zero"], ["counted"]), node("ConstantOfShape", ["counted"], ["unused"])]
    with pytest.raises(Undecodable, match="ConstantOfShape"):
        varies(graphs.saved(made([*looping(inner=counted), *ANSWER])), "rows")
    then, other = (
        body([node("ConstantOfShape", [of], [gives])], [], [info(gives, FLOAT, None)])
        for of, gives in (("size", "a"), ("one", "b"))
    )
    with pytest.raises(Undecodable, match="ConstantOfShape that gives 'a'"):
        branches = node("If", ["yes"], ["made"], then_branch=then, else_branch=other)
        varies(graphs.saved(made([*OF_NUMBERS, *AS_SIZE, branches, *ANSWER])), "rows")
    model = made([*OF_NUMBERS, *AS_SIZE, node("Fill", ["size"], ["made"], domain="desk"), *ANSWER])
    opset = helper.make_opsetid("", 17)
    model.opset_import.append(helper.make_opsetid("desk", 1))
    model.functions.append(
        helper.make_function("desk", "Fill", ["s"], ["f"], [node("ConstantOfShape", ["s"], ["f"])], [opset])
    )
    with pytest.raises(Undecodable, match="ConstantOfShape that gives 'f'"):
        varies(graphs.saved(model), "rows")


def test_a_branch_that_a_number_chooses_is_watched_and_one_that_a_shape_chooses_is_not() -> None:
    then, other = (
        body([node("ConstantOfShape", [of], [gives])], [], [info(gives, FLOAT, None)])
        for of, gives in (("far", "a"), ("one", "b"))
    )
    branches = node("If", ["chosen"], ["made"], then_branch=then, else_branch=other)
    by_number = [*OF_NUMBERS, node("Squeeze", ["largest", "zero"], ["l"]), node("Greater", ["l", "large"], ["chosen"])]
    assert varies(graphs.saved(made([*by_number, branches, *ANSWER])), "rows") is True
    by_shape = [node("Size", ["rows"], ["n"]), node("Greater", ["n", "step"], ["chosen"])]
    assert varies(graphs.saved(made([*by_shape, branches, *ANSWER])), "rows") is False


def test_a_loop_runs_watched_only_where_the_row_says_how_often() -> None:
    assert varies(graphs.saved(made([*looping(), *ANSWER])), "rows") is True
    assert varies(graphs.saved(made([*looping(trips="step"), *ANSWER])), "rows") is False


@pytest.mark.parametrize("make", [graphs.dense, graphs.recurrent, graphs.trees], ids=["dense", "recurrent", "trees"])
def test_ordinary_graphs_are_not_watched(make: Any) -> None:
    model = model_file_from_onnx(graphs.saved(make()))
    predictor = onnx_predictor(model)
    assert (predictor.may_take_long, model.summary["may_take_long"]) == (False, False)


def test_a_model_that_was_stored_without_that_is_looked_at_when_it_is_loaded() -> None:
    model = model_file_from_onnx(graphs.saved(made([*looping(), *ANSWER])))
    del model.summary["may_take_long"]
    assert onnx_predictor(model).may_take_long is True


# --- what bounds them -------------------------------------------------------------------------------------------------


def test_a_row_that_wants_more_memory_than_there_is_fails_and_the_next_is_answered() -> None:
    nodes = [
        *OF_NUMBERS,
        node("Clip", ["largest", "", "many_at_most"], ["bounded"]),
        node("Max", ["bounded", "one_number"], ["at_least"]),
        node("Cast", ["at_least"], ["size"], to=INT64),
        node("ConstantOfShape", ["size"], ["made"]),
    ]
    predictor = onnx_predictor(
        model_file_from_onnx(
            graphs.saved(made([*nodes, *ANSWER])),
        )
    )
    few, many = np.full((1, 5), 2, np.float32), np.full((1, 5), 1 << 30, np.float32)
    for _ in range(3):
        with pytest.raises(Exception, match="memory"):
            predictor.predict(many)
        assert predictor.predict(few)["prediction"].tolist() == [[10.0]]


def test_a_row_that_keeps_a_graph_busy_is_stopped_and_the_next_is_answered() -> None:
    predictor = onnx_predictor(model_file_from_onnx(graphs.saved(made([*looping(), *ANSWER]))))
    engine = LibraryEngine("onnx", predictor, timeout_s=0.2)
    for _ in range(2):
        with pytest.raises(PredictionTooLong, match=r"stopped after 0\.2 s"):
            engine.predict(np.full((1, 5), 1e15, np.float32))
    assert (
        LibraryEngine("onnx", predictor, timeout_s=60).predict(np.full((1, 5), 2, np.float32))["prediction"] == 10.125
    )


def test_a_failure_before_the_time_is_over_stays_what_it_was() -> None:
    class Failing:
        n_features, size_bytes, may_take_long = 5, 1, True

        def predict(self, rows: Any) -> Any:
            raise ValueError("no such row")

        def stoppable_run(self) -> Any:
            return self

        def stop(self) -> None:
            """Nothing to stop."""

    with pytest.raises(ValueError, match="no such row"):
        LibraryEngine("failing", Failing(), timeout_s=60).predict(np.zeros((1, 5), np.float32))
