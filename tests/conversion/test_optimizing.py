"""Forms of a model that are measured, and kept out or accepted."""

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.conversion.graph_rewriting import opened, read_graph
from mmserver.conversion.judging import GATES, Gates, Optimised
from mmserver.conversion.optimizing import ONNXOptimizer, SyncONNXOptimizer, best_of, optimized
from mmserver.errors import ExtraMissing, NotConvertible, Undecodable

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")
NAMES = (
    "export_to_onnx",
    "quantize_model",
    "optimize_graph",
    "benchmark",
    "compare_pytorch_onnx",
    "export_and_optimize",
)
N_ROUNDS = 10
ANY_SPEED = {
    name: Gates(
        max_size_ratio=gates.max_size_ratio,
        max_latency_ratio=None,
        max_abs_difference=gates.max_abs_difference,
        max_rel_difference=gates.max_rel_difference,
        min_class_agreement=gates.min_class_agreement,
    )
    for name, gates in GATES.items()
}
"""What is quicker with tiny models is chance."""
FLAT = np.random.default_rng(4).normal(size=(300, 8)).astype(np.float32)
TIMED = np.random.default_rng(4).normal(size=(300, 6, 16)).astype(np.float32)


def reports(content: bytes, rows: Any, **more: Any) -> dict[str, Optimised]:
    found = optimized(content, rows, gates=ANY_SPEED, n_rounds=N_ROUNDS, **more)
    return {one.report.variant: one.report for one in found}


def test_a_recurrent_network_gets_smaller_forms_that_agree_with_it() -> None:
    found = optimized(networks.recurrent(), TIMED, gates=ANY_SPEED, n_rounds=N_ROUNDS)
    plain, dynamic, static = (one.report for one in found)
    assert (plain.variant, dynamic.variant, static.variant) == ("fp32", "int8_dynamic", "int8_static")
    assert plain.accepted, plain.reasons
    assert plain.parity is not None
    assert (plain.parity.max_abs_difference or 0) < 1e-5
    assert dynamic.accepted, dynamic.reasons
    assert dynamic.class_agreement is not None
    assert dynamic.class_agreement >= 0.99
    assert dynamic.parity is not None
    assert dynamic.parity.n_rows >= 1000
    assert dynamic.size_bytes is not None
    assert dynamic.size_bytes < 0.5 * dynamic.source_size_bytes
    assert dynamic.timing is not None
    assert dynamic.timing.n_calls == N_ROUNDS
    assert "calibrated with some of the rows that it is judged by" in static.notes
    for one in found:
        assert one.content is not None
        assert one.report.size_bytes == len(one.content)
        opened(one.content)


def test_a_model_that_grows_by_being_quantised_is_kept_out() -> None:
    found = reports(networks.dense(), FLAT)["int8_dynamic"]
    assert not found.accepted
    assert found.reasons[0].startswith("bigger: ")
    assert found.size_bytes is not None
    assert found.size_bytes > found.source_size_bytes


def test_a_form_that_loses_what_tells_rows_apart_is_kept_out() -> None:
    rows = np.random.default_rng(8).normal(size=(300, 64)).astype(np.float32)
    rows[:, 0] = 1
    found = reports(networks.outlying(), rows, variants=["int8_dynamic"])["int8_dynamic"]
    assert not found.accepted
    assert any(reason.startswith("off: the same class for") for reason in found.reasons)


def test_a_form_slower_than_the_gate_allows_is_kept_out() -> None:
    impossible = {name: Gates(max_size_ratio=None, max_latency_ratio=0.0) for name in GATES}
    (found,) = optimized(networks.recurrent(), TIMED, variants=["fp32"], gates=impossible, n_rounds=N_ROUNDS)
    assert [reason.split(":")[0] for reason in found.report.reasons] == ["slower"]
    assert best_of([found]) is None


def test_a_model_that_cannot_be_quantised_says_so_in_its_report() -> None:
    found = reports(networks.doubling(), FLAT[:, :4])
    assert found["fp32"].parity is not None
    for variant in ("int8_dynamic", "int8_static"):
        assert not found[variant].accepted
        assert "cannot give this model as" in found[variant].reasons[0]
        assert (found[variant].timing, found[variant].parity, found[variant].size_bytes) == (None, None, None)


