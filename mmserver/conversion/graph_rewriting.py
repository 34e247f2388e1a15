"""ONNX graphs as bytes, opened to be run or looked into, and written anew as onnxruntime simplifies them.

Everything here runs native code on the bytes in the caller's own process.
"""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from mmserver.errors import ExtraMissing, Undecodable
from mmserver.formats import FloatRows
from mmserver.graphs.external_data import external_tensors
from mmserver.graphs.running import GraphRunner
from mmserver.graphs.sessions import CPU, open_session, runtime, session_options
from mmserver.graphs.signature import Signature, signature_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

GraphLevel: TypeAlias = Literal["basic", "extended", "all"]
"""`basic` computes what is constant and leaves plain ONNX, which every runtime reads; `extended` joins nodes to those that only
onnxruntime has; `all` also lays memory out for this machine's processor, so such a file is for this kind of machine only."""

TEMPORARY_PREFIX = "mmserver-onnx-"


class OpenedGraph:
    """A model that is ready to run rows, and what it takes and gives; it gives each row what it gives the row alone."""

    def __init__(
        self, content: bytes, input_shape: Sequence[int] | None, outputs: Collection[str] | None = None
    ) -> None:
        session = open_session(content)
        self.signature: Signature = signature_of(session, input_shape=input_shape, outputs=outputs)
        self._runner = GraphRunner(session, self.signature)

    def run(self, rows: FloatRows) -> dict[str, FloatRows]:
        """Every output for every row.

        Shapes:
            rows: n_rows × n_features, or n_rows × the shape of a row.

        Raises:
            Undecodable: it cannot be run on such rows.
        """
        if rows.size != len(rows) * self.signature.n_features:
            wanted = self.signature.n_features
            raise Undecodable(
                "unsupported", f"rows of shape {rows.shape[1:]} for a model that takes {wanted} numbers a row"
            )
        try:
            return self._runner.run(rows)
        except Exception as error:  # the library has a dozen classes for it, which share no base
            raise Undecodable("unsupported", f"it does not run: {error}"[:300]) from error


def opened(
    content: bytes, *, input_shape: Sequence[int] | None = None, outputs: Collection[str] | None = None
) -> OpenedGraph:
    """The model, ready to run on one thread.

    input_shape: of one row, where the graph leaves it open. outputs: those to give, where not all of them shall be.

    Raises:
        Undecodable: not an ONNX model, or none that can be served.
        ExtraMissing: the package that reads ONNX files is not installed.
    """
    read_graph(content)
    return OpenedGraph(content, input_shape, outputs)


def opened_for(content: bytes, rows: FloatRows) -> OpenedGraph:
    """As `opened`; rows that have more than one axis each say what the graph leaves open."""
    return opened(content, input_shape=rows.shape[1:] if rows.ndim > 2 else None)


def read_graph(content: bytes) -> "ModelProto":
    """The parsed file.

    Raises:
        Undecodable: not an ONNX model, or one whose weights lie in other files: which those are is the file's word, and the
            runtime would open them.
        ExtraMissing: the package that reads ONNX files is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ExtraMissing(what="reading ONNX models", extra="onnx") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf's own class depends on how it was built
        raise Undecodable("malformed", f"not an ONNX model: {error}"[:300]) from error
    if not model.graph.node:
        raise Undecodable("malformed", "an ONNX model without any nodes")
    if any(True for _ in external_tensors(model)):
        raise Undecodable("incomplete", "its weights lie in other files; put them into it first")
    return model


def graph_bytes(model: "ModelProto") -> bytes:
    """The file of a graph; always the same bytes."""
    return bytes(model.SerializeToString(deterministic=True))


def optimized_graph(content: bytes, level: GraphLevel = "basic") -> bytes:
    """The model as onnxruntime simplifies it, in one file; it gives the same outputs.

    Raises:
        Undecodable: onnxruntime does not load it.
        ValueError: no such level.
    """
    if level not in get_args(GraphLevel):
        raise ValueError(f"level {level!r}: one of {', '.join(get_args(GraphLevel))}")
    read_graph(content)
    library = runtime()
    options = session_options(library)
    options.graph_optimization_level = getattr(library.GraphOptimizationLevel, f"ORT_ENABLE_{level.upper()}")
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX) as directory:
        path = Path(directory) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        try:
            library.InferenceSession(content, options, providers=[CPU])
        except Exception as error:  # the library has a dozen classes for it, which share no base
            raise Undecodable("malformed", str(error)[:300]) from error
        found = read_graph(path.read_bytes())
    _forget_unused_domains(found)
    return graph_bytes(found)


def _forget_unused_domains(model: "ModelProto") -> None:
    """Leave out the operator sets that onnxruntime only lists, since other runtimes refuse those that they do not have."""
    used = {""}
    for graph in (model.graph, *model.functions):
        used |= {node.domain for node in _nodes(graph)}
    for entry in list(model.opset_import):
        if entry.domain not in used and entry.domain != "ai.onnx":
            model.opset_import.remove(entry)


def _nodes(graph: Any) -> Iterator["NodeProto"]:
    """Those of the graph, and of the bodies of its loops and branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _nodes(body)
