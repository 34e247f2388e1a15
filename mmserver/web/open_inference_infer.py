"""One inference of the Open Inference Protocol: from the body of a request to the body of its answer, without Flask."""

import math
import time
from collections.abc import Mapping
from typing import NamedTuple

from mmserver.errors import MmserverError
from mmserver.formats import FloatRows
from mmserver.serving.output_tensors import output_values
from mmserver.serving.predictions import Serving
from mmserver.serving.predictors import LoadedModel
from mmserver.serving.tensor_models import TensorModel, facts_of, known_tensor_model, outputs_of
from mmserver.serving.tensors import (
    FEATURES,
    Tensor,
    check_row_count,
    refuse_tensor,
    rows_from_tensors,
    values_from_binary,
)
from mmserver.web.open_inference_bodies import (
    HEADER_LENGTH,
    InferAnswer,
    OutputChoice,
    answer_from_outputs,
    choose_outputs,
    clients_parameters,
    header_length_from_text,
    request_from_json,
    tensors_from_request,
)

MIN_PACKED_BYTES = 500
"""Answers that are shorter are not packed, whatever the client asks for."""
MAX_QUICK_BODY_BYTES = 32 << 10
MAX_QUICK_INPUTS = 8
"""Each costs some 20 µs to read."""
MAX_QUICK_NS = 300_000
"""What the rows of one request may cost to be answered by the thread that serves all connections."""
_HEADER_LENGTH_KEY = HEADER_LENGTH.upper().replace("-", "_")
_FLOAT_BYTES = 4


class Asked(NamedTuple):
    """What a request asks for, decoded and checked."""

    rows: FloatRows
    choices: list[OutputChoice]
    id: str | None
    parameters: dict[str, object]


def infer(
    serving: Serving,
    found: TensorModel,
    body: bytes,
    header_length: str | None,
    request_id: str,
    *,
    waited_ns: int = 0,
) -> InferAnswer:
    """The answer to one request; `request_id` names it where the client did not, `waited_ns` is how long it waited for a thread.

    Raises:
        RequestInvalid, TooManyRows: the body is not one that the model can work with.
        PredictorUnloadable, PredictionNotFinite: what `Serving.run` raises.
    """
    begun_ns = time.perf_counter_ns()
    try:
        loaded = serving.loaded(found.resolved)
        begun_ns = time.perf_counter_ns()  # what loading took was not this request's work
        asked = read_request(loaded, found, body, header_length, serving.store.settings.max_rows)
    except MmserverError:
        serving.statistics.failed(found.version, found.group, time.perf_counter_ns() - begun_ns)
        raise
    outputs = serving.run(found.resolved, asked.rows, queue_ns=waited_ns, begun_ns=begun_ns, loaded=loaded)
    return _answer(found, loaded, asked, outputs, request_id)


def quick_infer(
    serving: Serving,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str,
    *,
    waited_ns: int = 0,
    may_take_long: bool = False,
) -> InferAnswer | None:
    """The same from memory alone and, unless it may take long, for little work; None where the view has to answer, as it does
    for all that is refused.

    `headers` has upper-case names with underscores.
    """
    most_ns = math.inf if may_take_long else MAX_QUICK_NS
    most_bytes = math.inf if may_take_long else MAX_QUICK_BODY_BYTES
    if len(body) > most_bytes or body.count(b'"shape"') > MAX_QUICK_INPUTS:
        return None
    begun_ns = time.perf_counter_ns()
    found = known_tensor_model(serving, *_name_and_version(path))
    loaded = None if found is None else serving.held(found.resolved)
    if found is None or loaded is None or loaded.row_cost_ns > most_ns:
        return None
    try:
        asked = read_request(loaded, found, body, headers.get(_HEADER_LENGTH_KEY), serving.store.settings.max_rows)
        if len(asked.rows) * loaded.row_cost_ns > most_ns:
            return None
        outputs = serving.run(found.resolved, asked.rows, queue_ns=waited_ns, begun_ns=begun_ns, loaded=loaded)
    except MmserverError:
        return None
    answer = _answer(found, loaded, asked, outputs, request_id)
    is_to_be_packed = len(answer.body) >= MIN_PACKED_BYTES and "ACCEPT_ENCODING" in headers
    return None if is_to_be_packed else answer


def _name_and_version(path: str) -> tuple[str, str | None]:
    """From `/v2/models/{name}[/versions/{version}]/infer`; a name that is none where the path is another."""
    parts = path.split("/")
    if len(parts) == 5:
        return parts[3], None
    return (parts[3], parts[5]) if len(parts) == 7 and parts[4] == "versions" else ("", None)


def _answer(
    found: TensorModel, loaded: LoadedModel, asked: Asked, outputs: Mapping[str, FloatRows], request_id: str
) -> InferAnswer:
    facts = facts_of(loaded)
    chosen = [(choice, output_values(choice.name, facts, outputs)) for choice in asked.choices]
    named = request_id if asked.id is None else asked.id
    return answer_from_outputs(found.name, found.version.label, named, asked.parameters, chosen)


def read_request(
    loaded: LoadedModel, found: TensorModel, body: bytes, header_length: str | None, max_rows: int
) -> Asked:
    """The rows and the choice of outputs in a body.

    Raises:
        RequestInvalid, TooManyRows: as `infer`.
    """
    row_shape, accepts_missing = loaded.layout.row_shape, loaded.layout.accepts_missing
    n_json = header_length_from_text(header_length, len(body))
    available = [output.name for output in outputs_of(loaded)]
    if n_json == 0:
        rows = _raw_rows(body, row_shape, max_rows, accepts_missing=accepts_missing)
        return Asked(rows, [OutputChoice(name, True, {}) for name in available], None, {})
    request = request_from_json(body if n_json is None else body[:n_json])
    tail = memoryview(body)[len(body) if n_json is None else n_json :]
    choices = choose_outputs(request, available)
    tensors = tensors_from_request(request, tail, is_split=n_json is not None, max_rows=max_rows)
    rows = rows_from_tensors(tensors, found.group.factors, row_shape, accepts_missing=accepts_missing)
    return Asked(rows, choices, request.id, clients_parameters(request.parameters))


def _raw_rows(body: bytes, row_shape: tuple[int, ...], max_rows: int, *, accepts_missing: bool) -> FloatRows:
    """A body that is nothing but the one input's FP32 data."""
    n_features = math.prod(row_shape)
    row_bytes = n_features * _FLOAT_BYTES
    n_rows, rest = divmod(len(body), row_bytes)
    if rest or not n_rows:
        refuse_tensor(FEATURES, f"{len(body)} bytes of raw data; a row of {n_features} FP32 takes {row_bytes}")
    shape = (n_rows, *row_shape)
    check_row_count(shape, len(body), max_rows)
    values = values_from_binary(FEATURES, "FP32", shape, memoryview(body))
    return rows_from_tensors([Tensor(FEATURES, values)], (), row_shape, accepts_missing=accepts_missing)
