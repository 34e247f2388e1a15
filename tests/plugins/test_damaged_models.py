"""A damaged file of any format is kept out with the reason, or is a whole other model; what was in production stays there."""

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.opening import open_store
from mmserver.catalog.store import Store
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid, Undecodable
from mmserver.formats import ModelSource
from mmserver.plugin_loading import Plugins
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.stages import promote
from mmserver.registry.versions import list_versions
from mmserver.settings import Settings
from tests.plugins.samples import ROWS, SAMPLES, Sample

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
    "unsafe_archive",
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


CHECKED = ("sklearn-skops", "torch-program")
"""Archives, which have a checksum of every entry; of other formats `sha256` is to be sent along."""
N_CUTS = 10
N_BITS = 50


def contents(data: bytes) -> list[int]:
    """Where bytes of entries lie in an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        places = []
        for entry in archive.infolist():
            name_length, extra_length = struct.unpack_from("<HH", data, entry.header_offset + 26)
            start = entry.header_offset + 30 + name_length + extra_length
            places += range(start, start + entry.compress_size)
    return places


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if sample.name in CHECKED], ids=CHECKED)
def test_an_archive_that_is_cut_or_has_any_bit_of_its_contents_flipped_is_refused(
    read_model: Callable[..., Any], sample: Sample
) -> None:
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    model_type, whole = ("sklearn" if "sklearn" in sample.name else "torch"), sample.make()
    random = np.random.default_rng(19)
    for length in random.integers(2, len(whole), N_CUTS):
        with pytest.raises(Undecodable):
            read_model(model_type, whole[:length])
    for at in random.choice(contents(whole), N_BITS):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << random.integers(8)
        with pytest.raises(Undecodable) as refusal:
            read_model(model_type, bytes(flipped))
        assert refusal.value.reason == "malformed"


@pytest.mark.parametrize(
    "sample", [sample for sample in SAMPLES if sample.name == "sklearn-skops"], ids=["sklearn-skops"]
)
def test_a_flip_anywhere_else_in_an_archive_is_refused_or_changes_no_prediction(
    read_model: Callable[..., Any], plugins: Plugins, sample: Sample
) -> None:
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    whole = sample.make()
    predicted = plugins.load_predictor(read_model("sklearn", whole)).predict(np.float32(ROWS))["prediction"]
    random, inside = np.random.default_rng(23), set(contents(whole))
    for at in random.choice([at for at in range(len(whole)) if at not in inside], N_BITS):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << random.integers(8)
        try:
            model = read_model("sklearn", bytes(flipped))
        except Undecodable:
            continue
        assert plugins.load_predictor(model).predict(np.float32(ROWS))["prediction"].tobytes() == predicted.tobytes()
