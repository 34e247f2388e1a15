"""The bodies of the Open Inference Protocol v2 and its extensions."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class ServerMetadata(msgspec.Struct):
    """The server and the extensions that it speaks."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(msgspec.Struct):
    """Whether requests are answered at all."""

    live: bool


class ServerReady(msgspec.Struct):
    """Whether models can be served."""

    ready: bool
    live: bool


class TensorModelNames(msgspec.Struct):
    """The names of all models."""

    models: list[str]


class TensorModelReady(msgspec.Struct):
    """Whether one model predicts; `error` says why not."""

    name: str
    ready: bool
    error: str | UnsetType = UNSET


class TensorMetadata(msgspec.Struct):
    """One input or output; -1 is any size."""

    name: str
    datatype: str
    shape: list[int]


class TensorModelMetadata(msgspec.Struct):
    """What a model takes and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    properties: dict[str, str]


class OutputTensor(msgspec.Struct):
    """One output. With `parameters.binary_data_size` there is no `data`: so many bytes follow the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | UnsetType = UNSET
    data: list[float | None] | UnsetType = UNSET


class InferResponse(msgspec.Struct):
    """Predictions; `id` is the request's own, or one that was made for it."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]
    parameters: dict[str, Any] | UnsetType = UNSET


class ConfiguredInput(msgspec.Struct):
    """An input in the terms of a model configuration."""

    name: str
    data_type: str
    format: str
    dims: list[int]
    is_shape_tensor: bool
    allow_ragged_batch: bool
    optional: bool


class ConfiguredOutput(msgspec.Struct):
    """An output in the terms of a model configuration."""

    name: str
    data_type: str
    dims: list[int]
    label_filename: str
    is_shape_tensor: bool


class TensorModelConfiguration(msgspec.Struct):
    """What a model takes and gives, in the terms of a model configuration."""

    name: str
    platform: str
    backend: str
    version_policy: dict[str, Any]
    max_batch_size: int
    input: list[ConfiguredInput]
    output: list[ConfiguredOutput]
    instance_group: list[dict[str, Any]]
    model_transaction_policy: dict[str, Any]
    response_cache: dict[str, Any]
    parameters: dict[str, dict[str, str]]


class Duration(msgspec.Struct):
    """How often, and how long in all."""

    count: int
    ns: int


class InferenceStatistics(msgspec.Struct):
    """Durations by what was done."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration


class TensorModelStatistics(msgspec.Struct):
    """What one model has done since it was loaded."""

    name: str
    version: str
    inference_count: int
    execution_count: int
    inference_stats: InferenceStatistics
    last_inference: int
    response_stats: dict[str, Any]
    memory_usage: list[dict[str, Any]]
    batch_stats: list[dict[str, Any]]


class StatisticsAnswer(msgspec.Struct):
    """Statistics, one entry a model."""

    model_stats: list[TensorModelStatistics]


class IndexEntry(msgspec.Struct):
    """One model of the repository, and whether it predicts."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str


class LoadAnswer(msgspec.Struct):
    """The model is loaded."""

    name: str
    load: bool


class UnloadAnswer(msgspec.Struct):
    """The model is unloaded."""

    name: str
    unload: bool
