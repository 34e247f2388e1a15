"""Rows of models whose input is not flat, as scoring requests nest them: `instances` or `inputs` of n × timesteps × features."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final, NoReturn

import numpy as np

from mmserver.errors import FeaturesInvalid, TooManyRows
from mmserver.serving.features import shown_shape
from mmserver.serving.tables import JSON_NUMBERS, Numbers, scoring_field

NESTED_FIELDS: Final = ("instances", "inputs")
_MAX_NAMED = 20
_MAX_SHOWN = 80


def rows_from_nested(document: object, row_shape: tuple[int, ...], *, max_rows: int) -> Numbers:
    """The rows of a scoring request, flat; NaN where a number is missing.

    Shapes:
        returns: n_rows × the product of `row_shape`.

    Raises:
        RequestInvalid: not a scoring request.
        TooManyRows
        FeaturesInvalid: a table, or nested otherwise than the model's rows are, or something that is no number.
    """
    field, value = scoring_field(document)
    if field not in NESTED_FIELDS or not isinstance(value, list) or (value and not isinstance(value[0], list)):
        refuse_table(field, row_shape)
    if len(value) > max_rows:
        raise TooManyRows(n_rows=len(value), limit=max_rows)
    return flat_rows(value, field, row_shape)


def flat_rows(rows: list[Any], field: str, row_shape: tuple[int, ...]) -> Numbers:
    """The same of the bare arrays, which are called `field` where they are refused.

    Raises:
        FeaturesInvalid
    """
    cells: list[Any] = rows
    for depth, size in enumerate(row_shape):
        if not all(isinstance(line, list) and len(line) == size for line in cells):
            _refuse_lines(cells, field, row_shape, depth)
        cells = list(chain.from_iterable(cells))
    if not JSON_NUMBERS.issuperset(map(type, cells)):
        wrong = [at for at, cell in enumerate(cells) if type(cell) not in JSON_NUMBERS]
        told = [(_place(field, at, row_shape), f"{_shown(cells[at])} is not a number") for at in wrong[:_MAX_NAMED]]
        _refuse(f"{told[0][0]}: {told[0][1]}", told)
    return np.array(cells, np.float64).reshape(len(rows), math.prod(row_shape))


def refuse_table(loc: str, row_shape: Sequence[int]) -> NoReturn:
    """Refuse what has columns, for a model that takes more than one row of them at once."""
    reason = f"one row of the model is {shown_shape(row_shape)} numbers; send JSON with nested `instances` or `inputs`"
    _refuse(reason, [(loc, reason)])


def _refuse_lines(lines: Sequence[Any], field: str, row_shape: tuple[int, ...], depth: int) -> NoReturn:
    size = row_shape[depth]
    told = [
        (_place(field, at, row_shape[:depth]), f"an array of {size} is expected, found {_found(line)}")
        for at, line in enumerate(lines)
        if not isinstance(line, list) or len(line) != size
    ]
    reason = f"rows of {shown_shape(row_shape)} are expected; {told[0][0]}: {told[0][1]}"
    _refuse(reason, told[:_MAX_NAMED])


def _place(field: str, at: int, within: tuple[int, ...]) -> str:
    """Where the cell or line number `at` stands, counted through all rows."""
    places: list[int] = []
    for size in reversed(within):
        at, place = divmod(at, size)
        places.append(place)
    return field + "".join(f"[{place}]" for place in (at, *reversed(places)))


def _found(line: object) -> str:
    return f"{len(line)}" if isinstance(line, list) else _shown(line)


def _shown(value: object) -> str:
    text = "an array" if isinstance(value, list) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def _refuse(reason: str, told: Sequence[tuple[str, str]]) -> NoReturn:
    raise FeaturesInvalid(reason, [{"loc": loc, "msg": msg} for loc, msg in told])
