"""The inert pickle decoder: pickles and joblib files become data; no global is resolved and nothing in them is called."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmserver.inert.decoding import decode as decode
    from mmserver.inert.jsonable import to_jsonable as to_jsonable
    from mmserver.inert.limits import Limits as Limits

_HOMES = {
    "Limits": "mmserver.inert.limits",
    "decode": "mmserver.inert.decoding",
    "to_jsonable": "mmserver.inert.jsonable",
}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: the server needs the records' types, but decodes nothing itself."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mmserver.inert' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
