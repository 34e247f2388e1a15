"""What runs a model: our exact evaluator for trees, the library of its plugin for everything else."""

from collections.abc import Mapping
from typing import Protocol

from mmserver.formats import FloatRows, ModelFile
from mmserver.plugin_loading import Plugins

EXACT = "exact"


class Engine(Protocol):
    """A model that is ready to run; shared by all threads, never changed after it was made."""

    @property
    def name(self) -> str:
        """`exact`, or the name of the library that runs it."""

    @property
    def n_features(self) -> int:
        """Columns of a row."""

    @property
    def size_bytes(self) -> int:
        """Memory that it holds."""

    @property
    def accepts_missing(self) -> bool:
        """Whether NaN means "missing" to the model; if not, a row with one must not reach it."""

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """All outputs for all rows.

        Shapes:
            rows: n_rows × n_features, float32, C-contiguous. Returns output name → n_rows × width.
        """

    def contributions(self, rows: FloatRows) -> FloatRows:
        """How much each feature moves each margin, and the base: n_rows × n_outputs × (n_features + 1), summing to the margin.

        Raises:
            NotImplementedError: the library cannot say.
        """


def load_engine(model: ModelFile, plugins: Plugins) -> Engine | None:
    """The engine that the ingest proof allows for the model; None where no plugin runs its kind.

    Nothing of xgboost or onnxruntime is imported for a model that the exact evaluator runs.
    """
    raise NotImplementedError
