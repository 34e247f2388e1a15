"""A damaged file of any format is kept out with the reason, or is a whole other model; what was in production stays there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.catalog.store import Store
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid
from mmserver.formats import ModelSource
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.stages import promote
from mmserver.registry.versions import list_versions
from mmserver.settings import Settings
from tests.plugins.samples import SAMPLES, Sample

pytestmark = pytest.mark.slow
TEST = Actor("test")
N_FLIPS = 8
REASONS = {
    "crashed",
    "forbidden_global",
    "forbidden_opcode",
    "invalid_model",
    "malformed",
    "not_convertible",
    "not_finite",
    "parity_failed",
    "plugin_failed",
    "torn",
    "unsupported",
    "wrong_type",
    "wrong_version",
}


@pytest.fixture
def store(guarded_settings: Settings, tmp_path: Path) -> Iterator[Store]:
    with open_store(replace(guarded_settings, data_dir=tmp_path)) as opened:
        yield opened


def registered(store: Store, reader: ModelReader, sample: Sample, label: str, data: bytes) -> Any:
    source = ModelSource(file_name=sample.file_name, files={sample.file_name: data}, options=sample.options)
    new = NewVersion(model_name="hybrid", label=label, source=source, model_type=sample.model_type)
    return register_version(store, reader, new, TEST).version


@pytest.mark.parametrize("sample", SAMPLES, ids=[sample.name for sample in SAMPLES])
def test_a_damaged_file_changes_nothing_of_what_is_served(
    store: Store, guarded_reader: ModelReader, sample: Sample
) -> None:
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    whole = sample.make()
    before = registered(store, guarded_reader, sample, "1.0.0", whole)
    promote(store, "hybrid", "1.0.0", TEST)
    for share in (0.02, 0.3, 0.6, 0.95):
        with pytest.raises(ArtifactInvalid) as refusal:
            registered(store, guarded_reader, sample, "1.1.0", whole[: int(share * len(whole))])
        assert str(refusal.value.values["reason"]).partition("(")[0] in REASONS
        assert [version.label for version in list_versions(store, "hybrid")] == ["1.0.0"]
    random, refused, others = np.random.default_rng(17), 0, 0
    for number in range(N_FLIPS):
        flipped = bytearray(whole)
        flipped[random.integers(len(whole)) if number else 0] ^= 1 << random.integers(8)
        try:
            other = registered(store, guarded_reader, sample, f"1.1.{number}", bytes(flipped))
        except ArtifactInvalid as error:
            refused += 1
            assert str(error.values["reason"]).partition("(")[0] in REASONS
        else:
            others += 1
            assert other.stage is None
    assert refused
    assert len(list_versions(store, "hybrid")) == 1 + others
    served = store.model("hybrid").serving
    assert (served.label, store.model("hybrid").stages) == ("1.0.0", {"production": "1.0.0"})
    assert list_versions(store, "hybrid", "production")[0].sha256 == before.sha256
