"""mmserver: a model manager and model server for trading models.

Plugins import from here, and only from here; nothing is loaded before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmserver.errors import NotConvertible, Undecodable
    from mmserver.formats import (
        Artifact,
        ArtifactFormat,
        Converter,
        Event,
        FactorList,
        FloatRows,
        IcTable,
        InfoRecord,
        ModelFile,
        PageLink,
        Predictor,
        Probes,
        QuantileTable,
        Scalar,
    )
    from mmserver.hookspecs import hookimpl
    from mmserver.inert import decode as decode_pickle
    from mmserver.inert import records, to_jsonable
    from mmserver.trees.document import document_from_bytes, document_from_snapshot
    from mmserver.trees.model_file import (
        model_file_from_document,
        scikit_learn_attributes,
        ubjson_from_model_file,
    )

_HOMES = {
    "Artifact": "mmserver.formats",
    "ArtifactFormat": "mmserver.formats",
    "Converter": "mmserver.formats",
    "Event": "mmserver.formats",
    "FactorList": "mmserver.formats",
    "FloatRows": "mmserver.formats",
    "IcTable": "mmserver.formats",
    "InfoRecord": "mmserver.formats",
    "ModelFile": "mmserver.formats",
    "NotConvertible": "mmserver.errors",
    "PageLink": "mmserver.formats",
    "Predictor": "mmserver.formats",
    "Probes": "mmserver.formats",
    "QuantileTable": "mmserver.formats",
    "Scalar": "mmserver.formats",
    "Undecodable": "mmserver.errors",
    "decode_pickle": "mmserver.inert.decoding:decode",
    "document_from_bytes": "mmserver.trees.document",
    "document_from_snapshot": "mmserver.trees.document",
    "hookimpl": "mmserver.hookspecs",
    "model_file_from_document": "mmserver.trees.model_file",
    "records": "mmserver.inert.records:",
    "scikit_learn_attributes": "mmserver.trees.model_file",
    "to_jsonable": "mmserver.inert.jsonable",
    "ubjson_from_model_file": "mmserver.trees.model_file",
}
"""Where each name is at home; after a colon, what it is called there (nothing: the module itself)."""

__all__ = [  # noqa: PLE0604 (the table above is the list)
    *_HOMES
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mmserver' has no attribute {name!r}")
    module_name, colon, other_name = home.partition(":")
    module = importlib.import_module(module_name)
    return module if colon and not other_name else getattr(module, other_name or name)
