"""What the commands of the registry take: JSON objects, `NAME=VALUE`, hashes and files with names, each refused by its place."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from mmserver.errors import RequestInvalid


class _JsonObject(click.ParamType[dict[str, Any]]):
    """A JSON object on the command line, or `@FILE` with one."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            text = Path(value[1:]).read_bytes() if value.startswith("@") else value.encode()
            return msgspec.json.decode(text, type=dict[str, Any])
        except OSError as error:
            self.fail(f"{value[1:]}: {error.strerror}", param, ctx)
        except (msgspec.MsgspecError, UnicodeError) as error:
            self.fail(f"not a JSON object: {error}", param, ctx)


JSON_OBJECT = _JsonObject()


class PairType(click.ParamType[tuple[str, str]]):
    """Two texts with a sign between them, as `name` shows; the first one does not have it."""

    def __init__(self, name: str, sign: str, *, second_may_be_empty: bool = False) -> None:
        self.name = name
        self._sign = sign
        self._second_may_be_empty = second_may_be_empty

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        first, sign, second = value.partition(self._sign)
        if not (first and sign and (second or self._second_may_be_empty)):
            self.fail(f"{value!r} is not {self.name}", param, ctx)
        return first, second


NAMED_VALUE = PairType("NAME=VALUE", "=", second_may_be_empty=True)


class _Sha256(click.ParamType[str]):
    """What `sha256sum` prints of a file, in lower case."""

    name = "HEX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            self.fail(f"{value!r} is not 64 hexadecimal digits", param, ctx)
        return str(value).lower()


SHA256 = _Sha256()


def once(values: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Raises RequestInvalid for what is given twice."""
    found: dict[str, str] = {}
    for name, text in values:
        if name in found:
            raise RequestInvalid(f"{where}.{name}: given twice")
        found[name] = text
    return found


def numbers(texts: dict[str, str]) -> dict[str, int | float]:
    """Raises RequestInvalid for what is no number."""
    found: dict[str, int | float] = {}
    for name, text in texts.items():
        try:
            found[name] = msgspec.json.decode(text.strip(), type=int | float)
        except msgspec.MsgspecError:
            raise RequestInvalid(f"metrics.{name}: {text!r} is not a number") from None
    return found


def check_sha256(file_name: str, content: bytes, expected: str | None) -> None:
    """Raises RequestInvalid, with the hash that was found, for a file that is not the one that is meant."""
    found = hashlib.sha256(content).hexdigest()
    if expected not in (None, found):
        raise RequestInvalid(f"sha256: {file_name} has {found}; nothing was registered")


def factors_from_file(file: Path | None) -> tuple[str, ...] | None:
    """Names, one a line; raises RequestInvalid where the file cannot be read."""
    if file is None:
        return None
    try:
        return tuple(line.strip() for line in file.read_text("utf-8").splitlines() if line.strip())
    except OSError as error:
        raise RequestInvalid(f"factors: {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RequestInvalid(f"factors: {file} is not UTF-8") from error
