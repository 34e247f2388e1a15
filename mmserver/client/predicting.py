"""Predictions one by one and in batches. They change nothing, so they may be asked for again."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx
import msgspec

from mmserver.client.answers import BatchPrediction, FailedPrediction, Prediction
from mmserver.client.calls import JSON, Call, json_as, query
from mmserver.client.errors import AnswerInvalid
from mmserver.client.features import Encodable, Features, encodable
from mmserver.client.options import Retries

_decode_prediction = json_as(Prediction)
_encode = msgspec.json.Encoder().encode


class _Body(msgspec.Struct, frozen=True, omit_defaults=True):
    """The request; what is None is left out."""

    symbol: str
    features: Encodable | None = None
    model_name: str | None = None
    model_version: str | None = None
    timestamp: datetime | None = None
    experiment_id: str | None = None
    unit_id: str | None = None
    explain: bool = False


class _Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    requests: list[_Body]
    max_batch_size: int | None = None
    model_name: str | None = None
    model_version: str | None = None


class PredictionRequest(msgspec.Struct, frozen=True):
    """One item of a batch; `model_name` and `model_version` beat those of the batch."""

    symbol: str
    features: Any = None
    model_name: str | None = None
    model_version: str | None = None
    timestamp: datetime | None = None
    experiment_id: str | None = None
    unit_id: str | None = None
    explain: bool = False


_ITEM_FIELDS = frozenset(PredictionRequest.__struct_fields__)


def predict(
    symbol: str,
    features: Features | None = None,
    *,
    model_name: str | None = None,
    model_version: str | None = None,
    timestamp: datetime | None = None,
    experiment_id: str | None = None,
    unit_id: str | None = None,
    explain: bool = False,
    as_of: datetime | None = None,
    timeout_s: float | None = None,
    retries: Retries | None = None,
) -> Call[Prediction]:
    """One prediction. `features`: an array, a list, a matrix of timesteps × features, or numbers by factor name.

    Raises:
        TypeError, ValueError: features that are no finite numbers, before anything is sent; NaN and None mean missing.
        RequestRefused: not the model's features; `errors` names them.
    """
    given = None if features is None else encodable(features)
    body = _Body(symbol, given, model_name, model_version, timestamp, experiment_id, unit_id, explain)
    return Call(
        method="POST",
        path="/predict",
        query="" if as_of is None else query({"as_of": as_of}),
        headers=JSON,
        content=_encode(body),
        decode=_decode_prediction,
        is_repeatable=True,
        total_s=timeout_s,
        retries=retries,
    )


def batch_predict(
    requests: Sequence[PredictionRequest | Mapping[str, Any]],
    *,
    max_batch_size: int | None = None,
    model_name: str | None = None,
    model_version: str | None = None,
    as_of: datetime | None = None,
    timeout_s: float | None = None,
) -> Call[BatchPrediction]:
    """Many predictions in one call, answered in the order asked; an item that is refused spoils no other."""
    bodies = [_body(item) for item in requests]
    batch = _Batch(bodies, max_batch_size, model_name, model_version)

    def decode(answer: httpx.Response) -> BatchPrediction:
        return _batch_from_answer(answer, len(bodies))

    return Call(
        method="POST",
        path="/predict/batch",
        query=query({"as_of": as_of}),
        headers=JSON,
        content=_encode(batch),
        decode=decode,
        is_repeatable=True,
        total_s=timeout_s,
    )


def _body(item: PredictionRequest | Mapping[str, Any]) -> _Body:
    if not isinstance(item, PredictionRequest):
        unknown = item.keys() - _ITEM_FIELDS
        if unknown:
            raise TypeError(f"a request has no field {min(unknown)!r}")
        item = PredictionRequest(**item)
    values = {name: getattr(item, name) for name in PredictionRequest.__struct_fields__}
    if item.features is not None:
        values["features"] = encodable(item.features)
    return _Body(**values)


class _RawBatch(msgspec.Struct, frozen=True):
    predictions: list[msgspec.Raw]
    timestamp: datetime


_decode_raw = json_as(_RawBatch)
_decode_item = msgspec.json.Decoder(Prediction).decode
_decode_failed = msgspec.json.Decoder(FailedPrediction).decode


def _batch_from_answer(answer: httpx.Response, n_asked: int) -> BatchPrediction:
    batch = _decode_raw(answer)
    if len(batch.predictions) != n_asked:
        raise AnswerInvalid(f"{len(batch.predictions)} answers to {n_asked} requests")
    return BatchPrediction(tuple(map(_item, batch.predictions)), batch.timestamp)


def _item(raw: msgspec.Raw) -> Prediction | FailedPrediction:
    try:
        return _decode_item(raw)
    except msgspec.ValidationError as refused:
        try:
            return _decode_failed(raw)
        except msgspec.ValidationError:
            raise AnswerInvalid(f"neither a prediction nor an error ({refused}): {bytes(raw)[:200]!r}") from refused
