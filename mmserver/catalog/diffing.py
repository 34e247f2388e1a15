"""What differs between two versions of a model: factors, their statistics, the info file, the trees."""

from collections.abc import Sequence
from typing import Any

import msgspec

from mmserver.catalog.catalog import Group, Version
from mmserver.catalog.groups import GroupDetail, group_detail
from mmserver.catalog.store import Store


class FactorMove(msgspec.Struct, frozen=True):
    """A factor that both versions have, at different dimensions."""

    factor: str
    from_dim: int
    to_dim: int


class ColumnShift(msgspec.Struct, frozen=True):
    """One number of a factor's row in the IC table, before and after; `diff` is None where one of them is missing."""

    factor: str
    column: str
    from_value: float | None = msgspec.field(name="from")
    to_value: float | None = msgspec.field(name="to")
    diff: float | None


class InfoChange(msgspec.Struct, frozen=True):
    """One member of the info file that differs; None where it was not there."""

    key: str
    from_value: Any = msgspec.field(name="from")
    to_value: Any = msgspec.field(name="to")


class GroupDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What differs in one group. `change` is added, removed or updated; `order_only`: the same factors, another order."""

    group_key: str
    change: str
    factors_added: tuple[str, ...] = ()
    factors_removed: tuple[str, ...] = ()
    factors_moved: tuple[FactorMove, ...] = ()
    order_only: bool = False
    ic_shifts: tuple[ColumnShift, ...] = ()
    info_changes: tuple[InfoChange, ...] = ()
    model_changed: bool = False


class VersionDiff(msgspec.Struct, frozen=True, kw_only=True):
    """What differs between two versions; groups that are equal are not listed."""

    model_name: str
    from_version: str = msgspec.field(name="from")
    to_version: str = msgspec.field(name="to")
    groups: tuple[GroupDiff, ...]


def diff_versions(store: Store, old: Version, new: Version) -> VersionDiff:
    """Every group that is not the same in both, in the order of the group keys."""
    diffs: list[GroupDiff] = []
    for group_key in sorted(old.groups.keys() | new.groups.keys()):
        before, after = old.groups.get(group_key), new.groups.get(group_key)
        if before is None and after is not None:
            diffs.append(
                GroupDiff(group_key=group_key, change="added", factors_added=after.factors, model_changed=True)
            )
        elif after is None and before is not None:
            diffs.append(
                GroupDiff(group_key=group_key, change="removed", factors_removed=before.factors, model_changed=True)
            )
        elif before is not None and after is not None and before.sha256 != after.sha256:
            diffs.append(_updated(store, before, after))
    return VersionDiff(model_name=old.model_name, from_version=old.label, to_version=new.label, groups=tuple(diffs))


def factor_changes(
    before: Sequence[str], after: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[FactorMove, ...]]:
    """(added, removed, moved) factors of an ordered list against the one before."""
    dims_before = {factor: dim for dim, factor in enumerate(before)}
    dims_after = {factor: dim for dim, factor in enumerate(after)}
    moved = tuple(
        FactorMove(factor, dims_before[factor], dim)
        for factor, dim in dims_after.items()
        if dims_before.get(factor, dim) != dim
    )
    added = tuple(factor for factor in after if factor not in dims_before)
    return added, tuple(factor for factor in before if factor not in dims_after), moved


def _updated(store: Store, before: Group, after: Group) -> GroupDiff:
    old, new = group_detail(store, before), group_detail(store, after)
    added, removed, moved = factor_changes(before.factors, after.factors)
    return GroupDiff(
        group_key=after.group_key,
        change="updated",
        factors_added=added,
        factors_removed=removed,
        factors_moved=moved,
        order_only=bool(moved) and not added and not removed,
        ic_shifts=_ic_shifts(old, new),
        info_changes=_info_changes(old.record.info, new.record.info),
        model_changed=_model_identity(old) != _model_identity(new),
    )


def _model_identity(detail: GroupDetail) -> tuple[Any, Any] | None:
    """The same trees predict something else where another value means missing."""
    model = detail.record.model
    return (model["content_sha256"], model["missing"]) if model else None


def _ic_shifts(old: GroupDetail, new: GroupDetail) -> tuple[ColumnShift, ...]:
    before, after = _numbers(old), _numbers(new)
    shifts = []
    for key in [*after, *(key for key in before if key not in after)]:
        was, now = before.get(key), after.get(key)
        if was != now:
            diff = now - was if was is not None and now is not None else None
            shifts.append(ColumnShift(factor=key[0], column=key[1], from_value=was, to_value=now, diff=diff))
    return tuple(shifts)


def _numbers(detail: GroupDetail) -> dict[tuple[str, str], float]:
    column_of_names = detail.record.factor_column
    return {
        (str(row[column_of_names]), column): float(value)
        for row in detail.record.ic_table
        for column, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _info_changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[InfoChange, ...]:
    keys = [*after, *(key for key in before if key not in after)]
    return tuple(
        InfoChange(key=key, from_value=before.get(key), to_value=after.get(key))
        for key in keys
        if before.get(key) != after.get(key)
    )
