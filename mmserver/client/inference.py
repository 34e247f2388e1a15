"""The Open Inference Protocol with binary tensors: the fast way for many rows, and for inputs of any shape."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
import msgspec
import numpy as np
import numpy.typing as npt

from mmserver.client.answers import Inference, ModelMetadata
from mmserver.client.calls import Call, changing, path, query, reading
from mmserver.client.errors import AnswerInvalid
from mmserver.client.features import without_mask

LENGTH_HEADER = "Inference-Header-Content-Length"
DATATYPES = {
    "BOOL": "?", "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "<u1", "UINT16": "<u2",
    "UINT32": "<u4", "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
"""numpy's name of each datatype, in the order of bytes that the protocol has."""
_DATATYPE_BY_KIND = {np.dtype(name).str: datatype for datatype, name in DATATYPES.items()}


def infer(
    model: str,
    features: npt.ArrayLike,
    *,
    version: str | None = None,
    outputs: Sequence[str] | None = None,
    as_of: datetime | None = None,
    timeout_s: float | None = None,
) -> Call[Inference]:
    """The model's own outputs for rows of features; the first axis is the rows. `model`: `{model_name}.{symbol}`.

    NaN is a missing value, for models that know some. All outputs are given unless `outputs` names those wanted.
    """
    rows = without_mask(np.asanyarray(features))
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    datatype = _DATATYPE_BY_KIND.get(rows.dtype.str)
    if datatype is None:
        raise TypeError(f"features: an array of {rows.dtype} cannot be sent; convert it to float32")
    header: dict[str, Any] = {
        "inputs": [
            {
                "name": "features",
                "datatype": datatype,
                "shape": rows.shape,
                "parameters": {"binary_data_size": rows.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
    if outputs is not None:
        header["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    encoded = msgspec.json.encode(header)
    return Call(
        method="POST",
        path=_path(model, version, "/infer"),
        query=query({"as_of": as_of}),
        headers=(("Content-Type", "application/octet-stream"), (LENGTH_HEADER, str(len(encoded)))),
        content=b"".join((encoded, rows.data.cast("B"))) if rows.size else encoded,
        decode=_inference_from_answer,
        is_repeatable=True,
        total_s=timeout_s,
    )


def get_metadata(model: str, *, version: str | None = None, as_of: datetime | None = None) -> Call[ModelMetadata]:
    """Inputs, outputs and properties of a model by the Open Inference Protocol."""
    return reading(_path(model, version, ""), ModelMetadata, as_of=as_of)


class _Ready(msgspec.Struct, frozen=True):
    ready: bool


def is_model_ready(model: str, *, version: str | None = None) -> Call[bool]:
    """Whether it predicts; it is loaded to find out. An unknown model raises NotFound."""

    def decode(answer: httpx.Response) -> bool:
        return answer.status_code == 200

    return Call(method="GET", path=_path(model, version, "/ready"), decode=decode, is_repeatable=True, also=(503,))


def load_model(model: str) -> Call[dict[str, Any]]:
    """Load a model anew, also after `unload_model`."""
    return changing("POST", path("/v2/repository/models/{}/load", model), dict[str, Any], {})


def unload_model(model: str) -> Call[dict[str, Any]]:
    """Take a model out of memory; it answers 503 until it is loaded or reloaded."""
    return changing("POST", path("/v2/repository/models/{}/unload", model), dict[str, Any], {})


def _path(model: str, version: str | None, end: str) -> str:
    if version is None:
        return path("/v2/models/{}", model) + end
    return path("/v2/models/{}/versions/{}", model, version) + end


class _Parameters(msgspec.Struct, frozen=True):
    binary_data_size: int | None = None


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: _Parameters = _Parameters()


class _Header(msgspec.Struct, frozen=True):
    model_name: str
    model_version: str
    outputs: list[_Output]
    id: str | None = None


_decode_header = msgspec.json.Decoder(_Header).decode


def _inference_from_answer(answer: httpx.Response) -> Inference:
    """The tensors; sizes are checked against each other, so that none is read at a wrong place."""
    body = answer.content
    try:
        n_header = int(answer.headers.get(LENGTH_HEADER, len(body)))
        if not 0 <= n_header <= len(body):
            raise ValueError(f"a header of {n_header} bytes in {len(body)}")
        header = _decode_header(body[:n_header])
        found, at = {}, n_header
        for output in header.outputs:
            n_bytes = output.parameters.binary_data_size
            found[output.name] = _tensor(output, body[at : at + (n_bytes or 0)])
            at += n_bytes or 0
        if at != len(body):
            raise ValueError(f"tensors of {at - n_header} bytes in {len(body) - n_header}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise AnswerInvalid(f"the answer is no inference: {error}") from error
    return Inference(header.model_name, header.model_version, found, header.id)


def _tensor(output: _Output, content: bytes) -> npt.NDArray[np.generic]:
    dtype = np.dtype(DATATYPES[output.datatype])
    if output.parameters.binary_data_size is None:
        return np.asarray(output.data, dtype).reshape(output.shape)
    if min(output.shape, default=0) < 0 or math.prod(output.shape) * dtype.itemsize != len(content):
        raise ValueError(f"{output.name}: {len(content)} bytes for the shape {output.shape}")
    return np.frombuffer(content, dtype).reshape(output.shape)
