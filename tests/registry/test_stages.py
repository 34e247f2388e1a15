"""Stages: at most one version in production, the one before a call away, and a watched model pinned to what was promoted."""

from typing import Any

import pytest
from sqlalchemy import select

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import apply_retention, resolve_version, rollback_model
from mmserver.catalog.registering import remove_model
from mmserver.errors import (
    ModelNotFound,
    NothingBefore,
    NotInProduction,
    PinnedByStage,
    RequestInvalid,
    VersionInUse,
    VersionNotFound,
    WrongModelKind,
)
from mmserver.registry.removing import delete_version
from mmserver.registry.stages import promote, retire, rollback, set_stage, stage_from_text
from mmserver.registry.versions import ListedVersion, WatchedVersion, get_version, list_versions
from mmserver.storage.tables import PromotionRow, ServingRow, StageRow

TEST = Actor("test")


def stages(bench: Any) -> dict[str, str | None]:
    return {version.label: version.stage for version in list_versions(bench.store, "hybrid")}


def servings(bench: Any, model_name: str = "hybrid") -> list[tuple[str, str]]:
    """(label, reason) of everything that the model served, oldest first."""
    model_id = bench.store.model(model_name).id
    with bench.store.database.read() as connection:
        rows = connection.execute(
            select(ServingRow.version_label, ServingRow.reason)
            .where(ServingRow.model_id == model_id)
            .order_by(ServingRow.id)
        ).all()
    return [tuple(row) for row in rows]


# --- promotion ------------------------------------------------------------------------------------------------------------


def test_a_promoted_version_is_served_and_the_one_before_is_archived(three: Any) -> None:
    first = promote(three.store, "hybrid", "1.0.0", TEST)
    assert isinstance(first, ListedVersion)
    assert (first.label, first.stage, three.served) == ("1.0.0", "production", "1.0.0")
    promote(three.store, "hybrid", "1.9.0", TEST)
    assert stages(three) == {"1.10.0": None, "1.9.0": "production", "1.0.0": "archived"}
    assert (three.served, three.model.stages) == ("1.9.0", {"production": "1.9.0"})
    entries = [entry for entry in three.audit() if entry.action == "version.promoted"]
    assert [entry.detail for entry in entries] == [
        {"version": "1.0.0", "before": None},
        {"version": "1.9.0", "before": "1.0.0"},
    ]
    assert [(event.kind, event.version) for event in three.events] == [
        ("stage_changed", "1.0.0"),
        ("version_served", "1.0.0"),
        ("stage_changed", "1.9.0"),
        ("version_served", "1.9.0"),
    ]


