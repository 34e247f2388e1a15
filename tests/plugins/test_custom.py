"""Models of any other kind run by what an installed package announces, and by nothing else."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.errors import Undecodable
from mmserver.plugin_loading import Plugins
from mmserver.plugins import custom

CODE = """
import numpy as np


class Linear:
    def __init__(self, weights, scale):
        self.weights, self.scale = weights, np.float32(scale)
        self.n_features, self.size_bytes = len(weights), 8 * len(weights)

    def predict(self, rows):
        return {"prediction": (rows @ self.weights * self.scale).reshape(-1, 1)}


def linear(content, options):
    return Linear(np.array(content.split(), dtype=np.float32), options.get("scale", 1))
"""


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that announces a model, and one that is broken."""
    (tmp_path / "linear_models.py").write_text(CODE)
    announced = tmp_path / "linear_models-2.1.dist-info"
    announced.mkdir()
    (announced / "METADATA").write_text("Metadata-Version: 2.1\nName: linear-models\nVersion: 2.1\n")
    points = "[mmserver.custom_models]\nlinear = linear_models:linear\nbroken = not_there_at_all:make\n"
    (announced / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    custom._announced.cache_clear()
    yield
    custom._announced.cache_clear()
    sys.modules.pop("linear_models", None)


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
