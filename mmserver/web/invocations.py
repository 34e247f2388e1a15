"""The scoring protocol that MLflow and SageMaker share: a table in, `{"predictions": [...]}` out.

`/invocations` is for the default model, `/models/{name}/invocations` for any, where the name is `{model}.{symbol}`, or
`{model}` alone if that has one group, and may end in `@` and a version.
"""

import importlib.metadata
import time
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import flask
from werkzeug.exceptions import UnsupportedMediaType

from mmserver.errors import ExtraMissing, MmserverError
from mmserver.formats import FloatRows
from mmserver.serving.naming import resolve_default, resolve_name, split_name
from mmserver.serving.nested_rows import refuse_table, rows_from_nested
from mmserver.serving.predictions import Resolved, Serving
from mmserver.serving.predictors import LoadedModel
from mmserver.serving.tables import Numbers, Table, rows_from_table, table_from_csv, table_from_scoring
from mmserver.web.current import current_raw_experimenter, current_serving, current_store, current_waited_ns
from mmserver.web.framing import REQUEST_ID_KEY
from mmserver.web.guard import check_model
from mmserver.web.plain_json import strict_document
from mmserver.web.raw_answers import headers_of_arm, headers_of_observed, unit_id_from_request
from mmserver.web.requests import query_time
from mmserver.web.responses import JSON_MEDIA_TYPE, json_response

if TYPE_CHECKING:
    from mmserver.experiments.active import Assignment
    from mmserver.experiments.raw_outputs import RawExperimenter, RawRequest

CSV_MEDIA_TYPE = "text/csv"
PARQUET_MEDIA_TYPE = "application/vnd.apache.parquet"
PARQUET_MEDIA_TYPES = frozenset({PARQUET_MEDIA_TYPE, "application/x-parquet"})
"""The registered one, and the one that SageMaker's clients send."""
JSON_MEDIA_TYPES = frozenset({JSON_MEDIA_TYPE, "", "application/x-www-form-urlencoded"})
"""Besides JSON itself none at all, and what `curl -d` says of anything."""
PREDICTION = "prediction"
"""The output that is what the model's library itself predicts."""
BARE_BODY = "\n"


def post_invocations() -> flask.Response:
    """Predictions of the default model."""
    serving = current_serving()
    as_of = query_time(flask.request, "as_of")
    default = serving.store.settings.default_model
    resolved = resolve_default(serving, as_of)
    named = split_name(serving.store.catalog.models, default)[1] if default else resolved.group.symbol
    return _answer(resolved, named, None, as_of)


def post_model_invocations(model_name: str, version: str | None = None) -> flask.Response:
    """Predictions of the model that is named."""
    serving = current_serving()
    as_of = query_time(flask.request, "as_of")
    if version is None and "@" in model_name:
        model_name, _, version = model_name.rpartition("@")
    resolved = resolve_name(serving, model_name, version, as_of)
    _, named = split_name(serving.store.catalog.models, model_name)
    return _answer(resolved, named, version, as_of)


def get_ping() -> flask.Response:
    """200 where something can be predicted, else 404; the body is one empty line."""
    models = current_store().catalog.models.values()
    is_able = any(group.can_predict for model in models for group in model.serving.groups.values())
    return flask.Response(BARE_BODY, 200 if is_able else 404, content_type=JSON_MEDIA_TYPE)


def get_version() -> flask.Response:
    """This program's version as bare text."""
    return flask.Response(importlib.metadata.version("mmserver"), content_type="text/plain; charset=utf-8")


class TableReading:
    """The table in a request's body, read as the model that is asked takes it."""

    def __init__(self, request: flask.Request, max_rows: int) -> None:
        self._request = request
        self._max_rows = max_rows
        self._read: Table | None = None

    @property
    def is_named(self) -> bool:
        """Whether its columns have names; known once it was read."""
        return self._read is not None and self._read.columns is not None

    def __call__(self, resolved: Resolved, loaded: LoadedModel) -> FloatRows | Numbers:
        """The rows.

        Raises:
            what `_table` does; TooManyRows, FeaturesInvalid: it does not fit the model.
        """
        row_shape = loaded.layout.row_shape
        if len(row_shape) > 1:
            return _nested_rows(self._request, row_shape, self._max_rows)
        if self._read is None:
            self._read = _table(self._request)
        return rows_from_table(self._read, resolved.group.factors, max_rows=self._max_rows)


