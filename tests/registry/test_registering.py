"""Taking in versions: what is kept, what is the same, what is refused, and that whatever is there predicts."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, event, select

from mmserver.catalog.catalog import Actor, Catalog
from mmserver.catalog.groups import group_detail
from mmserver.catalog.history import list_versions as list_history
from mmserver.catalog.history import resolve_version
from mmserver.catalog.registering import register_model
from mmserver.errors import (
    ArtifactInvalid,
    ModelNameTaken,
    NameInvalid,
    ReadOnly,
    RequestInvalid,
    VersionInvalid,
    VersionNotFound,
    VersionTaken,
    WrongModelKind,
)
from mmserver.formats import ModelSource
from mmserver.registry.fields import MAX_DESCRIPTION_CHARS, MAX_FIELD_BYTES
from mmserver.registry.registering import NewVersion, register_version
from mmserver.registry.removing import delete_model, delete_version
from mmserver.registry.stages import promote, retire, set_stage
from mmserver.registry.versions import get_version, list_models, list_versions
from mmserver.serving.predictions import Asked, Serving
from mmserver.storage.blobs import get_blob
from mmserver.storage.tables import BlobRow, GroupRow, ModelRow

TEST = Actor("test")
FACTORS = ("momentum", "volume", "spread")
ROW = [0.3, -1.2, 0.7]


def predicted(bench: Any, version: str | None, model_name: str = "hybrid", **more: Any) -> tuple[str, float]:
    """(which version answered, what it expects)"""
    answer = Serving(bench.store).predict(Asked("BTC/USDT", ROW, model_name, version=version, **more))
    assert answer.decision.expected_return is not None
    return answer.version, answer.decision.expected_return


def expected(bench: Any, seed: int) -> float:
    """What the library itself says."""
    import xgboost

    booster = xgboost.Booster(model_file=bytearray(bench.contents[seed]))
    return float(booster.inplace_predict(np.array([ROW], dtype=np.float32))[0])


# --- what is kept ---------------------------------------------------------------------------------------------------------


def test_what_was_said_of_a_version_is_kept_with_it(bench: Any) -> None:
    registered = bench.register(
        "1.0.0",
        description="first",
        metrics={"sharpe": 1.5, "trades": 100, "loss": np.float32(0.25), "n": np.int64(3)},
        training_params={"hidden": 256, "layers": [2, {"dropout": None}], "bidirectional": True},
        tags={"team": "alpha"},
        info={"classes": ["HOLD", "BUY", "SELL"]},
        model_type="tiny",
    )
    version = registered.version
    assert registered.is_new
    assert version == get_version(bench.store, "hybrid", "1.0.0")
    assert (version.model_name, version.label, version.stage) == ("hybrid", "1.0.0", None)
    assert version.metrics == {"sharpe": 1.5, "trades": 100, "loss": 0.25, "n": 3}
    assert version.training_params == {"hidden": 256, "layers": [2, {"dropout": None}], "bidirectional": True}
    assert (version.description, version.tags, version.model_type) == ("first", {"team": "alpha"}, "tiny")
    assert (version.kind, version.n_features, version.factors) == ("xgboost", 3, FACTORS)
    assert version.size_bytes == len(bench.contents[0])
    assert version.created_at == version.updated_at
    assert group_detail(bench.store, version.group).record.info == {"classes": ["HOLD", "BUY", "SELL"]}


def test_the_files_are_kept_as_they_were_handed_in(bench: Any) -> None:
    version = bench.register("1.0.0", files={"weights/part.bin": b"\x00part"}).version
    artifacts = group_detail(bench.store, version.group).artifacts
    assert [(file.name, file.role) for file in artifacts] == [("hybrid.tiny", "model"), ("weights/part.bin", "data")]
    with bench.store.database.read() as connection:
        kept = [get_blob(connection, file.sha256) for file in artifacts]
    assert kept == [bench.contents[0], b"\x00part"]
    assert version.size_bytes == sum(map(len, kept))


def test_a_registration_is_audited_and_told_to_plugins(bench: Any) -> None:
    bench.register("1.0.0")
    bench.register("1.1.0", 1)
    bench.register("0.1.0", 2)
    entries = bench.audit()
    assert [(entry.action, entry.target, entry.actor) for entry in entries] == [
        ("version.registered", "hybrid", "test")
    ] * 3
    assert [entry.detail["version"] for entry in entries] == ["1.0.0", "1.1.0", "0.1.0"]
    assert [(event.kind, event.version) for event in bench.events] == [
        ("model_registered", "1.0.0"),
        ("version_registered", "1.0.0"),
        ("version_registered", "1.1.0"),
        ("version_served", "1.1.0"),
        ("version_registered", "0.1.0"),
    ]


def test_versions_are_listed_newest_first_in_the_order_of_semantic_versions(three: Any) -> None:
    three.register("1.10.0-rc.1", 3)
    three.register("1.10.0+int8", 4, derived_from="1.10.0")
    labels = [version.label for version in list_versions(three.store, "hybrid")]
    assert labels == ["1.10.0", "1.10.0+int8", "1.10.0-rc.1", "1.9.0", "1.0.0"]
    assert get_version(three.store, "hybrid", "1.10.0+int8").derived_from == "1.10.0"


def test_versions_are_listed_by_stage(three: Any) -> None:
    promote(three.store, "hybrid", "1.9.0", TEST)
    set_stage(three.store, "hybrid", "1.10.0", "staging", TEST)
    retire(three.store, "hybrid", "1.0.0", TEST)
    found = {
        stage: [version.label for version in list_versions(three.store, "hybrid", stage)]
        for stage in ("production", "staging", "archived")
    }
    assert found == {"production": ["1.9.0"], "staging": ["1.10.0"], "archived": ["1.0.0"]}


def test_models_are_listed_by_name_in_pages(bench: Any) -> None:
    for name in ("gamma", "alpha_2", "beta"):
        bench.register("1.0.0", model_name=name)
    bench.register("1.1.0", 1, model_name="beta")
    bench.watch()
    promote(bench.store, "beta", "1.0.0", TEST)
    retire(bench.store, "gamma", "1.0.0", TEST)
    models = list_models(bench.store, 10)
    assert [(m.name, m.n_versions, m.latest, m.production, m.staging) for m in models] == [
        ("alpha_2", 1, "1.0.0", None, None),
        ("beta", 2, "1.0.0", "1.0.0", None),
        ("gamma", 1, None, None, None),
    ]
    assert list_models(bench.store, 1) == models[:1]
    assert list_models(bench.store, 5, after="alpha_2") == models[1:]
    assert list_models(bench.store, 5, after="gamma") == []


def test_the_history_of_a_registered_model_reads_like_any_other(three: Any) -> None:
    records = list_history(three.store, "hybrid", 10)
    assert [(record.label, record.is_serving) for record in records] == [
        ("1.0.0", False), ("1.10.0", True), ("1.9.0", False)
    ]  # fmt: skip


# --- the same content -----------------------------------------------------------------------------------------------------


def test_the_same_content_under_its_own_label_changes_nothing(bench: Any) -> None:
    first = bench.register("1.0.0", description="first")
    again = bench.register("1.0.0", description="first")
    assert (again.is_new, again.version) == (False, first.version)
    assert (bench.actions(), bench.reader.n_reads) == (["version.registered"], 1)


def test_the_same_content_under_a_new_label_or_model_is_read_and_stored_once(bench: Any) -> None:
    first = bench.register("1.0.0").version
    n_blobs = bench.count(BlobRow)
    others = [bench.register("1.0.1").version, bench.register("1.0.0", model_name="other").version]
    assert [other.group.id for other in others] == [first.group.id] * 2
    assert [other.sha256 for other in others] == [first.sha256] * 2
    assert (bench.count(GroupRow), bench.count(BlobRow), bench.reader.n_reads) == (1, n_blobs, 1)
    assert predicted(bench, "1.0.1")[1] == predicted(bench, None, "other")[1] == expected(bench, 0)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"seed": 1}, id="other bytes"),
        pytest.param({"factors": ("volume", "momentum", "spread")}, id="factors in another order"),
        pytest.param({"options": {"code": "x"}}, id="other options"),
        pytest.param({"info": {"classes": ["SELL", "BUY"]}}, id="other info"),
        pytest.param({"files": {"more.bin": b""}}, id="another file"),
        pytest.param({"model_type": "other"}, id="another format"),
    ],
)
def test_other_content_under_a_taken_label_is_refused(bench: Any, other: dict[str, Any]) -> None:
    bench.register("1.0.0")
    with pytest.raises(VersionTaken, match=r"hybrid 1\.0\.0 is registered with other content"):
        bench.register("1.0.0", **other)
    assert (bench.actions(), bench.reader.n_reads) == (["version.registered"], 1)
    assert bench.register("1.0.1", **other).is_new
    assert bench.count(GroupRow) == 2


def test_a_label_that_is_taken_while_the_model_is_read_stays_with_who_was_quicker(bench: Any, open_bench: Any) -> None:
    quicker = open_bench()
    read = bench.reader.read

    def read_late(*args: Any, **more: Any) -> Any:
        quicker.register("1.0.0", 1)
        return read(*args, **more)

    bench.reader.read = read_late
    with pytest.raises(VersionTaken):
        bench.register("1.0.0", 0)
    assert get_version(bench.store, "hybrid", "1.0.0").sha256 == quicker.register("1.0.0", 1).version.sha256
    assert bench.count(GroupRow) == 1


def test_the_same_registered_at_once_by_two_is_registered_once(bench: Any, open_bench: Any) -> None:
    quicker = open_bench()
    read = bench.reader.read

    def read_late(*args: Any, **more: Any) -> Any:
        quicker.register("1.0.0")
        return read(*args, **more)

    bench.reader.read = read_late
    assert not bench.register("1.0.0").is_new
    assert bench.actions() == ["version.registered"]
    assert predicted(bench, None) == ("1.0.0", expected(bench, 0))


def test_content_that_is_removed_while_it_is_registered_under_another_label_is_read_again(
    bench: Any, open_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.register("1.0.0", 1)
    bench.register("1.1.0", 0)
    other, changing = open_bench(), type(bench.store).changing

    def changing_late(store: Any, model_name: str) -> Any:
        """Another process removes the only version with that content, just before the first change here."""
        monkeypatch.undo()
        delete_version(other.store, "hybrid", "1.1.0", TEST)
        return changing(store, model_name)

    monkeypatch.setattr(type(bench.store), "changing", changing_late)
    registered = bench.register("1.2.0", 0)
    assert (registered.is_new, bench.reader.n_reads) == (True, 3)
    assert [version.label for version in list_versions(bench.store, "hybrid")] == ["1.2.0", "1.0.0"]
    assert predicted(bench, None) == ("1.2.0", expected(bench, 0))


# --- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        pytest.param({"metrics": {"sharpe": float("nan")}}, "metrics.sharpe", id="nan metric"),
        pytest.param({"metrics": {"sharpe": float("-inf")}}, "metrics.sharpe", id="infinite metric"),
        pytest.param({"metrics": {"sharpe": "1.5"}}, "metrics.sharpe", id="text metric"),
        pytest.param({"metrics": {"sharpe": True}}, "metrics.sharpe", id="bool metric"),
        pytest.param({"metrics": {"n": 2**63}}, "metrics.n", id="large metric"),
        pytest.param({"metrics": {"": 1.0}}, "metrics", id="metric without a name"),
        pytest.param({"metrics": {1: 1.0}}, "metrics", id="metric named by a number"),
        pytest.param({"metrics": [1.0]}, "metrics", id="metrics as a list"),
        pytest.param({"metrics": {f"metric {i}": 0.5 for i in range(20_000)}}, "metrics", id="many metrics"),
        pytest.param({"tags": {"team": 1}}, "tags.team", id="number tag"),
        pytest.param({"tags": {"team": "\ud800"}}, "tags.team", id="half a character"),
        pytest.param({"tags": {"team": "x" * MAX_FIELD_BYTES}}, "tags", id="large tag"),
        pytest.param({"training_params": {"lr": [0.1, float("nan")]}}, "training_params.lr[1]", id="nan parameter"),
        pytest.param({"training_params": {"model": object()}}, "training_params.model", id="object parameter"),
        pytest.param({"info": {"a": {"b": float("inf")}}}, "info.a.b", id="infinite info"),
        pytest.param({"info": "text"}, "info", id="info as text"),
        pytest.param({"options": {"code": b"x"}}, "options.code", id="bytes in options"),
        pytest.param({"description": "x" * (MAX_DESCRIPTION_CHARS + 1)}, "description", id="long description"),
        pytest.param({"description": None}, "description", id="no description"),
        pytest.param({"factors": "momentum"}, "factors", id="factors as text"),
        pytest.param({"factors": ("momentum", 1, "spread")}, "factors[1]", id="factor named by a number"),
        pytest.param({"derived_from": "0.9.0"}, "derived_from", id="made of what is not there"),
        pytest.param({"model_type": "x" * 101}, "model_type", id="a long type"),
        pytest.param({"model_type": ""}, "model_type", id="an empty type"),
        pytest.param({"model_type": 5}, "model_type", id="a type that is a number"),
        pytest.param({"files": {"../x": b""}}, "file", id="a file above"),
        pytest.param({"files": {"/etc/x": b""}}, "file", id="a file elsewhere"),
        pytest.param({"files": {"a\\..\\x": b""}}, "file", id="a file elsewhere on Windows"),
        pytest.param({"files": {"a\x00b": b""}}, "file", id="nul in a name"),
        pytest.param({"files": {"": b""}}, "file", id="a file without a name"),
    ],
)
def test_a_field_that_cannot_be_kept_is_named_and_nothing_is_stored(
    bench: Any, fields: dict[str, Any], where: str
) -> None:
    with pytest.raises(RequestInvalid) as caught:
        bench.register("1.0.0", **fields)
    assert caught.value.values["errors"][0]["loc"] == where
    assert (bench.count(ModelRow), bench.count(BlobRow), bench.actions()) == (0, 0, [])


def test_parameters_that_never_end_are_refused(bench: Any) -> None:
    deep: dict[str, Any] = {}
    deep["itself"] = deep
    with pytest.raises(RequestInvalid, match="deeper than"):
        bench.register("1.0.0", training_params=deep)


def test_a_file_that_no_format_claims_is_refused_with_the_formats_that_are_there(bench: Any) -> None:
    source = ModelSource(file_name="model.xyz", files={"model.xyz": b"x"})
    new = NewVersion(model_name="hybrid", label="1.0.0", source=source)
    with pytest.raises(RequestInvalid, match=r"no format reads 'model\.xyz' by its name; name one .*tiny"):
        register_version(bench.store, bench.reader, new, TEST)


def test_labels_and_names_are_checked_before_anything_is_read(bench: Any) -> None:
    for label in ("latest", "production", "1.0", "01.0.0"):
        with pytest.raises(VersionInvalid):
            bench.register(label)
    with pytest.raises(NameInvalid):
        bench.register("1.0.0", model_name="a/b")
    assert bench.reader.n_reads == 0


def test_a_model_that_cannot_be_read_leaves_nothing_behind(bench: Any) -> None:
    with pytest.raises(ArtifactInvalid, match="3 inputs"):
        bench.register("1.0.0", factors=("a", "b"))
    bench.contents = {0: bench.contents[0][:500]}
    with pytest.raises(ArtifactInvalid):
        bench.register("1.0.0")
    assert (bench.count(ModelRow), bench.count(BlobRow), bench.actions()) == (0, 0, [])


def test_a_watched_name_takes_no_versions_and_a_registered_one_no_directory(bench: Any) -> None:
    bench.watch()
    with pytest.raises(WrongModelKind, match="its versions come from its directory"):
        bench.register("1.0.0", model_name="alpha")
    with pytest.raises(WrongModelKind):
        get_version(bench.store, "alpha", "latest")
    bench.register("1.0.0")
    with pytest.raises(ModelNameTaken):
        register_model(bench.store, "hybrid", str(bench.root / "alpha"), TEST)


def test_a_read_only_instance_registers_nothing_but_shows_everything(three: Any, open_bench: Any) -> None:
    reading = open_bench(read_only=True)
    assert [version.label for version in list_versions(reading.store, "hybrid")] == ["1.10.0", "1.9.0", "1.0.0"]
    with pytest.raises(ReadOnly):
        reading.register("2.0.0", 3)
    with pytest.raises(ReadOnly):
        promote(reading.store, "hybrid", "1.0.0", TEST)


# --- prediction -----------------------------------------------------------------------------------------------------------


def test_the_newest_version_is_served_whatever_the_order_of_registration(three: Any) -> None:
    assert three.served == "1.10.0"
    assert predicted(three, None) == ("1.10.0", expected(three, 2))
    three.register("2.0.0-rc.1", 3)
    assert three.served == "2.0.0-rc.1"


def test_a_version_predicts_by_its_label_its_stage_and_as_latest(three: Any) -> None:
    promote(three.store, "hybrid", "1.9.0", TEST)
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    assert predicted(three, "1.0.0") == ("1.0.0", expected(three, 0))
    assert predicted(three, "1.10.0") == ("1.10.0", expected(three, 2))
    assert predicted(three, "staging") == ("1.0.0", expected(three, 0))
    for reference in (None, "latest", "production"):
        assert predicted(three, reference) == ("1.9.0", expected(three, 1))
    assert len({expected(three, seed) for seed in range(3)}) == 3


def test_without_anything_in_production_asking_for_it_is_not_answered_by_another(three: Any) -> None:
    with pytest.raises(VersionNotFound, match=r"^hybrid has no version in production$"):
        predicted(three, "production")
    with pytest.raises(VersionNotFound, match=r"^hybrid has no version in production$"):
        get_version(three.store, "hybrid", "production")
    with pytest.raises(VersionNotFound, match=r"^hybrid has no version in staging$"):
        get_version(three.store, "hybrid", "staging")
    assert get_version(three.store, "hybrid", "latest").label == "1.10.0"


def test_as_of_gives_the_version_that_was_served_at_that_moment(three: Any) -> None:
    moments = {"1.10.0": three.calendar()}
    promote(three.store, "hybrid", "1.0.0", TEST)
    moments["1.0.0"] = three.calendar()
    promote(three.store, "hybrid", "1.9.0", TEST)
    moments["1.9.0"] = three.calendar()
    three.register("2.0.0", 3)
    for label, moment in moments.items():
        assert resolve_version(three.store, "hybrid", as_of=moment).label == label
        assert predicted(three, None, as_of=moment)[0] == label
    with pytest.raises(VersionNotFound):
        resolve_version(three.store, "hybrid", "2.0.0", as_of=moments["1.9.0"])


def test_another_process_serves_what_was_registered_and_promoted_here(bench: Any, open_bench: Any) -> None:
    other = open_bench()
    bench.register_all("1.0.0", "1.1.0")
    assert other.store.follow_commits()
    assert predicted(other, None) == ("1.1.0", expected(bench, 1))
    promote(bench.store, "hybrid", "1.0.0", TEST)
    assert other.store.follow_commits()
    assert predicted(other, None) == ("1.0.0", expected(bench, 0))


def test_what_is_stored_is_named_by_its_hash(bench: Any) -> None:
    bench.register("1.0.0")
    with bench.store.database.read() as connection:
        for sha256 in connection.execute(select(BlobRow.sha256)).scalars():
            assert hashlib.sha256(get_blob(connection, sha256)).hexdigest() == sha256


# --- a label means one thing for ever ----------------------------------------------------------------------------------


SAID = {"metrics": {"sharpe": 1.5, "ic": 0.1}, "training_params": {"depth": [3, {"a": None}]}, "tags": {"desk": "fx"},
        "description": "first", "model_type": "LSTM"}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "named"),
    [
        pytest.param({"metrics": {"sharpe": 1.6}}, r"metrics \(sharpe\)", id="a metric"),
        pytest.param({"metrics": {"sharpe": 1.5, "mse": 0}}, r"metrics \(mse\)", id="one more metric"),
        pytest.param({"training_params": {"depth": [3, {"a": 0}]}}, r"training_params \(depth\)", id="a parameter"),
        pytest.param({"tags": {"desk": "eq"}, "description": "second"}, r"tags \(desk\), description", id="two fields"),
        pytest.param({"model_type": "GRU"}, "model_type", id="what it is called"),
        pytest.param({"derived_from": "0.9.0"}, "derived_from", id="what it was made of"),
    ],
)
def test_the_same_content_described_otherwise_is_refused_and_told_how_to_change_that(
    bench: Any, said: dict[str, Any], named: str
) -> None:
    bench.register("0.9.0", 1)
    before = bench.register("1.0.0", **SAID).version
    with pytest.raises(VersionTaken, match=rf"but with other {named}; nothing was changed. PATCH .*/metrics "):
        bench.register("1.0.0", **{**SAID, **said})
    assert get_version(bench.store, "hybrid", "1.0.0") == before
    assert bench.actions() == ["version.registered"] * 2


@pytest.mark.parametrize("said", [pytest.param(SAID, id="all of it"), pytest.param({}, id="nothing")])
def test_what_is_said_again_or_left_out_is_no_conflict(bench: Any, said: dict[str, Any]) -> None:
    before = bench.register("1.0.0", **SAID).version
    again = bench.register("1.0.0", **said)
    assert (again.version, again.is_new, again.unlike) == (before, False, ())


def test_a_label_never_means_other_content_after_its_version_was_removed(bench: Any) -> None:
    first = bench.register("1.0.0", 0, metrics={"sharpe": 1}).version
    bench.register("1.1.0", 1)
    delete_version(bench.store, "hybrid", "1.0.0", TEST)
    problem = r"hybrid 1\.0\.0 was registered with other content before it was removed"
    with pytest.raises(VersionTaken, match=problem):
        bench.register("1.0.0", 2)
    again = bench.register("1.0.0", 0, metrics={"sharpe": 2})
    assert (again.is_new, again.version.sha256, again.version.metrics) == (True, first.sha256, {"sharpe": 2})
    assert bench.register("1.0.0", 2, model_name="another").is_new


@pytest.mark.parametrize("way", ["its last version", "the model"])
def test_a_label_keeps_its_meaning_when_the_model_is_gone(bench: Any, way: str) -> None:
    bench.register("1.0.0", 0)
    if way == "the model":
        delete_model(bench.store, "hybrid", TEST)
    else:
        delete_version(bench.store, "hybrid", "1.0.0", TEST)
    with pytest.raises(VersionTaken, match="before it was removed"):
        bench.register("1.0.0", 1)
    assert "hybrid" not in bench.store.catalog.models
    assert bench.register("1.0.0", 0).is_new


def test_a_list_of_more_models_than_one_statement_takes_is_read_in_several(bench: Any) -> None:
    bench.register("1.0.0")
    present = bench.model
    others = [replace(present, id=present.id + number, name=f"model_{number:05}") for number in range(1, 12_000)]
    bench.store.catalog = Catalog(models={model.name: model for model in [present, *others]})
    n_values: list[int] = []

    def count(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        n_values.append(len(parameters))

    event.listen(Engine, "before_cursor_execute", count)
    try:
        assert [model.name for model in list_models(bench.store, 20_000)] == ["hybrid"]
    finally:
        event.remove(Engine, "before_cursor_execute", count)
    assert (sum(n_values), max(n_values)) == (12_000, 5000)
