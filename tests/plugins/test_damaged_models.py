"""A damaged file of any format is kept out with the reason, or is a whole other model; what was in production stays there."""

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.ingest import IngestedGroup
from mmserver.catalog.opening import open_store
from mmserver.catalog.store import Store
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid, Undecodable
from mmserver.formats import ModelFile, ModelSource
from mmserver.plugin_loading import Plugins, load_plugins
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.stages import promote
from mmserver.registry.versions import list_versions
from mmserver.settings import Settings
from tests.plugins.samples import ROWS, SAMPLES, Sample, network

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


NETWORK = """
import torch
from mmserver import hookimpl

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))

@hookimpl
def mmserver_event(event):
    pass
"""


def state_dict() -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(network().state_dict(), file)
    return file.getvalue()


def torch_script() -> bytes:
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(network(), torch.zeros(2, 4)), file)
    return file.getvalue()


TORCH = ("torch", "onnxscript")
ARCHIVES = [
    *(sample for sample in SAMPLES if sample.name in CHECKED),
    Sample(
        "torch-state-dict",
        "a.pt",
        state_dict,
        needs=TORCH,
        options={"code": "damaged_network:Net", "input_shape": [4]},
    ),
    Sample("torch-script", "a.pt", torch_script, needs=TORCH, options={"input_shape": [4]}),
]
NOT_PROGRAMS = [sample for sample in ARCHIVES if sample.name != "torch-program"]
"""Reading a program takes seconds."""


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Plugins:
    """All plugins, with a file of code for a state dict."""
    directory = tmp_path_factory.mktemp("networks")
    (directory / "damaged_network.py").write_text(NETWORK)
    return load_plugins(directory)


def read_archive(plugins: Plugins, sample: Sample, data: bytes) -> ModelFile:
    claim = plugins.model_format_for(sample.file_name)
    assert claim is not None
    return claim.read(ModelSource(file_name="a", files={"a": data}, options=sample.options))


def contents(data: bytes) -> list[int]:
    """Where bytes of entries lie in an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        places = []
        for entry in archive.infolist():
            name_length, extra_length = struct.unpack_from("<HH", data, entry.header_offset + 26)
            start = entry.header_offset + 30 + name_length + extra_length
            places += range(start, start + entry.compress_size)
    return places


def entries(data: bytes | bytearray) -> dict[str, bytes] | None:
    """What an archive holds; None where something in it is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {entry.filename: archive.read(entry) for entry in archive.infolist()}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError):
        return None


@pytest.mark.parametrize("sample", ARCHIVES, ids=[sample.name for sample in ARCHIVES])
def test_an_archive_that_is_cut_or_has_any_bit_of_its_contents_flipped_is_refused(
    networks: Plugins, sample: Sample
) -> None:
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    whole = sample.make()
    random = np.random.default_rng(19)
    for length in random.integers(2, len(whole), N_CUTS):
        with pytest.raises(Undecodable):
            read_archive(networks, sample, whole[:length])
    for at in random.choice(contents(whole), N_BITS):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << random.integers(8)
        if entries(flipped) == entries(whole):
            continue  # what is compressed has bits that mean nothing, such as those after its end
        with pytest.raises(Undecodable) as refusal:
            read_archive(networks, sample, bytes(flipped))
        assert refusal.value.reason == "malformed"


@pytest.mark.parametrize("sample", NOT_PROGRAMS, ids=[sample.name for sample in NOT_PROGRAMS])
def test_a_flip_anywhere_else_in_an_archive_is_refused_or_changes_no_prediction(
    networks: Plugins, sample: Sample
) -> None:
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    whole = sample.make()

    def predicted(model: ModelFile) -> bytes:
        outputs = networks.load_predictor(model).predict(np.float32(ROWS))
        return b"".join(values.tobytes() for values in outputs.values())

    expected = predicted(read_archive(networks, sample, whole))
    random, inside = np.random.default_rng(23), set(contents(whole))
    for at in random.choice([at for at in range(len(whole)) if at not in inside], N_BITS):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << random.integers(8)
        try:
            model = read_archive(networks, sample, bytes(flipped))
        except (Undecodable, RuntimeError, zipfile.BadZipFile):  # the last two are torch's own
            continue
        assert predicted(model) == expected


def rezipped(data: bytes, more: str) -> bytes:
    """The archive, deflated, with 64 MiB of zeros in an entry whose name is in no UTF-8."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr(more + "/xx", bytes(64 << 20))
    return file.getvalue().replace(f"{more}/xx".encode(), f"{more}/".encode() + b"\x82\x8a")


@pytest.mark.parametrize("sample", ARCHIVES, ids=[sample.name for sample in ARCHIVES])
def test_a_bomb_whose_name_is_no_utf_8_is_refused_in_the_guarded_process(
    read_guarded: Callable[..., IngestedGroup], sample: Sample
) -> None:
    if sample.missing is not None:
        pytest.skip(f"{sample.missing} is not installed")
    bomb = rezipped(sample.make(), "a")
    with pytest.raises(ArtifactInvalid, match="'a/éè' would be 67108864 bytes") as refusal:
        read_guarded(sample.file_name, bomb, **sample.options)
    assert refusal.value.values["reason"] == "unsafe_archive"
