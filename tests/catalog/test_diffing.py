"""What differs between two versions, group by group."""

import pickle
from typing import Any

import pytest

from mmserver.catalog.diffing import GroupDiff, VersionDiff, diff_versions
from mmserver.catalog.history import list_versions, resolve_version


def diff(opened: Any, start: int = 1, end: int = 0) -> VersionDiff:
    """From the version before the newest to the newest."""
    labels = [record.label for record in list_versions(opened.store, "alpha", 9)]
    old, new = (resolve_version(opened.store, "alpha", labels[at]) for at in (start, end))
    return diff_versions(opened.store, old, new)


def only(found: VersionDiff) -> GroupDiff:
    [group] = found.groups
    return group


def test_a_version_does_not_differ_from_itself(registered: Any) -> None:
    serving = registered.model.serving
    assert diff_versions(registered.store, serving, serving).groups == ()


def test_added_and_removed_groups_are_named_with_their_factors(registered: Any) -> None:
    registered.artifacts.delete_group("ETH_ret_1h")
    registered.artifacts.write_group("ADA_ret_1h", 4)
    registered.refresh()
    found = diff(registered)
    assert [(group.group_key, group.change) for group in found.groups] == [
        ("ADA_ret_1h", "added"),
        ("ETH_ret_1h", "removed"),
    ]
    assert found.groups[0].factors_added == found.groups[1].factors_removed == ("momentum", "volume", "spread")


def test_factors_in_another_order_are_moved(registered: Any) -> None:
    registered.artifacts.write_group("ETH_ret_1h", 1, factors=("volume", "momentum", "spread"))
    registered.settle()
    group = only(diff(registered))
    assert [(move.factor, move.from_dim, move.to_dim) for move in group.factors_moved] == [
        ("volume", 1, 0),
        ("momentum", 0, 1),
    ]
    assert (group.change, group.order_only, group.factors_added, group.factors_removed) == ("updated", True, (), ())


def test_a_factor_that_was_replaced_is_added_and_removed(registered: Any) -> None:
    registered.artifacts.write_group("ETH_ret_1h", 1, factors=("momentum", "skew", "spread"))
    registered.settle()
    group = only(diff(registered))
    assert (group.factors_added, group.factors_removed, group.factors_moved) == (("skew",), ("volume",), ())
    assert not group.order_only
    shifts = {(shift.factor, shift.column): shift for shift in group.ic_shifts}
    assert shifts["skew", "ic"].from_value is None
    assert shifts["volume", "ic"].to_value is None
    assert shifts["volume", "ic"].diff is None


def test_shifts_of_the_ic_table_have_their_size(registered: Any) -> None:
    registered.artifacts.write_group("ETH_ret_1h", 1, ic=0.05)
    registered.settle()
    group = only(diff(registered))
    assert {(shift.factor, shift.column) for shift in group.ic_shifts} == {
        (factor, column) for factor in ("momentum", "volume", "spread") for column in ("ic", "kendall_tau")
    }
    first = group.ic_shifts[0]
    assert (first.factor, first.column, first.from_value, first.to_value) == ("momentum", "ic", 0.02, 0.05)
    assert first.diff == pytest.approx(0.03)
    assert (group.model_changed, group.info_changes) == (False, ())


def test_changes_of_the_info_and_of_the_trees_are_told_apart(registered: Any) -> None:
    registered.artifacts.write_group("ETH_ret_1h", 1, info={**registered.artifacts.info(1), "note": "x"})
    registered.settle()
    group = only(diff(registered))
    assert [(c.key, c.from_value, c.to_value) for c in group.info_changes] == [("note", None, "x")]
    assert not group.model_changed
    registered.artifacts.write_group("ETH_ret_1h", 5, info=registered.artifacts.info(1))
    registered.settle()
    group = only(diff(registered))
    assert [(c.key, c.to_value) for c in group.info_changes] == [("note", None)]
    assert group.model_changed


def test_a_diff_backwards_is_the_mirror(registered: Any) -> None:
    registered.artifacts.write_group("ETH_ret_1h", 5, factors=("momentum", "skew", "spread"))
    registered.artifacts.write_group("ADA_ret_1h", 4)
    registered.settle()
    forth, back = diff(registered), diff(registered, 0, 1)
    assert (forth.from_version, forth.to_version) == (back.to_version, back.from_version)
    assert [group.change for group in back.groups] == ["removed", "updated"]
    assert forth.groups[1].factors_added == back.groups[1].factors_removed


def test_another_missing_value_is_another_model(registered: Any) -> None:
    model = pickle.loads(registered.artifacts.model_pickles[1])
    model.missing = -999.0
    registered.artifacts.write("ETH_ret_1h_model.pkl", pickle.dumps(model))
    registered.settle()
    assert only(diff(registered)).model_changed
