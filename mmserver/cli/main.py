"""The `mmserver` command: its sub-commands are imported when they are called, and every refusal becomes one line and a number."""

import importlib
from typing import Any

import click

from mmserver.cli.output import shown
from mmserver.errors import (
    Conflict,
    Corrupt,
    Exhausted,
    Forbidden,
    Gone,
    Invalid,
    MmserverError,
    NotFound,
    PreconditionFailed,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unprocessable,
)

COMMANDS = {
    "serve": ("mmserver.cli.serve", "Start the server."),
    "models": ("mmserver.cli.models", "Watched models, their directories and versions."),
    "registry": ("mmserver.cli.registry", "Models registered one by one: stages, comparison."),
    "optimize": ("mmserver.cli.optimize", "Smaller and quicker forms of a registered ONNX model."),
    "observations": ("mmserver.cli.observations", "What was predicted and what came of it: take in, export, sum."),
    "experiments": ("mmserver.cli.experiments", "Two versions on live requests: start, watch, decide, apply."),
    "predict": ("mmserver.cli.predict", "Predict from the command line: CSV or JSON in, decisions out."),
    "bench": ("mmserver.cli.bench", "Measure how fast a model predicts here, and over HTTP."),
    "venues": ("mmserver.cli.venues", "Order quantiles of venues: set, show."),
    "keys": ("mmserver.cli.keys", "API keys, and what each may do; the first locks the server."),
    "snapshot": ("mmserver.cli.snapshots", "Backups of the whole state: create, list, verify, restore."),
    "db": ("mmserver.cli.db", "The database: upgrade, check."),
    "audit": ("mmserver.cli.audit", "Who changed what: list, verify, export."),
    "plugins": ("mmserver.cli.plugins", "List the plugins and what they add."),
    "settings": ("mmserver.cli.settings", "Show every setting, its value and where that came from."),
    "doctor": ("mmserver.cli.doctor", "Check this machine, its libraries and the state."),
    "demo": ("mmserver.cli.demo", "Make demo models from real market data."),
}
"""Each command's name, the module whose object of that name it is, and its line in `mmserver --help`."""

EXIT_CODES: tuple[tuple[type[MmserverError], int], ...] = (
    (Invalid, 2),
    (Unprocessable, 2),
    (TooLarge, 2),
    (Conflict, 3),
    (PreconditionFailed, 3),
    (Unauthenticated, 3),
    (Forbidden, 3),
    (NotFound, 4),
    (Gone, 4),
    (Unavailable, 5),
    (Exhausted, 5),
    (Corrupt, 5),
)
"""What a script can tell apart; anything else that fails is 1."""

EPILOG = """\b
Exit codes:
  0  done
  1  a check found something wrong, or an unexpected error
  2  the command line, a setting or the input is wrong
  3  somebody else holds it, or its state does not allow it
  4  there is no such thing
  5  cannot be done now: busy, out of space, or damaged

Every command takes --data-dir and --config; the settings are in docs/settings.md. Installed plugins may add commands.
"""


def exit_code(error: MmserverError) -> int:
    """The exit code for an error, by its branch."""
    return next((code for branch, code in EXIT_CODES if isinstance(error, branch)), 1)


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for, and asks plugins for what it does not know."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The built-in commands, in the order of the table; plugins are not loaded to show help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return _plugin_command(cmd_name)
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 (the table above is wrong)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors that mmserver raises on purpose, and the disk's, become one line on stderr."""
        try:
            return super().invoke(ctx)
        except MmserverError as error:
            click.echo(f"mmserver: {shown(str(error))}", err=True)
            ctx.exit(exit_code(error))
        except BrokenPipeError:
            raise  # click ends quietly when nobody reads on
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"mmserver: {shown(place + (error.strerror or str(error)))}", err=True)
            ctx.exit(5)


def _plugin_command(name: str) -> click.Command | None:
    """A command that a plugin adds; which plugins there are is set in the environment, before any flag is read."""
    import os

    from mmserver.plugin_loading import load_plugins
    from mmserver.settings import load_settings

    plugins = load_plugins(load_settings({}, os.environ, None).plugins_dir)
    return next((command for command in plugins.commands() if command.name == name), None)


@click.command(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mmserver", message="%(prog)s %(version)s")
def main() -> None:
    """Manage and serve trading models."""
