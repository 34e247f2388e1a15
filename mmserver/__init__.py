"""mmserver: a model manager and model server for trading models.

Plugins import from here, and only from here; nothing is loaded before it is used.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmserver.conversion.exporting import graph_from_program as graph_from_program
    from mmserver.errors import NotConvertible as NotConvertible
    from mmserver.errors import Undecodable as Undecodable
    from mmserver.formats import Artifact as Artifact
    from mmserver.formats import ArtifactFormat as ArtifactFormat
    from mmserver.formats import Conversion as Conversion
    from mmserver.formats import Converter as Converter
    from mmserver.formats import Decision as Decision
    from mmserver.formats import Event as Event
    from mmserver.formats import FactorList as FactorList
    from mmserver.formats import FloatRows as FloatRows
    from mmserver.formats import IcTable as IcTable
    from mmserver.formats import InfoRecord as InfoRecord
    from mmserver.formats import Interpreter as Interpreter
    from mmserver.formats import ModelFile as ModelFile
    from mmserver.formats import ModelFormat as ModelFormat
    from mmserver.formats import ModelSource as ModelSource
    from mmserver.formats import PageLink as PageLink
    from mmserver.formats import Predictor as Predictor
    from mmserver.formats import Probes as Probes
    from mmserver.formats import QuantileTable as QuantileTable
    from mmserver.formats import Scalar as Scalar
    from mmserver.graphs.model_file import model_file_from_onnx as model_file_from_onnx
    from mmserver.graphs.model_file import stated_classes as stated_classes
    from mmserver.graphs.model_file import stated_output_names as stated_output_names
    from mmserver.graphs.predictor import onnx_predictor as onnx_predictor
    from mmserver.graphs.probing import probe_rows as probe_rows
    from mmserver.graphs.probing import probe_rows_at_splits as probe_rows_at_splits
    from mmserver.graphs.tidying import content_from_graph as content_from_graph
    from mmserver.graphs.tidying import probes_from_outputs as probes_from_outputs
    from mmserver.hookspecs import hookimpl as hookimpl
    from mmserver.inert import decode
    from mmserver.inert import records as records
    from mmserver.inert import to_jsonable as to_jsonable
    from mmserver.inert.archives import archive_names as archive_names
    from mmserver.inert.decoding import unpacked_pickle as unpacked_pickle
    from mmserver.inert.likeness import likeness as likeness
    from mmserver.security.scopes import needs as needs
    from mmserver.trees.document import document_from_bytes as document_from_bytes
    from mmserver.trees.document import document_from_snapshot as document_from_snapshot
    from mmserver.trees.model_file import model_file_from_document as model_file_from_document
    from mmserver.trees.model_file import scikit_learn_attributes as scikit_learn_attributes
    from mmserver.trees.model_file import ubjson_from_model_file as ubjson_from_model_file

    decode_pickle = decode

_HOMES = {
    "Artifact": "mmserver.formats",
    "ArtifactFormat": "mmserver.formats",
    "Conversion": "mmserver.formats",
    "Converter": "mmserver.formats",
    "Decision": "mmserver.formats",
    "Event": "mmserver.formats",
    "FactorList": "mmserver.formats",
    "FloatRows": "mmserver.formats",
    "IcTable": "mmserver.formats",
    "InfoRecord": "mmserver.formats",
    "Interpreter": "mmserver.formats",
    "ModelFile": "mmserver.formats",
    "ModelFormat": "mmserver.formats",
    "ModelSource": "mmserver.formats",
    "NotConvertible": "mmserver.errors",
    "PageLink": "mmserver.formats",
    "Predictor": "mmserver.formats",
    "Probes": "mmserver.formats",
    "QuantileTable": "mmserver.formats",
    "Scalar": "mmserver.formats",
    "Undecodable": "mmserver.errors",
    "hookimpl": "mmserver.hookspecs",
    "needs": "mmserver.security.scopes",
    "records": "mmserver.inert.records:",
}
"""Where each name is at home; after a colon, what it is called there (nothing: the module itself)."""

TOOLS = {
    "archive_names": ("mmserver.inert.archives", "archive_names"),
    "content_from_graph": ("mmserver.graphs.tidying", "content_from_graph"),
    "decode_pickle": ("mmserver.inert.decoding", "decode"),
    "document_from_bytes": ("mmserver.trees.document", "document_from_bytes"),
    "document_from_snapshot": ("mmserver.trees.document", "document_from_snapshot"),
    "graph_from_program": ("mmserver.conversion.exporting", "graph_from_program"),
    "likeness": ("mmserver.inert.likeness", "likeness"),
    "model_file_from_document": ("mmserver.trees.model_file", "model_file_from_document"),
    "model_file_from_onnx": ("mmserver.graphs.model_file", "model_file_from_onnx"),
    "onnx_predictor": ("mmserver.graphs.predictor", "onnx_predictor"),
    "probe_rows": ("mmserver.graphs.probing", "probe_rows"),
    "probe_rows_at_splits": ("mmserver.graphs.probing", "probe_rows_at_splits"),
    "probes_from_outputs": ("mmserver.graphs.tidying", "probes_from_outputs"),
    "scikit_learn_attributes": ("mmserver.trees.model_file", "scikit_learn_attributes"),
    "stated_classes": ("mmserver.graphs.model_file", "stated_classes"),
    "stated_output_names": ("mmserver.graphs.model_file", "stated_output_names"),
    "to_jsonable": ("mmserver.inert.jsonable", "to_jsonable"),
    "ubjson_from_model_file": ("mmserver.trees.model_file", "ubjson_from_model_file"),
    "unpacked_pickle": ("mmserver.inert.decoding", "unpacked_pickle"),
}
"""Functions that the guarded worker runs, or that run later: the server imports a plugin, but not what these are made of."""


def __getattr__(name: str) -> Any:
    if name in TOOLS:
        return _deferred(*TOOLS[name])
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mmserver' has no attribute {name!r}")
    module_name, colon, other_name = home.partition(":")
    module = importlib.import_module(module_name)
    return module if colon and not other_name else getattr(module, other_name or name)


def _deferred(module_name: str, name: str) -> Callable[..., Any]:
    """The function, imported at its first call."""

    def call(*args: Any, **keywords: Any) -> Any:
        return getattr(importlib.import_module(module_name), name)(*args, **keywords)

    call.__name__ = call.__qualname__ = name
    return call
