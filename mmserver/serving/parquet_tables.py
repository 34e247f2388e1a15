"""Tables of features in Parquet files. pyarrow is an extra, imported when the first such table comes."""

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np

from mmserver.errors import ExtraMissing, FeaturesInvalid
from mmserver.serving.tables import Numbers, Table, distinct_names, malformed


class _ParquetTable:
    """Columns of an Arrow table."""

    def __init__(self, columns: tuple[str, ...], n_rows: int, read: Callable[[Sequence[str]], list[Numbers]]) -> None:
        self.columns = columns
        self.n_rows = n_rows
        self._read = read

    @property
    def n_columns(self) -> int:
        """Columns."""
        return len(self.columns)

    def numbers(self, picked: Sequence[int]) -> Numbers:
        """See `Table`."""
        columns = self._read([self.columns[place] for place in picked])
        if any(len(column) != self.n_rows for column in columns):
            malformed("", "the Parquet file is damaged: its columns do not have the rows that it announces")
        return np.column_stack(columns)


def table_from_parquet(data: bytes) -> Table:
    """The table in a Parquet file; only the columns that are asked for are decoded.

    Raises:
        ExtraMissing: pyarrow is not installed.
        RequestInvalid: not a Parquet file.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ExtraMissing(what="reading Parquet", extra="parquet") from error
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), page_checksum_verification=True)
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        malformed("", f"not a Parquet file: {_first_line(error)}", error)

    def read(names: Sequence[str]) -> list[Numbers]:
        for name in names:
            kind = schema.field(name).type
            if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_null(kind)):
                _refuse_column(name, f"has the type {kind}, which is not a number's")
        try:
            found = file.read(columns=list(names), use_threads=False)
            return [
                found.column(name).cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False) for name in names
            ]
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            malformed("", f"the Parquet file is damaged: {_first_line(error)}", error)

    return _ParquetTable(distinct_names(schema.names, "the columns"), n_rows, read)


def _refuse_column(name: str, msg: str) -> NoReturn:
    raise FeaturesInvalid(f"{name}: {msg}", [{"loc": name, "msg": msg}])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
