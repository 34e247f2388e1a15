"""Registered models are read in guarded processes; whatever a model or its format does there, it is a refusal here."""

import io
import json
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from mmserver.catalog.ingest import IngestedGroup
from mmserver.conversion import reading
from mmserver.conversion.reading import ModelReader
from mmserver.errors import ArtifactInvalid, ExtraMissing, SandboxUnavailable
from mmserver.formats import ModelSource
from mmserver.plugin_loading import Plugins
from mmserver.settings import Settings

Read = Callable[..., IngestedGroup]
LYING = """
import msgspec
from mmserver.catalog.ingest import IngestedGroup
from mmserver.conversion.worker import READ_MODEL, ReadRequest

def lie(request):
    about = msgspec.msgpack.decode(request, type=ReadRequest).source.content.decode()
    facts = {"group_key": "all", "symbol": "*", "payload_sha256": None, about: "a lie"}
    if about == "garbage":
        return b"garbage"
    return msgspec.msgpack.encode(IngestedGroup(
        return_name="", dim=1, factors=("a",), train_samples=None, ic_mean=None, detail=b"{}", payload_gzip=None,
        payload_size_bytes=0, manifest=None, no_model_reason=None, **facts,
    ))

def make(options):
    return {READ_MODEL: lie}
"""
WEIGHTS = b"1 2 3 4"


def refused(read: Read, reason: str, says: str, *arguments: Any, **said: Any) -> None:
    with pytest.raises(ArtifactInvalid, match=says) as refusal:
        read(*arguments, **said)
    assert str(refusal.value.values["reason"]).startswith(reason)


def model_of(group: IngestedGroup) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(group.detail)["model"]
    return described


def test_a_model_becomes_the_one_group_of_its_version(read: Read) -> None:
    group = read("m.linear", WEIGHTS, info={"note": "mine", "train_samples": 7})
    assert (group.group_key, group.symbol, group.return_name) == ("all", "*", "")
    assert (group.factors, group.dim) == (("f0", "f1", "f2", "f3"), 4)
    assert (group.model_content, group.train_samples) == (WEIGHTS, 7)
    assert json.loads(group.detail)["info"] == {"note": "mine", "train_samples": 7}


def test_factors_are_those_given_else_the_model_s_own(read: Read) -> None:
    names = ["a", "b", "c", "d"]
    assert read("m.linear", WEIGHTS, names=names).factors == tuple(names)
    assert read("m.linear", WEIGHTS, factors=("w", "x", "y", "z"), names=names).factors == ("w", "x", "y", "z")


def test_factors_that_name_the_model_s_inputs_in_another_order_are_refused(read: Read) -> None:
    said = {"factors": ("b", "a", "c", "d"), "names": ["a", "b", "c", "d"]}
    refused(read, "inconsistent_pair", "input 0 is 'a', in the factors that is 1", "m.linear", WEIGHTS, **said)


def test_too_few_factors_are_refused(read: Read) -> None:
    refused(read, "inconsistent_pair", "4 inputs", "m.linear", WEIGHTS, factors=("a", "b"))


def test_factors_name_the_last_axis_of_rows_that_have_several(read: Read) -> None:
    group = read("m.shaped", b"1 2 3 4 5 6", shape=[3, 2], factors=("open", "close"))
    assert (group.dim, group.factors) == (2, ("open", "close"))
    assert (model_of(group)["n_features"], model_of(group)["input_shape"]) == (6, [3, 2])
    assert read("m.shaped", b"1 2 3 4 5 6", shape=[3, 2], info={"n_features": 6}).dim == 2, "all numbers may be counted"
    refused(read, "malformed", "does not have the 6 inputs", "m.shaped", b"1 2 3 4 5 6", shape=[4, 2])


def test_a_conversion_that_agrees_keeps_its_report(read: Read) -> None:
    summary = model_of(read("m.converted", WEIGHTS))["summary"]
    parity = summary["parity"]
    assert (parity["passed"], parity["n_rows"], parity["source"]) == (True, 2, "a pencil")
    assert summary["accepts_missing"] is False


def test_a_conversion_that_disagrees_is_refused_with_the_figures(read: Read) -> None:
    says = "2 of 2 rows differ from a pencil .* largest difference is 0.25"
    refused(read, "parity_failed", says, "m.converted", WEIGHTS, off=0.25)


def test_missing_values_are_accepted_where_source_and_conversion_agreed_on_each(read: Read) -> None:
    assert model_of(read("m.converted", WEIGHTS, missing=True))["summary"]["accepts_missing"] is True


def test_a_format_that_raises_when_it_is_warmed_up_takes_no_other_with_it(read: Read) -> None:
    refused(read, "plugin_failed", "no luck today", "m.cold", WEIGHTS)
    assert read("m.linear", WEIGHTS).dim == 4


def test_a_missing_library_is_named_with_its_extra(read: Read) -> None:
    with pytest.raises(ExtraMissing, match=r"pip install 'mmserver\[absent\]'"):
        read("m.absent", WEIGHTS)


