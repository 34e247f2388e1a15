"""Models that are loaded and ready: one for each group, least recently used first out, bounded in bytes."""

import copy
import itertools
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from mmserver.catalog.catalog import Group
from mmserver.catalog.ingest import GroupRecord
from mmserver.catalog.store import Store
from mmserver.catalog.stored_models import StoredModel, stored_content_sha256, stored_model
from mmserver.errors import (
    BlobNotFound,
    Corrupt,
    GroupHasNoModel,
    MmserverError,
    PredictionFailed,
    PredictorUnloadable,
)
from mmserver.formats import FloatRows, Interpreter, ModelFile
from mmserver.serving.crash_ledger import DIRECTORY_NAME, MAX_CRASHES, CrashLedger
from mmserver.serving.engines import TREES, Engine, load_engine
from mmserver.serving.features import RowLayout, row_layout, shown_shape
from mmserver.serving.interpretation import load_interpreter
from mmserver.trees.exact import is_proven_exact

FAILURE_LASTS_S = 60.0
"""A model that did not load is tried again after that time at the earliest: memory may have been short."""

_OVERHEAD_BYTES = 20_000  # of what stands around an engine: factor names, an interpreter, the objects themselves
_BYTES_A_FACTOR = 200
_N_TIMED = 3
_N_SAMPLED = 16
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class LoadedModel:
    """One group's model, ready to run. Requests keep the one that they were given to the end."""

    group: Group
    model: ModelFile
    """Without its content."""
    engine: Engine
    size_bytes: int
    row_cost_ns: int
    """Measured at loading, for one row: the least of a few."""
    layout: RowLayout
    interpreter: Interpreter
    record: GroupRecord
    """What is stored beside the model, without its IC table."""
    outputs: Mapping[str, int]
    """Numbers a row of each output, by name."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload came to, by group key; a group that failed goes on being served with what was loaded before, if anything."""

    loaded: tuple[str, ...]
    failed: Mapping[str, MmserverError]


@dataclass(frozen=True, slots=True)
class _Failure:
    error: MmserverError
    until: float


