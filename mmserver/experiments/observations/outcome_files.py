"""Outcomes as they are sent: JSON objects, CSV and Parquet. What one of them holds is judged when it is added, one by one."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

from mmserver.errors import ExtraMissing, RequestInvalid, TooManyRows
from mmserver.experiments.observations.values import Outcome
from mmserver.storage.times import datetime_from_text

COLUMNS = ("prediction_id", "realized_return", "label", "at")
_ROWS_AT_ONCE = 20_000
_MAX_LABEL = 50
"""Characters; with spaces around it, at most."""
MAX_PLAIN_BYTES = 256 << 20
"""Of a Parquet file, uncompressed, as its footer has it: some times what a million outcomes need."""


def outcome_from_object(value: Any) -> Outcome:
    """One outcome of a JSON object, whatever it holds: `add_outcomes` refuses it with its place and why, and takes the rest.

    Raises:
        RequestInvalid: it is no object, or has a field that outcomes do not have: nothing in the call can be trusted then.
    """
    if not isinstance(value, Mapping):
        raise RequestInvalid("an outcome must be an object with a prediction_id and a realized_return or a label")
    unknown = sorted(set(map(str, value)) - set(COLUMNS))
    if unknown:
        raise RequestInvalid(f"an outcome has no field {unknown[0][:50]!r}; it has {', '.join(COLUMNS)}")
    label = value.get("label")
    return Outcome(
        prediction_id=value.get("prediction_id") or "",
        realized_return=value.get("realized_return"),
        label=label.strip().upper() if isinstance(label, str) and len(label) <= _MAX_LABEL else label,  # type: ignore[arg-type]
        at=_seconds(value.get("at")),
    )


def outcomes_from_csv(data: bytes) -> list[Outcome]:
    """Those of a CSV file with a header that names its columns; an empty field is none.

    Raises:
        RequestInvalid: it is not UTF-8, has no such header, or a line has another number of fields.
    """
    try:
        lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        names = [name.strip() for name in next(lines, [])]
        _check_columns(names)
        outcomes = []
        for fields in lines:
            if not fields:
                continue
            if len(fields) != len(names):
                _refuse(f"line {lines.line_num} has {len(fields)} fields, the header has {len(names)}")
            outcomes.append(_outcome_of_texts(dict(zip(names, fields, strict=True))))
    except UnicodeDecodeError as error:
        raise RequestInvalid("the CSV is not UTF-8") from error
    except csv.Error as error:
        raise RequestInvalid(f"line {lines.line_num} is not CSV: {error}") from error
    return outcomes


def outcomes_from_parquet(data: bytes, *, limit: int | None = None) -> list[Outcome]:
    """Those of a Parquet file with such columns. A few bytes may stand for millions of rows: what the footer announces is
    checked before anything is decoded, and a text that is there once is held once.

    Raises:
        ExtraMissing: pyarrow is not installed.
        TooManyRows: more than the limit.
        RequestInvalid: it is not a Parquet file, has no such columns, or is too large uncompressed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExtraMissing(what="reading Parquet", extra="parquet") from error
    try:
        footer = pyarrow.parquet.read_metadata(pyarrow.BufferReader(data))
        names = footer.schema.to_arrow_schema().names
        _check_columns(names)
        if limit is not None and footer.num_rows > limit:
            raise TooManyRows(n_rows=footer.num_rows, limit=limit)
        plain_bytes = sum(footer.row_group(place).total_byte_size for place in range(footer.num_row_groups))
        if plain_bytes > MAX_PLAIN_BYTES:
            _refuse(
                f"the Parquet file has {plain_bytes} bytes uncompressed, of at most {MAX_PLAIN_BYTES}; send it in parts"
            )
        file = pyarrow.parquet.ParquetFile(
            pyarrow.BufferReader(data), metadata=footer, page_checksum_verification=True, read_dictionary=names
        )
        return [
            outcome_from_object(row)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False)
            for row in _rows(batch)
        ]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first_line = str(error).partition("\n")[0][:200]
        raise RequestInvalid(f"not a whole Parquet file: {first_line}") from error


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow batch; equal texts of one are the same object."""
    import pyarrow

    columns = []
    for column in batch.columns:
        if pyarrow.types.is_dictionary(column.type):
            texts = column.dictionary.to_pylist()
            columns.append([None if place is None else texts[place] for place in column.indices.to_pylist()])
        else:
            columns.append(column.to_pylist())
    names = batch.schema.names
    return (dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True))


def _check_columns(names: Iterable[str]) -> None:
    found = list(names)
    unknown = [name for name in found if name not in COLUMNS]
    if unknown or "prediction_id" not in found or len(set(found)) != len(found):
        shown = ", ".join(name[:50] for name in found[:10]) or "nothing"
        _refuse(f"the columns must be prediction_id and some of {', '.join(COLUMNS[1:])}; found {shown}")
    if not {"realized_return", "label"} & set(found):
        _refuse("one of the columns must be realized_return or label")


def _outcome_of_texts(texts: Mapping[str, str]) -> Outcome:
    values: dict[str, Any] = {name: text.strip() or None for name, text in texts.items()}
    label = values.get("label")
    if label in ("0", "1", "2"):
        values["label"] = int(label)
    for name in ("realized_return", "at"):
        if values.get(name) is not None:
            values[name] = _number_or_text(values[name])
    return outcome_from_object(values)


def _number_or_text(text: str) -> float | str:
    """`float` would take 1_0 for ten, and digits of other scripts."""
    try:
        return float(text) if text.isascii() and "_" not in text else text
    except ValueError:
        return text


def _seconds(value: Any) -> Any:
    """A moment as seconds since the epoch; what is no moment stays as it is, and is refused when it is added."""
    try:
        if isinstance(value, str):
            value = datetime_from_text(value)
        return value.timestamp() if isinstance(value, datetime) and value.utcoffset() is not None else value
    except (ValueError, OverflowError):
        return value


def _refuse(message: str) -> NoReturn:
    raise RequestInvalid(message)
