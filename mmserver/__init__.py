"""mmserver: a model manager and model server for trading models.

Plugins import from here, and only from here; nothing is loaded before it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmserver.errors import ArtifactInvalid, NotConvertible, Undecodable
    from mmserver.formats import (
        Artifact,
        ArtifactFormat,
        Converter,
        Event,
        FactorList,
        IcTable,
        InfoRecord,
        ModelFile,
        PageLink,
        Predictor,
        Probes,
        QuantileTable,
    )
    from mmserver.hookspecs import hookimpl
    from mmserver.inert import decode as decode_pickle
    from mmserver.inert import records
    from mmserver.inert.jsonable import to_jsonable
    from mmserver.trees.model_file import model_file_from_document, tree_model_from_file
    from mmserver.trees.document import document_from_bytes, document_from_snapshot

_HOMES = {
    "ArtifactInvalid": "mmserver.errors",
    "NotConvertible": "mmserver.errors",
    "Undecodable": "mmserver.errors",
    "Artifact": "mmserver.formats",
    "ArtifactFormat": "mmserver.formats",
    "Converter": "mmserver.formats",
    "Event": "mmserver.formats",
    "FactorList": "mmserver.formats",
    "IcTable": "mmserver.formats",
    "InfoRecord": "mmserver.formats",
    "ModelFile": "mmserver.formats",
    "PageLink": "mmserver.formats",
    "Predictor": "mmserver.formats",
    "Probes": "mmserver.formats",
    "QuantileTable": "mmserver.formats",
    "hookimpl": "mmserver.hookspecs",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mmserver' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


__all__ = sorted(_HOMES)  # noqa: PLE0605