class _Flight:
    """One load that is under way, which others wait for."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.loaded: LoadedModel | None = None
        self.error: BaseException | None = None


class Predictors:
    """All loaded models of one process; safe for all threads. Readers take no lock.

    Content never changes under a group's id, so a loaded model is never out of date; it is only no longer needed.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._limit_bytes = store.settings.predictor_cache_bytes
        self._ledger = CrashLedger(None if store.read_only else store.settings.data_dir / DIRECTORY_NAME)
        self._clock = clock
        self._loaded: dict[int, LoadedModel] = {}
        self._used: dict[int, int] = {}
        self._ticks = itertools.count()
        self._flights: dict[int, _Flight] = {}
        self._failures: dict[int, _Failure] = {}
        self._size_bytes = 0
        self._lock = threading.Lock()

    def get(self, group: Group) -> LoadedModel:
        """The group's model; the first thread loads it from the database, others wait for that.

        Raises:
            GroupHasNoModel: there is none, or no plugin runs its kind.
            PredictorUnloadable: it does not load; not tried again for a while, unless it is reloaded.
        """
        loaded = self._loaded.get(group.id)
        if loaded is not None:
            self._used[group.id] = next(self._ticks)
            return loaded
        return self._fetch(group, keep=self._keep)

    def held(self, group: Group) -> LoadedModel | None:
        """The same without waiting: None unless it is loaded."""
        loaded = self._loaded.get(group.id)
        if loaded is not None:
            self._used[group.id] = next(self._ticks)
        return loaded

    def is_loaded(self, group: Group) -> bool:
        """Whether it is loaded, without counting as a use."""
        return group.id in self._loaded

    def failure(self, group: Group) -> MmserverError | None:
        """Why it did not load the last time it was tried; None where it did, or was not tried."""
        failure = self._failures.get(group.id)
        return None if failure is None else failure.error

    def loaded(self) -> list[LoadedModel]:
        """All models that are loaded now."""
        return list(self._loaded.values())

    @property
    def size_bytes(self) -> int:
        """Memory that all of them hold."""
        return self._size_bytes

    def reload(self, groups: Iterable[Group]) -> Reloaded:
        """Load anew what is loaded or failed, and put it in the place of what was; the rest is loaded at its first use anyway,
        but one group alone is loaded at once. No request fails meanwhile, or sees half of it.
        """
        loaded: list[str] = []
        failed: dict[str, MmserverError] = {}
        wanted = list(groups)
        for group in wanted:
            is_wanted = len(wanted) == 1 or group.id in self._loaded or group.id in self._failures
            if not is_wanted or not group.can_predict:
                continue
            try:
                self._forgive(group)
                self._fetch(group, keep=self._keep, anew=True)
            except MmserverError as error:
                failed[group.group_key] = error
            else:
                loaded.append(group.group_key)
        return Reloaded(loaded=tuple(loaded), failed=failed)

    def warm(self, group: Group, needed: Collection[int]) -> bool:
        """Load it ahead of its first use, if there is room without letting go of anything in `needed` (group ids).

        Returns:
            False if there is no room for it; it may take the place of what is not in `needed`.

        Raises:
            GroupHasNoModel, PredictorUnloadable
        """
        if group.id in self._loaded:
            return True
        has_room = False

        def keep_in_room(loaded: LoadedModel) -> None:
            nonlocal has_room
            with self._lock:
                for group_id in self._least_used():
                    if self._size_bytes + loaded.size_bytes <= self._limit_bytes:
                        break
                    if group_id not in needed:
                        self._drop(group_id)
                has_room = self._size_bytes + loaded.size_bytes <= self._limit_bytes
                if has_room:
                    self._hold(loaded)

        self._fetch(group, keep=keep_in_room)
        return has_room or group.id in self._loaded

    def let_go(self, group_ids: Collection[int]) -> None:
        """Forget everything of these groups; requests that have one finish with it."""
        with self._lock:
            for group_id in group_ids:
                self._drop(group_id)
                self._failures.pop(group_id, None)

    def known_ids(self) -> set[int]:
        """The groups that anything is remembered of."""
        with self._lock:
            return {*self._loaded, *self._failures}

    # --- loading ----------------------------------------------------------------------------------------------------------

    def _fetch(self, group: Group, *, keep: Callable[[LoadedModel], None], anew: bool = False) -> LoadedModel:
        """Load it, or wait for the thread that does."""
        with self._lock:
            loaded = None if anew else self._loaded.get(group.id)
            if loaded is not None:
                return loaded
            failure = self._failures.get(group.id)
            if failure is not None and self._clock() < failure.until:
                raise copy.copy(failure.error)
            flight = self._flights.get(group.id)
            leads = flight is None or anew
            if flight is None or anew:
                flight = self._flights[group.id] = _Flight()
        if not leads:
            return self._awaited(flight)
        try:
            flight.loaded = self._load(group)
            keep(flight.loaded)
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                if self._flights.get(group.id) is flight:
                    del self._flights[group.id]
            flight.done.set()
        return flight.loaded

    def _awaited(self, flight: _Flight) -> LoadedModel:
        flight.done.wait()
        if flight.loaded is not None:
            return flight.loaded
        if isinstance(flight.error, MmserverError):
            raise copy.copy(flight.error)
        raise RuntimeError("the thread that loaded the model failed") from flight.error

    def _load(self, group: Group) -> LoadedModel:
        try:
            stored = stored_model(self._store.database, group)
            loaded = self._guarded(group, stored)
        except BlobNotFound as error:
            raise GroupHasNoModel(group_key=group.group_key, reason="it was removed meanwhile") from error
        except (GroupHasNoModel, PredictorUnloadable, Corrupt) as error:
            bare = copy.copy(error)  # without the traceback, whose frames hold the model's content
            with self._lock:
                self._failures[group.id] = _Failure(bare, self._clock() + FAILURE_LASTS_S)
            raise
        with self._lock:
            self._failures.pop(group.id, None)
        return loaded

    def _guarded(self, group: Group, stored: StoredModel) -> LoadedModel:
        """A model that needs a library gets a note in the ledger while it is loaded and tried."""
        if stored.model.kind == TREES and is_proven_exact(stored.model):
            return self._contained(group, stored)
        sha256 = str((stored.record.model or {})["content_sha256"])
        n_crashes = self._ledger.n_crashes(sha256)
        if n_crashes >= MAX_CRASHES:
            reason = f"mmserver died {n_crashes} times while it was loaded; reload it to try again"
            raise PredictorUnloadable(group_key=group.group_key, reason=reason)
        with self._ledger.noted(sha256):
            return self._contained(group, stored)

    def _contained(self, group: Group, stored: StoredModel) -> LoadedModel:
        try:
            return self._built(group, stored)
        except (GroupHasNoModel, PredictorUnloadable):
            raise
        except Exception as error:
            log.exception("%s: its model does not load", group.group_key)
            raise PredictorUnloadable(group_key=group.group_key, reason=_short(error)) from error

    def _built(self, group: Group, stored: StoredModel) -> LoadedModel:
        model, record = stored.model, stored.record
        engine = load_engine(model, self._store.plugins, timeout_s=self._store.settings.prediction_timeout_s)
        if engine is None:
            raise GroupHasNoModel(group_key=group.group_key, reason=f"no plugin runs {model.kind} models")
        row_shape = model.input_shape or (len(group.factors),)
        if row_shape[-1] != len(group.factors) or engine.n_features != math.prod(row_shape):
            reason = f"it takes {engine.n_features} features, but the group has {len(group.factors)} factors"
            if model.input_shape:
                reason += f" in rows of {shown_shape(row_shape)}"
            raise PredictorUnloadable(group_key=group.group_key, reason=reason)
        layout = row_layout(group.factors, row_shape, accepts_missing=engine.accepts_missing)
        row_cost_ns, widths = _tried(engine)
        return LoadedModel(
            group=group,
            model=msgspec.structs.replace(model, content=b"", probes=None),
            engine=engine,
            size_bytes=engine.size_bytes + _OVERHEAD_BYTES + _BYTES_A_FACTOR * len(group.factors),
            row_cost_ns=sys.maxsize if engine.may_take_long else row_cost_ns,
            layout=layout,
            interpreter=load_interpreter(
                model, record.info, widths, self._store.plugins, sample=lambda: _sampled(engine)
            ),
            record=msgspec.structs.replace(record, ic_table=[], dim_factors=[]),
            outputs=widths,
        )

    def _forgive(self, group: Group) -> None:
        with self._lock:
            self._failures.pop(group.id, None)
        sha256 = stored_content_sha256(self._store.database, group)
        if sha256 is not None:
            self._ledger.forget(sha256)

    # --- holding; under the lock ------------------------------------------------------------------------------------------

    def _keep(self, loaded: LoadedModel) -> None:
        """Hold it, and let others go for it; one that is larger than the whole bound is not held."""
        with self._lock:
            if loaded.size_bytes > self._limit_bytes:
                self._drop(loaded.group.id)
                return
            self._hold(loaded)
            for group_id in self._least_used():
                if self._size_bytes <= self._limit_bytes:
                    break
                if group_id != loaded.group.id:
                    self._drop(group_id)

    def _hold(self, loaded: LoadedModel) -> None:
        before = self._loaded.get(loaded.group.id)
        self._size_bytes += loaded.size_bytes - (before.size_bytes if before is not None else 0)
        self._loaded[loaded.group.id] = loaded
        self._used[loaded.group.id] = next(self._ticks)

    def _drop(self, group_id: int) -> None:
        dropped = self._loaded.pop(group_id, None)
        if dropped is not None:
            self._size_bytes -= dropped.size_bytes

    def _least_used(self) -> list[int]:
        """Ids of what is held, least recently used first; forgets the uses of what is not held any more."""
        used = self._used
        for group_id in [known for known in list(used) if known not in self._loaded]:
            used.pop(group_id, None)
        return sorted(self._loaded, key=lambda group_id: used.get(group_id, 0))


