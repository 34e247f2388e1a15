"""Files of features for `mmserver predict`: CSV, JSON or Parquet, as the rows that a model takes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmserver.cli.output import shown
from mmserver.errors import FeaturesInvalid, RequestInvalid

if TYPE_CHECKING:
    import numpy as np

    from mmserver.serving.features import RowLayout
    from mmserver.serving.tables import Table

STDIN = "-"
_PARQUET_MAGIC = b"PAR1"


def read_features(features: str) -> bytes:
    """The file's bytes, or those of the standard input."""
    try:
        return sys.stdin.buffer.read() if features == STDIN else Path(features).read_bytes()
    except OSError as error:
        raise click.BadParameter(f"{shown(features)}: {error.strerror}", param_hint="--features") from error


def rows_from_features(data: bytes, layout: "RowLayout") -> "tuple[np.ndarray[Any, Any], tuple[str, ...]]":
    """The rows, and the names of columns that were left out.

    For a model with timesteps nested JSON, of one row or of many; or a table whose lines are the timesteps of one row.

    Shapes:
        returns: n_rows × n_features.

    Raises:
        RequestInvalid, FeaturesInvalid, ExtraMissing
    """
    from mmserver.serving.nested_rows import flat_rows
    from mmserver.serving.tables import rows_from_table, unused_columns

    row_shape = layout.row_shape
    document = None if len(row_shape) == 1 or not data.lstrip().startswith(b"[") else _document(data)
    if document and not isinstance(document[0], dict):
        rows = document if _depth(document) > len(row_shape) else [document]
        return flat_rows(rows, "features", row_shape), ()
    table = _table_from_bytes(data)
    if not table.n_rows:
        raise RequestInvalid("there are no rows to predict for")
    found = rows_from_table(table, layout.factors, max_rows=None)
    if len(row_shape) > 1:
        if row_shape[:-1] != (len(found),):
            expected = (
                f"a table of {row_shape[0]} lines, the timesteps of one row," if len(row_shape) == 2 else "nested JSON"
            )
            raise FeaturesInvalid(f"{expected} is expected, found {len(found)} lines", [])
        found = found.reshape(1, layout.width)
    return found, unused_columns(table, layout.factors)


def _table_from_bytes(data: bytes) -> "Table":
    """JSON if it begins as such, Parquet by its magic number, else CSV."""
    from mmserver.serving.tables import table_from_csv, table_from_records, table_from_rows

    if data.startswith(_PARQUET_MAGIC):
        from mmserver.serving.parquet_tables import table_from_parquet

        return table_from_parquet(data)
    if not data.lstrip().startswith((b"[", b"{")):
        return table_from_csv(data)
    document = _document(data)
    is_rows = isinstance(document, list) and (not document or isinstance(document[0], list | dict))
    rows = document if is_rows else [document]
    if rows and isinstance(rows[0], dict):
        return table_from_records(rows, "features")
    return table_from_rows(rows, "features")


def _document(data: bytes) -> Any:
    from mmserver.web.plain_json import strict_document

    return strict_document(data)


def _depth(document: Any) -> int:
    """How many arrays lie in each other, at the beginning."""
    depth = 0
    while isinstance(document, list) and document:
        document, depth = document[0], depth + 1
    return depth
