"""What converters leave in an ONNX graph, made into the bytes that are stored; no other weight or node than theirs."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmserver.formats import FloatRows, Probes


def content_from_graph(graph_model: Any, output_names: Mapping[str, str] | None = None) -> bytes:
    """An `onnx.ModelProto` as bytes, its outputs renamed, without notes on where it was made.

    The shapes noted between nodes go too: quantising stumbles over those that torch's exporter writes.

    Source:
        onnxruntime 1.31, quantize_dynamic: "Inferred shape and existing shape differ".
    """
    names = dict(output_names or {})
    graph = graph_model.graph
    del graph.value_info[:]
    for noted in (
        graph_model,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
        *graph_model.functions,
    ):
        noted.doc_string = ""
        del noted.metadata_props[:]
    for node in graph.node:
        for ends in (node.input, node.output):
            ends[:] = [names.get(end, end) for end in ends]
    for output in graph.output:
        output.name = names.get(output.name, output.name)
    content: bytes = graph_model.SerializeToString(deterministic=True)
    return content


def probes_from_outputs(rows: FloatRows, outputs: Mapping[str, Any]) -> Probes:
    """Rows and what the source of a conversion gives for them, for the core to compare.

    Shapes:
        rows: n_rows × n_features. outputs: name → n_rows × …, of any number type.
    """
    with np.errstate(over="ignore"):  # infinite then, as what is served
        tables = {
            name: np.asarray(values, np.float32).reshape(len(rows), -1).tolist() for name, values in outputs.items()
        }
    cells: list[list[float | None]] = [[None if math.isnan(cell) else cell for cell in row] for row in rows.tolist()]
    return Probes(rows=cells, outputs=tables)
