"""What is stored of a model that was read: few probe rows, and the numbers that JSON has."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from mmserver.catalog.ingest import IngestedGroup
from mmserver.conversion import worker
from mmserver.conversion.worker import MAX_PROBE_NUMBERS, READ_MODEL, ReadRequest, handlers, read_model
from mmserver.errors import ArtifactInvalid
from mmserver.formats import ModelFile, ModelFormat, ModelSource
from mmserver.plugin_loading import Plugins


def claim_of(plugins: Plugins, name: str) -> ModelFormat:
    claim = plugins.model_format_for(name)
    assert claim is not None
    return claim


def test_the_handlers_serve_one_job_for_the_formats_of_their_modules(plugins_dir: Path) -> None:
    jobs = handlers({"modules": [], "plugins_dir": str(plugins_dir)})
    assert list(jobs) == [READ_MODEL]
    source = ModelSource(file_name="m.linear", files={"m.linear": b"1 2"})
    request = ReadRequest(source=source, format_name="odd_linear", factors=("a", "b"), info={})
    group = msgspec.msgpack.decode(jobs[READ_MODEL](msgspec.msgpack.encode(request)), type=IngestedGroup)
    assert group.factors == ("a", "b")


def test_stored_probes_are_few_and_have_no_infinities(plugins: Plugins) -> None:
    source = ModelSource(file_name="m.many_probes", files={"m.many_probes": b"1 2 3 4"})
    model = claim_of(plugins, "m.many_probes").read(source)
    proven = worker._proven("m", model, plugins)
    assert proven.probes is not None
    width = 4 + 1
    assert len(proven.probes.rows) == MAX_PROBE_NUMBERS // width
    assert [row[0] for row in proven.probes.rows[:3]] == [0.0, 2.0, 3.0]
    assert proven.probes.outputs["prediction"][1] == [20.0]


def test_a_model_that_no_plugin_runs_is_refused(plugins: Plugins) -> None:
    def read(source: ModelSource) -> ModelFile:
        return ModelFile(kind="nobody's", content=b"", n_features=1, n_outputs=1, objective="", library_version="")

    request = ReadRequest(source=ModelSource(file_name="m", files={"m": b""}), format_name="x")
    with pytest.raises(ArtifactInvalid, match="no plugin runs nobody's models"):
        read_model(request, ModelFormat(name="x", suffixes=(".x",), read=read), plugins)


def read_linear(plugins: Plugins, data: bytes, factors: tuple[str, ...] | None, info: dict[str, Any]) -> IngestedGroup:
    source = ModelSource(file_name="m.linear", files={"m.linear": data})
    request = ReadRequest(source=source, format_name="odd_linear", factors=factors, info=info)
    return read_model(request, claim_of(plugins, "m.linear"), plugins)


@pytest.mark.parametrize(
    ("info", "says"),
    [
        pytest.param({"features": ["mom", "rsi", "vol"]}, "in another order, first at dim 0", id="other-order"),
        pytest.param({"features": ["rsi", "mom", "volume"]}, "dim 2 is 'volume'", id="other-name"),
        pytest.param({"n_features": 4}, "it says dim 4", id="other-number"),
    ],
)
def test_factors_that_the_info_contradicts_are_refused(info: dict[str, Any], says: str, plugins: Plugins) -> None:
    with pytest.raises(ArtifactInvalid, match=says) as raised:
        read_linear(plugins, b"1 2 3", ("rsi", "mom", "vol"), info)
    assert (raised.value.values["file"], raised.value.values["reason"]) == ("info", "inconsistent_pair")


def test_factors_that_the_info_has_too_are_taken(plugins: Plugins) -> None:
    names = ("rsi", "mom", "vol")
    info = {"features": list(names), "n_features": 3}
    assert read_linear(plugins, b"1 2 3", names, info).factors == names
