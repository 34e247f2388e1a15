"""`mmserver audit`: who changed what, whether the trail is still what was written, and all of it as a file."""

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from mmserver.cli.db import existing_database
from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_json, print_rows, shown
from mmserver.settings import Settings

if TYPE_CHECKING:
    from mmserver.storage.audit import AuditEntry, AuditFilter
    from mmserver.storage.database import Database

COLUMNS = ("id", "at", "actor", "action", "target", "detail", "request_id")
DEFAULT_LIMIT = 50


def _moment(context: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """A time or a day; UTC where it does not say otherwise."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        reason = f"{value!r} is no time such as 2026-11-20 or 2026-11-20T14:03:22Z"
        raise click.BadParameter(reason, context, parameter) from error


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    ending_any = "; one that ends in * asks for the beginning."
    for option in (
        click.option("--until", metavar="TIME", callback=_moment, help="Only what was before that time."),
        click.option(
            "--since",
            metavar="TIME",
            callback=_moment,
            help="Only what was at or after that time, UTC unless it says otherwise.",
        ),
        click.option("--target", help=f"Only what was done to this{ending_any}"),
        click.option("--action", help=f"Only this action, such as model.registered or refused{ending_any}"),
        click.option("--actor", help=f"Only what this one did{ending_any}"),
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Who changed what: list, verify, export; also while a server runs."""


@audit.command(name="list")
@_filters
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=DEFAULT_LIMIT, show_default=True, help="How many at most."
)
@json_option
@with_settings()
def list_(settings: Settings, limit: int, as_json: bool, **asked: Any) -> None:
    """List changes and refused attempts, the newest first."""
    from mmserver.storage.audit import list_audit

    with _opened(existing_database(settings).database_path) as database, database.read() as connection:
        entries = list_audit(connection, limit, asked=_filter(asked))
    if as_json:
        print_json({"items": [asdict(entry) for entry in entries]})
    else:
        print_rows([{**asdict(entry), "detail": _detail(entry)} for entry in entries], COLUMNS, as_json=False)


@audit.command()
@click.option(
    "--head", metavar="HASH", help="The head that an earlier `verify` printed, kept elsewhere: it must be in the chain."
)
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), help="A snapshot or a copy of the database instead."
)
@json_option
@with_settings()
def verify(settings: Settings, head: str | None, file: Path | None, as_json: bool) -> None:
    """Walk along the whole chain of the trail; exit code 1, and the first row that is wrong, where it is broken."""
    from mmserver.storage.audit import verify_audit

    with _opened(file or existing_database(settings).database_path) as database:
        report = verify_audit(database, head)
    if as_json:
        print_json({"is_whole": report.reason is None, "rows": report.n_rows, "head": report.head.hash,
                    "broken_id": report.broken_id, "reason": report.reason})  # fmt: skip
    elif report.reason is None:
        click.echo(f"{report.n_rows} rows, each as it was written; head: {report.head.hash}")
    else:
        click.echo(f"the trail is broken after {report.n_rows} good rows: {shown(report.reason)}")
    if report.reason is not None:
        raise click.exceptions.Exit(1)


@audit.command()
@_filters
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True, help="What to write."
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="The file; without it, standard output."
)
@with_settings()
def export(settings: Settings, form: str, output: Path | None, **asked: Any) -> None:
    """Write every entry, the oldest first, with its hash."""
    from mmserver.storage.audit import all_audit

    with _opened(existing_database(settings).database_path) as database:
        entries = all_audit(database, _filter(asked))
        if output is None:
            _write(entries, form, sys.stdout)
            return
        with click.open_file(str(output), "w", encoding="utf-8", atomic=True) as file:
            n_written = _write(entries, form, file)
    click.echo(f"{n_written} entries: {output}")


@contextmanager
def _opened(path: Path) -> "Iterator[Database]":
    from mmserver.storage.database import open_database
    from mmserver.storage.schema import check_schema

    database = open_database(path, read_only=True, n_readers=1)
    try:
        check_schema(database)
        yield database
    finally:
        database.close()


def _filter(asked: dict[str, Any]) -> "AuditFilter":
    from mmserver.storage.audit import AuditFilter

    return AuditFilter(**asked)


def _detail(entry: "AuditEntry") -> str:
    return "; ".join(f"{name}: {value}" for name, value in entry.detail.items() if value is not None)


def _write(entries: "Iterator[AuditEntry]", form: str, file: IO[str]) -> int:
    """One line each, with control characters escaped: what names may hold does nothing to whoever looks at the file."""
    import json

    n_written = 0
    writer = csv.writer(file, lineterminator="\n")
    if form == "csv":
        writer.writerow((*COLUMNS, "hash"))
    for entry in entries:
        row = asdict(entry)
        if form == "csv":
            row["detail"] = json.dumps(row["detail"])
            writer.writerow([shown(row[name]) if row[name] is not None else "" for name in (*COLUMNS, "hash")])
        else:
            file.write(json.dumps(row) + "\n")
        n_written += 1
    return n_written
