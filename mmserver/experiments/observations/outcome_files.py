"""Outcomes as they are sent: JSON objects, CSV and Parquet. What one of them holds is judged when it is added, one by one."""

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

from mmserver.errors import ExtraMissing, RequestInvalid
from mmserver.experiments.observations.values import Outcome
from mmserver.storage.times import datetime_from_text

COLUMNS = ("prediction_id", "realized_return", "label", "at")
_ROWS_AT_ONCE = 20_000


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
        label=label.strip().upper() if isinstance(label, str) else label,  # type: ignore[arg-type]
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


def outcomes_from_parquet(data: bytes) -> list[Outcome]:
    """Those of a Parquet file with such columns.

    Raises:
        ExtraMissing: pyarrow is not installed.
        RequestInvalid: it is not a Parquet file, or has no such columns.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExtraMissing(what="reading Parquet", extra="parquet") from error
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), page_checksum_verification=True)
        _check_columns(file.schema_arrow.names)
        return [
            outcome_from_object(row)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, use_threads=False)
            for row in batch.to_pylist()
        ]
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first_line = str(error).partition("\n")[0][:200]
        raise RequestInvalid(f"not a whole Parquet file: {first_line}") from error


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
    try:
        return float(text)
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
