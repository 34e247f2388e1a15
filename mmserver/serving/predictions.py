"""One process's prediction service: resolve, take the features, run the model, say what it means."""

import itertools
import logging
import math
import secrets
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import msgspec
import numpy as np

from mmserver.catalog.store import Store
from mmserver.errors import (
    Corrupt,
    MmserverError,
    NotExplainable,
    PredictionFailed,
    PredictionNotFinite,
    PredictionTooLong,
    TooManyRows,
)
from mmserver.formats import Decision, FloatRows
from mmserver.registry.said import said_of_versions
from mmserver.serving.features import Features, RowLayout
from mmserver.serving.interpretation import decide
from mmserver.serving.model_facts import said_accuracy, training_date
from mmserver.serving.predictors import LoadedModel, Predictors, checked_outputs
from mmserver.serving.resolving import Resolved, Resolver
from mmserver.serving.siblings import Siblings
from mmserver.serving.statistics import Statistics
from mmserver.serving.training_facts import accuracy
from mmserver.serving.unloading import Unloading
from mmserver.serving.warming import Warming
from mmserver.trees.exact import EXACT

__all__ = ["MAX_EXPLAINED_ROWS", "Asked", "Decision", "Features", "Prediction", "Resolved", "Serving"]

MAX_EXPLAINED_ROWS = 64
"""Contributions cost a thousand times what a prediction costs."""

_MAX_MODEL_INFOS = 20_000
log = logging.getLogger(__name__)


class Asked(msgspec.Struct, frozen=True):
    """One prediction that is asked for. Without `model_name` the only model that has the symbol is meant, or the default.

    `experiment_id`, `unit_id` and `request_id` are for whoever puts requests into experiments; nothing here looks at them.
    """

    symbol: str
    features: Features
    model_name: str | None = None
    version: str | None = None
    as_of: datetime | None = None
    explain: bool = False
    experiment_id: str | None = None
    unit_id: str | None = None
    request_id: str | None = None


class Prediction(msgspec.Struct, frozen=True):
    """One answer; the last fields are there if it belongs to an experiment."""

    symbol: str
    decision: Decision
    model_name: str
    version: str
    model_info: msgspec.Raw
    """JSON: version, training_date, accuracy, and what the decision rests on."""
    prediction_id: str
    contributions: dict[str, Any] | None = None
    """How much each factor moved the margin, and the base: they sum to it. Of several outputs, a list under `outputs`."""
    variant: str | None = None
    experiment_id: str | None = None
    fallback: str | None = None
    """The code of the error for which the control answers in the treatment's place."""


class Observer(Protocol):
    """Told of all that is predicted outside experiments; it raises nothing. `begun_ns` is when the work on it began."""

    def answered(
        self,
        resolved: Resolved,
        symbols: Sequence[str],
        answers: Sequence[Prediction | MmserverError],
        rows: FloatRows,
        begun_ns: int,
    ) -> None:
        """What was decided for each row of one model, or why nothing."""

    def failed(self, resolved: Resolved, symbol: str | None, error: MmserverError, begun_ns: int) -> None:
        """Nothing could be predicted; `symbol` where it is not the group's."""

    def ran(  # noqa: PLR0917 (all that is known of it)
        self,
        resolved: Resolved,
        loaded: LoadedModel,
        prediction_id: str,
        rows: np.ndarray[Any, Any],
        found: Mapping[str, FloatRows] | MmserverError,
        begun_ns: int,
    ) -> None:
        """What `Serving.run` gave for the rows, or why nothing."""


@dataclass(slots=True)
class _Item:
    """One item of a batch on its way: where its answer goes, and the row that it became."""

    at: int
    asked: Asked
    resolved: Resolved
    loaded: LoadedModel
    row: FloatRows


