"""Bodies of Open Inference Protocol requests and answers: JSON, JSON followed by binary tensors, or one tensor's bytes alone.

Which of these a body is says `Inference-Header-Content-Length`, never its media type. Tensor data are cut out of the JSON
before that is checked as strictly as every other body here, so that a million numbers are read once, by the typed decoder.
"""

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from mmserver.errors import RequestInvalid
from mmserver.formats import FloatRows
from mmserver.serving.tensors import (
    Tensor,
    binary_from_values,
    check_row_count,
    list_from_values,
    refuse_tensor,
    values_from_binary,
    values_from_json,
)
from mmserver.web.requests import refuse_body, strict_json
from mmserver.web.responses import json_bytes

BINARY_MEDIA_TYPE = "application/octet-stream"
HEADER_LENGTH = "Inference-Header-Content-Length"
_STRING_OR_NAN = re.compile(rb'("(?:[^"\\]++|\\.)*+"?)|\bNaN\b', re.DOTALL)
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_PROTOCOLS_OWN = frozenset(
    {"binary_data", "binary_data_size", "binary_data_output", "timeout", "priority", "headers"}
    | {"sequence_id", "sequence_start", "sequence_end"}
)
"""Parameters that are about the request itself; all others are the client's and come back in the answer."""
_UNSUPPORTED = {
    "shared_memory_region": "shared memory is not supported; send the data in the body",
    "classification": "the classification extension is not supported; ask for the output itself",
}


class InputTensor(msgspec.Struct, frozen=True):
    """One input as it is declared; its data are JSON text, or bytes after the JSON."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class RequestedOutput(msgspec.Struct, frozen=True):
    """One output that is asked for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct, frozen=True):
    """The JSON of a request."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


class OutputChoice(NamedTuple):
    """One output of the answer."""

    name: str
    is_binary: bool
    parameters: dict[str, Any]


_DECODER = msgspec.json.Decoder(InferRequest)


# --- requests ---------------------------------------------------------------------------------------------------------


def plain_body(body: bytes, content_encoding: str, max_bytes: int) -> bytes:
    """The body without its Content-Encoding: gzip, deflate (zlib) or none.

    Raises:
        UnsupportedMediaType: another encoding, or several.
        RequestEntityTooLarge: it grows beyond `max_bytes`; no more than that is ever unpacked.
        RequestInvalid: it is not what the encoding says, or is cut off.
    """
    encoding = content_encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaType("send the body as it is, or with Content-Encoding: gzip or deflate")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        refuse_body(f"the body is not {encoding}", "", str(error), error)
    if len(plain) > max_bytes:
        raise RequestEntityTooLarge
    if not unpacker.eof or unpacker.unused_data:
        refuse_body(f"the body is not {encoding}", "", "cut off" if not unpacker.eof else "followed by something else")
    return plain


def header_length_from_text(text: str | None, body_length: int) -> int | None:
    """How many bytes of the body are JSON; None where it was not said, and all of it is.

    Raises:
        RequestInvalid: not a number, or more than the body has.
    """
    if text is None:
        return None
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12 and int(digits) <= body_length):
        refuse_body(f"{HEADER_LENGTH} is wrong", HEADER_LENGTH, f"Expected a number of bytes from 0 to {body_length}")
    return int(digits)


def request_from_json(text: bytes) -> InferRequest:
    """A request's JSON; `NaN` in tensor data is taken as null, which some clients' encoders cannot write.

    Raises:
        RequestInvalid: it is not strict JSON otherwise, or not a request.
    """
    try:
        request = _decoded(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if b"NaN" not in text or isinstance(error, msgspec.ValidationError):
            _refuse_request(error)
        text = _STRING_OR_NAN.sub(lambda found: found[1] or b"null", text)
        try:
            request = _decoded(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as still:
            _refuse_request(still)
    strict_json(_without_data(text, request.inputs))
    _check_request(request)
    return request


def tensors_from_request(request: InferRequest, tail: memoryview, *, is_split: bool, max_rows: int) -> list[Tensor]:
    """The inputs with their values; `tail` is what follows the JSON, `is_split` whether the client said where that begins.

    Raises:
        RequestInvalid: data are missing, there twice, or not as many as declared.
        TooManyRows: a first dimension is larger than `max_rows`.
    """
    tensors = []
    start = 0
    for declared in request.inputs:
        parameters = declared.parameters or {}
        size = parameters.get("binary_data_size")
        if size is None:
            if isinstance(declared.data, msgspec.UnsetType):
                refuse_tensor(declared.name, "has neither `data` nor `parameters.binary_data_size`")
            check_row_count(declared.shape, len(memoryview(declared.data)), max_rows)
            values = values_from_json(declared.name, declared.datatype, declared.shape, declared.data)
        else:
            if not isinstance(declared.data, msgspec.UnsetType):
                refuse_tensor(declared.name, "has both `data` and `parameters.binary_data_size`")
            if not is_split:
                refuse_tensor(declared.name, f"has binary data, but the request has no {HEADER_LENGTH}")
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                refuse_tensor(declared.name, "binary_data_size is not a number of bytes")
            if size > len(tail) - start:
                refuse_tensor(declared.name, f"binary_data_size is {size}, but {len(tail) - start} bytes are left")
            check_row_count(declared.shape, size, max_rows)
            values = values_from_binary(declared.name, declared.datatype, declared.shape, tail[start : start + size])
            start += size
        tensors.append(Tensor(declared.name, values))
    if start != len(tail):
        refuse_body("the binary data are too long", "", f"{len(tail) - start} bytes belong to no input")
    return tensors


def choose_outputs(request: InferRequest, available: Sequence[str]) -> list[OutputChoice]:
    """The outputs that the request asks for, in its order; all of them where it names none.

    Raises:
        RequestInvalid: one is unknown or named twice.
    """
    default = _flag(request.parameters or {}, "binary_data_output", "the request", default=False)
    if not request.outputs:
        return [OutputChoice(name, default, {}) for name in available]
    chosen: dict[str, OutputChoice] = {}
    for wanted in request.outputs:
        if wanted.name not in available:
            refuse_tensor(wanted.name, f"unexpected output; the model has {', '.join(available)}")
        if wanted.name in chosen:
            refuse_tensor(wanted.name, "the output is named twice")
        parameters = wanted.parameters or {}
        is_binary = _flag(parameters, "binary_data", wanted.name, default=default)
        chosen[wanted.name] = OutputChoice(wanted.name, is_binary, parameters)
    return list(chosen.values())


def _decoded(text: bytes) -> InferRequest:
    return _DECODER.decode(text)


def _without_data(text: bytes, inputs: Iterable[InputTensor]) -> bytes:
    """The JSON with every tensor's data replaced by 0; what is left is small and is looked at closely."""
    address = np.frombuffer(text, np.uint8).ctypes.data if text else 0
    kept = []
    start = 0
    for declared in inputs:
        if isinstance(declared.data, msgspec.UnsetType):
            continue
        data = np.frombuffer(declared.data, np.uint8)  # a view of the text, nothing is copied
        begin = data.ctypes.data - address
        kept += [text[start:begin], b"0"]
        start = begin + data.size
    return b"".join([*kept, text[start:]]) if kept else text


