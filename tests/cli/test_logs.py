"""Log lines."""

import logging
import sys

import pytest

from mmserver.cli.logs import JsonLines, TextLines
from mmserver.security.keys import generate_key, parts_from_key


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()], ids=["json", "text"])
def test_no_line_and_no_traceback_has_a_keys_secret(formatter: logging.Formatter) -> None:
    text = generate_key().text
    try:
        raise ValueError(text)
    except ValueError:
        trouble = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "GET /models?key=%s", (text,), trouble)
    line = formatter.format(record)
    parts = parts_from_key(text)
    assert parts.secret not in line
    assert line.count(f"mm_{parts.key_id}_[redacted]") == 2
