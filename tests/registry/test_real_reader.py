"""A model file that is read by its format's plugin in a guarded process, registered, promoted and asked."""

from collections.abc import Iterator
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid
from mmserver.formats import ModelSource
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.stages import promote
from mmserver.serving.predictions import Asked, Serving
from mmserver.storage.tables import ModelRow

TEST = Actor("test")
ROW = [0.3, -1.2, 0.7]


@pytest.fixture
def reader(bench: Any) -> Iterator[ModelReader]:
    opened = ModelReader(bench.store.settings, bench.store.plugins)
    yield opened
    opened.close()


def new(label: str, content: bytes) -> NewVersion:
    source = ModelSource(file_name="model.json", files={"model.json": content})
    return NewVersion(model_name="hybrid", label=label, source=source, factors=("momentum", "volume", "spread"))


def test_an_xgboost_file_is_registered_and_predicts_what_the_library_does(bench: Any, reader: ModelReader) -> None:
    import numpy as np
    import xgboost

    version = register_version(bench.store, reader, new("1.0.0", bench.contents[0]), TEST).version
    assert (version.model_type, version.kind, version.factors) == (
        "xgboost",
        "xgboost",
        ("momentum", "volume", "spread"),
    )
    promote(bench.store, "hybrid", "1.0.0", TEST)
    booster = xgboost.Booster(model_file=bytearray(bench.contents[0]))
    expected = float(booster.inplace_predict(np.array([ROW], dtype=np.float32))[0])
    answer = Serving(bench.store).predict(Asked("BTC", ROW, "hybrid", version="production"))
    assert (answer.version, answer.decision.expected_return) == ("1.0.0", expected)


def test_a_file_that_is_cut_off_is_refused_and_what_was_served_still_is(bench: Any, reader: ModelReader) -> None:
    register_version(bench.store, reader, new("1.0.0", bench.contents[0]), TEST)
    with pytest.raises(ArtifactInvalid):
        register_version(bench.store, reader, new("1.1.0", bench.contents[1][:-100]), TEST)
    assert (bench.served, bench.count(ModelRow), bench.actions()) == ("1.0.0", 1, ["version.registered"])
