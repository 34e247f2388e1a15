"""What runs a model: our exact evaluator for trees, the library of its plugin for everything else."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mmserver.errors import PredictionTooLong
from mmserver.formats import FloatRows, ModelFile, Predictor, StoppableRun
from mmserver.plugin_loading import Plugins
from mmserver.serving.cpus import beside_python
from mmserver.trees.exact import EXACT, exact_from_model_file, is_proven_exact

TREES = "xgboost"

LIBRARY_FROM_CELLS = 1 << 14
"""Rows times trees from which XGBoost on one thread is quicker.

Source:
    measured with XGBoost 3.2 on Zen 5, margins only: equally quick at 9,000 (10 trees, depth 3), 13,000 (120, depth 4),
    14,000 (300, depth 6), 17,000 (1000, depth 3), 29,000 (300, depth 10), 32,000 (1000, depth 6).
"""

LONG_NS = 4_000_000
"""A call that is expected to take longer leaves Python's CPU to Python; moving costs some 100 µs, and a warm cache."""
LONG_CELLS = 1 << 18
"""Rows times trees for which XGBoost takes about as long."""

LIBRARY_SIZE_FACTOR = 2
"""Memory kept for a Booster, in sizes of its JSON text: it holds about as much (measured: 0.9), the text stays until it is loaded."""

log = logging.getLogger(__name__)


class Engine(Protocol):
    """A model that is ready to run; shared by all threads, and what it predicts never changes."""

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

    @property
    def may_take_long(self) -> bool:
        """Whether a row may cost far more than the one that was tried."""

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


def load_engine(model: ModelFile, plugins: Plugins, *, timeout_s: float | None = None) -> Engine | None:
    """The engine that the ingest proof allows for the model; None where no plugin runs its kind.

    timeout_s: after which a run is stopped of what may take long and can be stopped; without, none is.

    Nothing of xgboost or onnxruntime is imported for a model that the exact evaluator runs.
    """
    if model.kind == TREES and is_proven_exact(model):
        return ExactEngine(model, plugins)
    predictor = plugins.load_predictor(model)
    return None if predictor is None else LibraryEngine(model.kind, predictor, timeout_s=timeout_s)


class LibraryEngine:
    """A plugin's predictor."""

    def __init__(self, name: str, predictor: Predictor, *, timeout_s: float | None = None) -> None:
        self.name = name
        self._predictor = predictor
        self._timeout_s = timeout_s or 0.0
        self.n_features = predictor.n_features
        self.size_bytes = predictor.size_bytes
        self.accepts_missing = bool(getattr(predictor, "accepts_missing", False))
        self.may_take_long = bool(getattr(predictor, "may_take_long", False))
        stoppable: Callable[[], StoppableRun] | None = getattr(predictor, "stoppable_run", None)
        self._stoppable_run = stoppable if self.may_take_long and timeout_s is not None else None
        self._row_ns = 0.0  # of the last call

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """What the predictor gives.

        Raises:
            PredictionTooLong: it was stopped.
        """
        if self._stoppable_run is not None:
            return _in_time(self._stoppable_run(), rows, self._timeout_s)
        begun_ns = time.perf_counter_ns()
        with beside_python(is_long=self._row_ns * len(rows) > LONG_NS):
            outputs = self._predictor.predict(rows)
        self._row_ns = (time.perf_counter_ns() - begun_ns) / max(1, len(rows))
        return outputs

    def contributions(self, rows: FloatRows) -> FloatRows:
        """What the predictor gives, if it can."""
        return _contributions(self._predictor, self.name, rows)


class ExactEngine:
    """Our evaluator; many rows at once, and contributions, are left to XGBoost, which is loaded when it is first needed.

    Whichever gives the margins, their bits are the same, and the predictions are made of them here: a row's result does not
    depend on the engine. `size_bytes` counts XGBoost's Booster from the start.
    """

    name = EXACT
    accepts_missing = True
    may_take_long = False

    def __init__(self, model: ModelFile, plugins: Plugins) -> None:
        self._exact = exact_from_model_file(model)
        self._library = _LateLibrary(model, plugins)
        self.n_features = self._exact.n_features
        self.size_bytes = self._exact.size_bytes + LIBRARY_SIZE_FACTOR * len(model.content)

    def predict(self, rows: FloatRows) -> Mapping[str, FloatRows]:
        """`margin` and `prediction`, as XGBoost gives them."""
        n_rows = len(rows)
        if n_rows > 1 and n_rows * self._exact.n_trees >= LIBRARY_FROM_CELLS:
            return self._exact.outputs(self._library_margins(rows))
        return self._exact.predict(rows)

    def contributions(self, rows: FloatRows) -> FloatRows:
        """What XGBoost gives."""
        library = self._library.get(wait=True)
        if library is None:
            raise NotImplementedError("no plugin could load the model into XGBoost")
        return _contributions(library, TREES, rows)

    def _library_margins(self, rows: FloatRows) -> FloatRows:
        library = self._library.get(wait=False)
        if library is None:
            return self._exact.margins(rows)
        only_margins: Callable[[FloatRows], FloatRows] | None = getattr(library, "margins", None)
        with beside_python(is_long=len(rows) * self._exact.n_trees >= LONG_CELLS):
            margins = only_margins(rows) if only_margins is not None else library.predict(rows)["margin"]
        if margins.shape != (len(rows), self._exact.n_outputs):
            raise ValueError(f"{TREES} gives margins of {margins.shape} for {len(rows)} rows")
        return margins


class _LateLibrary:
    """The plugin's predictor for a model, loaded at its first use by the one thread that comes first."""

    def __init__(self, model: ModelFile, plugins: Plugins) -> None:
        self._source: tuple[ModelFile, Plugins] | None = (model, plugins)
        self._loading = threading.Lock()
        self._predictor: Predictor | None = None

    def get(self, *, wait: bool) -> Predictor | None:
        """The predictor; None where there is none, or, without waiting, as long as another thread loads it."""
        if self._predictor is None and self._source is not None and self._loading.acquire(blocking=wait):
            try:
                if self._source is not None:
                    self._predictor = _loaded(*self._source)
                    self._source = None
            finally:
                self._loading.release()
        return self._predictor


def _loaded(model: ModelFile, plugins: Plugins) -> Predictor | None:
    """None where it cannot be loaded: what the library would do, our evaluator does too."""
    try:
        return plugins.load_predictor(model)
    except Exception as error:  # noqa: BLE001 (a plugin's)
        log.warning("a model that is served exactly does not load into %s: %s", model.kind, error)
        return None


def _contributions(predictor: Predictor, name: str, rows: FloatRows) -> FloatRows:
    explain: Any = getattr(predictor, "contributions", None)
    if explain is None:
        raise NotImplementedError(f"{name} cannot say what moved a prediction")
    with beside_python(is_long=True):
        contributions: FloatRows = explain(rows)
    return contributions


def _in_time(run: StoppableRun, rows: FloatRows, timeout_s: float) -> Mapping[str, FloatRows]:
    is_late = threading.Event()

    def stop() -> None:
        is_late.set()
        run.stop()

    timer = threading.Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    try:
        with beside_python(is_long=True):
            return run.predict(rows)
    except Exception as error:
        if is_late.is_set():
            raise PredictionTooLong(timeout_s=timeout_s) from error
        raise
    finally:
        timer.cancel()
