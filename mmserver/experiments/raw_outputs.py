"""Requests for a model's raw outputs while experiments run: what `service` does for decisions, for the standard protocols.

A request has one arm, because its answer names one version: its rows are scored together in whichever arm that is, and each row is
logged as a prediction of its own, with its share of the time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np

from mmserver.catalog.running import ArmVersion
from mmserver.catalog.symbols import ALL_SYMBOLS
from mmserver.errors import MmserverError, SymbolAmbiguous, SymbolNotFound
from mmserver.experiments.active import Assignment
from mmserver.experiments.assignment import Arm
from mmserver.experiments.loaded_arms import INPUTS_DIFFER, Ready, inputs_differ
from mmserver.experiments.observations.values import Observation, ShadowAnswer
from mmserver.experiments.observing import decisions_of, is_ours
from mmserver.experiments.service import Appending, Experimenter, observation_of
from mmserver.formats import Decision, FloatRows
from mmserver.serving.interpretation import DIRECTION_CODES, NoInterpreter
from mmserver.serving.predictions import Asked, Resolved, Serving
from mmserver.serving.predictors import LoadedModel
from mmserver.serving.tensor_models import find_by_group_key, outputs_of

OUTPUTS_DIFFER = "outputs_differ"
"""Why a treatment did not answer: its outputs have other names, shapes or meanings than the control's, which the client goes by."""
_NS_PER_US = 1000


class Reading(Protocol):
    """A request's rows, to be read as the model that is asked takes them."""

    @property
    def is_named(self) -> bool:
        """Whether its numbers go by the names of factors, not by their places."""

    def __call__(self, resolved: Resolved, loaded: LoadedModel) -> np.ndarray[Any, Any]:
        """The rows, n × n_features; raises what reading them raises."""


@dataclass(frozen=True, slots=True)
class RawRequest:
    """What is asked, as far as it decides about the arm: `asked` without features.

    `named` is the symbol or group key by which each arm's group is found; None is a model's only one.
    """

    asked: Asked
    named: str | None
    waited_ns: int = 0
    """How long it waited for a thread."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The outputs, and who gave them.

    Of several rows, the n-th (from 0) is the prediction `{prediction_id}.{n}`; a single one is `prediction_id` itself.
    """

    ready: Ready
    outputs: Mapping[str, FloatRows]
    variant: Arm
    experiment_id: str
    prediction_id: str
    fallback: str | None


@dataclass(frozen=True, slots=True)
class RawOutcome:
    """What came of a request, before anything of it is kept or told."""

    answer: RawAnswer | MmserverError
    observations: Sequence[Observation]


@dataclass(frozen=True, slots=True)
class _Ran:
    """What one arm made of the rows; `code` says why there are no outputs."""

    rows: np.ndarray[Any, Any]
    ready: Ready | None = None
    outputs: Mapping[str, FloatRows] | None = None
    latency_us: int = 0
    """A row's share."""
    code: str | None = None
    error: MmserverError | None = None


