"""ONNX models: `_model.onnx` files and registered `.onnx`, given as they are and run by ONNX Runtime."""

import contextlib

import msgspec

from mmserver import (
    Artifact,
    ArtifactFormat,
    Converter,
    ModelFile,
    ModelFormat,
    ModelSource,
    Predictor,
    Undecodable,
    hookimpl,
    likeness,
    model_file_from_onnx,
    onnx_predictor,
    stated_classes,
)

KIND = "onnx"
_BEGINNINGS = tuple(bytes([field]) for field in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72, 0xA2, 0xCA))
"""Of the fields that a graph in protobuf may have first."""


def parse_model_onnx(artifact: Artifact) -> ModelFile:
    """A graph in one file."""
    return model_file_from_onnx(artifact.data)


def read_onnx(source: ModelSource) -> ModelFile:
    """A graph, and the weights beside it that it names; `objective` and `classes` say what its outputs mean, where it does not."""
    if source.content[:1] not in _BEGINNINGS:
        raise Undecodable("wrong_type", f"an ONNX graph is expected; this is {likeness(source.content)}")
    others = {name: data for name, data in source.files.items() if name != source.file_name}
    options = source.options
    file = model_file_from_onnx(
        source.content,
        files=others,
        input_shape=options.get("input_shape"),
        outputs=options.get("outputs"),
    )
    classes = stated_classes(options, file.summary["outputs"])
    summary = {**({} if classes is None else {"classes": classes}), **file.summary}
    return msgspec.structs.replace(file, objective=str(options.get("objective", "")), summary=summary)


def warm_up() -> None:
    """What reads weights that lie outside."""
    with contextlib.suppress(ImportError):
        import onnx  # noqa: F401


def model_as_onnx(model: ModelFile) -> bytes:
    """The graph in one file."""
    return model.content


@hookimpl
def mmserver_formats() -> list[ArtifactFormat]:
    """Claims `_model.onnx`."""
    return [ArtifactFormat(name="onnx", suffix="_model.onnx", role="model", parse=parse_model_onnx)]


@hookimpl
def mmserver_model_formats() -> list[ModelFormat]:
    """Claims `.onnx`."""
    return [ModelFormat(name="onnx", suffixes=(".onnx",), read=read_onnx, modules=("onnxruntime",), warm_up=warm_up)]


@hookimpl
def mmserver_converters() -> list[Converter]:
    """The graph itself, for whatever became one."""
    return [Converter(kind=KIND, target="onnx", media_type="application/octet-stream", convert=model_as_onnx)]


@hookimpl
def mmserver_load_predictor(model: ModelFile, execution_providers: tuple[str, ...]) -> Predictor | None:
    """ONNX Runtime on one thread."""
    return onnx_predictor(model, execution_providers) if model.kind == KIND else None
