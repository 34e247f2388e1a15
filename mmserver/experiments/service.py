"""Predictions of one process while experiments run: put into an arm, logged before they are answered, else as ever.

The treatment never costs an answer: where it is archived, gone or fails, the control answers, says so, and the failure counts
against the treatment. What must be logged and cannot be is not answered.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from mmserver.catalog.running import ArmVersion
from mmserver.errors import MmserverError
from mmserver.experiments.active import BY_PREDICTION, Assignment, assigned, candidates
from mmserver.experiments.loaded_arms import INPUTS_DIFFER, LoadedArms, Ready, inputs_differ
from mmserver.experiments.observations.values import Observation, ShadowAnswer, us_since_epoch
from mmserver.experiments.observing import is_ours
from mmserver.formats import Decision
from mmserver.serving.interpretation import DIRECTION_CODES, NoInterpreter
from mmserver.serving.predictions import Asked, Prediction, Serving

_US_PER_S = 1e6
MAX_HANDED_OVER = 1024
"""Requests on their way from one thread to another, at most."""


class Appending(Protocol):
    """What observations are handed to: `ObservationLog`."""

    def append(self, observation: Observation, *, must_keep: bool) -> None:
        """Keep it, or raise."""


class Outcome(NamedTuple):
    """What came of a request in an experiment, before anything of it is kept or told.

    `observation` is None where the client's own mistake is all there is to tell.
    """

    answer: Prediction | MmserverError
    observation: Observation | None


class _Scored(NamedTuple):
    """What one arm made of the features."""

    prediction: Prediction | None
    features: bytes
    latency_us: int
    code: str | None = None
    """Why there is no prediction."""
    error: MmserverError | None = None


class Experimenter:
    """What predictions go through while experiments run; safe for all threads."""

    def __init__(self, serving: Serving, log: Appending) -> None:
        self._serving = serving
        self._log = log
        self._drawn: dict[str, str] = {}

    def predict(self, asked: Asked, waited_ns: int = 0) -> Prediction:
        """One prediction, in an arm if it belongs to an experiment.

        Raises:
            what `Serving.predict` does; FieldsInvalid: see `assigned`.
            Overloaded, DiskFull: it belongs to an experiment and cannot be logged.
        """
        assignment = self.assigned(asked)
        if assignment is None:
            return self._serving.predict(asked, waited_ns)
        prediction = self.kept(self.scored(asked, assignment, waited_ns))
        self._load_both(asked, assignment)
        return prediction

    def predict_many(self, asked: Sequence[Asked], together: int | None = None) -> list[Prediction | MmserverError]:
        """As `Serving.predict_many`. What belongs to an experiment is scored one by one: how long a row takes together with others
        says nothing of its arm.
        """
        self._serving.check_n_rows(len(asked))
        answers: dict[int, Prediction | MmserverError] = {}
        for at, one in enumerate(asked):
            try:
                assignment = self.assigned(one)
                if assignment is not None:
                    answers[at] = self.kept(self.scored(one, assignment))
            except MmserverError as error:
                answers[at] = error
        rest = iter(self._serving.predict_many([one for at, one in enumerate(asked) if at not in answers], together))
        return [answers[at] if at in answers else next(rest) for at in range(len(asked))]

    def assigned(self, asked: Asked, model_name: str | None = None) -> Assignment | None:
        """The arm that the request gets; None where it belongs to no running experiment.

        `model_name`: the model that is meant, if that is known already.

        Raises:
            FieldsInvalid: it names an experiment that it cannot be put into as it is.
        """
        store = self._serving.store
        catalog = store.catalog
        if not catalog.experiments or store.read_only:  # which could log nothing
            return None
        model_name = asked.model_name or model_name
        if model_name is None and asked.experiment_id is None:
            model_name = self._model_found_by_symbol(asked)
        found = candidates(catalog, asked, model_name)
        if not found:
            return None
        drawn_id = None if asked.request_id is None else self._drawn.pop(asked.request_id, None)
        prediction_id, now = drawn_id or self._serving.new_prediction_id(), store.now()
        for experiment in found:
            assignment = assigned(experiment, asked, prediction_id, now)
            if assignment is not None:
                return assignment
        return None

    def hand_over(self, asked: Asked, assignment: Assignment) -> None:
        """Leave the request to another thread, with the arm that it has drawn: where each prediction is a unit of its own, a second
        draw would let a request that one arm failed try the other one.
        """
        if asked.request_id is not None and assignment.experiment.unit == BY_PREDICTION:
            while (
                len(self._drawn) >= MAX_HANDED_OVER
            ):  # of requests that were refused before anybody asked for their arm
                self._drawn.pop(next(iter(list(self._drawn)), ""), None)
            self._drawn[asked.request_id] = assignment.prediction_id

    def ready_arms(self, asked: Asked, assignment: Assignment, most_ns: float) -> LoadedArms | None:
        """Both arms, if `scored` would take at most that long: all of them are loaded, whichever was drawn, so that being slow or
        not loaded moves nobody to the other arm.
        """
        experiment = assignment.experiment
        control = self._held(asked.symbol, experiment.control)
        if control is None:
            return None
        loaded = control.loaded
        if isinstance(loaded.interpreter, NoInterpreter) or len(asked.features) not in loaded.layout.lengths:
            return None  # it is refused anyway
        if experiment.treatment_trouble is not None:
            return LoadedArms(control, None) if loaded.row_cost_ns <= most_ns else None
        treatment = self._held(asked.symbol, experiment.treatment)
        if treatment is None or 2 * max(loaded.row_cost_ns, treatment.loaded.row_cost_ns) > most_ns:
            return None
        return LoadedArms(control, treatment)

    def scored(
        self, asked: Asked, assignment: Assignment, waited_ns: int = 0, arms: LoadedArms | None = None
    ) -> Outcome:
        """Ask the arm, and the other one where that is wanted or needed; nothing is kept yet.

        `arms`: what `ready_arms` has just given; without them they are loaded here.
        """
        experiment = assignment.experiment
        if assignment.arm == "control":
            return self._by_control(asked, assignment, waited_ns, arms)
        ours = self._by_treatment(asked, assignment, waited_ns, arms)
        if ours.prediction is not None:
            return Outcome(ours.prediction, _observation(assignment, ours))
        instead = self._score(asked, assignment, experiment.control, waited_ns, arms and arms.control)
        if instead.prediction is None:
            return self._failed(assignment, instead)
        answer = replace(instead.prediction, variant="control", fallback=ours.code)
        failed = ours._replace(features=ours.features or instead.features)
        return Outcome(answer, _observation(assignment, failed))

    def kept(self, outcome: Outcome) -> Prediction:
        """Log it, then give it.

        Raises:
            MmserverError: the outcome itself.
            Overloaded, DiskFull: it cannot be logged.
        """
        if outcome.observation is not None:
            self._log.append(outcome.observation, must_keep=True)
        if isinstance(outcome.answer, MmserverError):
            raise outcome.answer
        return outcome.answer

    def _load_both(self, asked: Asked, assignment: Assignment) -> None:
        """So that the next request finds both arms loaded, whichever it gets: see `ready_arms`."""
        experiment = assignment.experiment
        for arm in (experiment.control, experiment.treatment):
            try:
                self._serving.loaded(self._serving.resolve(asked.symbol, arm.model_name, arm.version))
            except MmserverError:  # told, and counted, when the arm is asked
                continue

    # --- parts ------------------------------------------------------------------------------------------------------------

    def _model_found_by_symbol(self, asked: Asked) -> str | None:
        if asked.as_of is not None:
            return None
        resolved = self._serving.resolve(asked.symbol, None, asked.version)
        return resolved.version.model_name

    def _held(self, symbol: str, arm: ArmVersion) -> Ready | None:
        resolved = self._serving.known(symbol, arm.model_name, arm.version)
        loaded = None if resolved is None else self._serving.held(resolved)
        return None if resolved is None or loaded is None else Ready(resolved, loaded)

    def _ready(self, symbol: str, arm: ArmVersion) -> Ready:
        resolved = self._serving.resolve(symbol, arm.model_name, arm.version)
        return Ready(resolved, self._serving.loaded(resolved))

    def _by_control(self, asked: Asked, assignment: Assignment, waited_ns: int, arms: LoadedArms | None) -> Outcome:
        experiment = assignment.experiment
        ours = self._score(asked, assignment, experiment.control, waited_ns, arms and arms.control)
        if ours.prediction is None:
            return self._failed(assignment, ours)
        shadow = self._shadow(asked, assignment, arms) if experiment.mode == "shadow" else None
        return Outcome(ours.prediction, _observation(assignment, ours, shadow))

    def _by_treatment(self, asked: Asked, assignment: Assignment, waited_ns: int, arms: LoadedArms | None) -> _Scored:
        """Numbers without names are the control's factors: a treatment that takes others would be silently wrong."""
        experiment = assignment.experiment
        if experiment.treatment_trouble is not None:
            return _Scored(None, b"", 0, experiment.treatment_trouble)
        treatment = arms and arms.treatment
        if not isinstance(asked.features, dict):
            try:
                treatment = treatment or self._ready(asked.symbol, experiment.treatment)
                control = arms.control if arms else self._ready(asked.symbol, experiment.control)
            except MmserverError as error:
                return _Scored(None, b"", 0, error.code, error)
            if inputs_differ(control.loaded, treatment.loaded):
                return _Scored(None, b"", 0, INPUTS_DIFFER)
        return self._score(asked, assignment, experiment.treatment, waited_ns, treatment)

    def _shadow(self, asked: Asked, assignment: Assignment, arms: LoadedArms | None) -> ShadowAnswer:
        plain = replace(asked, explain=False) if asked.explain else asked
        scored = self._by_treatment(plain, assignment, 0, arms)
        if scored.prediction is None:
            return ShadowAnswer(None, None, scored.latency_us, scored.code)
        decision = scored.prediction.decision
        return ShadowAnswer(DIRECTION_CODES[decision.direction], decision.expected_return, scored.latency_us)

    def _failed(self, assignment: Assignment, scored: _Scored) -> Outcome:
        """The control could not answer either. That a client asked for what no arm can give is no failure of one."""
        error = scored.error
        assert error is not None  # noqa: S101 (there is no prediction)
        return Outcome(error, _observation(assignment, scored) if is_ours(error) else None)

    def _score(
        self, asked: Asked, assignment: Assignment, arm: ArmVersion, waited_ns: int, ready: Ready | None
    ) -> _Scored:
        """The time that it takes is the arm's own: what loads the model, once, is left out."""
        begun_ns = time.perf_counter_ns()
        try:
            if ready is None:
                ready = self._ready(asked.symbol, arm)
                begun_ns = time.perf_counter_ns()
            prediction, row = self._serving.predict_resolved(
                asked,
                ready.resolved,
                waited_ns,
                loaded=ready.loaded,
                prediction_id=assignment.prediction_id,
                variant=assignment.arm,
                experiment_id=assignment.experiment.experiment_id,
            )
        except MmserverError as error:
            return _Scored(None, b"", _us_since(begun_ns), error.code, error)
        return _Scored(prediction, row.tobytes(), _us_since(begun_ns))


