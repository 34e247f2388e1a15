"""Importing what one server converted where the original cannot be read: the converted model, with its meaning, or nothing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.ingest import IngestedGroup
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ExtraMissing
from mmserver.formats import ModelFormat, ModelSource
from mmserver.registry.importing import import_directory
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.taking_over import TakenOver
from mmserver.registry.versions import get_version
from mmserver.serving.predictions import Asked, Serving

skops = pytest.importorskip("skops.io", reason="skops is not installed (the extra sklearn)")
pytest.importorskip("skl2onnx", reason="skl2onnx is not installed (the extra sklearn)")

from sklearn.linear_model import LogisticRegression  # noqa: E402  after the skips

TEST = Actor("test")
FACTORS = ("momentum", "volume", "spread")
ASKED = ([4.0, 0.0, 0.0], [-4.0, 0.0, 0.0], [0.0, 0.0, 0.0])


@dataclass
class WithoutSklearn:
    """What reads models where the extra is not installed."""

    reader: ModelReader

    def read(
        self, source: ModelSource, claim: ModelFormat, *, factors: tuple[str, ...] | None, info: dict[str, Any]
    ) -> IngestedGroup:
        if claim.name == "sklearn":
            raise ExtraMissing(what=claim.name, extra="sklearn")
        return self.reader.read(source, claim, factors=factors, info=info)


@pytest.fixture(scope="module")
def classifier() -> bytes:
    """Sell, hold, buy by the first factor, as -1, 0 and 1."""
    rows = np.random.default_rng(0).normal(size=(300, 3)) * 3
    content: bytes = skops.dumps(LogisticRegression().fit(rows, np.digitize(rows[:, 0], (-1, 1)) - 1))
    return content


@pytest.fixture
def first(open_bench: Callable[..., Any], tmp_path: Path) -> Any:
    """The server that the original is registered at."""
    return open_bench(registry_dir=tmp_path / "models")


@pytest.fixture
def second(open_bench: Callable[..., Any], tmp_path: Path) -> Any:
    """The server that it is imported to."""
    return open_bench(tmp_path / "second")


@pytest.fixture
def reader(first: Any) -> Iterator[ModelReader]:
    opened = ModelReader(first.store.settings, first.store.plugins)
    yield opened
    opened.close()


@pytest.fixture
def metadata(first: Any, reader: ModelReader, classifier: bytes, tmp_path: Path) -> Path:
    """`metadata.json` of the registered original."""
    source = ModelSource(file_name="model.skops", files={"model.skops": classifier})
    new = NewVersion(model_name="hybrid", label="1.0.0", source=source, factors=FACTORS, info={"dim": 3})
    register_version(first.store, reader, new, TEST)
    return tmp_path / "models/hybrid/v1.0.0/metadata.json"


@pytest.fixture
def imported(second: Any, reader: ModelReader, tmp_path: Path, metadata: Path) -> Callable[[], TakenOver]:
    return lambda: import_directory(second.store, WithoutSklearn(reader), tmp_path / "models", TEST)


def decisions(bench: Any) -> list[Any]:
    serving = Serving(bench.store)
    return [serving.predict(Asked("BTC", row, "hybrid")).decision for row in ASKED]


def test_a_classifier_that_is_taken_as_onnx_says_buy_hold_and_sell_where_its_original_does(
    first: Any, second: Any, imported: Callable[[], TakenOver]
) -> None:
    done = imported()
    assert (done.registered, done.skipped) == (["hybrid 1.0.0"], [])
    assert [note for note in done.notes if "taken from model.onnx, because model.skops cannot be read here" in note]
    assert get_version(second.store, "hybrid", "1.0.0").kind == "onnx"
    assert [str(decision.direction) for decision in decisions(second)] == ["BUY", "SELL", "HOLD"]
    assert decisions(second) == decisions(first)


def test_the_metadata_says_what_the_converted_model_has_to_be_registered_with(metadata: Path) -> None:
    said = json.loads(metadata.read_text())["served_options"]
    assert (said["classes"], said["input_shape"], said["outputs"]) == ([-1, 0, 1], [3], ["probabilities"])


@pytest.mark.parametrize(
    "value", [pytest.param(None, id="null"), pytest.param([1], id="list"), pytest.param("", id="text")]
)
def test_a_converted_model_whose_meaning_nothing_says_is_not_taken(
    imported: Callable[[], TakenOver], metadata: Path, value: Any
) -> None:
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "served_options": value}))
    done = imported()
    assert done.registered == []
    assert "sklearn" in done.skipped[0]
    assert "model.onnx cannot take its place: metadata.json lacks served_options" in done.skipped[0]


def test_what_can_be_read_needs_no_options_for_its_converted_model(
    second: Any, reader: ModelReader, metadata: Path, tmp_path: Path
) -> None:
    said = json.loads(metadata.read_text())
    del said["served_options"]
    metadata.write_text(json.dumps(said))
    done = import_directory(second.store, reader, tmp_path / "models", TEST)
    assert (done.registered, done.skipped) == (["hybrid 1.0.0"], [])


def test_a_second_import_finds_unchanged_what_the_first_took_as_onnx(
    second: Any, reader: ModelReader, imported: Callable[[], TakenOver], tmp_path: Path
) -> None:
    imported()
    n_audited = len(second.audit())
    for again in (imported(), import_directory(second.store, reader, tmp_path / "models", TEST)):
        assert (again.unchanged, again.registered, again.skipped) == (["hybrid 1.0.0"], [], [])
    assert len(second.audit()) == n_audited


def test_other_content_under_the_label_is_not_taken_for_the_converted_model(
    second: Any, imported: Callable[[], TakenOver]
) -> None:
    second.register("1.0.0")
    done = imported()
    assert (done.unchanged, done.registered) == ([], [])
    assert "hybrid 1.0.0" in done.skipped[0]