def test_rows_given_to_calibrate_with_are_those_the_scales_come_from() -> None:
    narrow = reports(networks.recurrent(), TIMED, variants=["int8_static"], calibration=TIMED * 1e-3)["int8_static"]
    usual = reports(networks.recurrent(), TIMED, variants=["int8_static"], calibration=TIMED)["int8_static"]
    assert narrow.parity is not None
    assert usual.parity is not None
    assert (narrow.parity.max_abs_difference or 0) > 3 * (usual.parity.max_abs_difference or 0)
    assert not any("calibrated" in note for note in usual.notes)


def test_without_rows_the_report_says_that_they_are_made_up() -> None:
    found = reports(networks.dense(), None, variants=["fp32"])["fp32"]
    assert found.parity is not None
    assert found.parity.n_rows >= 1000
    assert any("made-up" in note for note in found.notes)


@pytest.mark.parametrize("cut", [0, 10, 100])
def test_a_damaged_file_is_refused(cut: int) -> None:
    with pytest.raises(Undecodable):
        optimized(networks.dense()[:cut], FLAT)


def test_the_quickest_that_was_accepted_is_the_best() -> None:
    found = optimized(networks.recurrent(), TIMED, gates=ANY_SPEED, n_rounds=N_ROUNDS)
    accepted = [one for one in found if one.report.accepted]
    best = best_of(found)
    assert best in accepted
    assert best is not None
    assert best.report.timing is not None
    assert all(one.report.timing and one.report.timing.p50_ms >= best.report.timing.p50_ms for one in accepted)


# --- the class ----------------------------------------------------------------------------------------------------------


def test_every_known_method_can_be_called_and_awaited_with_the_same_arguments() -> None:
    for name in NAMES:
        assert not inspect.iscoroutinefunction(getattr(SyncONNXOptimizer, name))
        assert inspect.iscoroutinefunction(getattr(ONNXOptimizer, name))
        assert inspect.signature(getattr(ONNXOptimizer, name)) == inspect.signature(getattr(SyncONNXOptimizer, name))


def test_files_are_read_and_written_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source.onnx", tmp_path / "int8.onnx"
    source.write_bytes(networks.recurrent())
    target.write_bytes(b"old")
    optimizer = SyncONNXOptimizer(n_rounds=N_ROUNDS)
    made = optimizer.quantize_model(source, output_path=target)
    assert target.read_bytes() == made == optimizer.quantize_model(source.read_bytes())
    static = optimizer.quantize_model(str(source), TIMED)
    assert static != made
    assert optimizer.optimize_graph(source, output_path=str(target)) == target.read_bytes()
    times = optimizer.benchmark({"source": source, "int8": made}, TIMED)
    assert list(times) == ["source", "int8"]
    with pytest.raises(Undecodable):
        optimizer.quantize_model(b"junk", output_path=target)
    assert target.read_bytes() == optimizer.optimize_graph(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "source.onnx"]


def test_awaited_it_gives_what_it_gives_when_called() -> None:
    content = networks.recurrent()
    assert asyncio.run(ONNXOptimizer().quantize_model(content)) == SyncONNXOptimizer().quantize_model(content)


# --- torch --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch() -> Any:
    pytest.importorskip("onnxscript", reason="torch exports to ONNX with it")
    return pytest.importorskip("torch", reason="these models are torch's")


@pytest.fixture
def small(torch: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.5), torch.nn.ReLU(), torch.nn.Linear(64, 3))


