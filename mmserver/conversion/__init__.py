"""Models of other libraries made servable: read and converted in guarded processes, proven against their source, optimised.

From Python: `ONNXOptimizer`; see `optimizing`, which is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmserver.conversion.optimizing import Candidate, Comparison, ONNXOptimizer, Optimization, SyncONNXOptimizer

__all__ = ["Candidate", "Comparison", "ONNXOptimizer", "Optimization", "SyncONNXOptimizer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mmserver.conversion import optimizing

    return getattr(optimizing, name)
