"""`mmserver settings`: what this instance would run with, and where each value came from."""

import os
from typing import Any

import click

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_rows
from mmserver.errors import SettingInvalid
from mmserver.settings import ResolvedSettings, definitions, settings_markdown


@click.command()
@click.option("--markdown", is_flag=True, help="Print the page docs/settings.md.")
@click.option(
    "--value", "names", metavar="NAME", multiple=True, help="Print this setting's value only; may be repeated."
)
@json_option
@with_settings("host", "port", sources=True)
def settings(resolved: ResolvedSettings, markdown: bool, names: tuple[str, ...], as_json: bool) -> None:
    """Show every setting, its value and where that came from."""
    if markdown:
        click.echo(settings_markdown(), nl=False)
        return
    values = {row.name: getattr(resolved.settings, row.name) for row in definitions()}
    for name in names:
        if name not in values:
            raise SettingInvalid(setting=name, reason="no such setting; see: mmserver settings")
        click.echo(_written(values[name]))
    if not names:
        rows = [{"name": name, "value": value, "source": resolved.sources[name]} for name, value in values.items()]
        print_rows(rows, ("name", "value", "source"), as_json=as_json)


def _written(value: Any) -> str:
    """The value as an environment variable would have it."""
    if isinstance(value, tuple):
        return os.pathsep.join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
