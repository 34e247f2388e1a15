"""Nothing that is printed controls the terminal, and JSON stays the same JSON."""

import json
from typing import Any

import pytest

from mmserver.cli.output import print_json, print_rows, shown

COMMANDS = "\x1b[2J\r\n\x07\x9b31m\u202e\x7f\U000e0001é"
"""To clear the screen, to ring, for another colour in one character, to write backwards, an invisible tag; and a letter."""


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def test_text_is_one_line_without_commands() -> None:
    assert shown(COMMANDS) == r"\x1b[2J\r\n\x07\x9b31m\u202e\x7f\U000e0001é"


def test_json_has_no_commands_and_means_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    value: dict[str, Any] = {"detail": COMMANDS, "parts": [COMMANDS, 1.5, None]}
    print_json(value)
    printed = capsys.readouterr().out
    assert is_harmless(printed)
    assert json.loads(printed) == value


def test_rows_have_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([{"name": COMMANDS}], ("name",), as_json=False)
    assert is_harmless(capsys.readouterr().out.replace("\t", ""))
