"""How commands print: a table on a terminal, tab-separated text with a header line in a pipe, JSON when asked."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import msgspec

HIDDEN = "-"
"""What a table shows for None."""
_LONG = 1e6
"""From here on six digits would need an exponent."""


def print_rows(rows: Iterable[Any], columns: Sequence[str], *, as_json: bool) -> None:
    """Print a listing; each row is a mapping or an object with these columns as keys or attributes.

    JSON is one object `{"items": [...]}` with the columns of each row, as the HTTP lists have it.
    """
    listed = [{column: _cell(row, column) for column in columns} for row in rows]
    if as_json:
        print_json({"items": listed})
    elif sys.stdout.isatty():
        _print_table(listed, columns)
    else:
        click.echo("\t".join(columns))
        for row in listed:
            click.echo("\t".join(shown(row[column]) for column in columns))


def print_json(value: Any) -> None:
    """Print one value as indented JSON; paths become text."""
    click.echo(json_for_terminals(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode()))


def json_for_terminals(text: str) -> str:
    """The same JSON, with what a terminal could take for a command escaped: JSON itself escapes no more than the first 32 characters."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def shown(value: Any) -> str:
    """A value as one line of printable text: control characters, which names from files may hold, are escaped."""
    if value is None:
        return HIDDEN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(shown(part) for part in value)
    text = value.isoformat(sep=" ", timespec="seconds") if hasattr(value, "isoformat") else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _glance(value: Any) -> str:
    """As `shown`, with the digits of a number that a person reads; pipes and JSON have all of them."""
    return f"{value:.6g}" if isinstance(value, float) and abs(value) < _LONG else shown(value)


def _cell(row: Any, column: str) -> Any:
    return row[column] if isinstance(row, Mapping) else getattr(row, column)


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = bool(rows) and all(isinstance(row[column], int | float) for row in rows)
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_glance(row[column])) for column in columns))
    Console().print(table)
