"""One inference of the Open Inference Protocol: from the body of a request to the body of its answer, without Flask."""

import math
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from mmserver.errors import MmserverError
from mmserver.formats import FloatRows
from mmserver.serving.naming import split_name
from mmserver.serving.output_tensors import output_values
from mmserver.serving.predictions import Resolved, Serving
from mmserver.serving.predictors import LoadedModel
from mmserver.serving.tensor_models import TensorModel, facts_of, known_tensor_model, outputs_of, own_name
from mmserver.serving.tensors import (
    FEATURES,
    Tensor,
    check_row_count,
    refuse_tensor,
    rows_from_tensors,
    values_from_binary,
)
from mmserver.web.current import LateExperimenter
from mmserver.web.open_inference_bodies import (
    HEADER_LENGTH,
    InferAnswer,
    InferRequest,
    OutputChoice,
    answer_from_outputs,
    choose_outputs,
    clients_parameters,
    header_length_from_text,
    request_from_json,
    tensors_from_request,
)
from mmserver.web.raw_answers import PREDICTION_ID, UNIT_ID, UNIT_ID_KEY, checked_unit_id, said_of_arm

if TYPE_CHECKING:
    from mmserver.experiments.raw_outputs import RawAnswer, RawExperimenter, RawRequest

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


class InferCall(NamedTuple):
    """One request, without its path. `request_id` names it where the client's body does not; `unit_id` is its header's."""

    body: bytes
    header_length: str | None
    request_id: str
    unit_id: str | None = None
    waited_ns: int = 0
    """How long it waited for a thread."""
    version: str | None = None
    """As the path has it."""
    as_of: datetime | None = None


def infer(
    serving: Serving, found: TensorModel, named: str | None, call: InferCall, raw: "RawExperimenter | None" = None
) -> InferAnswer:
    """The answer to one request; `named` is the symbol in the model's name, `raw` there while an experiment runs on the model.

    Raises:
        RequestInvalid, TooManyRows: the body is not one that the model can work with.
        PredictorUnloadable, PredictionNotFinite: what `Serving.run` raises.
        FieldsInvalid, Overloaded, DiskFull: what an experiment refuses.
    """
    if raw is not None:
        answer = _infer_in_arm(serving, raw, found, named, call)
        if answer is not None:
            return answer
    begun_ns = time.perf_counter_ns()
    try:
        loaded = serving.loaded(found.resolved)
        begun_ns = time.perf_counter_ns()  # what loading took was not this request's work
        reading = reading_of(call, serving.store.settings.max_rows)
        asked = reading.asked(found.resolved, loaded)
    except MmserverError as error:
        serving.statistics.failed(found.version, found.group, time.perf_counter_ns() - begun_ns)
        serving.observe_failure(found.resolved, error, begun_ns)
        raise
    try:
        outputs = serving.run(found.resolved, asked.rows, queue_ns=call.waited_ns, begun_ns=begun_ns, loaded=loaded)
    except MmserverError as error:
        serving.observe_run(found.resolved, loaded, asked.rows, error, begun_ns)
        raise
    prediction_id = serving.observe_run(found.resolved, loaded, asked.rows, outputs, begun_ns)
    return _answer(found, loaded, _named(asked, prediction_id), outputs, call.request_id)


def _infer_in_arm(
    serving: Serving, raw: "RawExperimenter", found: TensorModel, named: str | None, call: InferCall
) -> InferAnswer | None:
    """The answer of the request's arm; None where it belongs to no experiment."""
    reading = reading_of(call, serving.store.settings.max_rows)
    request = _raw_request(raw, found, named, call, reading)
    assignment = raw.assigned(request.asked, found.version.model_name)
    if assignment is None:
        return None
    control = raw.control(request, assignment)
    asked = reading.asked(*control)
    answer = raw.kept(raw.scored(request, assignment, control, asked.rows, reading))
    raw.load_both(request, assignment)
    return _answer_of_arm(found, asked, answer, call.request_id)