def test_an_archived_version_that_is_promoted_is_archived_no_more(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.0.0"):
        promote(three.store, "hybrid", label, TEST)
    assert stages(three) == {"1.10.0": None, "1.9.0": "archived", "1.0.0": "production"}


def test_what_came_from_staging_leaves_staging_empty(three: Any) -> None:
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    promoted = promote(three.store, "hybrid", "staging", TEST)
    assert (promoted.label, three.model.stages) == ("1.0.0", {"production": "1.0.0"})


def test_promoting_what_is_in_production_changes_nothing(three: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    n_actions = len(three.actions())
    assert promote(three.store, "hybrid", "1.0.0", TEST).stage == "production"
    assert promote(three.store, "hybrid", "latest", TEST).label == "1.0.0"
    assert (len(three.actions()), three.count(PromotionRow)) == (n_actions, 1)


def test_a_newer_version_does_not_take_over_while_something_is_in_production(three: Any) -> None:
    promote(three.store, "hybrid", "1.9.0", TEST)
    three.register("3.0.0", 3)
    assert three.served == "1.9.0"
    set_stage(three.store, "hybrid", "1.9.0", None, TEST)
    assert three.served == "3.0.0"
    assert servings(three) == [
        ("1.9.0", "registered"),
        ("1.10.0", "registered"),
        ("1.9.0", "promoted"),
        ("3.0.0", "unstaged"),
    ]


def test_what_is_served_is_noted_only_when_it_changes(three: Any) -> None:
    promote(three.store, "hybrid", "1.10.0", TEST)
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    set_stage(three.store, "hybrid", "1.10.0", None, TEST)
    assert servings(three) == [("1.9.0", "registered"), ("1.10.0", "registered")]


def test_what_is_not_there_cannot_be_promoted(three: Any) -> None:
    with pytest.raises(VersionNotFound):
        promote(three.store, "hybrid", "7.0.0", TEST)
    with pytest.raises(VersionNotFound, match=r"^hybrid has no version in staging$"):
        promote(three.store, "hybrid", "staging", TEST)
    with pytest.raises(ModelNotFound):
        promote(three.store, "nobody", "1.0.0", TEST)


# --- rollback -------------------------------------------------------------------------------------------------------------


def test_two_rollbacks_go_back_two_and_a_third_has_nothing_left(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.10.0"):
        promote(three.store, "hybrid", label, TEST)
    assert rollback(three.store, "hybrid", TEST).label == "1.9.0"
    assert rollback(three.store, "hybrid", TEST).label == "1.0.0"
    assert stages(three) == {"1.10.0": "archived", "1.9.0": "archived", "1.0.0": "production"}
    with pytest.raises(NothingBefore):
        rollback(three.store, "hybrid", TEST)
    assert three.served == "1.0.0"
    assert three.actions()[-2:] == ["version.rolled_back"] * 2
    assert servings(three)[-2:] == [("1.9.0", "rolled_back"), ("1.0.0", "rolled_back")]


def test_a_promotion_after_a_rollback_is_undone_to_where_the_rollback_led(three: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    promote(three.store, "hybrid", "1.9.0", TEST)
    rollback(three.store, "hybrid", TEST)
    promote(three.store, "hybrid", "1.10.0", TEST)
    assert rollback(three.store, "hybrid", TEST).label == "1.0.0"
    with pytest.raises(NothingBefore):
        rollback(three.store, "hybrid", TEST)


def test_a_rollback_passes_over_versions_that_were_removed(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.10.0"):
        promote(three.store, "hybrid", label, TEST)
    delete_version(three.store, "hybrid", "1.9.0", TEST)
    assert rollback(three.store, "hybrid", TEST).label == "1.0.0"


def test_a_rollback_never_goes_from_a_version_to_itself(three: Any) -> None:
    for label in ("1.0.0", "1.9.0", "1.0.0"):
        promote(three.store, "hybrid", label, TEST)
    delete_version(three.store, "hybrid", "1.9.0", TEST)
    with pytest.raises(NothingBefore):
        rollback(three.store, "hybrid", TEST)


def test_a_rollback_takes_a_retired_version_back(three: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    promote(three.store, "hybrid", "1.9.0", TEST)
    retire(three.store, "hybrid", "1.0.0", TEST)
    assert rollback(three.store, "hybrid", TEST).stage == "production"


def test_with_nothing_in_production_there_is_nothing_to_go_back_from(three: Any) -> None:
    with pytest.raises(NotInProduction):
        rollback(three.store, "hybrid", TEST)
    promote(three.store, "hybrid", "1.0.0", TEST)
    set_stage(three.store, "hybrid", "1.0.0", None, TEST)
    with pytest.raises(NotInProduction):
        rollback(three.store, "hybrid", TEST)
    promote(three.store, "hybrid", "1.9.0", TEST)
    with pytest.raises(NothingBefore):
        rollback(three.store, "hybrid", TEST)


def test_a_registered_model_is_not_rolled_back_past_its_stages(three: Any) -> None:
    with pytest.raises(PinnedByStage):
        rollback_model(three.store, "hybrid", "1.0.0", TEST)


# --- staging, archive, none -----------------------------------------------------------------------------------------------


def test_staging_holds_one_version_and_the_one_before_is_in_no_stage(three: Any) -> None:
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    set_stage(three.store, "hybrid", "1.9.0", "staging", TEST)
    assert stages(three) == {"1.10.0": None, "1.9.0": "staging", "1.0.0": None}
    assert resolve_version(three.store, "hybrid", "staging").label == "1.9.0"
    assert three.served == "1.10.0"


def test_what_goes_from_production_to_staging_is_not_served_any_more(three: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    assert (three.model.stages, three.served) == ({"staging": "1.0.0"}, "1.10.0")


def test_a_retired_version_is_not_the_newest_and_answers_to_its_label(three: Any) -> None:
    assert retire(three.store, "hybrid", "1.10.0", TEST).stage == "archived"
    assert three.served == "1.9.0"
    assert resolve_version(three.store, "hybrid", "1.10.0").label == "1.10.0"
    set_stage(three.store, "hybrid", "1.10.0", None, TEST)
    assert three.served == "1.10.0"


def test_when_every_version_was_retired_none_is_the_latest(three: Any) -> None:
    for label in ("1.10.0", "1.0.0", "1.9.0"):
        retire(three.store, "hybrid", label, TEST)
    assert three.model.is_retired
    for look in (resolve_version, get_version):
        with pytest.raises(VersionNotFound, match="not retired"):
            look(three.store, "hybrid", "latest")
    assert resolve_version(three.store, "hybrid", "1.9.0").label == "1.9.0"
    three.register("0.5.0", 4)
    assert (three.model.is_retired, three.served) == (False, "0.5.0")


def test_retiring_a_staged_version_empties_staging(three: Any) -> None:
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    retire(three.store, "hybrid", "staging", TEST)
    assert (stages(three)["1.0.0"], three.model.stages) == ("archived", {})


def test_what_is_in_production_is_neither_retired_nor_removed(three: Any) -> None:
    promote(three.store, "hybrid", "1.9.0", TEST)
    n_actions = len(three.actions())
    with pytest.raises(VersionInUse, match="promote another version first"):
        retire(three.store, "hybrid", "production", TEST)
    with pytest.raises(VersionInUse):
        set_stage(three.store, "hybrid", "1.9.0", "archived", TEST)
    with pytest.raises(VersionInUse):
        delete_version(three.store, "hybrid", "1.9.0", TEST)
    assert (three.served, len(three.actions())) == ("1.9.0", n_actions)


def test_a_stage_that_it_has_already_changes_nothing(three: Any) -> None:
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    retire(three.store, "hybrid", "1.9.0", TEST)
    n_actions = len(three.actions())
    assert set_stage(three.store, "hybrid", "1.0.0", "staging", TEST).stage == "staging"
    assert retire(three.store, "hybrid", "1.9.0", TEST).stage == "archived"
    assert set_stage(three.store, "hybrid", "1.10.0", None, TEST).stage is None
    assert len(three.actions()) == n_actions


def test_a_stage_is_read_in_any_case_and_another_word_is_refused() -> None:
    words = ["Production", "STAGING", "archived", "None"]
    assert [stage_from_text(word) for word in words] == ["production", "staging", "archived", None]
    with pytest.raises(RequestInvalid, match="Production, Staging, Archived or None"):
        stage_from_text("prod")


def test_a_version_notes_when_it_changed_last_and_so_does_its_model(three: Any) -> None:
    before = get_version(three.store, "hybrid", "1.0.0")
    refreshed_at = three.model.refreshed_at
    promoted = promote(three.store, "hybrid", "1.0.0", TEST)
    assert isinstance(promoted, ListedVersion)
    assert promoted.updated_at > before.updated_at
    assert three.model.refreshed_at > refreshed_at


# --- watched models -------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(bench: Any) -> Any:
    """`alpha`, with three versions; `labels` has their labels."""
    bench.watch(0)
    bench.labels = [bench.store.model("alpha").serving.label]
    for seed in (1, 2):
        bench.write_watched(seed)
        bench.labels.append(bench.refresh())
    return bench


def served_of_alpha(bench: Any) -> str:
    return str(bench.store.model("alpha").serving.label)


def test_a_pinned_watched_model_serves_that_version_whatever_arrives(watched: Any) -> None:
    first, _, third = watched.labels
    pinned = promote(watched.store, "alpha", first, TEST)
    assert isinstance(pinned, WatchedVersion)
    assert (pinned.label, pinned.stage, served_of_alpha(watched)) == (first, "production", first)
    watched.write_watched(3)
    newer = watched.refresh()
    assert newer not in (first, third)
    assert served_of_alpha(watched) == first
    unpinned = set_stage(watched.store, "alpha", first, None, TEST)
    assert (unpinned.stage, served_of_alpha(watched)) == (None, newer)
    watched.write_watched(4)
    assert watched.refresh() == served_of_alpha(watched)
    reasons = [reason for _, reason in servings(watched, "alpha")]
    assert reasons == ["registered", "refreshed", "refreshed", "promoted", "unstaged", "refreshed"]


def test_a_pinned_watched_model_goes_back_through_its_pins_and_is_not_rolled_back_otherwise(watched: Any) -> None:
    first, second, third = watched.labels
    promote(watched.store, "alpha", second, TEST)
    promote(watched.store, "alpha", first, TEST)
    with pytest.raises(PinnedByStage):
        rollback_model(watched.store, "alpha", third, TEST)
    assert rollback(watched.store, "alpha", TEST).label == second
    assert served_of_alpha(watched) == second
    with pytest.raises(NothingBefore):
        rollback(watched.store, "alpha", TEST)


def test_a_watched_model_is_pinned_to_what_it_serves_by_any_name_of_it(watched: Any) -> None:
    assert promote(watched.store, "alpha", "production", TEST).label == watched.labels[2]
    assert watched.store.model("alpha").stages == {"production": watched.labels[2]}


def test_staging_of_a_watched_model_is_a_pointer_and_moves_nothing(watched: Any) -> None:
    first, second, _ = watched.labels
    rollback_model(watched.store, "alpha", first, TEST)
    set_stage(watched.store, "alpha", second, "staging", TEST)
    assert served_of_alpha(watched) == first
    assert resolve_version(watched.store, "alpha", "staging").label == second
    set_stage(watched.store, "alpha", second, None, TEST)
    assert (served_of_alpha(watched), dict(watched.store.model("alpha").stages)) == (first, {})


def test_a_watched_models_versions_are_not_retired_or_removed_one_by_one(watched: Any) -> None:
    with pytest.raises(WrongModelKind):
        retire(watched.store, "alpha", watched.labels[0], TEST)
    with pytest.raises(WrongModelKind):
        delete_version(watched.store, "alpha", watched.labels[0], TEST)


def test_as_of_knows_what_was_pinned_when(watched: Any) -> None:
    first, _, third = watched.labels
    before = watched.calendar()
    promote(watched.store, "alpha", first, TEST)
    pinned = watched.calendar()
    set_stage(watched.store, "alpha", first, None, TEST)
    after = watched.calendar()
    found = [resolve_version(watched.store, "alpha", as_of=moment).label for moment in (before, pinned, after)]
    assert found == [third, first, third]


# --- what must leave all of it alone --------------------------------------------------------------------------------------


def test_retention_keeps_pinned_versions_and_every_registered_one(watched: Any, open_bench: Any) -> None:
    watched.register_all("1.0.0", "1.1.0", "1.2.0")
    first, second, third = watched.labels
    promote(watched.store, "alpha", first, TEST)
    keeping = open_bench(keep_versions=1, keep_days=0)
    assert apply_retention(keeping.store) == 1
    assert [version.label for version in list_versions(keeping.store, "hybrid")] == ["1.2.0", "1.1.0", "1.0.0"]
    assert resolve_version(keeping.store, "alpha", first).label == first
    with pytest.raises(VersionNotFound):
        resolve_version(keeping.store, "alpha", second)
    set_stage(keeping.store, "alpha", first, None, TEST)
    assert keeping.store.model("alpha").serving.label == third
    for label in ("1.0.0", "1.1.0", "1.2.0"):
        version = resolve_version(keeping.store, "hybrid", label)
        assert keeping.store.payloads.body(version, version.groups["all"], "payload", "gzip").content


def test_a_restart_finds_everything_as_it_was(three: Any, open_bench: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    set_stage(three.store, "hybrid", "1.9.0", "staging", TEST)
    again = open_bench()
    assert again.store.model("hybrid") == three.model
    assert stages(again) == stages(three)


def test_a_model_is_removed_with_its_stages_and_promotions(three: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    promote(three.store, "hybrid", "1.9.0", TEST)
    rollback(three.store, "hybrid", TEST)
    set_stage(three.store, "hybrid", "1.0.0", None, TEST)
    remove_model(three.store, "hybrid", TEST)
    assert [three.count(table) for table in (PromotionRow, StageRow, ServingRow)] == [0, 0, 0]