def _observation(assignment: Assignment, scored: _Scored, shadow: ShadowAnswer | None = None) -> Observation:
    decision = scored.prediction.decision if scored.prediction is not None else None
    return observation_of(
        assignment, decision, latency_us=scored.latency_us, features=scored.features, error=scored.code, shadow=shadow
    )


def observation_of(
    assignment: Assignment,
    decision: Decision | None,
    *,
    latency_us: int,
    features: bytes,
    error: str | None = None,
    shadow: ShadowAnswer | None = None,
    prediction_id: str | None = None,
) -> Observation:
    """One prediction of the assignment's arm as it is logged; `prediction_id` where the assignment is of several rows."""
    experiment, version = assignment.experiment, assignment.version
    return Observation(
        prediction_id=prediction_id or assignment.prediction_id,
        at_us=us_since_epoch(assignment.at),
        experiment_key=experiment.log_key,
        phase=experiment.phase,
        arm=assignment.arm,
        unit=assignment.unit,
        symbol=assignment.symbol,
        model_name=version.model_name,
        version=version.version,
        direction=None if decision is None else DIRECTION_CODES[decision.direction],
        confidence=None if decision is None else decision.confidence,
        expected_return=None if decision is None else decision.expected_return,
        latency_us=latency_us,
        error=error,
        features=features,
        shadow=shadow,
        horizon_us=round(experiment.horizon_s * _US_PER_S),
        is_washed_out=assignment.is_washed_out,
    )


def _us_since(begun_ns: int) -> int:
    return (time.perf_counter_ns() - begun_ns) // 1000