def quick_infer(
    serving: Serving,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    request_id: str,
    *,
    waited_ns: int = 0,
    may_take_long: bool = False,
    experimenter: LateExperimenter | None = None,
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
    name, version = _name_and_version(path)
    found = known_tensor_model(serving, name, version)
    if found is None:
        return None
    call = InferCall(body, headers.get(_HEADER_LENGTH_KEY), request_id, None, waited_ns, version)
    try:
        if experimenter is not None and found.version.model_name in serving.store.catalog.experiments:
            call = call._replace(unit_id=checked_unit_id(headers.get(UNIT_ID_KEY), UNIT_ID))
            belongs, answer = _quick_in_arm(serving, experimenter, found, name, call, headers, most_ns=most_ns)
            if belongs:
                return answer
        return _quick_of_model(serving, found, call, headers, begun_ns, most_ns)
    except MmserverError:
        return None


def _quick_of_model(  # noqa: PLR0917 (what `quick_infer` knows)
    serving: Serving,
    found: TensorModel,
    call: InferCall,
    headers: Mapping[str, str],
    begun_ns: int,
    most_ns: float,
) -> InferAnswer | None:
    loaded = serving.held(found.resolved)
    if loaded is None or loaded.row_cost_ns > most_ns:
        return None
    asked = reading_of(call, serving.store.settings.max_rows).asked(found.resolved, loaded)
    if len(asked.rows) * loaded.row_cost_ns > most_ns:
        return None
    outputs = serving.run(found.resolved, asked.rows, queue_ns=call.waited_ns, begun_ns=begun_ns, loaded=loaded)
    prediction_id = None if serving.observer is None else serving.new_prediction_id()
    answer = _answer(found, loaded, _named(asked, prediction_id), outputs, call.request_id)
    if _may_be_packed(answer, headers):
        return None
    if prediction_id is not None:
        serving.observe_run(found.resolved, loaded, asked.rows, outputs, begun_ns, prediction_id)
    return answer


def _quick_in_arm(  # noqa: PLR0917 (what `quick_infer` knows)
    serving: Serving,
    experimenter: LateExperimenter,
    found: TensorModel,
    name: str,
    call: InferCall,
    headers: Mapping[str, str],
    *,
    most_ns: float,
) -> tuple[bool, InferAnswer | None]:
    """Whether the request may belong to a running experiment, and its answer; True and None where the view has to give it.

    Raises:
        MmserverError: it is refused, by the view.
    """
    raw = experimenter.made_raw
    if raw is None:
        return not serving.store.read_only, None
    reading = reading_of(call, serving.store.settings.max_rows)
    _, named = split_name(serving.store.catalog.models, name)
    request = _raw_request(raw, found, named, call, reading)
    assignment = raw.assigned(request.asked, found.version.model_name)
    if assignment is None:
        return False, None
    try:
        held = raw.held(request, assignment)
        if held is not None:
            control, row_cost_ns = held
            asked = reading.asked(*control)
            if len(asked.rows) * row_cost_ns <= most_ns:
                outcome = raw.scored(request, assignment, control, asked.rows, reading)
                if not isinstance(outcome.answer, MmserverError):
                    answer = _answer_of_arm(found, asked, outcome.answer, call.request_id)
                    if not _may_be_packed(answer, headers):  # else the view answers, and keeps it
                        raw.kept(outcome)
                        return True, answer
    except MmserverError:
        pass  # it is refused, or cannot be logged: the view says so
    raw.hand_over(request.asked, assignment)
    return True, None


def _may_be_packed(answer: InferAnswer, headers: Mapping[str, str]) -> bool:
    """Whether the client may want the answer packed, which is the view's work."""
    return len(answer.body) >= MIN_PACKED_BYTES and "ACCEPT_ENCODING" in headers


def _named(asked: Asked, prediction_id: str | None) -> Asked:
    """With what outcomes are reported by in the answer's parameters, where the request is observed."""
    if prediction_id is None:
        return asked
    return asked._replace(parameters={**asked.parameters, PREDICTION_ID: prediction_id})


def _name_and_version(path: str) -> tuple[str, str | None]:
    """From `/v2/models/{name}[/versions/{version}]/infer`; a name that is none where the path is another."""
    parts = path.split("/")
    if len(parts) == 5:
        return parts[3], None
    return (parts[3], parts[5]) if len(parts) == 7 and parts[4] == "versions" else ("", None)


def _raw_request(
    raw: "RawExperimenter", found: TensorModel, named: str | None, call: InferCall, reading: "InferReading"
) -> "RawRequest":
    """`unit_id` is a parameter of the body, or a header where a body has none."""
    given = checked_unit_id(reading.parameters.get("unit_id"), "parameters.unit_id")
    return raw.request(
        found.resolved,
        named,
        version=call.version,
        as_of=call.as_of,
        unit_id=given or call.unit_id,
        request_id=call.request_id,
        waited_ns=call.waited_ns,
    )


def _answer_of_arm(found: TensorModel, asked: Asked, answer: "RawAnswer", request_id: str) -> InferAnswer:
    """Named for the arm's own model and version."""
    resolved, loaded = answer.ready
    is_same = resolved.version.model_name == found.version.model_name
    given = TensorModel(found.name if is_same else own_name(resolved.version, resolved.group), resolved)
    said = asked._replace(parameters={**asked.parameters, **said_of_arm(answer)})
    return _answer(given, loaded, said, answer.outputs, request_id)


def _answer(
    found: TensorModel, loaded: LoadedModel, asked: Asked, outputs: Mapping[str, FloatRows], request_id: str
) -> InferAnswer:
    facts = facts_of(loaded)
    chosen = [(choice, output_values(choice.name, facts, outputs)) for choice in asked.choices]
    named = request_id if asked.id is None else asked.id
    return answer_from_outputs(found.name, found.version.label, named, asked.parameters, chosen)


class InferReading:
    """A request's body, of which the JSON is decoded, and the rest read as the model that is asked takes it."""

    __slots__ = ("_body", "_is_split", "_max_rows", "_request", "_tail")

    def __init__(self, body: bytes, request: InferRequest | None, n_json: int | None, max_rows: int) -> None:
        """Without a request it is all one tensor's data; `n_json` None is without binary data."""
        self._body = body
        self._request = request
        self._is_split = n_json is not None
        self._tail = memoryview(body)[len(body) if n_json is None else n_json :]
        self._max_rows = max_rows

    @property
    def parameters(self) -> Mapping[str, object]:
        """The request's own."""
        return {} if self._request is None else self._request.parameters or {}

    @property
    def is_named(self) -> bool:
        """Whether there is one tensor for each factor."""
        request = self._request
        return request is not None and not (len(request.inputs) == 1 and request.inputs[0].name == FEATURES)

    def asked(self, resolved: Resolved, loaded: LoadedModel) -> Asked:
        """The rows and the choice of outputs.

        Raises:
            RequestInvalid, TooManyRows: as `infer`.
        """
        row_shape, accepts_missing = loaded.layout.row_shape, loaded.layout.accepts_missing
        available = [output.name for output in outputs_of(loaded)]
        request = self._request
        if request is None:
            rows = _raw_rows(self._body, row_shape, self._max_rows, accepts_missing=accepts_missing)
            return Asked(rows, [OutputChoice(name, True, {}) for name in available], None, {})
        choices = choose_outputs(request, available)
        rows = self._rows(request, resolved.group.factors, row_shape, accepts_missing=accepts_missing)
        return Asked(rows, choices, request.id, clients_parameters(request.parameters))

    def __call__(self, resolved: Resolved, loaded: LoadedModel) -> FloatRows:
        """The rows alone."""
        return self.asked(resolved, loaded).rows

    def _rows(
        self, request: InferRequest, factors: Sequence[str], row_shape: tuple[int, ...], *, accepts_missing: bool
    ) -> FloatRows:
        tensors = tensors_from_request(request, self._tail, is_split=self._is_split, max_rows=self._max_rows)
        return rows_from_tensors(tensors, factors, row_shape, accepts_missing=accepts_missing)


def reading_of(call: InferCall, max_rows: int) -> InferReading:
    """The body of a request, its JSON decoded.

    Raises:
        RequestInvalid: it is not acceptable JSON, or no inference request.
    """
    n_json = header_length_from_text(call.header_length, len(call.body))
    if n_json == 0:
        return InferReading(call.body, None, n_json, max_rows)
    request = request_from_json(call.body if n_json is None else call.body[:n_json])
    return InferReading(call.body, request, n_json, max_rows)


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
