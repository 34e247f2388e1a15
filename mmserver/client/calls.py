"""One call as a value: what is sent, what its answer becomes, and whether it may be sent twice. Nothing here waits."""

import json
import re
import urllib.parse
from collections.abc import Callable, Generator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

import httpx
import msgspec
import numpy as np

from mmserver.client.errors import AnswerInvalid
from mmserver.client.options import Retries

T = TypeVar("T")
V = TypeVar("V")
Parameter: TypeAlias = "str | int | float | bool | datetime | None"
_SAFE_SEGMENT = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._~-]+").fullmatch


class Upload(msgspec.Struct, frozen=True):
    """A form with files, read from the disk while they are sent."""

    fields: Mapping[str, str]
    files: tuple[Path, ...]


class Call(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One request and what becomes of its answer.

    `is_repeatable`: it changes nothing, so it may be sent again when it is unknown what became of it.
    `also`: statuses besides 2xx that are answers, not errors.
    `read_s`, `total_s`, `retries`: in place of the client's.
    """

    method: str
    path: str
    decode: Callable[[httpx.Response], T]
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    upload: Upload | None = None
    is_repeatable: bool = False
    also: tuple[int, ...] = ()
    read_s: float | None = None
    total_s: float | None = None
    retries: Retries | None = None


class Pause(msgspec.Struct, frozen=True):
    """Wait; ends at once when the client is closed."""

    seconds: float


class Blocking(msgspec.Struct, frozen=True):
    """Work on the disk: an event loop gives it to a thread."""

    work: Callable[[], Any]


class Found(msgspec.Struct, frozen=True):
    """One value of an iteration."""

    value: Any


Step: TypeAlias = Call[Any] | Pause | Blocking | Found
Flow: TypeAlias = Generator[Step, Any, T]
"""Several steps that are one call: it is sent what each step gave, and its errors are thrown in."""


JSON = (("Content-Type", "application/json"),)


def reading(path: str, kind: type[T], **parameters: Parameter) -> Call[T]:
    """A GET."""
    return Call(method="GET", path=path, query=query(parameters), decode=json_as(kind), is_repeatable=True)


def changing(method: str, path: str, kind: type[T], body: Any = None, **parameters: Parameter) -> Call[T]:
    """Any call that changes something: never sent twice once it can have arrived.

    Raises:
        ValueError, TypeError: the body has a number that is not finite, or what JSON does not have.
    """
    content = b"" if body is None else json_text(body).encode()
    headers = () if body is None else JSON
    decode = json_as(kind)
    return Call(method=method, path=path, query=query(parameters), headers=headers, content=content, decode=decode)


def given_fields(fields: Mapping[str, V | None]) -> dict[str, V]:
    """Without those that are None: left out."""
    return {key: value for key, value in fields.items() if value is not None}


def json_text(value: object) -> str:
    """The value as JSON; numbers of numpy are numbers.

    A number that is not finite is refused: written as null, as other encoders do, it would mean "remove this".
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON has")


def json_as(kind: type[T]) -> Callable[[httpx.Response], T]:
    """A decoder of answers that have this type; unknown fields are left out."""
    decode = _decoders.get(kind)
    if decode is None:
        decode = _decoders[kind] = _json_decoder(kind)
    return decode


def nothing(_: httpx.Response) -> None:
    """For answers without a body."""


_decoders: dict[Any, Callable[[httpx.Response], Any]] = {type(None): nothing}
"""A cache of functions of their keys; there are as many as there are types here."""


def _json_decoder(kind: type[T]) -> Callable[[httpx.Response], T]:
    decode_json = msgspec.json.Decoder(kind).decode

    def decode(answer: httpx.Response) -> T:
        try:
            return decode_json(answer.content)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AnswerInvalid(f"the answer is not what mmserver gives ({error}): {answer.content[:200]!r}") from error

    return decode


def path(template: str, *names: str) -> str:
    """The path with each `{}` filled by a name, quoted whatever is in it.

    Raises:
        ValueError: a name that would lead elsewhere: empty, or dots alone.
    """
    return template.format(*map(_quoted, names))


def _quoted(name: str) -> str:
    if _SAFE_SEGMENT(name):
        return name
    if not name.strip("."):
        raise ValueError(f"{name!r} is no name")
    return urllib.parse.quote(name, safe="")


def query(parameters: Mapping[str, Parameter]) -> str:
    """The query, without what is None. A trailing `_` of a name is left out: `from_`."""
    if not parameters:
        return ""
    given = [(name.rstrip("_"), _text(value)) for name, value in parameters.items() if value is not None]
    return urllib.parse.urlencode(given)


def _text(value: Parameter) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.isoformat()
    return str(value)
