"""Weights that an ONNX file keeps in other files, taken into it: what is stored and loaded is one piece.

A session that is opened from bytes looks for such files in the working directory, so none may be left.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mmserver.errors import ExtraMissing, Undecodable

if TYPE_CHECKING:
    from onnx import TensorProto

MAX_PROTOBUF_BYTES = (1 << 31) - 1
"""More than a protobuf message can be.

Source:
    protobuf.dev, "Total size of a proto must be under 2 GiB".
"""


def whole_graph(content: bytes, files: Mapping[str, bytes]) -> bytes:
    """The graph with the external data that lies in `files` (by name, beside it) inside.

    Raises:
        Undecodable: a path that leaves the directory, a file that was not handed in, too few bytes in it, too large.
        ExtraMissing: there are other files, and the package that can read which of them belong to it is not there.
    """
    if not files:
        return content
    try:
        import onnx
    except ImportError as error:
        raise ExtraMissing(what="an ONNX model with its weights in other files", extra="onnx") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own class depends on how it was built
        raise Undecodable("malformed", f"not an ONNX model: {error}"[:300]) from error
    external = list(external_tensors(model))
    if not external:
        return content
    size_bytes = len(content)
    for tensor in external:
        data = _data_of(tensor, files)
        size_bytes += len(data)
        if size_bytes > MAX_PROTOBUF_BYTES:
            raise Undecodable("too_large", "with its weights it is more than the 2 GiB that one ONNX file may have")
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return bytes(model.SerializeToString(deterministic=True))


def external_tensors(message: Any) -> Iterator["TensorProto"]:
    """Every tensor that points elsewhere, however deep: initializers, attributes, bodies of loops, functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        if message.data_location == message.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for one in value if hasattr(value, "__len__") else [value]:
            yield from external_tensors(one)


def _data_of(tensor: "TensorProto", files: Mapping[str, bytes]) -> bytes:
    said = {entry.key: entry.value for entry in tensor.external_data}
    location = said.get("location", "")
    parts = location.replace("\\", "/").split("/")
    if not location or location.startswith("/") or ".." in parts or ":" in parts[0]:
        raise Undecodable(
            "forbidden_path", f"the weights of {tensor.name!r} are at {location!r}, outside of its directory"
        )
    name = "/".join(part for part in parts if part not in ("", "."))
    if name not in files:
        raise Undecodable("incomplete", f"the weights of {tensor.name!r} lie in {name!r}, which has to come with it")
    try:
        offset = int(said.get("offset") or 0)
        length = int(said["length"]) if said.get("length") else len(files[name]) - offset
    except ValueError as error:
        raise Undecodable("malformed", f"the weights of {tensor.name!r}: {error}") from error
    if offset < 0 or length < 0 or offset + length > len(files[name]):
        detail = (
            f"{name!r} has {len(files[name])} bytes; {tensor.name!r} has its weights at {offset} to {offset + length}"
        )
        raise Undecodable("torn", detail)
    return files[name][offset : offset + length]
