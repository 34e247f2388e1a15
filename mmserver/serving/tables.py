"""Tables of features as clients send them (JSON, CSV; Parquet is in `parquet_tables`), as rows for a model: columns are matched by factor name.

Columns that the model does not know are left out; one that it needs and that is not there is an error, never a guess.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final, NoReturn, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmserver.errors import FeaturesInvalid, RequestInvalid, TooManyRows
from mmserver.formats import FloatRows

INPUT_FIELDS: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")
"""Of a scoring request exactly one is there."""

MISSING_TEXTS: Final = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip
"""CSV cells that mean "missing". Source: what pandas.read_csv takes for that."""

_MAX_NAMED = 20
_MAX_SHOWN = 80
JSON_NUMBERS: Final = frozenset({int, float, type(None)})
"""Types of the cells of a scoring request; None is missing."""

Numbers: TypeAlias = NDArray[np.float64]


class Table(Protocol):
    """A table whose cells are looked at when they are needed: of a column that is left out, nothing is."""

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names, all different; None where the columns are told apart by their place alone."""

    @property
    def n_rows(self) -> int:
        """Rows, without any header."""

    @property
    def n_columns(self) -> int:
        """Cells of a row."""

    def numbers(self, picked: Sequence[int]) -> Numbers:
        """The columns at these places, in that order; NaN where a cell is missing.

        Raises:
            FeaturesInvalid: a cell is no number.
        """


# --- rows for a model -------------------------------------------------------------------------------------------------


def rows_from_table(table: Table, factors: Sequence[str], *, max_rows: int | None) -> FloatRows:
    """The table's rows as the model takes them; `max_rows` None is no limit.

    Shapes:
        n_rows × factors, float32, C-contiguous; NaN is missing.

    Raises:
        TooManyRows
        FeaturesInvalid: a factor has no column; columns without names are not as many as the factors; a cell is no
            number, or not a finite float32.
    """
    if max_rows is not None and table.n_rows > max_rows:
        raise TooManyRows(n_rows=table.n_rows, limit=max_rows)
    if not table.n_rows and not table.n_columns:
        return np.empty((0, len(factors)), np.float32)
    numbers = table.numbers(_places(table, factors))
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(numbers, np.float32)
    if np.isinf(rows).any():
        _refuse_cells(np.isinf(rows), factors, "is not finite as a 32-bit number")
    return rows


def unused_columns(table: Table, factors: Sequence[str]) -> tuple[str, ...]:
    """Columns that the model does not know, which are left out."""
    known = frozenset(factors)
    names = table.columns or ()
    return tuple(name for name in names if name not in known) if not known.isdisjoint(names) else ()


def _places(table: Table, factors: Sequence[str]) -> Sequence[int]:
    """Where in a row each factor stands."""
    places = {name: place for place, name in enumerate(table.columns or ())}
    if not places or _is_numbered(places, factors):
        if table.n_columns != len(factors):
            reason = f"rows have {table.n_columns} values without names; the model takes {len(factors)}"
            raise FeaturesInvalid(reason, [{"loc": "columns", "msg": reason}])
        return range(len(factors))
    lacking = [factor for factor in factors if factor not in places]
    if lacking:
        unknown = unused_columns(table, factors) or tuple(places)
        raise FeaturesInvalid(
            f"missing columns: {_listed(lacking)}" + (f"; given, but unknown: {_listed(unknown)}" if unknown else ""),
            [{"loc": factor, "msg": "the column is missing"} for factor in lacking[:_MAX_NAMED]],
        )
    return [places[factor] for factor in factors]


def _is_numbered(names: Mapping[str, int], factors: Sequence[str]) -> bool:
    """Whether the names only count the columns, as frames without names of their own do, and no factor is called so."""
    return all(name == str(place) for name, place in names.items()) and names.keys().isdisjoint(factors)


def _refuse_cells(refused: NDArray[np.bool_], factors: Sequence[str], what: str) -> NoReturn:
    _refuse_places([(int(row), str(factors[column])) for row, column in np.argwhere(refused)[:_MAX_NAMED]], what)


def _refuse_places(places: Sequence[tuple[int, str]], what: str) -> NoReturn:
    errors = [{"loc": f"row {row}, {column}", "msg": what} for row, column in places]
    raise FeaturesInvalid(f"{errors[0]['loc']}: {what}", errors)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(_shown, names[:_MAX_NAMED])) + more


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


