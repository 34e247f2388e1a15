"""What a client says of a version, checked before it is kept: JSON that every reader can take, of a bounded size.

What is wrong is named by its place, such as `metrics.sharpe`.
"""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeAlias

import msgspec

from mmserver.errors import RequestInvalid

Number: TypeAlias = int | float

MAX_FIELD_BYTES = 256 << 10
"""Of one field as JSON: a list of a hundred versions holds a hundred of each."""

MAX_MODEL_TYPE_CHARS = 100
MAX_DESCRIPTION_CHARS = 20_000
MAX_NAME_CHARS = 256
_MAX_DEPTH = 32
_MAX_INTEGER = 2**63 - 1  # what JSON readers in other languages take


def checked_metrics(value: Any, where: str = "metrics") -> dict[str, Number]:
    """Finite numbers by name; numpy's become Python's."""
    metrics = {
        _name(name, where): _number(number, f"{where}.{name}") for name, number in _mapping(value, where).items()
    }
    check_size(metrics, where)
    return metrics


def checked_tags(value: Any, where: str = "tags") -> dict[str, str]:
    """Texts by name."""
    tags = {_name(name, where): _text(text, f"{where}.{name}") for name, text in _mapping(value, where).items()}
    check_size(tags, where)
    return tags


def checked_object(value: Any, where: str) -> dict[str, Any]:
    """Anything that JSON can carry, by name."""
    checked = _mapping(_json_value(value, where, 0), where)
    check_size(checked, where)
    return dict(checked)


def set_and_removed(value: Any, where: str) -> tuple[dict[str, Any], set[str]]:
    """What a change sets, and the names that it removes by giving null for them."""
    changes = {_name(name, where): part for name, part in _mapping(value, where).items()}
    given = {name: part for name, part in changes.items() if part is not None}
    return given, changes.keys() - given.keys()


def checked_description(value: Any, where: str = "description") -> str:
    """A text of a bounded length."""
    text = _text(value, where)
    if len(text) > MAX_DESCRIPTION_CHARS:
        raise _invalid(where, f"longer than {MAX_DESCRIPTION_CHARS} characters")
    return text


def checked_model_type(value: Any, where: str = "model_type") -> str | None:
    """A word or two; None where nothing was said."""
    if value is None:
        return None
    text = _text(value, where)
    if not 1 <= len(text) <= MAX_MODEL_TYPE_CHARS or not text.isprintable():
        raise _invalid(where, f"1 to {MAX_MODEL_TYPE_CHARS} printable characters")
    return text


def checked_factors(value: Any, where: str = "factors") -> tuple[str, ...] | None:
    """Names in input order; None where the model's own count."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise _invalid(where, "must be a list of names")
    return tuple(_name(name, f"{where}[{dim}]") for dim, name in enumerate(value))


def check_size(value: Any, where: str) -> None:
    """Raises RequestInvalid for a field that is too large to be kept."""
    size_bytes = len(msgspec.json.encode(value))
    if size_bytes > MAX_FIELD_BYTES:
        raise _invalid(where, f"{size_bytes} bytes as JSON, more than {MAX_FIELD_BYTES}")


def _mapping(value: Any, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(where, "must be an object")
    return value


def _name(value: Any, where: str) -> str:
    text = _text(value, where)
    if not 1 <= len(text) <= MAX_NAME_CHARS:
        raise _invalid(where, f"names have 1 to {MAX_NAME_CHARS} characters")
    return text


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _invalid(where, "must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _invalid(where, "has half of a surrogate pair") from error
    return str(value)


def _number(value: Any, where: str) -> Number:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _invalid(where, "must be a number")
    if isinstance(value, Integral):
        if abs(int(value)) > _MAX_INTEGER:
            raise _invalid(where, "larger than a 64-bit integer")
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        raise _invalid(where, f"must be finite, found {number}")
    return number


def _json_value(value: Any, where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise _invalid(where, f"deeper than {_MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, Mapping):
        return {_name(key, where): _json_value(part, f"{where}.{key}", depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(part, f"{where}[{at}]", depth + 1) for at, part in enumerate(value)]
    if isinstance(value, Real):
        return _number(value, where)
    raise _invalid(where, f"{type(value).__name__} is nothing that JSON has")


def _invalid(where: str, problem: str) -> RequestInvalid:
    where = where[:200].encode(errors="replace").decode()
    return RequestInvalid(f"{where}: {problem}", errors=[{"loc": where, "msg": problem}])