def test_an_export_gives_what_the_module_gives_for_any_number_of_rows(small: Any, torch: Any, tmp_path: Path) -> None:
    optimizer = SyncONNXOptimizer(n_rounds=N_ROUNDS)
    n_threads = torch.get_num_threads()
    content = optimizer.export_to_onnx(small, (8,), tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").read_bytes() == content == optimizer.export_to_onnx(small, (8,))
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"], "no side file with the weights"
    found = optimizer.compare_pytorch_onnx(small, content, FLAT)
    assert found.parity.passed
    assert found.parity.n_rows == len(FLAT)
    assert found.speedup == found.torch_timing.p50_ms / found.onnx_timing.p50_ms
    assert small.training, "it is left as it was"
    assert torch.get_num_threads() == n_threads


@pytest.mark.parametrize("is_training", [True, False])
def test_an_export_leaves_every_part_of_a_module_as_it_was(torch: Any, is_training: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    module.train(is_training)
    module[1].train(not is_training)
    content = SyncONNXOptimizer().export_to_onnx(module, (8,))
    assert [part.training for part in module.modules()] == [is_training, is_training, not is_training, is_training]
    assert SyncONNXOptimizer(n_rounds=1).compare_pytorch_onnx(module, content, FLAT).parity.passed
    assert module[1].num_batches_tracked == 0, "nothing is learnt from the rows"
    assert module.training == is_training


def test_an_export_says_nothing_of_this_machine(small: Any) -> None:
    content = SyncONNXOptimizer().export_to_onnx(small, (8,))
    assert b".py" not in content
    assert not any(node.metadata_props or node.doc_string for node in read_graph(content).graph.node)


def test_an_export_of_other_weights_is_found_out(small: Any, torch: Any) -> None:
    content = SyncONNXOptimizer().export_to_onnx(small, (8,))
    with torch.no_grad():
        small[0].weight[0, 0] += 1
    assert not SyncONNXOptimizer(n_rounds=1).compare_pytorch_onnx(small, content, FLAT).parity.passed


def test_exporting_and_optimising_gives_the_best_form_and_a_report_of_each(small: Any, tmp_path: Path) -> None:
    found = asyncio.run(
        ONNXOptimizer(ANY_SPEED, n_rounds=N_ROUNDS).export_and_optimize(
            small, (8,), FLAT, output_path=tmp_path / "best"
        )
    )
    assert found.comparison.parity.passed
    assert [one.report.variant for one in found.candidates] == ["fp32", "int8_dynamic", "int8_static"]
    assert (tmp_path / "best").read_bytes() == found.best
    best = best_of(found.candidates)
    assert found.best == (best.content if best else found.content)


def test_a_module_whose_way_depends_on_its_input_cannot_be_exported(torch: Any) -> None:
    class Branching(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, rows: Any) -> Any:
            return rows if rows.sum() > 0 else -rows

    with pytest.raises(NotConvertible, match="cannot give this model as onnx"):
        SyncONNXOptimizer().export_to_onnx(Branching(), (8,))


def test_the_name_of_an_exported_output_makes_no_return_of_it(torch: Any) -> None:
    from mmserver.serving.output_meanings import meanings_of_outputs

    module = torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Sigmoid())
    outputs = opened(SyncONNXOptimizer().export_to_onnx(module, (8,))).run(FLAT)
    widths = {name: values.shape[1] for name, values in outputs.items()}
    assert widths == {"output": 1}
    assert meanings_of_outputs("", {}, None, widths) == (None, None)


def test_several_outputs_keep_their_order(torch: Any) -> None:
    class Both(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, rows: Any) -> Any:
            return rows.sum(dim=1, keepdim=True), rows * 2

    content = SyncONNXOptimizer().export_to_onnx(Both(), (8,))
    assert {name: values.shape for name, values in opened(content).run(FLAT).items()} == {
        "output_0": (300, 1),
        "output_1": (300, 8),
    }
    assert SyncONNXOptimizer(n_rounds=1).compare_pytorch_onnx(Both(), content, FLAT).parity.passed


@pytest.mark.parametrize("package", ["torch", "onnxscript"])
def test_without_torch_the_extra_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissing, match=r"pip install 'mmserver\[torch\]'"):
        SyncONNXOptimizer().export_to_onnx(object(), (8,))


def test_the_package_gives_the_optimiser_without_importing_it_before_it_is_asked_for() -> None:
    program = (
        "import sys, mmserver.conversion as package; "
        "assert 'mmserver.conversion.optimizing' not in sys.modules; "
        "from mmserver.conversion import ONNXOptimizer, SyncONNXOptimizer; "
        "from mmserver.conversion import optimizing; "
        "assert (ONNXOptimizer, SyncONNXOptimizer) == (optimizing.ONNXOptimizer, optimizing.SyncONNXOptimizer); "
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules); "
        "assert not hasattr(package, 'Optimiser')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