def _check_request(request: InferRequest) -> None:
    if not request.inputs:
        refuse_body("the request has no inputs", "inputs", "Expected at least one")
    for part in (*request.inputs, *(request.outputs or ())):
        for parameter in part.parameters or ():
            if parameter in _UNSUPPORTED:
                refuse_tensor(part.name, _UNSUPPORTED[parameter])


def _flag(parameters: dict[str, Any], name: str, where: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        refuse_tensor(where, f"the parameter {name} is neither true nor false")
    return value


def _refuse_request(error: Exception) -> NoReturn:
    if isinstance(error, RecursionError):
        refuse_body("the body is not acceptable JSON", "", "nested too deep", error)
    if isinstance(error, msgspec.ValidationError):
        raise RequestInvalid(reason=f"not an inference request: {error}") from error
    refuse_body("the body is not valid JSON", "", str(error), error)


# --- answers ----------------------------------------------------------------------------------------------------------


class InferAnswer(NamedTuple):
    """The body of an answer; `header_length` is that of its JSON where binary data follow."""

    body: bytes
    header_length: int | None


def answer_from_outputs(
    model_name: str,
    model_version: str,
    request_id: str,
    parameters: dict[str, Any],
    outputs: Iterable[tuple[OutputChoice, FloatRows]],
) -> InferAnswer:
    """The answer with the values of each chosen output, as JSON or binary data as it was asked for."""
    described = []
    tail = []
    for choice, values in outputs:
        output: dict[str, Any] = {"name": choice.name, "datatype": "FP32", "shape": values.shape}
        own = clients_parameters(choice.parameters)
        if choice.is_binary:
            data = binary_from_values(values)
            output["parameters"] = {**own, "binary_data_size": len(data)}
            tail.append(data)
        else:
            if own:
                output["parameters"] = own
            output["data"] = list_from_values(values)
        described.append(output)
    answer: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "id": request_id}
    if parameters:
        answer["parameters"] = parameters
    answer["outputs"] = described
    text = json_bytes(answer)
    return InferAnswer(b"".join([text, *tail]), len(text)) if tail else InferAnswer(text, None)


def clients_parameters(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """What comes back of a request's parameters: the client's own texts, numbers and flags."""
    return {
        name: value
        for name, value in (parameters or {}).items()
        if name not in _PROTOCOLS_OWN and isinstance(value, str | int | float)
    }


def packed_body(body: bytes, encoding: str) -> bytes:
    """The body as gzip or deflate; fast rather than small."""
    packer = zlib.compressobj(1, wbits=_WINDOW_BITS[encoding])
    return packer.compress(body) + packer.flush()