# --- JSON -------------------------------------------------------------------------------------------------------------


class CellTable:
    """Rows of JSON values: numbers, and null where one is missing."""

    def __init__(self, columns: tuple[str, ...] | None, rows: Sequence[Sequence[Any]]) -> None:
        """`rows` are equally long, and as long as the columns are many."""
        self.columns = columns
        self.rows = rows

    @property
    def n_rows(self) -> int:
        """Rows."""
        return len(self.rows)

    @property
    def n_columns(self) -> int:
        """Cells of a row."""
        return len(self.rows[0]) if self.rows else len(self.columns or ())

    def numbers(self, picked: Sequence[int]) -> Numbers:
        """See `Table`."""
        rows = self._picked(picked)
        if not set(map(type, chain.from_iterable(rows))) <= JSON_NUMBERS:
            self._refuse(rows, picked)
        return np.array(rows, np.float64).reshape(len(rows), len(picked))

    def _picked(self, picked: Sequence[int]) -> Sequence[Sequence[Any]]:
        if picked == range(self.n_columns) or list(picked) == list(range(self.n_columns)):
            return self.rows
        pick: Callable[[Sequence[Any]], Any] = itemgetter(*picked)
        return [(pick(row),) for row in self.rows] if len(picked) == 1 else list(map(pick, self.rows))

    def _refuse(self, rows: Sequence[Sequence[Any]], picked: Sequence[int]) -> NoReturn:
        refused = [
            (at, self._name(picked[place]), cell)
            for at, row in enumerate(rows)
            for place, cell in enumerate(row)
            if type(cell) not in JSON_NUMBERS
        ]
        _refuse_places([(at, name) for at, name, _ in refused[:_MAX_NAMED]], f"{_shown(refused[0][2])} is not a number")

    def _name(self, place: int) -> str:
        return self.columns[place] if self.columns else f"column {place}"


def table_from_scoring(document: object) -> Table:
    """The table in a scoring request.

    Raises:
        RequestInvalid: it is no such request, or not a table.
    """
    field, value = scoring_field(document)
    if field == "dataframe_split":
        return _table_from_split(value)
    if field == "dataframe_records":
        return table_from_records(value, field)
    if field == "inputs" and isinstance(value, dict):
        return _table_from_columns(value, field)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return table_from_records(value, field)
    return table_from_rows(value, field)


def scoring_field(document: object) -> tuple[str, Any]:
    """The input of a scoring request, an object with exactly one of `INPUT_FIELDS`, and perhaps with empty `params`: its field, its value.

    Raises:
        RequestInvalid: it is not that.
    """
    if not isinstance(document, dict):
        malformed("", f"the body must be an object with one of {', '.join(INPUT_FIELDS)}")
    given = [name for name in INPUT_FIELDS if name in document]
    if len(given) != 1:
        found = f"it has {' and '.join(given)}" if given else f"it has {_listed(list(document)) or 'nothing'}"
        malformed("", f"the body must have exactly one of {', '.join(INPUT_FIELDS)}; {found}")
    for name in ("params", "signature_name"):  # whoever asks for another kind of answer must not get this one
        if document.get(name):
            malformed(name, "is not supported here; leave it out")
    return given[0], document[given[0]]


