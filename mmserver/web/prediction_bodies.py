"""The bodies of prediction requests, read strictly and fast: a typed decoder does the work, and a proof that it missed nothing.

The strict reader of `requests` costs ten times what the typed decoder does, which skips what it does not know: a name that
is there twice, a number in an unknown field that no double holds. Without a backslash in the body every string in it has
two quotes, so if the decoded fields account for all quotes, then nothing was skipped and no name was there twice; what is
left to check is the size of the numbers. A body without that proof goes to the strict reader, which also says what is wrong.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, NoReturn, TypeAlias

import flask
import msgspec
from msgspec import UNSET, UnsetType

from mmserver.errors import FeaturesInvalid, FieldsInvalid, TooManyRows
from mmserver.serving.predictions import Asked
from mmserver.web.framing import REQUEST_ID_KEY
from mmserver.web.plain_json import strict_document
from mmserver.web.requests import (
    error_summary,
    field_errors,
    json_kind,
    place_from_message,
    read_json_bytes,
    refuse_body,
)

ALSO_JSON = frozenset({"", "text/plain", "application/x-www-form-urlencoded"})
"""Media types that are read as JSON besides JSON itself: what `curl -d` and other plain programs send. A prediction changes
nothing, so a page of another site gains nothing by sending one as a form."""
EXACT_INTEGERS_BELOW = 2.0**63
"""Integers that JSON parsers agree about, in magnitude; a float beyond it may be an integer of more than 64 bits."""
MAX_ERRORS = 100
MAX_NAME = 100
_NOT_PLAIN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""A decoder goes down into what it skips, too."""
_NUMBER_TYPES = frozenset({int, float, type(None)})
Numbers: TypeAlias = list[float | None]
Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=512)]
"""Names are remembered with what they mean; separators in symbols do not count, so the longest could be any length."""
Given: TypeAlias = Name | UnsetType | None


