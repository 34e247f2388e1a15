"""`_ic.csv`: information coefficients by factor; a factor column, and `kendall_tau` among the others."""

import csv
import io
import math

from mmserver import Artifact, ArtifactFormat, IcTable, Scalar, Undecodable, hookimpl

FACTOR_COLUMNS = ("factor", "factor_name", "factors", "feature", "feature_name", "name", "column", "")


def parse_ic(artifact: Artifact) -> IcTable:
    """The table with numbers as numbers; the factor column is the one named so, else the first.

    Raises:
        Undecodable: not UTF-8, no header, a row of another length, or a factor twice.
    """
    rows = list(csv.reader(io.StringIO(artifact.data.decode("utf-8").removeprefix("\ufeff"), newline=""), strict=True))
    rows = [row for row in rows if row]
    if not rows:
        raise Undecodable("empty", "no header")
    columns = tuple(name.strip() for name in rows[0])
    by_lower = {name.lower(): index for index, name in reversed(list(enumerate(columns)))}
    factor_at = next((by_lower[name] for name in FACTOR_COLUMNS if name in by_lower), 0)
    columns = tuple(name or ("factor" if at == factor_at else "index") for at, name in enumerate(columns))
    if len(set(columns)) < len(columns):
        raise Undecodable("malformed", "two columns have one name")
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(columns):
            raise Undecodable("torn", f"row {number} has {len(row)} cells, the header {len(columns)}")
    names = [row[factor_at].strip() for row in rows[1:]]
    if len(set(names)) < len(names):
        raise Undecodable("malformed", "a factor stands there twice")
    cells = tuple(
        tuple(name if at == factor_at else _scalar(cell) for at, cell in enumerate(row))
        for name, row in zip(names, rows[1:], strict=True)
    )
    return IcTable(columns=columns, rows=cells, factor_column=columns[factor_at])


def _scalar(cell: str) -> Scalar:
    text = cell.strip()
    if not text:
        return None
    if "_" in text:  # float() would read 1_000 as a number
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return None
    return int(text) if text.lstrip("+-").isdecimal() and len(text) < 16 else number


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    """Claims `_ic.csv`."""
    return [ArtifactFormat(name="ic_csv", suffix="_ic.csv", role="ic", parse=parse_ic)]
