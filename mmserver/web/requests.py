"""Reading what clients send: strict JSON bodies and query parameters; every refusal names the place.

JSON is checked in this order: media type, size, UTF-8, depth (before any recursive parser sees it), grammar with
duplicate names and non-finite numbers refused, then types. Unknown fields are ignored, except where
a body forbids them.
"""

import json
import re
from collections import Counter
from collections.abc import Container
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import flask
import msgspec
from werkzeug.exceptions import UnsupportedMediaType

from mmserver.errors import RequestInvalid

MAX_JSON_DEPTH = 32
MAX_INTEGER_DIGITS = 20
MAX_QUERY_TEXT = 512
_MAX_SHOWN_NAME = 100
_MAX_UNKNOWN = 20
"""Unknown fields that one refusal names, and characters of each."""
Body = TypeVar("Body", bound=msgspec.Struct)

_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""An unclosed string matches to the end, so that the scan stays linear."""
_NUL_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_MSGSPEC_PLACE = re.compile(r"(?P<msg>.*?)(?: - at `\$\.?(?P<loc>[^`]*)`)?", re.DOTALL)
_OFFSET_WITH_LOST_PLUS = re.compile(r"(?<=\d) (\d\d:\d\d)$")


# --- bodies -----------------------------------------------------------------------------------------------------------


def read_body(request: flask.Request, body_type: type[Body]) -> Body:
    """The request's JSON body as the given type.

    Raises:
        UnsupportedMediaType: it is not declared as JSON, or is compressed.
        RequestEntityTooLarge: it is larger than the server reads.
        RequestInvalid: it is not strict JSON, or a field is missing or of the wrong type.
    """
    return body_from_bytes(read_json_bytes(request), body_type)


def read_json_bytes(request: flask.Request, also: Container[str] = ()) -> bytes:
    """The request's body, declared as JSON or as one of the media types in `also`; "" is none declared at all.

    Raises:
        UnsupportedMediaType: it is declared as something else, in another charset, or compressed.
        RequestEntityTooLarge: it is larger than the server reads.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("send the body uncompressed, without Content-Encoding")
    media_type = request.mimetype
    if (
        media_type != "application/json"
        and not (media_type.startswith("application/") and media_type.endswith("+json"))
        and media_type not in also
    ):
        raise UnsupportedMediaType("send the body as Content-Type: application/json")
    if request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("send the body in UTF-8")
    return request.get_data(cache=False)


def body_from_bytes(data: bytes, body_type: type[Body]) -> Body:
    """Strict JSON text as the given type; see `read_body`."""
    document = strict_json(data)
    if not isinstance(document, dict):
        refuse_body("the body must be a JSON object", "", f"Expected `object`, got `{json_kind(document)}`")
    try:
        return msgspec.json.decode(data, type=body_type)
    except msgspec.ValidationError as error:
        errors = field_errors(document, body_type) or [place_from_message(str(error))]
        raise RequestInvalid(reason=error_summary(errors), errors=errors) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        refuse_body("the body is not valid JSON", "", str(error), error)


def strict_json(data: bytes) -> Any:
    """The document, as dicts, lists and scalars; refused where JSON parsers differ in what they make of it.

    Raises:
        RequestInvalid: empty, not UTF-8, too deep, malformed, duplicate names, NaN, Infinity, numbers beyond a double, NUL.
    """
    if data.startswith(b"\xef\xbb\xbf"):
        refuse_body("the body is not valid JSON", "", "starts with a byte order mark")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        refuse_body("the body is not valid UTF-8", "", f"invalid byte at offset {error.start}", error)
    if not text.strip():
        refuse_body("the body is empty", "", "Expected `object`")
    _check_depth(data)
    if _NUL_ESCAPE.search(data):
        refuse_body("the body is not acceptable JSON", "", "a string contains NUL")
    try:
        return json.loads(
            text, object_pairs_hook=_object, parse_constant=_non_finite, parse_float=_finite, parse_int=_bounded
        )
    except (ValueError, RecursionError) as error:
        refuse_body("the body is not valid JSON", "", str(error), error)


def _check_depth(data: bytes) -> None:
    if data.count(b"[") + data.count(b"{") <= MAX_JSON_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(data):
        character = data[match.start()]
        if character in b"[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                refuse_body("the body is not acceptable JSON", "", f"nested deeper than {MAX_JSON_DEPTH} levels")
        elif character in b"]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        refuse_body("the body is not acceptable JSON", twice[:100], "the name is given twice")
    return document


def _non_finite(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON; send null for a missing value")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:40]} is too large")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS or not -(2**63) <= int(digits) < 2**64:
        raise ValueError("an integer does not fit 64 bits")
    return int(digits)


