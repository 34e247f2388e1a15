"""ONNX files read, opened and simplified."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.conversion.graph_rewriting import opened, opened_for, optimized_graph, read_graph
from mmserver.errors import ExtraMissing, Undecodable

networks: Any = pytest.importorskip("conversion.networks", reason="graphs are made with the onnx package")
ROWS = np.random.default_rng(5).normal(size=(20, 8)).astype(np.float32)


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_a_simplified_graph_gives_the_same_and_always_has_the_same_bytes(level: Any) -> None:
    content = networks.dense()
    found = optimized_graph(content, level)
    np.testing.assert_allclose(
        opened(found).run(ROWS)["prediction"], opened(content).run(ROWS)["prediction"], rtol=1e-6, atol=1e-6
    )
    assert optimized_graph(content, level) == found


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="one of basic, extended, all"):
        optimized_graph(networks.dense(), "fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"junk", id="junk"),
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: content.replace(b"MatMul", b"MatMux"), id="unknown-operator"),
        pytest.param(lambda content: content.replace(b"second", b"absent", 1), id="dangling-name"),
    ],
)
def test_a_damaged_file_is_refused_by_name(damage: Any) -> None:
    damaged = damage(networks.dense())
    with pytest.raises(Undecodable):
        opened(damaged)
    with pytest.raises(Undecodable):
        optimized_graph(damaged)


def test_a_file_that_names_another_file_for_its_weights_never_has_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(bytes(8 * 4 * 4))
    for location in ("weights", str(tmp_path / "weights")):
        content = networks.with_external_weights(location)
        for use in (opened, optimized_graph, read_graph):
            with pytest.raises(Undecodable, match="other files"):
                use(content)


def test_rows_of_another_size_are_refused_and_shaped_rows_give_what_flat_ones_give() -> None:
    graph = opened(networks.recurrent())
    shaped = np.random.default_rng(2).normal(size=(5, 6, 16)).astype(np.float32)
    flat = graph.run(shaped.reshape(5, -1))["prediction"]
    assert opened_for(networks.recurrent(), shaped).run(shaped)["prediction"].tobytes() == flat.tobytes()
    with pytest.raises(Undecodable, match="takes 96 numbers"):
        graph.run(ROWS)


def test_without_the_package_that_reads_onnx_files_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = networks.dense()
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'mmserver\[onnx\]'"):
        optimized_graph(content)


def test_no_temporary_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    optimized_graph(networks.dense())
    with pytest.raises(Undecodable):
        optimized_graph(networks.dense().replace(b"MatMul", b"MatMux"))
    assert list(tmp_path.iterdir()) == []


def test_a_simplified_graph_lists_no_operators_of_onnxruntime() -> None:
    listed = [(entry.domain, entry.version) for entry in read_graph(optimized_graph(networks.recurrent())).opset_import]
    assert listed == [("", networks.OPSET)]


def test_operators_used_in_a_branch_only_stay_listed() -> None:
    found = optimized_graph(networks.branching())
    assert [entry.domain for entry in read_graph(found).opset_import] == ["", "com.microsoft"]
    np.testing.assert_array_equal(
        opened(found).run(ROWS)["prediction"], opened(networks.branching()).run(ROWS)["prediction"]
    )