class RawExperimenter:
    """Safe for all threads, beside the `Experimenter` of the same process."""

    def __init__(self, experimenter: Experimenter, serving: Serving, log: Appending) -> None:
        self.assigned: Callable[[Asked, str | None], Assignment | None] = experimenter.assigned
        self.hand_over = experimenter.hand_over
        self._serving = serving
        self._log = log

    @staticmethod
    def request(
        resolved: Resolved,
        named: str | None,
        *,
        version: str | None = None,
        as_of: datetime | None = None,
        unit_id: str | None = None,
        request_id: str | None = None,
        waited_ns: int = 0,
    ) -> RawRequest:
        """`resolved` is what would answer without an experiment, `named` what the request called its symbol, if anything."""
        own = resolved.group.symbol
        asked = Asked(
            symbol=own if own != ALL_SYMBOLS else named or ALL_SYMBOLS,
            features=[],
            model_name=resolved.version.model_name,
            version=version,
            as_of=as_of,
            unit_id=unit_id,
            request_id=request_id,
        )
        return RawRequest(asked, named if named is not None or own == ALL_SYMBOLS else own, waited_ns)

    def control(self, request: RawRequest, assignment: Assignment) -> Ready:
        """The control, loaded: the request is read in its terms, whatever the arm.

        Raises:
            what resolving and loading it does; a control that cannot be loaded has failed.
        """
        try:
            return self._ready(request, assignment.experiment.control)
        except MmserverError as error:
            if assignment.arm == "control" and is_ours(error):
                failed = observation_of(assignment, None, latency_us=0, features=b"", error=error.code)
                self._log.append(failed, must_keep=True)
            raise

    def held(self, request: RawRequest, assignment: Assignment) -> tuple[Ready, int] | None:
        """The control, and what a row costs in all arms together; None unless all are loaded: see `Experimenter.ready_arms`."""
        experiment = assignment.experiment
        arms = (experiment.control,) if experiment.treatment_trouble else (experiment.control, experiment.treatment)
        found = []
        for arm in arms:
            resolved = self._serving.known(request.named, arm.model_name, arm.version)
            loaded = None if resolved is None else self._serving.held(resolved)
            if resolved is None or loaded is None:
                return None
            found.append(Ready(resolved, loaded))
        return found[0], len(found) * max(ready.loaded.row_cost_ns for ready in found)

    def scored(
        self,
        request: RawRequest,
        assignment: Assignment,
        control: Ready,
        rows: np.ndarray[Any, Any],
        read: Reading,
    ) -> RawOutcome:
        """Ask the arm, and the other one where that is wanted or needed; nothing is kept yet. `rows` were read for the control."""
        if assignment.arm == "control":
            ours = self._run(control, rows, request.waited_ns)
            if ours.error is not None:
                return self._failed(assignment, ours)
            is_shadowed = assignment.experiment.mode == "shadow"
            shadows = self._shadows(request, assignment, control, rows, read) if is_shadowed else None
            return self._answered(assignment, ours, self._observations(assignment, ours, shadows))
        ours = self._by_treatment(request, assignment, control, rows, read)
        if ours.outputs is not None:
            return self._answered(assignment, ours, self._observations(assignment, ours))
        instead = self._run(control, rows, request.waited_ns)
        if instead.error is not None:
            return self._failed(assignment, instead)
        return self._answered(assignment, instead, self._observations(assignment, ours), fallback=ours.code)

    def kept(self, outcome: RawOutcome) -> RawAnswer:
        """Log each row, then give the answer.

        Raises:
            MmserverError: the outcome itself.
            Overloaded, DiskFull: it cannot be logged.
        """
        for observation in outcome.observations:
            self._log.append(observation, must_keep=True)
        if isinstance(outcome.answer, MmserverError):
            raise outcome.answer
        return outcome.answer

    def load_both(self, request: RawRequest, assignment: Assignment) -> None:
        """So that the next request finds both arms loaded, whichever it gets: see `held`."""
        for arm in (assignment.experiment.control, assignment.experiment.treatment):
            try:
                self._ready(request, arm)
            except MmserverError:  # told, and counted, when the arm is asked
                continue

    # --- parts ------------------------------------------------------------------------------------------------------------

    def _ready(self, request: RawRequest, arm: ArmVersion) -> Ready:
        serving = self._serving
        try:
            resolved = serving.resolve(request.named, arm.model_name, arm.version)
        except (SymbolNotFound, SymbolAmbiguous):
            found = find_by_group_key(serving, arm.model_name, request.named, arm.version)
            if found is None:
                raise
            resolved = found
        return Ready(resolved, serving.loaded(resolved))

    def _by_treatment(
        self,
        request: RawRequest,
        assignment: Assignment,
        control: Ready,
        rows: np.ndarray[Any, Any],
        read: Reading,
        *,
        is_shadow: bool = False,
    ) -> _Ran:
        """What nobody is told of may have other outputs; what is asked by place must have the same inputs all the same."""
        experiment = assignment.experiment
        if experiment.treatment_trouble is not None:
            return _Ran(rows, code=experiment.treatment_trouble)
        try:
            ready = self._ready(request, experiment.treatment)
            if not is_shadow and _outputs_differ(control.loaded, ready.loaded):
                return _Ran(rows, code=OUTPUTS_DIFFER)
            if inputs_differ(control.loaded, ready.loaded):
                if not read.is_named:
                    return _Ran(rows, code=INPUTS_DIFFER)
                rows = read(*ready)
        except MmserverError as error:
            return _Ran(rows, code=error.code, error=error)
        return self._run(ready, rows, 0 if is_shadow else request.waited_ns)

    def _run(self, ready: Ready, rows: np.ndarray[Any, Any], waited_ns: int) -> _Ran:
        begun_ns = perf_counter_ns()
        try:
            outputs = self._serving.run(ready.resolved, rows, queue_ns=waited_ns, loaded=ready.loaded)
        except MmserverError as error:
            return _Ran(rows, ready, None, _share_us(begun_ns, len(rows)), error.code, error)
        return _Ran(rows, ready, outputs, _share_us(begun_ns, len(rows)))

    def _shadows(
        self, request: RawRequest, assignment: Assignment, control: Ready, rows: np.ndarray[Any, Any], read: Reading
    ) -> list[ShadowAnswer]:
        ran = self._by_treatment(request, assignment, control, rows, read, is_shadow=True)
        if ran.outputs is None:
            return [ShadowAnswer(None, None, ran.latency_us, ran.code)] * len(rows)
        return [
            ShadowAnswer(None, None, ran.latency_us)
            if decision is None
            else ShadowAnswer(DIRECTION_CODES[decision.direction], decision.expected_return, ran.latency_us)
            for decision in self._decisions(ran)
        ]

    def _decisions(self, ran: _Ran) -> Sequence[Decision | None]:
        """What each row's outputs mean; None where there are none, or nothing says that."""
        if ran.ready is None or ran.outputs is None:
            return [None] * len(ran.rows)
        return decisions_of(*ran.ready, ran.outputs, len(ran.rows), self._serving.dead_band(ran.ready.resolved))

    def _observations(
        self, assignment: Assignment, ran: _Ran, shadows: Sequence[ShadowAnswer] | None = None
    ) -> list[Observation]:
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(ran.rows, np.float32)
        n_rows, prediction_id = len(rows), assignment.prediction_id
        return [
            observation_of(
                assignment,
                decision,
                latency_us=ran.latency_us,
                features=rows[at].tobytes(),
                error=ran.code,
                shadow=None if shadows is None else shadows[at],
                prediction_id=prediction_id if n_rows == 1 else f"{prediction_id}.{at}",
            )
            for at, decision in enumerate(self._decisions(ran))
        ]

    def _answered(
        self, assignment: Assignment, ran: _Ran, observations: Sequence[Observation], fallback: str | None = None
    ) -> RawOutcome:
        assert ran.ready is not None  # noqa: S101 (it gave outputs)
        assert ran.outputs is not None  # noqa: S101 (see above)
        experiment_id = assignment.experiment.experiment_id
        variant: Arm = assignment.arm if fallback is None else "control"
        answer = RawAnswer(ran.ready, ran.outputs, variant, experiment_id, assignment.prediction_id, fallback)
        return RawOutcome(answer, observations)

    def _failed(self, assignment: Assignment, ran: _Ran) -> RawOutcome:
        """The control could not answer either. That a client asked for what no arm can give is no failure of one."""
        assert ran.error is not None  # noqa: S101 (there are no outputs)
        return RawOutcome(ran.error, self._observations(assignment, ran) if is_ours(ran.error) else [])


def _outputs_differ(control: LoadedModel, treatment: LoadedModel) -> bool:
    """Also where classes come in another order, as far as anything says which they are."""
    if outputs_of(control) != outputs_of(treatment):
        return True
    ours, theirs = control.interpreter, treatment.interpreter
    if isinstance(ours, NoInterpreter) and isinstance(theirs, NoInterpreter):
        return False
    return ours.direction_from != theirs.direction_from


def _share_us(begun_ns: int, n_rows: int) -> int:
    return (perf_counter_ns() - begun_ns) // (_NS_PER_US * max(1, n_rows))