def field_errors(document: dict[str, Any], body_type: type[msgspec.Struct]) -> list[dict[str, str]]:
    """Every field that does not fit; the decoder itself stops at the first."""
    errors = []
    for field in _fields(body_type):
        if field.encode_name not in document:
            if field.required:
                errors.append({"loc": field.encode_name, "msg": "the field is missing"})
            continue
        try:
            msgspec.convert(document[field.encode_name], field.type)
        except msgspec.ValidationError as error:
            place = place_from_message(str(error))
            deeper = place["loc"] if place["loc"].startswith("[") or not place["loc"] else "." + place["loc"]
            errors.append({"loc": field.encode_name + deeper, "msg": place["msg"]})
    if body_type.__struct_config__.forbid_unknown_fields:
        known = {field.encode_name for field in _fields(body_type)}
        unknown = sorted(str(name)[:_MAX_SHOWN_NAME] for name in set(document) - known)
        errors += [{"loc": name, "msg": "there is no such field"} for name in unknown[:_MAX_UNKNOWN]]
    return errors


@lru_cache(maxsize=64)
def _fields(body_type: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """Asked for once for each item of a batch full of errors, and slow to find."""
    return msgspec.structs.fields(body_type)


def place_from_message(message: str) -> dict[str, str]:
    """What msgspec says about a value that does not fit, as `loc` and `msg`."""
    match = _MSGSPEC_PLACE.fullmatch(message)
    return {"loc": (match and match["loc"]) or "", "msg": match["msg"] if match else message}


def error_summary(errors: list[dict[str, str]]) -> str:
    """Every place with its message, in one line."""
    return "; ".join(f"{error['loc']}: {error['msg']}" if error["loc"] else error["msg"] for error in errors)


def json_kind(value: object) -> str:
    """What JSON calls the value, as msgspec's messages do."""
    if isinstance(value, bool):
        return "bool"
    kinds = {dict: "object", list: "array", str: "str", int: "int", float: "float", type(None): "null"}
    return kinds.get(type(value), "unknown")


def refuse_body(reason: str, loc: str, msg: str, cause: Exception | None = None) -> NoReturn:
    """Refuse the whole body as JSON, with the place."""
    raise RequestInvalid(reason=f"{reason}: {msg}", errors=[{"loc": loc, "msg": msg}]) from cause


# --- query parameters -------------------------------------------------------------------------------------------------


def query_text(request: flask.Request, name: str) -> str | None:
    """The parameter, None when it is absent or empty.

    Raises:
        RequestInvalid: longer than anything it could name, or with control characters.
    """
    text = request.args.get(name)
    if not text:
        return None
    if len(text) > MAX_QUERY_TEXT or not text.isprintable():
        refuse_parameter(name, f"Expected up to {MAX_QUERY_TEXT} printable characters")
    return text


def required_text(request: flask.Request, name: str) -> str:
    """The parameter, which must be there."""
    text = query_text(request, name)
    if text is None:
        refuse_parameter(name, "the parameter is missing")
    return text


def query_choice(request: flask.Request, name: str, choices: tuple[str, ...]) -> str:
    """One of the choices; the first when the parameter is absent."""
    text = query_text(request, name)
    if text is None:
        return choices[0]
    if text not in choices:
        refuse_parameter(name, f"Expected one of {', '.join(choices)}")
    return text


def query_flag(request: flask.Request, name: str) -> bool:
    """`true` or `false`; false when absent."""
    return query_choice(request, name, ("false", "true")) == "true"


def query_number(request: flask.Request, name: str, default: int, least: int, most: int) -> int:
    """A whole number within bounds."""
    text = query_text(request, name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_INTEGER_DIGITS and least <= int(text) <= most):
        refuse_parameter(name, f"Expected a whole number from {least} to {most}")
    return int(text)


def query_seconds(request: flask.Request, name: str, most: float) -> float:
    """A time span in seconds, 0 when absent; more than `most` is taken as `most`."""
    text = query_text(request, name)
    if text is None:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        refuse_parameter(name, f"Expected seconds from 0 to {most:g}")
    return min(seconds, most)


def query_time(request: flask.Request, name: str) -> datetime | None:
    """An RFC 3339 time with its offset, as UTC. A `+` that arrived as a space, as unescaped ones do, is understood."""
    text = query_text(request, name)
    if text is None:
        return None
    try:
        moment = msgspec.convert(_OFFSET_WITH_LOST_PLUS.sub(r"+\1", text), datetime)
    except msgspec.ValidationError:
        refuse_parameter(name, "Expected an RFC 3339 time such as 2026-11-20T14:03:22Z")
    if moment.tzinfo is None:
        refuse_parameter(name, "the time has no offset; add Z for UTC")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        refuse_parameter(name, "the time is out of range")


def refuse_parameter(name: str, msg: str) -> NoReturn:
    """Refuse one query parameter, by name."""
    raise RequestInvalid(reason=f"{name}: {msg}", errors=[{"loc": name, "msg": msg}])
