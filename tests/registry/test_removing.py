"""Removing one version: it alone goes, and what is served then is what is due."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import resolve_version
from mmserver.errors import ModelNotFound, VersionInUse, VersionNotFound
from mmserver.registry.registering import Registered
from mmserver.registry.removing import delete_model, delete_version
from mmserver.registry.stages import promote, set_stage
from mmserver.registry.versions import get_version, list_models, list_versions
from mmserver.storage.tables import BlobRow, FactorListRow, GroupRow, MembershipRow, ModelRow, RegisteredVersionRow

TEST = Actor("test")


def test_a_removed_version_is_gone_with_what_no_other_has(bench: Any) -> None:
    bench.register("1.0.0", 0)
    counts = [bench.count(table) for table in (BlobRow, GroupRow, FactorListRow, MembershipRow)]
    bench.register("1.1.0", 1, factors=("a", "b", "c"))
    delete_version(bench.store, "hybrid", "1.1.0", TEST)
    assert [bench.count(table) for table in (BlobRow, GroupRow, FactorListRow, MembershipRow)] == counts
    for look in (get_version, resolve_version):
        with pytest.raises(VersionNotFound):
            look(bench.store, "hybrid", "1.1.0")
    assert bench.audit()[-1].detail == {"version": "1.1.0", "was_last": False}


def test_what_is_served_after_a_removal_is_the_newest_that_is_left(three: Any) -> None:
    delete_version(three.store, "hybrid", "1.10.0", TEST)
    assert three.served == "1.9.0"
    assert [(event.kind, event.version) for event in three.events] == [
        ("version_removed", "1.10.0"),
        ("version_served", "1.9.0"),
    ]


def test_the_time_when_a_removed_version_was_served_is_not_answered_by_another(three: Any) -> None:
    moment = three.calendar()
    delete_version(three.store, "hybrid", "1.10.0", TEST)
    with pytest.raises(VersionNotFound, match=r"'1\.10\.0' any more \(it was removed\)"):
        resolve_version(three.store, "hybrid", as_of=moment)


def test_content_that_another_version_has_too_stays(bench: Any) -> None:
    bench.register("1.0.0")
    bench.register("1.0.1")
    bench.register("1.0.0", model_name="other")
    delete_version(bench.store, "hybrid", "1.0.0", TEST)
    delete_version(bench.store, "hybrid", "1.0.1", TEST)
    version = resolve_version(bench.store, "other")
    assert bench.store.payloads.body(version, version.groups["all"], "payload", "gzip").content
    assert bench.register("1.0.2").is_new
    assert bench.reader.n_reads == 1


def test_with_its_last_version_a_model_is_gone_and_its_name_is_free(bench: Any) -> None:
    bench.register("1.0.0")
    set_stage(bench.store, "hybrid", "1.0.0", "staging", TEST)
    delete_version(bench.store, "hybrid", "1.0.0", TEST)
    assert [bench.count(table) for table in (ModelRow, RegisteredVersionRow, GroupRow, BlobRow)] == [0, 0, 0, 0]
    assert (list_models(bench.store, 10), bench.store.catalog.models) == ([], {})
    with pytest.raises(ModelNotFound):
        list_versions(bench.store, "hybrid")
    assert bench.audit()[-1].detail == {"version": "1.0.0", "was_last": True}
    assert [event.kind for event in bench.events][-2:] == ["version_removed", "model_removed"]
    bench.watch()
    registered: Registered = bench.register("2.0.0", 1)
    assert registered.is_new


def test_a_version_that_was_removed_and_registered_again_is_a_new_one_to_every_process(
    three: Any, open_bench: Any
) -> None:
    other = open_bench()
    before = resolve_version(other.store, "hybrid", "1.9.0")
    delete_version(three.store, "hybrid", "1.9.0", TEST)
    again = three.register("1.9.0", 1).version
    other.store.follow_commits()
    after = resolve_version(other.store, "hybrid", "1.9.0")
    assert after.id == again.version_id != before.id
    assert after.groups["all"].id == again.group.id
    assert after.groups["all"].sha256 == before.groups["all"].sha256


def test_what_is_not_there_cannot_be_removed(three: Any) -> None:
    with pytest.raises(VersionNotFound):
        delete_version(three.store, "hybrid", "7.0.0", TEST)
    with pytest.raises(ModelNotFound):
        delete_version(three.store, "nobody", "1.0.0", TEST)


def test_when_the_last_that_was_not_retired_is_removed_the_model_is_retired(three: Any) -> None:
    set_stage(three.store, "hybrid", "1.0.0", "archived", TEST)
    set_stage(three.store, "hybrid", "1.10.0", "archived", TEST)
    delete_version(three.store, "hybrid", "1.9.0", TEST)
    assert (three.served, three.model.is_retired) == ("1.10.0", True)


def test_a_model_is_not_removed_while_a_version_is_in_production_by_another_process_either(
    three: Any, open_bench: Callable[..., Any]
) -> None:
    other = open_bench()
    promote(three.store, "hybrid", "1.9.0", TEST)
    for bench in (three, other):
        with pytest.raises(VersionInUse, match=r"hybrid 1\.9\.0 is in production; take it out"):
            delete_model(bench.store, "hybrid", TEST)
    assert (three.served, len(list_versions(three.store, "hybrid"))) == ("1.9.0", 3)
    set_stage(three.store, "hybrid", "1.9.0", None, TEST)
    delete_model(three.store, "hybrid", TEST)
    assert three.count(ModelRow) == 0


def test_a_watched_model_is_removed_although_a_version_is_pinned(bench: Any) -> None:
    promote(bench.store, "alpha", bench.watch().newest_label, TEST)
    delete_model(bench.store, "alpha", TEST)
    assert bench.count(ModelRow) == 0


def test_a_removed_model_is_gone_from_the_directory_too(open_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = open_bench(registry_dir=tmp_path / "models")
    bench.register("1.0.0")
    assert (tmp_path / "models/hybrid/v1.0.0").is_dir()
    delete_model(bench.store, "hybrid", TEST)
    assert not (tmp_path / "models/hybrid").exists()


def test_what_another_version_was_made_of_is_not_removed_before_that(bench: Any) -> None:
    bench.register("1.0.0")
    bench.register("1.0.0+int8", 1, derived_from="1.0.0")
    bench.register("1.0.0", 2, model_name="other")
    with pytest.raises(VersionInUse, match=r"hybrid 1\.0\.0 is what 1\.0\.0\+int8 was made of; remove that first"):
        delete_version(bench.store, "hybrid", "1.0.0", TEST)
    assert [version.label for version in list_versions(bench.store, "hybrid")] == ["1.0.0", "1.0.0+int8"]
    delete_version(bench.store, "other", "1.0.0", TEST)
    delete_version(bench.store, "hybrid", "1.0.0+int8", TEST)
    delete_version(bench.store, "hybrid", "1.0.0", TEST)
    assert bench.count(ModelRow) == 0
