"""Options that commands share; flags for settings are made from the settings table, so that both say the same."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mmserver.setting_kinds import BOOLEAN
from mmserver.settings import Definition, definitions, resolve_settings

Function = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def with_settings(*names: str, sources: bool = False) -> Callable[[Function], Function]:
    """Add --data-dir, --config and a flag for each named setting; the command gets the `Settings` as its first argument.

    Args:
        names: fields of Settings that the command offers as flags.
        sources: give the command the whole `ResolvedSettings` instead.
    """
    rows = {row.name: row for row in definitions()}
    offered = ("data_dir", *names)

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(config: Path | None, **given: Any) -> Any:
            resolved = resolve_settings({name: given.pop(name) for name in offered}, os.environ, config)
            return function(resolved if sources else resolved.settings, **given)

        options: list[Callable[[Function], Function]] = [
            click.option("--config", type=click.Path(path_type=Path), help="A TOML file with settings."),
            *(_option(rows[name]) for name in reversed(offered)),
        ]
        decorated: Function = run
        for option in options:
            decorated = option(decorated)
        return decorated

    return decorate


def _option(row: Definition) -> Callable[[Function], Function]:
    flag = f"--{row.name.replace('_', '-')}"
    if row.kind is BOOLEAN:
        return click.option(f"{flag}/--no-{flag[2:]}", row.name, default=None, help=row.meaning)
    metavar = row.name.rpartition("_")[2].upper()
    return click.option(flag, row.name, metavar=metavar, help=row.meaning)
