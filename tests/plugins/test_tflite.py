"""TensorFlow Lite models run as TensorFlow runs them, row by row; damaged ones are refused before LiteRT runs them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed (the extra tflite)")

from ai_edge_litert import schema_py_generated as schema
from flatbuffers import Builder

from mmserver.catalog.ingest import IngestedGroup
from mmserver.errors import ArtifactInvalid, Undecodable
from mmserver.formats import ModelFile, Predictor
from mmserver.plugin_loading import Plugins
from tests.plugins.samples import TFLITE, tflite_outputs

N_MUTATIONS = 30
TOLERANCE = 1e-6


def content(name: str) -> bytes:
    return (TFLITE / f"{name}.tflite").read_bytes()


def predictor_of(plugins: Plugins, model: ModelFile) -> Predictor:
    found = plugins.load_predictor(model)
    assert found is not None
    return found


def changed(name: str, change: Callable[[Any], None]) -> bytes:
    """The file of that name, with its parts changed and written again."""
    model = schema.ModelT.InitFromPackedBuf(content(name), 0)
    for operator in model.subgraphs[0].operators:
        operator.inputs, operator.outputs = operator.inputs.copy(), operator.outputs.copy()
    change(model)
    builder = Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("name", ["dense", "recurrent", "unrolled"])
def test_every_row_has_what_tensorflow_predicts(read_model: Callable[..., Any], plugins: Plugins, name: str) -> None:
    expected = tflite_outputs()[name]
    found = predictor_of(plugins, read_model("tflite", content(name))).predict(np.array(expected["rows"], np.float32))
    assert set(found) == set(expected["outputs"])
    for output, values in expected["outputs"].items():
        assert found[output].shape == np.shape(values)
        assert np.abs(found[output] - np.array(values)).max() < TOLERANCE


def test_outputs_are_told_apart_by_name_and_can_have_others(read_model: Callable[..., Any], plugins: Plugins) -> None:
    model = read_model("tflite", content("dense"), output_names={"probabilities": "classes"})
    found = predictor_of(plugins, model).predict(np.ones((2, 4), np.float32))
    assert {name: values.shape for name, values in found.items()} == {"expected_return": (2, 1), "classes": (2, 3)}
    assert np.allclose(found["classes"].sum(axis=1), 1)


@pytest.mark.parametrize(
    "names",
    [["probabilities"], {"nobody": "probabilities"}, {"probabilities": "expected_return"}, {"probabilities": 1}],
    ids=["a-list", "unknown", "twice", "no-name"],
)
def test_names_that_make_no_sense_are_refused(read_model: Callable[..., Any], names: Any) -> None:
    with pytest.raises(Undecodable, match="output_names"):
        read_model("tflite", content("dense"), output_names=names)


def test_classes_that_fit_no_output_are_refused_and_others_kept(read_model: Callable[..., Any]) -> None:
    classes = ["BUY", "HOLD", "SELL"]
    assert read_model("tflite", content("dense"), classes=classes).summary["classes"] == classes
    for unusable in (5, "abc", {"0": "BUY", "1": "HOLD", "2": "SELL"}, classes[:2]):
        with pytest.raises(Undecodable, match="option classes") as refusal:
            read_model("tflite", content("dense"), classes=unusable)
        assert refusal.value.reason == "option_invalid"


def test_a_quantised_model_that_takes_float_is_served_and_one_that_takes_integers_is_not(
    read_model: Callable[..., Any], plugins: Plugins
) -> None:
    rows = np.array(tflite_outputs()["dense"]["rows"], np.float32)
    whole = predictor_of(plugins, read_model("tflite", content("dense"))).predict(rows)
    small = predictor_of(plugins, read_model("tflite", content("dense-int8"))).predict(rows)
    assert 0 < np.abs(whole["probabilities"] - small["probabilities"]).max() < 0.05
    with pytest.raises(Undecodable, match=r"is int8.*inference_input_type = tf\.float32"):
        read_model("tflite", content("dense-int8-io"))


@pytest.mark.parametrize("name", ["dense", "recurrent"])
def test_eight_threads_get_what_one_gets(read_model: Callable[..., Any], plugins: Plugins, name: str) -> None:
    predictor = predictor_of(plugins, read_model("tflite", content(name)))
    rows = np.random.default_rng(2).normal(size=(200, predictor.n_features)).astype(np.float32)
    expected = {output: values.tobytes() for output, values in predictor.predict(rows).items()}
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: predictor.predict(rows), range(24)):
            assert {output: values.tobytes() for output, values in found.items()} == expected


def test_a_model_of_steps_and_factors_keeps_its_shape_and_its_bytes(
    read_model: Callable[..., Any], plugins: Plugins
) -> None:
    model = read_model("tflite", content("recurrent"))
    assert (model.kind, model.input_shape, model.n_features, model.n_outputs) == ("tflite", (6, 4), 24, 1)
    converter = plugins.converter_for("tflite", "tflite")
    assert converter is not None
    assert converter.convert(model) == content("recurrent")


# --- what cannot be served --------------------------------------------------------------------------------------------


def custom_operator(model: Any) -> None:
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].customCode = b"FlexErf"


def random_operator(model: Any) -> None:
    model.operatorCodes[0].builtinCode = schema.BuiltinOperator.RANDOM_UNIFORM


def weights_outside(model: Any) -> None:
    model.buffers[3].data, model.buffers[3].offset, model.buffers[3].size = None, 4096, 64


def two_rows(model: Any) -> None:
    model.subgraphs[0].tensors[0].shape = model.subgraphs[0].tensors[0].shapeSignature = np.array([2, 4], np.int32)


def open_axis(model: Any) -> None:
    model.subgraphs[0].tensors[0].shapeSignature = np.array([1, -1], np.int32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(custom_operator, "CUSTOM 'FlexErf' cannot be served", id="custom"),
        pytest.param(random_operator, "RANDOM_UNIFORM cannot be served", id="random"),
        pytest.param(weights_outside, "its weights lie behind the graph", id="weights-outside"),
        pytest.param(two_rows, "first axis has to be the batch", id="two-rows"),
        pytest.param(open_axis, "every other one fixed", id="open-axis"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    read_model: Callable[..., Any], change: Callable[[Any], None], said: str
) -> None:
    with pytest.raises(Undecodable, match=said) as refusal:
        read_model("tflite", changed("dense", change))
    assert refusal.value.reason == "unsupported"


def reads_what_is_not_there(model: Any) -> None:
    model.subgraphs[0].operators[0].inputs[0] = model.subgraphs[0].operators[-1].outputs[0]


def lacks_an_input(model: Any) -> None:
    (softmax,) = (
        operator
        for operator in model.subgraphs[0].operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == schema.BuiltinOperator.SOFTMAX
    )
    softmax.inputs[0] = -1


def writes_weights(model: Any) -> None:
    model.subgraphs[0].operators[0].outputs[0] = model.subgraphs[0].operators[0].inputs[1]


def gives_what_is_not_there(model: Any) -> None:
    graph = model.subgraphs[0]
    graph.operators = graph.operators[:-1]


@pytest.mark.parametrize("change", [reads_what_is_not_there, lacks_an_input, writes_weights, gives_what_is_not_there])
def test_memory_that_nothing_was_written_to_is_never_read(
    read_model: Callable[..., Any], change: Callable[[Any], None]
) -> None:
    with pytest.raises(Undecodable, match=r"out of order|is never written") as refusal:
        read_model("tflite", changed("dense", change))
    assert refusal.value.reason == "malformed"


def test_an_input_that_gives_other_than_one_row_is_refused(read_model: Callable[..., Any]) -> None:
    """LiteRT takes eight numbers for two rows of four."""

    def wider(model: Any) -> None:
        tensor = model.subgraphs[0].tensors[0]
        tensor.shape = tensor.shapeSignature = np.array([1, 8], np.int32)

    with pytest.raises(ValueError, match="must have one row for each"):
        read_model("tflite", changed("dense", wider))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "recurrent", "unrolled"])
def test_a_damaged_file_is_refused_or_is_a_model_that_agrees_with_itself(
    read_guarded: Callable[..., IngestedGroup], plugins: Plugins, name: str
) -> None:
    data, random = content(name), np.random.default_rng(3)
    refused = 0
    for _ in range(N_MUTATIONS):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(data))] ^= 1 << random.integers(8)
        try:
            first, second = read_guarded("a.tflite", bytes(damaged)), read_guarded("a.tflite", bytes(damaged))
        except ArtifactInvalid:
            refused += 1
            continue
        assert (first.detail, first.model_content) == (second.detail, bytes(damaged))
    assert refused > N_MUTATIONS // 4
    assert read_guarded("a.tflite", data).model_content == data