class PredictBody(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction as it is asked for; null and absent mean the same for what is optional."""

    symbol: Name
    features: list[float | Numbers | None] | dict[str, float | None] | UnsetType | None = UNSET
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)] | UnsetType | None = UNSET
    model_name: Given = UNSET
    model_version: Given = UNSET
    experiment_id: Given = UNSET
    unit_id: Given = UNSET
    model_type: Given = UNSET
    explain: bool | UnsetType | None = UNSET


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    """Several predictions; `model_name` and `model_version` are for those that name none."""

    requests: list[PredictBody]
    max_batch_size: Annotated[int, msgspec.Meta(ge=1)] | UnsetType | None = UNSET
    model_name: Given = UNSET
    model_version: Given = UNSET


class _BatchOfAnything(msgspec.Struct, frozen=True, kw_only=True):
    """`BatchBody` as far as one bad item must not spoil the others."""

    requests: list[Any]
    max_batch_size: Annotated[int, msgspec.Meta(ge=1)] | UnsetType | None = UNSET
    model_name: Given = UNSET
    model_version: Given = UNSET


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One item of a batch: what it asks, or why it cannot be asked."""

    symbol: str | None
    asked: Asked | FieldsInvalid | FeaturesInvalid


@dataclass(frozen=True, slots=True)
class AskedBatch:
    """A whole batch, in the order asked."""

    items: list[BatchItem]
    max_batch_size: int | None


_decode_one = msgspec.json.Decoder(PredictBody).decode
_decode_batch = msgspec.json.Decoder(BatchBody).decode


# --- one --------------------------------------------------------------------------------------------------------------


def read_predict(request: flask.Request, as_of: datetime | None) -> Asked:
    """What the request asks for.

    Raises:
        UnsupportedMediaType, RequestEntityTooLarge: see `read_json_bytes`.
        RequestInvalid: it is not strict JSON.
        FieldsInvalid: a field is missing or of the wrong type.
        FeaturesInvalid: there are none.
    """
    body = body_from_bytes(read_json_bytes(request, ALSO_JSON))
    return asked_from_body(body, as_of, request_id=request.environ.get(REQUEST_ID_KEY))


def body_from_bytes(data: bytes) -> PredictBody:
    """The body as its type, strictly; see `read_predict`."""
    body = plain_body(data)
    if body is not None and has_plain_features(body):
        return body
    document = _document(data)
    try:
        body = msgspec.convert(document, PredictBody)
    except msgspec.ValidationError as error:
        _refuse_fields(_errors_in(document) or [place_from_message(str(error))])
    if errors := _feature_errors(body.features):
        _refuse_fields(errors)
    return body


def plain_body(data: bytes) -> PredictBody | None:
    """The body, if it is strict JSON without a doubt; the numbers and the shape of its features are still to be checked.

    A caller that turns the features into an array can prove both there: each must be below `EXACT_INTEGERS_BELOW`.
    """
    try:
        body = _decode_one(data)
    except _NOT_PLAIN:
        return None
    if data.count(b'"') == 2 * _n_strings(body) and b"\\" not in data:
        return body
    return None


def has_plain_features(body: PredictBody) -> bool:
    """Whether the features are of one shape, and every number is below `EXACT_INTEGERS_BELOW`."""
    features = body.features
    if isinstance(features, dict):
        return _are_small(features.values())
    if not isinstance(features, list):
        return True
    if features and isinstance(features[0], list):
        return all(isinstance(row, list) and _are_small(row) for row in features)
    return _are_small(features)


def asked_from_body(
    body: PredictBody,
    as_of: datetime | None,
    model_name: str | None = None,
    version: str | None = None,
    *,
    request_id: str | None = None,
) -> Asked:
    """What the body asks for; `model_name` and `version` are taken where it names none. `request_id`: of a request for it alone.

    Raises:
        FeaturesInvalid: it has no features, and there is no service to take them from.
    """
    if body.features is None or body.features is UNSET:
        reason = "no feature service is configured: send the features with the request"
        if body.model_type:
            reason = f"no service of type {body.model_type!r} is registered, and {reason}"
        raise FeaturesInvalid(reason=reason, errors=[{"loc": "features", "msg": "the field is missing"}])
    return Asked(
        symbol=body.symbol,
        features=body.features,  # type: ignore[arg-type]  # of one shape: `has_plain_features` or `_feature_errors` said so
        model_name=given(body.model_name) or model_name,
        version=given(body.model_version) or version,
        as_of=as_of,
        explain=body.explain is True,
        experiment_id=given(body.experiment_id),
        unit_id=given(body.unit_id),
        request_id=request_id,
    )


def _document(data: bytes) -> dict[str, Any]:
    """The body as a strict JSON object."""
    document = strict_document(data)
    if not isinstance(document, dict):
        _refuse_fields([{"loc": "", "msg": f"Expected `object`, got `{json_kind(document)}`"}])
    if b"\\u" in data:
        try:
            msgspec.json.decode(data)  # it refuses what Python's reader lets pass: lone surrogates
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            refuse_body("the body is not valid JSON", "", str(error), error)
    return document


def given(text: Given) -> str | None:
    """The text, None where there is none."""
    return None if text is UNSET else text


# --- many -------------------------------------------------------------------------------------------------------------


def read_batch(request: flask.Request, as_of: datetime | None, max_rows: int) -> AskedBatch:
    """What the request asks for, item by item; what is wrong with one item is only its own answer.

    Raises:
        UnsupportedMediaType, RequestEntityTooLarge: see `read_json_bytes`.
        RequestInvalid: the whole is not strict JSON.
        FieldsInvalid: `requests` is missing or no list, or another of its own fields is of the wrong type.
        TooManyRows: there are more items than one request may have; a matrix of features is one row.
    """
    return batch_from_bytes(read_json_bytes(request, ALSO_JSON), as_of, max_rows)


def batch_from_bytes(data: bytes, as_of: datetime | None, max_rows: int) -> AskedBatch:
    """The body as its items, strictly; see `read_batch`. More items than `max_rows` are not even looked at."""
    plain = _plain_batch(data)
    if plain is not None:
        _limit_items(plain.requests, max_rows)
        items = [_item(body, body.symbol, plain, as_of) for body in plain.requests]
        return AskedBatch(items, _number(plain.max_batch_size))
    document = _document(data)
    try:
        batch = msgspec.convert(document, _BatchOfAnything)
    except msgspec.ValidationError as error:
        _refuse_fields(field_errors(document, _BatchOfAnything) or [place_from_message(str(error))])
    _limit_items(batch.requests, max_rows)
    items = []
    for found in batch.requests:
        symbol = found.get("symbol") if isinstance(found, dict) else None
        items.append(_item(_body_or_error(found), symbol if isinstance(symbol, str) else None, batch, as_of))
    return AskedBatch(items, _number(batch.max_batch_size))


def _plain_batch(data: bytes) -> BatchBody | None:
    """As `plain_body` and `has_plain_features`, for all items together."""
    try:
        batch = _decode_batch(data)
    except _NOT_PLAIN:
        return None
    n_strings = 1 + (batch.max_batch_size is not UNSET) + _n_given(batch.model_name) + _n_given(batch.model_version)
    n_strings += sum(map(_n_strings, batch.requests))
    if data.count(b'"') != 2 * n_strings or b"\\" in data:
        return None
    return batch if all(map(has_plain_features, batch.requests)) else None


def _body_or_error(document: object) -> PredictBody | FieldsInvalid:
    if not isinstance(document, dict):
        return _fields_invalid([{"loc": "", "msg": f"Expected `object`, got `{json_kind(document)}`"}])
    try:
        body = msgspec.convert(document, PredictBody)
    except msgspec.ValidationError as error:
        return _fields_invalid(_errors_in(document) or [place_from_message(str(error))])
    errors = _feature_errors(body.features)
    return _fields_invalid(errors) if errors else body


def _item(
    body: PredictBody | FieldsInvalid, symbol: str | None, batch: BatchBody | _BatchOfAnything, as_of: datetime | None
) -> BatchItem:
    if isinstance(body, FieldsInvalid):
        return BatchItem(symbol, body)
    try:
        asked = asked_from_body(body, as_of, given(batch.model_name), given(batch.model_version))
    except FeaturesInvalid as error:
        return BatchItem(symbol, error)
    return BatchItem(symbol, asked)


def _number(value: int | UnsetType | None) -> int | None:
    return None if value is UNSET else value


def _limit_items(items: Sequence[Any], max_rows: int) -> None:
    if len(items) > max_rows:
        raise TooManyRows(n_rows=len(items), limit=max_rows)


# --- the proof --------------------------------------------------------------------------------------------------------


def _n_strings(body: PredictBody) -> int:
    """How many strings the body's text has, if it has each name once and none that is unknown."""
    n = 2  # symbol and its value
    if body.features is not UNSET:
        n += 1 + len(body.features) if isinstance(body.features, dict) else 1
    if body.timestamp is not UNSET:
        n += 1 if body.timestamp is None else 2
    if body.explain is not UNSET:
        n += 1
    return (
        n
        + _n_given(body.model_name)
        + _n_given(body.model_version)
        + _n_given(body.experiment_id)
        + _n_given(body.unit_id)
        + _n_given(body.model_type)
    )


def _n_given(text: Given) -> int:
    if text is UNSET:
        return 0
    return 1 if text is None else 2


def _are_small(numbers: Iterable[Any]) -> bool:
    """Whether all are numbers or None, and no number is as large as `EXACT_INTEGERS_BELOW`."""
    try:
        return math.hypot(*numbers) < EXACT_INTEGERS_BELOW
    except TypeError:
        pass
    try:
        return math.hypot(*(number for number in numbers if number is not None)) < EXACT_INTEGERS_BELOW
    except TypeError:
        return False


# --- what is wrong ----------------------------------------------------------------------------------------------------


def _refuse_fields(errors: list[dict[str, str]]) -> NoReturn:
    raise _fields_invalid(errors)


def _fields_invalid(errors: list[dict[str, str]]) -> FieldsInvalid:
    return FieldsInvalid(reason=error_summary(errors), errors=errors)


def _errors_in(document: dict[str, Any]) -> list[dict[str, str]]:
    """Every field that does not fit, and every feature by itself."""
    errors = [error for error in field_errors(document, PredictBody) if not error["loc"].startswith("features")]
    return errors + _feature_errors(document.get("features"))


def _feature_errors(features: object) -> list[dict[str, str]]:
    """Each feature that is not a number or null, in a vector, by name or in a matrix."""
    errors: list[dict[str, str]] = []
    if isinstance(features, dict):
        if not _are_numbers(features.values()):
            _add_errors(errors, ((f"features.{name[:MAX_NAME]}", value) for name, value in features.items()))
    elif isinstance(features, list) and features and isinstance(features[0], list):
        for index, row in enumerate(features):
            if not isinstance(row, list):
                if len(errors) < MAX_ERRORS:
                    errors.append({"loc": f"features[{index}]", "msg": f"Expected `array`, got `{json_kind(row)}`"})
            elif not _are_numbers(row):
                _add_errors(errors, ((f"features[{index}][{place}]", value) for place, value in enumerate(row)))
    elif isinstance(features, list):
        if not _are_numbers(features):
            _add_errors(errors, ((f"features[{index}]", value) for index, value in enumerate(features)))
    elif features is not None and features is not UNSET:
        errors.append({"loc": "features", "msg": f"Expected `array` or `object`, got `{json_kind(features)}`"})
    return errors


def _are_numbers(values: Iterable[object]) -> bool:
    return set(map(type, values)) <= _NUMBER_TYPES


def _add_errors(errors: list[dict[str, str]], values: Iterable[tuple[str, object]]) -> None:
    for loc, value in values:
        if len(errors) == MAX_ERRORS:
            return
        if type(value) not in _NUMBER_TYPES:
            errors.append({"loc": loc, "msg": f"Expected `float`, got `{json_kind(value)}`"})
