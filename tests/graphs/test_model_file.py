"""What an ONNX file must be to be served, and what is found out about it."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graphs are made with the onnx package")

import onnx_graphs as graphs
from onnx import TensorProto, ValueInfoProto, helper

from mmserver.errors import Undecodable
from mmserver.graphs.model_file import model_file_from_onnx
from mmserver.graphs.predictor import onnx_predictor
from mmserver.graphs.probing import probe_rows

BATCH, N = graphs.BATCH, graphs.N_FEATURES
ROWS, OUT = {"rows": (TensorProto.FLOAT, [BATCH, N])}, {"out": (TensorProto.FLOAT, [BATCH, N])}


def refused(model: Any, reason: str, says: str, **options: Any) -> None:
    with pytest.raises(Undecodable, match=says) as refusal:
        model_file_from_onnx(graphs.saved(model), **options)
    assert refusal.value.reason == reason


def cast(kind: int, shape: list[int | str], to: int = TensorProto.FLOAT) -> Any:
    node = helper.make_node("Cast", ["rows"], ["out"], to=to)
    return graphs.graph([node], {"rows": (kind, shape)}, {"out": (to, shape)})


def test_a_flat_graph_says_its_inputs_and_the_width_of_each_output() -> None:
    model = model_file_from_onnx(graphs.saved(graphs.dense()))
    assert (model.kind, model.n_features, model.n_outputs, model.input_shape) == ("onnx", N, 3, None)
    assert model.summary["outputs"] == {"probabilities": 3}
    assert onnx_predictor(model).n_features == N


def test_rows_of_timesteps_and_factors_are_told_by_the_graph_s_shape() -> None:
    model = model_file_from_onnx(graphs.saved(graphs.recurrent(timesteps=6, n_factors=4)))
    assert (model.input_shape, model.n_features) == ((6, 4), 24)
    assert onnx_predictor(model).predict(probe_rows(24)[:3])["prediction"].shape == (3, 1)


def test_an_input_of_float64_gets_what_float32_says_exactly() -> None:
    rows = probe_rows(N)
    model = model_file_from_onnx(graphs.saved(cast(TensorProto.DOUBLE, [BATCH, N])))
    assert onnx_predictor(model).predict(rows)["out"].tobytes() == rows.tobytes()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(TensorProto.FLOAT16, id="float16"),
        pytest.param(TensorProto.INT64, id="int64"),
        pytest.param(TensorProto.STRING, id="string"),
    ],
)
def test_an_input_that_float32_cannot_become_without_changing_is_refused(kind: int) -> None:
    refused(cast(kind, [BATCH, N]), "unsupported", "rows are float32")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        pytest.param([N], "first axis has to be the batch", id="no_batch"),
        pytest.param([8, N], "fixed to 8 rows", id="batch_of_eight"),
        pytest.param([BATCH, "time", N], "option input_shape", id="open_axis"),
        pytest.param([BATCH, 5000, 5000], "more than", id="huge_rows"),
    ],
)
def test_an_input_that_is_no_row_of_a_known_shape_is_refused(shape: list[int | str], says: str) -> None:
    refused(graphs.one_node("Tanh", shape), "too_large" if "more" in says else "unsupported", says)


def test_an_axis_that_the_graph_leaves_open_is_fixed_by_the_option() -> None:
    data = graphs.saved(graphs.one_node("Tanh", [BATCH, "time", 4]))
    assert model_file_from_onnx(data, input_shape=[3, 4]).input_shape == (3, 4)
    with pytest.raises(Undecodable, match="does not fit"):
        model_file_from_onnx(data, input_shape=[3, 5])


def test_two_inputs_are_refused_by_name() -> None:
    node = helper.make_node("Add", ["rows", "bias"], ["out"])
    refused(graphs.graph([node], {**ROWS, "bias": ROWS["rows"]}, OUT), "unsupported", "rows tensor.*, bias tensor")


def test_a_classifier_s_labels_are_left_out_beside_its_probabilities() -> None:
    nodes = [
        helper.make_node("Softmax", ["rows"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["rows"], ["label"], axis=1, keepdims=0),
    ]
    outputs = {"label": (TensorProto.INT64, [BATCH]), "probabilities": (TensorProto.FLOAT, [BATCH, N])}
    model = model_file_from_onnx(graphs.saved(graphs.graph(nodes, ROWS, outputs)))
    assert list(onnx_predictor(model).predict(probe_rows(N))) == ["probabilities"]
    assert list(model.summary["graph"]["left_out"]) == ["label"]


def test_a_graph_that_gives_labels_only_is_refused() -> None:
    node = helper.make_node("ArgMax", ["rows"], ["label"], axis=1, keepdims=0)
    refused(graphs.graph([node], ROWS, {"label": (TensorProto.INT64, [BATCH])}), "unsupported", "only label")


def test_a_zip_map_is_refused_with_the_way_to_export_without_it() -> None:
    node = helper.make_node("ZipMap", ["rows"], ["out"], domain="ai.onnx.ml", classlabels_int64s=list(range(N)))
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    output = ValueInfoProto(name="out", type=kind)
    refused(graphs.graph([node], ROWS, [output], domains={"": 17, "ai.onnx.ml": 3}), "unsupported", "zipmap")


def test_one_output_of_several_can_be_chosen_and_an_unknown_one_is_named() -> None:
    nodes = [helper.make_node("Tanh", ["rows"], ["out"]), helper.make_node("Abs", ["rows"], ["other"])]
    data = graphs.graph(nodes, ROWS, {**OUT, "other": OUT["out"]})
    chosen = model_file_from_onnx(graphs.saved(data), outputs=["other"])
    assert list(onnx_predictor(chosen).predict(probe_rows(N))) == ["other"]
    refused(data, "unsupported", "no output 'third'; it has out, other", outputs=["third"])


def test_an_operator_of_an_unknown_domain_is_refused_by_its_name() -> None:
    node = helper.make_node("Foo", ["rows"], ["out"], domain="com.acme")
    refused(graphs.graph([node], ROWS, OUT, domains={"": 17, "com.acme": 1}), "unsupported", "com.acme:Foo")


def test_a_result_that_depends_on_the_rows_beside_it_is_refused() -> None:
    refused(graphs.one_node("Softmax", axis=0), "batch_dependent", "along the batch axis")


def test_random_operators_are_refused() -> None:
    refused(graphs.one_node("RandomNormalLike"), "not_deterministic", "training mode")


def test_an_output_without_a_row_for_each_row_is_refused() -> None:
    node = helper.make_node("Transpose", ["rows"], ["out"], perm=[1, 0])
    refused(graphs.graph([node], ROWS, {"out": (TensorProto.FLOAT, [N, BATCH])}), "not_runnable", "one row for each")


def test_a_model_that_gives_nothing_finite_is_refused() -> None:
    refused(graphs.graph(
        [helper.make_node("Div", ["rows", "zero"], ["out"])], ROWS, OUT, {"zero": np.zeros(1, np.float32)}
    ), "not_finite", "no finite number")  # fmt: skip


def test_a_scale_taken_from_the_whole_batch_makes_rows_run_alone() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["rows"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["out"]),
    ]
    model = model_file_from_onnx(graphs.saved(graphs.graph(nodes, ROWS, OUT)))
    assert model.summary["runs_together"] is False
    assert model.summary["batch_difference"] > 1e-3
    rows = probe_rows(N)
    predictor = onnx_predictor(model)
    alone = np.concatenate([predictor.predict(rows[at : at + 1])["out"] for at in range(len(rows))])
    assert predictor.predict(rows)["out"].tobytes() == alone.tobytes()


def test_a_batch_fixed_to_one_is_run_row_by_row() -> None:
    rows = probe_rows(N)
    fixed = onnx_predictor(model_file_from_onnx(graphs.saved(graphs.dense(batch=1))))
    free = onnx_predictor(model_file_from_onnx(graphs.saved(graphs.dense())))
    found, expected = fixed.predict(rows)["probabilities"], free.predict(rows)["probabilities"]
    assert found.shape == (len(rows), 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_probe_rows_are_always_the_same_and_few_for_wide_rows() -> None:
    assert probe_rows(7).tobytes() == probe_rows(7).tobytes()
    assert len(probe_rows(7)) == 64
    assert len(probe_rows(200_000)) == 32


def test_missing_values_are_not_accepted_of_a_graph_that_nothing_proves() -> None:
    assert onnx_predictor(model_file_from_onnx(graphs.saved(graphs.trees()))).accepts_missing is False