def _tried(engine: Engine) -> tuple[int, dict[str, int]]:
    """(nanoseconds for one row, the width of each output); what the engine gives is checked to be what it should."""
    row: FloatRows = np.zeros((1, engine.n_features), np.float32)
    outputs = checked_outputs(engine.predict(row), 1, "")
    widths = {name: int(values.shape[1]) for name, values in outputs.items()}
    best_ns = min(_timed_ns(engine, row) for _ in range(_N_TIMED))
    return best_ns, widths


def _sampled(engine: Engine) -> Mapping[str, FloatRows]:
    """What it gives for some rows that are all different."""
    rows = np.random.default_rng(0).standard_normal((_N_SAMPLED, engine.n_features), np.float32)
    return checked_outputs(engine.predict(rows), _N_SAMPLED, "")


def _timed_ns(engine: Engine, row: FloatRows) -> int:
    begun_ns = time.perf_counter_ns()
    engine.predict(row)
    return time.perf_counter_ns() - begun_ns


def checked_outputs(
    outputs: object, n_rows: int, group_key: str, widths: Mapping[str, int] | None = None
) -> Mapping[str, FloatRows]:
    """The same in float32, if every output is a table of numbers with a line for each row, and as wide as `widths` says.

    What float32 cannot hold becomes infinite, which is for the caller to refuse.

    Raises:
        PredictionFailed: it is not.
    """
    if not isinstance(outputs, Mapping):
        reason = f"its library gave {type(outputs).__name__}, where outputs by name should be"
        raise PredictionFailed(group_key=group_key, reason=reason)
    for name, values in outputs.items():
        if (
            not isinstance(values, np.ndarray)
            or values.ndim != 2
            or len(values) != n_rows
            or values.dtype.kind not in "fiu"
        ):
            found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            reason = f"its library gave {found} for {name}, where {n_rows} rows of numbers should be"
            raise PredictionFailed(group_key=group_key, reason=reason)
    found_widths = {name: values.shape[1] for name, values in outputs.items()}
    if not outputs or (widths is not None and found_widths != widths):
        reason = f"its library gave the outputs {found_widths}" + (f", before it was {dict(widths)}" if widths else "")
        raise PredictionFailed(group_key=group_key, reason=reason)
    if all(values.dtype == np.float32 for values in outputs.values()):
        return outputs
    with np.errstate(over="ignore"):
        return {name: np.asarray(values, np.float32) for name, values in outputs.items()}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
