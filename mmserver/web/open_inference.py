"""The Open Inference Protocol v2 over REST, with its binary tensor, repository, configuration and statistics extensions.

Its clients take exactly 200 for success and an `error` that is a string; they unpack gzip and deflate, of inference answers only.
"""

import hashlib
import importlib.metadata
from collections.abc import Iterable
from typing import Any

import flask
import msgspec

from mmserver.catalog import groups
from mmserver.errors import GroupHasNoModel, MmserverError, RequestInvalid
from mmserver.registry.versions import list_records
from mmserver.serving.naming import split_name
from mmserver.serving.output_tensors import OutputTensor, facts_from_summary, output_tensors, widths_from_facts
from mmserver.serving.predictions import Serving
from mmserver.serving.statistics import Duration, Statistics
from mmserver.serving.tensor_models import TensorModel, find_tensor_model, outputs_of, tensor_models
from mmserver.serving.tensors import FEATURES
from mmserver.web import health
from mmserver.web.current import (
    current_raw_experimenter,
    current_serving,
    current_store,
    current_waited_ns,
    record_by_current_actor,
)
from mmserver.web.framing import REQUEST_ID_KEY
from mmserver.web.guard import may_see_model
from mmserver.web.open_inference_bodies import BINARY_MEDIA_TYPE, HEADER_LENGTH, InferAnswer, packed_body, plain_body
from mmserver.web.open_inference_infer import MIN_PACKED_BYTES, InferCall, infer
from mmserver.web.raw_answers import unit_id_from_request
from mmserver.web.requests import Body, body_from_bytes, query_time
from mmserver.web.responses import JSON_MEDIA_TYPE, json_response

SERVER_NAME = "mmserver"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics")
MAX_VERSIONS = 100
_NEVER = Duration(0, 0)


# --- the server -------------------------------------------------------------------------------------------------------


