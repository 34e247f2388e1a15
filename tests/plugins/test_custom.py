"""Models of any other kind run by what an installed package announces, and by nothing else."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.ingest import IngestedGroup
from mmserver.errors import ArtifactInvalid, Undecodable
from mmserver.plugin_loading import Plugins
from mmserver.plugins import custom


@pytest.fixture(autouse=True)
def announced(linear_models: Path) -> Iterator[None]:
    """An installed package that announces a model, and one that is broken."""
    custom._announced.cache_clear()
    yield
    custom._announced.cache_clear()


def test_a_file_is_run_by_what_the_entry_point_makes_of_it(read_model: Callable[..., Any], plugins: Plugins) -> None:
    model = read_model("custom", b"1 2 3", entry_point="linear", scale=2)
    assert (model.kind, model.content, model.n_features, model.n_outputs) == ("custom", b"1 2 3", 3, 1)
    assert model.library_version == "linear-models 2.1"
    predictor = plugins.load_predictor(model)
    assert predictor is not None
    assert predictor.predict(np.ones((1, 3), dtype=np.float32))["prediction"].tolist() == [[12.0]]


def test_a_row_may_have_a_shape(read_model: Callable[..., Any]) -> None:
    assert read_model("custom", b"1 2 3 4", entry_point="linear", input_shape=[2, 2]).input_shape == (2, 2)


def test_without_an_entry_point_those_that_there_are_are_named(read_model: Callable[..., Any]) -> None:
    with pytest.raises(Undecodable, match=r"entry_point is to name one .*: broken, linear"):
        read_model("custom", b"1 2 3")


@pytest.mark.parametrize("name", ["os:system", "linear_models:linear", "nobody"])
def test_what_no_package_announces_is_not_imported(read_model: Callable[..., Any], name: str) -> None:
    with pytest.raises(Undecodable, match="is its package installed"):
        read_model("custom", b"1 2 3", entry_point=name)


def test_a_broken_package_breaks_its_own_models_only(read_model: Callable[..., Any]) -> None:
    custom.warm_up()
    assert read_model("custom", b"1 2", entry_point="linear").n_features == 2
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        read_model("custom", b"1 2", entry_point="broken")


def test_the_guarded_process_runs_it_too_and_keeps_what_it_predicts(
    read_guarded: Callable[..., IngestedGroup], plugins: Plugins
) -> None:
    group = read_guarded(
        "weights.bin", b"1 2 3 4", model_type="custom", entry_point="linear", input_shape=[2, 2], scale=2
    )
    assert (group.dim, group.factors, group.model_content) == (2, ("f0", "f1"), b"1 2 3 4")
    described = json.loads(group.detail)["model"]
    assert described["summary"] == {"entry_point": "linear", "options": {"input_shape": [2, 2], "scale": 2}}
    assert (described["kind"], described["library_version"]) == ("custom", "linear-models 2.1")


@pytest.mark.parametrize(
    ("data", "options", "reason"),
    [
        pytest.param(b"1 2 x", {"entry_point": "linear"}, "malformed", id="its-code-raises"),
        pytest.param(b"", {"entry_point": "linear"}, "malformed", id="nothing"),
        pytest.param(b"1 2", {"entry_point": "broken"}, "malformed", id="broken-package"),
        pytest.param(b"1 2", {"entry_point": "os:system"}, "code_unknown", id="not-announced"),
        pytest.param(b"1 2", {}, "option_missing", id="no-entry-point"),
    ],
)
def test_what_it_cannot_read_is_refused_in_the_guarded_process(
    read_guarded: Callable[..., IngestedGroup], data: bytes, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArtifactInvalid) as refusal:
        read_guarded("weights.bin", data, model_type="custom", **options)
    assert refusal.value.values["reason"] == reason
