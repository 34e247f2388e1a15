"""Weights in other files are taken in, and no path leads anywhere else."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graphs are made with the onnx package")

import onnx
import onnx_graphs as graphs
from onnx import numpy_helper

from mmserver.errors import ExtraMissing, Undecodable
from mmserver.graphs.external_data import whole_graph
from mmserver.graphs.model_file import model_file_from_onnx
from mmserver.graphs.predictor import onnx_predictor
from mmserver.graphs.probing import probe_rows

DATA = "model.onnx.data"


def test_weights_beside_the_graph_become_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph, data = graphs.with_weights_outside(graphs.dense(), DATA)
    rows = probe_rows(graphs.N_FEATURES)
    found = onnx_predictor(model_file_from_onnx(graph, files={DATA: data})).predict(rows)["probabilities"]
    expected = onnx_predictor(model_file_from_onnx(graphs.saved(graphs.dense()))).predict(rows)["probabilities"]
    assert found.tobytes() == expected.tobytes()


def test_a_tensor_deep_in_a_subgraph_is_taken_in_too() -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "deep")
    body = onnx.helper.make_graph([], "body", [], [], [tensor])
    branch = onnx.helper.make_node("If", ["choice"], ["out"], then_branch=body, else_branch=body)
    model = graphs.graph([branch], {}, {})
    for attribute in model.graph.node[0].attribute:
        inner = attribute.g.initializer[0]
        inner.external_data.add(key="location", value=DATA)
        inner.ClearField("raw_data")
        inner.data_location = onnx.TensorProto.EXTERNAL
    whole = onnx.load_from_string(whole_graph(graphs.saved(model), {DATA: np.full(4, 7, np.float32).tobytes()}))
    for attribute in whole.graph.node[0].attribute:
        assert numpy_helper.to_array(attribute.g.initializer[0]).tolist() == [7.0] * 4


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("../model.onnx.data", id="up"),
        pytest.param("weights/../../model.onnx.data", id="down_and_up"),
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("..\\model.onnx.data", id="backslashes"),
        pytest.param("C:/model.onnx.data", id="drive"),
        pytest.param("", id="nowhere"),
    ],
)
def test_a_path_that_leaves_the_directory_is_refused_whatever_was_handed_in(location: str) -> None:
    graph, data = graphs.with_weights_outside(graphs.dense(), location)
    with pytest.raises(Undecodable) as refusal:
        model_file_from_onnx(graph, files={location: data, "model.onnx.data": data, "passwd": data})
    assert refusal.value.reason == "forbidden_path"


def test_a_file_that_did_not_come_with_it_is_named() -> None:
    graph, data = graphs.with_weights_outside(graphs.dense(), DATA)
    with pytest.raises(Undecodable, match=r"lie in 'model\.onnx\.data'") as refusal:
        model_file_from_onnx(graph, files={"other.data": data})
    assert refusal.value.reason == "incomplete"


def test_a_graph_that_comes_without_its_weights_is_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph, _ = graphs.with_weights_outside(graphs.dense(), DATA)
    with pytest.raises(Undecodable) as refusal:
        model_file_from_onnx(graph)
    assert refusal.value.reason == "incomplete"


def test_weights_that_are_cut_off_are_torn() -> None:
    graph, data = graphs.with_weights_outside(graphs.dense(), DATA)
    with pytest.raises(Undecodable) as refusal:
        model_file_from_onnx(graph, files={DATA: data[:-1]})
    assert refusal.value.reason == "torn"


def test_without_the_package_that_reads_them_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = graphs.with_weights_outside(graphs.dense(), DATA)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExtraMissing, match=r"mmserver\[onnx\]"):
        model_file_from_onnx(graph, files={DATA: data})


def test_a_file_that_the_graph_does_not_name_changes_nothing() -> None:
    content = graphs.saved(graphs.dense())
    assert whole_graph(content, {"readme.txt": b"hello"}) == content
