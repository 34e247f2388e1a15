"""pandas Series and DataFrames as columns of data, from their block managers."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmserver.inert.arrays import malformed
from mmserver.inert.machine import Global, Machine, Pending
from mmserver.inert.pandas_arrays import column_from_values, key_from_name, labels_from_index, state_dict
from mmserver.inert.records import (
    Array,
    ExtensionArray,
    Frame,
    Index,
    ObjectArray,
    Series,
    Value,
)

Column = tuple[Array | list[Any], str]


@dataclass(frozen=True, eq=False)
class _Block:
    values: Value
    places: Value


@dataclass(frozen=True, eq=False)
class _Manager:
    axes: list[Index]
    blocks: tuple[_Block, ...]


def _block(_: Machine, args: tuple[Value, ...]) -> _Block:
    if len(args) != 3:
        raise malformed("a pandas block with unexpected arguments")
    return _Block(args[0], args[1])


def _manager(machine: Machine, args: tuple[Value, ...]) -> _Manager:
    if len(args) != 2 or type(args[0]) is not tuple:
        raise malformed("a pandas block manager with unexpected arguments")
    machine.budget.spend_ops(len(args[0]))
    if any(type(block) is not _Block for block in args[0]):
        raise malformed("a pandas block manager with unexpected arguments")
    return _Manager(_axes(args[1], 2), args[0])


def _axes(axes: Value, n_axes: int) -> list[Index]:
    if type(axes) is not list or len(axes) != n_axes or any(type(axis) is not Index for axis in axes):
        raise malformed("the axes of a pandas block manager")
    return list(axes)


def _single_manager(_: Machine, args: tuple[Value, ...]) -> Pending:
    if args:
        raise malformed("a pandas block manager with unexpected arguments")
    return Pending("pandas.SingleBlockManager", _finish_single_manager)


def _finish_single_manager(_: Machine, state: Value) -> _Manager:
    if type(state) is not tuple or len(state) != 4:
        raise malformed("the state of a pandas block manager")
    layout = state_dict(state_dict(state[3], "a block manager").get("0.14.1"), "a block manager")
    blocks = layout.get("blocks")
    if type(blocks) is not list or len(blocks) != 1:
        raise malformed("a series that has not one block")
    fields = state_dict(blocks[0], "a block")
    return _Manager(_axes(layout.get("axes"), 1), (_Block(fields.get("values"), fields.get("mgr_locs")),))


def _series(_: Machine, args: tuple[Value, ...]) -> Pending:
    return Pending("pandas.Series", _finish_series)


def _finish_series(machine: Machine, state: Value) -> Series:
    fields = state_dict(state, "a Series")
    manager = fields.get("_mgr")
    if type(manager) is not _Manager or len(manager.axes) != 1:
        raise malformed("a Series without its block manager")
    index = manager.axes[0]
    values, dtype = column_from_values(machine, manager.blocks[0].values)
    if len(values) != len(index):
        raise malformed("a Series whose index has another length")
    return Series(fields.get("_name", fields.get("name")), index, values, dtype)


def _frame(_: Machine, args: tuple[Value, ...]) -> Pending:
    return Pending("pandas.DataFrame", _finish_frame)


def _finish_frame(machine: Machine, state: Value) -> Frame:
    manager = state_dict(state, "a DataFrame").get("_mgr")
    if type(manager) is not _Manager or len(manager.axes) != 2:
        raise malformed("a DataFrame without its block manager")
    columns, index = manager.axes
    machine.budget.spend_ops(len(columns) + len(manager.blocks))
    placed: dict[int, Column] = {}
    for block in manager.blocks:
        for place, column in zip(_places(block.places, len(columns)), _split(machine, block.values), strict=True):
            if place in placed or len(column[0]) != len(index):
                raise malformed("the blocks of a DataFrame do not fit together")
            placed[place] = column
    if len(placed) != len(columns):
        raise malformed("a DataFrame with columns that have no block")
    ordered = [placed[place] for place in range(len(columns))]
    labels = labels_from_index(machine, columns)
    return Frame(labels, index, [values for values, _ in ordered], [dtype for _, dtype in ordered])


def _places(places: Value, n_columns: int) -> list[int]:
    if type(places) is slice:
        parts = (places.start, places.stop, places.step)
        if any(type(part) is not int for part in parts) or places.step == 0:
            raise malformed("the placement of a block")
        span = range(*parts)
        if span and (len(span) > n_columns or min(span[0], span[-1]) < 0 or max(span[0], span[-1]) >= n_columns):
            raise malformed("a block placed beyond the columns")
        return list(span)
    if type(places) is not np.ndarray or places.ndim != 1 or places.dtype.kind != "i":
        raise malformed("the placement of a block")
    if places.size and not (int(places.min()) >= 0 and int(places.max()) < n_columns):
        raise malformed("a block placed beyond the columns")
    listed: list[int] = places.tolist()
    return listed


def _split(machine: Machine, values: Value) -> list[Column]:
    """The columns of one block; two-dimensional ones hold a column per row."""
    if type(values) is np.ndarray and values.ndim == 2:
        return [(row, str(values.dtype)) for row in values]
    if type(values) is ExtensionArray and type(values.values) is np.ndarray and values.values.ndim == 2:
        return [(row, values.dtype) for row in values.values]
    if type(values) is ObjectArray:
        if len(values.shape) != 2:
            raise malformed("a block that is not two-dimensional")
        n_columns, n_rows = values.shape
        machine.budget.spend_bytes(8 * len(values.values))
        return [(values.values[at * n_rows : (at + 1) * n_rows], "object") for at in range(n_columns)]
    return [column_from_values(machine, values)]


def _globals() -> dict[tuple[str, str], Global]:
    managers = "pandas.core.internals.managers"
    made = [
        Global("pandas._libs.internals._unpickle_block", reduce=_block),
        Global(f"{managers}.BlockManager", reduce=_manager),
        Global(f"{managers}.SingleBlockManager", new=_single_manager),
        Global("pandas.DataFrame", new=_frame),
        Global("pandas.core.frame.DataFrame", new=_frame),
        Global("pandas.Series", new=_series),
        Global("pandas.core.series.Series", new=_series),
    ]
    return {key_from_name(each.name): each for each in made}


GLOBALS = _globals()
