"""What the pages' tables are made of: joins, scales, orders."""

from types import SimpleNamespace
from typing import Any

import pytest

from mmserver.catalog.diffing import ColumnShift, GroupDiff, InfoChange
from mmserver.catalog.info import InfoFacts
from mmserver.catalog.ingest import GroupRecord
from mmserver.catalog.payload import DimFactor
from mmserver.web.diff_rows import member_changes, shift_table
from mmserver.web.factor_rows import Bar, bar_from_value, factor_table
from mmserver.web.listing import sorted_rows


def record(ic_table: list[dict[str, Any]], *dims: DimFactor) -> GroupRecord:
    return GroupRecord(
        ic_table=ic_table, factor_column="name", info={}, facts=InfoFacts(), dim_factors=list(dims), model=None
    )


def test_factors_are_joined_by_name_and_not_by_place() -> None:
    table = factor_table(
        record(
            [{"name": "b", "IC": -0.2, "n": 5}, {"name": "a", "IC": 0.1, "n": 7}],
            DimFactor(0, "a", 0.05),
            DimFactor(1, "b", None),
            DimFactor(2, "unknown", None),
        )
    )
    assert [(row.dim, row.name, row.ic, row.tau, row.others) for row in table.rows] == [
        (0, "a", 0.1, 0.05, (7,)),
        (1, "b", -0.2, None, (5,)),
        (2, "unknown", None, None, (None,)),
    ]
    assert (table.ic_scale, table.tau_scale, table.other_columns) == (0.2, 0.05, ("n",))
    assert table.rows[0].ic_bar == Bar(50.0, 25.0, "positive")
    assert table.rows[0].tau_bar == Bar(50.0, 50.0, "positive")
    assert table.rows[1].ic_bar == Bar(0.0, 50.0, "negative")


def test_a_group_without_an_ic_table_still_has_its_factors() -> None:
    (row,) = factor_table(record([], DimFactor(0, "a", None))).rows
    assert (row.name, row.ic, row.ic_bar, row.tau_bar) == ("a", None, None, None)


@pytest.mark.parametrize("value", [None, 0.0])
def test_nothing_is_drawn_for_nothing(value: float | None) -> None:
    assert bar_from_value(value, 1.0) is None
    assert bar_from_value(0.5, 0.0) is None


def test_shifts_are_ordered_by_size_and_what_moves_by_itself_is_left_out() -> None:
    def shift(factor: str, column: str, before: float | None, after: float | None) -> ColumnShift:
        diff = None if before is None or after is None else after - before
        return ColumnShift(factor=factor, column=column, from_value=before, to_value=after, diff=diff)

    group = GroupDiff(
        group_key="k",
        change="updated",
        ic_shifts=(
            shift("small", "ic", 0.10, 0.11),
            shift("large", "ic", 0.10, -0.40),
            shift("new", "ic", None, 0.3),
            shift("small", "kendall_tau", 0.1, 0.3),
            shift("small", "n", 100.0, 9000.0),
            shift("small", "rank_ic", 0.0, 0.9),
        ),
    )
    table = shift_table(group)
    assert table.measures == ("ic", "kendall_tau")
    assert [factor for factor, _ in table.rows] == ["large", "small", "new"]
    assert table.rows[0][1][1] is None


def test_info_changes_are_taken_apart_to_the_members_that_differ() -> None:
    before = {"ic": 0.1, "same": 1, "deep": {"a": 1}, "gone": 2}
    after = {"ic": 0.2, "same": 1, "deep": {"a": 2}, "come": 3}
    group = GroupDiff(
        group_key="k",
        change="updated",
        info_changes=(InfoChange("metrics", before, after), InfoChange("note", None, {"x": 1})),
    )
    assert [(change.path, change.before, change.after) for change in member_changes(group)] == [
        (("metrics", "ic"), 0.1, 0.2),
        (("metrics", "deep", "a"), 1, 2),
        (("metrics", "come"), None, 3),
        (("metrics", "gone"), 2, None),
        (("note",), None, {"x": 1}),
    ]


@pytest.mark.parametrize(("descending", "expected"), [(False, ["a", "B", "c", None]), (True, ["c", "B", "a", None])])
def test_what_has_no_value_comes_last_either_way(descending: bool, expected: list[str | None]) -> None:
    rows = [SimpleNamespace(name=name) for name in ("c", None, "a", "B")]
    assert [row.name for row in sorted_rows(rows, lambda row: row.name, descending=descending)] == expected
