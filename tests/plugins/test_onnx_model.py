"""ONNX files through the real guarded worker: whole ones are served, damaged ones are refused, and the worker outlives both."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="graphs are made with the onnx package")

import msgspec
import onnx_graphs as graphs

from mmserver.catalog.ingest import INGEST_GROUPS, IngestedGroup, IngestOutcome, IngestRequest, SourceFile
from mmserver.errors import ArtifactInvalid, Undecodable
from mmserver.formats import ModelFile, ModelSource
from mmserver.graphs.sessions import open_session
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.sandbox.pool import Sandbox
from mmserver.settings import load_settings

Read = Callable[..., IngestedGroup]
N_MUTATIONS = 60


@pytest.fixture
def read(read_guarded: Read) -> Read:
    def run(data: bytes, **others: bytes) -> IngestedGroup:
        files = {name.replace("_", "."): content for name, content in others.items()}
        return read_guarded("model.onnx", data, files=files)

    return run


def test_a_graph_is_read_under_the_full_guard(read: Read) -> None:
    group = read(graphs.saved(graphs.recurrent(timesteps=6, n_factors=4)))
    assert (group.dim, group.factors) == (4, ("f0", "f1", "f2", "f3"))
    assert json.loads(group.detail)["model"]["input_shape"] == [6, 4]


def test_classes_that_fit_no_output_are_refused_and_others_kept(read_model: Callable[..., Any]) -> None:
    classes, graph = ["BUY", "HOLD", "SELL"], graphs.saved(graphs.dense())
    assert read_model("onnx", graph, classes=classes).summary["classes"] == classes
    for unusable in (5, "abc", {"0": "BUY", "1": "HOLD", "2": "SELL"}, classes[:2]):
        with pytest.raises(Undecodable, match="option classes") as refusal:
            read_model("onnx", graph, classes=unusable)
        assert refusal.value.reason == "option_invalid"


def test_weights_in_another_file_are_stored_with_the_graph(read: Read) -> None:
    graph, data = graphs.with_weights_outside(graphs.dense(), "model.onnx.data")
    stored = read(graph, model_onnx_data=data).model_content
    assert stored is not None
    assert open_session(stored).get_inputs()[0].name == "rows"


def test_weights_of_the_server_s_own_files_are_out_of_reach(read: Read) -> None:
    graph, _ = graphs.with_weights_outside(graphs.dense(), "../../../etc/passwd")
    with pytest.raises(ArtifactInvalid) as refusal:
        read(graph)
    assert refusal.value.values["reason"] == "incomplete"


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """Cut off, or with some bits turned, or with bytes overwritten where the structure is."""
    changed = bytearray(data)
    kind = random.integers(3)
    if kind == 0:
        return bytes(changed[: random.integers(len(changed))])
    for _ in range(random.integers(1, 5)):
        at = random.integers(len(changed)) if kind == 1 else -random.integers(1, min(len(changed), 200))
        changed[at] ^= 1 << random.integers(8) if kind == 1 else random.integers(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("make", [graphs.dense, graphs.recurrent, graphs.trees], ids=["dense", "recurrent", "trees"])
def test_a_damaged_file_is_refused_or_is_a_model_that_agrees_with_itself(
    make: Any, read: Read, plugins: Plugins
) -> None:
    data = graphs.saved(make())
    random = np.random.default_rng(31)
    outcomes = set()
    for _ in range(N_MUTATIONS):
        damaged = mutated(data, random)
        try:
            first, second = read(damaged), read(damaged)
        except ArtifactInvalid as error:
            outcomes.add(str(error.values["reason"]).partition("(")[0])
            continue
        outcomes.add("served")
        assert (first.model_content, first.detail) == (second.model_content, second.detail) == (damaged, first.detail)
    assert "malformed" in outcomes
    assert outcomes <= {
        "served",
        "malformed",
        "unsupported",
        "not_runnable",
        "not_finite",
        "batch_dependent",
        "crashed",
    }
    assert read(data).model_content == data


def test_a_watched_directory_may_hold_onnx_files() -> None:
    files = (
        SourceFile("BTC_ret_1d_model.onnx", graphs.saved(graphs.dense())),
        SourceFile("BTC_ret_1d_factors.txt", b"a\nb\nc\nd\ne\n"),
    )
    with Sandbox("mmserver.catalog.ingest:handlers", {}, n_workers=1) as sandbox:
        request = [
            IngestRequest("BTC_ret_1d", files),
            IngestRequest("ETH_ret_1d", (SourceFile("ETH_ret_1d_model.onnx", b"x"),)),
        ]
        answer = sandbox.run(INGEST_GROUPS, msgspec.msgpack.encode(request))
    good, bad = msgspec.msgpack.decode(answer, type=list[IngestOutcome])
    assert good.group is not None
    assert good.group.factors == ("a", "b", "c", "d", "e")
    assert bad.error is not None
    assert bad.error.reason == "malformed"


# --- who runs it ------------------------------------------------------------------------------------------------------


def onnx_model(plugins: Plugins) -> ModelFile:
    claim = plugins.model_format_for("m.onnx")
    assert claim is not None
    return claim.read(ModelSource(file_name="m.onnx", files={"m.onnx": graphs.saved(graphs.dense())}))


def test_a_provider_that_is_not_installed_is_left_out_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings({"execution_providers": "cuda, CPU"}, {}, None)
    assert settings.execution_providers == ("CUDA", "CPU")
    plugins = load_plugins(None, settings.execution_providers)
    predictor = plugins.load_predictor(onnx_model(plugins))
    assert predictor is not None
    assert predictor.predict(np.zeros((2, graphs.N_FEATURES), np.float32))["probabilities"].shape == (2, 3)
    assert "has no CUDAExecutionProvider here" in caplog.text


def test_onnxruntime_is_told_not_to_report_to_its_makers() -> None:
    """It would do so from a thread of its own, which starts with the import."""
    code = (
        "import pathlib; from mmserver.plugin_loading import load_plugins; load_plugins(); import onnxruntime;"
        "print(len(list(pathlib.Path('/proc/self/task').iterdir())))"
    )
    environ = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
