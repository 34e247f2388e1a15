"""`mmserver plugins`: which plugins were found, and what they add."""

import sys

import click

from mmserver.cli.options import json_option, with_settings
from mmserver.cli.output import print_rows
from mmserver.settings import Settings


@click.command()
@with_settings("plugins_dir")
@json_option
def plugins(settings: Settings, as_json: bool) -> None:
    """List the plugins, their hooks, and what is wrong with those that do not work; exit code 1 if any does not."""
    from mmserver.plugin_loading import load_plugins

    statuses = load_plugins(settings.plugins_dir).statuses()
    print_rows(statuses, ("name", "source", "hooks", "error"), as_json=as_json)
    sys.exit(1 if any(status.error for status in statuses) else 0)
