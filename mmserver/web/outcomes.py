"""What came of predictions: reported one by one, in lists and files, or computed from prices."""

from datetime import datetime
from typing import Annotated, Any

import flask
import msgspec
from werkzeug.exceptions import UnsupportedMediaType

from mmserver.catalog.symbols import comparable_symbol
from mmserver.errors import RequestInvalid, TooManyRows
from mmserver.experiments.dead_bands import dead_bands_of
from mmserver.experiments.experiments import get_experiment
from mmserver.experiments.observations.outcome_files import (
    outcome_from_object,
    outcomes_from_csv,
    outcomes_from_parquet,
)
from mmserver.experiments.observations.reports import OutcomeReport, PriceReport
from mmserver.experiments.observations.values import Outcome, Price
from mmserver.web.current import current_experimenter, current_store
from mmserver.web.requests import read_body, read_json_bytes, strict_json
from mmserver.web.responses import json_response

CSV_MEDIA_TYPE = "text/csv"
PARQUET_MEDIA_TYPE = "application/vnd.apache.parquet"
PARQUET_MEDIA_TYPES = frozenset({PARQUET_MEDIA_TYPE, "application/x-parquet"})
MAX_OUTCOMES = 1_000_000
"""In one call: more would hold a thread, and the file that is written to, for too long."""


class PriceBody(msgspec.Struct, frozen=True, kw_only=True):
    """One price."""

    symbol: Annotated[str, msgspec.Meta(max_length=512)]
    price: float
    time: Annotated[datetime, msgspec.Meta(tz=True)]


class PricesBody(msgspec.Struct, frozen=True):
    """The body of `POST /api/ml/outcomes/prices`."""

    prices: list[PriceBody]


def post_outcomes(experiment_id: str) -> flask.Response:
    """Add what came of an experiment's predictions; what is wrong with one outcome is said in the report and stops no other."""
    store = current_store()
    store.check_writable()
    experiment = get_experiment(store, experiment_id)
    outcomes = _outcomes(flask.request)
    return json_response(added_outcomes(outcomes, experiment.log_key))


def post_any_outcomes() -> flask.Response:
    """The same of any predictions that were logged, those outside experiments too."""
    current_store().check_writable()
    return json_response(added_outcomes(_outcomes(flask.request), None))


def post_prices() -> flask.Response:
    """Add prices, and the outcomes of all predictions whose horizon they reach."""
    store = current_store()
    store.check_writable()
    body = read_body(flask.request, PricesBody)
    prices = [
        Price(symbol=comparable_symbol(one.symbol), price=one.price, at=one.time.timestamp()) for one in body.prices
    ]
    report: PriceReport = current_experimenter().log().add_prices(prices, dead_bands=dead_bands_of(store))
    return json_response(report)


def added_outcomes(outcomes: list[Outcome], experiment_key: int | None) -> OutcomeReport:
    """Add them, those of one experiment or of any prediction.

    Raises:
        TooManyRows
        as `ObservationLog.add_outcomes`
    """
    if len(outcomes) > MAX_OUTCOMES:
        raise TooManyRows(n_rows=len(outcomes), limit=MAX_OUTCOMES)
    dead_bands = dead_bands_of(current_store())
    return current_experimenter().log().add_outcomes(outcomes, experiment_key=experiment_key, dead_bands=dead_bands)


def _outcomes(request: flask.Request) -> list[Outcome]:
    """Those of the body: an object, a list of them, CSV or Parquet."""
    if request.mimetype == CSV_MEDIA_TYPE:
        return outcomes_from_csv(_plain_data(request))
    if request.mimetype in PARQUET_MEDIA_TYPES:
        return outcomes_from_parquet(_plain_data(request), limit=MAX_OUTCOMES)
    return outcomes_from_json(read_json_bytes(request))


def outcomes_from_json(data: bytes) -> list[Outcome]:
    """Those of one object, or of a list of them.

    Raises:
        RequestInvalid
    """
    document: Any = strict_json(data)
    found = document if isinstance(document, list) else [document]
    if not found:
        raise RequestInvalid("there are no outcomes in the body")
    return [outcome_from_object(one) for one in found]


def _plain_data(request: flask.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("send the body uncompressed, without Content-Encoding")
    return request.get_data(cache=False)
