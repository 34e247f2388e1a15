"""INT8 forms of ONNX models."""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.conversion.graph_rewriting import opened, read_graph
from mmserver.conversion.quantizing import quantized_dynamic, quantized_static
from mmserver.errors import ExtraMissing, NotConvertible, Undecodable

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")
RANDOM = np.random.default_rng(6)
FLAT = RANDOM.normal(size=(60, 32)).astype(np.float32)
TIMED = RANDOM.normal(size=(60, 6, 16)).astype(np.float32)


def operators(content: bytes) -> set[str]:
    return {node.op_type for node in read_graph(content).graph.node}


def test_products_become_integer_products_near_the_source_and_always_the_same_bytes() -> None:
    source = networks.dense(32, hidden=128)
    made = quantized_dynamic(source)
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= operators(made)
    assert quantized_dynamic(source) == made
    assert len(made) < 0.5 * len(source)
    expected, found = (opened(content).run(FLAT)["prediction"] for content in (source, made))
    assert 0 < np.abs(expected - found).max() < 0.1 * expected.std()


def test_the_weights_of_an_lstm_are_quantised_too() -> None:
    source = networks.recurrent()
    made = quantized_dynamic(source)
    assert "DynamicQuantizeLSTM" in operators(made)
    assert len(made) < 0.5 * len(source)
    expected, found = (opened(content).run(TIMED)["prediction"] for content in (source, made))
    assert np.abs(expected - found).max() < 0.1 * expected.std()


def test_a_row_of_a_dynamic_form_gets_what_it_gets_alone() -> None:
    graph = opened(quantized_dynamic(networks.recurrent()))
    together = graph.run(np.concatenate([TIMED, TIMED[:1] * 100]))["prediction"]
    alone = np.concatenate([graph.run(TIMED[at : at + 1])["prediction"] for at in range(len(TIMED))])
    assert together[:-1].tobytes() == alone.tobytes()


def test_weights_keep_to_seven_bits_so_that_no_processor_saturates() -> None:
    from onnx import TensorProto, numpy_helper

    graph = read_graph(quantized_dynamic(networks.recurrent())).graph
    weights = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type in (TensorProto.INT8, TensorProto.UINT8) and "quantized" in tensor.name
    }
    assert len(weights) == 3
    for values in weights.values():
        assert int(values.max()) - int(values.min()) <= 128


def test_static_scales_come_from_the_rows_and_rows_that_are_not_finite_are_left_out() -> None:
    source = networks.dense(32, hidden=128)
    made = quantized_static(source, FLAT)
    assert "QuantizeLinear" in operators(made)
    expected, found = (opened(content).run(FLAT)["prediction"] for content in (source, made))
    assert 0 < np.abs(expected - found).max() < 0.1 * expected.std()
    broken = np.full((2, 32), np.nan, np.float32)
    broken[1] = np.inf
    assert quantized_static(source, np.concatenate([broken, FLAT])) == made
    with pytest.raises(NotConvertible, match="finite"):
        quantized_static(source, broken)


def test_a_static_form_saturates_beyond_the_rows_it_was_calibrated_with() -> None:
    source = networks.dense(32, hidden=128)
    graph = opened(quantized_static(source, FLAT))
    expected = opened(source).run(FLAT * 50)["prediction"]
    assert np.abs(graph.run(FLAT * 50)["prediction"] - expected).max() > 0.5 * expected.std()


def test_a_model_without_weights_cannot_be_quantised() -> None:
    with pytest.raises(NotConvertible, match="it has no MatMul, Gemm, LSTM with constant"):
        quantized_dynamic(networks.doubling())
    with pytest.raises(NotConvertible, match="int8_static"):
        quantized_static(networks.doubling(), FLAT[:, :4])


def test_shapes_noted_wrongly_by_an_exporter_do_not_stop_it() -> None:
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(networks.dense(32, hidden=128))
    model.graph.value_info.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [1, 7]))
    assert "MatMulInteger" in operators(quantized_dynamic(model.SerializeToString()))


def test_a_damaged_file_is_refused_and_no_temporary_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = networks.dense(32)
    for damaged in (b"", source[:100], source[:-40], source.replace(b"MatMul", b"MatMux")):
        with pytest.raises(Undecodable):
            quantized_dynamic(damaged)
        with pytest.raises(Undecodable):
            quantized_static(damaged, FLAT)
    quantized_dynamic(source)
    quantized_static(source, FLAT)
    with pytest.raises(NotConvertible):
        quantized_dynamic(networks.doubling())
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_logged_and_no_note_of_the_library_is_left(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = quantized_dynamic(networks.dense(32)), quantized_static(networks.dense(32), FLAT)
    assert caplog.records == []
    assert [list(read_graph(content).metadata_props) for content in made] == [[], []]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = networks.dense()
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in [name for name in sys.modules if name.startswith("onnxruntime.quantization")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("onnxruntime.quantization", raising=False)
    with pytest.raises(ExtraMissing, match=r"mmserver\[onnx\]"):
        quantized_dynamic(content)
    with pytest.raises(ExtraMissing, match=r"mmserver\[onnx\]"):
        quantized_static(content, FLAT)