def get_server() -> flask.Response:
    """Its name, version and the extensions that it speaks."""
    version = importlib.metadata.version("mmserver")
    return json_response({"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS})


def get_live() -> flask.Response:
    """200 as long as requests are answered at all."""
    return json_response({"live": True})


def get_ready() -> flask.Response:
    """200 while models can be served, as `/readyz` sees it; 503 otherwise."""
    status, _ = health.run_checks(flask.current_app)
    is_ready = status != "failing"
    if not is_ready:
        return json_response({"ready": False, "live": True}, 503, {"Retry-After": str(health.RETRY_AFTER_S)})
    return json_response({"ready": True, "live": True})


def get_models() -> flask.Response:
    """The names of all models."""
    return json_response(
        {
            "models": [
                found.name
                for found in tensor_models(current_store().catalog)
                if may_see_model(found.version.model_name)
            ]
        }
    )


# --- one model --------------------------------------------------------------------------------------------------------


def get_model(name: str, version: str | None = None) -> flask.Response:
    """What it takes and gives."""
    found = _asked_model(name, version)
    described = _described(current_serving(), found)
    records = list_records(current_store(), found.version.model_name, MAX_VERSIONS)
    return json_response(
        {
            "name": found.name,
            "versions": [record.label for record in records],
            "platform": described.platform,
            "inputs": [{"name": FEATURES, "datatype": "FP32", "shape": [-1, *described.row_shape]}],
            "outputs": [
                {"name": output.name, "datatype": "FP32", "shape": output.shape} for output in described.outputs
            ],
            "properties": described.properties,
        }
    )


def get_config(name: str, version: str | None = None) -> flask.Response:
    """The same in the terms of a model configuration; the rows are a dimension of the tensors, not a batch."""
    found = _asked_model(name, version)
    described = _described(current_serving(), found)
    return json_response(
        {
            "name": found.name,
            "platform": described.platform,
            "backend": SERVER_NAME,
            "version_policy": {"specific": {"versions": [found.version.label]}},
            "max_batch_size": 0,
            "input": [
                {
                    "name": FEATURES,
                    "data_type": "TYPE_FP32",
                    "format": "FORMAT_NONE",
                    "dims": [-1, *described.row_shape],
                    "is_shape_tensor": False,
                    "allow_ragged_batch": False,
                    "optional": False,
                }
            ],
            "output": [
                {
                    "name": output.name,
                    "data_type": "TYPE_FP32",
                    "dims": output.shape,
                    "label_filename": "",
                    "is_shape_tensor": False,
                }
                for output in described.outputs
            ],
            "instance_group": [{"name": found.name, "kind": "KIND_CPU", "count": 1}],
            "model_transaction_policy": {"decoupled": False},
            "response_cache": {"enable": False},
            "parameters": {key: {"string_value": value} for key, value in described.properties.items()},
        }
    )


def get_model_ready(name: str, version: str | None = None) -> flask.Response:
    """200 if it predicts: a model that is not loaded yet is loaded to find out."""
    serving = current_serving()
    found = _asked_model(name, version)
    try:
        serving.loaded(found.resolved)
    except MmserverError as error:
        said = {"name": found.name, "ready": False, "error": str(error)}
        return json_response(said, 503, {"Retry-After": str(health.RETRY_AFTER_S)})
    return json_response({"name": found.name, "ready": True})


def post_infer(name: str, version: str | None = None) -> flask.Response:
    """Predictions for the rows in the body."""
    request = flask.request
    serving = current_serving()
    as_of = query_time(request, "as_of")
    found = find_tensor_model(serving, name, version, as_of)
    raw = current_raw_experimenter(found.version.model_name)
    call = InferCall(
        body=_plain_request_body(),
        header_length=request.headers.get(HEADER_LENGTH),
        request_id=str(request.environ.get(REQUEST_ID_KEY, "-")),
        unit_id=None if raw is None else unit_id_from_request(request),
        waited_ns=current_waited_ns(),
        version=version,
        as_of=as_of,
    )
    _, named = split_name(serving.store.catalog.models, name)
    answer = infer(serving, found, named, call, raw)
    return _infer_response(answer)


# --- the repository ---------------------------------------------------------------------------------------------------


class IndexBody(msgspec.Struct, frozen=True):
    """What to list: everything, or with `ready` only what predicts."""

    ready: bool = False


class RepositoryBody(msgspec.Struct, frozen=True):
    """Parameters of a load or unload; none of them changes anything here, but files cannot be brought along."""

    parameters: dict[str, Any] | None = None


def post_index() -> flask.Response:
    """All models and whether they predict."""
    only_ready = _optional_body(IndexBody).ready
    serving = current_serving()
    items = []
    for found in tensor_models(current_store().catalog):
        reason = _trouble(serving, found)
        if reason is None or not only_ready:
            state = "READY" if reason is None else "UNAVAILABLE"
            items.append({"name": found.name, "version": found.version.label, "state": state, "reason": reason or ""})
    return json_response(items)


def _trouble(serving: Serving, found: TensorModel) -> str | None:
    """Why the model does not predict; None where it does, or nothing is known against it."""
    if serving.unloading.is_unloaded(found.version.model_name, found.group.group_key):
        return "unloaded"
    failure = serving.predictors.failure(found.group)
    return str(failure) if failure is not None else None


def post_load(name: str) -> flask.Response:
    """Load the model, anew if it is loaded already."""
    parameters = _optional_body(RepositoryBody).parameters or {}
    if any(key.startswith("file:") for key in parameters):
        raise RequestInvalid(reason="models come from watched directories, not with a request: files are not taken")
    serving = current_serving()
    found = find_tensor_model(serving, name)
    reloaded = serving.predictors.reload([found.group])
    for error in reloaded.failed.values():
        raise error
    serving.unloading.allow(found.resolved)
    record_by_current_actor("model.loaded", name)
    return json_response({"name": name, "load": True})


def post_unload(name: str) -> flask.Response:
    """Give the model's memory back and refuse to predict with it until it is loaded again; nothing that is stored is changed."""
    _optional_body(RepositoryBody)
    serving = current_serving()
    found = find_tensor_model(serving, name)
    record_by_current_actor("model.unloaded", name)  # before: nobody's model goes away and no one knows who did that
    serving.unloading.unload(found.resolved)
    return json_response({"name": name, "unload": True})


# --- statistics -------------------------------------------------------------------------------------------------------


def get_all_stats() -> flask.Response:
    """Statistics of every model, as all processes of the server have counted them."""
    statistics = current_serving().statistics
    statistics.gather()
    stats = [_stats(found, statistics) for found in tensor_models(current_store().catalog)]
    return json_response({"model_stats": stats})


def get_stats(name: str, version: str | None = None) -> flask.Response:
    """Statistics of one model, as all processes of the server have counted them."""
    serving = current_serving()
    found = _asked_model(name, version)
    serving.statistics.gather()
    return json_response({"model_stats": [_stats(found, serving.statistics)]})


def _stats(found: TensorModel, statistics: Statistics) -> dict[str, Any]:
    counted = statistics.of(found.version, found.group)
    return {
        "name": found.name,
        "version": counted.version,
        "last_inference": counted.last_inference_ms,
        "inference_count": counted.inference_count,
        "execution_count": counted.execution_count,
        "inference_stats": {
            "success": counted.success,
            "fail": counted.fail,
            "queue": counted.queue,
            "compute_input": counted.compute_input,
            "compute_infer": counted.compute_infer,
            "compute_output": counted.compute_output,
            "cache_hit": _NEVER,
            "cache_miss": _NEVER,
        },
        "response_stats": {},
        "memory_usage": [],
        "batch_stats": [],
    }


# --- parts of the answers ---------------------------------------------------------------------------------------------


class _Described(msgspec.Struct, frozen=True):
    """What metadata and configuration say of a model."""

    platform: str
    row_shape: tuple[int, ...]
    outputs: tuple[OutputTensor, ...]
    properties: dict[str, str]


def _asked_model(name: str, version: str | None) -> TensorModel:
    """The model in the path, as `?as_of=` wants it."""
    return find_tensor_model(current_serving(), name, version, query_time(flask.request, "as_of"))


def _described(serving: Serving, found: TensorModel) -> _Described:
    """From what is stored of the group; only a plugin's own kind is loaded for it.

    Raises:
        GroupHasNoModel: it was unloaded.
    """
    group = found.group
    if serving.unloading.is_unloaded(found.version.model_name, group.group_key):
        raise GroupHasNoModel(group_key=group.group_key, reason="it was unloaded")
    summary = groups.group_detail(serving.store, group).record.model or {}
    facts = facts_from_summary(summary)
    widths = widths_from_facts(facts)
    outputs = output_tensors(facts, widths) if widths is not None else outputs_of(serving.loaded(found.resolved))
    properties = {
        "model_name": found.version.model_name,
        "version": found.version.label,
        "group_key": group.group_key,
        "symbol": group.symbol,
        "return_name": group.return_name,
        "objective": facts.objective,
        "factors_sha256": factors_sha256(group.factors),
        **{f"output.{output.name}": output.meaning for output in outputs if output.meaning},
    }
    if group.ic_mean is not None:
        properties["ic_mean"] = repr(group.ic_mean)
    row_shape = tuple(summary.get("input_shape") or (int(summary["n_features"]),))
    return _Described(f"{SERVER_NAME}_{facts.kind}", row_shape, outputs, properties)


def factors_sha256(factors: Iterable[str]) -> str:
    """What tells two lists of factors apart: the SHA-256 of their names in input order, each followed by a newline."""
    return hashlib.sha256("".join(f"{factor}\n" for factor in factors).encode("utf-8", "surrogateescape")).hexdigest()


def _optional_body(body_type: type[Body]) -> Body:
    """The body, which may be absent and need not say that it is JSON."""
    body = _plain_request_body()
    return body_from_bytes(body, body_type) if body.strip() else body_type()


def _plain_request_body() -> bytes:
    request = flask.request
    encoding = request.headers.get("Content-Encoding", "")
    return plain_body(request.get_data(cache=False), encoding, current_store().settings.max_body_bytes)


def _infer_response(answer: InferAnswer) -> flask.Response:
    """The answer, packed if the client asks for that; nothing else is, as clients unpack nothing else."""
    if answer.header_length is None:
        response = flask.Response(answer.body, content_type=JSON_MEDIA_TYPE)
    else:
        response = flask.Response(answer.body, content_type=BINARY_MEDIA_TYPE)
        response.headers[HEADER_LENGTH] = str(answer.header_length)
    response.vary.add("Accept-Encoding")
    encoding = _wanted_encoding() if len(answer.body) >= MIN_PACKED_BYTES else None
    if encoding is not None:
        response.set_data(packed_body(answer.body, encoding))
        response.content_encoding = encoding
    return response


def _wanted_encoding() -> str | None:
    """gzip or deflate if the client named it; gzip where it likes both as much."""
    accepted = flask.request.accept_encodings
    weights = {
        encoding: accepted.quality(encoding) for encoding in ("gzip", "deflate") if encoding in accepted.values()
    }
    best = max(weights, key=weights.__getitem__, default=None)
    return best if best is not None and weights[best] > 0 else None
