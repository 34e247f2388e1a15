"""The last look at a decoded value: no cycles, not too deep, not too large, and nothing in it but data."""

import datetime as dt
from collections.abc import Iterable
from decimal import Decimal
from itertools import chain
from typing import Any
from uuid import UUID

import numpy as np

from mmserver.errors import Undecodable
from mmserver.inert.limits import Limits
from mmserver.inert.machine import Global, Pending
from mmserver.inert.records import (
    ExtensionArray,
    Frame,
    Index,
    Instance,
    ObjectArray,
    Series,
    Timestamp,
    TimeZone,
    Value,
    ZonedTime,
)

_LEAVES = frozenset(
    (
        *(type(None), bool, int, float, complex, str, bytes, bytearray, np.ndarray, Timestamp, TimeZone, ZonedTime),
        *(dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone, Decimal, UUID, slice, range),
    )
)


def check_graph(root: Value, limits: Limits) -> None:
    """Refuse what a consumer could not walk through, or what is no data.

    Raises:
        Undecodable: `too_complex` for cycles, depth and size (shared values count each time they are reached),
            `unsupported` for a reference to a class or function, `malformed` for an object that never got its state.
    """
    measured: dict[int, tuple[int, int]] = {}
    entered: set[int] = set()
    todo: list[tuple[Value, bool]] = [(root, False)]
    while todo:
        value, is_left = todo.pop()
        if is_left:
            measured[id(value)] = _measure(value, measured, limits)
            entered.discard(id(value))
        elif id(value) in entered:
            raise Undecodable("too_complex", "a value that contains itself")
        elif id(value) not in measured and not _is_leaf(value):
            entered.add(id(value))
            if len(entered) > limits.max_depth:
                raise Undecodable("too_complex", f"nested deeper than {limits.max_depth}")
            todo.append((value, True))
            if not _has_only_leaves(value):
                todo.extend((child, False) for child in _children(value) if type(child) not in _LEAVES)


def _measure(value: Value, measured: dict[int, tuple[int, int]], limits: Limits) -> tuple[int, int]:
    if _has_only_leaves(value):
        depth, n_items = 1, 1 + len(value)
    else:
        below = [measured.get(id(child), (0, 1)) for child in _children(value)]
        depth = 1 + max((deep for deep, _ in below), default=0)
        n_items = 1 + sum(size for _, size in below)
    if depth > limits.max_depth:
        raise Undecodable("too_complex", f"nested deeper than {limits.max_depth}")
    if n_items > limits.max_items:
        raise Undecodable("too_complex", f"more than {limits.max_items} values, counting shared ones each time")
    return depth, n_items


def _has_only_leaves(value: Value) -> bool:
    return type(value) in (list, tuple) and _LEAVES.issuperset(map(type, value))


def _is_leaf(value: Value) -> bool:
    if type(value) in _LEAVES or isinstance(value, np.generic):
        return True
    if type(value) is Global:
        raise Undecodable("unsupported", f"a reference to {value.name} as a value")
    if type(value) is Pending:
        raise Undecodable("malformed", f"a {value.name} that never got its state")
    return False


def _children(value: Value) -> Iterable[Any]:
    kind = type(value)
    if kind in (list, tuple, set, frozenset):
        return value  # type: ignore[no-any-return]
    if kind is dict:
        return chain(value.keys(), value.values())
    if kind is Instance:
        return (value.args, value.state)
    if kind is Frame:
        return (value.columns, value.index, *value.data)
    if kind in (Series, Index, ObjectArray, ExtensionArray):
        return tuple(getattr(value, each) for each in ("name", "index", "values") if hasattr(value, each))
    raise Undecodable("malformed", f"part of a pandas object by itself ({kind.__name__.lstrip('_')})")
