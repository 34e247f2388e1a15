"""`/predict`, `/api/ml/predict` and their batches: one prediction or many, through Flask.

What most requests ask is answered before Flask by `quick`, with the same functions for the body and the answer.
"""

import time

import flask

from mmserver.errors import MmserverError, OutsideKeyLimits
from mmserver.serving.predictions import Asked, Prediction
from mmserver.web.current import current_predicting, current_store, current_waited_ns
from mmserver.web.guard import within_limits
from mmserver.web.prediction_answers import BatchAnswer, item_from_error, item_from_prediction
from mmserver.web.prediction_bodies import AskedBatch, read_batch, read_predict
from mmserver.web.requests import query_time
from mmserver.web.responses import json_response


def post_predict() -> flask.Response:
    """One prediction, its direction as a word."""
    return _predict(direction_codes=False)


def post_ml_predict() -> flask.Response:
    """One prediction, its direction as a code."""
    return _predict(direction_codes=True)


def post_predict_batch() -> flask.Response:
    """Many predictions, directions as words."""
    return _predict_batch(direction_codes=False)


def post_ml_predict_batch() -> flask.Response:
    """Many predictions, directions as codes."""
    return _predict_batch(direction_codes=True)


def _predict(*, direction_codes: bool) -> flask.Response:
    begun_ns = time.perf_counter_ns()
    asked = within_limits(read_predict(flask.request, query_time(flask.request, "as_of")))
    prediction = current_predicting().predict(asked, current_waited_ns())
    now = current_store().now()
    return json_response(item_from_prediction(prediction, begun_ns, now, direction_codes=direction_codes))


def _predict_batch(*, direction_codes: bool) -> flask.Response:
    begun_ns = time.perf_counter_ns()
    store = current_store()
    batch = read_batch(flask.request, query_time(flask.request, "as_of"), store.settings.max_rows)
    found = _predict_all(batch)
    now = store.now()
    items = [
        item_from_prediction(answer, begun_ns, now, direction_codes=direction_codes)
        if isinstance(answer, Prediction)
        else item_from_error(item.symbol, answer)
        for item, answer in zip(batch.items, found, strict=True)
    ]
    return json_response(BatchAnswer(items, now))


def _predict_all(batch: AskedBatch) -> list[Prediction | MmserverError]:
    """Each item's answer in its place."""
    items = [_within_limits_or_error(item.asked) for item in batch.items]
    asked = [item for item in items if isinstance(item, Asked)]
    in_order = iter(current_predicting().predict_many(asked, batch.max_batch_size))
    return [next(in_order) if isinstance(item, Asked) else item for item in items]


def _within_limits_or_error(asked: Asked | MmserverError) -> Asked | MmserverError:
    try:
        return within_limits(asked) if isinstance(asked, Asked) else asked
    except OutsideKeyLimits as error:
        return error