def _answer(resolved: Resolved, named: str | None, version: str | None, as_of: datetime | None) -> flask.Response:
    check_model(resolved.version.model_name)
    serving = current_serving()
    reading = TableReading(flask.request, serving.store.settings.max_rows)
    raw = current_raw_experimenter(resolved.version.model_name)
    if raw is not None:
        request = raw.request(
            resolved,
            named,
            version=version,
            as_of=as_of,
            unit_id=unit_id_from_request(flask.request),
            request_id=flask.request.environ.get(REQUEST_ID_KEY),
            waited_ns=current_waited_ns(),
        )
        assignment = raw.assigned(request.asked, resolved.version.model_name)
        if assignment is not None:
            return _answer_of_arm(raw, request, assignment, reading)
    loaded = _loaded(serving, resolved)
    rows = reading(resolved, loaded)
    if not len(rows):  # nothing is predicted
        return _answer_from_outputs(resolved, {})
    begun_ns = time.perf_counter_ns()
    try:
        outputs = serving.run(resolved, rows, queue_ns=current_waited_ns(), begun_ns=begun_ns, loaded=loaded)
    except MmserverError as error:
        serving.observe_run(resolved, loaded, rows, error, begun_ns)
        raise
    prediction_id = serving.observe_run(resolved, loaded, rows, outputs, begun_ns)
    return _answer_from_outputs(resolved, outputs, headers_of_observed(prediction_id))


def _answer_of_arm(
    raw: "RawExperimenter", request: "RawRequest", assignment: "Assignment", reading: TableReading
) -> flask.Response:
    control = raw.control(request, assignment)
    rows = reading(*control)
    if not len(rows):  # nothing is predicted
        return _answer_from_outputs(control.resolved, {})
    answer = raw.kept(raw.scored(request, assignment, control, rows, reading))
    raw.load_both(request, assignment)
    return _answer_from_outputs(answer.ready.resolved, answer.outputs, headers_of_arm(answer))


def _answer_from_outputs(
    resolved: Resolved, outputs: Mapping[str, FloatRows], headers: Mapping[str, str] = MappingProxyType({})
) -> flask.Response:
    said = {"X-Model-Version": resolved.version.label, **headers}
    return json_response({"predictions": _predictions(outputs) if outputs else []}, headers=said)


def _loaded(serving: Serving, resolved: Resolved) -> LoadedModel:
    """The model, which says what shape its rows have; a failure counts in the statistics as a prediction's does."""
    begun_ns = time.perf_counter_ns()
    try:
        return serving.loaded(resolved)
    except MmserverError as error:
        serving.statistics.failed(resolved.version, resolved.group, time.perf_counter_ns() - begun_ns)
        serving.observe_failure(resolved, error, begun_ns)
        raise


def _nested_rows(request: flask.Request, row_shape: tuple[int, ...], max_rows: int) -> Numbers:
    """The rows in the body, each of more than one dimension; see `_table`.

    Raises:
        FeaturesInvalid: it is a table, or nested otherwise.
    """
    if _media_type(request) not in JSON_MEDIA_TYPES:
        refuse_table("", row_shape)
    return rows_from_nested(strict_document(request.get_data(cache=False)), row_shape, max_rows=max_rows)


def _table(request: flask.Request) -> Table:
    """The table in the body.

    Raises:
        UnsupportedMediaType: it is declared as something that is not read here, in another charset, or compressed.
        RequestInvalid: it is not what it is declared as.
    """
    media_type = _media_type(request)
    if media_type in JSON_MEDIA_TYPES:
        return table_from_scoring(strict_document(request.get_data(cache=False)))
    if media_type == CSV_MEDIA_TYPE:
        if request.mimetype_params.get("header", "present") != "present":
            raise UnsupportedMediaType("CSV without a header line is not read: columns are matched by name")
        return table_from_csv(request.get_data(cache=False))
    return _table_from_parquet(request)


def _media_type(request: flask.Request) -> str:
    """One of those that are read here.

    Raises:
        UnsupportedMediaType: it is none, in another charset, or compressed.
    """
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("send the body uncompressed, without Content-Encoding")
    if request.mimetype_params.get("charset", "utf-8").lower() not in ("utf-8", "utf8"):
        raise UnsupportedMediaType("send the body in UTF-8")
    if request.mimetype in (*JSON_MEDIA_TYPES, CSV_MEDIA_TYPE, *PARQUET_MEDIA_TYPES):
        return request.mimetype
    raise UnsupportedMediaType(
        f"send the body as Content-Type: {JSON_MEDIA_TYPE}, {CSV_MEDIA_TYPE} or {PARQUET_MEDIA_TYPE}"
    )


def _table_from_parquet(request: flask.Request) -> Table:
    from mmserver.serving.parquet_tables import table_from_parquet

    try:
        return table_from_parquet(request.get_data(cache=False))
    except ExtraMissing as error:
        raise UnsupportedMediaType(str(error)) from error


def _predictions(outputs: Mapping[str, FloatRows]) -> list[Any]:
    """What the model's library predicts for each row: a number, or several where it gives several, such as probabilities.

    A plugin's model that calls none of several outputs its prediction gives all of them by name.
    """
    if PREDICTION in outputs:
        return _listed(outputs[PREDICTION])
    if len(outputs) == 1:
        return _listed(*outputs.values())
    columns = [_listed(values) for values in outputs.values()]
    return [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]


def _listed(values: FloatRows) -> list[Any]:
    listed: list[Any] = (values[:, 0] if values.shape[1] == 1 else values).tolist()
    return listed
