"""What was in production of a registered model at a moment: nothing, where only its newest version was served."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, event

from mmserver.catalog.catalog import Actor
from mmserver.catalog.history import PRODUCTION, STAGING, resolve_version
from mmserver.errors import VersionNotFound
from mmserver.registry.removing import delete_version
from mmserver.registry.stages import promote, retire, rollback, set_stage

TEST = Actor("test")


def in_production(bench: Any, moment: datetime) -> str | None:
    try:
        return resolve_version(bench.store, "hybrid", PRODUCTION, as_of=moment).label
    except VersionNotFound:
        return None


def test_what_was_served_while_nothing_was_in_production_was_not_in_production(three: Any) -> None:
    before = three.calendar()
    promote(three.store, "hybrid", "1.0.0", TEST)
    promoted = three.calendar()
    set_stage(three.store, "hybrid", "1.0.0", None, TEST)
    after = three.calendar()
    assert [in_production(three, moment) for moment in (before, promoted, after)] == [None, "1.0.0", None]
    served = [resolve_version(three.store, "hybrid", as_of=moment).label for moment in (before, promoted, after)]
    assert served == ["1.10.0", "1.0.0", "1.10.0"]


@pytest.mark.parametrize("stage", ["staging", None])
def test_what_was_served_already_was_in_production_from_its_promotion_until_it_left(three: Any, stage: Any) -> None:
    moments = [three.calendar()]
    promote(three.store, "hybrid", "1.10.0", TEST)
    moments.append(three.calendar())
    set_stage(three.store, "hybrid", "1.10.0", stage, TEST)
    moments.append(three.calendar())
    promote(three.store, "hybrid", "1.10.0", TEST)
    moments.append(three.calendar())
    assert [in_production(three, moment) for moment in moments] == [None, "1.10.0", None, "1.10.0"]


def test_promotions_rollbacks_and_moves_of_others_are_told_apart(three: Any) -> None:
    moments = []
    for step in (
        lambda: promote(three.store, "hybrid", "1.0.0", TEST),
        lambda: promote(three.store, "hybrid", "1.9.0", TEST),
        lambda: rollback(three.store, "hybrid", TEST),
        lambda: set_stage(three.store, "hybrid", "1.10.0", "staging", TEST),
        lambda: set_stage(three.store, "hybrid", "1.10.0", None, TEST),
        lambda: retire(three.store, "hybrid", "1.10.0", TEST),
    ):
        step()
        moments.append(three.calendar())
    assert [in_production(three, moment) for moment in moments] == ["1.0.0", "1.9.0", *["1.0.0"] * 4]


def test_another_model_s_moves_are_no_matter(three: Any) -> None:
    three.register("1.0.0", 3, model_name="other")
    promote(three.store, "hybrid", "1.0.0", TEST)
    promote(three.store, "other", "1.0.0", TEST)
    set_stage(three.store, "other", "1.0.0", None, TEST)
    assert in_production(three, three.calendar()) == "1.0.0"


def test_what_was_in_production_and_is_removed_is_said_to_be_gone(three: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    moment = three.calendar()
    promote(three.store, "hybrid", "1.9.0", TEST)
    delete_version(three.store, "hybrid", "1.0.0", TEST)
    with pytest.raises(VersionNotFound, match="any more"):
        resolve_version(three.store, "hybrid", PRODUCTION, as_of=moment)


def test_that_staging_has_no_history_is_said(three: Any) -> None:
    set_stage(three.store, "hybrid", "1.0.0", "staging", TEST)
    with pytest.raises(VersionNotFound, match="only of production it is kept"):
        resolve_version(three.store, "hybrid", STAGING, as_of=three.calendar())


def test_what_left_production_is_found_in_the_audit_by_its_index(three: Any) -> None:
    promote(three.store, "hybrid", "1.0.0", TEST)
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert in_production(three, three.calendar()) == "1.0.0"
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    [(statement, parameters)] = [one for one in asked if "FROM audit" in one[0]]
    with three.store.database.read() as connection:
        plan = [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert plan == ["SEARCH audit USING INDEX ix_audit_target (target=? AND action=? AND at>? AND at<?)"]
