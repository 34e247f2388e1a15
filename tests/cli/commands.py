"""`mmserver …` in this process, for what needs no process of its own."""

from pathlib import Path
from typing import Any

from click.testing import CliRunner

from mmserver.cli.main import main


def run(*arguments: str | Path, code: int = 0, stdin: str | None = None) -> Any:
    """The command's result; it ends with the code that is expected."""
    done = CliRunner().invoke(main, list(map(str, arguments)), input=stdin)
    assert done.exit_code == code, done.output
    return done