def table_from_rows(rows: object, loc: str) -> CellTable:
    """Rows of cells without names."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        malformed(loc, "must be an array of rows, each of them an array: [[…], …]")
    return CellTable(None, _equally_long(rows, loc, len(rows[0]) if rows else 0))


def table_from_records(records: object, loc: str) -> CellTable:
    """One object by column name for each row. What the first has, every other must have too."""
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        malformed(loc, "must be an array of objects, each with the columns by name: [{…}, …]")
    if not records:
        return CellTable((), [])
    columns = tuple(records[0])
    if not columns:
        malformed(f"{loc}[0]", "has no columns")
    try:
        if len(columns) == 1:
            return CellTable(columns, [(record[columns[0]],) for record in records])
        return CellTable(columns, list(map(itemgetter(*columns), records)))
    except KeyError as error:
        at = next(at for at, record in enumerate(records) if error.args[0] not in record)
        reason = f"{loc}[{at}] has no {_shown(error.args[0])}, which {loc}[0] has; send null for a missing value"
        raise FeaturesInvalid(
            reason, [{"loc": f"{loc}[{at}]", "msg": f"{_shown(error.args[0])} is missing"}]
        ) from error


def _table_from_split(frame: object) -> CellTable:
    loc = "dataframe_split"
    if not isinstance(frame, dict) or "data" not in frame or not frame.keys() <= {"columns", "index", "data"}:
        malformed(loc, "must be an object of data, and perhaps columns and index")
    data, columns = frame["data"], frame.get("columns")
    if not isinstance(data, list) or not all(isinstance(row, list) for row in data):
        malformed(f"{loc}.data", "must be an array of rows, each of them an array: [[…], …]")
    if columns is None:
        return CellTable(None, _equally_long(data, f"{loc}.data", len(data[0]) if data else 0))
    if not isinstance(columns, list) or not all(type(name) in (str, int) for name in columns):
        malformed(f"{loc}.columns", "must be an array of names")
    names = distinct_names([str(name) for name in columns], f"{loc}.columns")
    return CellTable(names, _equally_long(data, f"{loc}.data", len(names)))


def _table_from_columns(columns: dict[str, Any], loc: str) -> CellTable:
    """Arrays by column name; values that are all single ones make one row."""
    if not columns:
        malformed(loc, "has no columns")
    if not any(isinstance(values, list) for values in columns.values()):
        return CellTable(tuple(columns), [tuple(columns.values())])
    lengths = {name: len(values) if isinstance(values, list) else None for name, values in columns.items()}
    first = next(iter(lengths.values()))
    for name, length in lengths.items():
        if length is None or length != first:
            malformed(f"{loc}.{name}", f"must be an array of {first} values, as the first column is")
    return CellTable(tuple(columns), list(zip(*columns.values(), strict=True)))


def _equally_long(rows: list[list[Any]], loc: str, width: int) -> list[list[Any]]:
    if set(map(len, rows)) - {width}:
        at = next(at for at, row in enumerate(rows) if len(row) != width)
        malformed(f"{loc}[{at}]", f"has {len(rows[at])} values instead of {width}")
    return rows


def distinct_names(names: Sequence[str], loc: str) -> tuple[str, ...]:
    """The names of columns; refused where one stands there twice, as nobody knows which is meant."""
    if len(set(names)) != len(names):
        twice = Counter(names).most_common(1)[0][0]
        malformed(loc, f"{_shown(twice)} stands there twice")
    return tuple(names)


def malformed(loc: str, msg: str, cause: Exception | None = None) -> NoReturn:
    """Refuse what is not a table, naming the place."""
    raise RequestInvalid(f"{loc}: {msg}" if loc else msg, [{"loc": loc, "msg": msg}]) from cause


# --- CSV --------------------------------------------------------------------------------------------------------------


class _CsvTable(CellTable):
    """Cells are text."""

    def numbers(self, picked: Sequence[int]) -> Numbers:
        """See `Table`."""
        rows = self._picked(picked)
        numbers = np.empty((len(rows), len(picked)), np.float64)
        refused = []
        for at, row in enumerate(rows):
            try:
                numbers[at] = list(map(_number, row))
            except ValueError:
                refused += [
                    (at, self._name(picked[place]), cell) for place, cell in enumerate(row) if not _is_number(cell)
                ]
                if len(refused) >= _MAX_NAMED:
                    break
        if refused:
            _refuse_places([place[:2] for place in refused[:_MAX_NAMED]], f"{_shown(refused[0][2])} is not a number")
        return numbers


def table_from_csv(data: bytes) -> Table:
    """The table in CSV text (RFC 4180): a header line, commas, UTF-8. Empty lines are left out.

    Raises:
        RequestInvalid: not UTF-8, no header, a line that has other columns than the header, quotes that do not close.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        malformed("", f"the CSV text is not UTF-8: invalid byte at offset {error.start}", error)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        header = next((row for row in reader if row), None)
        if header is None:
            malformed("", "the CSV text is empty; its first line must have the column names")
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
            elif row:
                malformed(f"line {reader.line_num}", f"has {len(row)} values, the header has {len(header)}")
    except csv.Error as error:
        malformed(f"line {reader.line_num}", f"is not CSV: {error}", error)
    return _CsvTable(distinct_names(header, "the header"), rows)


def _number(cell: str) -> float:
    if cell in MISSING_TEXTS:
        return float("nan")
    if "_" in cell or not cell.isascii():
        raise ValueError("Python takes it, others do not")
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True