class Serving:
    """What every protocol predicts through; safe for all threads."""

    def __init__(self, store: Store, siblings: Siblings | None = None) -> None:
        """`siblings`: what it shares with the other processes of the server, if there are any."""
        self.store = store
        self.predictors = Predictors(store)
        self.unloading = Unloading(store, self.predictors, siblings.unloaded if siblings else None)
        self.statistics = Statistics(siblings)
        self.observer: Observer | None = None
        self.warming = Warming(store, self.predictors, self.unloading)
        self._resolver = Resolver(store)
        self._dead_band = store.settings.dead_band
        self._dead_bands = store.settings.dead_bands
        self._model_infos: dict[tuple[int, int], tuple[weakref.ref[LoadedModel], datetime | None, msgspec.Raw]] = {}
        self._id_prefix = secrets.token_hex(8)
        self._id_numbers = itertools.count()

    def follow(self) -> None:
        """Take over what the other processes of the server have unloaded, and tell them what this one has counted; called often."""
        self.unloading.follow()
        self.statistics.publish()

    def resolve(
        self, symbol: str | None, model_name: str | None, version: str | None = None, as_of: datetime | None = None
    ) -> Resolved:
        """The version and group meant; from memory, except for versions that are not served now.

        Without `model_name`: the only model that has the symbol, else the default. Without `symbol`: the model's only group.

        Raises:
            ModelNotFound, VersionNotFound, SymbolNotFound, SymbolAmbiguous, GroupRefused, SymbolArchived, ModelAmbiguous
            FieldsInvalid: neither a symbol nor a model is named.
        """
        return self._resolver.resolve(symbol, model_name, version, as_of)

    def known(self, symbol: str | None, model_name: str | None, version: str | None = None) -> Resolved | None:
        """As `resolve`, if the same was resolved against the present catalog before; else None, at once."""
        return self._resolver.known(symbol, model_name, version)

    def loaded(self, resolved: Resolved) -> LoadedModel:
        """What runs it; loaded first if it is not yet.

        Raises:
            NotReady: it was unloaded on purpose.
            GroupHasNoModel, PredictorUnloadable
        """
        self.unloading.check(resolved)
        loaded = self.predictors.get(resolved.group)
        self.unloading.let_go_if_unloaded(resolved)
        return loaded

    def held(self, resolved: Resolved) -> LoadedModel | None:
        """The same without waiting: None unless it is loaded."""
        if self.unloading.is_unloaded(resolved.version.model_name, resolved.group.group_key):
            return None
        return self.predictors.held(resolved.group)

    def predict(self, asked: Asked, waited_ns: int = 0) -> Prediction:
        """One prediction; `waited_ns` is how long the request waited for a thread, for the statistics.

        Raises:
            what `resolve` does; GroupHasNoModel, PredictorUnloadable, NotReady; FeaturesInvalid; NotExplainable;
            NotInterpretable; PredictionFailed, PredictionNotFinite
        """
        resolved = self.resolve(asked.symbol, asked.model_name, asked.version, asked.as_of)
        if self.observer is None:
            return self.predict_resolved(asked, resolved, waited_ns)[0]
        return self._predict_observed(self.observer, asked, resolved, waited_ns)

    def predict_resolved(
        self,
        asked: Asked,
        resolved: Resolved,
        waited_ns: int = 0,
        *,
        loaded: LoadedModel | None = None,
        prediction_id: str | None = None,
        variant: str | None = None,
        experiment_id: str | None = None,
    ) -> tuple[Prediction, FloatRows]:
        """As `predict`, with the version and group that were found before, and observed by nobody; and the row that the features
        became.

        `loaded`: what `loaded` or `held` has just given for it; `prediction_id`: one that `new_prediction_id` gave, where it was
        needed before; `variant`, `experiment_id`: what the answer says of them.
        """
        begun_ns = time.perf_counter_ns()
        try:
            if loaded is None:
                loaded = self.loaded(resolved)
            row = loaded.layout.row(asked.features)
            explained = self.contributions(resolved, loaded, row)[0] if asked.explain else None
        except MmserverError:
            self.statistics.failed(resolved.version, resolved.group, time.perf_counter_ns() - begun_ns)
            raise
        decision = self.predict_row(resolved, loaded, row, begun_ns, waited_ns)
        prediction = Prediction(
            asked.symbol,
            decision,
            resolved.version.model_name,
            resolved.version.label,
            self.model_info(resolved, loaded),
            prediction_id or self.new_prediction_id(),
            explained,
            variant,
            experiment_id,
        )
        return prediction, row

    def predict_row(
        self,
        resolved: Resolved,
        loaded: LoadedModel,
        row: FloatRows,
        begun_ns: int | None = None,
        waited_ns: int = 0,
    ) -> Decision:
        """The quickest way from one row to a decision, counted in the statistics.

        For the statistics: `begun_ns`, when the work on the request began; `waited_ns`, how long it waited for that.

        Shapes:
            row: 1 × n_features, as `loaded.layout` made it.

        Raises:
            NotInterpretable, PredictionFailed, PredictionNotFinite
        """
        group = resolved.group
        ready_ns = time.perf_counter_ns()
        try:
            outputs = loaded.engine.predict(row)
            ran_ns = time.perf_counter_ns()
            if loaded.engine.name != EXACT:  # our own evaluator's are what they were at loading
                outputs = checked_outputs(outputs, 1, group.group_key, loaded.outputs)
            for values in outputs.values():
                if not math.isfinite(sum(values.tolist()[0])):  # as float64 it cannot overflow
                    raise _not_finite(group.group_key, outputs)
            decision = decide(loaded.interpreter, group.group_key, outputs, self.dead_band(resolved))[0]
        except MmserverError:
            self._failed(resolved, begun_ns or ready_ns)
            raise
        except Exception as error:
            self._failed(resolved, begun_ns or ready_ns)
            raise _prediction_failed(group.group_key, error) from error
        self.statistics.succeeded(
            resolved.version,
            group,
            n_rows=1,
            input_ns=ready_ns - (begun_ns or ready_ns),
            infer_ns=ran_ns - ready_ns,
            output_ns=time.perf_counter_ns() - ran_ns,
            queue_ns=waited_ns,
        )
        return decision

    def predict_many(self, asked: Sequence[Asked], together: int | None = None) -> list[Prediction | MmserverError]:
        """Each item's answer or its error, in the order asked; rows of one model run together, at most `together` of them.

        Raises:
            TooManyRows: more items than `max_rows`, or than may be explained.
        """
        self.check_n_rows(len(asked))
        n_explained = sum(one.explain for one in asked)
        if n_explained > MAX_EXPLAINED_ROWS:
            raise TooManyRows(n_rows=n_explained, limit=MAX_EXPLAINED_ROWS)
        answers: list[Prediction | MmserverError | None] = [None] * len(asked)
        items_by_model: dict[tuple[int, int], list[_Item]] = {}
        for at, one in enumerate(asked):
            try:
                item = self._prepared(at, one)
            except MmserverError as error:
                answers[at] = error
            else:
                key = (item.resolved.version.id, item.resolved.group.id)
                items_by_model.setdefault(key, []).append(item)
        for items in items_by_model.values():
            step = together or len(items)
            for some in (items[first : first + step] for first in range(0, len(items), step)):
                for item, answer in zip(some, self._run_together(some), strict=True):
                    answers[item.at] = answer
        return [answer for answer in answers if answer is not None]

    def run(
        self,
        resolved: Resolved,
        rows: np.ndarray[Any, Any],
        queue_ns: int = 0,
        begun_ns: int | None = None,
        loaded: LoadedModel | None = None,
    ) -> Mapping[str, FloatRows]:
        """The model's raw outputs for a table of rows, by output name: what the standard protocols give.

        `begun_ns`: when the work on the request began, for the statistics. `loaded`: what the caller made the rows for.

        Shapes:
            rows: n_rows × n_features, any kind of number. Returns n_rows × width each, float32, all finite.

        Raises:
            TooManyRows; GroupHasNoModel, PredictorUnloadable, NotReady; FeaturesInvalid; PredictionFailed,
            PredictionNotFinite
        """
        begun_ns = begun_ns or time.perf_counter_ns()
        try:
            if rows.ndim > 0:
                self.check_n_rows(len(rows))
            loaded = loaded or self.loaded(resolved)
            table = loaded.layout.rows(rows)
            ready_ns = time.perf_counter_ns()
            outputs = self._outputs(loaded, table)
            ran_ns = time.perf_counter_ns()
            for values in outputs.values():
                if not np.isfinite(values).all():
                    raise _not_finite(resolved.group.group_key, outputs)
        except MmserverError:
            self._failed(resolved, begun_ns)
            raise
        self.statistics.succeeded(
            resolved.version,
            resolved.group,
            n_rows=len(table),
            input_ns=ready_ns - begun_ns,
            infer_ns=ran_ns - ready_ns,
            output_ns=time.perf_counter_ns() - ran_ns,
            queue_ns=queue_ns,
        )
        return outputs

    def observe_run(  # noqa: PLR0917 (all that is known of it)
        self,
        resolved: Resolved,
        loaded: LoadedModel,
        rows: np.ndarray[Any, Any],
        found: Mapping[str, FloatRows] | MmserverError,
        begun_ns: int,
        prediction_id: str | None = None,
    ) -> str | None:
        """Tell whoever observes of what `run` gave or raised outside experiments; not `run` itself, as experiments keep their own.

        Returns:
            the id that the rows' outcomes are reported by; None where nobody observes
        """
        if self.observer is None:
            return None
        prediction_id = prediction_id or self.new_prediction_id()
        self.observer.ran(resolved, loaded, prediction_id, rows, found, begun_ns)
        return prediction_id

    def observe_failure(
        self, resolved: Resolved, error: MmserverError, begun_ns: int, symbol: str | None = None
    ) -> None:
        """Tell whoever observes that nothing could be predicted; `symbol` where it is not the group's."""
        if self.observer is not None:
            self.observer.failed(resolved, symbol, error, begun_ns)

    def contributions(self, resolved: Resolved, loaded: LoadedModel, rows: FloatRows) -> list[dict[str, Any]]:
        """How much each factor moved each row's margin: `{"base", "factors": {name: value}}`, which sum to it; where the model
        has several outputs, `{"outputs": [...]}` with one such entry each. In a model with timesteps a factor has a list of values,
        one for each timestep.

        Raises:
            NotExplainable: the model's library cannot say.
            TooManyRows: more than MAX_EXPLAINED_ROWS.
            PredictionFailed, PredictionNotFinite
        """
        model_name, group_key = resolved.version.model_name, resolved.group.group_key
        if len(rows) > MAX_EXPLAINED_ROWS:
            raise TooManyRows(n_rows=len(rows), limit=MAX_EXPLAINED_ROWS)
        try:
            found = loaded.engine.contributions(rows)
        except NotImplementedError as error:
            reason = str(error) or f"{loaded.engine.name} gives no contributions"
            raise NotExplainable(model_name=model_name, reason=reason) from error
        except Exception as error:
            raise _prediction_failed(group_key, error) from error
        expected = (len(rows), loaded.model.n_outputs, loaded.layout.width + 1)
        if not isinstance(found, np.ndarray) or found.shape != expected or found.dtype.kind not in "fiu":
            given = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
            raise PredictionFailed(group_key=group_key, reason=f"contributions are {given}, not numbers {expected}")
        if not np.isfinite(found).all():
            raise _not_finite(group_key, {"contributions": found})
        return [_explained(loaded.layout, row) for row in found]

    def model_info(self, resolved: Resolved, loaded: LoadedModel) -> msgspec.Raw:
        """JSON, made once for what is said of the version: version, training_date, accuracy, and what decisions rest on."""
        key = (resolved.version.id, resolved.group.id)
        model = self.store.catalog.models.get(resolved.version.model_name)
        said_at = None if model is None or model.is_watched else model.refreshed_at  # moved by every change
        known = self._model_infos.get(key)
        if known is not None and known[0]() is loaded and known[1] == said_at:
            return known[2]
        said = said_of_versions(self.store.database, [key[0]]).get(key[0]) if said_at is not None else None
        info = {
            "version": resolved.version.label,
            "training_date": training_date(loaded.record.facts),
            "accuracy": said_accuracy(said, accuracy(loaded.record.info)),
            "engine": loaded.engine.name,
            "direction_from": loaded.interpreter.direction_from,
            "confidence_from": loaded.interpreter.confidence_from,
        }
        raw = msgspec.Raw(msgspec.json.encode(info))
        if len(self._model_infos) >= _MAX_MODEL_INFOS:
            self._model_infos.clear()
        self._model_infos[key] = (weakref.ref(loaded), said_at, raw)  # which may be let go of
        return raw

    def new_prediction_id(self) -> str:
        """Unique in all processes and for all times."""
        return f"{self._id_prefix}{next(self._id_numbers):08x}"

    def dead_band(self, resolved: Resolved) -> float:
        """An expected return of this size or smaller is HOLD for the model; several models may share one predictor."""
        return self._dead_bands.get(resolved.version.model_name, self._dead_band)

    def check_n_rows(self, n_rows: int) -> None:
        """Raises TooManyRows where one request asks for more than `max_rows`."""
        if n_rows > self.store.settings.max_rows:
            raise TooManyRows(n_rows=n_rows, limit=self.store.settings.max_rows)

    # --- batches ----------------------------------------------------------------------------------------------------------

    def _prepared(self, at: int, asked: Asked) -> _Item:
        resolved = self.resolve(asked.symbol, asked.model_name, asked.version, asked.as_of)
        begun_ns = time.perf_counter_ns()
        try:
            loaded = self.loaded(resolved)
            return _Item(at, asked, resolved, loaded, loaded.layout.row(asked.features))
        except MmserverError as error:
            self._failed(resolved, begun_ns)
            self.observe_failure(resolved, error, begun_ns, asked.symbol)
            raise

    def _run_together(self, items: Sequence[_Item]) -> list[Prediction | MmserverError]:
        """The answers for items of one group in one version; if the run as a whole fails, each is run by itself."""
        resolved, loaded = items[0].resolved, items[0].loaded
        group_key = resolved.group.group_key
        begun_ns = time.perf_counter_ns()
        rows: FloatRows = np.concatenate([item.row for item in items])
        ready_ns = time.perf_counter_ns()
        try:
            outputs = self._outputs(loaded, rows)
            ran_ns = time.perf_counter_ns()
            is_finite = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in outputs.values()])
            good = {name: values[is_finite] for name, values in outputs.items()}
            decisions = iter(
                decide(loaded.interpreter, group_key, good, self.dead_band(resolved)) if is_finite.any() else ()
            )
        except MmserverError as error:
            if len(items) > 1 and isinstance(error, PredictionFailed):
                return [answer for item in items for answer in self._run_together([item])]
            self._failed(resolved, begun_ns)
            answers: list[Prediction | MmserverError] = [error] * len(items)
            self._observe_items(items, answers, rows, begun_ns)
            return answers
        answers = []
        for at, item in enumerate(items):
            if is_finite[at]:
                answers.append(self._answer(item, next(decisions)))
            else:
                self._failed(resolved, begun_ns)
                answers.append(_not_finite(group_key, {name: values[at : at + 1] for name, values in outputs.items()}))
        if is_finite.any():
            self.statistics.succeeded(
                resolved.version,
                resolved.group,
                n_rows=int(is_finite.sum()),
                input_ns=ready_ns - begun_ns,
                infer_ns=ran_ns - ready_ns,
                output_ns=time.perf_counter_ns() - ran_ns,
            )
        self._observe_items(items, answers, rows, begun_ns)
        return answers

    def _observe_items(
        self, items: Sequence[_Item], answers: Sequence[Prediction | MmserverError], rows: FloatRows, begun_ns: int
    ) -> None:
        if self.observer is not None:
            symbols = [item.asked.symbol for item in items]
            self.observer.answered(items[0].resolved, symbols, answers, rows, begun_ns)

    def _answer(self, item: _Item, decision: Decision) -> Prediction | MmserverError:
        try:
            explained = self.contributions(item.resolved, item.loaded, item.row)[0] if item.asked.explain else None
        except MmserverError as error:
            return error
        return self._prediction(item.asked, item.resolved, item.loaded, decision, explained)

    # --- parts ------------------------------------------------------------------------------------------------------------

    def _predict_observed(self, observer: Observer, asked: Asked, resolved: Resolved, waited_ns: int) -> Prediction:
        """The time that it takes is the answer's own: what loads the model, once, is left out."""
        begun_ns = time.perf_counter_ns()
        try:
            loaded = self.loaded(resolved)
        except MmserverError as error:
            self._failed(resolved, begun_ns)
            observer.failed(resolved, asked.symbol, error, begun_ns)
            raise
        begun_ns = time.perf_counter_ns()
        try:
            prediction, row = self.predict_resolved(asked, resolved, waited_ns)
        except Corrupt as error:  # what the features led to, so that they can be looked at
            observer.answered(resolved, (asked.symbol,), (error,), loaded.layout.row(asked.features), begun_ns)
            raise
        except MmserverError as error:
            observer.failed(resolved, asked.symbol, error, begun_ns)
            raise
        observer.answered(resolved, (asked.symbol,), (prediction,), row, begun_ns)
        return prediction

    def _outputs(self, loaded: LoadedModel, rows: FloatRows) -> Mapping[str, FloatRows]:
        group_key = loaded.group.group_key
        try:
            outputs = loaded.engine.predict(rows)
        except Exception as error:
            raise _prediction_failed(group_key, error) from error
        return checked_outputs(outputs, len(rows), group_key, loaded.outputs)

    def _prediction(
        self,
        asked: Asked,
        resolved: Resolved,
        loaded: LoadedModel,
        decision: Decision,
        explained: dict[str, Any] | None,
    ) -> Prediction:
        return Prediction(
            symbol=asked.symbol,
            decision=decision,
            model_name=resolved.version.model_name,
            version=resolved.version.label,
            model_info=self.model_info(resolved, loaded),
            prediction_id=self.new_prediction_id(),
            contributions=explained,
        )

    def _failed(self, resolved: Resolved, begun_ns: int) -> None:
        self.statistics.failed(resolved.version, resolved.group, time.perf_counter_ns() - begun_ns)


def _explained(layout: RowLayout, outputs: np.ndarray[Any, Any]) -> dict[str, Any]:
    entries = []
    for values in outputs:
        by_factor = np.moveaxis(values[:-1].reshape(layout.row_shape), -1, 0).tolist()
        entries.append({"base": values[-1].item(), "factors": dict(zip(layout.factors, by_factor, strict=True))})
    return entries[0] if len(entries) == 1 else {"outputs": entries}


def _not_finite(group_key: str, outputs: Mapping[str, FloatRows]) -> PredictionNotFinite:
    for name, values in outputs.items():
        wrong = values[~np.isfinite(values)]
        if wrong.size:
            return PredictionNotFinite(group_key=group_key, value=float(wrong[0]), output=name)
    return PredictionNotFinite(group_key=group_key, value="something that is not finite", output="an output")


def _prediction_failed(group_key: str, error: Exception) -> PredictionFailed | PredictionTooLong:
    if isinstance(error, PredictionFailed | PredictionTooLong):
        return error
    log.error("%s: its library failed", group_key, exc_info=error)
    return PredictionFailed(group_key=group_key, reason=type(error).__name__)