@pytest.mark.parametrize(
    ("name", "reason", "says"),
    [
        pytest.param("m.crashing", "crashed(SIGABRT", "died", id="crash"),
        pytest.param("m.greedy", "crashed(out of memory", "died", id="memory"),
        pytest.param("m.prying", "malformed", "PermissionError", id="other_files"),
        pytest.param("m.wrong", "plugin_failed", "gave str", id="wrong_type"),
        pytest.param("m.linear", "malformed", "could not convert", id="not_its_format"),
    ],
)
def test_what_a_format_does_wrong_is_the_refusal_of_the_file(read: Read, name: str, reason: str, says: str) -> None:
    refused(read, reason, says, name, b"1 2 x 4" if name == "m.linear" else WEIGHTS)
    assert read("m.linear", WEIGHTS).dim == 4


def test_a_read_that_hangs_is_killed_at_the_limit(read: Read, settings: Settings, plugins: Plugins) -> None:
    short = ModelReader(replace(settings, conversion_timeout_s=5.0), plugins)
    try:
        read("m.linear", WEIGHTS, by=short)
        refused(read, "crashed(timeout after 5 s", "died", "m.hanging", WEIGHTS, by=short)
        assert read("m.linear", WEIGHTS, by=short).dim == 4
    finally:
        short.close()


def test_a_process_without_work_is_ended_and_started_again(read: Read, settings: Settings, plugins: Plugins) -> None:
    brief = ModelReader(settings, plugins, idle_s=0.05)
    try:
        for _ in range(2):
            assert read("m.linear", WEIGHTS, by=brief).dim == 4
            wait_until(lambda: brief.n_processes() == 0)
    finally:
        brief.close()


def test_a_closed_reader_says_so_also_to_who_is_reading(read: Read, settings: Settings, plugins: Plugins) -> None:
    reader = ModelReader(settings, plugins)
    raised: list[BaseException] = []

    def hang() -> None:
        try:
            read("m.hanging", WEIGHTS, by=reader)
        except (SandboxUnavailable, ArtifactInvalid) as error:
            raised.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    wait_until(lambda: reader.n_processes() == 1)
    reader.close()
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [SandboxUnavailable]
    with pytest.raises(SandboxUnavailable):
        read("m.linear", WEIGHTS, by=reader)


@pytest.mark.parametrize("lie", ["group_key", "symbol", "payload_sha256", "garbage"])
def test_an_answer_that_a_registered_model_cannot_have_is_not_believed(
    lie: str, settings: Settings, plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lying_reader.py").write_text(LYING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reading, "HANDLERS", "lying_reader:make")
    claim = plugins.model_format_for("m.linear")
    assert claim is not None
    lying = ModelReader(settings, plugins)
    try:
        with pytest.raises(ArtifactInvalid, match="makes no sense"):
            lying.read(ModelSource(file_name="m.linear", files={"m.linear": lie.encode()}), claim, info={})
    finally:
        lying.close()


def test_a_model_s_file_that_is_not_among_the_files_is_named(reader: ModelReader, plugins: Plugins) -> None:
    claim = plugins.model_format_for("m.linear")
    assert claim is not None
    with pytest.raises(ArtifactInvalid, match=r"only other\.txt"):
        reader.read(ModelSource(file_name="m.linear", files={"other.txt": b""}), claim, info={})


# --- XGBoost ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def booster() -> xgboost.Booster:
    random = np.random.default_rng(5)
    rows = random.normal(size=(200, 4)).astype(np.float32)
    matrix = xgboost.DMatrix(rows, rows[:, 0] * rows[:, 1], feature_names=["a", "b", "c", "d"])
    return xgboost.train({"max_depth": 3, "nthread": 1}, matrix, num_boost_round=5)


@pytest.mark.parametrize("form", ["json", "ubj", "pkl"])
def test_every_form_of_an_xgboost_model_is_the_same_model(read: Read, booster: xgboost.Booster, form: str) -> None:
    data = pickle.dumps(booster) if form == "pkl" else bytes(booster.save_raw(form))
    group = read(f"m.{form}", data)
    assert group.factors == ("a", "b", "c", "d")
    assert model_of(group)["kind"] == "xgboost"
    assert model_of(group)["summary"]["engine"] == "exact"
    assert group.payload_sha256 == read("m.json", bytes(booster.save_raw("json"))).payload_sha256


def test_a_pickle_that_runs_code_is_refused_without_running_it(read: Read, tmp_path: Any) -> None:
    target = tmp_path / "touched"

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(target), "w"))

    refused(read, "forbidden_global", "open", "m.pkl", pickle.dumps(Bomb()))
    assert not target.exists()


def test_a_pickle_that_unpacks_to_gigabytes_is_refused(read: Read) -> None:
    bomb = io.BytesIO()
    bomb.write(b"\x80\x04]\x94")
    for _ in range(40):
        bomb.write(b"(h\x00h\x00h\x00h\x00h\x00h\x00h\x00h\x00l\x94")
    bomb.write(b".")
    with pytest.raises(ArtifactInvalid):
        read("m.pkl", bomb.getvalue())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nobody_but_the_setting_lets_a_file_be_unpickled(reader: ModelReader, plugins: Plugins) -> None:
    claim = plugins.model_format_for("a.telling")
    assert claim is not None
    source = ModelSource(file_name="a.telling", files={"a.telling": b""}, may_unpickle=True)
    with pytest.raises(ArtifactInvalid, match="may_unpickle is False"):
        reader.read(source, claim, info={})
