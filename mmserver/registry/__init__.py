"""Explicit versions: registered one by one, put into stages, compared, retired; any model has stages, watched ones too.

From Python: `get_model_registry`; see `python_api`, which is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmserver.registry.python_api import (
        AsyncModelRegistry,
        ModelInfo,
        ModelMetadata,
        ModelRegistry,
        get_model_registry,
    )
    from mmserver.registry.stage_names import ModelStage

__all__ = [
    "AsyncModelRegistry",
    "ModelInfo",
    "ModelMetadata",
    "ModelRegistry",
    "ModelStage",
    "get_model_registry",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmserver.registry import python_api

    return getattr(python_api, name)
